//! Work that outlives a request: jobs.
//!
//! A job is a row. It is written in the transaction that made it necessary, so it exists if
//! and only if that transaction committed. PostgreSQL holds everything there is to know about
//! it; Redis carries job ids as a wake-up call ([`crate::bells`]) and may forget all of them.
//!
//! ```text
//!            claim (attempts + 1, fence + 1, lease)
//!   ready ────────────────────────────────────────► running ──────────► done
//!     ▲  ▲                                            │ │ │   finished
//!     │  └──────────── failed, or lease ran out ──────┘ │ │
//!     │                (back off, attempts are left)    │ └──────────► dead
//!     │                                                 │   refused, or attempts used up
//!     └──────────────── given back unstarted ───────────┘                │
//!     ▲                                                                  │
//!     └────────────────────────── revive (an operator) ──────────────────┘
//! ```
//!
//! A week after its end a job that is done is forgotten; a dead one stays until an operator has
//! seen to it. While its queue is paused a ready job is not claimed.
//!
//! Who triggers what: a feature calls [`enqueue`] in its transaction and rings the bell after
//! the commit. [`PgBackend`] claims due jobs for an apalis worker, as many as the worker has
//! free hands; its keeper extends their leases and writes down how they ended. [`sweep`]
//! returns jobs whose worker vanished. Attempts are counted at the claim, therefore a job that
//! kills its worker runs out of them like any other.
//!
//! A worker may be slow, stopped or cut off while its lease runs out and another takes the job
//! over. The fence, counted at every claim, decides: what the first one writes is refused, and
//! it is told to stop through [`Running::lost`]. For that moment two may run, so handlers must
//! be written to be run twice.
//!
//! What this does not do: keep payloads (arguments are ids), retry inside apalis (its layers
//! are told that every job is done), order jobs beyond priority and age, or run a job exactly
//! once.

mod backend;
mod claim;
mod control;
mod keeper;
mod outcome;
mod sweep;

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ids::{JobId, OrgId};

pub use backend::{BackendError, PgBackend, SettleLayer, SettleService, Shift, Timing};
pub use claim::Running;
pub use control::{Dead, Depth, dead, depths, pause, resume, revive};
pub use outcome::Outcome;
pub use sweep::{Swept, sweep};

/// A line of work with its own hands: jobs of one queue never wait for those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// Short steps of campaigns: start, stop, analyse.
    Control,
    /// Long reads of uploaded files.
    Ingest,
    /// E-mail.
    Mail,
    /// Long files on their way out.
    Export,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 4] = [Self::Control, Self::Ingest, Self::Mail, Self::Export];

    /// The name in rows, keys and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Ingest => "ingest",
            Self::Mail => "mail",
            Self::Export => "export",
        }
    }

    /// The queue of that name; a row written by a later version may name another.
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

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    Ready,
    Running,
    Done,
    Dead,
}

impl State {
    /// The word in tables.
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

/// The arguments of one kind of job. Ids only: they are kept for days and shown to operators.
pub trait Payload: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name of the kind, unique and never reused: `send_email`.
    const KIND: &'static str;
    /// Where jobs of the kind wait.
    const QUEUE: Queue;
    /// How often a job is claimed before it is dead.
    const MAX_ATTEMPTS: i32;
    /// The higher, the sooner.
    const PRIORITY: i16 = 0;

    /// While a job of this kind and key is ready or running, another is not added. Leave it
    /// out when a change during the run must lead to another run.
    fn dedupe_key(&self) -> Option<String> {
        None
    }

    /// The organisation on whose behalf the job runs.
    fn org(&self) -> Option<OrgId>;
}

/// A job that was added, or that was there already. After the commit, hand it to
/// [`crate::bells::Bells::ring_job`].
#[must_use = "ring the bell after the commit"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    pub id: JobId,
    pub queue: Queue,
    /// False: a live job with the same dedupe key exists, and this is its id.
    pub fresh: bool,
    /// False: the job waits for its time.
    pub due: bool,
}

/// How often an insert is tried when jobs of the same key come and go at the same moment.
const DEDUPE_ROUNDS: usize = 5;

/// Adds a job to its queue, in the caller's transaction, to run at once or at `run_at`.
///
/// # Errors
/// [`Error::Busy`] when jobs of the same key end faster than this one can be added.
pub async fn enqueue<P: Payload>(
    db: &mut PgConnection,
    payload: &P,
    run_at: Option<DateTime<Utc>>,
) -> Result<Enqueued> {
    let args = serde_json::to_value(payload)?;
    let key = payload.dedupe_key();
    for _ in 0..DEDUPE_ROUNDS {
        let id = JobId::new();
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
            return Ok(Enqueued {
                id,
                queue: P::QUEUE,
                fresh: true,
                due,
            });
        }
        // The other job may have been committed after the insert's snapshot was taken, hence a
        // statement of its own.
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
            return Ok(Enqueued {
                id: live.id,
                queue: P::QUEUE,
                fresh: false,
                due: live.due,
            });
        }
    }
    Err(Error::Busy(
        "The same work is being done over and over; try again".into(),
    ))
}

/// Adds many jobs of one kind in one statement, in the caller's transaction. Jobs whose dedupe
/// key is taken are left out of the answer.
///
/// # Errors
/// Fails when the payloads cannot be written as JSON, or with the database.
pub async fn enqueue_all<P: Payload>(
    db: &mut PgConnection,
    payloads: &[P],
    run_at: Option<DateTime<Utc>>,
) -> Result<Vec<Enqueued>> {
    let ids: Vec<JobId> = payloads.iter().map(|_| JobId::new()).collect();
    let args = payloads
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<Vec<_>, _>>()?;
    let orgs: Vec<Option<Uuid>> = payloads.iter().map(|p| p.org().map(|org| org.0)).collect();
    let keys: Vec<Option<String>> = payloads.iter().map(Payload::dedupe_key).collect();
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
        .map(|job| Enqueued {
            id: job.id,
            queue: P::QUEUE,
            fresh: true,
            due: job.due,
        })
        .collect())
}
