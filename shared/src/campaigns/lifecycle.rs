//! Starting, pausing, resuming and stopping a batch.
//!
//! Each step is one conditional change of the batch's row under its lock, so a repeated request
//! has no further effect. A start is accepted at once and carried out by the job `start_batch`,
//! which checks everything again: only then may rows be claimed.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::batches::{Batch, BatchStatus, batches, find, lock};
use super::insufficient_credit::{credit_shortage, is_paused_for_credit, pause_for_credit};
use super::readiness::{
    MAX_ROWS_CHECKED, check_startable, load_blockers, owner_removed_blocker, rows_without_values,
};
use crate::access::Scope;
use crate::billing::estimate::EstimateBasis;
use crate::calls::apply::complete_unscoped;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, BatchId, OrgId, PhoneId, UserId};
use crate::platform::queue::{EnqueuedJob, JobPayload, Queue, enqueue, enqueue_all};
use crate::users::lock_member_unscoped;

/// Most launches that one round enqueues again.
const ROUND_LIMIT: i64 = 1000;

/// Job: launch a started batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartBatch {
    pub org_id: OrgId,
    pub batch_id: BatchId,
}

impl JobPayload for StartBatch {
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

/// Job: cancel the unanswered calls of a stopped batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelCalls {
    pub org_id: OrgId,
    pub batch_id: BatchId,
}

impl JobPayload for CancelCalls {
    const KIND: &'static str = "cancel_calls";
    const QUEUE: Queue = Queue::Control;
    // The job retries each second while requests of the batch have no known result.
    const MAX_ATTEMPTS: i32 = 900;
    const PRIORITY: i16 = 20;

    fn org(&self) -> Option<OrgId> {
        Some(self.org_id)
    }
}

/// A start that was accepted.
#[derive(Debug)]
pub struct StartedBatch {
    pub batch: Batch,
    pub member_count: i64,
    pub job: EnqueuedJob,
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
    basis: EstimateBasis,
) -> Result<StartedBatch> {
    // 1. Lock the batch, then its owner, whose membership is among the blockers.
    let batch = lock(db, scope, id).await?;
    let _is_member = lock_member_unscoped(db, batch.user_id).await?;
    let (member_count, mut blockers) = load_blockers(db, &batch).await?;
    let payload = StartBatch {
        org_id: batch.org_id,
        batch_id: id,
    };

    // 2. Start it, unless an accepted start still awaits its launch.
    if !(batch.status == BatchStatus::InProgress && awaits_launch(db, id).await?) {
        // Before rows are counted: a live call may return its row.
        if batch.status == BatchStatus::Stopped && has_live_calls(db, id).await? {
            return Err(Error::conflict(
                "calls_in_flight",
                "calls of the batch are still in flight: start it again when they have ended",
            ));
        }

        check_startable(&batch, member_count)?;
        blockers.extend(rows_without_values(db, &batch, Some(MAX_ROWS_CHECKED)).await?);
        if !blockers.is_empty() {
            return Err(Error::NotReady(blockers));
        }
        if let Some(refusal) = credit_shortage(db, &batch, basis).await? {
            return Err(refusal.error());
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

    // 3. Enqueue the launch in the same transaction.
    let job = enqueue(db, &payload, None).await?;
    Ok(StartedBatch {
        batch: find(db, scope, id).await?,
        member_count,
        job,
    })
}

/// Launches an accepted batch, or pauses it with the reason when it is no longer ready. Runs for
/// the platform: the start was authorised when it was accepted. True when it dials.
pub async fn launch_unscoped(
    db: &mut PgConnection,
    id: BatchId,
    basis: EstimateBasis,
) -> Result<bool> {
    let Some(batch) = find_unlaunched(db, id).await? else {
        return Ok(false);
    };

    // 1. Check each row before the lock, since it takes seconds on a large batch. The values
    // cannot change after the start.
    let without_values = rows_without_values(db, &batch, None).await?;

    // 2. Lock the batch and read it again.
    sqlx::query!(
        "select from call_batches where id = $1 for no key update",
        id as BatchId
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(batch) = find_unlaunched(db, id).await? else {
        return Ok(false);
    };

    // 3. Pause it when something blocks it, or when its owner's credit is insufficient.
    let _is_member = lock_member_unscoped(db, batch.user_id).await?;
    let (rows, mut blockers) = load_blockers(db, &batch).await?;
    blockers.extend(without_values);
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
    if let Some(refusal) = credit_shortage(db, &batch, basis).await? {
        pause_for_credit(db, id, refusal).await?;
        return Ok(false);
    }

    // 4. Launch it; a batch without rows left is completed at once.
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

/// Enqueues the launch of batches that await one and have no job for it: the job that a quick
/// resume returned may have run earlier, while the batch was paused. Runs for every tenant.
pub async fn requeue_launches_unscoped(db: &mut PgConnection) -> Result<Vec<EnqueuedJob>> {
    let forgotten = sqlx::query!(
        r#"select b.id as "id: BatchId", b.org_id as "org_id: OrgId"
           from call_batches b
           where b.status = 'in_progress'
             and b.launched_at is null
             and not exists (select from jobs j
                             where j.kind = $1
                               and j.dedupe_key = b.id::text
                               and j.state in ('ready', 'running'))
           order by b.id
           limit $2"#,
        StartBatch::KIND,
        ROUND_LIMIT,
    )
    .fetch_all(&mut *db)
    .await?;

    let payloads: Vec<StartBatch> = forgotten
        .into_iter()
        .map(|batch| StartBatch {
            org_id: batch.org_id,
            batch_id: batch.id,
        })
        .collect();
    if payloads.is_empty() {
        return Ok(Vec::new());
    }

    enqueue_all(db, &payloads, None).await
}

/// Pauses the claims of rows until the batch is resumed. Live calls continue.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] when it does not run.
pub async fn pause(db: &mut PgConnection, scope: &Scope, id: BatchId) -> Result<Batch> {
    let batch = lock(db, scope, id).await?;
    match batch.status {
        // A batch paused for insufficient credit could resume automatically.
        BatchStatus::Paused if !is_paused_for_credit(&batch) => return Ok(batch),
        BatchStatus::Paused | BatchStatus::InProgress => {}
        status => return Err(wrong_status("pause", "in progress", status)),
    }
    set_status(db, id, BatchStatus::Paused, Some("paused by its owner")).await?;
    find(db, scope, id).await
}

/// Pauses a running batch that cannot continue, with a reason for its owner.
pub async fn pause_unscoped(db: &mut PgConnection, id: BatchId, reason: &str) -> Result<()> {
    sqlx::query!(
        "update call_batches
         set status = 'paused', status_reason = $2, starved_since = null, starved_reason = null,
             starved_until = null, updated_at = now()
         where id = $1
           and status = 'in_progress'",
        id as BatchId,
        reason,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Resumes a paused batch.
///
/// # Errors
/// [`Error::NotFound`], [`Error::NotReady`] when its owner has been removed,
/// [`Error::InsufficientCredit`] when its owner's wallet cannot pay a single call, or
/// [`Error::Conflict`] when it is not paused.
pub async fn resume(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
    basis: EstimateBasis,
) -> Result<(Batch, EnqueuedJob)> {
    let batch = lock(db, scope, id).await?;
    match batch.status {
        BatchStatus::Paused | BatchStatus::InProgress => {}
        status => return Err(wrong_status("resume", "paused", status)),
    }

    if batch.status == BatchStatus::Paused {
        if !lock_member_unscoped(db, batch.user_id).await? {
            return Err(Error::NotReady(vec![owner_removed_blocker()]));
        }
        if let Some(refusal) = credit_shortage(db, &batch, basis).await? {
            return Err(refusal.error());
        }

        // The launch checks everything again, so that a batch never resumes into the fault that
        // paused it.
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

/// Stops a batch before its last row. Rows that were not called stay, answered calls continue,
/// and the returned job cancels ringing ones.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] when it neither runs nor is paused.
pub async fn stop(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
) -> Result<(Batch, Option<EnqueuedJob>)> {
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
    reason: Option<&str>,
) -> Result<()> {
    sqlx::query!(
        "update call_batches
         set status = $2, status_reason = $3, starved_since = null, starved_reason = null, starved_until = null,
             updated_at = now()
         where id = $1",
        id as BatchId,
        status.as_str(),
        reason,
    )
    .execute(db)
    .await?;
    Ok(())
}

async fn awaits_launch(db: &mut PgConnection, id: BatchId) -> Result<bool> {
    Ok(find_unlaunched(db, id).await?.is_some())
}

async fn find_unlaunched(db: &mut PgConnection, id: BatchId) -> Result<Option<Batch>> {
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
