//! `peal-api`: serves the API, migrates the database, sets up what a first campaign needs.

use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use peal_api::admin::{Admin, create_user, rotate_master_key};
use peal_api::bootstrap::{Bootstrap, bootstrap};
use peal_shared::config::{Config, Settings};
use peal_shared::context::{Context, Process, migrate};
use peal_shared::open_files::raise_limit;
use peal_shared::{logging, metrics};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Files that are no client's connection: to the database, to Redis, to users' servers, uploads.
const FILES_BESIDE: u64 = 512;

/// The HTTP API of Peal, the outbound AI voice dialer.
#[derive(Parser)]
#[command(name = "peal-api", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API (what happens without a command, too).
    Serve,
    /// Bring the database's schema up to date.
    Migrate,
    /// Print the description of the API (OpenAPI 3.1) as JSON. Takes no settings.
    Openapi,
    /// Set up an organisation, its administrator, a trunk, a number and an agent, and print
    /// their ids with a new API key as JSON.
    Bootstrap(Box<Bootstrap>),
    /// What the platform's operator does.
    #[command(subcommand)]
    Admin(Admin),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Openapi) = cli.command {
        println!("{}", peal_api::document().to_pretty_json()?);
        return Ok(());
    }
    logging::init();
    let config = Config::from_settings(cli.settings)?;
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(config).await,
        Command::Migrate => migrate(&config).await,
        Command::Openapi => Ok(()),
        Command::Bootstrap(wanted) => {
            let context = Context::connect(config, Process::Command).await?;
            let ready = bootstrap(&context, &wanted).await?;
            println!("{}", serde_json::to_string(&ready)?);
            Ok(())
        }
        Command::Admin(Admin::CreateUser(wanted)) => {
            let context = Context::connect(config, Process::Command).await?;
            let made = create_user(&context, &wanted).await?;
            println!("{}", serde_json::to_string(&made)?);
            Ok(())
        }
        Command::Admin(Admin::RotateMasterKey) => {
            let context = Context::connect(config, Process::Command).await?;
            let rotated = rotate_master_key(&context).await?;
            println!("{}", serde_json::to_string(&rotated)?);
            Ok(())
        }
    }
}

/// Every connection is an open file, and an upload or a question to another server one more.
fn warn_of_few_files(config: &Config) {
    let files = raise_limit();
    let connections = config.limits.connections;
    let wanted = u64::try_from(connections).map_or(u64::MAX, |n| n.saturating_add(FILES_BESIDE));
    if files < wanted {
        tracing::warn!(
            files,
            connections,
            "fewer files may be open than PEAL_LIMIT_CONNECTIONS asks for: raise the system's limit (ulimit -n) to {wanted}"
        );
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let context = Context::connect(config, Process::Api).await?;
    warn_of_few_files(&context.config);
    let address = context.config.listen;
    let listener = peal_api::listen(address)
        .with_context(|| format!("PEAL_LISTEN: cannot listen on {address}"))?;
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let told = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down");
        told.cancel();
    });
    if let Some(listener) = metrics::listen(&context.config).await? {
        tokio::spawn(metrics::serve(
            Arc::clone(&context),
            listener,
            shutdown.clone(),
        ));
    }
    tracing::info!(address = %listener.local_addr()?, "serving");
    let ended = peal_api::serve(Arc::clone(&context), listener, shutdown).await;
    context.traces.close().await;
    ended?;
    tracing::info!("stopped");
    Ok(())
}
