//! Logs, filtered by `RUST_LOG`: JSON lines by default, text on a terminal or with
//! `PEAL_LOG=text`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error and installs the process's TLS provider.
#[expect(
    clippy::disallowed_methods,
    reason = "logging starts before the settings are read"
)]
pub fn init() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info,sqlx=warn"));
    let text = std::env::var("PEAL_LOG").map_or_else(
        |_unset| std::io::stderr().is_terminal(),
        |form| form == "text",
    );

    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if text {
        subscriber.try_init()
    } else {
        subscriber.json().try_init()
    };
    if started.is_err() {
        tracing::debug!("logging is already initialized");
    }

    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is already installed");
    }
}
