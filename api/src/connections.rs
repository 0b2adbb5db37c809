//! Connections: how many there are, how long one may say nothing, and how they end.
//!
//! When as many are open as may be, further ones wait in the kernel. A connection that does not
//! send the head of its next request in time is closed; that bounds both a slow head and an
//! idle connection, so the time must be longer than load balancers keep idle ones.

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

/// How long to wait after a connection could not be accepted for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long requests may go on when the process should end.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// Serves connections until `shutdown`, then lets requests finish.
///
/// # Errors
/// When requests do not finish in time.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    limits: &ServerLimits,
    open: Gauge,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header);
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let (stream, from) = accept(&listener).await;
            // Handlers ask for the peer's address.
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
                    tracing::trace!(%error, "a connection broke off");
                }
                open.dec();
                drop(place);
            });
        }
    };
    shutdown.run_until_cancelled(accepting).await;
    drop(listener);
    match timeout(DRAIN_LIMIT, graceful.shutdown()).await {
        Ok(()) => Ok(()),
        Err(_elapsed) => anyhow::bail!("some requests did not finish in time and were cut off"),
    }
}

/// The next connection that can be had.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection keeps its delay");
                }
                return (stream, from);
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether one connection went away before it was accepted, as opposed to a want of ours.
fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
