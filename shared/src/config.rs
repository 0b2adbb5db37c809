//! Settings, from flags or `PEAL_*` environment variables. All invalid settings are reported at
//! once, by name, so that one restart is enough to correct them.

mod limits;
mod money;
mod origins;
mod proxies;
mod sign_in;
pub mod uploads;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use secrecy::SecretString;
use url::Url;

use crate::outbound;
use crate::platform::secret::KeyRing;
use uploads::IngestLimits;

pub use limits::{LimitSettings, ServerLimits};
pub use money::MoneySettings;
pub use origins::{CorsOrigins, CorsSettings};
pub use proxies::{ProxySettings, TrustedProxies};
pub use sign_in::{ExternalIssuer, SignInConfig, SignInSettings, SignUpPolicy};
pub use watch::{TelemetryConfig, TelemetrySettings, TracesConfig};

/// Settings as typed. `--help` shows these comments, below the options of the command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// PostgreSQL URL: postgres://user:password@host:5432/peal
    #[arg(long, env = "PEAL_DATABASE_URL", hide_env_values = true, global = true)]
    pub database_url: Option<String>,
    /// Most connections of this process to PostgreSQL.
    #[arg(long, env = "PEAL_DATABASE_POOL", default_value = "20", global = true)]
    pub database_pool: String,
    /// Redis URL for wakeups: redis://host:6379. Optional: without it work starts seconds later.
    #[arg(long, env = "PEAL_REDIS_URL", hide_env_values = true, global = true)]
    pub redis_url: Option<String>,
    /// Prefix of every Redis key, so that installations can share a server.
    #[arg(long, env = "PEAL_REDIS_PREFIX", default_value = "peal", global = true)]
    pub redis_prefix: String,
    /// 32 random bytes in base64 (`openssl rand -base64 32`): seals credentials, signs call URLs.
    #[arg(long, env = "PEAL_MASTER_KEY", hide_env_values = true, global = true)]
    pub master_key: Option<String>,
    /// Earlier master keys, separated by commas, until no secret is sealed under them.
    #[arg(
        long,
        env = "PEAL_MASTER_KEY_PREVIOUS",
        hide_env_values = true,
        global = true
    )]
    pub master_key_previous: Option<String>,
    /// URL at which carriers reach the API: https://peal.example.com
    #[arg(long, env = "PEAL_PUBLIC_URL", global = true)]
    pub public_url: Option<String>,
    /// Address the API listens on.
    #[arg(
        long,
        env = "PEAL_LISTEN",
        default_value = "127.0.0.1:8080",
        global = true
    )]
    pub listen: String,
    /// Secret of another issuer's HS256 session tokens, at least 32 bytes.
    #[arg(long, env = "PEAL_JWT_SECRET", hide_env_values = true, global = true)]
    pub jwt_secret: Option<String>,
    /// Required `iss` of those session tokens.
    #[arg(long, env = "PEAL_JWT_ISSUER", default_value = "peal", global = true)]
    pub jwt_issuer: String,
    /// Required `aud` of those session tokens.
    #[arg(
        long,
        env = "PEAL_JWT_AUDIENCE",
        default_value = "authenticated",
        global = true
    )]
    pub jwt_audience: String,
    /// Store of uploads and exports: file:///var/lib/peal or s3://bucket/prefix
    #[arg(
        long,
        env = "PEAL_STORE_URL",
        default_value = "file:///var/lib/peal/store",
        global = true
    )]
    pub store_url: String,
    /// SMTP server for mail: smtps://user:password@host. Unset: mail is written to PEAL_MAIL_DIR.
    #[arg(long, env = "PEAL_SMTP_URL", hide_env_values = true, global = true)]
    pub smtp_url: Option<String>,
    /// Directory for mail when there is no SMTP server.
    #[arg(
        long,
        env = "PEAL_MAIL_DIR",
        default_value = "/var/lib/peal/mail",
        global = true
    )]
    pub mail_dir: PathBuf,
    /// Sender of mail.
    #[arg(
        long,
        env = "PEAL_MAIL_FROM",
        default_value = "Peal <peal@localhost>",
        global = true
    )]
    pub mail_from: String,
    /// Largest CSV upload, in megabytes.
    #[arg(long, env = "PEAL_UPLOAD_MAX_MB", default_value = "200", global = true)]
    pub upload_max_mb: String,
    /// Seconds an upload may stall between two chunks before it is aborted.
    #[arg(
        long,
        env = "PEAL_UPLOAD_STALL_SECS",
        default_value = "30",
        global = true
    )]
    pub upload_stall_secs: String,
    /// Most rows of a batch.
    #[arg(
        long,
        env = "PEAL_BATCH_MAX_ROWS",
        default_value = "2000000",
        global = true
    )]
    pub batch_max_rows: String,
    /// Most columns of a CSV besides the number and the time zone.
    #[arg(
        long,
        env = "PEAL_CSV_MAX_COLUMNS",
        default_value = "50",
        global = true
    )]
    pub csv_max_columns: String,
    /// Longest cell of a CSV, in characters.
    #[arg(long, env = "PEAL_CSV_MAX_CELL", default_value = "2000", global = true)]
    pub csv_max_cell: String,
    /// Seconds, beyond ring and queue time, until a call of unknown outcome is marked as lost.
    #[arg(
        long,
        env = "PEAL_UNKNOWN_DEADLINE_SECS",
        default_value = "300",
        global = true
    )]
    pub unknown_deadline_secs: String,
    /// Seconds between queries for calls whose outcome is unknown or overdue.
    #[arg(long, env = "PEAL_RECONCILE_SECS", default_value = "30", global = true)]
    pub reconcile_secs: String,
    /// Callbacks handled at once; further ones get 503 after half a second.
    #[arg(
        long,
        env = "PEAL_INBOX_CAPACITY",
        default_value = "512",
        global = true
    )]
    pub inbox_capacity: String,
    #[command(flatten)]
    pub limits: LimitSettings,
    #[command(flatten)]
    pub money: MoneySettings,
    #[command(flatten)]
    pub sign_in: SignInSettings,
    #[command(flatten)]
    pub proxies: ProxySettings,
    #[command(flatten)]
    pub origins: CorsSettings,
    #[command(flatten)]
    pub telemetry: TelemetrySettings,
    /// Ports that tools, MCP servers and webhooks may use, such as 443,9000-9100. Unset: 443,8443.
    #[arg(long, env = "PEAL_EGRESS_PORTS", global = true)]
    pub egress_ports: Option<String>,
    /// Private networks that tools, MCP servers and webhooks may reach, such as 10.20.0.0/16.
    /// Unset: none.
    #[arg(long, env = "PEAL_EGRESS_NETWORKS", global = true)]
    pub egress_networks: Option<String>,
    /// `true` allows plain HTTP for tools, MCP servers and webhooks, for development.
    #[arg(long, env = "PEAL_EGRESS_HTTP", global = true)]
    pub egress_http: Option<String>,
}

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub database_url: SecretString,
    pub database_pool: u32,
    pub redis_url: Option<SecretString>,
    pub redis_prefix: String,
    pub keys: KeyRing,
    pub public_url: Url,
    pub listen: SocketAddr,
    pub sign_in: SignInConfig,
    pub store_url: String,
    pub smtp_url: Option<SecretString>,
    pub mail_dir: PathBuf,
    pub mail_from: String,
    pub uploads: IngestLimits,
    pub upload_stall_timeout: Duration,
    pub unknown_deadline: Duration,
    pub reconcile_interval: Duration,
    pub inbox_capacity: usize,
    pub limits: ServerLimits,
    /// Most seconds of talk covered by a hold.
    pub hold_max_secs: i32,
    pub trusted_proxies: TrustedProxies,
    /// Web pages that may use the API from a browser.
    pub cors_origins: CorsOrigins,
    pub telemetry: TelemetryConfig,
    /// Addresses that users' URLs may reach.
    pub outbound: outbound::OutboundPolicy,
}

/// Collected errors of the settings.
#[derive(Default)]
struct ConfigErrors(Vec<String>);

impl ConfigErrors {
    fn record<T>(&mut self, name: &str, value: Result<T, String>) -> Option<T> {
        value
            .map_err(|message| self.0.push(format!("{name} {message}")))
            .ok()
    }

    fn parse_number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
        &mut self,
        name: &str,
        text: &str,
        least: T,
        most: T,
    ) -> Option<T> {
        let parsed = text
            .parse()
            .ok()
            .filter(|n| *n >= least && *n <= most)
            .ok_or_else(|| format!("must be a whole number from {least} to {most}, not {text:?}"));
        self.record(name, parsed)
    }
}

impl Config {
    /// Validates the settings.
    ///
    /// # Errors
    /// A message with one line per missing or invalid setting.
    pub fn from_settings(settings: Settings) -> anyhow::Result<Self> {
        let mut errors = ConfigErrors::default();
        let config = Self::validate(settings, &mut errors);
        match config {
            Some(config) if errors.0.is_empty() => Ok(config),
            _ => Err(anyhow::anyhow!(
                "{} invalid setting(s):\n  {}",
                errors.0.len(),
                errors.0.join("\n  ")
            )),
        }
    }

    fn validate(settings: Settings, errors: &mut ConfigErrors) -> Option<Self> {
        // Every setting is checked before the first missing one ends the function.
        let egress = validate_outbound(&settings, errors);

        let database_url = errors.record(
            "PEAL_DATABASE_URL",
            parse_postgres_url(settings.database_url.as_deref()),
        );
        let keys = errors.record(
            "PEAL_MASTER_KEY",
            parse_master_keys(
                settings.master_key.as_deref(),
                settings.master_key_previous.as_deref(),
            ),
        );
        let public_url = errors.record(
            "PEAL_PUBLIC_URL",
            parse_public_url(settings.public_url.as_deref()),
        );

        let listen = settings
            .listen
            .parse()
            .map_err(|_e| "must be address:port".to_owned());
        let listen = errors.record("PEAL_LISTEN", listen);

        let sign_in = settings.sign_in.validate(
            settings.jwt_secret.as_deref(),
            &settings.jwt_issuer,
            &settings.jwt_audience,
            errors,
        );

        let uploads = validate_uploads(&settings, errors);
        let stall = &settings.upload_stall_secs;
        let stall = errors.parse_number("PEAL_UPLOAD_STALL_SECS", stall, 1, 3600);

        let pool = errors.parse_number("PEAL_DATABASE_POOL", &settings.database_pool, 2, 1000);
        let deadline = &settings.unknown_deadline_secs;
        let deadline = errors.parse_number("PEAL_UNKNOWN_DEADLINE_SECS", deadline, 0, 86_400);
        let reconcile =
            errors.parse_number("PEAL_RECONCILE_SECS", &settings.reconcile_secs, 1, 3600);
        let inbox = &settings.inbox_capacity;
        let inbox = errors.parse_number("PEAL_INBOX_CAPACITY", inbox, 1, 1_000_000);

        let limits = settings.limits.validate(pool, errors);
        let hold_max_secs = settings.money.validate(errors);
        let proxies = settings.proxies.validate(errors);
        let origins = settings.origins.validate(errors);
        let watch = settings.telemetry.validate(errors);
        let (store_url, redis_url, smtp_url, mail_from) = validate_services(&settings, errors)?;

        Some(Self {
            outbound: egress?,
            database_url: database_url?,
            database_pool: pool?,
            redis_url,
            redis_prefix: settings.redis_prefix,
            keys: keys?,
            public_url: public_url?,
            listen: listen?,
            sign_in: sign_in?,
            store_url,
            smtp_url,
            mail_dir: settings.mail_dir,
            mail_from,
            uploads: uploads?,
            upload_stall_timeout: Duration::from_secs(stall?),
            unknown_deadline: Duration::from_secs(deadline?),
            reconcile_interval: Duration::from_secs(reconcile?),
            inbox_capacity: inbox?,
            limits: limits?,
            hold_max_secs: hold_max_secs?,
            trusted_proxies: proxies?,
            cors_origins: origins?,
            telemetry: watch?,
        })
    }
}

/// URLs of the store, Redis and the mail server, and the sender of mail.
type ServiceUrls = (String, Option<SecretString>, Option<SecretString>, String);

fn validate_services(settings: &Settings, errors: &mut ConfigErrors) -> Option<ServiceUrls> {
    let store = check_scheme(settings.store_url.clone(), &["file", "s3", "memory"]);
    let redis = optional_url(settings.redis_url.clone(), &["redis", "rediss", "unix"]);
    let smtp = optional_url(settings.smtp_url.clone(), &["smtp", "smtps"]);
    let store = errors.record("PEAL_STORE_URL", store);
    let redis = errors.record("PEAL_REDIS_URL", redis);
    let smtp = errors.record("PEAL_SMTP_URL", smtp);
    let sender = errors.record("PEAL_MAIL_FROM", check_sender(settings.mail_from.clone()));
    Some((store?, redis?, smtp?, sender?))
}

/// Optional URL; an empty text counts as unset.
fn optional_url(url: Option<String>, schemes: &[&str]) -> Result<Option<SecretString>, String> {
    url.filter(|url| !url.is_empty())
        .map(|url| check_scheme(url, schemes).map(SecretString::from))
        .transpose()
}

fn check_scheme(url: String, schemes: &[&str]) -> Result<String, String> {
    match Url::parse(&url) {
        Ok(parsed) if schemes.contains(&parsed.scheme()) => Ok(url),
        _ => Err(format!(
            "must be a URL that begins with {}://",
            schemes.join(":// or ")
        )),
    }
}

fn check_sender(text: String) -> Result<String, String> {
    match text.parse::<lettre::message::Mailbox>() {
        Ok(_) => Ok(text),
        Err(_) => Err("must be a mail sender such as Peal <peal@example.com>".to_owned()),
    }
}

fn validate_uploads(settings: &Settings, errors: &mut ConfigErrors) -> Option<IngestLimits> {
    let max_mb = errors.parse_number("PEAL_UPLOAD_MAX_MB", &settings.upload_max_mb, 1_u64, 10_000);
    let max_rows = errors.parse_number(
        "PEAL_BATCH_MAX_ROWS",
        &settings.batch_max_rows,
        1,
        100_000_000,
    );
    let max_columns =
        errors.parse_number("PEAL_CSV_MAX_COLUMNS", &settings.csv_max_columns, 1, 1000);
    let max_cell = errors.parse_number("PEAL_CSV_MAX_CELL", &settings.csv_max_cell, 1, 100_000);
    Some(IngestLimits {
        max_bytes: max_mb?.saturating_mul(1_000_000),
        max_rows_per_batch: max_rows?,
        max_columns: max_columns?,
        max_cell_chars: max_cell?,
        ..IngestLimits::default()
    })
}

fn validate_outbound(
    settings: &Settings,
    errors: &mut ConfigErrors,
) -> Option<outbound::OutboundPolicy> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());

    // Users' URLs must not reach this installation's own services.
    let own = [
        &settings.database_url,
        &settings.redis_url,
        &settings.public_url,
    ];
    let mut policy = own
        .into_iter()
        .flatten()
        .filter_map(|url| Url::parse(url).ok())
        .fold(outbound::OutboundPolicy::default(), |policy, own| {
            policy.without_own_service(&own)
        });

    match given(&settings.egress_http).as_deref() {
        Some("true") => policy = policy.with_http(),
        Some("false") | None => {}
        Some(_) => {
            return errors.record("PEAL_EGRESS_HTTP", Err("must be true or false".to_owned()));
        }
    }
    if let Some(ports) = given(&settings.egress_ports) {
        policy = errors.record("PEAL_EGRESS_PORTS", policy.with_ports(&ports))?;
    }
    if let Some(networks) = given(&settings.egress_networks) {
        policy = errors.record("PEAL_EGRESS_NETWORKS", policy.with_networks(&networks))?;
    }
    Some(policy)
}

fn parse_postgres_url(url: Option<&str>) -> Result<SecretString, String> {
    let url = url.ok_or("is not set: postgres://user:password@host:5432/peal")?;
    match Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "postgres" | "postgresql") => Ok(url.into()),
        _ => Err("must be a postgres:// URL".to_owned()),
    }
}

fn parse_master_keys(present: Option<&str>, earlier: Option<&str>) -> Result<KeyRing, String> {
    let present =
        present.ok_or("is not set: create one with `openssl rand -base64 32` and keep it safe")?;
    let earlier = earlier.unwrap_or_default().split(',');
    let earlier: Result<Vec<[u8; 32]>, String> = earlier
        .filter(|text| !text.trim().is_empty())
        .map(|text| {
            parse_master_key(text)
                .map_err(|message| format!("and PEAL_MASTER_KEY_PREVIOUS {message}"))
        })
        .collect();
    KeyRing::derive_rotated(&parse_master_key(present)?, &earlier?)
        .map_err(|error| error.to_string())
}

fn parse_master_key(text: &str) -> Result<[u8; 32], String> {
    let bytes = STANDARD.decode(text.trim()).ok();
    let key = bytes.and_then(|bytes| bytes.try_into().ok());
    key.ok_or_else(|| "must be 32 bytes in base64 (`openssl rand -base64 32`)".to_owned())
}

fn parse_public_url(text: Option<&str>) -> Result<Url, String> {
    let text = text.ok_or(
        "is not set: the URL at which carriers reach the API, such as https://peal.example.com",
    )?;
    match Url::parse(text) {
        Ok(url)
            if matches!(url.scheme(), "http" | "https")
                && url.query().is_none()
                && url.fragment().is_none() =>
        {
            Ok(url)
        }
        _ => Err("must be an http(s):// URL without a query".to_owned()),
    }
}

#[cfg(test)]
mod tests;
