//! `peal-api`: serves the API, migrates the database and runs the operator's commands.

use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use peal_api::cli::admin::AdminCommand;
use peal_api::cli::bootstrap::{BootstrapArgs, bootstrap};
use peal_shared::config::{Config, Settings};
use peal_shared::context::{Context, ProcessKind, ensure_migrated, migrate};
use peal_shared::platform::logging;
use peal_shared::platform::rlimit::raise_open_files_limit;
use peal_shared::telemetry_server;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Open files besides client connections: database, Redis, users' servers, uploads.
const NON_CLIENT_FILES: u64 = 512;

/// The HTTP API of Peal, the outbound AI voice dialer.
#[derive(Parser)]
#[command(name = "peal-api", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<CliCommand>,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Serve the API (the default).
    Serve,
    /// Migrate the database to the latest schema.
    Migrate,
    /// Print the OpenAPI 3.1 document as JSON. Takes no settings.
    Openapi,
    /// Create an organisation, its administrator, a trunk, a number and an agent, and print
    /// their ids and a new API key as JSON.
    Bootstrap(Box<BootstrapArgs>),
    /// Look at the installation and act on it: users, keys, queues, trunks, money.
    #[command(subcommand)]
    Admin(AdminCommand),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(CliCommand::Openapi) = cli.command {
        println!("{}", peal_api::document().to_pretty_json()?);
        return Ok(());
    }

    logging::init();

    let config = Config::from_settings(cli.settings)?;

    match cli.command.unwrap_or(CliCommand::Serve) {
        CliCommand::Serve => serve(config).await,
        CliCommand::Migrate => migrate(&config).await,
        CliCommand::Openapi => Ok(()),
        CliCommand::Bootstrap(options) => {
            let context = Context::connect(config, ProcessKind::Command).await?;
            let ready = bootstrap(&context, &options).await?;
            println!("{}", serde_json::to_string(&ready)?);
            Ok(())
        }
        CliCommand::Admin(command) => {
            let context = Context::connect(config, ProcessKind::Command).await?;
            ensure_migrated(&context.pool).await?;
            command.run(&context).await
        }
    }
}

/// Raises the limit of open files, and warns when it stays below the configured connections.
/// Each connection is an open file; an upload or an outgoing request takes one more.
fn raise_file_limit(config: &Config) {
    let files = raise_open_files_limit();
    let connections = config.limits.connections;
    let wanted =
        u64::try_from(connections).map_or(u64::MAX, |n| n.saturating_add(NON_CLIENT_FILES));
    if files < wanted {
        tracing::warn!(
            files,
            connections,
            "the limit of open files is too low for PEAL_LIMIT_CONNECTIONS: raise it (ulimit -n) to {wanted}"
        );
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let context = Context::connect(config, ProcessKind::Api).await?;
    raise_file_limit(&context.config);

    let address = context.config.listen;
    let listener = peal_api::listen(address)
        .with_context(|| format!("PEAL_LISTEN: cannot listen on {address}"))?;

    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );

    let cancel = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down");
        cancel.cancel();
    });

    if let Some(listener) = telemetry_server::listen(&context.config).await? {
        tokio::spawn(telemetry_server::serve(
            Arc::clone(&context),
            listener,
            shutdown.clone(),
        ));
    }

    tracing::info!(address = %listener.local_addr()?, "serving");
    let served = peal_api::serve(Arc::clone(&context), listener, shutdown).await;

    context.traces.close().await;
    served?;
    tracing::info!("stopped");
    Ok(())
}
