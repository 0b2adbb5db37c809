//! HTTP plumbing of all routes: extraction and errors, envelopes and pages, idempotency, the
//! OpenAPI document, CORS, connections and their metrics.
//!
//! Nothing here knows a feature. Names that several layers share stand in this file.

pub mod audited_tx;
pub mod connections;
pub mod cors;
pub mod envelope;
pub mod error;
pub mod extract;
pub mod force;
pub mod idempotency;
pub mod json_shape;
pub mod metrics;
pub mod openapi;
pub mod paging;
pub mod request_info;

use axum::http::HeaderName;

/// Largest body of an ordinary request.
pub const BODY_LIMIT_BYTES: usize = 2 * 1024 * 1024;
/// Header with the request's id, repeated in the response.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Requests that the caller may send in a burst.
pub const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
/// Requests that the caller may send now.
pub const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
/// Seconds until the burst is whole again.
pub const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
