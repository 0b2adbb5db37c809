//! API keys. A key is shown once, when it is made; what is stored is its HMAC, by which it is
//! found again, and enough of its text to recognise it in a list.

use sqlx::PgConnection;

use crate::access::{Credential, Principal, Role};
use crate::error::Result;
use crate::ids::{ApiKeyId, OrgId, UserId};
use crate::secret::{Keys, new_api_key};

/// Makes a key for a user. Answers with its text, which cannot be had again.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn create_unscoped(
    db: &mut PgConnection,
    keys: &Keys,
    org: OrgId,
    user: UserId,
    name: &str,
) -> Result<String> {
    let text = new_api_key()?;
    let (prefix, last4) = (
        text.get(..14).unwrap_or_default(),
        text.get(text.len() - 4..).unwrap_or_default(),
    );
    sqlx::query!(
        "insert into api_keys (id, org_id, user_id, name, prefix, last4, secret_hmac)
         values ($1, $2, $3, $4, $5, $6, $7)",
        ApiKeyId::new() as ApiKeyId,
        org as OrgId,
        user as UserId,
        name,
        prefix,
        last4,
        &keys.api_key_digest(&text)[..],
    )
    .execute(db)
    .await?;
    Ok(text)
}

/// The caller behind a key, unless it is unknown or revoked. Its use is noted by the minute.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn principal_unscoped(
    db: &mut PgConnection,
    keys: &Keys,
    text: &str,
) -> Result<Option<Principal>> {
    let row = sqlx::query!(
        r#"select k.id as "id: ApiKeyId", k.user_id as "user_id: UserId", u.org_id as "org_id: OrgId", u.email,
                  u.role as "role: Role",
                  coalesce(k.last_used_at < now() - interval '1 minute', true) as "stale!"
           from api_keys k
           join users u on u.id = k.user_id
           where k.secret_hmac = $1
             and k.revoked_at is null
             and u.removed_at is null"#,
        &keys.api_key_digest(text)[..],
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.stale {
        sqlx::query!(
            "update api_keys set last_used_at = now() where id = $1",
            row.id as ApiKeyId
        )
        .execute(db)
        .await?;
    }
    Ok(Some(Principal {
        user: row.user_id,
        org: row.org_id,
        role: row.role,
        email: Some(row.email),
        credential: Credential::ApiKey(row.id),
    }))
}
