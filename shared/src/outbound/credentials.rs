//! Credentials of requests to a user's endpoint. They are sealed as one value, bound to their
//! row, and shown with masks; a mask that is sent back stands for the stored secret, as long as
//! the endpoint stays on the same server.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::outbound;
use crate::platform::error::{Error, FieldError, Result};
use crate::platform::ids::OrgId;
use crate::platform::secret::KeyRing;

/// Replacement of a secret in responses.
pub const MASK: &str = "********";
/// Parts of the names of headers whose values are secrets.
const SECRET_NAME_PARTS: [&str; 7] = [
    "auth",
    "cookie",
    "key",
    "token",
    "secret",
    "password",
    "signature",
];
/// Shortest secret that is redacted from answers; a shorter one may be an ordinary word.
const MIN_SECRET_BYTES: usize = 6;

/// Authentication of a request. On read, secrets are masked; a mask that is sent back keeps the
/// stored secret.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = Auth)]
pub enum EndpointAuth {
    /// No authentication.
    #[default]
    None,
    /// `Authorization: Bearer` with the token.
    Bearer { token: String },
    /// The value in a header of this name.
    ApiKey { header: String, value: String },
    /// `Authorization: Basic` with both.
    Basic { username: String, password: String },
}

impl fmt::Debug for EndpointAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointAuth([REDACTED])")
    }
}

impl EndpointAuth {
    fn secret(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Bearer { token } => Some(token),
            Self::ApiKey { value, .. } => Some(value),
            Self::Basic { password, .. } => Some(password),
        }
    }

    fn secret_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::None => None,
            Self::Bearer { token } => Some(token),
            Self::ApiKey { value, .. } => Some(value),
            Self::Basic { password, .. } => Some(password),
        }
    }

    /// The name of the field that holds the secret.
    fn secret_field(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Bearer { .. } => Some("token"),
            Self::ApiKey { .. } => Some("value"),
            Self::Basic { .. } => Some("password"),
        }
    }

    fn header(&self) -> Option<(String, String)> {
        let authorization = |value| (AUTHORIZATION.as_str().to_owned(), value);
        match self {
            Self::None => None,
            Self::Bearer { token } => Some(authorization(format!("Bearer {token}"))),
            Self::ApiKey { header, value } => Some((header.clone(), value.clone())),
            Self::Basic { username, password } => {
                let pair = STANDARD.encode(format!("{username}:{password}"));
                Some(authorization(format!("Basic {pair}")))
            }
        }
    }
}

/// Headers and authentication of an endpoint.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCredentials {
    pub headers: BTreeMap<String, String>,
    pub auth: EndpointAuth,
}

impl fmt::Debug for EndpointCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointCredentials([REDACTED])")
    }
}

impl EndpointCredentials {
    /// Lists all invalid fields: the path of the field and a message.
    #[must_use]
    pub fn field_errors(&self) -> Vec<(String, &'static str)> {
        let mut wrong = Vec::new();

        if self.headers.len() > 30 {
            wrong.push(("headers".to_owned(), "must be 30 headers or fewer"));
        }
        for (name, value) in &self.headers {
            if let Err(why) = check_header(name, value) {
                wrong.push((format!("headers.{name}"), why));
            }
        }

        if let EndpointAuth::Basic { username, .. } = &self.auth
            && username.contains(':')
        {
            wrong.push(("auth.username".to_owned(), "must not have a colon"));
        }
        if self.auth.secret().is_some_and(str::is_empty) {
            wrong.push(("auth".to_owned(), "must have a secret that is not empty"));
        }

        if let Some((name, value)) = self.auth.header() {
            if let Err(why) = check_header(&name, &value) {
                wrong.push(("auth".to_owned(), why));
            }
            if self
                .headers
                .keys()
                .any(|other| other.eq_ignore_ascii_case(&name))
            {
                wrong.push((
                    "headers".to_owned(),
                    "must not have the header that auth sets",
                ));
            }
        }

        wrong
    }

    /// Returns a copy whose secrets are masked.
    #[must_use]
    pub fn masked(&self) -> Self {
        let mut masked = self.clone();
        for (name, value) in &mut masked.headers {
            if is_secret(name) {
                MASK.clone_into(value);
            }
        }
        if let Some(secret) = masked.auth.secret_mut() {
            MASK.clone_into(secret);
        }
        masked
    }

    /// Replaces masks by the secrets stored for `stored_url`, for requests to `url`. A caller who
    /// may change the address does not know the secrets, and must not redirect them to a server
    /// of their own.
    ///
    /// # Errors
    /// [`Error::Invalid`] for each mask when the two differ in scheme, host or port.
    pub fn unmasked(mut self, url: &str, stored: &Self, stored_url: &str) -> Result<Self> {
        let masks = self.masked_paths();
        if !masks.is_empty() && !is_same_server(url, stored_url) {
            let message = "is masked, and the address changes: send the secret itself again";
            let errors = masks
                .into_iter()
                .map(|path| FieldError::new("body", path, "masked", message));
            return Err(Error::Invalid(errors.collect()));
        }

        for (name, value) in &mut self.headers {
            if let Some(known) = stored.header(name).filter(|_| value == MASK) {
                value.clone_from(known);
            }
        }

        let same_kind = std::mem::discriminant(&self.auth) == std::mem::discriminant(&stored.auth);
        if let (Some(secret), Some(known), true) =
            (self.auth.secret_mut(), stored.auth.secret(), same_kind)
            && secret == MASK
        {
            known.clone_into(secret);
        }
        Ok(self)
    }

    /// The value of a header, by its exact name or else case-insensitively.
    fn header(&self, name: &str) -> Option<&String> {
        self.headers.get(name).or_else(|| {
            let mut all = self.headers.iter();
            let same = all.find(|(other, _)| other.eq_ignore_ascii_case(name));
            same.map(|(_, value)| value)
        })
    }

    /// Paths of the secrets that are masked.
    fn masked_paths(&self) -> Vec<[&str; 2]> {
        let headers = self.headers.iter().filter(|(_, value)| *value == MASK);
        let secret = self.auth.secret().filter(|secret| *secret == MASK);
        let auth = secret.and(self.auth.secret_field());
        headers
            .map(|(name, _)| ["headers", name.as_str()])
            .chain(auth.map(|field| ["auth", field]))
            .collect()
    }

    /// Rejects masked secrets, for a row that has none stored.
    ///
    /// # Errors
    /// [`Error::Invalid`] for each mask.
    pub fn without_masks(self) -> Result<Self> {
        let message =
            "is masked, which keeps the stored secret, but none is stored: send the secret itself";
        let errors: Vec<FieldError> = self
            .masked_paths()
            .into_iter()
            .map(|path| FieldError::new("body", path, "masked", message))
            .collect();
        match errors.is_empty() {
            true => Ok(self),
            false => Err(Error::Invalid(errors)),
        }
    }

    /// The headers to send.
    ///
    /// # Errors
    /// Fails for an invalid stored header, which validation rejects.
    pub fn header_map(&self) -> Result<HeaderMap> {
        let mut map = HeaderMap::new();
        let all = self.headers.clone().into_iter().chain(self.auth.header());
        for (name, value) in all {
            let name = HeaderName::try_from(name).context("a stored header's name")?;
            let mut value = HeaderValue::try_from(value).context("a stored header's value")?;
            value.set_sensitive(is_secret(name.as_str()));
            map.insert(name, value);
        }
        Ok(map)
    }

    /// Masks every secret in a text.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let header = self.auth.header().map(|(_, value)| value);
        let basic = header
            .as_deref()
            .and_then(|value| value.strip_prefix("Basic "));
        let headers = self.headers.iter().filter(|(name, _)| is_secret(name));
        headers
            .map(|(_, value)| value.as_str())
            .chain(self.auth.secret())
            .chain(basic)
            .filter(|secret| secret.len() >= MIN_SECRET_BYTES)
            .fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
    }

    /// Seals these credentials for the row `id` of `table`.
    ///
    /// # Errors
    /// Fails when the system has no randomness.
    pub fn sealed(&self, keys: &KeyRing, table: &str, org: OrgId, id: Uuid) -> Result<Vec<u8>> {
        Ok(keys.seal(&seal_context(table, org, id), &serde_json::to_vec(self)?)?)
    }

    /// Reseals a row's credentials from an earlier master key under the current one; `None` when
    /// they are under the current one already.
    ///
    /// # Errors
    /// As [`Self::opened`].
    pub fn resealed(
        keys: &KeyRing,
        table: &str,
        org: OrgId,
        id: Uuid,
        sealed: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        Ok(keys.reseal(&seal_context(table, org, id), sealed)?)
    }

    /// Opens credentials that [`Self::sealed`] made for the same row.
    ///
    /// # Errors
    /// Fails when they were sealed for another row or under another master key.
    pub fn opened(
        keys: &KeyRing,
        table: &str,
        org: OrgId,
        id: Uuid,
        sealed: &[u8],
    ) -> Result<Self> {
        let plain = keys.open(&seal_context(table, org, id), sealed)?;
        Ok(serde_json::from_slice(&plain).context("sealed credentials")?)
    }
}

fn seal_context(table: &str, org: OrgId, id: Uuid) -> String {
    format!("{table} {org} {id} credentials")
}

/// True when two addresses have the same scheme, host and port.
fn is_same_server(one: &str, other: &str) -> bool {
    let origin = |url| Url::parse(url).ok().map(|url| url.origin());
    origin(one).is_some_and(|origin_of_one| Some(origin_of_one) == origin(other))
}

/// True when the value of a header of this name is a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAME_PARTS.iter().any(|part| name.contains(part))
}

fn check_header(name: &str, value: &str) -> std::result::Result<(), &'static str> {
    let name = HeaderName::try_from(name).map_err(|_invalid| "must have the name of a header")?;
    if !outbound::is_forwarded(&name) {
        return Err("is a header of the connection, which cannot be set; remove it");
    }
    let is_text = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if value.len() > 4096 || !is_text || HeaderValue::try_from(value).is_err() {
        return Err("must have a value of up to 4096 printable ASCII characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> EndpointCredentials {
        EndpointCredentials {
            headers: BTreeMap::from([
                ("X-Api-Key".to_owned(), "key-123456".to_owned()),
                ("Accept".to_owned(), "application/json".to_owned()),
            ]),
            auth: EndpointAuth::Basic {
                username: "peal".to_owned(),
                password: "pass-word".to_owned(),
            },
        }
    }

    #[test]
    fn secrets_are_masked_and_masks_are_what_is_stored() {
        let stored = credentials();

        let shown = stored.masked();
        assert_eq!(shown.headers["X-Api-Key"], MASK);
        assert_eq!(shown.headers["Accept"], "application/json");
        assert!(!serde_json::to_string(&shown).unwrap().contains("pass-word"));
        assert!(!format!("{stored:?}").contains("peal"));
        assert!(shown.clone().without_masks().is_err());
        assert_eq!(stored.clone().without_masks().unwrap(), stored);

        let (url, moved) = (
            "https://shop.test/{{id}}",
            "https://shop.test:443/v2?a={{id}}",
        );
        assert_eq!(shown.unmasked(moved, &stored, url).unwrap(), stored);

        let mask = |name: &str| EndpointCredentials {
            headers: BTreeMap::from([(name.to_owned(), MASK.to_owned())]),
            auth: EndpointAuth::None,
        };
        let small = mask("x-api-key").unmasked(url, &stored, url).unwrap();
        let key = BTreeMap::from([("x-api-key".to_owned(), "key-123456".to_owned())]);
        assert_eq!(small.headers, key);

        let other = EndpointCredentials {
            headers: BTreeMap::from([("X-Other-Key".to_owned(), MASK.to_owned())]),
            auth: EndpointAuth::Bearer {
                token: MASK.to_owned(),
            },
        };
        let filled = other.unmasked(url, &stored, url).unwrap();
        assert!(filled.without_masks().is_err());
    }

    #[test]
    fn no_mask_is_filled_in_for_another_server() {
        let stored = credentials();
        let url = "https://shop.test/orders";
        for elsewhere in [
            "https://evil.test/orders",
            "https://www.shop.test/orders",
            "https://shop.test.evil.test/orders",
            "https://shop.test:8443/orders",
            "http://shop.test/orders",
            "data:,",
            "",
        ] {
            let refused = stored.masked().unmasked(elsewhere, &stored, url);
            let Err(Error::Invalid(errors)) = refused else {
                panic!("{elsewhere}: {refused:?}");
            };
            let paths: Vec<&[String]> = errors.iter().map(|error| &error.loc[1..]).collect();
            assert_eq!(paths, [["headers", "X-Api-Key"], ["auth", "password"]]);
            // Secrets sent in full may go to any server.
            let sent = stored.clone().unmasked(elsewhere, &stored, url);
            assert_eq!(sent.unwrap(), stored);
        }
        let nowhere = stored.masked().unmasked("data:,", &stored, "data:,");
        assert!(nowhere.is_err(), "an address without a host is no server");
    }

    #[test]
    fn an_answer_that_repeats_secrets_is_cleaned() {
        let text = "key-123456 pass-word cGVhbDpwYXNzLXdvcmQ= application/json";
        let clean = credentials().redact(text);
        assert_eq!(clean, "******** ******** ******** application/json");
    }

    #[test]
    fn sealed_credentials_open_in_their_row_alone() {
        let keys = KeyRing::derive(&[1; 32]).unwrap();
        let (org, id) = (OrgId::new(), OrgId::new().0);
        let sealed = credentials().sealed(&keys, "tools", org, id).unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("pass-word"));
        let opened = EndpointCredentials::opened(&keys, "tools", org, id, &sealed).unwrap();
        assert_eq!(opened, credentials());
        let moved = [
            ("mcp_servers", org, id),
            ("tools", OrgId::new(), id),
            ("tools", org, OrgId::new().0),
        ];
        for (table, org, id) in moved {
            assert!(EndpointCredentials::opened(&keys, table, org, id, &sealed).is_err());
        }
    }

    #[test]
    fn headers_of_the_connection_and_broken_ones_are_refused() {
        assert!(credentials().field_errors().is_empty());

        for (name, value) in [
            ("Host", "x"),
            ("transfer-encoding", "chunked"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("a b", "x"),
            ("", "x"),
            ("X-Ok", "a\r\nHost: b"),
            ("X-Ok", "é"),
            ("authorization", "twice"),
        ] {
            let mut odd = credentials();
            odd.headers.insert(name.to_owned(), value.to_owned());
            assert_eq!(odd.field_errors().len(), 1, "{name}: {value}");
        }

        let headers = EndpointCredentials::default();
        for auth in [
            EndpointAuth::Bearer {
                token: String::new(),
            },
            EndpointAuth::Bearer {
                token: "a\nb".to_owned(),
            },
            EndpointAuth::ApiKey {
                header: "host".to_owned(),
                value: "x".to_owned(),
            },
            EndpointAuth::Basic {
                username: "a:b".to_owned(),
                password: "x".to_owned(),
            },
        ] {
            let odd = EndpointCredentials {
                auth,
                ..headers.clone()
            };
            assert_eq!(odd.field_errors().len(), 1);
        }
    }
}
