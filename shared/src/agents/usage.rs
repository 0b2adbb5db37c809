//! What relies on an agent while it is under way: batches that may dial, and calls.
//!
//! Whoever asks has found the agent in their sight; what uses it is looked for everywhere, since
//! an administrator's batch may speak through a member's agent.

use sqlx::PgConnection;

use super::config::Setup;
use super::setup::CompleteAgent;
use super::variables;
use crate::error::{Error, Result};
use crate::ids::{AgentId, OrgId};

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
    let used = sqlx::query!(
        r#"select (select b.batch_name
                   from call_batches b
                   where b.agent_id = $1
                     and b.status in ('scheduled', 'in_progress', 'paused')
                   order by b.id
                   limit 1) as batch,
                  exists (select from calls c where c.org_id = $2 and c.agent_id = $1 and c.live)
                  or exists (select from calls c where c.org_id = $2 and c.agent_id = $1 and c.queued)
                      as "on_call!""#,
        agent.agent.id as AgentId,
        agent.org_id as OrgId,
    )
    .fetch_one(db)
    .await?;
    let by = match (used.batch, used.on_call) {
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
