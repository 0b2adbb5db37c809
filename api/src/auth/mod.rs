//! Authentication: an API key in `x-api-key`, or a session token in `Authorization: Bearer`.
//!
//! A session token ([`tokens`]) only proves the user's identity. Permissions are read from the
//! database for every request. All failures get the same response. When a request has both
//! headers, only the key is checked.

pub mod api_keys;
pub mod denied_requests;
mod jwks;
pub mod login;
pub mod stream_revalidation;
pub mod tokens;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{FromRef, FromRequestParts, OriginalUri};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use peal_shared::access::Principal;
use peal_shared::access::permissions::Permissions;
use peal_shared::api_keys::KeyHolder;
use peal_shared::audit::DeniedCaller;
use peal_shared::auth::{external_identity, sessions};
use peal_shared::context::Context;
use peal_shared::idempotency::IdempotencyClaim;
use peal_shared::platform::ids::SessionId;
use peal_shared::platform::secret::may_be_api_key;

use crate::http::error::Problem;
use crate::http::request_info::{API_KEY_HEADER, CallerSlot, ClientIp, RequestId};
use crate::limits::rate_limit::{RateLimitHeaders, RequestRateLimits};
use tokens::{BearerIdentity, TokenCodec};

/// Lifetime of a cached key; a revoked one works for this long.
const KEY_TTL: Duration = Duration::from_millis(500);
/// Longest API key.
const MAX_KEY_BYTES: usize = 512;

/// The authenticated caller, and the origin of the request.
#[derive(Clone, Debug)]
pub struct Caller {
    pub principal: Principal,
    /// Session of a token of the built-in login.
    pub session: Option<SessionId>,
    /// Expiry of an external issuer's token.
    pub until: Option<DateTime<Utc>>,
    pub origin: RequestOrigin,
}

/// Result of a successful authentication.
struct AuthenticatedCaller {
    permissions: Permissions,
    session: Option<SessionId>,
    until: Option<DateTime<Utc>>,
}

impl std::ops::Deref for Caller {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.principal
    }
}

/// Facts of a request besides its caller.
#[derive(Clone, Debug, Default)]
pub struct RequestOrigin {
    pub ip: Option<IpAddr>,
    pub request_id: Option<String>,
    /// The `Idempotency-Key`, if one was sent.
    pub claim: Option<IdempotencyClaim>,
    /// Slot in which the middleware finds the caller after the request.
    pub caller_slot: CallerSlot,
}

impl RequestOrigin {
    fn of(parts: &Parts) -> Self {
        Self {
            ip: parts.extensions.get::<ClientIp>().map(|ClientIp(ip)| *ip),
            request_id: parts
                .extensions
                .get::<RequestId>()
                .map(|RequestId(id)| id.clone()),
            claim: parts.extensions.get::<IdempotencyClaim>().cloned(),
            caller_slot: parts
                .extensions
                .get::<CallerSlot>()
                .cloned()
                .unwrap_or_default(),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestOrigin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Arc<Context>: FromRef<S>,
    KeyCache: FromRef<S>,
    TokenCodec: FromRef<S>,
    RequestRateLimits: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let context = Arc::<Context>::from_ref(state);
        let origin = RequestOrigin::of(parts);

        // 1. Authenticate by the key, or by the token.
        let found = if let Some(key) = parts.headers.get(API_KEY_HEADER) {
            let key = key.to_str().unwrap_or_default();
            let cache = KeyCache::from_ref(state);
            let permissions =
                authenticate_key(&context, &cache, key.trim(), &origin.caller_slot).await?;
            permissions.map(|known| AuthenticatedCaller {
                permissions: known,
                session: None,
                until: None,
            })
        } else if let Some(token) = bearer_token(&parts.headers) {
            authenticate_token(&context, &TokenCodec::from_ref(state), token, &origin).await?
        } else {
            None
        };

        // 2. Count failures per address, and requests per caller.
        let rates = RequestRateLimits::from_ref(state);
        let found = found.ok_or_else(|| rates.refuse_credential(origin.ip))?;
        let known = found.permissions;

        origin
            .caller_slot
            .set(DeniedCaller::Authenticated(known.principal.clone()));
        let remaining = rates.check_caller(&known.principal)?;
        if let Some(allowance) = parts.extensions.get::<RateLimitHeaders>() {
            allowance.record(remaining);
        }

        // 3. Check the permission for the route. A nested router strips the prefix of the path.
        let original = parts.extensions.get::<OriginalUri>();
        let path = original.map_or_else(|| parts.uri.path(), |OriginalUri(uri)| uri.path());
        known.allow(parts.method.as_str(), path)?;

        Ok(Self {
            principal: known.principal,
            session: found.session,
            until: found.until,
            origin,
        })
    }
}

async fn authenticate_key(
    context: &Context,
    cache: &KeyCache,
    key: &str,
    caller_slot: &CallerSlot,
) -> Result<Option<Permissions>, Problem> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !may_be_api_key(key) {
        return Ok(None);
    }

    let digest = context.config.keys.api_key_digest(key);
    if let Some(known) = cache.get(&digest) {
        return Ok(Some(known));
    }

    // The age of a cache entry counts from before the query, which may return an older state.
    let read_at = Instant::now();
    let mut db = context.pool.acquire().await?;

    match peal_shared::api_keys::find_holder_unscoped(&mut db, &context.config.keys, key).await? {
        KeyHolder::Active(known) => {
            cache.insert(digest, read_at, known.clone());
            Ok(Some(known))
        }
        KeyHolder::Inactive(org, user, key) => {
            caller_slot.set(DeniedCaller::Expired(org, user, Some(key)));
            Ok(None)
        }
        KeyHolder::Unknown => Ok(None),
    }
}

async fn authenticate_token(
    context: &Context,
    tokens: &TokenCodec,
    token: &str,
    origin: &RequestOrigin,
) -> Result<Option<AuthenticatedCaller>, Problem> {
    let now = context.clock.now();
    let Some(bearer) = tokens.verify(token, now).await else {
        return Ok(None);
    };

    let mut db = context.pool.acquire().await?;
    match bearer {
        BearerIdentity::Local { session, user } => {
            let known = sessions::principal_unscoped(&mut db, session, user, now).await?;

            if known.is_none()
                && let Some(org) = sessions::org_of_unscoped(&mut db, session, user).await?
            {
                origin
                    .caller_slot
                    .set(DeniedCaller::Expired(org, user, None));
            }

            Ok(known.map(|known| AuthenticatedCaller {
                permissions: known,
                session: Some(session),
                until: None,
            }))
        }
        BearerIdentity::External { identity, until } => {
            let mut known = external_identity::principal_unscoped(&mut db, &identity).await?;

            if known.is_none() {
                let sign_up = context.config.sign_in.sign_up;
                external_identity::provision_unscoped(&mut db, &identity, sign_up, origin.ip)
                    .await?;
                known = external_identity::principal_unscoped(&mut db, &identity).await?;
            }

            Ok(known.map(|known| AuthenticatedCaller {
                permissions: known,
                session: None,
                until,
            }))
        }
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Recently read callers, by the digest of their key.
#[derive(Clone, Default)]
pub struct KeyCache {
    entries: Arc<Mutex<HashMap<[u8; 32], CachedPermissions>>>,
}

/// Time of the query, and the permissions of the key.
type CachedPermissions = (Instant, Permissions);

impl KeyCache {
    fn get(&self, digest: &[u8; 32]) -> Option<Permissions> {
        let entries = self.entries.lock().ok()?;
        let (read_at, known) = entries.get(digest)?;
        (read_at.elapsed() < KEY_TTL).then(|| known.clone())
    }

    fn insert(&self, digest: [u8; 32], read_at: Instant, known: Permissions) {
        if let Ok(mut entries) = self.entries.lock() {
            entries.retain(|_, (read_at, _)| read_at.elapsed() < KEY_TTL);
            entries.insert(digest, (read_at, known));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_header_contains_a_token() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("abc", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, header.parse().unwrap());
            assert_eq!(bearer_token(&headers), token, "{header}");
        }
    }
}
