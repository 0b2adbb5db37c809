//! HTTP server: the routes of all features, the layers around them, and the shutdown.
//!
//! Layers, from the outside: request id, span, log line, metrics and rendering of problems
//! ([`request_middleware`]); a panic becomes a 500; ordinary routes have a timeout of 30 seconds
//! and bodies of at most two megabytes; users' requests wait for a permit of their class
//! ([`crate::limits::load_shed`]). Callbacks and health checks bypass the classes. Uploads and event streams
//! have their own limits. CORS ([`crate::http::cors`]) applies to all routes but the carriers'.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use peal_shared::context::Context;
use peal_shared::platform::ids::JobId;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::TimeoutLayer;
use tracing::Instrument as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::batches::BATCH_CALL_PATH;
use crate::http::error::{Problem, render_problem};
use crate::http::request_info::{API_KEY_HEADER, ClientIp, RequestId};
use crate::http::{BODY_LIMIT_BYTES, REQUEST_ID, connections, cors, idempotency, metrics, openapi};
use crate::limits::load_shed::{limit_anonymous, limit_concurrency, limit_third_party};
use crate::limits::rate_limit::RateLimitHeaders;
use crate::state::AppState;
use crate::{
    agents, analysis, audit_log, auth, batches, billing, callbacks, caller_numbers, calls, catalog,
    docs, health, orgs, removed_routes, tools, trunks, wallets, workflows,
};

/// Connections that may wait to be accepted. The usual 128 are full as soon as a carrier opens
/// some hundred at once; the kernel then drops the rest, and the clients retry a second later.
const LISTEN_BACKLOG: u32 = 4096;
/// Timeout of an ordinary request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Duration from which any request is logged.
const SLOW_REQUEST: Duration = Duration::from_secs(1);

const MAX_REQUEST_ID_BYTES: usize = 128;

/// Listens for clients.
///
/// # Errors
/// The address is in use, or not local.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A restarted process does not wait for the connections of its predecessor.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Serves until `shutdown`, then lets requests finish.
///
/// # Errors
/// Requests do not finish in time.
pub async fn serve(
    context: Arc<Context>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let api = AppState::new(Arc::clone(&context), shutdown.clone())?;
    let denied_requests = api.denied_requests.clone();
    let served = serve_routes(context, listener, router(api), shutdown).await;
    denied_requests.close().await;
    served
}

/// Serves any routes with the layers and connections of [`serve`]. The bench measures their cost
/// with it.
///
/// # Errors
/// As [`serve`].
pub async fn serve_routes(
    context: Arc<Context>,
    listener: TcpListener,
    routes: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let limits = context.config.limits;
    let open = context.metrics.http.connections.clone();
    let framed = routes
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(from_fn_with_state(context, request_middleware))
        .layer(SetSensitiveRequestHeadersLayer::new([
            AUTHORIZATION,
            HeaderName::from_static(API_KEY_HEADER),
        ]));
    connections::serve(listener, framed, &limits, open, shutdown).await
}

/// OpenAPI document of all routes.
#[must_use]
pub fn document() -> OpenApi {
    routes(None).into_openapi()
}

/// All routes with their descriptions. Layers take state from extensions, so that the document
/// can be built without state.
fn routes(pages: Option<CorsLayer>) -> OpenApiRouter<AppState> {
    let mut ordinary = with_limits(ordinary_routes());
    openapi::add_common_responses(ordinary.get_openapi_mut());

    let mut carriers = with_limits(callbacks::router());
    openapi::add_common_responses(carriers.get_openapi_mut());

    let mut streaming_routes = OpenApiRouter::new().nest(
        BATCH_CALL_PATH,
        batches::events::router()
            .route_layer(from_fn(limit_concurrency))
            .merge(batches::uploads::upload_router()),
    );
    openapi::add_idempotency_key(streaming_routes.get_openapi_mut());

    let mut routes = OpenApiRouter::with_openapi(openapi::empty_document())
        .merge(ordinary)
        .merge(streaming_routes)
        .fallback(async || Problem::route_not_found())
        .layer(option_layer(pages))
        .merge(carriers);

    openapi::complete_document(routes.get_openapi_mut());
    routes
}

/// Routes with short requests.
fn ordinary_routes() -> OpenApiRouter<AppState> {
    let batch_routes = batches::router()
        .merge(batches::rows::router())
        .merge(batches::uploads::router());

    OpenApiRouter::new()
        .merge(agents::router())
        .merge(agents::clone::router())
        .merge(caller_numbers::router())
        .merge(caller_numbers::mapping::router())
        .merge(trunks::router())
        .merge(tools::router())
        .merge(tools::mcp_servers::router())
        .merge(tools::mcp_tools::router())
        .merge(agents::tools::router())
        .merge(analysis::router())
        .merge(agents::analysis::router())
        .merge(workflows::router())
        .nest("/api/call", calls::router())
        .nest(BATCH_CALL_PATH, batch_routes)
        .merge(auth::login::router())
        .merge(orgs::router())
        .merge(orgs::me::router())
        .merge(orgs::members::router())
        .merge(auth::api_keys::router())
        .merge(orgs::feature_flags::router())
        .merge(audit_log::router())
        .merge(catalog::providers::router())
        .merge(catalog::noise_assets::router())
        .merge(catalog::voices::router())
        .merge(billing::prices::router())
        .merge(orgs::pricing::router())
        .merge(wallets::router())
        .nest("/api/v1/billing", billing::router())
        .nest("/billing", openapi::alias_routes(billing::router()))
        .merge(billing::earnings::router())
        .route_layer(from_fn(limit_concurrency))
        .merge(
            tools::third_party_router()
                .merge(tools::mcp_servers::third_party_router())
                .merge(tools::mcp_tools::third_party_router())
                .route_layer(from_fn(limit_third_party)),
        )
        .merge(
            auth::login::anonymous_router()
                .merge(orgs::members::anonymous_router())
                .route_layer(from_fn(limit_anonymous)),
        )
        .merge(health::router())
        .merge(docs::router(document))
        .nest("/api/v1", removed_routes::router())
        .merge(openapi::alias_routes(removed_routes::router()))
}

/// Adds the limits of time and size, and `Idempotency-Key`.
fn with_limits(routes: OpenApiRouter<AppState>) -> OpenApiRouter<AppState> {
    routes
        .layer(from_fn(idempotency::idempotency_middleware))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            REQUEST_TIMEOUT,
        ))
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
}

fn router(api: AppState) -> Router {
    let pages = cors::cors_layer(&api.context.config.cors_origins);
    Router::from(routes(pages))
        .layer(from_fn_with_state(
            api.clone(),
            auth::denied_requests::record_denied,
        ))
        .layer(Extension(api.concurrency_limits.clone()))
        .layer(Extension(Arc::clone(&api.context)))
        .with_state(api)
}

/// Middleware of every request: id, span, log line, metrics, headers and problems.
async fn request_middleware(
    State(context): State<Arc<Context>>,
    mut request: Request,
    next: Next,
) -> Response {
    let (started, began) = (Instant::now(), context.traces.begin());
    let uri = began.map(|_traced| request.uri().clone());

    let id = request_id(&request);
    let allowance = RateLimitHeaders::default();
    let sender = ClientIp::of(&request, &context.config.trusted_proxies);

    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(allowance.clone());
    if let Some(sender) = sender {
        request.extensions_mut().insert(sender);
    }

    let method = request.method().clone();

    // The pattern, not the path: callback paths contain tokens, queries contain phone numbers.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "-".to_owned(), |path| path.as_str().to_owned());

    let span = tracing::info_span!("request", request.id = id, %method, route);
    async move {
        let mut response = render_problem(next.run(request).await, &id);

        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(REQUEST_ID, id);
        }

        allowance.apply(headers);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));

        let (status, took) = (response.status(), started.elapsed());
        log_response(&route, status, took);
        metrics::record_response(&context, &route, status, took);
        if let Some(uri) = uri {
            metrics::trace_callback(&context, began, &route, &uri, status);
        }
        response
    }
    .instrument(span)
    .await
}

/// Logs a response. Carriers and probes send hundreds of requests a second: their successful
/// responses, and callbacks rejected under overload, are logged at debug level only.
fn log_response(route: &str, status: StatusCode, took: Duration) {
    let (status, ms) = (status.as_u16(), took.as_millis());
    let is_callback = route.contains("callback");
    let is_shed = is_callback && status == StatusCode::SERVICE_UNAVAILABLE.as_u16();
    let is_frequent = is_callback || route.starts_with("/health");
    if is_shed || is_frequent && status < 400 && took < SLOW_REQUEST {
        tracing::debug!(status, ms, "response sent");
    } else {
        tracing::info!(status, ms, "response sent");
    }
}

/// Request id of the client when it is valid, else a generated one.
fn request_id(request: &Request) -> String {
    request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| {
            (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
        })
        .map_or_else(|| JobId::new().to_string(), str::to_owned)
}

fn panic_response(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default();

    Problem::from(anyhow::anyhow!("panic: {message}")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn id_of(header: &str) -> String {
        let request = Request::builder().header(REQUEST_ID, header);
        request_id(&request.body(Body::empty()).unwrap())
    }

    #[test]
    fn a_valid_request_id_is_kept_and_an_invalid_one_replaced() {
        assert_eq!(id_of("abc-1_2.3:4"), "abc-1_2.3:4");
        for odd in ["", "a b", "<script>", "a\"b", &"x".repeat(129)] {
            let id = id_of(odd);
            assert_ne!(id, odd);
            assert_eq!(id.len(), 36);
        }
    }
}
