//! HTTP connections: their limit, idle timeout and graceful shutdown.
//!
//! When the limit is reached, further connections wait in the kernel. A connection that does not
//! send the head of its next request in time is closed. This bounds slow heads and idle
//! connections alike, so the timeout must exceed the idle timeout of load balancers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use peal_shared::config::ServerLimits;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Pause after the process has no resources to accept a connection.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Longest time for requests in progress to finish at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// Serves connections until `shutdown`, then lets requests finish.
///
/// # Errors
/// Requests do not finish in time.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    limits: &ServerLimits,
    open: Gauge,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout);

    let accepting = async {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let (stream, from) = accept(&listener).await;

            // Handlers read the peer's address.
            let routes = routes
                .clone()
                .map_request(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(ConnectInfo(from));
                    request
                });
            let routes = TowerToHyperService::new(routes);

            let connection = builder.serve_connection(TokioIo::new(stream), routes);
            let connection = graceful.watch(connection);
            let open = open.clone();
            open.inc();

            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::trace!(%error, "connection failed");
                }
                open.dec();
                drop(permit);
            });
        }
    };

    // 1. Accept until the shutdown.
    shutdown.run_until_cancelled(accepting).await;

    // 2. Refuse new connections, and let requests in progress finish.
    drop(listener);
    match timeout(DRAIN_TIMEOUT, graceful.shutdown()).await {
        Ok(()) => Ok(()),
        Err(_elapsed) => anyhow::bail!("some requests did not finish in time and were aborted"),
    }
}

/// Accepts the next connection.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY could not be set");
                }
                return (stream, from);
            }
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                tracing::error!(%error, "connections cannot be accepted");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// True when one connection failed before it was accepted, and the process is healthy.
fn is_connection_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
