//! Secrets: where randomness comes from, how keys are derived, and how values are sealed.
//!
//! One master key (32 bytes, from configuration) is the root. Every use has its own key,
//! derived from it by HMAC-SHA256 over the use's name, so that no two uses share one.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::fill;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt;
use subtle::ConstantTimeEq;

use crate::ids::{CallId, TrunkId};

/// How many bytes of a call token's HMAC go into its URL: 160 bits.
const CALL_TOKEN_BYTES: usize = 20;
/// Version of the sealed form: `[version][nonce][ciphertext and tag]`.
const SEAL_VERSION: u8 = 1;

/// The keys of this installation. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct Keys {
    calls: Arc<[u8; 32]>,
    api_keys: Arc<[u8; 32]>,
    sealing: Arc<LessSafeKey>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys([REDACTED])")
    }
}

impl Keys {
    /// Derives every key from the master key.
    ///
    /// # Errors
    /// Fails only if the cryptography library refuses a 32-byte key.
    pub fn derive(master: &[u8; 32]) -> anyhow::Result<Self> {
        let sealing = UnboundKey::new(&AES_256_GCM, &mac(master, b"seal credentials"))
            .map_err(|_unspecified| anyhow::anyhow!("the sealing key was refused"))?;
        Ok(Self {
            calls: Arc::new(mac(master, b"sign call urls")),
            api_keys: Arc::new(mac(master, b"hash api keys")),
            sealing: Arc::new(LessSafeKey::new(sealing)),
        })
    }

    /// The unguessable part of a call's URLs. It is recomputed, never stored, so a callback is
    /// checked without a look at the database.
    #[must_use]
    pub fn call_token(&self, trunk: TrunkId, call: CallId) -> String {
        let mut subject = [0_u8; 32];
        let (head, tail) = subject.split_at_mut(16);
        head.copy_from_slice(trunk.0.as_bytes());
        tail.copy_from_slice(call.0.as_bytes());
        let tag = mac(&self.calls, &subject);
        URL_SAFE_NO_PAD.encode(tag.get(..CALL_TOKEN_BYTES).unwrap_or_default())
    }

    /// Whether `token` belongs to the call, in constant time.
    #[must_use]
    pub fn is_call_token(&self, trunk: TrunkId, call: CallId, token: &str) -> bool {
        self.call_token(trunk, call)
            .as_bytes()
            .ct_eq(token.as_bytes())
            .into()
    }

    /// What is stored of an API key: its HMAC, by which it is also looked up.
    #[must_use]
    pub fn api_key_digest(&self, api_key: &str) -> [u8; 32] {
        mac(&self.api_keys, api_key.as_bytes())
    }

    /// Encrypts a stored secret, bound to its place: sealed bytes moved elsewhere do not open.
    ///
    /// # Errors
    /// Fails when the system has no randomness.
    pub fn seal(&self, place: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut nonce = [0_u8; NONCE_LEN];
        fill(&mut nonce).map_err(|_unspecified| anyhow::anyhow!("no randomness"))?;
        let mut body = plain.to_vec();
        self.sealing
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.as_bytes()),
                &mut body,
            )
            .map_err(|_unspecified| anyhow::anyhow!("sealing failed"))?;
        let mut sealed = vec![SEAL_VERSION];
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Decrypts what [`Keys::seal`] made for the same place.
    ///
    /// # Errors
    /// Fails when the bytes were changed, moved, or sealed under another master key.
    pub fn open(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let wrong = || {
            anyhow::anyhow!(
                "the secret of {place} does not open: is this the master key it was sealed with?"
            )
        };
        let (version, rest) = sealed.split_first().ok_or_else(wrong)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        if *version != SEAL_VERSION {
            return Err(wrong());
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_length| wrong())?;
        let mut body = body.to_vec();
        let plain = self
            .sealing
            .open_in_place(nonce, Aad::from(place.as_bytes()), &mut body)
            .map_err(|_unspecified| wrong())?;
        Ok(plain.to_vec())
    }
}

/// A fresh API key: `peal_live_` and 43 characters with 256 bits of randomness.
///
/// # Errors
/// Fails when the system has no randomness.
pub fn new_api_key() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 32];
    fill(&mut bytes).map_err(|_unspecified| anyhow::anyhow!("no randomness"))?;
    Ok(format!("peal_live_{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// A number in `0..1` that spreads retries and polls; not for secrets.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that draws random numbers"
)]
pub fn jitter() -> f64 {
    rand::rng().random::<f64>()
}

fn mac(key: &[u8; 32], subject: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), subject);
    let mut bytes = [0; 32];
    for (byte, from) in bytes.iter_mut().zip(tag.as_ref()) {
        *byte = *from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> Keys {
        Keys::derive(&[byte; 32]).unwrap()
    }

    #[test]
    fn a_sealed_secret_opens_only_in_its_place_and_under_its_key() {
        let sealed = keys(1).seal("trunk a", b"token").unwrap();
        assert_eq!(keys(1).open("trunk a", &sealed).unwrap(), b"token");
        assert!(keys(1).open("trunk b", &sealed).is_err());
        assert!(keys(2).open("trunk a", &sealed).is_err());
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(keys(1).open("trunk a", &changed).is_err());
        assert!(keys(1).open("trunk a", &[]).is_err());
        assert_ne!(sealed, keys(1).seal("trunk a", b"token").unwrap());
    }

    #[test]
    fn a_call_token_belongs_to_one_call_on_one_trunk() {
        let (trunk, call) = (TrunkId::new(), CallId::new());
        let token = keys(1).call_token(trunk, call);
        assert!(keys(1).is_call_token(trunk, call, &token));
        assert!(!keys(1).is_call_token(trunk, CallId::new(), &token));
        assert!(!keys(1).is_call_token(TrunkId::new(), call, &token));
        assert!(!keys(2).is_call_token(trunk, call, &token));
        assert!(!keys(1).is_call_token(trunk, call, ""));
    }

    #[test]
    fn api_keys_are_long_and_never_the_same() {
        let (a, b) = (new_api_key().unwrap(), new_api_key().unwrap());
        assert_eq!(a.len(), "peal_live_".len() + 43);
        assert_ne!(a, b);
        assert_ne!(keys(1).api_key_digest(&a), keys(1).api_key_digest(&b));
    }
}
