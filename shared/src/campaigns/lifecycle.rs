//! Starting, pausing, resuming and stopping a batch.
//!
//! Each step is one conditional change of the batch's row under its lock, so pressing a button
//! twice is pressing it once. A start is accepted at once and carried out by the job
//! `start_batch`, which looks at everything again: only then may rows be claimed.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::batches::{Batch, BatchStatus, batches, find, lock};
use super::starving::{is_starved, pause_for, shortage_of};
use crate::access::Scope;
use crate::agents;
use crate::billing::estimate::Basis;
use crate::calls::apply::complete_unscoped;
use crate::error::{Blocker, Error, Result};
use crate::ids::{AgentId, BatchId, OrgId, PhoneId, TrunkId, UserId};
use crate::queue::{Enqueued, Payload, Queue, enqueue};
use crate::trunks;

/// Job: let a started batch dial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartBatch {
    pub org_id: OrgId,
    pub batch_id: BatchId,
}

impl Payload for StartBatch {
    const KIND: &'static str = "start_batch";
    const QUEUE: Queue = Queue::Control;
    const MAX_ATTEMPTS: i32 = 25;
    const PRIORITY: i16 = 10;

    fn dedupe_key(&self) -> Option<String> {
        Some(self.batch_id.to_string())
    }

    fn org(&self) -> Option<OrgId> {
        Some(self.org_id)
    }
}

/// Job: cancel the calls of a stopped batch that nobody has answered yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelCalls {
    pub org_id: OrgId,
    pub batch_id: BatchId,
}

impl Payload for CancelCalls {
    const KIND: &'static str = "cancel_calls";
    const QUEUE: Queue = Queue::Control;
    // It comes back each second while requests of the batch are undecided.
    const MAX_ATTEMPTS: i32 = 900;
    const PRIORITY: i16 = 20;

    fn org(&self) -> Option<OrgId> {
        Some(self.org_id)
    }
}

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

/// A start that was accepted.
#[derive(Debug)]
pub struct Started {
    pub batch: Batch,
    pub member_count: i64,
    pub job: Enqueued,
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
    if let Some(why) = shortage_of(db, &batch, basis).await? {
        blockers.push(Blocker {
            code: why.code(),
            message: why.words().to_owned(),
        });
    }
    if let Err(refusal) = startable(&batch) {
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

/// Accepts the start of a batch.
///
/// # Errors
/// [`Error::NotFound`], [`Error::NotReady`], [`Error::InsufficientCredit`] when its owner's wallet
/// cannot pay a single call, or [`Error::Conflict`] when it runs or has run.
pub async fn start(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
    basis: Basis,
) -> Result<Started> {
    let batch = lock(db, scope, id).await?;
    let (member_count, blockers) = blockers(db, &batch).await?;
    let payload = StartBatch {
        org_id: batch.org_id,
        batch_id: id,
    };
    if !(batch.status == BatchStatus::InProgress && awaits_launch(db, id).await?) {
        startable(&batch)?;
        if batch.status == BatchStatus::Stopped && has_live_calls(db, id).await? {
            return Err(Error::conflict(
                "calls_in_flight",
                "calls of the batch are still in flight: start it again when they have ended",
            ));
        }
        if !blockers.is_empty() {
            return Err(Error::NotReady(blockers));
        }
        if let Some(why) = shortage_of(db, &batch, basis).await? {
            return Err(why.error());
        }
        sqlx::query!(
            "update call_batches
             set status = 'in_progress', status_reason = null, launched_at = null, starved_since = null, starved_reason = null,
                 starved_until = null,
                 started_at = coalesce(started_at, now()), updated_at = now()
             where id = $1",
            id as BatchId,
        )
        .execute(&mut *db)
        .await?;
    }
    let job = enqueue(db, &payload, None).await?;
    Ok(Started {
        batch: find(db, scope, id).await?,
        member_count,
        job,
    })
}

/// Lets an accepted batch dial, or pauses it with the reason when it is no longer ready. Runs
/// for the platform: the start was authorised when it was accepted. True when it dials.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn launch_unscoped(db: &mut PgConnection, id: BatchId, basis: Basis) -> Result<bool> {
    sqlx::query!(
        "select from call_batches where id = $1 for no key update",
        id as BatchId
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(batch) = waiting_for_launch(db, id).await? else {
        return Ok(false);
    };
    let (rows, blockers) = blockers(db, &batch).await?;
    if rows > 0
        && let Some(blocker) = blockers.first()
    {
        sqlx::query!(
            "update call_batches set status = 'paused', status_reason = $2, updated_at = now() where id = $1",
            id as BatchId,
            blocker.message,
        )
        .execute(db)
        .await?;
        return Ok(false);
    }
    if let Some(why) = shortage_of(db, &batch, basis).await? {
        pause_for(db, id, why).await?;
        return Ok(false);
    }
    sqlx::query!(
        "update call_batches b
         set launched_at = now(), trunk_id = p.trunk_id, updated_at = now()
         from phone_numbers p
         where b.id = $1
           and p.id = b.caller_phone_id",
        id as BatchId,
    )
    .execute(&mut *db)
    .await?;
    Ok(complete_unscoped(db, &[id]).await?.is_empty())
}

/// Stops taking rows until the batch is resumed. Calls that are on their way go on.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] when it does not run.
pub async fn pause(db: &mut PgConnection, scope: &Scope, id: BatchId) -> Result<Batch> {
    let batch = lock(db, scope, id).await?;
    match batch.status {
        // One that was paused for want of money would go on by itself.
        BatchStatus::Paused if !is_starved(&batch) => return Ok(batch),
        BatchStatus::Paused | BatchStatus::InProgress => {}
        status => return Err(wrong_status("pause", "in progress", status)),
    }
    set_status(db, id, BatchStatus::Paused, Some("paused by its owner")).await?;
    find(db, scope, id).await
}

/// Pauses a running batch that cannot go on, in words for its owner.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn pause_unscoped(db: &mut PgConnection, id: BatchId, why: &str) -> Result<()> {
    sqlx::query!(
        "update call_batches
         set status = 'paused', status_reason = $2, starved_since = null, starved_reason = null,
             starved_until = null, updated_at = now()
         where id = $1
           and status = 'in_progress'",
        id as BatchId,
        why,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Lets a paused batch go on.
///
/// # Errors
/// [`Error::NotFound`], [`Error::InsufficientCredit`] when its owner's wallet cannot pay a single
/// call, or [`Error::Conflict`] when it is not paused.
pub async fn resume(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
    basis: Basis,
) -> Result<(Batch, Enqueued)> {
    let batch = lock(db, scope, id).await?;
    match batch.status {
        BatchStatus::Paused | BatchStatus::InProgress => {}
        status => return Err(wrong_status("resume", "paused", status)),
    }
    if batch.status == BatchStatus::Paused {
        if let Some(why) = shortage_of(db, &batch, basis).await? {
            return Err(why.error());
        }
        // The launch looks at everything again, so that a batch never resumes into the fault
        // that paused it.
        sqlx::query!(
            "update call_batches
             set status = 'in_progress', status_reason = null, launched_at = null, starved_since = null, starved_reason = null,
                 starved_until = null,
                 updated_at = now()
             where id = $1",
            id as BatchId,
        )
        .execute(&mut *db)
        .await?;
    }
    let payload = StartBatch {
        org_id: batch.org_id,
        batch_id: id,
    };
    let job = enqueue(db, &payload, None).await?;
    Ok((find(db, scope, id).await?, job))
}

/// Ends a batch before its last row. Rows that were not called stay; answered calls go on,
/// ringing ones are canceled by the job that is answered here.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] when it neither runs nor is paused.
pub async fn stop(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
) -> Result<(Batch, Option<Enqueued>)> {
    let batch = lock(db, scope, id).await?;
    match batch.status {
        BatchStatus::Stopped => return Ok((batch, None)),
        BatchStatus::InProgress | BatchStatus::Paused => {}
        status => return Err(wrong_status("stop", "in progress or paused", status)),
    }
    set_status(db, id, BatchStatus::Stopped, Some("stopped by its owner")).await?;
    let payload = CancelCalls {
        org_id: batch.org_id,
        batch_id: id,
    };
    let job = enqueue(db, &payload, None).await?;
    Ok((find(db, scope, id).await?, Some(job)))
}

fn startable(batch: &Batch) -> Result<()> {
    let (code, detail) = match batch.status {
        BatchStatus::NotStarted | BatchStatus::Stopped => return Ok(()),
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

fn wrong_status(verb: &str, wanted: &str, status: BatchStatus) -> Error {
    Error::conflict(
        "batch_status",
        format!(
            "only a batch that is {wanted} can {verb}; this one is {}",
            status.as_str()
        ),
    )
}

async fn has_live_calls(db: &mut PgConnection, id: BatchId) -> Result<bool> {
    let live = sqlx::query_scalar!(
        r#"select exists (select from calls where batch_id = $1 and live) as "live!""#,
        id as BatchId,
    )
    .fetch_one(db)
    .await?;
    Ok(live)
}

async fn set_status(
    db: &mut PgConnection,
    id: BatchId,
    status: BatchStatus,
    why: Option<&str>,
) -> Result<()> {
    sqlx::query!(
        "update call_batches
         set status = $2, status_reason = $3, starved_since = null, starved_reason = null, starved_until = null,
             updated_at = now()
         where id = $1",
        id as BatchId,
        status.as_str(),
        why,
    )
    .execute(db)
    .await?;
    Ok(())
}

async fn awaits_launch(db: &mut PgConnection, id: BatchId) -> Result<bool> {
    Ok(waiting_for_launch(db, id).await?.is_some())
}

async fn waiting_for_launch(db: &mut PgConnection, id: BatchId) -> Result<Option<Batch>> {
    let batch = batches!(
        "where id = $1
           and status = 'in_progress'
           and launched_at is null",
        id as BatchId,
    )
    .fetch_optional(db)
    .await?;
    Ok(batch)
}

/// The rows that wait, and everything that keeps the batch from dialling them.
async fn blockers(db: &mut PgConnection, batch: &Batch) -> Result<(i64, Vec<Blocker>)> {
    let facts = sqlx::query!(
        r#"select g.not_started,
                  exists (select from ingests i where i.batch_id = b.id and i.state in ('queued', 'running'))
                      as "ingesting!",
                  a.is_active as agent_active, p.is_active as line_active, t.status = 'active' as "trunk_active!",
                  t.status_reason as trunk_reason, p.trunk_id as "trunk_id: TrunkId",
                  a.first_response_message, a.system_prompt
           from call_batches b
           join batch_progress g on g.batch_id = b.id
           join agents a on a.id = b.agent_id
           join phone_numbers p on p.id = b.caller_phone_id
           join trunks t on t.id = p.trunk_id
           where b.id = $1"#,
        batch.id as BatchId,
    )
    .fetch_one(db)
    .await?;
    let mut missing: Vec<&str> = agents::placeholders(&facts.first_response_message)
        .chain(agents::placeholders(&facts.system_prompt))
        .filter(|name| !batch.variable_names.iter().any(|known| known == name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    let mut blockers = Vec::new();
    let mut block = |is: bool, code: &'static str, message: String| {
        if is {
            blockers.push(Blocker { code, message });
        }
    };
    block(
        facts.not_started == 0 && !facts.ingesting,
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
    block(
        !missing.is_empty(),
        "missing_variables",
        format!(
            "the agent speaks of {} which the batch does not have: add it to variable_names and upload the rows with it",
            missing.join(", ")
        ),
    );
    Ok((facts.not_started, blockers))
}
