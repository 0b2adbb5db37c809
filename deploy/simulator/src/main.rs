//! Runs the simulator as a program until it is interrupted.

use std::io::Write;

use anyhow::Context;
use clap::Parser;
use peal_simulator::{AccountConfig, Simulator, SimulatorConfig};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "peal-simulator",
    version,
    about = "Carrier simulator that places no real calls"
)]
struct SimulatorArgs {
    /// An account with its own token and calls per second, as SID=token[:cps[:queue|refuse]].
    /// Repeatable.
    #[arg(long = "account", value_name = "SID=TOKEN", value_parser = parse_account)]
    accounts: Vec<(String, AccountConfig)>,
    /// Draw the outcome of every number from the mix; ignore its last digits.
    #[arg(long)]
    no_suffixes: bool,
    #[command(flatten)]
    config: SimulatorConfig,
}

fn parse_account(text: &str) -> Result<(String, AccountConfig), String> {
    let (sid, settings) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not of the form SID=token"))?;
    Ok((sid.to_owned(), settings.parse()?))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();

    let SimulatorArgs {
        accounts,
        no_suffixes,
        mut config,
    } = SimulatorArgs::parse();
    config.accounts.extend(accounts);
    if no_suffixes {
        config.behavior.suffixes.clear();
    }

    // Every call takes connections.
    rlimit::increase_nofile_limit(u64::MAX).context("raising the limit of open files")?;

    let listen = config.listen;
    let running = Simulator::start(config)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    // The only line on standard output, so that a script can read the free port.
    writeln!(std::io::stdout(), "{}", running.url())?;

    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminated.recv() => {}
    }
    running.stop().await;
    Ok(())
}
