//! Command line of the launcher; the library describes its modes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use peal_local::{demo, dev_db, prepare, with_services};

#[derive(Parser)]
#[command(name = "peal-local", about = "Runs Peal on one machine")]
struct LauncherArgs {
    /// The checkout, whose .local/ holds the data.
    #[arg(long, default_value = ".")]
    checkout: PathBuf,
    #[command(subcommand)]
    mode: LaunchMode,
}

#[derive(Subcommand)]
enum LaunchMode {
    /// Call a thousand made-up people and check the result.
    Demo {
        /// End after the summary; the exit code is 0 if every check passed.
        #[arg(long, env = "DEMO_EXIT", value_parser = clap::builder::FalseyValueParser::new())]
        exit: bool,
    },
    /// Run everything and keep the data.
    Up,
    /// Run a command with a private PostgreSQL and Redis.
    WithServices {
        /// Commits reach the disk, as in production.
        #[arg(long)]
        durable: bool,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Start services in the background and print their addresses for a shell to evaluate.
    DevDb {
        /// Stop the services instead.
        #[arg(long)]
        stop: bool,
    },
    /// Rewrite .sqlx/ from migrations/ and the statements in the source.
    Prepare {
        /// The root file of the library with the statements.
        #[arg(long, default_value = "shared/src/lib.rs")]
        root: PathBuf,
    },
}

// One thread: the kernel ends the children when the thread that started them ends.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Children inherit the limit; a shell's default of 1,024 files is too low for some of them.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        eprintln!("peal-local: the limit of open files cannot be raised: {error}");
    }

    match run(LauncherArgs::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("peal-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: LauncherArgs) -> Result<u8> {
    let checkout: &Path = &args.checkout.canonicalize()?;
    match args.mode {
        LaunchMode::Demo { exit } => demo::run(checkout, exit).await,
        LaunchMode::Up => demo::up(checkout).await,
        LaunchMode::WithServices { durable, command } => {
            with_services::run(&command, durable).await
        }
        LaunchMode::DevDb { stop: true } => dev_db::stop(checkout).map(|()| 0),
        LaunchMode::DevDb { stop: false } => {
            print!("{}", dev_db::start(checkout).await?);
            Ok(0)
        }
        LaunchMode::Prepare { root } => {
            let count = prepare::run(checkout, &root).await?;
            eprintln!(".sqlx/ describes {count} statements");
            Ok(0)
        }
    }
}
