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

use crate::bells::{Bell, Bells, Listener};

use super::claim::{Running, claim};
use super::keeper::Keeper;
use super::{Outcome, Queue};

/// Maximum jobs that one statement claims.
const CLAIM_LIMIT: usize = 256;
/// First and longest pause after failed claims.
const OUTAGE_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Intervals of a worker.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Life of a lease after its last heartbeat.
    pub lease: Duration,
    /// Time between two heartbeats.
    pub beat: Duration,
    /// Longest time between two claims on an idle queue without a wakeup.
    pub poll: Duration,
    /// Time for running jobs to finish after the shutdown.
    pub grace: Duration,
    /// Time for running jobs to stop after the abort.
    pub halt_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            beat: Duration::from_secs(15),
            poll: Duration::from_secs(2),
            grace: Duration::from_secs(20),
            halt_grace: Duration::from_secs(5),
        }
    }
}

/// Settings of a worker: its queue, concurrency and cancellation.
#[derive(Clone, Debug)]
pub struct Shift {
    pub queue: Queue,
    /// Name of the worker, unique across processes and restarts; written to the rows.
    pub worker: String,
    /// Maximum jobs that run at once.
    pub hands: usize,
    pub timing: Timing,
    /// Ends claiming; running jobs continue.
    pub shutdown: CancellationToken,
    /// Cancels running jobs.
    pub halt: CancellationToken,
}

/// The claimer has ended without a shutdown: a bug. The worker must be rebuilt.
#[derive(Debug, thiserror::Error)]
#[error("the claimer of this queue has ended")]
pub struct BackendError;

/// A queue as the job source of one worker.
pub struct PgBackend {
    keeper: Keeper,
    jobs: mpsc::Receiver<Running>,
    shutdown: CancellationToken,
    /// Ends the claimer with the backend.
    claimer: Option<DropGuard>,
    closing: Option<BoxFuture<'static, ()>>,
}

impl PgBackend {
    /// Starts claiming. Must be called in a tokio runtime.
    #[must_use]
    pub fn start(pool: PgPool, wakeups: &Bells, settings: Shift) -> Self {
        let concurrency = settings.hands.clamp(1, Semaphore::MAX_PERMITS);
        let lease_renewer = Keeper::start(pool.clone(), settings.timing);
        let (claimed, jobs) = mpsc::channel(concurrency);

        let shutdown = settings.shutdown.clone();
        let stop = shutdown.child_token();

        let claimer = Claimer {
            pool,
            keeper: lease_renewer.clone(),
            listener: wakeups.listen(Bell::Jobs(settings.queue)),
            hands: Arc::new(Semaphore::new(concurrency)),
            claimed,
            stop: stop.clone(),
            shift: settings,
        };

        tokio::spawn(claimer.work());
        Self {
            keeper: lease_renewer,
            jobs,
            shutdown,
            claimer: Some(stop.drop_guard()),
            closing: None,
        }
    }
}

/// Task that leases jobs for the worker's free slots.
struct Claimer {
    pool: PgPool,
    shift: Shift,
    keeper: Keeper,
    listener: Listener,
    hands: Arc<Semaphore>,
    claimed: mpsc::Sender<Running>,
    stop: CancellationToken,
}

impl Claimer {
    async fn work(mut self) {
        let stop = self.stop.clone();
        let mut outage_pause = OUTAGE_PAUSES.0;
        // A claim is never cancelled once it was sent, so that no lease goes unnoticed.
        while let Some(Some(permits)) = stop.run_until_cancelled(self.free_hands()).await {
            match self.claim(permits).await {
                Ok(true) => outage_pause = OUTAGE_PAUSES.0,
                Ok(false) => {
                    outage_pause = OUTAGE_PAUSES.0;
                    let ids = self.hands.available_permits();
                    let wakeup = self.listener.heard(ids, self.shift.timing.poll);
                    stop.run_until_cancelled(wakeup).await;
                }
                Err(error) => {
                    tracing::warn!(
                        queue = self.shift.queue.name(),
                        error = format!("{error:#}"),
                        "jobs could not be claimed"
                    );
                    stop.run_until_cancelled(sleep(outage_pause)).await;
                    outage_pause = OUTAGE_PAUSES.1.min(outage_pause * 2);
                }
            }
        }
    }

    /// Waits for a free slot, then takes all that are free.
    async fn free_hands(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = Arc::clone(&self.hands).acquire_owned().await.ok()?;
        let mut permits = vec![first];
        while permits.len() < CLAIM_LIMIT
            && let Ok(permit) = Arc::clone(&self.hands).try_acquire_owned()
        {
            permits.push(permit);
        }
        Some(permits)
    }

    /// Claims once and passes the jobs to the worker; true when there may be more.
    async fn claim(&self, mut permits: Vec<OwnedSemaphorePermit>) -> anyhow::Result<bool> {
        let wanted = permits.len();
        let ends = Instant::now() + self.shift.timing.lease;

        let jobs = claim(&self.pool, &self.shift, &mut permits).await?;
        let full = jobs.len() == wanted;

        self.keeper.leased(&jobs, ends);
        for job in jobs {
            if let Err(unsent) = self.claimed.send(job).await {
                self.keeper.unstarted(&unsent.0).await;
            }
        }
        Ok(full)
    }
}

impl Backend for PgBackend {
    type Task = Task<Arc<Running>>;
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
            let lease_renewer = self.keeper.clone();
            let (_, nothing) = mpsc::channel(1);
            let mut jobs = std::mem::replace(&mut self.jobs, nothing);
            Box::pin(async move {
                let mut returned = Vec::new();
                while let Some(job) = jobs.recv().await {
                    returned.push(lease_renewer.unstarted(&job));
                }
                join_all(returned).await;
            })
        });

        closing.as_mut().poll(cx).map(Ok)
    }
}

impl BackendConfig for PgBackend {
    type Args = Arc<Running>;
    type Id = ();
    type Kind = Ephemeral;
    type Config = ();
    type Layer = SettleLayer;

    fn config(&self) -> &Self::Config {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        SettleLayer {
            keeper: self.keeper.clone(),
        }
    }
}

/// Records the outcome of every job; outermost layer of a worker.
#[derive(Clone, Debug)]
pub struct SettleLayer {
    keeper: Keeper,
}

impl<S> Layer<S> for SettleLayer {
    type Service = SettleService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SettleService {
            keeper: self.keeper.clone(),
            inner,
        }
    }
}

/// Service of [`SettleLayer`].
#[derive(Clone, Debug)]
pub struct SettleService<S> {
    keeper: Keeper,
    inner: S,
}

impl<S> Service<Task<Arc<Running>>> for SettleService<S>
where
    S: Service<Task<Arc<Running>>, Response = Outcome>,
    S::Error: Into<BoxDynError>,
    S::Future: Send + 'static,
{
    type Response = ();
    type Error = BoxDynError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxDynError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, task: Task<Arc<Running>>) -> Self::Future {
        let job = Arc::clone(&task.args);
        let lease_renewer = self.keeper.clone();
        let run = self.inner.call(task);
        Box::pin(async move {
            // An error is a panic that a layer caught, or an error of a layer.
            let outcome = run.await.unwrap_or_else(|error| Outcome::Retry {
                after: None,
                why: error.into().to_string(),
            });

            log(&job, &outcome);
            lease_renewer.ended(&job, outcome).await;
            Ok(())
        })
    }
}

fn log(job: &Running, outcome: &Outcome) {
    let (id, kind, attempt) = (job.id, job.kind.as_str(), job.attempt);
    match outcome {
        Outcome::Done => tracing::debug!(job.id = %id, kind, attempt, "job is done"),
        Outcome::Retry { why, .. } if job.is_last_attempt() => {
            tracing::error!(job.id = %id, kind, attempt, why, "job is dead: no attempts left");
        }
        Outcome::Retry { why, .. } => {
            tracing::warn!(job.id = %id, kind, attempt, why, "job failed and will be retried");
        }
        Outcome::Fail { why } => {
            tracing::error!(job.id = %id, kind, attempt, why, "job is dead: it cannot succeed");
        }
    }
}
