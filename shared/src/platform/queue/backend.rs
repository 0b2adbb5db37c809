//! Source of an apalis worker: one queue in PostgreSQL.
//!
//! A claimer task leases as many due jobs as the worker has free slots and continues while there
//! is work. After a claim that came back short it waits for a wakeup, at most [`Timing::poll`]. The
//! worker takes claimed jobs from a channel, and [`SettleLayer`], which apalis wraps around the
//! handler, passes the outcome to the lease renewer.
//!
//! apalis sees every job as successful: attempts, delays and dead jobs are handled here. It sees no
//! outage either, because it would end the worker: the claimer logs the outage and retries.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::error::BoxDynError;
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::task_id::TaskId;
use apalis_core::worker::context::WorkerContext;
use futures::future::{BoxFuture, join_all};
use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::{Layer, Service};

use crate::platform::queue::wakeup::{WakeupChannel, WakeupListener, Wakeups};

use super::claim::{RunningJob, claim_jobs};
use super::lease_renewer::LeaseRenewer;
use super::{JobOutcome, Queue};

/// Maximum jobs that one statement claims.
const MAX_CLAIMED_JOBS: usize = 256;
/// First and longest pause after failed claims.
const OUTAGE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Intervals of a worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerTiming {
    /// Life of a lease after its last heartbeat.
    pub lease: Duration,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Longest time between two claims on an idle queue without a wakeup.
    pub poll: Duration,
    /// Time for running jobs to finish after the shutdown.
    pub grace: Duration,
    /// Time for running jobs to stop after the abort.
    pub abort_grace: Duration,
}

impl Default for WorkerTiming {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            poll: Duration::from_secs(2),
            grace: Duration::from_secs(20),
            abort_grace: Duration::from_secs(5),
        }
    }
}

/// Settings of a worker: its queue, concurrency and cancellation.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    pub queue: Queue,
    /// Name of the worker, unique across processes and restarts; written to the rows.
    pub worker: String,
    /// Maximum jobs that run at once.
    pub concurrency: usize,
    pub timing: WorkerTiming,
    /// Ends claiming; running jobs continue.
    pub shutdown: CancellationToken,
    /// Cancels running jobs.
    pub abort: CancellationToken,
}

/// The claimer has ended without a shutdown: a bug. The worker must be rebuilt.
#[derive(Debug, thiserror::Error)]
#[error("the claimer of this queue has ended")]
pub struct BackendError;

/// A queue as the job source of one worker.
pub struct PgBackend {
    lease_renewer: LeaseRenewer,
    jobs: mpsc::Receiver<RunningJob>,
    shutdown: CancellationToken,
    /// Ends the claimer with the backend.
    claimer: Option<DropGuard>,
    closing: Option<BoxFuture<'static, ()>>,
}

impl PgBackend {
    /// Starts claiming. Must be called in a tokio runtime.
    #[must_use]
    pub fn start(pool: PgPool, wakeups: &Wakeups, settings: WorkerSettings) -> Self {
        let concurrency = settings.concurrency.clamp(1, Semaphore::MAX_PERMITS);
        let lease_renewer = LeaseRenewer::start(pool.clone(), settings.timing);
        let (claimed, jobs) = mpsc::channel(concurrency);

        let shutdown = settings.shutdown.clone();
        let stop = shutdown.child_token();

        let claimer = JobClaimer {
            pool,
            lease_renewer: lease_renewer.clone(),
            listener: wakeups.listen(WakeupChannel::Jobs(settings.queue)),
            permits: Arc::new(Semaphore::new(concurrency)),
            sender: claimed,
            stop: stop.clone(),
            settings,
        };

        tokio::spawn(claimer.run());
        Self {
            lease_renewer,
            jobs,
            shutdown,
            claimer: Some(stop.drop_guard()),
            closing: None,
        }
    }
}

/// Task that leases jobs for the worker's free slots.
struct JobClaimer {
    pool: PgPool,
    settings: WorkerSettings,
    lease_renewer: LeaseRenewer,
    listener: WakeupListener,
    permits: Arc<Semaphore>,
    sender: mpsc::Sender<RunningJob>,
    stop: CancellationToken,
}

impl JobClaimer {
    async fn run(mut self) {
        let stop = self.stop.clone();
        let mut outage_pause = OUTAGE_BACKOFF.0;
        // A claim is never cancelled once it was sent, so that no lease goes unnoticed.
        while let Some(Some(permits)) = stop.run_until_cancelled(self.acquire_permits()).await {
            match self.claim_once(permits).await {
                Ok(true) => outage_pause = OUTAGE_BACKOFF.0,
                Ok(false) => {
                    outage_pause = OUTAGE_BACKOFF.0;
                    let ids = self.permits.available_permits();
                    let wakeup = self.listener.wait(ids, self.settings.timing.poll);
                    stop.run_until_cancelled(wakeup).await;
                }
                Err(error) => {
                    tracing::warn!(
                        queue = self.settings.queue.name(),
                        error = format!("{error:#}"),
                        "jobs could not be claimed"
                    );
                    stop.run_until_cancelled(sleep(outage_pause)).await;
                    outage_pause = OUTAGE_BACKOFF.1.min(outage_pause * 2);
                }
            }
        }
    }

    /// Waits for a free slot, then takes all that are free.
    async fn acquire_permits(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let mut permits = vec![first];
        while permits.len() < MAX_CLAIMED_JOBS
            && let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned()
        {
            permits.push(permit);
        }
        Some(permits)
    }

    /// Claims once and passes the jobs to the worker; true when there may be more.
    async fn claim_once(&self, mut permits: Vec<OwnedSemaphorePermit>) -> anyhow::Result<bool> {
        let wanted = permits.len();
        let ends = Instant::now() + self.settings.timing.lease;

        let jobs = claim_jobs(&self.pool, &self.settings, &mut permits).await?;
        let full = jobs.len() == wanted;

        self.lease_renewer.track(&jobs, ends);
        for job in jobs {
            if let Err(unsent) = self.sender.send(job).await {
                self.lease_renewer.give_back(&unsent.0).await;
            }
        }
        Ok(full)
    }
}

impl Backend for PgBackend {
    type Task = Task<Arc<RunningJob>>;
    type Error = BackendError;

    fn poll_ready(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Self::Error>>> {
        match ready!(self.jobs.poll_recv(cx)) {
            Some(job) => {
                let id = TaskId::from_string(job.id.to_string());
                let task = TaskBuilder::new(Arc::new(job)).task_id(id).build();
                Poll::Ready(Some(Ok(task)))
            }
            None if self.shutdown.is_cancelled() => Poll::Ready(None),
            None => Poll::Ready(Some(Err(BackendError))),
        }
    }

    /// Stops the claimer and returns the claimed jobs that were not started.
    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        worker: &WorkerContext,
    ) -> Poll<Result<(), Self::Error>> {
        if !worker.is_shutting_down() {
            // Called by the token alone: apalis waits for its own flag before it ends.
            let _ = worker.stop();
        }

        self.claimer.take();

        let closing = self.closing.get_or_insert_with(|| {
            let lease_renewer = self.lease_renewer.clone();
            let (_, nothing) = mpsc::channel(1);
            let mut jobs = std::mem::replace(&mut self.jobs, nothing);
            Box::pin(async move {
                let mut returned = Vec::new();
                while let Some(job) = jobs.recv().await {
                    returned.push(lease_renewer.give_back(&job));
                }
                join_all(returned).await;
            })
        });

        closing.as_mut().poll(cx).map(Ok)
    }
}

impl BackendConfig for PgBackend {
    type Args = Arc<RunningJob>;
    type Id = ();
    type Kind = Ephemeral;
    type Config = ();
    type Layer = AckLayer;

    fn config(&self) -> &Self::Config {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        AckLayer {
            lease_renewer: self.lease_renewer.clone(),
        }
    }
}

/// Records the outcome of every job; outermost layer of a worker.
#[derive(Clone, Debug)]
pub struct AckLayer {
    lease_renewer: LeaseRenewer,
}

impl<S> Layer<S> for AckLayer {
    type Service = AckService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AckService {
            lease_renewer: self.lease_renewer.clone(),
            inner,
        }
    }
}

/// Service of [`SettleLayer`].
#[derive(Clone, Debug)]
pub struct AckService<S> {
    lease_renewer: LeaseRenewer,
    inner: S,
}

impl<S> Service<Task<Arc<RunningJob>>> for AckService<S>
where
    S: Service<Task<Arc<RunningJob>>, Response = JobOutcome>,
    S::Error: Into<BoxDynError>,
    S::Future: Send + 'static,
{
    type Response = ();
    type Error = BoxDynError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxDynError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, task: Task<Arc<RunningJob>>) -> Self::Future {
        let job = Arc::clone(&task.args);
        let lease_renewer = self.lease_renewer.clone();
        let run = self.inner.call(task);
        Box::pin(async move {
            // An error is a panic that a layer caught, or an error of a layer.
            let outcome = run.await.unwrap_or_else(|error| JobOutcome::Retry {
                after: None,
                why: error.into().to_string(),
            });

            log_outcome(&job, &outcome);
            lease_renewer.finish(&job, outcome).await;
            Ok(())
        })
    }
}

fn log_outcome(job: &RunningJob, outcome: &JobOutcome) {
    let (id, kind, attempt) = (job.id, job.kind.as_str(), job.attempt);
    match outcome {
        JobOutcome::Done => tracing::debug!(job.id = %id, kind, attempt, "job is done"),
        JobOutcome::Retry { why, .. } if job.is_last_attempt() => {
            tracing::error!(job.id = %id, kind, attempt, why, "job is dead: no attempts left");
        }
        JobOutcome::Retry { why, .. } => {
            tracing::warn!(job.id = %id, kind, attempt, why, "job failed and will be retried");
        }
        JobOutcome::Fail { why } => {
            tracing::error!(job.id = %id, kind, attempt, why, "job is dead: it cannot succeed");
        }
    }
}
