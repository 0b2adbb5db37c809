//! Trunks for their administrators. Secrets are written and never returned. A trunk without an
//! organisation belongs to the platform and is invisible to organisations.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::sealed::{OwnedTrunk, seal, unseal, with_old_secrets};
use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{OrgId, TrunkId};
use crate::platform::page::{Page, PageSlice};
use crate::platform::secret;
use crate::platform::secret::KeyRing;
use crate::telephony::{CarrierCredentials, CarrierKind};

/// A trunk.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Trunk {
    pub id: TrunkId,
    /// Null for the platform's own.
    pub organization_id: Option<OrgId>,
    pub name: String,
    pub kind: CarrierKind,
    /// The carrier's id of the account.
    pub account_id: String,
    /// `active`, or `paused`: nothing is dialled.
    #[schema(value_type = String, example = "active")]
    pub status: String,
    /// Reason of the pause.
    pub status_reason: Option<String>,
    /// Calls per second that the carrier grants.
    pub cps: f64,
    /// Calls at once that the carrier grants.
    pub max_concurrent: i32,
    /// Longest time that a call rings.
    pub ring_timeout_secs: i32,
    pub live_calls: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Settings of a trunk that can be changed at any time.
#[derive(Clone, Debug)]
pub struct TrunkUpdate {
    pub name: String,
    pub cps: Decimal,
    pub max_concurrent: i32,
    pub ring_timeout_secs: i32,
}

struct TrunkSettingsRow {
    id: TrunkId,
    org_id: Option<OrgId>,
    name: String,
    kind: CarrierKind,
    account_id: String,
    status: String,
    status_reason: Option<String>,
    cps: Decimal,
    max_concurrent: i32,
    ring_timeout_secs: i32,
    live_calls: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<TrunkSettingsRow> for Trunk {
    fn from(row: TrunkSettingsRow) -> Self {
        Self {
            id: row.id,
            organization_id: row.org_id,
            name: row.name,
            kind: row.kind,
            account_id: row.account_id,
            status: row.status,
            status_reason: row.status_reason,
            cps: row.cps.to_f64().unwrap_or_default(),
            max_concurrent: row.max_concurrent,
            ring_timeout_secs: row.ring_timeout_secs,
            live_calls: row.live_calls,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Lists the trunks in the scope, the newest first; only the trunk `id` when given.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    id: Option<TrunkId>,
    page: Page,
) -> Result<PageSlice<Trunk>> {
    let rows = sqlx::query_as!(
        TrunkSettingsRow,
        r#"select t.id as "id: TrunkId", t.org_id as "org_id: OrgId", t.name, t.kind as "kind: CarrierKind",
                  t.account_id, t.status, t.status_reason, t.cps, t.max_concurrent, t.ring_timeout_secs,
                  (select count(*) from calls c where c.trunk_id = t.id and c.live) as "live_calls!",
                  t.created_at, t.updated_at
           from trunks t
           where t.deleted_at is null
             and ($1::uuid is null or t.org_id = $1)
             and ($2::uuid is null or t.id = $2)
           order by t.created_at desc, t.id desc
           limit $3
           offset $4"#,
        scope.org() as Option<OrgId>,
        id as Option<TrunkId>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;
    Ok(page.slice(rows.into_iter().map(Trunk::from).collect()))
}

/// Finds a trunk in the scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: TrunkId) -> Result<Trunk> {
    let found = list(db, scope, Some(id), Page::WHOLE).await?;
    found
        .rows
        .into_iter()
        .next()
        .ok_or(Error::NotFound("Trunk"))
}

/// Locks a trunk in the scope and reads it.
///
/// # Errors
/// [`Error::NotFound`] for a trunk outside the scope, which is not locked.
pub async fn lock(db: &mut PgConnection, scope: &Scope, id: TrunkId) -> Result<Trunk> {
    sqlx::query!(
        "select from trunks where id = $1 and ($2::uuid is null or org_id = $2) for no key update",
        id as TrunkId,
        scope.org() as Option<OrgId>,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Trunk"))?;

    // A statement of its own: its snapshot is taken after the lock.
    find(db, scope, id).await
}

/// Changes the name and limits of a locked trunk, from the next call on.
pub async fn update(
    db: &mut PgConnection,
    scope: &Scope,
    id: TrunkId,
    limits: &TrunkUpdate,
) -> Result<Trunk> {
    sqlx::query!(
        "update trunks
         set name = $2, cps = $3, max_concurrent = $4, ring_timeout_secs = $5, updated_at = now()
         where id = $1",
        id as TrunkId,
        limits.name,
        limits.cps,
        limits.max_concurrent,
        limits.ring_timeout_secs,
    )
    .execute(&mut *db)
    .await?;
    find(db, scope, id).await
}

/// Replaces the credentials of a locked trunk. The previous signing secrets still verify
/// callbacks, for calls in progress.
pub async fn rotate_credentials(
    db: &mut PgConnection,
    scope: &Scope,
    keys: &KeyRing,
    id: TrunkId,
    credentials: &CarrierCredentials,
) -> Result<Trunk> {
    let before = sqlx::query!(
        r#"select org_id as "org_id: OrgId", credentials from trunks where id = $1"#,
        id as TrunkId
    )
    .fetch_one(&mut *db)
    .await?;
    let owned = (before.org_id, id);
    let credentials = with_old_secrets(credentials, unseal(keys, owned, &before.credentials)?);
    write_credentials_unscoped(db, keys, owned, &credentials).await?;
    find(db, scope, id).await
}

async fn write_credentials_unscoped(
    db: &mut PgConnection,
    keys: &KeyRing,
    trunk: OwnedTrunk,
    credentials: &CarrierCredentials,
) -> Result<()> {
    sqlx::query!(
        "update trunks set credentials = $2, updated_at = now() where id = $1",
        trunk.1 as TrunkId,
        seal(keys, trunk, credentials)?,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Pauses a locked trunk with a reason, or resumes it without one. Calls in progress continue.
pub async fn set_paused(
    db: &mut PgConnection,
    scope: &Scope,
    id: TrunkId,
    reason: Option<&str>,
) -> Result<Trunk> {
    let status = match reason {
        Some(_) => "paused",
        None => "active",
    };
    sqlx::query!(
        "update trunks set status = $2, status_reason = $3, updated_at = now() where id = $1",
        id as TrunkId,
        status,
        reason,
    )
    .execute(&mut *db)
    .await?;
    find(db, scope, id).await
}

/// Deletes a trunk and its secrets. Past calls still refer to it.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] while calls or numbers use it.
pub async fn delete(
    db: &mut PgConnection,
    scope: &Scope,
    keys: &KeyRing,
    id: TrunkId,
) -> Result<Trunk> {
    let trunk = lock(db, scope, id).await?;

    // 1. Nothing may use the trunk.
    let used = sqlx::query!(
        r#"select exists (select from calls where trunk_id = $1 and live)
                  or exists (select from calls where trunk_id = $1 and queued) as "on_call!",
                  (select count(*) from phone_numbers where trunk_id = $1 and deleted_at is null) as "numbers!""#,
        id as TrunkId,
    )
    .fetch_one(&mut *db)
    .await?;
    if used.on_call {
        return Err(Error::conflict(
            "trunk_in_use",
            "the trunk has active calls: pause it, wait for their end, then delete it",
        ));
    }
    if used.numbers > 0 {
        return Err(Error::conflict(
            "trunk_has_numbers",
            format!(
                "{} phone numbers use the trunk: delete them or move them to another trunk first",
                used.numbers
            ),
        ));
    }

    // 2. Overwrite the secrets.
    let random = CarrierCredentials {
        username: None,
        // Random and never returned, so no callback can be signed with it.
        password: secret::new_api_key()?.into(),
        signing_secrets: Vec::new(),
    };
    let owned = (trunk.organization_id, id);
    write_credentials_unscoped(db, keys, owned, &random).await?;

    // 3. Mark the row as deleted.
    sqlx::query!(
        "update trunks set status = 'paused', status_reason = 'deleted', deleted_at = now() where id = $1",
        id as TrunkId,
    )
    .execute(db)
    .await?;
    Ok(trunk)
}
