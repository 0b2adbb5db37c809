//! Cache of an external issuer's public keys, by key id.
//!
//! Keys are fetched on demand and fresh for ten minutes. When the issuer does not respond, stale
//! keys are used for up to an hour. A token can name any key id, so unknown ids cause at most two
//! requests to the issuer a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use peal_shared::http;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

/// Age up to which keys are fresh; a withdrawn key works for this long.
const FRESH: TimeDelta = TimeDelta::minutes(10);
/// Age up to which stale keys are used when the issuer does not respond.
const LAST_GOOD: TimeDelta = TimeDelta::hours(1);
/// Shortest time between two requests to the issuer.
const PAUSE: TimeDelta = TimeDelta::seconds(30);
/// Limits of the issuer's response.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_BYTES: usize = 256 * 1024;
/// Most keys of an issuer.
const MAX_KEYS: usize = 100;
/// Shortest accepted modulus of an RSA key: shorter keys are too weak.
const MIN_RSA_BYTES: usize = 256;

/// A key, with the only algorithm that it verifies.
#[derive(Clone)]
pub struct VerifyingKey {
    pub key: DecodingKey,
    pub algorithm: Algorithm,
}

/// Cached keys of one issuer.
pub struct Jwks {
    url: Url,
    client: reqwest::Client,
    known: Mutex<Known>,
    /// Held during a request to the issuer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, VerifyingKey>,
    fetched_at: Option<DateTime<Utc>>,
    asked_at: Option<DateTime<Utc>>,
}

/// Result of a cache lookup.
struct Look {
    key: Option<VerifyingKey>,
    /// True when the keys should be fetched again.
    ask: bool,
}

impl Jwks {
    /// Creates an empty cache.
    ///
    /// # Errors
    /// When there are no TLS roots.
    pub fn new(url: Url) -> anyhow::Result<Self> {
        Ok(Self {
            url,
            client: http::client(PATIENCE)?,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the issuer's key of an id.
    pub async fn find(&self, id: &str, now: DateTime<Utc>) -> Option<VerifyingKey> {
        let lookup = self.look(id, now);
        if !lookup.ask {
            return lookup.key;
        }

        let _guard = match (self.asking.try_lock(), lookup.key) {
            (Ok(guard), _) => guard,
            // Another task fetches the keys; the cached key is used meanwhile.
            (Err(_held), Some(key)) => return Some(key),
            (Err(_held), None) => self.asking.lock().await,
        };

        if self.look(id, now).ask {
            self.ask(now).await;
        }
        self.look(id, now).key
    }

    fn look(&self, id: &str, now: DateTime<Utc>) -> Look {
        let cache = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let age = cache.fetched_at.map(|at| now - at);
        let key = cache.keys.get(id);
        let key = key.filter(|_| age.is_some_and(|age| age < LAST_GOOD));

        let is_stale = age.is_none_or(|age| age >= FRESH);
        let may_ask = cache.asked_at.is_none_or(|at| now - at >= PAUSE);

        Look {
            ask: may_ask && (is_stale || key.is_none()),
            key: key.cloned(),
        }
    }

    async fn ask(&self, now: DateTime<Utc>) {
        let fetched = self.fetch().await;
        let mut cache = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        cache.asked_at = Some(now);

        match fetched {
            Ok(keys) => {
                cache.keys = keys;
                cache.fetched_at = Some(now);
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "PEAL_JWT_JWKS_URL returned no keys; cached keys are used for up to an hour"
            ),
        }
    }

    async fn fetch(&self) -> anyhow::Result<HashMap<String, VerifyingKey>> {
        let response = self.client.get(self.url.clone()).send().await?;
        if !response.status().is_success() {
            bail!("the issuer responded with {}", response.status());
        }

        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk?);
            if body.len() > MAX_BYTES {
                bail!("the issuer's keys are larger than {MAX_BYTES} bytes");
            }
        }

        read(&body)
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// Parses the keys that can verify tokens; other keys are ignored.
fn read(document: &[u8]) -> anyhow::Result<HashMap<String, VerifyingKey>> {
    let set: KeySet = serde_json::from_slice(document).context("the issuer's keys")?;
    let keys = set.keys.into_iter().take(MAX_KEYS);
    let jwks = keys.filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(jwks.filter_map(verifying).collect())
}

/// Derives the algorithm from the key type: ES256 for P-256, RS256 for RSA. Other types are
/// ignored, above all shared secrets, which must not be public.
fn verifying(jwk: Jwk) -> Option<(String, VerifyingKey)> {
    let id = jwk.common.key_id.clone()?;
    if !matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    ) {
        return None;
    }

    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::RSA(key) if is_long(&key.n) => (Algorithm::RS256, KeyAlgorithm::RS256),
        _ => return None,
    };

    if jwk.common.key_algorithm.is_some_and(|other| other != named) {
        return None;
    }

    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some((id, VerifyingKey { key, algorithm }))
}

fn is_long(modulus: &str) -> bool {
    let bytes = URL_SAFE_NO_PAD.decode(modulus.trim_end_matches('='));
    bytes.is_ok_and(|bytes| bytes.iter().skip_while(|byte| **byte == 0).count() >= MIN_RSA_BYTES)
}

/// Keys shared by all requests; `None` without a configured URL.
pub type SharedJwks = Option<Arc<Jwks>>;
