//! `Idempotency-Key`: a POST that carries one is read whole and fingerprinted before its handler
//! runs, so that [`Caller::change`](crate::auth::Caller::change) can tell the same request from
//! another one under the same key.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderName, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use peal_shared::error::FieldError;
use peal_shared::idempotency::Claim;
use sha2::{Digest, Sha256};

use crate::error::{Problem, Result};
use crate::server::BODY_LIMIT_BYTES;

/// The header.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_BYTES: usize = 255;

/// Reads the key, if there is one, and leaves it as an extension of the request.
pub async fn take(request: Request, next: Next) -> Result<Response> {
    let Some(key) = request.headers().get(IDEMPOTENCY_KEY) else {
        return Ok(next.run(request).await);
    };
    if request.method() != Method::POST {
        return Ok(next.run(request).await);
    }
    let is_sane = (1..=MAX_KEY_BYTES).contains(&key.len())
        && key
            .as_bytes()
            .iter()
            .all(|byte| (b' '..=b'~').contains(byte));
    let key = key.to_str().ok().filter(|_| is_sane).ok_or_else(|| {
        let told = "must be 1 to 255 printable ASCII characters, such as a UUID";
        Problem::invalid(vec![FieldError::new(
            "header",
            ["Idempotency-Key"],
            "value_error",
            told,
        )])
    })?;
    let key = key.to_owned();
    let (mut parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_LIMIT_BYTES).await.map_err(|_error| {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "the body is incomplete, or larger than this route takes; split it",
        )
    })?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let fingerprint = Sha256::new()
        .chain_update(path)
        .chain_update([0])
        .chain_update(&body)
        .finalize()
        .into();
    parts.extensions.insert(Claim { key, fingerprint });
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}
