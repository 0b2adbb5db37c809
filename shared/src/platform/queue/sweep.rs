//! Sweeper: returns the jobs of vanished workers, deletes old jobs and wakes workers up for due
//! ones. Any worker may run it; an advisory lock admits one at a time.

use sqlx::PgPool;

use crate::platform::error::Result;
use crate::platform::ids::JobId;
use crate::platform::queue::wakeup::{WakeupChannel, Wakeups};

use super::{JobState, Queue};

/// Maximum rows that one round touches.
const ROUND_ROWS: i64 = 500;
/// Key of the advisory lock: "pealswep" in ASCII.
const SWEEP_LOCK: i64 = 0x7065_616c_7377_6570;

/// Results of one sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Jobs whose lease had expired and which are ready again.
    pub returned: usize,
    /// Jobs whose lease had expired with their last attempt.
    pub died: usize,
    /// Finished jobs that were deleted.
    pub deleted: usize,
    /// Due jobs for which a wakeup was sent again.
    pub notified: usize,
}

/// Returns jobs of vanished workers, deletes old finished ones, and sends wakeups for due jobs,
/// such as delayed ones whose time has come or those whose wakeup was lost with Redis. Does
/// nothing while another process sweeps.
pub async fn sweep(pool: &PgPool, wakeups: &Wakeups) -> Result<SweepReport> {
    let mut swept = SweepReport::default();
    while expire_leases(pool, &mut swept).await? {}
    while delete_old_jobs(pool, &mut swept).await? {}
    notify_due(pool, wakeups, &mut swept).await?;
    Ok(swept)
}

/// Ends one batch of expired leases; true when there may be more.
async fn expire_leases(pool: &PgPool, swept: &mut SweepReport) -> Result<bool> {
    let mut tx = pool.begin().await?;
    if !try_lock(&mut tx).await? {
        return Ok(false);
    }

    // 1. Return expired jobs to the queue, or end those without attempts left.
    let expired = sqlx::query!(
        r#"
        with expired as materialized (
            select id
            from jobs
            where state = 'running'
                and lease_until < now()
            order by lease_until
            limit $1
            for update skip locked
        )
        update jobs
        set state = case when attempts < max_attempts then 'ready' else 'dead' end,
            finished_at = case when attempts < max_attempts then null else now() end,
            lease_until = null,
            last_error = format(
                'attempt %s of %s ended without a word from its worker (%s)',
                attempts, max_attempts, worker
            )
        from expired
        where jobs.id = expired.id
        returning jobs.id as "id: JobId", jobs.kind, jobs.state as "state: JobState"
        "#,
        ROUND_ROWS,
    )
    .fetch_all(&mut *tx)
    .await?;

    // 2. Commit before counting, so that a failure counts nothing.
    tx.commit().await?;

    for job in &expired {
        if job.state == JobState::Dead {
            swept.died += 1;
            tracing::error!(job.id = %job.id, job.kind, "job is dead: its workers vanished");
        } else {
            swept.returned += 1;
            tracing::warn!(job.id = %job.id, job.kind, "job returned: its worker vanished");
        }
    }

    Ok(is_full_round(expired.len()))
}

/// Deletes one batch of jobs done more than seven days ago; true when there may be more.
async fn delete_old_jobs(pool: &PgPool, swept: &mut SweepReport) -> Result<bool> {
    let mut tx = pool.begin().await?;
    if !try_lock(&mut tx).await? {
        return Ok(false);
    }

    let pruned = sqlx::query!(
        r#"
        delete from jobs
        where id = any (array(
            select id
            from jobs
            where state = 'done'
                and finished_at < now() - interval '7 days'
            order by finished_at
            limit $1
            for update skip locked
        ))
        "#,
        ROUND_ROWS,
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    tx.commit().await?;

    let pruned = usize::try_from(pruned).unwrap_or(usize::MAX);
    swept.deleted += pruned;
    Ok(is_full_round(pruned))
}

/// Sends wakeups for due jobs. One round is enough: a woken worker continues while there is
/// work, whatever ids the wakeup carried.
async fn notify_due(pool: &PgPool, wakeups: &Wakeups, swept: &mut SweepReport) -> Result<()> {
    for queue in Queue::ALL {
        let due = sqlx::query_scalar!(
            r#"
            select id as "id: JobId"
            from jobs
            where queue = $1
                and state = 'ready'
                and run_at <= now()
                and not exists (select from queues where name = $1 and paused_at is not null)
            limit $2
            "#,
            queue.name(),
            ROUND_ROWS,
        )
        .fetch_all(pool)
        .await?;
        for id in &due {
            wakeups.notify_with_hint(WakeupChannel::Jobs(queue), id.to_string());
        }
        swept.notified += due.len();
    }
    Ok(())
}

/// Takes the sweeper's lock for this transaction; false when another holds it.
async fn try_lock(tx: &mut sqlx::PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock($1) as "locked!""#,
        SWEEP_LOCK
    )
    .fetch_one(tx)
    .await?)
}

fn is_full_round(rows: usize) -> bool {
    i64::try_from(rows).is_ok_and(|rows| rows >= ROUND_ROWS)
}
