//! Web pages of other origins, which browsers let use the API when its answers allow them to.
//!
//! The pages that are named in `PEAL_CORS_ORIGINS` may send every request that any other client
//! may send. What a browser asks beforehand needs nobody to be known and uses up no allowance.
//! Carriers are no browsers: their routes stand outside.
//!
//! A single call rings somebody's phone, so whoever says that they are another page is refused
//! before anything is looked at.

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
use peal_shared::config::{Config, Origins};
use peal_shared::context::Context;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::agents::X_TOTAL_COUNT;
use crate::auth::API_KEY_HEADER;
use crate::error::{IDEMPOTENT_REPLAYED, Problem, Result};
use crate::page::X_TRUNCATED;
use crate::rates::{LIMIT, REMAINING, RESET};
use crate::request_key::IDEMPOTENCY_KEY;
use crate::server::REQUEST_ID;

/// How long a browser may remember what it was allowed.
const MAX_AGE: Duration = Duration::from_secs(3600);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What lets the pages in; nothing when there are none.
pub fn layer(origins: &Origins) -> Option<CorsLayer> {
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
            LIMIT,
            REMAINING,
            RESET,
            IDEMPOTENT_REPLAYED,
            CONTENT_DISPOSITION,
        ])
        .max_age(MAX_AGE);
    Some(layer)
}

/// Refuses what a page sends that is neither the API's own nor one of those that may.
///
/// # Errors
/// 403 for an `Origin` that is not known.
pub async fn known_origin(
    Extension(context): Extension<Arc<Context>>,
    request: Request,
    next: Next,
) -> Result<Response> {
    match is_known(&context.config, request.headers()) {
        true => Ok(next.run(request).await),
        false => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "bad_origin",
            "bad Origin: pages of this origin may not place calls; an operator names those that may in PEAL_CORS_ORIGINS",
        )),
    }
}

fn is_known(config: &Config, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_host = host.is_some_and(|host| {
        let page = origin.split_once("://");
        page.is_some_and(|(scheme, page)| matches!(scheme, "http" | "https") && page == host)
    });
    is_host
        || config.public_url.origin().ascii_serialization() == origin
        || config.origins.contains(origin)
}
