//! `GET /metrics`, on its own listener: carriers and users reach the API's listener and must not
//! see operators' metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::context::Context;
use crate::metrics::SampleSources;

/// Most connections served at once.
const MAX_CONNECTIONS: usize = 16;
/// Time to send the head of a request, idle time included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(65);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
const OPENMETRICS_CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Opens the listener at `PEAL_METRICS_LISTEN`; `None` when it is unset.
///
/// # Errors
/// The address is in use, or not local.
pub async fn listen(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = config.telemetry.metrics_listen else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("PEAL_METRICS_LISTEN: cannot listen on {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "serving metrics");
    Ok(Some(listener))
}

/// Serves the metrics of the process until `shutdown`.
pub async fn serve(context: Arc<Context>, listener: TcpListener, shutdown: CancellationToken) {
    let accepting = accept_connections(Arc::clone(&context), listener, shutdown.clone());
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = accepting => {}
        () = context.metrics.sampled.probe_pools(sample_sources(&context)) => {}
    }
}

async fn accept_connections(
    context: Arc<Context>,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _from)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };

        let context = Arc::clone(&context);
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| respond(&context, request));
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let served = shutdown.run_until_cancelled(serving).await;
            if let Some(Err(error)) = served {
                tracing::debug!(%error, "metrics connection failed");
            }
            drop(slot);
        });
    }
}

async fn respond<B>(
    context: &Context,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let found = request.method() == Method::GET && request.uri().path() == "/metrics";
    if !found {
        let mut response = Response::new(Full::from("GET /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    context
        .metrics
        .sampled
        .refresh(sample_sources(context))
        .await;
    let mut response = Response::new(Full::from(context.metrics.encode_text()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, OPENMETRICS_CONTENT_TYPE);
    Ok(response)
}

fn sample_sources(context: &Context) -> SampleSources<'_> {
    SampleSources {
        pool: &context.pool,
        callbacks: &context.callback_pool,
        wakeups: &context.wakeups,
    }
}
