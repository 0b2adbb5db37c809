//! Secrets of providers (models, voices), which are sent to them and therefore stored readable.
//!
//! Each is sealed under a data key of its own, which is sealed under the master key. Both are
//! bound to their row: in another row or organisation they do not open. A rotation of the master
//! key reseals the data keys and leaves the secrets unchanged.

use secrecy::{ExposeSecret, SecretString};
use sqlx::PgConnection;

use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{ApiKeyId, OrgId, UserId};
use crate::platform::secret::KeyRing;

/// Stores a provider's secret for a user.
pub async fn create_unscoped(
    db: &mut PgConnection,
    keys: &KeyRing,
    (org, user): (OrgId, UserId),
    provider: &str,
    secret: &SecretString,
    name: &str,
) -> Result<ApiKeyId> {
    let id = ApiKeyId::new();
    let text = secret.expose_secret();
    let (data_key, sealed) = keys.seal_enveloped(&row_path(org, id), text.as_bytes())?;

    let last4: String = match text.chars().count() {
        // Four characters reveal too much of a short secret.
        0..16 => String::new(),
        length => text.chars().skip(length - 4).collect(),
    };

    sqlx::query!(
        "insert into provider_credentials (id, org_id, user_id, provider_name, name, last4, data_key, secret)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        id as ApiKeyId,
        org as OrgId,
        user as UserId,
        provider,
        name,
        last4,
        data_key,
        sealed,
    )
    .execute(db)
    .await?;
    Ok(id)
}

/// Returns the newest secret of a user for a provider.
pub async fn read(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    user: UserId,
    provider: &str,
) -> Result<Option<SecretString>> {
    let row = sqlx::query!(
        r#"select id as "id: ApiKeyId", org_id as "org_id: OrgId", data_key, secret
           from provider_credentials
           where user_id = $1
             and provider_name = $2
             and revoked_at is null
             and ($3::uuid is null or org_id = $3)
             and ($4::uuid is null or user_id = $4)
           order by created_at desc, id desc
           limit 1"#,
        user as UserId,
        provider,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?;

    let Some(row) = row else { return Ok(None) };
    let path = row_path(row.org_id, row.id);
    let plain = keys.open_enveloped(&path, &row.data_key, &row.secret)?;

    let text = String::from_utf8(plain)
        .map_err(|_bytes| Error::Unexpected(anyhow::anyhow!("a provider's secret is not text")))?;
    Ok(Some(text.into()))
}

/// Reseals data keys under the current master key, of all organisations, for the operator's key
/// rotation. Returns their number.
///
/// # Errors
/// [`Error::Unexpected`] when no configured key opens one.
pub async fn rewrap_unscoped(db: &mut PgConnection, keys: &KeyRing) -> Result<u64> {
    let rows = sqlx::query!(
        r#"select id as "id: ApiKeyId", org_id as "org_id: OrgId", data_key
           from provider_credentials
           order by id
           for no key update"#,
    )
    .fetch_all(&mut *db)
    .await?;

    let mut rewrapped = 0;
    for row in rows {
        let path = row_path(row.org_id, row.id);
        if let Some(data_key) = keys.rewrap(&path, &row.data_key)? {
            sqlx::query!(
                "update provider_credentials set data_key = $2 where id = $1",
                row.id as ApiKeyId,
                data_key,
            )
            .execute(&mut *db)
            .await?;
            rewrapped += 1;
        }
    }
    Ok(rewrapped)
}

/// Row path that seals are bound to.
fn row_path(org: OrgId, id: ApiKeyId) -> String {
    format!("organizations/{org}/provider_credentials/{id}")
}
