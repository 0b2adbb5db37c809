//! The public keys of another issuer, by their ids.
//!
//! Keys are fetched when they are needed and believed for ten minutes. When the issuer does not
//! answer, the last ones go on for an hour. A token can name any key id, so an unknown one asks
//! the issuer at most twice a minute, whatever arrives.

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

/// How long fetched keys are believed; a withdrawn key works for this long.
const FRESH: TimeDelta = TimeDelta::minutes(10);
/// How long they go on when the issuer does not answer.
const LAST_GOOD: TimeDelta = TimeDelta::hours(1);
/// The shortest time between two questions.
const PAUSE: TimeDelta = TimeDelta::seconds(30);
/// How long an answer may take, and how large it may be.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_BYTES: usize = 256 * 1024;
/// Keys of an issuer.
const MAX_KEYS: usize = 100;
/// Shorter RSA keys are too weak: bytes of the modulus.
const MIN_RSA_BYTES: usize = 256;

/// A key, and the one algorithm that it verifies.
#[derive(Clone)]
pub struct VerifyingKey {
    pub key: DecodingKey,
    pub algorithm: Algorithm,
}

/// The keys of one issuer.
pub struct Jwks {
    url: Url,
    client: reqwest::Client,
    known: Mutex<Known>,
    /// Held by whoever asks the issuer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, VerifyingKey>,
    fetched_at: Option<DateTime<Utc>>,
    asked_at: Option<DateTime<Utc>>,
}

/// What is known about a key id.
struct Look {
    key: Option<VerifyingKey>,
    /// Whether the issuer should be asked.
    ask: bool,
}

impl Jwks {
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

    /// The key of that id, if the issuer has one.
    pub async fn find(&self, id: &str, now: DateTime<Utc>) -> Option<VerifyingKey> {
        let look = self.look(id, now);
        if !look.ask {
            return look.key;
        }
        let _asking = match (self.asking.try_lock(), look.key) {
            (Ok(asking), _) => asking,
            // Somebody else asks; what is known will do until they know more.
            (Err(_held), Some(key)) => return Some(key),
            (Err(_held), None) => self.asking.lock().await,
        };
        if self.look(id, now).ask {
            self.ask(now).await;
        }
        self.look(id, now).key
    }

    fn look(&self, id: &str, now: DateTime<Utc>) -> Look {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let age = known.fetched_at.map(|at| now - at);
        let key = known.keys.get(id);
        let key = key.filter(|_| age.is_some_and(|age| age < LAST_GOOD));
        let is_stale = age.is_none_or(|age| age >= FRESH);
        let may_ask = known.asked_at.is_none_or(|at| now - at >= PAUSE);
        Look {
            ask: may_ask && (is_stale || key.is_none()),
            key: key.cloned(),
        }
    }

    async fn ask(&self, now: DateTime<Utc>) {
        let answer = self.fetch().await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.asked_at = Some(now);
        match answer {
            Ok(keys) => {
                known.keys = keys;
                known.fetched_at = Some(now);
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "PEAL_JWT_JWKS_URL gives no keys; the last ones go on for an hour"
            ),
        }
    }

    async fn fetch(&self) -> anyhow::Result<HashMap<String, VerifyingKey>> {
        let answer = self.client.get(self.url.clone()).send().await?;
        if !answer.status().is_success() {
            bail!("the issuer answers {}", answer.status());
        }
        let mut body = Vec::new();
        let mut pieces = answer.bytes_stream();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece?);
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

/// The keys of a document that can verify tokens; other ones are nobody's business here.
fn read(document: &[u8]) -> anyhow::Result<HashMap<String, VerifyingKey>> {
    let set: KeySet = serde_json::from_slice(document).context("the issuer's keys")?;
    let keys = set.keys.into_iter().take(MAX_KEYS);
    let jwks = keys.filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(jwks.filter_map(verifying).collect())
}

/// A key decides itself what it verifies: P-256 is ES256, RSA is RS256, and there is nothing
/// else. A shared secret in a public place verifies nothing.
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

/// The keys, shared by every request; none when the issuer has no address.
pub type SharedJwks = Option<Arc<Jwks>>;
