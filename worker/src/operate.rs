//! Operator commands: list, pause and resume queues and trunks, retry dead jobs, check the
//! ledger. The output is JSON, one object per line.

use anyhow::Context as _;
use clap::Subcommand;
use peal_shared::billing::verify::verify_unscoped;
use peal_shared::context::Context;
use peal_shared::platform::ids::{JobId, TrunkId};
use peal_shared::platform::queue;
use peal_shared::platform::queue::Queue;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::trunks;
use peal_shared::wallets::overview;
use serde::Serialize;

/// Maximum of dead jobs in the output.
const DEAD_JOBS_LIMIT: i64 = 200;

/// An operator's command.
#[derive(Clone, Debug, Subcommand)]
pub enum OperatorCommand {
    /// Lists the queues: number of waiting jobs and age of the oldest.
    Queues,
    /// Pauses a queue: jobs are still added, none starts.
    PauseQueue { queue: String },
    /// Resumes a paused queue.
    ResumeQueue { queue: String },
    /// Lists jobs that failed for good, with the reason.
    DeadJobs,
    /// Retries a dead job with a new set of attempts.
    Revive { job: JobId },
    /// Lists the trunks: pace, live calls and the reason of a pause.
    Trunks,
    /// Resumes a paused trunk.
    ResumeTrunk { trunk: TrunkId },
    /// Reads or verifies the ledger.
    #[command(subcommand)]
    Ledger(LedgerCommand),
}

/// A command on the ledger.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum LedgerCommand {
    /// Lists every wallet with entries: balance, holds and spendable amount.
    Wallets,
    /// Recomputes all balances from the entries and prints the violations. No output and exit
    /// code 0 mean that the ledger is consistent.
    Verify,
}

impl OperatorCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when the queue, job or trunk does not exist, or the ledger has violations.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut db = context.pool.acquire().await?;

        match self {
            Self::Queues => print_lines(queue::queue_depths(&mut db).await?),
            Self::PauseQueue { queue } => Ok(queue::pause(&mut db, parse_queue(&queue)?).await?),
            Self::ResumeQueue { queue } => Ok(queue::resume(&mut db, parse_queue(&queue)?).await?),
            Self::DeadJobs => print_lines(queue::dead_jobs(&mut db, DEAD_JOBS_LIMIT).await?),
            Self::Revive { job } => {
                let revived = queue::retry_dead_job(&mut db, job).await?;
                context.wakeups.notify_job(&revived);
                Ok(())
            }

            Self::Trunks => print_lines(trunks::list_unscoped(&mut db).await?),
            Self::ResumeTrunk { trunk } => {
                trunks::resume_unscoped(&mut db, trunk).await?;
                context.wakeups.notify(WakeupChannel::Dial);
                Ok(())
            }

            Self::Ledger(LedgerCommand::Wallets) => {
                print_lines(overview::all_unscoped(&mut db, context.clock.now()).await?)
            }
            Self::Ledger(LedgerCommand::Verify) => {
                // The verification takes a connection of its own.
                drop(db);
                let offenders = verify_unscoped(&context.pool).await?;
                let count = offenders.len();
                print_lines(offenders)?;
                anyhow::ensure!(count == 0, "the ledger has {count} violations");
                Ok(())
            }
        }
    }
}

fn parse_queue(queue: &str) -> anyhow::Result<Queue> {
    let names: Vec<&str> = Queue::ALL.iter().map(|queue| queue.name()).collect();
    Queue::from_name(queue)
        .with_context(|| format!("unknown queue {queue:?}: choose from {}", names.join(", ")))
}

fn print_lines<T: Serialize>(lines: Vec<T>) -> anyhow::Result<()> {
    for line in lines {
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}
