//! What relies on an agent, or on what agents work with, while it is under way: batches that may
//! dial, and calls.
//!
//! Whoever asks has found the thing in their sight; what uses it is looked for everywhere, since
//! an administrator's batch may speak through a member's agent.

use sqlx::PgConnection;
use uuid::Uuid;

use super::config::Setup;
use super::setup::CompleteAgent;
use super::variables;
use crate::error::{Error, Result};
use crate::ids::AgentId;

/// What relies on something.
struct Relying {
    /// The names of the first batches.
    batches: Vec<String>,
    is_on_call: bool,
}

impl Relying {
    /// Who it is, and what ends it.
    fn told(&self) -> Option<(String, &'static str)> {
        let batches = self.batches.iter();
        let quoted: Vec<String> = batches.map(|name| format!("\"{name}\"")).collect();
        match (quoted.as_slice(), self.is_on_call) {
            ([], false) => None,
            ([], true) => Some(("calls under way use this".to_owned(), "let them end")),
            ([one], _) => Some((
                format!("the running batch {one} uses this"),
                "pause or stop it",
            )),
            (several, _) => Some((
                format!("the running batches {} use this", several.join(", ")),
                "pause or stop them",
            )),
        }
    }
}

/// What relies on the agent, tool, MCP server or rule with this id: ids are one of a kind, so it
/// says by itself which of them is meant. A tool is relied on through the agents that have it and
/// through the rules that call it, a rule through the agents that have it.
async fn relying_unscoped(db: &mut PgConnection, id: Uuid, only_running: bool) -> Result<Relying> {
    let relying = sqlx::query_as!(
        Relying,
        r#"with relied_on as (
               select $1::uuid as id
               union
               select agent_id from agent_tools where (tool_id = $1 or mcp_server_id = $1) and enabled
               union
               select a.agent_id
               from agent_analysis_rules a
               join analysis_rules r on r.id = a.rule_id
               where r.id = $1 or r.tool_id = $1
           )
           select array(select b.batch_name
                        from call_batches b
                        where b.agent_id in (select id from relied_on)
                          and b.status in ('scheduled', 'in_progress', 'paused')
                          and (b.status = 'in_progress' or not $2)
                        order by b.id
                        limit 3) as "batches!",
                  exists (select from calls c where c.live and c.agent_id in (select id from relied_on))
                  or exists (select from calls c where c.queued and c.agent_id in (select id from relied_on))
                      as "is_on_call!""#,
        id,
        only_running,
    )
    .fetch_one(db)
    .await?;
    Ok(relying)
}

/// What is about to be done to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// Something that force does as well.
    Change,
    /// What leaves it inactive.
    ChangeInactive,
    Deactivate,
    Delete,
}

impl Intent {
    /// What is refused, and the query parameter that helps, or the one that does not.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Change => ("changed", ", or send force_update=true in the query"),
            Self::ChangeInactive => (
                "changed while it is inactive",
                ", or activate it in the same request with force_update=true in the query",
            ),
            Self::Deactivate => ("deactivated", " (force_update=true does not help here)"),
            Self::Delete => ("deleted", " (force_delete=true does not help here)"),
        }
    }
}

/// Refuses when a batch that may dial, or a call, relies on the agent.
///
/// # Errors
/// [`Error::Conflict`] with who does, and what to do about it.
pub(super) async fn check_unused_unscoped(
    db: &mut PgConnection,
    agent: &CompleteAgent,
    intent: Intent,
) -> Result<()> {
    let relying = relying_unscoped(db, agent.agent.id.0, false).await?;
    let by = match (relying.batches.first(), relying.is_on_call) {
        (Some(batch), _) => {
            format!(
                "the batch \"{batch}\" is scheduled, running or paused with it: stop the batch first"
            )
        }
        (None, true) => "calls of it wait or are under way: let them end first".to_owned(),
        (None, false) => return Ok(()),
    };
    let (what, force) = intent.words();
    Err(Error::conflict(
        "agent_in_use",
        format!("the agent cannot be {what}, because {by}{force}"),
    ))
}

/// Refuses to change under a running batch or a call what it works with: an agent's tools and
/// rules, or a tool, MCP server or rule that agents have. With `force`, lets it be changed. A
/// paused batch does not mind, and goes on with what it finds.
///
/// It is looked for in no scope: the caller has found the thing in theirs, and whoever uses it
/// may be out of their sight.
///
/// # Errors
/// [`Error::Conflict`] with what runs, and what to do.
pub async fn check_idle_unscoped(db: &mut PgConnection, id: Uuid, force: bool) -> Result<()> {
    if force {
        return Ok(());
    }
    match relying_unscoped(db, id, true).await?.told() {
        None => Ok(()),
        Some((who, remedy)) => Err(Error::conflict(
            "agent_in_use",
            format!(
                "{who}: {remedy} first, or send force_update=true to change it for the calls that follow"
            ),
        )),
    }
}

/// The running batches or the calls that use a tool, a server or a rule, in words, for whoever
/// refuses to delete it. In no scope, as [`check_idle_unscoped`].
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn running_unscoped(db: &mut PgConnection, id: Uuid) -> Result<Option<String>> {
    let relying = relying_unscoped(db, id, true).await?;
    Ok(relying.told().map(|(who, _)| who))
}

/// Refuses texts that speak of something a running batch does not know of its people.
///
/// # Errors
/// [`Error::Conflict`] with the batch.
pub(super) async fn check_variables_unscoped(
    db: &mut PgConnection,
    id: AgentId,
    setup: &Setup,
) -> Result<()> {
    let spoken = variables([
        &setup.agent.first_response_message,
        &setup.agent_model_config.system_prompt,
    ]);
    let lacking = sqlx::query!(
        r#"select b.batch_name, v.name as "name!"
           from call_batches b
           cross join unnest($2::text[]) as v (name)
           where b.agent_id = $1
             and b.status in ('scheduled', 'in_progress', 'paused')
             and v.name <> all (b.variable_names)
           order by b.id, v.name
           limit 1"#,
        id as AgentId,
        &spoken,
    )
    .fetch_optional(db)
    .await?;
    match lacking {
        None => Ok(()),
        Some(lacking) => Err(Error::conflict(
            "missing_variables",
            format!(
                "the texts speak of {{{{{}}}}}, which the running batch \"{}\" does not have: take it out, or stop the batch first",
                lacking.name, lacking.batch_name
            ),
        )),
    }
}
