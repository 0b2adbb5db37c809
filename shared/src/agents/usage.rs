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

/// Refuses when a batch that may dial, or a call, relies on the agent.
///
/// # Errors
/// [`Error::Conflict`] with who does.
pub(super) async fn check_unused_unscoped(
    db: &mut PgConnection,
    agent: &CompleteAgent,
    what: &str,
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
            format!("the batch \"{batch}\" runs or is paused with it: stop the batch")
        }
        (None, true) => "calls of it are under way: let them end".to_owned(),
        (None, false) => return Ok(()),
    };
    Err(Error::conflict(
        "agent_in_use",
        format!("the agent cannot be {what} so, because {by} first"),
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
