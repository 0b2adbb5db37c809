//! Job queue in PostgreSQL, for work that outlives a request.
//!
//! A job is a row. It is written in the transaction that made it necessary, so it exists if
//! and only if that transaction committed. PostgreSQL holds the whole state of a job; Redis
//! carries job ids as wakeups ([`crate::platform::queue::wakeup`]) and may lose all of them.
//!
//! ```text
//!            claim (attempts + 1, fence + 1, lease)
//!   ready ────────────────────────────────────────► running ──────────► done
//!     ▲  ▲                                            │ │ │   finished
//!     │  └──────────── failed, or lease expired ──────┘ │ │
//!     │                (back off, attempts are left)    │ └──────────► dead
//!     │                                                 │   refused, or attempts used up
//!     └──────────────── given back unstarted ───────────┘                │
//!     ▲                                                                  │
//!     └────────────────── retry_dead_job (an operator) ──────────────────┘
//! ```
//!
//! A done job is deleted after a week; a dead one stays until an operator handles it. While its
//! queue is paused a ready job is not claimed.
//!
//! Triggers: a feature calls [`enqueue`] in its transaction and sends the wakeup after
//! the commit. [`PgBackend`] claims due jobs for an apalis worker, up to the worker's
//! concurrency; its lease renewer extends their leases and writes their endings. [`sweep`]
//! returns jobs whose worker vanished. Attempts are counted at the claim, therefore a job that
//! kills its worker uses them up like any other.
//!
//! A worker may be slow, stopped or cut off while its lease expires and another takes the job
//! over. The fence, incremented at every claim, decides: writes of the first worker are refused,
//! and its handler is cancelled through [`Running::lost`]. Until then two may run, so handlers
//! must be safe to run twice.
//!
//! Not done here: keeping payloads (arguments are ids), retries inside apalis (its layers see
//! every job as done), order beyond priority and age, or exactly-once execution.

mod backend;
mod claim;
mod control;
mod lease_renewer;
mod outcome;
mod sweep;
pub mod wakeup;

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::platform::error::{Error, Result};
use crate::platform::ids::{JobId, OrgId};

pub use backend::{AckLayer, AckService, BackendError, PgBackend, WorkerSettings, WorkerTiming};
pub use claim::RunningJob;
pub use control::{DeadJob, QueueDepth, dead_jobs, pause, queue_depths, resume, retry_dead_job};
pub use outcome::JobOutcome;
pub use sweep::{SweepReport, sweep};

/// A queue with workers of its own: jobs of one queue never wait for those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// Short steps of campaigns: start, stop, analyse.
    Control,
    /// Long reads of uploaded files.
    Ingest,
    /// E-mail.
    Mail,
    /// Exports of long files.
    Export,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 4] = [Self::Control, Self::Ingest, Self::Mail, Self::Export];

    /// Name in rows, keys and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Ingest => "ingest",
            Self::Mail => "mail",
            Self::Export => "export",
        }
    }

    /// Queue of that name; a row of a later version may name an unknown one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|queue| queue.name() == name)
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum JobState {
    Ready,
    Running,
    Done,
    Dead,
}

impl JobState {
    /// Value in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
        }
    }
}

/// Arguments of one kind of job. Ids only: they are kept for days and shown to operators.
pub trait JobPayload: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name of the kind, unique and never reused: `send_email`.
    const KIND: &'static str;
    /// Queue of the kind.
    const QUEUE: Queue;
    /// Number of claims after which a job is dead.
    const MAX_ATTEMPTS: i32;
    /// Jobs of a higher priority are claimed first.
    const PRIORITY: i16 = 0;

    /// While a job of this kind and key is ready or running, another is not added. `None` when
    /// a change during the run must lead to another run.
    fn dedupe_key(&self) -> Option<String> {
        None
    }

    /// Organisation of the job.
    fn org(&self) -> Option<OrgId>;
}

/// A job that was added, or that existed already. After the commit, pass it to
/// [`crate::platform::queue::wakeup::Wakeups::notify_job`].
#[must_use = "send the wakeup after the commit"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnqueuedJob {
    pub id: JobId,
    pub queue: Queue,
    /// False when a live job with the same dedupe key exists; `id` is its id.
    pub is_new: bool,
    /// False when the job runs later.
    pub is_due: bool,
}

/// Maximum inserts when jobs of the same key come and go concurrently.
const MAX_INSERT_ATTEMPTS: usize = 5;

/// Adds a job to its queue, in the caller's transaction, to run at once or at `run_at`.
///
/// # Errors
/// [`Error::Busy`] when jobs of the same key end faster than the job can be added.
pub async fn enqueue<P: JobPayload>(
    db: &mut PgConnection,
    payload: &P,
    run_at: Option<DateTime<Utc>>,
) -> Result<EnqueuedJob> {
    let args = serde_json::to_value(payload)?;
    let key = payload.dedupe_key();

    for _ in 0..MAX_INSERT_ATTEMPTS {
        let id = JobId::new();

        // 1. Insert, unless a live job has the same key.
        let added = sqlx::query_scalar!(
            r#"
            insert into jobs
                (id, queue, kind, args, org_id, dedupe_key, priority, max_attempts, run_at)
            values ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, now()))
            on conflict (kind, dedupe_key) where state in ('ready', 'running') do nothing
            returning run_at <= now() as "due!"
            "#,
            id as JobId,
            P::QUEUE.name(),
            P::KIND,
            args,
            payload.org() as Option<OrgId>,
            key,
            P::PRIORITY,
            P::MAX_ATTEMPTS,
            run_at,
        )
        .fetch_optional(&mut *db)
        .await?;

        if let Some(due) = added {
            return Ok(EnqueuedJob {
                id,
                queue: P::QUEUE,
                is_new: true,
                is_due: due,
            });
        }

        // 2. Find the live job. It may have been committed after the insert's snapshot was
        // taken, hence a separate statement.
        let live = sqlx::query!(
            r#"
            select id as "id: JobId", run_at <= now() as "due!"
            from jobs
            where kind = $1
                and dedupe_key = $2
                and state in ('ready', 'running')
            "#,
            P::KIND,
            key,
        )
        .fetch_optional(&mut *db)
        .await?;

        if let Some(live) = live {
            return Ok(EnqueuedJob {
                id: live.id,
                queue: P::QUEUE,
                is_new: false,
                is_due: live.due,
            });
        }
    }

    Err(Error::Busy(
        "the same work is repeated too often; retry later".into(),
    ))
}

/// Adds many jobs of one kind in one statement, in the caller's transaction. Jobs whose dedupe
/// key is taken are left out of the result.
pub async fn enqueue_all<P: JobPayload>(
    db: &mut PgConnection,
    payloads: &[P],
    run_at: Option<DateTime<Utc>>,
) -> Result<Vec<EnqueuedJob>> {
    let ids: Vec<JobId> = payloads.iter().map(|_| JobId::new()).collect();
    let args = payloads
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<Vec<_>, _>>()?;
    let orgs: Vec<Option<Uuid>> = payloads.iter().map(|p| p.org().map(|org| org.0)).collect();
    let keys: Vec<Option<String>> = payloads.iter().map(JobPayload::dedupe_key).collect();

    let added = sqlx::query!(
        r#"
        insert into jobs
            (id, queue, kind, args, org_id, dedupe_key, priority, max_attempts, run_at)
        select new.id, $1, $2, new.args, new.org_id, new.dedupe_key, $3, $4, coalesce($5, now())
        from unnest($6::uuid[], $7::jsonb[], $8::uuid[], $9::text[])
            as new (id, args, org_id, dedupe_key)
        on conflict (kind, dedupe_key) where state in ('ready', 'running') do nothing
        returning id as "id: JobId", run_at <= now() as "due!"
        "#,
        P::QUEUE.name(),
        P::KIND,
        P::PRIORITY,
        P::MAX_ATTEMPTS,
        run_at,
        &ids as &[JobId],
        &args,
        &orgs as &[Option<Uuid>],
        &keys as &[Option<String>],
    )
    .fetch_all(db)
    .await?;

    Ok(added
        .into_iter()
        .map(|job| EnqueuedJob {
            id: job.id,
            queue: P::QUEUE,
            is_new: true,
            is_due: job.due,
        })
        .collect())
}
