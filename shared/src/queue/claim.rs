//! Taking jobs: one statement leases the best due jobs of a queue.

use std::fmt;

use sqlx::PgPool;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::ids::{JobId, OrgId};

use super::{Payload, Queue, Shift};

/// A job that this process has leased.
pub struct Running {
    pub id: JobId,
    pub queue: Queue,
    pub kind: String,
    pub org: Option<OrgId>,
    /// Which run this is, counted from one.
    pub attempt: i32,
    pub max_attempts: i32,
    pub(super) fence: i64,
    args: serde_json::Value,
    lost: CancellationToken,
    /// The worker's hand that this job keeps busy; free when the job is dropped.
    _hand: OwnedSemaphorePermit,
}

impl Running {
    /// Cancelled when the job belongs to somebody else, or the process must end. The handler
    /// should then stop; nothing that it answers is written once the lease is gone.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether a failure of this run leaves the job dead.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.attempt >= self.max_attempts
    }

    /// The arguments.
    ///
    /// # Errors
    /// Fails when the row was written by a version with other arguments.
    pub fn payload<P: Payload>(&self) -> Result<P> {
        Ok(P::deserialize(&self.args)?)
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("attempt", &self.attempt)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// Leases the best due jobs of the shift's queue, one per free hand, unless the queue is
/// paused. Locked jobs are skipped, so workers never wait for one another.
pub(super) async fn claim(
    pool: &PgPool,
    shift: &Shift,
    hands: &mut Vec<OwnedSemaphorePermit>,
) -> Result<Vec<Running>> {
    let limit = i64::try_from(hands.len()).unwrap_or(i64::MAX);
    // The due jobs of one priority are a prefix of their stretch of the index, those of all
    // priorities are not: jobs that wait for a later time lie between. So the levels are
    // walked first (one index probe each), and the walk ends as soon as the limit is reached.
    let mut rows = sqlx::query!(
        r#"
        with recursive levels as (
            (
                select priority
                from jobs
                where queue = $1
                    and state = 'ready'
                    and not exists (
                        select from queues where name = $1 and paused_at is not null
                    )
                order by priority desc
                limit 1
            )
            union all
            select (
                select priority
                from jobs
                where queue = $1
                    and state = 'ready'
                    and priority < levels.priority
                order by priority desc
                limit 1
            )
            from levels
            where levels.priority is not null
        ),
        picked as materialized (
            select due.id
            from levels
            cross join lateral (
                select id
                from jobs
                where queue = $1
                    and state = 'ready'
                    and priority = levels.priority
                    and run_at <= now()
                order by run_at, id
                limit $2
                for update skip locked
            ) due
            limit $2
        )
        update jobs
        set state = 'running',
            attempts = attempts + 1,
            fence = fence + 1,
            worker = $3,
            lease_until = now() + make_interval(secs => $4)
        from picked
        where jobs.id = picked.id
        returning
            jobs.id as "id: JobId",
            jobs.kind,
            jobs.org_id as "org: OrgId",
            jobs.args,
            jobs.attempts,
            jobs.max_attempts,
            jobs.fence,
            jobs.priority,
            jobs.run_at
        "#,
        shift.queue.name(),
        limit,
        shift.worker,
        shift.timing.lease.as_secs_f64(),
    )
    .fetch_all(pool)
    .await?;
    rows.sort_by_key(|row| (-i32::from(row.priority), row.run_at, row.id));
    let claimed = rows.into_iter().map_while(|row| {
        Some(Running {
            id: row.id,
            queue: shift.queue,
            kind: row.kind,
            org: row.org,
            attempt: row.attempts,
            max_attempts: row.max_attempts,
            fence: row.fence,
            args: row.args,
            lost: shift.halt.child_token(),
            _hand: hands.pop()?,
        })
    });
    Ok(claimed.collect())
}
