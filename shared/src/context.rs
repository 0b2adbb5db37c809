//! Context of a process: its connections to external services, made once and shared by all
//! features.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::ExposeSecret;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};

use crate::access::row_level_security;
use crate::access::row_level_security::UnsafeRole;
use crate::billing::estimate::EstimateBasis;
use crate::billing::price_cache::PriceCache;
use crate::config::Config;
use crate::mail::Mailer;
use crate::metrics::Metrics;
use crate::outbound::OutboundClient;
use crate::platform::clock::Clock;
use crate::platform::error::Result;
use crate::platform::queue::wakeup::Wakeups;
use crate::platform::store::FileStore;
use crate::telephony::CarrierRegistry;
use crate::tools::mcp::OutboundMcpClient;
use crate::traces::CallTracer;
use crate::trunks::AccountCache;

/// SQLSTATE of a table that does not exist.
const UNDEFINED_TABLE: &str = "42P01";
/// SQLSTATE of a deadlock that the server ended.
const DEADLOCK_DETECTED: &str = "40P01";
/// Most deadlocks of one migration run.
const MAX_DEADLOCKS: u32 = 20;
/// Migrations of this build's schema.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");
/// Longest wait for a database connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest idle time inside a transaction. A process that is frozen or cut off from the network
/// in a transaction holds locks that others wait for, so the server ends its session.
const IDLE_TRANSACTION_TIMEOUT: &str = "5s";
/// Longest time a statement waits for a lock.
const LOCK_TIMEOUT: &str = "5s";
/// Connections reserved for callbacks: two writers, and answers.
const CALLBACK_CONNECTIONS: u32 = 8;
/// Longest wait of a callback for a connection. A carrier gives up after fifteen seconds and
/// retries after a 503.
const CALLBACK_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);

/// Shared state of a process.
pub struct Context {
    pub config: Config,
    pub pool: PgPool,
    /// Role that bypasses row-level security, if this process has one; checked at start.
    pub unsafe_role: Option<UnsafeRole>,
    /// Connections for carriers' callbacks alone, so that users' load does not delay them.
    pub callback_pool: PgPool,
    pub wakeups: Wakeups,
    pub carriers: CarrierRegistry,
    pub accounts: AccountCache,
    pub price_cache: PriceCache,
    pub mailer: Mailer,
    pub store: FileStore,
    pub clock: Clock,
    /// Client for users' URLs.
    pub outbound: OutboundClient,
    /// Client for users' MCP servers.
    pub mcp: OutboundMcpClient,
    pub metrics: Metrics,
    pub traces: CallTracer,
}

/// Program that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessKind {
    Api,
    Worker,
    /// A command that runs once and ends.
    Command,
}

impl ProcessKind {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "peal-api",
            Self::Worker => "peal-worker",
            Self::Command => "peal-command",
        }
    }
}

impl Context {
    /// Basis of cost estimates.
    #[must_use]
    pub fn estimate_basis(&self) -> EstimateBasis {
        EstimateBasis {
            at: self.clock.now(),
            hold_max_secs: self.config.hold_max_secs,
        }
    }

    /// Connects to all configured services. PostgreSQL must answer; Redis need not. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// Names the service that could not be reached or opened.
    pub async fn connect(config: Config, process: ProcessKind) -> anyhow::Result<Arc<Self>> {
        // PostgreSQL: the main pool, the check of its role, and the pool of callbacks.
        let pool = open_pool(&config, process).await?;
        let breach =
            row_level_security::find_unsafe_role_unscoped(&mut *pool.acquire().await?).await?;
        if let Some(breach) = &breach {
            tracing::error!("row-level security is not in force: {}", breach.detail);
        }

        let options = system_options(&config, "peal-callbacks")?;
        let callbacks = pool_options()
            .max_connections(CALLBACK_CONNECTIONS)
            .acquire_timeout(CALLBACK_ACQUIRE_TIMEOUT)
            .connect_lazy_with(with_generic_plans(with_statement_timeout(options, &config)));

        let redis_url = config.redis_url.as_ref().map(ExposeSecret::expose_secret);
        let wakeups = Wakeups::new(redis_url, &config.redis_prefix).context("PEAL_REDIS_URL")?;

        let mailer = match &config.smtp_url {
            Some(url) => {
                Mailer::smtp(url.expose_secret(), &config.mail_from).context("PEAL_SMTP_URL")?
            }
            None => Mailer::files(&config.mail_dir, &config.mail_from).context("PEAL_MAIL_DIR")?,
        };

        let clock = Clock::default();
        let traces = CallTracer::open(
            config.telemetry.traces.as_ref(),
            process.name(),
            clock.clone(),
        )?;
        let outbound = OutboundClient::new(config.outbound.clone())?;

        Ok(Arc::new(Self {
            pool,
            unsafe_role: breach,
            callback_pool: callbacks,
            wakeups,
            carriers: CarrierRegistry::new()?,
            accounts: AccountCache::default(),
            price_cache: PriceCache::default(),
            mailer,
            store: FileStore::open(&config.store_url).context("PEAL_STORE_URL")?,
            clock,
            metrics: Metrics::default(),
            traces,
            mcp: OutboundMcpClient::new(outbound.clone()),
            outbound,
            config,
        }))
    }
}

/// Connection options of every process. Waiting for a lock is limited: a holder that takes longer
/// is stuck, and waiting would spread that. JIT is off: statements are short and many, and
/// compiling them costs more than running them.
fn connect_options(config: &Config, process: &str) -> anyhow::Result<PgConnectOptions> {
    let options: PgConnectOptions = config
        .database_url
        .expose_secret()
        .parse()
        .context("PEAL_DATABASE_URL")?;
    Ok(options.application_name(process).options([
        ("lock_timeout", LOCK_TIMEOUT),
        (
            "idle_in_transaction_session_timeout",
            IDLE_TRANSACTION_TIMEOUT,
        ),
        ("jit", "off"),
        // Plans are cached. One made while a table is small scans all of it, and keeps doing so
        // while a campaign fills it: looking up one call took 80 us instead of 5.
        ("enable_seqscan", "off"),
        // Otherwise each rollback of `pool_options` logs a warning.
        ("client_min_messages", "error"),
    ]))
}

/// Connection options of everything but migrations: the role that sees all tenants' rows.
fn system_options(config: &Config, process: &str) -> anyhow::Result<PgConnectOptions> {
    Ok(connect_options(config, process)?.options([("role", "peal_system")]))
}

/// Plans each statement once. Those of workers and callbacks are few, select by key, and take
/// longer to plan than to run. Not for lists with many optional filters.
fn with_generic_plans(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("plan_cache_mode", "force_generic_plan")])
}

/// Limits a statement's time: a client waits for the response, others for the connection.
fn with_statement_timeout(options: PgConnectOptions, config: &Config) -> PgConnectOptions {
    let limit_ms = config.limits.statement_timeout.as_millis();
    options.options([("statement_timeout", limit_ms.to_string())])
}

/// Options of every pool: a connection is handed out outside any transaction.
///
/// A request or task that is cancelled while it opens a transaction leaves it open (sqlx 0.9.0,
/// its issue 4393), and later statements on the connection without a transaction of their own
/// would never be committed. The rollback replaces the ping that a pool sends before it hands out
/// a connection, and costs as much.
#[must_use]
pub fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new()
        .test_before_acquire(false)
        .before_acquire(|connection, _| {
            Box::pin(async move {
                connection.execute("rollback").await?;
                Ok(true)
            })
        })
}

async fn open_pool(config: &Config, process: ProcessKind) -> anyhow::Result<PgPool> {
    let options = system_options(config, process.name())?;
    let options = match process {
        ProcessKind::Api => with_statement_timeout(options, config),
        ProcessKind::Worker => with_generic_plans(options),
        ProcessKind::Command => options,
    };
    pool_options()
        .max_connections(config.database_pool)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .context(
            "cannot connect to PostgreSQL at PEAL_DATABASE_URL \
             (run `peal-api migrate` first on a new database)",
        )
}

/// Runs migrations while other processes work. A migration locks tables one after the other, as
/// other transactions do. A migration that the server aborts to end a deadlock leaves no trace
/// and is run again.
///
/// # Errors
/// Errors of the migrator other than deadlocks, and a deadlock that keeps recurring.
pub async fn run_migrations(
    migrator: &Migrator,
    db: &mut PgConnection,
) -> std::result::Result<(), MigrateError> {
    for _ in 0..MAX_DEADLOCKS {
        match migrator.run(&mut *db).await {
            Err(MigrateError::ExecuteMigration(sqlx::Error::Database(error), version))
                if error.code().as_deref() == Some(DEADLOCK_DETECTED) =>
            {
                tracing::warn!(version, "migration aborted by a deadlock; running it again");
                // The migrator takes its lock again.
                sqlx::raw_sql("select pg_advisory_unlock_all()")
                    .execute(&mut *db)
                    .await?;
            }
            result => return result,
        }
    }
    migrator.run(db).await
}

/// Brings the database's schema up to date. Several processes may do so at once.
///
/// # Errors
/// The database does not answer, or an applied migration has been changed.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    let mut db = connect_options(config, "peal-migrate")?
        .options([
            ("lock_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
            ("enable_seqscan", "on"),
        ])
        .connect()
        .await
        .context("PostgreSQL does not answer at PEAL_DATABASE_URL")?;

    // The schema only grows: after a rollback of the build the database has migrations that this
    // build does not know, and none are missing.
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrator.set_ignore_missing(true);
    run_migrations(&migrator, &mut db)
        .await
        .context("the schema could not be migrated")?;

    db.close().await?;
    Ok(())
}

/// True when every migration of this build has been applied. A newer schema also passes:
/// migrations only add, so old and new processes run side by side.
pub async fn is_migrated(pool: &PgPool) -> Result<bool> {
    // The migrator's own table, which may be missing in the compile-time database.
    let applied: Vec<i64> =
        match sqlx::query_scalar("select version from _sqlx_migrations where success")
            .fetch_all(pool)
            .await
        {
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(UNDEFINED_TABLE) =>
            {
                return Ok(false);
            }
            applied => applied?,
        };
    Ok(MIGRATIONS
        .iter()
        .filter(|migration| !migration.migration_type.is_down_migration())
        .all(|migration| applied.contains(&migration.version)))
}

/// Fails on a schema that lacks a migration of this build.
pub async fn ensure_migrated(pool: &PgPool) -> anyhow::Result<()> {
    anyhow::ensure!(
        is_migrated(pool).await?,
        "the database schema is older than this build: run `peal-api migrate` of this version first"
    );
    Ok(())
}
