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

use crate::platform::error::Result;
use crate::platform::ids::JobId;

use super::claim::RunningJob;
use super::outcome::RunEnding;
use super::{JobOutcome, JobState, WorkerTiming};

/// Longest time for one statement of the lease renewer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed statement.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Maximum messages that are handled at once.
const MESSAGE_BATCH: usize = 512;

/// Handle of the lease renewer's task.
#[derive(Clone, Debug)]
pub(super) struct LeaseRenewer {
    messages: mpsc::UnboundedSender<LeaseMessage>,
}

#[derive(Debug)]
enum LeaseMessage {
    Leased(Vec<(JobClaim, JobLease)>),
    Finished(FinishedRun),
}

/// Job id and fence of its claim: a worker may claim a job again whose lease it lost.
type JobClaim = (JobId, i64);

#[derive(Debug)]
struct JobLease {
    lost: CancellationToken,
    /// Expiry by this process's clock, no later than by the database's.
    expires_at: Instant,
}

#[derive(Debug)]
struct FinishedRun {
    claim: JobClaim,
    ending: RunEnding,
    /// Answered when the ending is written or dropped.
    written: oneshot::Sender<()>,
}

impl LeaseRenewer {
    /// Starts the task.
    pub(super) fn start(pool: PgPool, timing: WorkerTiming) -> Self {
        let (messages, receiver) = mpsc::unbounded_channel();
        let state = LeaseState {
            pool,
            timing,
            leases: HashMap::new(),
            unwritten: Vec::new(),
        };

        tokio::spawn(state.run(receiver));
        Self { messages }
    }

    /// Renews the leases of claimed jobs, which expire at `ends`.
    pub(super) fn track(&self, jobs: &[RunningJob], ends: Instant) {
        let leases = jobs.iter().map(|job| {
            let lost = job.lease_lost().clone();
            (
                (job.id, job.fence),
                JobLease {
                    lost,
                    expires_at: ends,
                },
            )
        });
        // Fails only when the task is gone, and then the leases expire.
        let _ = self.messages.send(LeaseMessage::Leased(leases.collect()));
    }

    /// Writes the ending of a run. Resolves when it is written, or the lease is lost.
    pub(super) fn finish(
        &self,
        job: &RunningJob,
        outcome: JobOutcome,
    ) -> impl Future<Output = ()> + Send + 'static {
        let ending = RunEnding::from_outcome(outcome, job.attempt, job.max_attempts);
        self.send_ending(job, ending)
    }

    /// Returns a job that was not started.
    pub(super) fn give_back(&self, job: &RunningJob) -> impl Future<Output = ()> + Send + 'static {
        self.send_ending(job, RunEnding::GivenBack)
    }

    fn send_ending(
        &self,
        job: &RunningJob,
        ending: RunEnding,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (written, answer) = oneshot::channel();
        let _ = self.messages.send(LeaseMessage::Finished(FinishedRun {
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
struct LeaseState {
    pool: PgPool,
    timing: WorkerTiming,
    leases: HashMap<JobClaim, JobLease>,
    unwritten: Vec<FinishedRun>,
}

impl LeaseState {
    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<LeaseMessage>) {
        let mut messages = Vec::with_capacity(MESSAGE_BATCH);
        let mut next_beat = Instant::now() + self.timing.heartbeat;
        let mut next_write = Instant::now();

        loop {
            let wake = if self.unwritten.is_empty() {
                next_beat
            } else {
                next_beat.min(next_write)
            };

            // 1. Receive messages, or wait for the next write or heartbeat.
            tokio::select! {
                received = receiver.recv_many(&mut messages, MESSAGE_BATCH) => {
                    if received == 0 {
                        break;
                    }
                    messages.drain(..).for_each(|message| self.handle(message));
                }
                () = sleep_until(wake) => {}
            }

            // 2. Endings first: a finished job needs no heartbeat.
            if Instant::now() >= next_write && !self.write_endings().await {
                next_write = Instant::now() + RETRY_DELAY;
            }

            // 3. Extend the leases of running jobs.
            if Instant::now() >= next_beat {
                let pause = if self.heartbeat().await {
                    self.timing.heartbeat
                } else {
                    self.timing.heartbeat.min(RETRY_DELAY)
                };
                next_beat = Instant::now() + pause;
            }

            // 4. Drop the leases that expired during an outage.
            self.drop_expired();
        }

        // No caller awaits the rest. Jobs that still run are no longer renewed and must stop.
        self.write_endings().await;
        self.leases.values().for_each(|lease| lease.lost.cancel());
    }

    fn handle(&mut self, message: LeaseMessage) {
        match message {
            LeaseMessage::Leased(leases) => self.leases.extend(leases),
            LeaseMessage::Finished(ended) => self.unwritten.push(ended),
        }
    }

    /// Writes the queued endings. False when they must be retried.
    async fn write_endings(&mut self) -> bool {
        if self.unwritten.is_empty() {
            return true;
        }

        match with_timeout(write_endings(&self.pool, &self.unwritten)).await {
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
    async fn heartbeat(&mut self) -> bool {
        if self.leases.is_empty() {
            return true;
        }

        let ends = Instant::now() + self.timing.lease;
        match with_timeout(extend_leases(&self.pool, &self.leases, self.timing.lease)).await {
            Ok(held) => {
                self.leases.retain(|claim, lease| {
                    let kept = held.contains(claim);
                    if kept {
                        lease.expires_at = ends;
                    } else {
                        cancel_lost(claim, lease);
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
    fn drop_expired(&mut self) {
        let now = Instant::now();
        self.leases.retain(|claim, lease| {
            let kept = lease.expires_at > now;
            if !kept {
                cancel_lost(claim, lease);
            }
            kept
        });

        let leases = &self.leases;
        // Dropping an ending answers its sender.
        self.unwritten
            .retain(|ended| leases.contains_key(&ended.claim));
    }
}

fn cancel_lost(claim: &JobClaim, lease: &JobLease) {
    tracing::warn!(job.id = %claim.0, "job lost: its lease expired");
    lease.lost.cancel();
}

async fn with_timeout<T>(statement: impl Future<Output = Result<T>>) -> anyhow::Result<T> {
    Ok(timeout(STATEMENT_TIMEOUT, statement).await??)
}

async fn extend_leases(
    pool: &PgPool,
    leases: &HashMap<JobClaim, JobLease>,
    lease: Duration,
) -> Result<HashSet<JobClaim>> {
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
struct EndingColumns {
    ids: Vec<JobId>,
    fences: Vec<i64>,
    states: Vec<String>,
    floors: Vec<f64>,
    spreads: Vec<f64>,
    counts: Vec<i32>,
    errors: Vec<Option<String>>,
}

impl EndingColumns {
    fn push(&mut self, ended: &FinishedRun) {
        let zero = Duration::ZERO;
        let (state, floor, spread, count, why) = match &ended.ending {
            RunEnding::Done => (JobState::Done, zero, zero, 1, None),
            RunEnding::Retry { floor, spread, why } => {
                (JobState::Ready, *floor, *spread, 1, Some(why))
            }
            RunEnding::Dead { why } => (JobState::Dead, zero, zero, 1, Some(why)),
            RunEnding::GivenBack => (JobState::Ready, zero, zero, 0, None),
        };

        self.ids.push(ended.claim.0);
        self.fences.push(ended.claim.1);
        self.states.push(state.as_str().to_owned());
        self.floors.push(floor.as_secs_f64());
        self.spreads.push(spread.as_secs_f64());
        self.counts.push(count);
        self.errors.push(why.cloned());
    }
}

/// Writes the endings of jobs whose lease is still held, and returns those jobs.
async fn write_endings(pool: &PgPool, endings: &[FinishedRun]) -> Result<HashSet<JobClaim>> {
    let mut columns = EndingColumns::default();
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
        &columns.errors as &[Option<String>],
    )
    .fetch_all(pool)
    .await?;

    Ok(written.into_iter().map(|job| (job.id, job.fence)).collect())
}
