//! Whether a batch could start, and everything that keeps it from it.

use serde::Serialize;
use sqlx::PgConnection;

use super::batches::{Batch, BatchStatus, find};
use super::ingest::spoken;
use super::starving::shortage_of;
use crate::access::Scope;
use crate::agents;
use crate::billing::estimate::Basis;
use crate::error::{Blocker, Error, Result};
use crate::ids::{AgentId, BatchId, TrunkId};
use crate::trunks;

/// Rows that a request looks at for missing values; the launch looks at all of them.
pub(super) const ROWS_LOOKED_AT: i64 = 20_000;

/// Whether a batch could start now.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    pub can_start: bool,
    pub member_count: i64,
    pub has_agent_or_workflow: bool,
    pub has_caller_phone: bool,
    pub status: BatchStatus,
    pub blockers: Vec<Blocker>,
}

/// What stands in the way of starting a batch in the caller's sight.
///
/// # Errors
/// [`Error::NotFound`] for a batch out of sight.
pub async fn readiness(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
    basis: Basis,
) -> Result<Readiness> {
    let batch = find(db, scope, id).await?;
    let (member_count, mut blockers) = blockers(db, &batch).await?;
    blockers.extend(rows_without_values(db, &batch, Some(ROWS_LOOKED_AT)).await?);
    if let Some(why) = shortage_of(db, &batch, basis).await? {
        blockers.push(Blocker {
            code: why.code(),
            message: why.words().to_owned(),
        });
    }
    if let Err(refusal) = startable(&batch, member_count) {
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

/// Whether a batch with so many rows that wait is in a status from which it may start.
pub(super) fn startable(batch: &Batch, rows: i64) -> Result<()> {
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

/// The rows that wait, and what keeps the batch from dialling them, apart from
/// [`rows_without_values`].
pub(super) async fn blockers(db: &mut PgConnection, batch: &Batch) -> Result<(i64, Vec<Blocker>)> {
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
    let mut blockers = Vec::from_iter(facts.owner_removed.then(owner_removed));
    let mut block = |is: bool, code: &'static str, message: String| {
        if is {
            blockers.push(Blocker { code, message });
        }
    };
    block(
        // One that was started takes no more rows.
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
        trunks::paused_words(facts.trunk_reason.as_deref()),
    );
    let texts = [
        facts.first_response_message.as_str(),
        facts.system_prompt.as_str(),
    ];
    blockers.extend(missing_variables(batch, texts));
    Ok((facts.not_started, blockers))
}

/// Nobody is called for somebody who has left: what they made stays, and who pays for it does not.
pub(super) fn owner_removed() -> Blocker {
    Blocker {
        code: "owner_removed",
        message: "the batch's owner is no member of the organization any more: call its people by a batch of somebody who is".to_owned(),
    }
}

/// Variables that the agent's texts speak of and the batch does not have.
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
            "the agent speaks of {}, which the batch does not have: add it to variable_names before its rows are uploaded; rows that are there already get its value by POST {}/data/upsert with their ids, or use a new batch",
            missing.join(", "),
            batch.id,
        ),
    })
}

/// Rows that would be called with a gap in the sentence: they came before the batch had the
/// variable, or before the agent spoke of it. Looks at no more than `most` of those that wait.
pub(super) async fn rows_without_values(
    db: &mut PgConnection,
    batch: &Batch,
    most: Option<i64>,
) -> Result<Option<Blocker>> {
    let agent = sqlx::query!(
        "select first_response_message, system_prompt from agents where id = $1",
        batch.agent_id as AgentId,
    )
    .fetch_one(&mut *db)
    .await?;
    let spoken = spoken(
        [&agent.first_response_message, &agent.system_prompt],
        &batch.variable_names,
    );
    if spoken.is_empty() {
        return Ok(None);
    }
    // The first such row says which; one look at each row, whatever the number of variables.
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
            "some rows have no value for {}, which the agent speaks of: give them one by POST {}/data/upsert with their ids, or use a new batch",
            names.join(", "),
            batch.id,
        ),
    }))
}
