//! Constructors of HTTP clients; no other code builds one. Each client has its own timeouts and
//! follows no redirect.

use std::time::Duration;

use reqwest::dns::Resolve;
use reqwest::redirect::Policy;

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds a client for requests that must not be repeated or redirected, such as creating a call.
///
/// # Errors
/// Fails when the TLS roots of the machine cannot be read.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that builds HTTP clients"
)]
pub fn carrier_client(total_timeout: Duration) -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(total_timeout)
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(512)
        .tcp_nodelay(true)
        .user_agent(concat!("peal/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

/// Builds the client for users' URLs, for the outbound client (`egress`) only. It connects only to
/// the addresses that `resolver` returns, uses no proxy and decompresses nothing.
///
/// # Errors
/// Fails when the TLS roots of the machine cannot be read.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that builds HTTP clients"
)]
pub(crate) fn outbound_client(
    resolver: impl Resolve + 'static,
    connect_timeout: Duration,
    total_timeout: Duration,
) -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .dns_resolver(std::sync::Arc::new(resolver))
        .connect_timeout(connect_timeout)
        .timeout(total_timeout)
        .pool_idle_timeout(Duration::from_secs(15))
        .pool_max_idle_per_host(8)
        .user_agent(concat!("peal/", env!("CARGO_PKG_VERSION")))
        .build()?)
}
