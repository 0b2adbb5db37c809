//! When and how fast things happen.
//!
//! A worker process takes any of four roles; replicas of any mix share the work through the
//! database and need not know of each other:
//!
//! - `dial`: claims due rows and places their calls, at each trunk's pace ([`dial`]).
//! - `inbox`: applies what carriers reported ([`inbox`]) and charges what has ended ([`settle`]).
//! - `ingest`: reads uploaded files ([`queues`]).
//! - `misc`: everything else: starts, mail, exports, and the periodic repairs ([`schedule`]).
//!
//! On shutdown nothing more is claimed, what is under way is finished, and what was claimed but
//! not begun is given back.

pub mod dial;
pub mod inbox;
pub mod jobs;
pub mod operate;
pub mod queues;
pub mod schedule;
pub mod settle;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use peal_shared::context::Context;
use peal_shared::ids::JobId;
use peal_shared::queue::{Queue, Timing};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::queues::{Queues, run_queues};

/// Jobs of a queue that one process runs at once.
const HANDS: usize = 8;
/// Uploads that one process reads at once.
const INGEST_HANDS: usize = 2;
/// Exports that one process writes at once.
const EXPORT_HANDS: usize = 1;

/// What a process does.
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
                "there is no role {other:?}: choose from dial, inbox, ingest, misc"
            )),
        }
    }
}

/// Runs the roles until `shutdown`, and then until what was under way has ended.
///
/// # Errors
/// When a role ends by itself, which is a bug: outages are waited out.
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
                inbox::run(Arc::clone(&context), shutdown.clone()),
                settle::run(context, shutdown),
            );
            Ok(())
        });
    }
    let mut hands = Vec::new();
    if roles.contains(&Role::Ingest) {
        hands.push((Queue::Ingest, INGEST_HANDS));
    }
    if roles.contains(&Role::Misc) {
        hands.extend([
            (Queue::Control, HANDS),
            (Queue::Mail, HANDS),
            (Queue::Export, EXPORT_HANDS),
        ]);
        let (context, shutdown) = (Arc::clone(&context), shutdown.clone());
        running.spawn(async move {
            schedule::run(context, shutdown).await;
            Ok(())
        });
    }
    if !hands.is_empty() {
        let queues = Queues {
            pool: context.pool.clone(),
            bells: context.bells.clone(),
            registry: Arc::new(jobs::registry()),
            state: context,
            timing: Timing::default(),
        };
        let shutdown = shutdown.clone();
        running.spawn(async move { run_queues(queues, &hands, shutdown).await });
    }
    let mut first_failure = Ok(());
    while let Some(ended) = running.join_next().await {
        let result = ended.map_err(anyhow::Error::from).and_then(|result| result);
        if !shutdown.is_cancelled() {
            // The rest is stopped in order, so that a supervisor restarts a whole worker.
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
