//! Lease renewer: one task per worker that extends the leases of its jobs and writes their
//! endings.
//!
//! The task runs beside the worker: it continues while the worker drains, and ends when all its
//! senders are gone. Endings that arrive during a statement are written together by the next one.
//! Because heartbeats and endings come from the same task, two statements of one process never
//! lock the same rows in different orders.
//!
//! While PostgreSQL is unreachable, endings are kept and retried until their lease expires; after
//! that another worker may own the job.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::ids::JobId;

use super::claim::Running;
use super::outcome::Ending;
use super::{Outcome, State, Timing};

/// Longest time for one statement of the lease renewer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed statement.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Maximum messages that are handled at once.
const NOTES: usize = 512;

/// Handle of the lease renewer's task.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    notes: mpsc::UnboundedSender<Note>,
}

#[derive(Debug)]
enum Note {
    Leased(Vec<(Claim, Lease)>),
    Ended(Ended),
}

/// Job id and fence of its claim: a worker may claim a job again whose lease it lost.
type Claim = (JobId, i64);

#[derive(Debug)]
struct Lease {
    lost: CancellationToken,
    /// Expiry by this process's clock, no later than by the database's.
    ends: Instant,
}

#[derive(Debug)]
struct Ended {
    claim: Claim,
    ending: Ending,
    /// Answered when the ending is written or dropped.
    written: oneshot::Sender<()>,
}

impl Keeper {
    /// Starts the task.
    pub(super) fn start(pool: PgPool, timing: Timing) -> Self {
        let (messages, receiver) = mpsc::unbounded_channel();
        let state = Desk {
            pool,
            timing,
            leases: HashMap::new(),
            unwritten: Vec::new(),
        };

        tokio::spawn(state.work(receiver));
        Self { notes: messages }
    }

    /// Renews the leases of claimed jobs, which expire at `ends`.
    pub(super) fn leased(&self, jobs: &[Running], ends: Instant) {
        let leases = jobs.iter().map(|job| {
            let lost = job.lost().clone();
            ((job.id, job.fence), Lease { lost, ends })
        });
        // Fails only when the task is gone, and then the leases expire.
        let _ = self.notes.send(Note::Leased(leases.collect()));
    }

    /// Writes the ending of a run. Resolves when it is written, or the lease is lost.
    pub(super) fn ended(
        &self,
        job: &Running,
        outcome: Outcome,
    ) -> impl Future<Output = ()> + Send + 'static {
        let ending = Ending::of(outcome, job.attempt, job.max_attempts);
        self.end(job, ending)
    }

    /// Returns a job that was not started.
    pub(super) fn unstarted(&self, job: &Running) -> impl Future<Output = ()> + Send + 'static {
        self.end(job, Ending::Unstarted)
    }

    fn end(&self, job: &Running, ending: Ending) -> impl Future<Output = ()> + Send + 'static {
        let (written, answer) = oneshot::channel();
        let _ = self.notes.send(Note::Ended(Ended {
            claim: (job.id, job.fence),
            ending,
            written,
        }));
        async move {
            let _ = answer.await;
        }
    }
}

/// State of the lease renewer's task.
struct Desk {
    pool: PgPool,
    timing: Timing,
    leases: HashMap<Claim, Lease>,
    unwritten: Vec<Ended>,
}

impl Desk {
    async fn work(mut self, mut receiver: mpsc::UnboundedReceiver<Note>) {
        let mut messages = Vec::with_capacity(NOTES);
        let mut next_beat = Instant::now() + self.timing.beat;
        let mut next_write = Instant::now();

        loop {
            let wake = if self.unwritten.is_empty() {
                next_beat
            } else {
                next_beat.min(next_write)
            };

            // 1. Receive messages, or wait for the next write or heartbeat.
            tokio::select! {
                received = receiver.recv_many(&mut messages, NOTES) => {
                    if received == 0 {
                        break;
                    }
                    messages.drain(..).for_each(|message| self.take(message));
                }
                () = sleep_until(wake) => {}
            }

            // 2. Endings first: a finished job needs no heartbeat.
            if Instant::now() >= next_write && !self.write().await {
                next_write = Instant::now() + RETRY_PAUSE;
            }

            // 3. Extend the leases of running jobs.
            if Instant::now() >= next_beat {
                let pause = if self.beat().await {
                    self.timing.beat
                } else {
                    self.timing.beat.min(RETRY_PAUSE)
                };
                next_beat = Instant::now() + pause;
            }

            // 4. Drop the leases that expired during an outage.
            self.let_go();
        }

        // No caller awaits the rest. Jobs that still run are no longer renewed and must stop.
        self.write().await;
        self.leases.values().for_each(|lease| lease.lost.cancel());
    }

    fn take(&mut self, message: Note) {
        match message {
            Note::Leased(leases) => self.leases.extend(leases),
            Note::Ended(ended) => self.unwritten.push(ended),
        }
    }

    /// Writes the queued endings. False when they must be retried.
    async fn write(&mut self) -> bool {
        if self.unwritten.is_empty() {
            return true;
        }

        match in_time(write(&self.pool, &self.unwritten)).await {
            Ok(written) => {
                for ended in self.unwritten.drain(..) {
                    self.leases.remove(&ended.claim);
                    if !written.contains(&ended.claim) {
                        tracing::warn!(job.id = %ended.claim.0, "job ended after its lease was lost");
                    }
                    let _ = ended.written.send(());
                }
                true
            }
            Err(error) => {
                tracing::warn!(
                    jobs = self.unwritten.len(),
                    error = format!("{error:#}"),
                    "endings of jobs could not be written"
                );
                false
            }
        }
    }

    /// Extends all leases. False when that must be retried soon.
    async fn beat(&mut self) -> bool {
        if self.leases.is_empty() {
            return true;
        }

        let ends = Instant::now() + self.timing.lease;
        match in_time(extend(&self.pool, &self.leases, self.timing.lease)).await {
            Ok(held) => {
                self.leases.retain(|claim, lease| {
                    let kept = held.contains(claim);
                    if kept {
                        lease.ends = ends;
                    } else {
                        lose(claim, lease);
                    }
                    kept
                });
                true
            }
            Err(error) => {
                tracing::warn!(
                    jobs = self.leases.len(),
                    error = format!("{error:#}"),
                    "leases could not be extended"
                );
                false
            }
        }
    }

    /// Drops leases that expired because PostgreSQL was unreachable.
    fn let_go(&mut self) {
        let now = Instant::now();
        self.leases.retain(|claim, lease| {
            let kept = lease.ends > now;
            if !kept {
                lose(claim, lease);
            }
            kept
        });

        let leases = &self.leases;
        // Dropping an ending answers its sender.
        self.unwritten
            .retain(|ended| leases.contains_key(&ended.claim));
    }
}

fn lose(claim: &Claim, lease: &Lease) {
    tracing::warn!(job.id = %claim.0, "job lost: its lease expired");
    lease.lost.cancel();
}

async fn in_time<T>(statement: impl Future<Output = Result<T>>) -> anyhow::Result<T> {
    Ok(timeout(STATEMENT_TIMEOUT, statement).await??)
}

async fn extend(
    pool: &PgPool,
    leases: &HashMap<Claim, Lease>,
    lease: Duration,
) -> Result<HashSet<Claim>> {
    let (ids, fences): (Vec<JobId>, Vec<i64>) = leases.keys().copied().unzip();

    let held = sqlx::query!(
        r#"
        update jobs
        set lease_until = now() + make_interval(secs => $3)
        from unnest($1::uuid[], $2::bigint[]) as mine (id, fence)
        where jobs.id = mine.id
            and jobs.fence = mine.fence
            and jobs.state = 'running'
        returning jobs.id as "id: JobId", jobs.fence
        "#,
        &ids as &[JobId],
        &fences,
        lease.as_secs_f64(),
    )
    .fetch_all(pool)
    .await?;

    Ok(held.into_iter().map(|job| (job.id, job.fence)).collect())
}

/// Parameter arrays of [`write`]'s statement.
#[derive(Default)]
struct Columns {
    ids: Vec<JobId>,
    fences: Vec<i64>,
    states: Vec<String>,
    floors: Vec<f64>,
    spreads: Vec<f64>,
    counts: Vec<i32>,
    whys: Vec<Option<String>>,
}

impl Columns {
    fn push(&mut self, ended: &Ended) {
        let zero = Duration::ZERO;
        let (state, floor, spread, count, why) = match &ended.ending {
            Ending::Done => (State::Done, zero, zero, 1, None),
            Ending::Again { floor, spread, why } => (State::Ready, *floor, *spread, 1, Some(why)),
            Ending::Dead { why } => (State::Dead, zero, zero, 1, Some(why)),
            Ending::Unstarted => (State::Ready, zero, zero, 0, None),
        };

        self.ids.push(ended.claim.0);
        self.fences.push(ended.claim.1);
        self.states.push(state.as_str().to_owned());
        self.floors.push(floor.as_secs_f64());
        self.spreads.push(spread.as_secs_f64());
        self.counts.push(count);
        self.whys.push(why.cloned());
    }
}

/// Writes the endings of jobs whose lease is still held, and returns those jobs.
async fn write(pool: &PgPool, endings: &[Ended]) -> Result<HashSet<Claim>> {
    let mut columns = Columns::default();
    endings.iter().for_each(|ended| columns.push(ended));

    let written = sqlx::query!(
        r#"
        update jobs
        set state = ended.state,
            attempts = attempts - 1 + ended.count,
            run_at = case
                when ended.state = 'ready' and ended.count = 1
                then now() + make_interval(secs => ended.floor + random() * ended.spread)
                else run_at
            end,
            lease_until = null,
            last_error = coalesce(ended.why, last_error),
            finished_at = case when ended.state = 'ready' then null else now() end
        from unnest(
            $1::uuid[], $2::bigint[], $3::text[], $4::float8[], $5::float8[], $6::int[],
            $7::text[]
        ) as ended (id, fence, state, floor, spread, count, why)
        where jobs.id = ended.id
            and jobs.fence = ended.fence
            and jobs.state = 'running'
        returning jobs.id as "id: JobId", jobs.fence
        "#,
        &columns.ids as &[JobId],
        &columns.fences,
        &columns.states,
        &columns.floors,
        &columns.spreads,
        &columns.counts,
        &columns.whys as &[Option<String>],
    )
    .fetch_all(pool)
    .await?;

    Ok(written.into_iter().map(|job| (job.id, job.fence)).collect())
}
