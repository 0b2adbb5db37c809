//! The queue side of a worker process: an apalis worker per queue under one monitor, and the
//! sweeper.
//!
//! ```text
//! monitor ─ worker per queue: PgBackend ─► settle ─► own task ─► panic guard ─► dispatch
//! sweeper ─ every five seconds
//! ```
//!
//! Every job runs in a task of its own: a handler that computes for long delays nobody else,
//! and a panic ends one run. When `shutdown` is cancelled nothing more is claimed and running
//! jobs are given time to finish; then they are told to stop; then the process goes, and what
//! still ran is taken over when its lease ends.

use std::sync::Arc;
use std::time::Duration;

use apalis::layers::WorkerBuilderExt;
use apalis_core::monitor::Monitor;
use apalis_core::task::data::Data;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::ext::parallelize::ParallelizeLayer;
use peal_shared::bells::Bells;
use peal_shared::ids::JobId;
use peal_shared::queue::{self, Outcome, PgBackend, Queue, Running, Shift, Timing};
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::jobs::Registry;

/// Time between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What the queues of a process run on.
#[derive(Debug)]
pub struct Queues<S> {
    pub pool: PgPool,
    pub bells: Bells,
    /// What handlers share.
    pub state: Arc<S>,
    pub registry: Arc<Registry<S>>,
    pub timing: Timing,
}

impl<S> Clone for Queues<S> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            bells: self.bells.clone(),
            state: Arc::clone(&self.state),
            registry: Arc::clone(&self.registry),
            timing: self.timing,
        }
    }
}

/// Runs jobs of the given queues, each with so many at once, until `shutdown` and the end of
/// what was running then, or the end of its grace ([`Timing`]).
///
/// # Errors
/// Fails when apalis cannot stop its workers.
pub async fn run_queues<S: Send + Sync + 'static>(
    queues: Queues<S>,
    hands: &[(Queue, usize)],
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let halt = CancellationToken::new();
    let deadline = {
        let (shutdown, halt, timing) = (shutdown.clone(), halt.clone(), queues.timing);
        async move {
            shutdown.cancelled().await;
            sleep(timing.grace).await;
            halt.cancel();
            sleep(timing.halt_grace).await;
            tracing::warn!("jobs did not stop in time and are left to their leases");
        }
    };
    // Two processes never share the name of a worker, not even one before and after a restart.
    let process = JobId::new();
    // An error of a worker is a bug in it, not an outage; it is rebuilt under another name.
    let mut monitor = Monitor::new()
        .with_terminator(deadline)
        .should_restart(|_, _| true);
    for &(queue, hands) in hands {
        let shift = Shift {
            queue,
            worker: format!("{queue}-{}", process),
            hands,
            timing: queues.timing,
            shutdown: shutdown.clone(),
            halt: halt.clone(),
        };
        monitor = register(monitor, queues.clone(), shift);
    }
    let sweeper = tokio::spawn(sweep_until(
        queues.pool.clone(),
        queues.bells.clone(),
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
    queues: Queues<S>,
    shift: Shift,
) -> Monitor {
    monitor.register(move |restarts| {
        let shift = Shift {
            worker: format!("{}-{restarts}", shift.worker),
            ..shift.clone()
        };
        WorkerBuilder::new(shift.worker.as_str())
            .backend(PgBackend::start(queues.pool.clone(), &queues.bells, shift))
            .data(queues.clone())
            .layer(ParallelizeLayer::new(tokio::spawn))
            .catch_panic()
            .build(dispatch::<S>)
    })
}

async fn dispatch<S: Send + Sync + 'static>(job: Arc<Running>, queues: Data<Queues<S>>) -> Outcome {
    let state = Arc::clone(&queues.state);
    queues.registry.dispatch(state, job).await
}

/// Sweeps until the shutdown. Errors are logged; the next sweep tries again.
async fn sweep_until(pool: PgPool, bells: Bells, shutdown: CancellationToken) {
    let mut ticks = interval(SWEEP_EVERY);
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
