//! API keys: credentials of requests without a session.
//!
//! A key is shown once, when it is created. The table stores its HMAC, which finds it again, and
//! enough of its text to recognise it in a list: its prefix if it was generated, and its last
//! four characters. A caller may supply the secret ([`strength`]); such a key has no prefix.
//!
//! A key acts for its user and ends with them. It may expire earlier, and may be restricted to
//! some routes ([`KeyScope`]). Revoking marks the row; the next request with the key fails.
//!
//! Secrets of providers ([`credentials`]) are in another table: they can be read again, and do
//! not authenticate requests to this API.

pub mod credentials;
pub mod strength;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use utoipa::ToSchema;

use crate::access::permissions::{KeyScope, Permissions};
use crate::access::{Credential, Principal, Role, Scope};
use crate::platform::error::{Error, OnConstraint, Result};
use crate::platform::ids::{ApiKeyId, OrgId, UserId};
use crate::platform::page::{Page, PageSlice};
use crate::platform::secret::{KeyRing, new_api_key};
use crate::users;

/// The contract's provider name of keys for this API.
pub const OWN_PROVIDER: &str = "milli_chat_ai";
/// Characters of a generated key that are shown.
const SHOWN_PREFIX_CHARS: usize = 14;

/// A key, or a provider's secret, without its text.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000005", "user_id": "0198c0de-0000-7000-8000-000000000002",
    "organization_id": "0198c0de-0000-7000-8000-000000000001", "name": "CRM", "provider_name": "milli_chat_ai",
    "key_prefix": "peal_live_Zk3v", "last4": "F4gA", "created_at": "2026-06-01T08:00:00Z", "expires_at": null,
    "last_used_at": "2026-06-09T08:00:00Z",
    "scopes": [{"allowed_path_prefix": "/api/v1/batch-call", "allowed_method": "*"}]
}))]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub user_id: UserId,
    pub organization_id: OrgId,
    pub name: String,
    /// `milli_chat_ai` for keys of this API.
    pub provider_name: String,
    /// First characters of the key; empty when the caller supplied it.
    pub key_prefix: String,
    pub last4: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
    /// Requests that the key may send; an empty list allows all that its user may.
    pub scopes: Vec<KeyScope>,
}

/// Settings of a key to be created.
#[derive(Clone, Debug, Default)]
pub struct NewApiKey {
    pub name: String,
    pub expires_at: Option<DateTime<Utc>>,
    pub scopes: Vec<KeyScope>,
}

/// Creates a key for a user, from a supplied secret or a generated one. Returns its text.
///
/// # Errors
/// [`Error::Invalid`] for a secret that is weak or already a key; the message does not tell which.
pub async fn create_from_unscoped(
    db: &mut PgConnection,
    keys: &KeyRing,
    (org, user): (OrgId, UserId),
    supplied: Option<&str>,
    new: &NewApiKey,
) -> Result<(ApiKeyId, String)> {
    let text = match supplied {
        Some(secret) if !strength::is_strong(secret) => return Err(weak_secret()),
        Some(secret) => secret.to_owned(),
        None => new_api_key()?,
    };

    let prefix = match supplied {
        Some(_) => "",
        None => text.get(..SHOWN_PREFIX_CHARS).unwrap_or_default(),
    };
    let last4 = text.get(text.len().saturating_sub(4)..).unwrap_or_default();

    let id = ApiKeyId::new();
    let paths: Vec<String> = new
        .scopes
        .iter()
        .map(|s| s.allowed_path_prefix.clone())
        .collect();
    let methods: Vec<String> = new
        .scopes
        .iter()
        .map(|s| s.allowed_method.clone())
        .collect();

    sqlx::query!(
        "with made as (
             insert into api_keys (id, org_id, user_id, name, prefix, last4, secret_hmac, hashed_under, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, $11, $8)
             returning id, org_id
         )
         insert into api_key_scopes (id, org_id, api_key_id, allowed_path_prefix, allowed_method)
         select gen_random_uuid(), made.org_id, made.id, scope.path, scope.method
         from made, unnest($9::text[], $10::text[]) as scope (path, method)",
        id as ApiKeyId,
        org as OrgId,
        user as UserId,
        new.name,
        prefix,
        last4,
        &keys.api_key_digest(&text)[..],
        new.expires_at,
        &paths,
        &methods,
        keys.fingerprint(),
    )
    .execute(db)
    .await
    .on_constraint("api_key_exists", weak_secret)?;

    Ok((id, text))
}

/// Creates a key with a name only. Returns its text, which cannot be read again.
pub async fn create_unscoped(
    db: &mut PgConnection,
    keys: &KeyRing,
    org: OrgId,
    user: UserId,
    name: &str,
) -> Result<String> {
    let new = NewApiKey {
        name: name.to_owned(),
        ..NewApiKey::default()
    };
    let (_id, text) = create_from_unscoped(db, keys, (org, user), None, &new).await?;
    Ok(text)
}

/// Error for a supplied secret that is weak or in use.
fn weak_secret() -> Error {
    Error::field(
        "api_key",
        "weak_secret",
        "must be a fresh, random secret of 32 to 256 printable characters; leave it out and one is made for you",
    )
}

/// Holder of a text that was sent as a key.
#[derive(Clone, Debug)]
pub enum KeyHolder {
    /// Caller with a valid key.
    Active(Permissions),
    /// User of a key that was revoked, has expired, or whose user was removed.
    Inactive(OrgId, UserId, ApiKeyId),
    /// No such key.
    Unknown,
}

/// Finds the holder of a key; one statement serves valid and invalid keys. Updates the last use of
/// a valid key once a minute, and rehashes it under the current master key.
pub async fn find_holder_unscoped(
    db: &mut PgConnection,
    keys: &KeyRing,
    text: &str,
) -> Result<KeyHolder> {
    let digests = keys.api_key_digests(text);

    let row = sqlx::query!(
        r#"select k.id as "id: ApiKeyId", k.user_id as "user_id: UserId", u.org_id as "org_id: OrgId", u.email,
                  k.secret_hmac <> $2 or coalesce(k.last_used_at < now() - interval '1 minute', true) as "stale!",
                  array(select flag from feature_flags f where f.user_id = u.id and not f.enabled) as "off!",
                  (select coalesce(jsonb_agg(jsonb_build_object('allowed_path_prefix', s.allowed_path_prefix,
                                                                'allowed_method', s.allowed_method)), '[]')
                   from api_key_scopes s
                   where s.api_key_id = k.id) as "scopes!: Json<Vec<KeyScope>>",
                  k.revoked_at is null
                  and (k.expires_at is null or k.expires_at > now())
                  and u.removed_at is null as "good!"
           from api_keys k
           join users u on u.id = k.user_id
           where k.secret_hmac = any($1)
           order by "good!" desc
           limit 1"#,
        &digests.iter().map(|digest| digest.to_vec()).collect::<Vec<_>>(),
        &keys.api_key_digest(text)[..],
    )
    .fetch_optional(&mut *db)
    .await?;

    let Some(row) = row else {
        return Ok(KeyHolder::Unknown);
    };
    if !row.good {
        return Ok(KeyHolder::Inactive(row.org_id, row.user_id, row.id));
    }

    if row.stale {
        sqlx::query!(
            "update api_keys set last_used_at = now(), secret_hmac = $2, hashed_under = $3 where id = $1",
            row.id as ApiKeyId,
            &keys.api_key_digest(text)[..],
            keys.fingerprint(),
        )
        .execute(db)
        .await?;
    }

    Ok(KeyHolder::Active(Permissions {
        principal: Principal {
            user: row.user_id,
            org: row.org_id,
            // Independent of the user's role: see [`Credential::ApiKey`].
            role: Role::User,
            email: Some(row.email),
            credential: Credential::ApiKey(row.id),
        },
        disabled_features: row.off,
        scopes: row.scopes.0,
    }))
}

/// Lists a user's valid keys and providers' secrets, newest first.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    user: UserId,
    page: Page,
) -> Result<PageSlice<ApiKey>> {
    select(db, scope, Some(user), None, page).await
}

/// Finds a valid key or provider's secret in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: ApiKeyId) -> Result<ApiKey> {
    let found = select(db, scope, None, Some(id), Page::WHOLE).await?;
    found
        .rows
        .into_iter()
        .next()
        .ok_or(Error::NotFound("API key"))
}

async fn select(
    db: &mut PgConnection,
    scope: &Scope,
    user: Option<UserId>,
    id: Option<ApiKeyId>,
    page: Page,
) -> Result<PageSlice<ApiKey>> {
    let rows = sqlx::query!(
        r#"select k.id as "id!: ApiKeyId", k.user_id as "user_id!: UserId", k.org_id as "org_id!: OrgId",
                  k.name as "name!", k.provider as "provider!", k.prefix as "prefix!", k.last4 as "last4!",
                  k.created_at as "created_at!", k.expires_at, k.last_used_at,
                  (select coalesce(jsonb_agg(jsonb_build_object('allowed_path_prefix', s.allowed_path_prefix,
                                                                'allowed_method', s.allowed_method)), '[]')
                   from api_key_scopes s
                   where s.api_key_id = k.id) as "scopes!: Json<Vec<KeyScope>>"
           from (select id, org_id, user_id, name, $5::text as provider, prefix, last4, created_at, expires_at,
                        last_used_at
                 from api_keys
                 where revoked_at is null and (expires_at is null or expires_at > now())
                 union all
                 select id, org_id, user_id, name, provider_name, '', last4, created_at, null, null
                 from provider_credentials
                 where revoked_at is null) k
           where ($1::uuid is null or k.org_id = $1)
             and ($2::uuid is null or k.user_id = $2)
             and ($3::uuid is null or k.user_id = $3)
             and ($4::uuid is null or k.id = $4)
           order by k.created_at desc, k.id desc
           limit $6
           offset $7"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        user as Option<UserId>,
        id as Option<ApiKeyId>,
        OWN_PROVIDER,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    let keys = rows.into_iter().map(|row| ApiKey {
        id: row.id,
        user_id: row.user_id,
        organization_id: row.org_id,
        name: row.name,
        provider_name: row.provider,
        key_prefix: row.prefix,
        last4: row.last4,
        created_at: row.created_at,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
        scopes: row.scopes.0,
    });
    Ok(page.slice(keys.collect()))
}

/// Renames a key or a provider's secret. Returns it before and after.
///
/// # Errors
/// As [`find`]; [`Error::Forbidden`] when the role of the key's user is above the caller's.
pub async fn rename(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    id: ApiKeyId,
    name: &str,
) -> Result<(ApiKey, ApiKey)> {
    let before = find(db, scope, id).await?;
    users::check_rank(db, scope, caller, before.user_id).await?;

    sqlx::query!(
        "with ours as (update api_keys set name = $2 where id = $1)
         update provider_credentials set name = $2 where id = $1",
        id as ApiKeyId,
        name,
    )
    .execute(&mut *db)
    .await?;

    let after = ApiKey {
        name: name.to_owned(),
        ..before.clone()
    };
    Ok((before, after))
}

/// Revokes a key or a provider's secret.
///
/// # Errors
/// As [`rename`].
pub async fn revoke(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    id: ApiKeyId,
) -> Result<ApiKey> {
    let key = find(db, scope, id).await?;
    users::check_rank(db, scope, caller, key.user_id).await?;
    sqlx::query!(
        "with ours as (update api_keys set revoked_at = now() where id = $1 and revoked_at is null)
         update provider_credentials set revoked_at = now() where id = $1 and revoked_at is null",
        id as ApiKeyId,
    )
    .execute(db)
    .await?;
    Ok(key)
}

/// Counts valid keys that are not hashed under the current master key, of all organisations. Each
/// is rehashed at its next use.
pub async fn count_outdated_hashes_unscoped(db: &mut PgConnection, keys: &KeyRing) -> Result<i64> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from api_keys
           where revoked_at is null
             and (expires_at is null or expires_at > now())
             and hashed_under is distinct from $1"#,
        keys.fingerprint(),
    )
    .fetch_one(db)
    .await?;
    Ok(count)
}
