//! Claiming jobs: one statement leases the best due jobs of a queue.

use std::fmt;

use sqlx::PgPool;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::platform::error::Result;
use crate::platform::ids::{JobId, OrgId};

use super::{JobPayload, Queue, WorkerSettings};

/// A job that this process has leased.
pub struct RunningJob {
    pub id: JobId,
    pub queue: Queue,
    pub kind: String,
    pub org: Option<OrgId>,
    /// Number of this run, counted from one.
    pub attempt: i32,
    pub max_attempts: i32,
    pub(super) fence: i64,
    args: serde_json::Value,
    lease_lost: CancellationToken,
    /// The worker's concurrency slot; released when the job is dropped.
    _permit: OwnedSemaphorePermit,
}

impl RunningJob {
    /// Cancelled when the lease is lost, or the process must end. The handler should then stop;
    /// its outcome is not written once the lease is lost.
    #[must_use]
    pub fn lease_lost(&self) -> &CancellationToken {
        &self.lease_lost
    }

    /// True when a failure of this run leaves the job dead.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.attempt >= self.max_attempts
    }

    /// Parses the arguments.
    ///
    /// # Errors
    /// Fails when the row was written by a version with other arguments.
    pub fn payload<P: JobPayload>(&self) -> Result<P> {
        Ok(P::deserialize(&self.args)?)
    }
}

impl fmt::Debug for RunningJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningJob")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("attempt", &self.attempt)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// Leases the best due jobs of the worker's queue, one per free slot, unless the queue is
/// paused. Locked jobs are skipped, so workers never wait for one another.
pub(super) async fn claim_jobs(
    pool: &PgPool,
    settings: &WorkerSettings,
    permits: &mut Vec<OwnedSemaphorePermit>,
) -> Result<Vec<RunningJob>> {
    let limit = i64::try_from(permits.len()).unwrap_or(i64::MAX);

    let mut rows = sqlx::query_file!(
        "src/platform/queue/claim.sql",
        settings.queue.name(),
        limit,
        settings.worker,
        settings.timing.lease.as_secs_f64(),
    )
    .fetch_all(pool)
    .await?;

    // `update ... returning` keeps no order.
    rows.sort_by_key(|row| (-i32::from(row.priority), row.run_at, row.id));

    let claimed = rows.into_iter().map_while(|row| {
        Some(RunningJob {
            id: row.id,
            queue: settings.queue,
            kind: row.kind,
            org: row.org,
            attempt: row.attempts,
            max_attempts: row.max_attempts,
            fence: row.fence,
            args: row.args,
            lease_lost: settings.abort.child_token(),
            _permit: permits.pop()?,
        })
    });

    Ok(claimed.collect())
}
