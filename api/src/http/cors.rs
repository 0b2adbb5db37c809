//! CORS: access for web pages of other origins.
//!
//! Pages of the origins in `PEAL_CORS_ORIGINS` may send every request that any other client may
//! send. Preflight requests need no authentication and do not count towards rate limits. The
//! routes of carriers have no CORS.
//!
//! A single call rings a person's phone, so a request with an unknown `Origin` is rejected first.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::Request;
use axum::http::header::{
    AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use peal_shared::config::{Config, CorsOrigins};
use peal_shared::context::Context;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::agents::X_TOTAL_COUNT;
use crate::http::error::{IDEMPOTENT_REPLAYED, Problem, Result};
use crate::http::idempotency::IDEMPOTENCY_KEY;
use crate::http::paging::X_TRUNCATED;
use crate::http::request_info::API_KEY_HEADER;
use crate::http::{RATELIMIT_LIMIT, RATELIMIT_REMAINING, RATELIMIT_RESET, REQUEST_ID};

/// Lifetime of a preflight response in the browser's cache.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3600);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Builds the CORS layer; `None` without origins.
pub fn cors_layer(origins: &CorsOrigins) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok())
        .collect();
    if origins.is_empty() {
        return None;
    }

    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers([
            AUTHORIZATION,
            HeaderName::from_static(API_KEY_HEADER),
            CONTENT_TYPE,
            IDEMPOTENCY_KEY,
            LAST_EVENT_ID,
            REQUEST_ID,
        ])
        .expose_headers([
            REQUEST_ID,
            X_TRUNCATED,
            X_TOTAL_COUNT,
            RETRY_AFTER,
            RATELIMIT_LIMIT,
            RATELIMIT_REMAINING,
            RATELIMIT_RESET,
            IDEMPOTENT_REPLAYED,
            CONTENT_DISPOSITION,
        ])
        .max_age(PREFLIGHT_MAX_AGE);

    Some(layer)
}

/// Rejects requests of pages whose origin is neither the API's own nor an allowed one.
///
/// # Errors
/// 403 for an unknown `Origin`.
pub async fn require_known_origin(
    Extension(context): Extension<Arc<Context>>,
    request: Request,
    next: Next,
) -> Result<Response> {
    match is_allowed_origin(&context.config, request.headers()) {
        true => Ok(next.run(request).await),
        false => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "bad_origin",
            "bad Origin: pages of this origin may not place calls; an operator can allow it in PEAL_CORS_ORIGINS",
        )),
    }
}

fn is_allowed_origin(config: &Config, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };

    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_own_host = host.is_some_and(|host| {
        let page = origin.split_once("://");
        page.is_some_and(|(scheme, page)| matches!(scheme, "http" | "https") && page == host)
    });

    is_own_host
        || config.public_url.origin().ascii_serialization() == origin
        || config.cors_origins.contains(origin)
}
