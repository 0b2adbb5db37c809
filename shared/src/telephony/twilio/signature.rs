//! Signatures of callbacks: `X-Twilio-Signature` is the base64 of an HMAC-SHA1, keyed with the
//! account's auth token, over the URL and the parameters of a form. A body that is not a form is
//! bound by its SHA-256 in the URL's `bodySHA256`.
//!
//! Twilio is not consistent about the port in the URL it signs, so the URL is tried with and
//! without it, as the vendor's own validator does. A callback whose body the signature does not
//! cover is refused, although the vendor's validator accepts it.

use std::collections::{BTreeMap, BTreeSet};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use url::{Position, Url};

use super::callback::{form, is_form};
use crate::telephony::{CarrierAccount, CarrierCallback};

/// Checks that one of the account's secrets signed this callback.
pub(super) fn verify(account: &CarrierAccount, callback: &CarrierCallback<'_>) -> bool {
    let Some(signature) = callback.signature else {
        return false;
    };
    let Some(parameters) = signed_parameters(callback) else {
        return false;
    };

    let mut is_genuine = Choice::from(0);
    for secret in signing_secrets(account) {
        for address in signed_urls(callback.url) {
            if let Some(expected) = sign(secret, &address, &parameters) {
                is_genuine |= expected.as_bytes().ct_eq(signature.as_bytes());
            }
        }
    }

    is_genuine.into()
}

/// Secrets that may sign. Empty ones are left out: everyone could sign with them.
fn signing_secrets(account: &CarrierAccount) -> impl Iterator<Item = &str> {
    let credentials = &account.credentials;
    let fallback = credentials
        .signing_secrets
        .is_empty()
        .then_some(&credentials.password);
    credentials
        .signing_secrets
        .iter()
        .chain(fallback)
        .map(SecretString::expose_secret)
        .filter(|secret| !secret.is_empty())
}

/// Text that the signature covers after the URL; `None` when the body is not covered.
fn signed_parameters(callback: &CarrierCallback<'_>) -> Option<String> {
    if callback.body.is_empty() {
        return Some(String::new());
    }
    if callback.method.eq_ignore_ascii_case("GET") {
        return None;
    }
    if is_form(callback) {
        return Some(concatenate(form(callback.body)));
    }
    body_hash_matches(callback).then(String::new)
}

/// Concatenates the parameters by name, with the distinct values of each in order, each value
/// after its name.
fn concatenate(pairs: impl Iterator<Item = (String, String)>) -> String {
    let mut parameters: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, value) in pairs {
        parameters.entry(name).or_default().insert(value);
    }
    let mut text = String::new();
    for (name, values) in &parameters {
        for value in values {
            text.push_str(name);
            text.push_str(value);
        }
    }
    text
}

/// True when the URL, which the signature covers, names the hash of the body.
fn body_hash_matches(callback: &CarrierCallback<'_>) -> bool {
    let mut query = callback.url.query_pairs();
    let Some((_, named)) = query.find(|(name, _)| name == "bodySHA256") else {
        return false;
    };
    let actual = hex::encode(Sha256::digest(callback.body));
    actual.as_bytes().ct_eq(named.as_bytes()).into()
}

/// URLs that Twilio may have signed: without a port and with one, never with a fragment.
fn signed_urls(url: &Url) -> [String; 2] {
    let head = &url[..Position::AfterHost];
    let tail = &url[Position::BeforePath..Position::AfterQuery];
    let with_port = match url.port_or_known_default() {
        Some(port) => format!("{head}:{port}{tail}"),
        None => format!("{head}{tail}"),
    };
    [format!("{head}{tail}"), with_port]
}

fn sign(secret: &str, address: &str, parameters: &str) -> Option<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).ok()?;
    mac.update(address.as_bytes());
    mac.update(parameters.as_bytes());
    Some(BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}
