//! Commands on a running installation: list, pause and resume queues and trunks, retry dead jobs,
//! list caller numbers and wallets, verify the ledger.

use anyhow::Context as _;
use clap::Subcommand;
use peal_shared::billing::verify::verify_unscoped;
use peal_shared::context::Context;
use peal_shared::platform::ids::{JobId, TrunkId};
use peal_shared::platform::queue;
use peal_shared::platform::queue::Queue;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::wallets::overview;
use peal_shared::{caller_numbers, trunks};

use super::print_lines;

/// Maximum of dead jobs in the output.
const DEAD_JOBS_LIMIT: i64 = 200;

/// Verbs of `queue`.
#[derive(Clone, Debug, Subcommand)]
pub enum QueueCommand {
    /// Lists the queues: number of waiting jobs and age of the oldest.
    List,
    /// Pauses a queue: jobs are still added, none starts.
    Pause { queue: String },
    /// Resumes a paused queue.
    Resume { queue: String },
}

impl QueueCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when the queue does not exist.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut db = context.pool.acquire().await?;

        match self {
            Self::List => print_lines(queue::queue_depths(&mut db).await?),
            Self::Pause { queue } => Ok(queue::pause(&mut db, parse_queue(&queue)?).await?),
            Self::Resume { queue } => Ok(queue::resume(&mut db, parse_queue(&queue)?).await?),
        }
    }
}

fn parse_queue(queue: &str) -> anyhow::Result<Queue> {
    let names: Vec<&str> = Queue::ALL.iter().map(|queue| queue.name()).collect();
    Queue::from_name(queue)
        .with_context(|| format!("unknown queue {queue:?}: choose from {}", names.join(", ")))
}

/// Verbs of `job`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum JobCommand {
    /// Lists jobs that failed for good, with the reason.
    List,
    /// Retries a dead job with a new set of attempts.
    Retry { id: JobId },
}

impl JobCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when no dead job has the id, or a live job already does the same work.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut db = context.pool.acquire().await?;

        match self {
            Self::List => print_lines(queue::dead_jobs(&mut db, DEAD_JOBS_LIMIT).await?),
            Self::Retry { id } => {
                let retried = queue::retry_dead_job(&mut db, id).await?;
                context.wakeups.notify_job(&retried);
                Ok(())
            }
        }
    }
}

/// Verbs of `trunk`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum TrunkCommand {
    /// Lists the trunks: pace, live calls and the reason of a pause.
    List,
    /// Resumes a paused trunk.
    Resume { id: TrunkId },
}

impl TrunkCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when the trunk does not exist.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut db = context.pool.acquire().await?;

        match self {
            Self::List => print_lines(trunks::list_unscoped(&mut db).await?),
            Self::Resume { id } => {
                trunks::resume_unscoped(&mut db, id).await?;
                context.wakeups.notify(WakeupChannel::Dial);
                Ok(())
            }
        }
    }
}

/// Verbs of `number`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum NumberCommand {
    /// Lists the caller numbers, each with its organisation and trunk.
    List,
}

impl NumberCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when the database does.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut db = context.pool.acquire().await?;

        match self {
            Self::List => print_lines(caller_numbers::list_unscoped(&mut db).await?),
        }
    }
}

/// Verbs of `wallet`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum WalletCommand {
    /// Lists every wallet with entries: balance, holds and spendable amount.
    List,
}

impl WalletCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when the database does.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut db = context.pool.acquire().await?;

        match self {
            Self::List => print_lines(overview::all_unscoped(&mut db, context.clock.now()).await?),
        }
    }
}

/// Verbs of `ledger`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum LedgerCommand {
    /// Recomputes all balances from the entries and prints the violations. No output and exit
    /// code 0 mean that the ledger is consistent.
    Verify,
}

impl LedgerCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when the ledger has violations.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Verify => {
                let offenders = verify_unscoped(&context.pool).await?;
                let count = offenders.len();
                print_lines(offenders)?;
                anyhow::ensure!(count == 0, "the ledger has {count} violations");
                Ok(())
            }
        }
    }
}
