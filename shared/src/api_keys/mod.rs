//! API keys: who calls without a session, and what with.
//!
//! A key is shown once, when it is made; what is stored is its HMAC, by which it is found
//! again, and enough of its text to recognise it in a list: its beginning when we made it, its
//! last four characters either way. Somebody may bring a secret of their own ([`strength`]);
//! such a key shows nothing but its end.
//!
//! A key acts for its user and ends with them. It may end earlier, and may be held to some
//! routes ([`KeyScope`]). Revoking is a mark on the row: whoever asks next finds no key.
//!
//! The secret of a provider ([`credentials`]) is another thing in another table: it can be read
//! again, and opens nothing here.

pub mod credentials;
pub mod strength;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use utoipa::ToSchema;

use crate::access::known::{KeyScope, Known};
use crate::access::{Credential, Principal, Role, Scope};
use crate::error::{Error, OnConstraint, Result};
use crate::ids::{ApiKeyId, OrgId, UserId};
use crate::page::{Page, Slice};
use crate::secret::{Keys, new_api_key};
use crate::users;

/// What the contract calls the provider of keys that open this API.
pub const OURS: &str = "milli_chat_ai";
/// Characters of a key of ours that are shown.
const SHOWN: usize = 14;

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
    /// `milli_chat_ai` for keys that open this API.
    pub provider_name: String,
    /// How the key begins; empty when somebody brought it.
    pub key_prefix: String,
    pub last4: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
    /// What the key may do; nothing listed is everything its user may.
    pub scopes: Vec<KeyScope>,
}

/// A key to make.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    pub name: String,
    pub expires_at: Option<DateTime<Utc>>,
    pub scopes: Vec<KeyScope>,
}

/// Makes a key for a user, from the text that somebody brought or a new one.
///
/// # Errors
/// [`unfit`] for a text that is weak, or a key already: nobody learns which.
pub async fn make_unscoped(
    db: &mut PgConnection,
    keys: &Keys,
    (org, user): (OrgId, UserId),
    brought: Option<&str>,
    new: &NewKey,
) -> Result<(ApiKeyId, String)> {
    let text = match brought {
        Some(brought) if !strength::is_strong(brought) => return Err(unfit()),
        Some(brought) => brought.to_owned(),
        None => new_api_key()?,
    };
    let shown = match brought {
        Some(_) => "",
        None => text.get(..SHOWN).unwrap_or_default(),
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
        shown,
        last4,
        &keys.api_key_digest(&text)[..],
        new.expires_at,
        &paths,
        &methods,
        keys.name(),
    )
    .execute(db)
    .await
    .on_constraint("api_key_exists", unfit)?;
    Ok((id, text))
}

/// Makes a key with nothing but a name. Answers with its text, which cannot be had again.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn create_unscoped(
    db: &mut PgConnection,
    keys: &Keys,
    org: OrgId,
    user: UserId,
    name: &str,
) -> Result<String> {
    let new = NewKey {
        name: name.to_owned(),
        ..NewKey::default()
    };
    let (_id, text) = make_unscoped(db, keys, (org, user), None, &new).await?;
    Ok(text)
}

/// What whoever brings a weak secret is told, and whoever brings one that is in use.
fn unfit() -> Error {
    Error::field(
        "api_key",
        "weak_secret",
        "must be a fresh, random secret of 32 to 256 printable characters; leave it out and one is made for you",
    )
}

/// Whose a text is that was shown as a key.
#[derive(Clone, Debug)]
pub enum Holder {
    /// The caller behind a good key.
    Caller(Known),
    /// Whoever had a key that is no good any more: it was revoked, has expired, or they have left.
    Ended(OrgId, UserId, ApiKeyId),
    /// No key has this text.
    Nobody,
}

/// Whose a key is, by one statement whether it is good or not. The use of a good one is noted by
/// the minute, and one that was hashed under an earlier master key is hashed anew.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn holder_unscoped(db: &mut PgConnection, keys: &Keys, text: &str) -> Result<Holder> {
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
        return Ok(Holder::Nobody);
    };
    if !row.good {
        return Ok(Holder::Ended(row.org_id, row.user_id, row.id));
    }
    if row.stale {
        sqlx::query!(
            "update api_keys set last_used_at = now(), secret_hmac = $2, hashed_under = $3 where id = $1",
            row.id as ApiKeyId,
            &keys.api_key_digest(text)[..],
            keys.name(),
        )
        .execute(db)
        .await?;
    }
    Ok(Holder::Caller(Known {
        principal: Principal {
            user: row.user_id,
            org: row.org_id,
            // Whatever its user is or becomes: see [`Credential::ApiKey`].
            role: Role::User,
            email: Some(row.email),
            credential: Credential::ApiKey(row.id),
        },
        off: row.off,
        scopes: row.scopes.0,
    }))
}

/// A user's keys and providers' secrets that are good, the newest first.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    user: UserId,
    page: Page,
) -> Result<Slice<ApiKey>> {
    select(db, scope, Some(user), None, page).await
}

/// A good key or provider's secret in the caller's sight.
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
) -> Result<Slice<ApiKey>> {
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
        OURS,
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

/// Gives a key or a provider's secret another name.
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

/// Ends a key or a provider's secret for good.
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

/// How many good keys are not known to be under the present master key, of all organisations.
/// Each is hashed anew when it is used next.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn count_under_earlier_unscoped(db: &mut PgConnection, keys: &Keys) -> Result<i64> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from api_keys
           where revoked_at is null
             and (expires_at is null or expires_at > now())
             and hashed_under is distinct from $1"#,
        keys.name(),
    )
    .fetch_one(db)
    .await?;
    Ok(count)
}
