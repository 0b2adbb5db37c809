//! Secrets: randomness, key derivation, and sealed values.
//!
//! One master key (32 bytes, from configuration) is the root. Every use has its own key,
//! derived from it by HMAC-SHA256 over the name of the use, so that no two uses share one.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::fill;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt;
use subtle::ConstantTimeEq;

use crate::platform::ids::{CallId, ExportId, InviteId, OrgId, TrunkId, UserId};

/// Bytes of a call token's HMAC in its URL: 160 bits.
const CALL_TOKEN_BYTES: usize = 20;
/// Version of the sealed form: `[version][nonce][ciphertext and tag]`.
const SEAL_VERSION: u8 = 1;

/// Keys derived from one master key.
struct DerivedKeys {
    calls: [u8; 32],
    api_keys: [u8; 32],
    sessions: [u8; 32],
    invites: [u8; 32],
    exports: [u8; 32],
    fingerprint: [u8; 32],
    sealing: LessSafeKey,
}

impl DerivedKeys {
    fn new(master: &[u8; 32]) -> anyhow::Result<Self> {
        Ok(Self {
            calls: hmac_sha256(master, b"sign call urls"),
            api_keys: hmac_sha256(master, b"hash api keys"),
            sessions: hmac_sha256(master, b"sign session tokens"),
            invites: hmac_sha256(master, b"sign invitations"),
            exports: hmac_sha256(master, b"sign export links"),
            fingerprint: hmac_sha256(master, b"name the master key"),
            sealing: sealing_key(&hmac_sha256(master, b"seal credentials"))?,
        })
    }
}

/// Keys of the installation. The current master key makes all tokens and seals; those of an
/// earlier master key remain valid while it is configured as well. `Debug` shows nothing.
#[derive(Clone)]
pub struct KeyRing {
    current: Arc<DerivedKeys>,
    earlier: Arc<[DerivedKeys]>,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRing([REDACTED])")
    }
}

impl KeyRing {
    /// Derives every key from the master key.
    ///
    /// # Errors
    /// Fails when the cryptography library refuses a 32-byte key.
    pub fn derive(master: &[u8; 32]) -> anyhow::Result<Self> {
        Self::derive_rotated(master, &[])
    }

    /// Derives every key from the current master key and from the earlier ones.
    ///
    /// # Errors
    /// As [`Self::derive`].
    pub fn derive_rotated(master: &[u8; 32], earlier: &[[u8; 32]]) -> anyhow::Result<Self> {
        let earlier: anyhow::Result<Vec<DerivedKeys>> =
            earlier.iter().map(DerivedKeys::new).collect();
        Ok(Self {
            current: Arc::new(DerivedKeys::new(master)?),
            earlier: earlier?.into(),
        })
    }

    fn all(&self) -> impl Iterator<Item = &DerivedKeys> {
        std::iter::once(&*self.current).chain(self.earlier.iter())
    }

    /// Unguessable part of a call's URLs. It is recomputed, never stored, so a callback is
    /// checked without a query.
    #[must_use]
    pub fn call_token(&self, trunk: TrunkId, call: CallId) -> String {
        call_token(&self.current.calls, trunk, call)
    }

    /// Checks in constant time that `token` belongs to the call.
    #[must_use]
    pub fn is_call_token(&self, trunk: TrunkId, call: CallId, token: &str) -> bool {
        self.all().any(|keys| {
            let expected = call_token(&keys.calls, trunk, call);
            expected.as_bytes().ct_eq(token.as_bytes()).into()
        })
    }

    /// Fingerprint of the current master key.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8] {
        self.current.fingerprint.get(..8).unwrap_or_default()
    }

    /// HMAC of an API key, which is stored and looked up in its place.
    #[must_use]
    pub fn api_key_digest(&self, api_key: &str) -> [u8; 32] {
        hmac_sha256(&self.current.api_keys, api_key.as_bytes())
    }

    /// Digests of an API key under the current master key and the earlier ones.
    #[must_use]
    pub fn api_key_digests(&self, api_key: &str) -> Vec<[u8; 32]> {
        self.all()
            .map(|keys| hmac_sha256(&keys.api_keys, api_key.as_bytes()))
            .collect()
    }

    /// Token that accepts an invitation: its id and the id's HMAC.
    #[must_use]
    pub fn invite_token(&self, invite: InviteId) -> String {
        let mut token = invite.0.as_bytes().to_vec();
        token.extend_from_slice(&hmac_sha256(&self.current.invites, invite.0.as_bytes()));
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Invitation of a genuine token.
    #[must_use]
    pub fn verify_invite_token(&self, token: &str) -> Option<InviteId> {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim()).ok()?;
        let (id, tag) = bytes.split_at_checked(16)?;
        let is_genuine = self
            .all()
            .any(|keys| hmac_sha256(&keys.invites, id).ct_eq(tag).into());
        let id = uuid::Uuid::from_slice(id).ok()?;
        is_genuine.then_some(InviteId(id))
    }

    /// Token in the link to a usage export. It is valid for its user alone.
    #[must_use]
    pub fn export_token(&self, export: ExportId, org: OrgId, user: UserId) -> String {
        export_token(&self.current.exports, export, org, user)
    }

    /// Checks in constant time that `token` opens the export for that user.
    #[must_use]
    pub fn is_export_token(&self, export: ExportId, org: OrgId, user: UserId, token: &str) -> bool {
        self.all().any(|keys| {
            let expected = export_token(&keys.exports, export, org, user);
            expected.as_bytes().ct_eq(token.as_bytes()).into()
        })
    }

    /// Secrets that sign local session tokens; the first one signs new tokens.
    #[must_use]
    pub fn session_secrets(&self) -> Vec<[u8; 32]> {
        self.all().map(|keys| keys.sessions).collect()
    }

    /// Encrypts a secret, bound to its place: sealed bytes moved elsewhere do not open.
    ///
    /// # Errors
    /// Fails when the system has no randomness.
    pub fn seal(&self, place: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        seal(&self.current.sealing, place, plain)
    }

    /// Decrypts bytes that [`Keys::seal`] made for the same place.
    ///
    /// # Errors
    /// Fails when the bytes were changed, moved, or sealed under another master key.
    pub fn open(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let opened = self
            .all()
            .find_map(|keys| open(&keys.sealing, place, sealed));
        opened.ok_or_else(|| {
            anyhow::anyhow!(
                "the secret of {place} does not open: changed, or sealed with another master key"
            )
        })
    }

    /// Seals bytes of an earlier master key under the current one; `None` when they already are.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn reseal(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        if open(&self.current.sealing, place, sealed).is_some() {
            return Ok(None);
        }
        let plain = self.open(place, sealed)?;
        self.seal(place, &plain).map(Some)
    }

    /// Encrypts a secret under a key of its own. Returns the sealed key and the sealed secret.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_enveloped(&self, place: &str, plain: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
        let own = random_bytes::<32>()?;
        let sealed = seal(&sealing_key(&own)?, place, plain)?;

        Ok((self.seal(&key_place(place), &own)?, sealed))
    }

    /// Decrypts a secret that [`Keys::seal_enveloped`] made for the same place.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_enveloped(
        &self,
        place: &str,
        own: &[u8],
        sealed: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        let own = self.open(&key_place(place), own)?;
        open(&sealing_key(&own)?, place, sealed)
            .ok_or_else(|| anyhow::anyhow!("the secret of {place} was changed"))
    }

    /// Seals the key of an enveloped secret under the current master key; `None` when it already
    /// is.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn rewrap(&self, place: &str, own: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        self.reseal(&key_place(place), own)
    }
}

fn key_place(place: &str) -> String {
    format!("{place}/key")
}

fn call_token(key: &[u8; 32], trunk: TrunkId, call: CallId) -> String {
    let mut subject = [0_u8; 32];
    let (head, tail) = subject.split_at_mut(16);
    head.copy_from_slice(trunk.0.as_bytes());
    tail.copy_from_slice(call.0.as_bytes());
    let tag = hmac_sha256(key, &subject);
    URL_SAFE_NO_PAD.encode(tag.get(..CALL_TOKEN_BYTES).unwrap_or_default())
}

fn export_token(key: &[u8; 32], export: ExportId, org: OrgId, user: UserId) -> String {
    let subject = [export.0, org.0, user.0].map(uuid::Uuid::into_bytes);
    URL_SAFE_NO_PAD.encode(hmac_sha256(key, subject.as_flattened()))
}

fn sealing_key(bytes: &[u8]) -> anyhow::Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, bytes)
        .map_err(|_unspecified| anyhow::anyhow!("the sealing key was refused"))?;
    Ok(LessSafeKey::new(key))
}

fn seal(key: &LessSafeKey, place: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
    let nonce = random_bytes::<NONCE_LEN>()?;
    let mut body = plain.to_vec();
    key.seal_in_place_append_tag(
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

fn open(key: &LessSafeKey, place: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (version, rest) = sealed.split_first()?;
    let (nonce, body) = rest.split_at_checked(NONCE_LEN)?;
    if *version != SEAL_VERSION {
        return None;
    }

    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut body = body.to_vec();
    let plain = key
        .open_in_place(nonce, Aad::from(place.as_bytes()), &mut body)
        .ok()?;
    Some(plain.to_vec())
}

/// Prefix of every API key.
const KEY_PREFIX: &str = "peal_live_";

/// Generates an API key: `peal_live_`, 43 characters with 256 bits of randomness, and 6 with the
/// checksum of all the characters before.
///
/// # Errors
/// Fails when the system has no randomness.
pub fn new_api_key() -> anyhow::Result<String> {
    let secret = URL_SAFE_NO_PAD.encode(random_bytes::<32>()?);
    let text = format!("{KEY_PREFIX}{secret}");
    Ok(format!("{text}{}", checksum(&text)))
}

/// False for a text with the prefix of an API key and a wrong checksum. A text without the
/// prefix may be a key that its user chose.
#[must_use]
pub fn may_be_api_key(text: &str) -> bool {
    if !text.starts_with(KEY_PREFIX) {
        return true;
    }
    let body = text
        .len()
        .checked_sub(6)
        .and_then(|at| text.split_at_checked(at));
    body.is_some_and(|(body, sum)| sum == checksum(body))
}

fn checksum(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(crc32fast::hash(text.as_bytes()).to_be_bytes())
}

/// Generates unguessable bytes.
///
/// # Errors
/// Fails when the system has no randomness.
pub fn random_bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    fill(&mut bytes).map_err(|_unspecified| anyhow::anyhow!("no randomness"))?;
    Ok(bytes)
}

/// Random number in `0..1` that spreads retries and polls; not for secrets.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that draws random numbers"
)]
pub fn jitter() -> f64 {
    rand::rng().random::<f64>()
}

fn hmac_sha256(key: &[u8; 32], subject: &[u8]) -> [u8; 32] {
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

    fn keys(byte: u8) -> KeyRing {
        KeyRing::derive(&[byte; 32]).unwrap()
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
    fn an_invitations_token_belongs_to_it_alone() {
        let invite = InviteId::new();
        let token = keys(1).invite_token(invite);
        assert_eq!(keys(1).verify_invite_token(&token), Some(invite));
        assert_eq!(keys(2).verify_invite_token(&token), None);
        let other = keys(1).invite_token(InviteId::new());
        let mixed = format!("{}{}", &token[..22], &other[22..]);
        assert_eq!(keys(1).verify_invite_token(&mixed), None);
        assert_eq!(keys(1).verify_invite_token(""), None);
    }

    #[test]
    fn the_link_to_an_export_is_good_for_its_user_alone() {
        let (export, org, user) = (ExportId::new(), OrgId::new(), UserId::new());
        let token = keys(1).export_token(export, org, user);
        assert!(keys(1).is_export_token(export, org, user, &token));
        assert!(!keys(1).is_export_token(export, org, UserId::new(), &token));
        assert!(!keys(1).is_export_token(export, OrgId::new(), user, &token));
        assert!(!keys(1).is_export_token(ExportId::new(), org, user, &token));
        assert!(!keys(2).is_export_token(export, org, user, &token));
        assert!(!keys(1).is_export_token(export, org, user, ""));
    }

    #[test]
    fn api_keys_are_long_and_never_the_same() {
        let (a, b) = (new_api_key().unwrap(), new_api_key().unwrap());
        assert_eq!(a.len(), "peal_live_".len() + 43 + 6);
        assert_ne!(a, b);
        assert_ne!(keys(1).api_key_digest(&a), keys(1).api_key_digest(&b));
    }

    #[test]
    fn a_mistyped_key_is_known_by_its_checksum() {
        let key = new_api_key().unwrap();
        assert!(may_be_api_key(&key));
        assert!(may_be_api_key("a secret chosen by its user"));
        for at in 10..key.len() {
            let mut other = key.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            assert!(!may_be_api_key(&String::from_utf8(other).unwrap()), "{at}");
        }
        assert!(!may_be_api_key("peal_live_"));
        assert!(!may_be_api_key("peal_live_ä"));
    }

    #[test]
    fn what_an_earlier_master_key_made_is_understood_and_made_anew() {
        let (old, new) = (
            keys(1),
            KeyRing::derive_rotated(&[2; 32], &[[1; 32]]).unwrap(),
        );
        let sealed = old.seal("trunk a", b"token").unwrap();
        assert_eq!(new.open("trunk a", &sealed).unwrap(), b"token");
        let again = new.reseal("trunk a", &sealed).unwrap().unwrap();
        assert_eq!(keys(2).open("trunk a", &again).unwrap(), b"token");
        assert_eq!(new.reseal("trunk a", &again).unwrap(), None);
        assert!(keys(2).reseal("trunk a", &sealed).is_err());
        let (trunk, call) = (TrunkId::new(), CallId::new());
        assert!(new.is_call_token(trunk, call, &old.call_token(trunk, call)));
        assert!(
            new.api_key_digests("key")
                .contains(&old.api_key_digest("key"))
        );
        assert_eq!(new.api_key_digests("key")[0], new.api_key_digest("key"));
    }

    #[test]
    fn an_enveloped_secret_opens_in_its_place_under_any_known_master_key() {
        let (own, sealed) = keys(1).seal_enveloped("row a", b"secret").unwrap();
        assert_eq!(
            keys(1).open_enveloped("row a", &own, &sealed).unwrap(),
            b"secret"
        );
        assert!(keys(1).open_enveloped("row b", &own, &sealed).is_err());
        assert!(keys(2).open_enveloped("row a", &own, &sealed).is_err());
        let new = KeyRing::derive_rotated(&[2; 32], &[[1; 32]]).unwrap();
        let rewrapped = new.rewrap("row a", &own).unwrap().unwrap();
        assert_eq!(
            keys(2)
                .open_enveloped("row a", &rewrapped, &sealed)
                .unwrap(),
            b"secret"
        );
        assert_eq!(new.rewrap("row a", &rewrapped).unwrap(), None);
        let (other, _) = keys(1).seal_enveloped("row a", b"secret").unwrap();
        assert!(keys(1).open_enveloped("row a", &other, &sealed).is_err());
    }
}
