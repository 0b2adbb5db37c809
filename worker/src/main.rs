//! `peal-worker`: places calls and runs all background work.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use peal_shared::config::{Config, Settings};
use peal_shared::context::{Context, ProcessKind, ensure_migrated};
use peal_shared::platform::logging;
use peal_shared::platform::rlimit::raise_open_files_limit;
use peal_shared::telemetry_server;
use peal_worker::Role;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Longest time for a graceful shutdown; then the process exits.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(28);

/// Places calls, applies carrier events, reads uploads, sends mail.
#[derive(Parser)]
#[command(name = "peal-worker", version)]
struct CliArguments {
    /// Roles of this replica, separated by commas: dial, inbox, ingest, misc.
    #[arg(
        long,
        env = "PEAL_ROLES",
        default_value = "dial,inbox,ingest,misc",
        value_delimiter = ','
    )]
    roles: Vec<Role>,
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = CliArguments::parse();
    logging::init();
    let config = Config::from_settings(arguments.settings)?;

    let context = Context::connect(config, ProcessKind::Worker).await?;
    ensure_migrated(&context.pool).await?;

    let files = raise_open_files_limit();
    tracing::debug!(files, "limit of open files");
    let roles: BTreeSet<Role> = arguments.roles.into_iter().collect();

    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(
        signal(SignalKind::terminate())?,
        shutdown.clone(),
    ));
    if let Some(listener) = telemetry_server::listen(&context.config).await? {
        tokio::spawn(telemetry_server::serve(
            Arc::clone(&context),
            listener,
            shutdown.clone(),
        ));
    }

    let ended = peal_worker::run(Arc::clone(&context), &roles, shutdown).await;
    context.traces.close().await;
    ended
}

async fn stop_on_signal(mut terminate: Signal, shutdown: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    shutdown.cancel();
    tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
    tracing::error!("shutdown timed out; other workers take over the remaining work");
    std::process::exit(1);
}
