//! What everything runs on: connections to the world outside, made once per process and handed
//! to whoever needs them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::ExposeSecret;
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::bells::Bells;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Result;
use crate::mail::Mailer;
use crate::store::Store;
use crate::telephony::Carriers;
use crate::trunks::AccountCache;

/// The schema, up to date with this build.
static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");
/// How long a request waits for a database connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything a process shares.
pub struct Context {
    pub config: Config,
    pub pool: PgPool,
    pub bells: Bells,
    pub carriers: Carriers,
    pub accounts: AccountCache,
    pub mailer: Mailer,
    pub store: Store,
    pub clock: Clock,
}

impl Context {
    /// Connects to everything the configuration names. PostgreSQL must answer; Redis need not.
    /// To be called in a tokio runtime.
    ///
    /// # Errors
    /// Says what could not be reached or opened.
    pub async fn connect(config: Config, process: &str) -> anyhow::Result<Arc<Self>> {
        let pool = open_pool(&config, process).await?;
        let redis_url = config.redis_url.as_ref().map(ExposeSecret::expose_secret);
        let bells = Bells::new(redis_url, &config.redis_prefix).context("PEAL_REDIS_URL")?;
        let mailer = match &config.smtp_url {
            Some(url) => {
                Mailer::smtp(url.expose_secret(), &config.mail_from).context("PEAL_SMTP_URL")?
            }
            None => Mailer::files(&config.mail_dir, &config.mail_from).context("PEAL_MAIL_DIR")?,
        };
        Ok(Arc::new(Self {
            pool,
            bells,
            carriers: Carriers::new()?,
            accounts: AccountCache::default(),
            mailer,
            store: Store::open(&config.store_url).context("PEAL_STORE_URL")?,
            clock: Clock::default(),
            config,
        }))
    }
}

async fn open_pool(config: &Config, process: &str) -> anyhow::Result<PgPool> {
    let options: PgConnectOptions = config
        .database_url
        .expose_secret()
        .parse()
        .context("PEAL_DATABASE_URL")?;
    PgPoolOptions::new()
        .max_connections(config.database_pool)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options.application_name(process))
        .await
        .context("PostgreSQL does not answer at PEAL_DATABASE_URL")
}

/// Brings the database's schema up to date. Several processes may do so at once.
///
/// # Errors
/// When the database does not answer, or a migration that was applied has been changed.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    let pool = open_pool(config, "peal-migrate").await?;
    MIGRATIONS
        .run(&pool)
        .await
        .context("the schema could not be migrated")?;
    pool.close().await;
    Ok(())
}

/// Whether every migration of this build has been applied.
///
/// # Errors
/// When the database does not answer, or was never migrated.
pub async fn is_migrated(pool: &PgPool) -> Result<bool> {
    // The migrator's own table, which the compile-time checker may not have.
    let applied: Vec<i64> =
        sqlx::query_scalar("select version from _sqlx_migrations where success order by version")
            .fetch_all(pool)
            .await?;
    Ok(MIGRATIONS
        .iter()
        .filter(|migration| !migration.migration_type.is_down_migration())
        .all(|migration| applied.contains(&migration.version)))
}
