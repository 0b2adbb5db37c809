//! The worker: dials, applies carrier events, charges calls and runs jobs.
//!
//! A worker process takes any of four roles; replicas with any mix of roles share the work through
//! the database and do not know each other:
//!
//! - `dial`: claims due rows and places their calls, at each trunk's pace ([`dial`]).
//! - `inbox`: applies carrier events ([`events`]) and charges ended calls ([`settle`]).
//! - `ingest`: reads uploaded files ([`queues`]).
//! - `misc`: everything else: batch starts, mail, exports and the periodic repairs ([`maintenance`]).
//!
//! On shutdown nothing more is claimed, work in progress is finished, and claimed work that has
//! not begun is given back.

pub mod dial;
pub mod events;
pub mod jobs;
pub mod maintenance;
pub mod queues;
pub mod settle;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use peal_shared::context::Context;
use peal_shared::platform::ids::JobId;
use peal_shared::platform::queue::{Queue, WorkerTiming};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::queues::{QueueRuntime, run_queues};

/// Concurrent jobs of a queue in one process.
const JOB_CONCURRENCY: usize = 8;
/// Concurrent uploads in one process.
const INGEST_CONCURRENCY: usize = 2;
/// Concurrent exports in one process.
const EXPORT_CONCURRENCY: usize = 1;

/// A share of the work that a process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Dial,
    Inbox,
    Ingest,
    Misc,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Dial, Self::Inbox, Self::Ingest, Self::Misc];
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "dial" => Ok(Self::Dial),
            "inbox" => Ok(Self::Inbox),
            "ingest" => Ok(Self::Ingest),
            "misc" => Ok(Self::Misc),
            other => Err(format!(
                "unknown role {other:?}: choose from dial, inbox, ingest, misc"
            )),
        }
    }
}

/// Runs the roles until `shutdown`, and then until work in progress has ended.
///
/// # Errors
/// Fails when a role ends by itself, which is a bug: outages are waited out.
pub async fn run(
    context: Arc<Context>,
    roles: &BTreeSet<Role>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let name: Arc<str> = format!("worker-{}", JobId::new()).into();
    tracing::info!(worker = %name, ?roles, "worker starts");
    let mut running: JoinSet<anyhow::Result<()>> = JoinSet::new();

    if roles.contains(&Role::Dial) {
        let (context, shutdown, name) = (Arc::clone(&context), shutdown.clone(), Arc::clone(&name));
        running.spawn(async move {
            dial::run(context, name, shutdown).await;
            Ok(())
        });
    }

    if roles.contains(&Role::Inbox) {
        let (context, shutdown) = (Arc::clone(&context), shutdown.clone());
        running.spawn(async move {
            tokio::join!(
                events::run(Arc::clone(&context), shutdown.clone()),
                settle::run(context, shutdown),
            );
            Ok(())
        });
    }

    let mut concurrency = Vec::new();
    if roles.contains(&Role::Ingest) {
        concurrency.push((Queue::Ingest, INGEST_CONCURRENCY));
    }
    if roles.contains(&Role::Misc) {
        concurrency.extend([
            (Queue::Control, JOB_CONCURRENCY),
            (Queue::Mail, JOB_CONCURRENCY),
            (Queue::Export, EXPORT_CONCURRENCY),
        ]);
        let (context, shutdown) = (Arc::clone(&context), shutdown.clone());
        running.spawn(async move {
            maintenance::run(context, shutdown).await;
            Ok(())
        });
    }

    if !concurrency.is_empty() {
        let queues = QueueRuntime {
            pool: context.pool.clone(),
            wakeups: context.wakeups.clone(),
            registry: Arc::new(jobs::registry()),
            state: context,
            timing: WorkerTiming::default(),
        };
        let shutdown = shutdown.clone();
        running.spawn(async move { run_queues(queues, &concurrency, shutdown).await });
    }

    let mut first_failure = Ok(());
    while let Some(ended) = running.join_next().await {
        let result = ended.map_err(anyhow::Error::from).and_then(|result| result);
        if !shutdown.is_cancelled() {
            // The other roles stop in order, so that a supervisor restarts the whole worker.
            shutdown.cancel();
            first_failure = Err(result
                .err()
                .unwrap_or_else(|| anyhow::anyhow!("a role ended by itself")));
        } else if first_failure.is_ok() {
            first_failure = result;
        }
    }

    tracing::info!(worker = %name, "worker has stopped");
    first_failure
}
