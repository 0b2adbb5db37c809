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
use peal_shared::platform::http;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

/// Age up to which keys are fresh; a withdrawn key works for this long.
const KEY_MAX_AGE: TimeDelta = TimeDelta::minutes(10);
/// Age up to which stale keys are used when the issuer does not respond.
const STALE_KEY_MAX_AGE: TimeDelta = TimeDelta::hours(1);
/// Shortest time between two requests to the issuer.
const MIN_FETCH_INTERVAL: TimeDelta = TimeDelta::seconds(30);
/// Limits of the issuer's response.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_RESPONSE_BYTES: usize = 256 * 1024;
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
pub struct JwksCache {
    url: Url,
    client: reqwest::Client,
    cache: Mutex<CachedKeys>,
    /// Held during a request to the issuer.
    fetch_lock: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct CachedKeys {
    keys: HashMap<String, VerifyingKey>,
    fetched_at: Option<DateTime<Utc>>,
    asked_at: Option<DateTime<Utc>>,
}

/// Result of a cache lookup.
struct KeyLookup {
    key: Option<VerifyingKey>,
    /// True when the keys should be fetched again.
    needs_fetch: bool,
}

impl JwksCache {
    /// Creates an empty cache.
    ///
    /// # Errors
    /// When there are no TLS roots.
    pub fn new(url: Url) -> anyhow::Result<Self> {
        Ok(Self {
            url,
            client: http::carrier_client(FETCH_TIMEOUT)?,
            cache: Mutex::default(),
            fetch_lock: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the issuer's key of an id.
    pub async fn find(&self, id: &str, now: DateTime<Utc>) -> Option<VerifyingKey> {
        let lookup = self.lookup(id, now);
        if !lookup.needs_fetch {
            return lookup.key;
        }

        let _guard = match (self.fetch_lock.try_lock(), lookup.key) {
            (Ok(guard), _) => guard,
            // Another task fetches the keys; the cached key is used meanwhile.
            (Err(_held), Some(key)) => return Some(key),
            (Err(_held), None) => self.fetch_lock.lock().await,
        };

        if self.lookup(id, now).needs_fetch {
            self.refresh(now).await;
        }
        self.lookup(id, now).key
    }

    fn lookup(&self, id: &str, now: DateTime<Utc>) -> KeyLookup {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let age = cache.fetched_at.map(|at| now - at);
        let key = cache.keys.get(id);
        let key = key.filter(|_| age.is_some_and(|age| age < STALE_KEY_MAX_AGE));

        let is_stale = age.is_none_or(|age| age >= KEY_MAX_AGE);
        let may_ask = cache
            .asked_at
            .is_none_or(|at| now - at >= MIN_FETCH_INTERVAL);

        KeyLookup {
            needs_fetch: may_ask && (is_stale || key.is_none()),
            key: key.cloned(),
        }
    }

    async fn refresh(&self, now: DateTime<Utc>) {
        let fetched = self.fetch().await;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
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
            if body.len() > MAX_RESPONSE_BYTES {
                bail!("the issuer's keys are larger than {MAX_RESPONSE_BYTES} bytes");
            }
        }

        parse_key_set(&body)
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// Parses the keys that can verify tokens; other keys are ignored.
fn parse_key_set(document: &[u8]) -> anyhow::Result<HashMap<String, VerifyingKey>> {
    let set: KeySet = serde_json::from_slice(document).context("the issuer's keys")?;
    let keys = set.keys.into_iter().take(MAX_KEYS);
    let jwks = keys.filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(jwks.filter_map(verifying_key).collect())
}

/// Derives the algorithm from the key type: ES256 for P-256, RS256 for RSA. Other types are
/// ignored, above all shared secrets, which must not be public.
fn verifying_key(jwk: Jwk) -> Option<(String, VerifyingKey)> {
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
        AlgorithmParameters::RSA(key) if is_long_enough(&key.n) => {
            (Algorithm::RS256, KeyAlgorithm::RS256)
        }
        _ => return None,
    };

    if jwk.common.key_algorithm.is_some_and(|other| other != named) {
        return None;
    }

    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some((id, VerifyingKey { key, algorithm }))
}

fn is_long_enough(modulus: &str) -> bool {
    let bytes = URL_SAFE_NO_PAD.decode(modulus.trim_end_matches('='));
    bytes.is_ok_and(|bytes| bytes.iter().skip_while(|byte| **byte == 0).count() >= MIN_RSA_BYTES)
}

/// Keys shared by all requests; `None` without a configured URL.
pub type SharedJwks = Option<Arc<JwksCache>>;
