//! `Idempotency-Key`: a POST with a key is read whole and fingerprinted before its handler runs,
//! so that [`Caller::begin_write`](crate::auth::Caller::begin_write) can distinguish a repeated
//! request from another one under the same key. The handler of a streamed body fingerprints it
//! while streaming ([`StreamedKey`]).

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, OriginalUri, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use peal_shared::idempotency::IdempotencyClaim;
use peal_shared::platform::error::FieldError;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::auth::Caller;
use crate::http::BODY_LIMIT_BYTES;
use crate::http::error::{Problem, Result};
use crate::http::extract::with_body_timeout;

/// Name of the header.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_BYTES: usize = 255;
const INVALID_KEY: &str = "must be 1 to 255 printable ASCII characters, such as a UUID";

/// Middleware that adds the key and the fingerprint as a request extension.
pub async fn idempotency_middleware(request: Request, next: Next) -> Result<Response> {
    if request.method() != Method::POST {
        return Ok(next.run(request).await);
    }
    let Some(key) = key_in(request.headers())? else {
        return Ok(next.run(request).await);
    };

    let (mut parts, body) = request.into_parts();
    let body = with_body_timeout(to_bytes(body, BODY_LIMIT_BYTES))
        .await?
        .map_err(|_error| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "the body is incomplete, or larger than this route takes; split it",
            )
        })?;

    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let fingerprint = fingerprint(path, &body);
    parts
        .extensions
        .insert(IdempotencyClaim { key, fingerprint });
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

/// Key of a request whose body is streamed, if it has one.
pub struct StreamedKey(pub Option<UnclaimedKey>);

/// Key of a request whose fingerprint is not yet known.
pub struct UnclaimedKey {
    pub key: String,
    path: String,
}

impl UnclaimedKey {
    /// Completes the claim with the SHA-256 of the body.
    pub fn claim_with(&self, sha256: &[u8; 32]) -> IdempotencyClaim {
        IdempotencyClaim {
            key: self.key.clone(),
            fingerprint: fingerprint(&self.path, sha256),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for StreamedKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let Ok(OriginalUri(uri)) = OriginalUri::from_request_parts(parts, state).await;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let key = key_in(&parts.headers)?.map(|key| UnclaimedKey {
            key,
            path: path.to_owned(),
        });
        Ok(Self(key))
    }
}

fn key_in(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let is_valid = is_valid_key(key.as_bytes());
    let key = key.to_str().ok().filter(|_| is_valid);
    key.map(|key| Some(key.to_owned()))
        .ok_or_else(|| key_error(("header", "Idempotency-Key"), "value_error", INVALID_KEY))
}

/// Requires an idempotency key for a request that moves money, in the header or as the body's
/// `idempotency_key`. Returns a key for the ledger, which keeps it for ever.
///
/// # Errors
/// No key, an invalid key, or two different keys.
pub fn require_key(
    caller: &mut Caller,
    given: Option<&str>,
    path: &str,
    body: &impl Serialize,
) -> Result<String> {
    let claim = &mut caller.origin.claim;
    match (&claim, given) {
        (Some(claim), Some(given)) if claim.key != given => {
            let message = "is not the Idempotency-Key of the header: send one of them";
            return Err(key_error(
                ("body", "idempotency_key"),
                "value_error",
                message,
            ));
        }
        (Some(_), _) => {}
        (None, Some(given)) if is_valid_key(given.as_bytes()) => {
            let body = serde_json::to_vec(body).map_err(peal_shared::Error::from)?;
            *claim = Some(IdempotencyClaim {
                key: given.to_owned(),
                fingerprint: fingerprint(path, &body),
            });
        }
        (None, Some(_)) => {
            return Err(key_error(
                ("body", "idempotency_key"),
                "value_error",
                INVALID_KEY,
            ));
        }
        (None, None) => {}
    }

    let key = claim.as_ref().map(|claim| claim.key.clone());
    let key = key.ok_or_else(|| {
        let message = "is missing: send a key of your choice, such as a UUID, so that the request \
                       moves money once even when it is sent twice (or idempotency_key in the \
                       body)";
        key_error(("header", "Idempotency-Key"), "missing", message)
    })?;

    // The ledger's keys are per user.
    let digest = Sha256::new()
        .chain_update(caller.user.0.as_bytes())
        .chain_update(key);
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn fingerprint(path: &str, body: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(path)
        .chain_update([0])
        .chain_update(body)
        .finalize()
        .into()
}

fn is_valid_key(key: &[u8]) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len()) && key.iter().all(|byte| (b' '..=b'~').contains(byte))
}

fn key_error((place, name): (&'static str, &str), kind: &'static str, message: &str) -> Problem {
    Problem::invalid(vec![FieldError::new(place, [name], kind, message)])
}
