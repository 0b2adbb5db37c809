//! What an operator asks and does from the command line: see queues and trunks, hold and resume
//! them, bring dead jobs back. Answers are JSON, one object a line.

use anyhow::Context as _;
use clap::Subcommand;
use peal_shared::bells::Bell;
use peal_shared::billing::verify::verify_unscoped;
use peal_shared::context::Context;
use peal_shared::ids::{JobId, TrunkId};
use peal_shared::queue::{self, Queue};
use peal_shared::trunks;
use peal_shared::wallets::overview;
use serde::Serialize;

/// How many dead jobs are shown.
const DEAD_LIMIT: i64 = 200;

/// An operator's command.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// How much waits in each queue, and since when.
    Queues,
    /// Holds a queue: jobs are still added, none is begun.
    PauseQueue { queue: String },
    /// Lets a held queue go on.
    ResumeQueue { queue: String },
    /// Jobs that failed for good, with the reason.
    DeadJobs,
    /// Gives a dead job another round of attempts.
    Revive { job: JobId },
    /// Every trunk: its pace, its live calls, and why it is paused.
    Trunks,
    /// Lets a paused trunk dial again.
    ResumeTrunk { trunk: TrunkId },
    /// Looks into the books.
    #[command(subcommand)]
    Ledger(Books),
}

/// What can be asked of the books.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Books {
    /// Every wallet through which money has gone: balance, holds, what can be spent.
    Wallets,
    /// Recomputes everything from the entries and prints what does not add up; nothing printed
    /// and exit code 0 is a clean bill.
    Verify,
}

impl Command {
    /// Carries the command out and prints its answer.
    ///
    /// # Errors
    /// When the thing named does not exist, or the database does not answer.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut db = context.pool.acquire().await?;
        match self {
            Self::Queues => print(queue::depths(&mut db).await?),
            Self::PauseQueue { queue } => Ok(queue::pause(&mut db, named(&queue)?).await?),
            Self::ResumeQueue { queue } => Ok(queue::resume(&mut db, named(&queue)?).await?),
            Self::DeadJobs => print(queue::dead(&mut db, DEAD_LIMIT).await?),
            Self::Revive { job } => {
                let revived = queue::revive(&mut db, job).await?;
                context.bells.ring_job(&revived);
                Ok(())
            }
            Self::Trunks => print(trunks::list_unscoped(&mut db).await?),
            Self::Ledger(Books::Wallets) => {
                print(overview::all_unscoped(&mut db, context.clock.now()).await?)
            }
            Self::Ledger(Books::Verify) => {
                drop(db);
                let offenders = verify_unscoped(&context.pool).await?;
                let count = offenders.len();
                print(offenders)?;
                anyhow::ensure!(count == 0, "{count} things in the books do not add up");
                Ok(())
            }
            Self::ResumeTrunk { trunk } => {
                trunks::resume_unscoped(&mut db, trunk).await?;
                context.bells.ring(Bell::Dial);
                Ok(())
            }
        }
    }
}

fn named(queue: &str) -> anyhow::Result<Queue> {
    let names: Vec<&str> = Queue::ALL.iter().map(|queue| queue.name()).collect();
    Queue::from_name(queue).with_context(|| {
        format!(
            "there is no queue {queue:?}: choose from {}",
            names.join(", ")
        )
    })
}

fn print<T: Serialize>(lines: Vec<T>) -> anyhow::Result<()> {
    for line in lines {
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}
