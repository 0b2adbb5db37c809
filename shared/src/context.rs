//! What everything runs on: connections to the world outside, made once per process and handed
//! to whoever needs them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::ExposeSecret;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};

use crate::access::wall::{self, Breach};
use crate::bells::Bells;
use crate::billing::estimate::Basis;
use crate::billing::tariffs::Tariffs;
use crate::clock::Clock;
use crate::config::Config;
use crate::egress::Gate;
use crate::error::Result;
use crate::mail::Mailer;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::telephony::Carriers;
use crate::tools::mcp::GatedClient;
use crate::traces::Traces;
use crate::trunks::AccountCache;

/// PostgreSQL's code for a table that does not exist.
const NO_SUCH_TABLE: &str = "42P01";
/// PostgreSQL's code for a deadlock that was ended.
const DEADLOCK: &str = "40P01";
/// How often a migration may be in one.
const DEADLOCKS: u32 = 20;
/// The schema, up to date with this build.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");
/// How long a request waits for a database connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that stands still in the middle of a transaction (frozen, or cut off from the
/// network) holds locks that everybody else waits for, so the server ends its session.
const IDLE_TRANSACTION_LIMIT: &str = "5s";
/// How long a statement waits for a lock.
const LOCK_TIMEOUT: &str = "5s";
/// Connections that only callbacks use: two writers, and answers.
const CALLBACK_CONNECTIONS: u32 = 8;
/// A carrier gives up after fifteen seconds and comes again after a 503.
const CALLBACK_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);

/// Everything a process shares.
pub struct Context {
    pub config: Config,
    pub pool: PgPool,
    /// Why row-level security does not bind this process, if it does not; as it was at its start.
    pub breach: Option<Breach>,
    /// Connections for carriers alone, so that whatever users do, callbacks get through.
    pub callbacks: PgPool,
    pub bells: Bells,
    pub carriers: Carriers,
    pub accounts: AccountCache,
    pub tariffs: Tariffs,
    pub mailer: Mailer,
    pub store: Store,
    pub clock: Clock,
    /// The way to users' URLs.
    pub gate: Gate,
    /// The way to users' MCP servers.
    pub mcp: GatedClient,
    pub metrics: Metrics,
    pub traces: Traces,
}

/// The program that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Api,
    Worker,
    /// A command that does one thing and ends.
    Command,
}

impl Process {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "peal-api",
            Self::Worker => "peal-worker",
            Self::Command => "peal-command",
        }
    }
}

impl Context {
    /// What a call would cost is estimated by this.
    #[must_use]
    pub fn basis(&self) -> Basis {
        Basis {
            at: self.clock.now(),
            hold_max_secs: self.config.hold_max_secs,
        }
    }

    /// Connects to everything the configuration names. PostgreSQL must answer; Redis need not.
    /// To be called in a tokio runtime.
    ///
    /// # Errors
    /// Says what could not be reached or opened.
    pub async fn connect(config: Config, process: Process) -> anyhow::Result<Arc<Self>> {
        let pool = open_pool(&config, process).await?;
        let breach = wall::breach_unscoped(&mut *pool.acquire().await?).await?;
        if let Some(breach) = &breach {
            tracing::error!("tenants are not kept apart: {}", breach.why);
        }
        let options = system(&config, "peal-callbacks")?;
        let callbacks = pool_options()
            .max_connections(CALLBACK_CONNECTIONS)
            .acquire_timeout(CALLBACK_ACQUIRE_TIMEOUT)
            .connect_lazy_with(planned_once(brief(options, &config)));
        let redis_url = config.redis_url.as_ref().map(ExposeSecret::expose_secret);
        let bells = Bells::new(redis_url, &config.redis_prefix).context("PEAL_REDIS_URL")?;
        let mailer = match &config.smtp_url {
            Some(url) => {
                Mailer::smtp(url.expose_secret(), &config.mail_from).context("PEAL_SMTP_URL")?
            }
            None => Mailer::files(&config.mail_dir, &config.mail_from).context("PEAL_MAIL_DIR")?,
        };
        let clock = Clock::default();
        let traces = Traces::open(config.watch.traces.as_ref(), process.name(), clock.clone())?;
        let gate = Gate::new(config.egress.clone())?;
        Ok(Arc::new(Self {
            pool,
            breach,
            callbacks,
            bells,
            carriers: Carriers::new()?,
            accounts: AccountCache::default(),
            tariffs: Tariffs::default(),
            mailer,
            store: Store::open(&config.store_url).context("PEAL_STORE_URL")?,
            clock,
            metrics: Metrics::default(),
            traces,
            mcp: GatedClient::new(gate.clone()),
            gate,
            config,
        }))
    }
}

/// How to connect. A statement waits for a lock only so long: whoever holds it longer is stuck,
/// and waiting along would spread that. Statements are short and many: compiling them costs
/// more than running them.
fn connection(config: &Config, process: &str) -> anyhow::Result<PgConnectOptions> {
    let options: PgConnectOptions = config
        .database_url
        .expose_secret()
        .parse()
        .context("PEAL_DATABASE_URL")?;
    Ok(options.application_name(process).options([
        ("lock_timeout", LOCK_TIMEOUT),
        (
            "idle_in_transaction_session_timeout",
            IDLE_TRANSACTION_LIMIT,
        ),
        ("jit", "off"),
        // Plans are kept. One that was made when a table was small reads all of it, and goes on
        // doing so while a campaign fills it: looking up one call took 80 us instead of 5.
        ("enable_seqscan", "off"),
        // Without this the rollback of `pool_options` would be warned of each time.
        ("client_min_messages", "error"),
    ]))
}

/// How everything but a migration connects: as the role that sees all tenants' rows.
fn system(config: &Config, process: &str) -> anyhow::Result<PgConnectOptions> {
    Ok(connection(config, process)?.options([("role", "peal_system")]))
}

/// Plans a statement once and not each time: those of workers and callbacks are few, look at what
/// they name, and take longer to plan than to run. Lists with many filters are another matter.
fn planned_once(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("plan_cache_mode", "force_generic_plan")])
}

/// Bounds a statement's time: somebody waits for the answer, and others for the connection.
fn brief(options: PgConnectOptions, config: &Config) -> PgConnectOptions {
    let limit_ms = config.limits.statement.as_millis();
    options.options([("statement_timeout", limit_ms.to_string())])
}

/// What every pool begins with: whoever gets a connection gets it outside any transaction.
///
/// A request or task that ends while it opens a transaction leaves it open (sqlx 0.9.0, its issue
/// 4393), and what the connection's next user writes without one of its own would never be
/// committed. The rollback takes the place of the ping that a pool sends before it hands out a
/// connection, and costs as much.
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

async fn open_pool(config: &Config, process: Process) -> anyhow::Result<PgPool> {
    let options = system(config, process.name())?;
    let options = match process {
        Process::Api => brief(options, config),
        Process::Worker => planned_once(options),
        Process::Command => options,
    };
    pool_options()
        .max_connections(config.database_pool)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .context(
            "PostgreSQL cannot be used at PEAL_DATABASE_URL \
             (a new database wants `peal-api migrate` first)",
        )
}

/// Runs migrations while other processes work. A migration locks tables one after the other, and
/// so do they; when the server ends a deadlock at the migration's cost, nothing of it has
/// happened and it is run again.
///
/// # Errors
/// As the migrator, for whatever is no deadlock or keeps on being one.
pub async fn run_migrations(
    migrator: &Migrator,
    db: &mut PgConnection,
) -> std::result::Result<(), MigrateError> {
    for _ in 0..DEADLOCKS {
        match migrator.run(&mut *db).await {
            Err(MigrateError::ExecuteMigration(sqlx::Error::Database(error), version))
                if error.code().as_deref() == Some(DEADLOCK) =>
            {
                tracing::warn!(version, "a migration was in a deadlock and is run again");
                // The migrator takes its lock again.
                sqlx::raw_sql("select pg_advisory_unlock_all()")
                    .execute(&mut *db)
                    .await?;
            }
            ended => return ended,
        }
    }
    migrator.run(db).await
}

/// Brings the database's schema up to date. Several processes may do so at once.
///
/// # Errors
/// When the database does not answer, or a migration that was applied has been changed.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    let mut db = connection(config, "peal-migrate")?
        .options([
            ("lock_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
            ("enable_seqscan", "on"),
        ])
        .connect()
        .await
        .context("PostgreSQL does not answer at PEAL_DATABASE_URL")?;
    // The schema only ever grows, so a build that was rolled back finds migrations it does not
    // know and has nothing to add.
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrator.set_ignore_missing(true);
    run_migrations(&migrator, &mut db)
        .await
        .context("the schema could not be migrated")?;
    db.close().await?;
    Ok(())
}

/// Whether every migration of this build has been applied. A schema that is ahead of this build
/// will do: migrations only add, so that old and new processes run side by side.
///
/// # Errors
/// When the database does not answer.
pub async fn is_migrated(pool: &PgPool) -> Result<bool> {
    // The migrator's own table, which the compile-time checker may not have.
    let applied: Vec<i64> =
        match sqlx::query_scalar("select version from _sqlx_migrations where success")
            .fetch_all(pool)
            .await
        {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NO_SUCH_TABLE) => {
                return Ok(false);
            }
            applied => applied?,
        };
    Ok(MIGRATIONS
        .iter()
        .filter(|migration| !migration.migration_type.is_down_migration())
        .all(|migration| applied.contains(&migration.version)))
}

/// Refuses to work on a schema that lacks a migration of this build.
///
/// # Errors
/// Says what to do; or the database does not answer.
pub async fn ensure_migrated(pool: &PgPool) -> anyhow::Result<()> {
    anyhow::ensure!(
        is_migrated(pool).await?,
        "the database's schema is older than this build: run `peal-api migrate` of this version first"
    );
    Ok(())
}
