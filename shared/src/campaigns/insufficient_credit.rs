//! Batches whose owner has insufficient credit.
//!
//! ```text
//! in_progress --no credit for a row--> unfunded --30 s, and no call holds money--> paused
//!      ^                                  |                                          |
//!      '------ the next hold -------------'     credit arrived, and auto_resume -----'
//! ```
//!
//! The claim finds that the wallet cannot pay (`calls/take.rs`) and skips the batch for two
//! seconds at a time. While calls of the wallet are live, the unused part of their holds may
//! still pay for another one; when there are none and no credit has arrived for a while, the
//! batch is paused. It keeps the refusal (columns `starved_*`), so that it can be resumed when
//! credit arrives; a batch that its owner pauses has none.

use chrono::TimeDelta;
use sqlx::{PgConnection, PgPool};

use super::batches::{Batch, BatchStatus};
use super::lifecycle::StartBatch;
use crate::billing::estimate::{EstimateBasis, estimate_unscoped};
use crate::platform::e164::E164;
use crate::platform::error::Result;
use crate::platform::ids::{AgentId, BatchId, OrgId, UserId};
use crate::platform::queue::{EnqueuedJob, enqueue};
use crate::wallets::holds::Refusal;

/// Time that a batch stays unfunded before it is paused.
const PAUSE_DELAY: TimeDelta = TimeDelta::seconds(30);
/// Most batches of one round.
const ROUND_LIMIT: i64 = 1000;

/// Returns the refusal of the owner's wallet for the batch's next call; none when it can pay, or
/// when no row is left. The batch was found in the caller's scope.
pub async fn credit_shortage_unscoped(
    db: &mut PgConnection,
    batch: BatchId,
    agent: AgentId,
    owner: UserId,
    basis: EstimateBasis,
) -> Result<Option<Refusal>> {
    let next = sqlx::query_scalar!(
        r#"select to_phonenumber as "to: E164"
           from batch_data
           where batch_id = $1
             and status = 'not_started'
           order by due_at, row_no
           limit 1"#,
        batch as BatchId,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(to) = next else { return Ok(None) };
    let estimate = estimate_unscoped(db, agent, owner, &to, basis).await?;
    estimate.shortage(db, basis).await
}

/// As [`shortage_unscoped`], for a loaded batch.
pub(super) async fn credit_shortage(
    db: &mut PgConnection,
    batch: &Batch,
    basis: EstimateBasis,
) -> Result<Option<Refusal>> {
    credit_shortage_unscoped(db, batch.id, batch.agent_id, batch.user_id, basis).await
}

/// Pauses a batch whose wallet cannot pay its next call.
pub(super) async fn pause_for_credit(
    db: &mut PgConnection,
    batch: BatchId,
    refusal: Refusal,
) -> Result<()> {
    sqlx::query!(
        "update call_batches
         set status = 'paused', status_reason = $2, starved_since = coalesce(starved_since, now()),
             starved_reason = $3, starved_until = now(), updated_at = now()
         where id = $1",
        batch as BatchId,
        refusal.message(),
        refusal as Refusal,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Pauses batches that stayed unfunded and whose wallets have no holds that could be released.
/// Runs for every tenant.
pub async fn pause_unfunded_unscoped(pool: &PgPool) -> Result<Vec<(BatchId, Refusal)>> {
    let starved = sqlx::query!(
        r#"select b.id as "id: BatchId", b.starved_reason as "why!: Refusal"
           from call_batches b
           join wallets w on w.org_id = b.org_id and w.user_id = b.user_id
           where b.status = 'in_progress'
             and b.starved_since < now() - make_interval(secs => $1)
             and w.held_micros = 0"#,
        PAUSE_DELAY.as_seconds_f64(),
    )
    .fetch_all(pool)
    .await?;

    let mut paused = Vec::new();
    for batch in starved {
        // A claim may have found money for it since.
        let updated = sqlx::query!(
            "update call_batches
             set status = 'paused', status_reason = $2, updated_at = now()
             where id = $1
               and status = 'in_progress'
               and starved_since < now() - make_interval(secs => $3)",
            batch.id as BatchId,
            batch.why.message(),
            PAUSE_DELAY.as_seconds_f64(),
        )
        .execute(pool)
        .await?;
        if updated.rows_affected() > 0 {
            paused.push((batch.id, batch.why));
        }
    }
    Ok(paused)
}

/// Resumes batches with `auto_resume` that were paused for insufficient credit and can be paid.
/// Runs for every tenant.
pub async fn resume_funded_unscoped(
    pool: &PgPool,
    basis: EstimateBasis,
) -> Result<Vec<(BatchId, EnqueuedJob)>> {
    let waiting = sqlx::query!(
        r#"select id as "id: BatchId", org_id as "org_id: OrgId", user_id as "user_id: UserId",
                  agent_id as "agent_id: AgentId"
           from call_batches
           where starved_since is not null
             and status = 'paused'
             and auto_resume
           order by starved_since
           limit $1"#,
        ROUND_LIMIT,
    )
    .fetch_all(pool)
    .await?;

    let mut resumed = Vec::new();
    for batch in waiting {
        let mut db = pool.begin().await?;

        // 1. Skip a batch that still cannot be paid.
        let shortage =
            credit_shortage_unscoped(&mut db, batch.id, batch.agent_id, batch.user_id, basis)
                .await?;
        if shortage.is_some() {
            continue;
        }

        // 2. Move it, unless its owner was faster.
        let updated = sqlx::query!(
            "update call_batches
             set status = 'in_progress', status_reason = null, launched_at = null, starved_since = null,
                 starved_reason = null, starved_until = null, updated_at = now()
             where id = $1
               and status = 'paused'
               and starved_since is not null",
            batch.id as BatchId,
        )
        .execute(&mut *db)
        .await?;
        if updated.rows_affected() == 0 {
            continue;
        }

        // 3. Enqueue its launch, and commit both.
        let payload = StartBatch {
            org_id: batch.org_id,
            batch_id: batch.id,
        };
        let job = enqueue(&mut db, &payload, None).await?;
        db.commit().await?;
        resumed.push((batch.id, job));
    }
    Ok(resumed)
}

/// True when a batch is paused for insufficient credit.
pub(super) fn is_paused_for_credit(batch: &Batch) -> bool {
    batch.status == BatchStatus::Paused && batch.status_reason_code.is_some()
}
