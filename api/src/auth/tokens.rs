//! Session tokens: their verification, and the issue of local ones.
//!
//! The `kid` of a token selects the key, and the key determines the algorithm; the token's `alg`
//! must match it. Keys that a token contains or links to (`jwk`, `jku`, `x5u`) are ignored.
//!
//! | `kid` | verifier |
//! |---|---|
//! | `peal` | local sessions: HS256 with a key derived from the master key |
//! | one of the external issuer's | that public key: ES256 or RS256 |
//! | another, or none | HS256 with `PEAL_JWT_SECRET`, if set |

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use peal_shared::auth::external_identity::ExternalIdentity;
use peal_shared::auth::profile_claims::ProfileClaims;
use peal_shared::auth::sessions::LoginSession;
use peal_shared::config::ExternalIssuer;
use peal_shared::context::Context;
use peal_shared::platform::ids::{SessionId, UserId};
use secrecy::ExposeSecret as _;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::jwks::{JwksCache, SharedJwks};

/// Key id, issuer and audience of local tokens.
const LOCAL_ISSUER: &str = "peal";
/// Allowed difference between an issuer's clock and the local one.
const LEEWAY: Duration = Duration::from_secs(30);
/// Longest token.
const MAX_TOKEN_BYTES: usize = 8192;
/// Roles of Supabase tokens that belong to no user.
const NON_USER_ROLES: [&str; 2] = ["service_role", "anon"];

/// Identity that a verified token names.
#[derive(Clone, Debug)]
pub enum BearerIdentity {
    /// A user with a local session.
    Local { session: SessionId, user: UserId },
    /// A user of an external issuer, until the token expires.
    External {
        identity: ExternalIdentity,
        until: Option<DateTime<Utc>>,
    },
}

/// Verifies session tokens, and issues local ones.
#[derive(Clone)]
pub struct TokenCodec {
    /// The first secret signs; those of earlier master keys still verify.
    local_secrets: Vec<[u8; 32]>,
    external: Option<ExternalIssuer>,
    jwks: SharedJwks,
}

impl TokenCodec {
    pub fn new(context: &Context) -> anyhow::Result<Self> {
        let foreign = context.config.sign_in.external_issuer.clone();
        let jwks_url = foreign
            .as_ref()
            .and_then(|foreign| foreign.jwks_url.clone());
        Ok(Self {
            local_secrets: context.config.keys.session_secrets(),
            external: foreign,
            jwks: jwks_url.map(JwksCache::new).transpose()?.map(Arc::new),
        })
    }

    /// Issues the token of a session.
    pub fn issue(&self, session: &LoginSession) -> anyhow::Result<String> {
        let header = Header {
            kid: Some(LOCAL_ISSUER.to_owned()),
            ..Header::new(Algorithm::HS256)
        };

        let claims = LocalClaims {
            iss: LOCAL_ISSUER,
            aud: LOCAL_ISSUER,
            sub: session.user,
            sid: session.id,
            iat: session.opened_at.timestamp(),
            exp: session.expires_at.timestamp(),
        };

        let secret = self.local_secrets.first().context("no secret")?;
        let key = EncodingKey::from_secret(secret);
        Ok(encode(&header, &claims, &key)?)
    }

    /// Verifies a token at the time `now`; `None` for an invalid one.
    pub async fn verify(&self, token: &str, now: DateTime<Utc>) -> Option<BearerIdentity> {
        let head = TokenHeader::parse(token)?;

        if head.kid.as_deref() == Some(LOCAL_ISSUER) {
            let claims = self.local_secrets.iter().find_map(|secret| {
                let key = DecodingKey::from_secret(secret);
                verify_claims(
                    token,
                    &key,
                    Algorithm::HS256,
                    (LOCAL_ISSUER, LOCAL_ISSUER),
                    now,
                )
            })?;
            return Some(BearerIdentity::Local {
                session: claims.sid?,
                user: claims.sub.parse().ok()?,
            });
        }

        // Tokens of the external issuer: by shared secret, otherwise by public key.
        let rules = self.external.as_ref()?;
        let names = (rules.issuer.as_str(), rules.audience.as_str());
        if let Some(secret) = &rules.secret {
            let key = DecodingKey::from_secret(secret.expose_secret().as_bytes());
            if let Some(claims) = verify_claims(token, &key, Algorithm::HS256, names, now) {
                return external_identity(claims, rules);
            }
        }

        let key = self.jwks.as_ref()?.find(&head.kid?, now).await?;
        external_identity(
            verify_claims(token, &key.key, key.algorithm, names, now)?,
            rules,
        )
    }
}

fn external_identity(claims: TokenClaims, rules: &ExternalIssuer) -> Option<BearerIdentity> {
    let is_person = !claims
        .role
        .is_some_and(|role| NON_USER_ROLES.contains(&role.as_str()))
        && !claims.is_anonymous.unwrap_or_default()
        && !claims.sub.is_empty();

    let in_metadata = claims
        .user_metadata
        .as_ref()
        .and_then(|metadata| metadata.get("email_verified"));
    let is_unverified = is_denied(claims.email_verified.as_ref()) || is_denied(in_metadata);

    let profile = ProfileClaims::from_claims(claims.phone.as_ref(), claims.user_metadata.as_ref());

    let until = claims
        .exp
        .saturating_add(LEEWAY.as_secs().try_into().unwrap_or(0));
    let until = DateTime::from_timestamp(until, 0);

    is_person.then(|| BearerIdentity::External {
        identity: ExternalIdentity {
            issuer: rules.issuer.clone(),
            subject: claims.sub,
            email: claims.email.filter(|_| !is_unverified),
            claims: profile,
            issued_at: DateTime::from_timestamp(claims.iat, 0).unwrap_or_default(),
        },
        until,
    })
}

/// True when a claim is false. Some issuers send booleans as strings.
fn is_denied(claim: Option<&Value>) -> bool {
    match claim {
        None | Some(Value::Null | Value::Bool(true)) => false,
        Some(Value::String(text)) => !text.eq_ignore_ascii_case("true"),
        Some(_) => true,
    }
}

/// Header fields that are read before verification.
#[derive(Deserialize)]
struct TokenHeader {
    kid: Option<String>,
    /// Critical extensions. None is supported, so a token with any is invalid.
    crit: Option<IgnoredAny>,
}

impl TokenHeader {
    fn parse(token: &str) -> Option<Self> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }

        let head = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
        let head: Self = serde_json::from_slice(&head).ok()?;
        head.crit.is_none().then_some(head)
    }
}

#[derive(Serialize)]
struct LocalClaims {
    iss: &'static str,
    aud: &'static str,
    sub: UserId,
    sid: SessionId,
    iat: i64,
    exp: i64,
}

/// Claims of a token. Permissions are not read from it, and times are whole seconds.
#[derive(Deserialize)]
struct TokenClaims {
    sub: String,
    iat: i64,
    exp: i64,
    nbf: Option<i64>,
    sid: Option<SessionId>,
    role: Option<String>,
    email: Option<String>,
    email_verified: Option<Value>,
    phone: Option<Value>,
    /// Supabase puts `email_verified` here. Users can write it themselves, so only `false` is
    /// trusted.
    user_metadata: Option<Value>,
    is_anonymous: Option<bool>,
}

/// Verifies a token with this key and algorithm, and returns its claims.
fn verify_claims(
    token: &str,
    key: &DecodingKey,
    algorithm: Algorithm,
    (issuer, audience): (&str, &str),
    now: DateTime<Utc>,
) -> Option<TokenClaims> {
    let mut validation = Validation::new(algorithm);
    // Times are checked below, against the injected clock.
    validation.validate_exp = false;
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);

    let claims = decode::<Map<String, Value>>(token, key, &validation)
        .ok()?
        .claims;
    let claims: TokenClaims = serde_json::from_value(Value::Object(claims)).ok()?;

    let (now, leeway) = (now.timestamp(), LEEWAY.as_secs().try_into().unwrap_or(0));
    let is_current = claims.exp > now.saturating_sub(leeway)
        && claims.iat <= now.saturating_add(leeway)
        && claims
            .nbf
            .is_none_or(|nbf| nbf <= now.saturating_add(leeway));

    is_current.then_some(claims)
}
