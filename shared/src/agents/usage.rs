//! Batches and calls in progress that depend on an agent, or on its tools and rules.
//!
//! The caller has found the resource in their scope; its dependents are searched in all scopes,
//! since an administrator's batch may use a member's agent.

use sqlx::PgConnection;
use uuid::Uuid;

use super::config::AgentSetup;
use super::crud::CompleteAgent;
use super::variables;
use crate::platform::error::{Error, Result};
use crate::platform::ids::AgentId;

/// Batches and calls that depend on a resource.
struct AgentDependents {
    /// Names of the first three batches.
    batches: Vec<String>,
    is_on_call: bool,
}

impl AgentDependents {
    /// Returns the dependents and the remedy as text; `None` without dependents.
    fn describe(&self) -> Option<(String, &'static str)> {
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

/// Finds the dependents of the agent, tool, MCP server or rule with this id; ids are unique over
/// all of them. A tool is used through the agents that have it and the rules that call it, a rule
/// through the agents that have it.
async fn find_dependents_unscoped(
    db: &mut PgConnection,
    id: Uuid,
    only_running: bool,
) -> Result<AgentDependents> {
    let relying = sqlx::query_as!(
        AgentDependents,
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

/// Operation on an agent that may need it to be unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AgentOperation {
    /// A change, which force allows.
    Change,
    /// A change of an agent that stays inactive.
    ChangeInactive,
    Deactivate,
    Delete,
}

impl AgentOperation {
    /// Returns the refused operation, and a hint about the query parameter.
    fn message_parts(self) -> (&'static str, &'static str) {
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

/// Refuses when a batch that may dial, or a call, uses the agent.
///
/// # Errors
/// [`Error::Conflict`] with the dependent and the remedy.
pub(super) async fn check_unused_unscoped(
    db: &mut PgConnection,
    agent: &CompleteAgent,
    intent: AgentOperation,
) -> Result<()> {
    let relying = find_dependents_unscoped(db, agent.agent.id.0, false).await?;

    let by = match (relying.batches.first(), relying.is_on_call) {
        (Some(batch), _) => {
            format!(
                "the batch \"{batch}\" is scheduled, running or paused with it: stop the batch first"
            )
        }
        (None, true) => "calls of it wait or are under way: let them end first".to_owned(),
        (None, false) => return Ok(()),
    };

    let (what, force) = intent.message_parts();
    Err(Error::conflict(
        "agent_in_use",
        format!("the agent cannot be {what}, because {by}{force}"),
    ))
}

/// Refuses to change a resource while a running batch or a call uses it: an agent's tools and
/// rules, or a tool, MCP server or rule of agents. `force` allows the change. A paused batch does
/// not count; it continues with the changed resource.
///
/// There is no scope: the caller has found the resource in theirs, and its dependents may be
/// outside of it.
///
/// # Errors
/// [`Error::Conflict`] with the dependents and the remedy.
pub async fn check_idle_unscoped(db: &mut PgConnection, id: Uuid, force: bool) -> Result<()> {
    if force {
        return Ok(());
    }
    match find_dependents_unscoped(db, id, true).await?.describe() {
        None => Ok(()),
        Some((dependents, remedy)) => Err(Error::conflict(
            "agent_in_use",
            format!(
                "{dependents}: {remedy} first, or send force_update=true to change it for the calls that follow"
            ),
        )),
    }
}

/// Describes the running batches or the calls that use a tool, a server or a rule, for the
/// message that refuses to delete it. No scope, as for [`check_idle_unscoped`].
pub async fn describe_running_unscoped(db: &mut PgConnection, id: Uuid) -> Result<Option<String>> {
    let relying = find_dependents_unscoped(db, id, true).await?;
    Ok(relying.describe().map(|(dependents, _)| dependents))
}

/// Refuses texts with variables that a running batch does not have.
///
/// # Errors
/// [`Error::Conflict`] with the variable and the batch.
pub(super) async fn check_variables_unscoped(
    db: &mut PgConnection,
    id: AgentId,
    setup: &AgentSetup,
) -> Result<()> {
    let used = variables([
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
        &used,
    )
    .fetch_optional(db)
    .await?;

    match lacking {
        None => Ok(()),
        Some(lacking) => Err(Error::conflict(
            "missing_variables",
            format!(
                "the texts use {{{{{}}}}}, which the running batch \"{}\" does not have: take it out, or stop the batch first",
                lacking.name, lacking.batch_name
            ),
        )),
    }
}
