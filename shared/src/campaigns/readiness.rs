//! Readiness of a batch to start, and all its blockers.

use serde::Serialize;
use sqlx::PgConnection;

use super::batches::{Batch, BatchStatus, find};
use super::ingest::required_variables;
use super::insufficient_credit::credit_shortage;
use crate::access::Scope;
use crate::billing::estimate::EstimateBasis;
use crate::platform::error::{Blocker, Error, Result};
use crate::platform::ids::{AgentId, BatchId, TrunkId};
use crate::{agents, trunks};

/// Most rows that a request checks for missing values; the launch checks all of them.
pub(super) const MAX_ROWS_CHECKED: i64 = 20_000;

/// Readiness of a batch to start now.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    pub can_start: bool,
    pub member_count: i64,
    pub has_agent_or_workflow: bool,
    pub has_caller_phone: bool,
    pub status: BatchStatus,
    pub blockers: Vec<Blocker>,
}

/// Reports the blockers of a batch within the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] for a batch outside the scope.
pub async fn readiness(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
    basis: EstimateBasis,
) -> Result<Readiness> {
    let batch = find(db, scope, id).await?;

    let (member_count, mut blockers) = load_blockers(db, &batch).await?;
    blockers.extend(rows_without_values(db, &batch, Some(MAX_ROWS_CHECKED)).await?);
    if let Some(refusal) = credit_shortage(db, &batch, basis).await? {
        blockers.push(Blocker {
            code: refusal.code(),
            message: refusal.message().to_owned(),
        });
    }

    // The status comes first: nothing else matters while it does not allow a start.
    if let Err(refusal) = check_startable(&batch, member_count) {
        blockers.insert(
            0,
            Blocker {
                code: "status",
                message: refusal.to_string(),
            },
        );
    }

    Ok(Readiness {
        can_start: blockers.is_empty(),
        member_count,
        has_agent_or_workflow: true,
        has_caller_phone: true,
        status: batch.status,
        blockers,
    })
}

/// Refuses a batch whose status does not allow a start; `rows` are those not started.
pub(super) fn check_startable(batch: &Batch, rows: i64) -> Result<()> {
    let (code, detail) = match batch.status {
        BatchStatus::NotStarted => return Ok(()),
        BatchStatus::Stopped if rows > 0 => return Ok(()),
        BatchStatus::Stopped => (
            "batch_completed",
            "the batch was stopped and has no rows left to call: create another one to call again",
        ),
        BatchStatus::InProgress => ("batch_running", "the batch already has calls in flight"),
        BatchStatus::Paused => ("batch_paused", "the batch is paused: resume it"),
        BatchStatus::Scheduled => (
            "batch_scheduled",
            "the batch is scheduled and starts by itself",
        ),
        BatchStatus::Completed => (
            "batch_completed",
            "the batch is completed: create another one to call again",
        ),
    };
    Err(Error::conflict(code, detail))
}

/// Counts the rows not started, and collects the batch's blockers apart from
/// [`rows_without_values`].
pub(super) async fn load_blockers(
    db: &mut PgConnection,
    batch: &Batch,
) -> Result<(i64, Vec<Blocker>)> {
    // 1. Load all facts in one statement.
    let facts = sqlx::query!(
        r#"select g.not_started,
                  exists (select from ingests i where i.batch_id = b.id and i.state in ('queued', 'running'))
                      as "ingesting!",
                  a.is_active as agent_active, p.is_active as line_active, t.status = 'active' as "trunk_active!",
                  t.status_reason as trunk_reason, p.trunk_id as "trunk_id: TrunkId",
                  u.removed_at is not null as "owner_removed!",
                  a.first_response_message, a.system_prompt
           from call_batches b
           join batch_progress g on g.batch_id = b.id
           join agents a on a.id = b.agent_id
           join phone_numbers p on p.id = b.caller_phone_id
           join trunks t on t.id = p.trunk_id
           join users u on u.id = b.user_id
           where b.id = $1"#,
        batch.id as BatchId,
    )
    .fetch_one(db)
    .await?;

    // 2. Check them in the order in which an owner can clear them.
    let mut blockers = Vec::from_iter(facts.owner_removed.then(owner_removed_blocker));
    let mut block = |is: bool, code: &'static str, message: String| {
        if is {
            blockers.push(Blocker { code, message });
        }
    };
    block(
        // A batch that was started before cannot get more rows.
        facts.not_started == 0 && !facts.ingesting && batch.status == BatchStatus::NotStarted,
        "no_rows",
        "the batch has no rows to call: upload a CSV first".to_owned(),
    );
    block(
        facts.ingesting,
        "ingest_running",
        "an upload is still being read: start when it has finished".to_owned(),
    );
    block(
        !facts.agent_active,
        "agent_inactive",
        "the agent is not active".to_owned(),
    );
    block(
        !facts.line_active,
        "line_inactive",
        "the caller number is not active".to_owned(),
    );
    block(
        !facts.trunk_active,
        "trunk_paused",
        trunks::paused_message(facts.trunk_reason.as_deref()),
    );

    let texts = [
        facts.first_response_message.as_str(),
        facts.system_prompt.as_str(),
    ];
    blockers.extend(missing_variables(batch, texts));
    Ok((facts.not_started, blockers))
}

/// The blocker of a batch whose owner was removed: their data stays, but no wallet pays for calls.
pub(super) fn owner_removed_blocker() -> Blocker {
    Blocker {
        code: "owner_removed",
        message: "the batch owner is no longer a member of the organization; create the batch under another user".to_owned(),
    }
}

/// The blocker of variables that the agent's texts use and the batch does not have.
fn missing_variables(batch: &Batch, texts: [&str; 2]) -> Option<Blocker> {
    let mut missing: Vec<&str> = texts
        .into_iter()
        .flat_map(agents::placeholders)
        .filter(|name| !batch.variable_names.iter().any(|known| known == name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    (!missing.is_empty()).then(|| Blocker {
        code: "missing_variables",
        message: format!(
            "the agent uses {}, which the batch does not have: add it to variable_names before its rows are uploaded; existing rows get its value by POST {}/data/upsert with their ids, or use a new batch",
            missing.join(", "),
            batch.id,
        ),
    })
}

/// The blocker of rows without a value that the agent's texts use: they were added before the
/// batch had the variable, or before the agent used it. Checks at most `most` rows not started.
pub(super) async fn rows_without_values(
    db: &mut PgConnection,
    batch: &Batch,
    most: Option<i64>,
) -> Result<Option<Blocker>> {
    // 1. Find the variables that need a value.
    let agent = sqlx::query!(
        "select first_response_message, system_prompt from agents where id = $1",
        batch.agent_id as AgentId,
    )
    .fetch_one(&mut *db)
    .await?;
    let spoken = required_variables(
        [&agent.first_response_message, &agent.system_prompt],
        &batch.variable_names,
    );
    if spoken.is_empty() {
        return Ok(None);
    }

    // 2. Find the first row without one of them; each row is read once.
    let missing = sqlx::query_scalar!(
        r#"select m.names as "names!"
           from (select variable_values
                 from batch_data
                 where batch_id = $1
                   and status = 'not_started'
                 limit $3) d
           cross join lateral (
               select array_agg(v.name) as names
               from unnest($2::text[]) v (name)
               where coalesce(btrim(d.variable_values ->> v.name), '') = '') m
           where m.names is not null
           limit 1"#,
        batch.id as BatchId,
        &spoken,
        most,
    )
    .fetch_optional(db)
    .await?;

    Ok(missing.map(|names| Blocker {
        code: "rows_without_values",
        message: format!(
            "some rows have no value for {}, which the agent uses: add one by POST {}/data/upsert with their ids, or use a new batch",
            names.join(", "),
            batch.id,
        ),
    }))
}
