//! Who is asking: an API key in `x-api-key`, or a session token in `Authorization: Bearer`.
//!
//! A session token is an HS256 JWT from the configured issuer for the configured audience; it
//! proves who the user is and nothing else. What they may do is read from the database for
//! every request. Every refusal looks the same. When a request has both headers, the key
//! counts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, FromRef, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use peal_shared::access::Principal;
use peal_shared::config::SessionTokens;
use peal_shared::context::Context;
use peal_shared::idempotency::Claim;
use peal_shared::ids::UserId;
use peal_shared::{api_keys, users};
use secrecy::ExposeSecret;
use serde::Deserialize;

use crate::error::Problem;

/// The header that holds an API key.
pub const API_KEY_HEADER: &str = "x-api-key";
/// How far the clocks of the issuer and ours may differ.
const LEEWAY_SECS: u64 = 30;
/// How long a key that was looked up is believed; a revoked one works for this long.
const KEY_TTL: Duration = Duration::from_millis(500);
/// Longer texts are not keys.
const MAX_KEY_BYTES: usize = 512;

/// The authenticated caller, and where the request came from.
#[derive(Clone, Debug)]
pub struct Caller {
    pub principal: Principal,
    pub origin: Origin,
}

impl std::ops::Deref for Caller {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.principal
    }
}

/// What a request brings with it besides its caller.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub ip: Option<IpAddr>,
    pub request_id: Option<String>,
    /// The `Idempotency-Key`, if one was sent.
    pub claim: Option<Claim>,
}

impl Origin {
    fn of(parts: &Parts) -> Self {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        Self {
            ip: peer.map(|peer| peer.ip().to_canonical()),
            request_id: parts
                .extensions
                .get::<RequestId>()
                .map(|RequestId(id)| id.clone()),
            claim: parts.extensions.get::<Claim>().cloned(),
        }
    }
}

/// The id of a request, as an extension of it.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Arc<Context>: FromRef<S>,
    KeyCache: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let context = Arc::<Context>::from_ref(state);
        let principal = if let Some(key) = parts.headers.get(API_KEY_HEADER) {
            let key = key.to_str().map_err(|_e| Problem::unauthorized())?;
            by_key(&context, &KeyCache::from_ref(state), key.trim()).await?
        } else if let Some(token) = bearer(&parts.headers) {
            by_token(&context, token).await?
        } else {
            None
        };
        Ok(Self {
            principal: principal.ok_or_else(Problem::unauthorized)?,
            origin: Origin::of(parts),
        })
    }
}

async fn by_key(
    context: &Context,
    cache: &KeyCache,
    key: &str,
) -> Result<Option<Principal>, Problem> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Ok(None);
    }
    let digest = context.config.keys.api_key_digest(key);
    if let Some(principal) = cache.fresh(&digest) {
        return Ok(Some(principal));
    }
    let mut db = context.pool.acquire().await?;
    let found = api_keys::principal_unscoped(&mut db, &context.config.keys, key).await?;
    if let Some(principal) = &found {
        cache.keep(digest, principal.clone());
    }
    Ok(found)
}

async fn by_token(context: &Context, token: &str) -> Result<Option<Principal>, Problem> {
    let Some(rules) = &context.config.session_tokens else {
        return Ok(None);
    };
    let Some(user) = user_of_token(rules, token, context.clock.now()) else {
        return Ok(None);
    };
    let mut db = context.pool.acquire().await?;
    Ok(users::principal_unscoped(&mut db, user).await?)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What a session token must say. The roles that it may claim are not read.
#[derive(Deserialize)]
struct Claims {
    sub: UserId,
    iat: i64,
}

/// The user that a genuine, current token names.
fn user_of_token(rules: &SessionTokens, token: &str, now: DateTime<Utc>) -> Option<UserId> {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = LEEWAY_SECS;
    validation.validate_nbf = true;
    validation.set_issuer(&[&rules.issuer]);
    validation.set_audience(&[&rules.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let key = DecodingKey::from_secret(rules.secret.expose_secret().as_bytes());
    let claims = decode::<Claims>(token, &key, &validation).ok()?.claims;
    let leeway_secs = i64::try_from(LEEWAY_SECS).ok()?;
    let issued_in_time = claims.iat <= now.timestamp().saturating_add(leeway_secs);
    issued_in_time.then_some(claims.sub)
}

/// Callers by the digest of their key, looked up lately.
#[derive(Clone, Default)]
pub struct KeyCache {
    entries: Arc<Mutex<HashMap<[u8; 32], LookedUp>>>,
}

/// When a key was looked up, and whose it is.
type LookedUp = (Instant, Principal);

impl KeyCache {
    fn fresh(&self, digest: &[u8; 32]) -> Option<Principal> {
        let entries = self.entries.lock().ok()?;
        let (looked_up, principal) = entries.get(digest)?;
        (looked_up.elapsed() < KEY_TTL).then(|| principal.clone())
    }

    fn keep(&self, digest: [u8; 32], principal: Principal) {
        if let Ok(mut entries) = self.entries.lock() {
            entries.retain(|_, (looked_up, _)| looked_up.elapsed() < KEY_TTL);
            entries.insert(digest, (Instant::now(), principal));
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const USER: &str = "0198c0de-0000-7000-8000-000000000001";

    fn rules() -> SessionTokens {
        SessionTokens {
            secret: SECRET.into(),
            issuer: "peal".into(),
            audience: "authenticated".into(),
        }
    }

    /// Years from now on either side; the library reads the wall clock.
    const PAST: i64 = 1_000_000_000;
    const FUTURE: i64 = 10_000_000_000;

    fn claims() -> Value {
        json!({"sub": USER, "iss": "peal", "aud": "authenticated", "iat": PAST, "exp": FUTURE})
    }

    fn read(algorithm: Algorithm, secret: &str, claims: &Value) -> Option<UserId> {
        let key = EncodingKey::from_secret(secret.as_bytes());
        let token = encode(&Header::new(algorithm), claims, &key).unwrap();
        let now = DateTime::from_timestamp(2_000_000_000, 0).unwrap();
        user_of_token(&rules(), &token, now)
    }

    #[test]
    fn a_genuine_token_names_its_user() {
        let user = read(Algorithm::HS256, SECRET, &claims());
        assert_eq!(user, Some(USER.parse().unwrap()));
        let mut several = claims();
        several["aud"] = json!(["other", "authenticated"]);
        assert!(read(Algorithm::HS256, SECRET, &several).is_some());
    }

    #[test]
    fn every_other_token_is_refused() {
        for (claim, value) in [
            ("sub", Value::Null),
            ("sub", json!("somebody")),
            ("iss", json!("elsewhere")),
            ("iss", Value::Null),
            ("aud", json!("anon")),
            ("aud", Value::Null),
            ("exp", json!(PAST)),
            ("exp", Value::Null),
            ("iat", Value::Null),
            ("iat", json!(FUTURE)),
            ("nbf", json!(FUTURE)),
        ] {
            let mut changed = claims();
            match &value {
                Value::Null => drop(changed.as_object_mut().unwrap().remove(claim)),
                value => changed[claim] = value.clone(),
            }
            let user = read(Algorithm::HS256, SECRET, &changed);
            assert_eq!(user, None, "{claim} = {value}");
        }
        let wrong = "another secret of more than 32 bytes";
        assert_eq!(read(Algorithm::HS256, wrong, &claims()), None);
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            assert_eq!(read(algorithm, SECRET, &claims()), None, "{algorithm:?}");
        }
        // {"alg":"none"} with the same claims and no signature.
        let genuine = encode(
            &Header::default(),
            &claims(),
            &EncodingKey::from_secret(SECRET.as_bytes()),
        )
        .unwrap();
        let body = genuine.split('.').nth(1).unwrap();
        let now = DateTime::from_timestamp(2_000_000_000, 0).unwrap();
        for forged in [
            format!("eyJhbGciOiJub25lIn0.{body}."),
            format!("eyJhbGciOiJub25lIn0.{body}"),
            genuine.rsplit_once('.').unwrap().0.to_owned() + ".",
            String::new(),
            "a.b.c".to_owned(),
        ] {
            assert_eq!(user_of_token(&rules(), &forged, now), None, "{forged}");
        }
    }

    #[test]
    fn only_a_bearer_header_holds_a_token() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("abc", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, header.parse().unwrap());
            assert_eq!(bearer(&headers), token, "{header}");
        }
    }
}
