//! The job queues of a worker process: an apalis worker per queue under one monitor, and the
//! sweeper.
//!
//! ```text
//! monitor ─ worker per queue: PgBackend ─► ack ─► own task ─► panic guard ─► dispatch
//! sweeper ─ every five seconds
//! ```
//!
//! Every job runs in its own task: a handler that computes for long delays no other job, and a
//! panic ends one run. When `shutdown` is cancelled nothing more is claimed and running jobs get
//! time to finish; then they are aborted; then the process exits, and other workers take over
//! unfinished jobs when their leases end.

use std::sync::Arc;
use std::time::Duration;

use apalis::layers::WorkerBuilderExt;
use apalis_core::monitor::Monitor;
use apalis_core::task::data::Data;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::ext::parallelize::ParallelizeLayer;
use peal_shared::platform::ids::JobId;
use peal_shared::platform::queue;
use peal_shared::platform::queue::wakeup::Wakeups;
use peal_shared::platform::queue::{
    JobOutcome, PgBackend, Queue, RunningJob, WorkerSettings, WorkerTiming,
};
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::jobs::HandlerRegistry;

/// Time between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Connections, handlers and timing of a process's queues.
#[derive(Debug)]
pub struct QueueRuntime<S> {
    pub pool: PgPool,
    pub wakeups: Wakeups,
    /// State shared by the handlers.
    pub state: Arc<S>,
    pub registry: Arc<HandlerRegistry<S>>,
    pub timing: WorkerTiming,
}

impl<S> Clone for QueueRuntime<S> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            wakeups: self.wakeups.clone(),
            state: Arc::clone(&self.state),
            registry: Arc::clone(&self.registry),
            timing: self.timing,
        }
    }
}

/// Runs jobs of the given queues, each with its concurrency, until `shutdown` and the end of the
/// running jobs, or the end of their grace period ([`Timing`]).
///
/// # Errors
/// Fails when apalis cannot stop its workers.
pub async fn run_queues<S: Send + Sync + 'static>(
    queues: QueueRuntime<S>,
    concurrency: &[(Queue, usize)],
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // First `shutdown` stops claims, after the grace period `halt` aborts what still runs.
    let halt = CancellationToken::new();
    let deadline = {
        let (shutdown, halt, timing) = (shutdown.clone(), halt.clone(), queues.timing);
        async move {
            shutdown.cancelled().await;
            sleep(timing.grace).await;
            halt.cancel();
            sleep(timing.abort_grace).await;
            tracing::warn!("jobs did not stop in time; others take over when their leases end");
        }
    };

    // The name of a worker is unique per process, also across a restart.
    let process = JobId::new();
    // An error of a worker is a bug, not an outage; the worker is rebuilt under another name.
    let mut monitor = Monitor::new()
        .with_terminator(deadline)
        .should_restart(|_, _| true);
    for &(queue, hands) in concurrency {
        let shift = WorkerSettings {
            queue,
            worker: format!("{queue}-{}", process),
            concurrency: hands,
            timing: queues.timing,
            shutdown: shutdown.clone(),
            abort: halt.clone(),
        };
        monitor = register(monitor, queues.clone(), shift);
    }

    let sweeper = tokio::spawn(sweep_until(
        queues.pool.clone(),
        queues.wakeups.clone(),
        shutdown.clone(),
    ));

    let signal = async {
        shutdown.cancelled().await;
        Ok(())
    };
    monitor.run_with_signal(signal).await?;
    halt.cancel();
    sweeper.await?;
    Ok(())
}

/// Adds the worker of one queue to the monitor.
fn register<S: Send + Sync + 'static>(
    monitor: Monitor,
    queues: QueueRuntime<S>,
    shift: WorkerSettings,
) -> Monitor {
    monitor.register(move |restarts| {
        let shift = WorkerSettings {
            worker: format!("{}-{restarts}", shift.worker),
            ..shift.clone()
        };
        WorkerBuilder::new(shift.worker.as_str())
            .backend(PgBackend::start(
                queues.pool.clone(),
                &queues.wakeups,
                shift,
            ))
            .data(queues.clone())
            .layer(ParallelizeLayer::new(tokio::spawn))
            .catch_panic()
            .build(dispatch::<S>)
    })
}

async fn dispatch<S: Send + Sync + 'static>(
    job: Arc<RunningJob>,
    queues: Data<QueueRuntime<S>>,
) -> JobOutcome {
    let state = Arc::clone(&queues.state);
    queues.registry.dispatch(state, job).await
}

/// Sweeps until the shutdown. Errors are logged; the next sweep retries.
async fn sweep_until(pool: PgPool, bells: Wakeups, shutdown: CancellationToken) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        match shutdown
            .run_until_cancelled(queue::sweep(&pool, &bells))
            .await
        {
            Some(Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "jobs could not be swept");
            }
            Some(Ok(swept)) => tracing::trace!(?swept, "jobs swept"),
            None => {}
        }
    }
}
