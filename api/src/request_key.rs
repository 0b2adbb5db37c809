//! `Idempotency-Key`: a POST that carries one is read whole and fingerprinted before its handler
//! runs, so that [`Caller::change`](crate::auth::Caller::change) can tell the same request from
//! another one under the same key. A body that is too long for that is fingerprinted by its
//! handler, on its way through ([`StreamedKey`]).

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, OriginalUri, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use peal_shared::error::FieldError;
use peal_shared::idempotency::Claim;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::auth::Caller;
use crate::error::{Problem, Result};
use crate::extract::in_time;
use crate::server::BODY_LIMIT_BYTES;

/// The header.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_BYTES: usize = 255;
const INSANE: &str = "must be 1 to 255 printable ASCII characters, such as a UUID";

/// Reads the key, if there is one, and leaves it as an extension of the request.
pub async fn take(request: Request, next: Next) -> Result<Response> {
    if request.method() != Method::POST {
        return Ok(next.run(request).await);
    }
    let Some(key) = sent(request.headers())? else {
        return Ok(next.run(request).await);
    };
    let (mut parts, body) = request.into_parts();
    let body = in_time(to_bytes(body, BODY_LIMIT_BYTES))
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
    parts.extensions.insert(Claim { key, fingerprint });
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

/// The key of a request whose body is longer than memory, if it has one.
pub struct StreamedKey(pub Option<Unclaimed>);

/// A key of which it is not known yet what it was sent with.
pub struct Unclaimed {
    pub key: String,
    path: String,
}

impl Unclaimed {
    /// The key with what it was sent with: something whose SHA-256 this is.
    pub fn with(&self, sha256: &[u8; 32]) -> Claim {
        Claim {
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
        let key = sent(&parts.headers)?.map(|key| Unclaimed {
            key,
            path: path.to_owned(),
        });
        Ok(Self(key))
    }
}

fn sent(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let is_sane = is_sane(key.as_bytes());
    let key = key.to_str().ok().filter(|_| is_sane);
    key.map(|key| Some(key.to_owned()))
        .ok_or_else(|| wrong(("header", "Idempotency-Key"), "value_error", INSANE))
}

/// Makes sure that a request which moves money can be told from the same one sent again: by the
/// header, or by the body's `idempotency_key`. Answers with a key for the ledger, where it is
/// known for ever.
///
/// # Errors
/// When there is no key, or there are two.
pub fn demand(
    caller: &mut Caller,
    given: Option<&str>,
    path: &str,
    body: &impl Serialize,
) -> Result<String> {
    let claim = &mut caller.origin.claim;
    match (&claim, given) {
        (Some(claim), Some(given)) if claim.key != given => {
            let told = "is not the Idempotency-Key of the header: send one of them";
            return Err(wrong(("body", "idempotency_key"), "value_error", told));
        }
        (Some(_), _) => {}
        (None, Some(given)) if is_sane(given.as_bytes()) => {
            let body = serde_json::to_vec(body).map_err(peal_shared::Error::from)?;
            *claim = Some(Claim {
                key: given.to_owned(),
                fingerprint: fingerprint(path, &body),
            });
        }
        (None, Some(_)) => {
            return Err(wrong(("body", "idempotency_key"), "value_error", INSANE));
        }
        (None, None) => {}
    }
    let key = claim.as_ref().map(|claim| claim.key.clone());
    let key = key.ok_or_else(|| {
        let told = "is missing: send a key of your choice, such as a UUID, so that the request moves \
                    money once even when it is sent twice (or idempotency_key in the body)";
        wrong(("header", "Idempotency-Key"), "missing", told)
    })?;
    let mine = Sha256::new()
        .chain_update(caller.user.0.as_bytes())
        .chain_update(key);
    Ok(mine
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

fn is_sane(key: &[u8]) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len()) && key.iter().all(|byte| (b' '..=b'~').contains(byte))
}

fn wrong((place, name): (&'static str, &str), kind: &'static str, told: &str) -> Problem {
    Problem::invalid(vec![FieldError::new(place, [name], kind, told)])
}
