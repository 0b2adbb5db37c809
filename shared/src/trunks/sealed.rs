//! Stored credentials of trunks: sealed and bound to their row and organisation, so that they do
//! not open in any other row or for any other organisation.

use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sqlx::PgConnection;

use crate::platform::error::Result;
use crate::platform::ids::{OrgId, TrunkId};
use crate::platform::secret::KeyRing;
use crate::telephony::CarrierCredentials;

/// Maximum of signing secrets that are valid at the same time during rotations.
const SIGNING_SECRETS_LIMIT: usize = 3;

/// A trunk and its organisation; `None` is the platform.
pub(super) type OwnedTrunk = (Option<OrgId>, TrunkId);

/// Plaintext of a trunk's sealed credentials.
#[derive(Serialize)]
struct SealedCredentials<'a> {
    username: Option<&'a str>,
    password: &'a str,
    signing_secrets: Vec<&'a str>,
}

pub(super) fn seal(
    keys: &KeyRing,
    trunk: OwnedTrunk,
    credentials: &CarrierCredentials,
) -> Result<Vec<u8>> {
    let plain = serde_json::to_vec(&SealedCredentials {
        username: credentials.username.as_deref(),
        password: credentials.password.expose_secret(),
        signing_secrets: credentials
            .signing_secrets
            .iter()
            .map(ExposeSecret::expose_secret)
            .collect(),
    })?;
    Ok(keys.seal(&seal_context(trunk), &plain)?)
}

/// Adds the old secrets to new credentials as valid signing secrets, the newest first.
pub(super) fn with_old_secrets(
    new: &CarrierCredentials,
    old: CarrierCredentials,
) -> CarrierCredentials {
    let mut signing: Vec<SecretString> = new.signing_secrets.clone();
    let candidates = [new.password.clone(), old.password]
        .into_iter()
        .chain(old.signing_secrets);
    for secret in candidates {
        let known = |other: &SecretString| other.expose_secret() == secret.expose_secret();
        if signing.len() < SIGNING_SECRETS_LIMIT && !signing.iter().any(known) {
            signing.push(secret);
        }
    }
    CarrierCredentials {
        signing_secrets: signing,
        ..new.clone()
    }
}

pub(super) fn unseal(
    keys: &KeyRing,
    trunk: OwnedTrunk,
    sealed: &[u8],
) -> Result<CarrierCredentials> {
    let plain = match keys.open(&seal_context(trunk), sealed) {
        Ok(plain) => plain,
        Err(closed) => keys
            .open(&legacy_seal_context(trunk.1), sealed)
            .map_err(|_closed_too| closed)?,
    };
    let credentials = serde_json::from_slice(&plain).context("the trunk's credentials")?;
    Ok(credentials)
}

/// Reseals the credentials of every trunk that are under an earlier master key or bound to an
/// earlier context. Returns their number.
///
/// # Errors
/// [`crate::Error::Unexpected`] when some open under no configured key.
pub async fn reseal_unscoped(db: &mut PgConnection, keys: &KeyRing) -> Result<u64> {
    let trunks = sqlx::query!(
        r#"select id as "id: TrunkId", org_id as "org_id: OrgId", credentials
           from trunks
           order by id
           for no key update"#
    )
    .fetch_all(&mut *db)
    .await?;

    let mut resealed = 0;
    for trunk in trunks {
        let place = seal_context((trunk.org_id, trunk.id));
        let moved = match keys.open(&legacy_seal_context(trunk.id), &trunk.credentials) {
            Ok(plain) => Some(keys.seal(&place, &plain)?),
            Err(_sealed_later) => keys.reseal(&place, &trunk.credentials)?,
        };
        if let Some(credentials) = moved {
            sqlx::query!(
                "update trunks set credentials = $2 where id = $1",
                trunk.id as TrunkId,
                credentials,
            )
            .execute(&mut *db)
            .await?;
            resealed += 1;
        }
    }
    Ok(resealed)
}

/// Context to which credentials are bound: they do not open in another trunk's row, or in the
/// same row for another organisation.
fn seal_context((org, id): OwnedTrunk) -> String {
    match org {
        Some(org) => format!("trunks/{org}/{id}/credentials"),
        None => format!("trunks/platform/{id}/credentials"),
    }
}

/// Earlier context without the organisation. Such credentials open until they are resealed by a
/// rotation of the credentials or of the master key.
fn legacy_seal_context(id: TrunkId) -> String {
    format!("trunks/{id}/credentials")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(password: &str, signing: &[&str]) -> CarrierCredentials {
        CarrierCredentials {
            username: None,
            password: password.into(),
            signing_secrets: signing
                .iter()
                .map(|secret| SecretString::from(*secret))
                .collect(),
        }
    }

    #[test]
    fn a_row_that_was_copied_to_another_organisation_does_not_open() {
        let keys = KeyRing::derive(&[7; 32]).unwrap();
        let (org, id) = (OrgId::new(), TrunkId::new());
        let sealed = seal(&keys, (Some(org), id), &credentials("a", &["b"])).unwrap();
        let opened = unseal(&keys, (Some(org), id), &sealed).unwrap();
        assert_eq!(opened.password.expose_secret(), "a");
        for (owner, row) in [
            (Some(OrgId::new()), id),
            (None, id),
            (Some(org), TrunkId::new()),
        ] {
            assert!(unseal(&keys, (owner, row), &sealed).is_err());
        }
        let earlier = keys.seal(&legacy_seal_context(id), br#"{"password": "c"}"#);
        let opened = unseal(&keys, (Some(org), id), &earlier.unwrap()).unwrap();
        assert_eq!(opened.password.expose_secret(), "c");
    }

    #[test]
    fn a_replaced_secret_goes_on_signing_and_old_ones_run_out() {
        let signing = |credentials: &CarrierCredentials| -> Vec<String> {
            let secrets = credentials.signing_secrets.iter();
            secrets
                .map(|secret| secret.expose_secret().to_owned())
                .collect()
        };
        let second = with_old_secrets(&credentials("b", &[]), credentials("a", &[]));
        assert_eq!(signing(&second), ["b", "a"]);
        let third = with_old_secrets(&credentials("c", &[]), second);
        assert_eq!(signing(&third), ["c", "b", "a"]);
        let again = with_old_secrets(&credentials("c", &[]), third);
        assert_eq!(signing(&again), ["c", "b", "a"]);
        assert_eq!(
            signing(&with_old_secrets(&credentials("d", &[]), again)),
            ["d", "c", "b"]
        );
    }
}
