//! Trunks: accounts with carriers, their sealed credentials and their pace.
//!
//! A trunk that the carrier refuses (wrong secret, no credit) is paused with the reason, because
//! every further call would fail the same way and cost a row its attempt; its owner resumes it.

pub mod pacer;
mod sealed;
pub mod settings;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool};
use url::Url;

pub use sealed::reseal_unscoped;
use sealed::{seal, unseal, with_old_secrets};

use crate::platform::error::{Error, OnConstraint as _, Result};
use crate::platform::ids::{OrgId, TrunkId};
use crate::platform::secret::KeyRing;
use crate::telephony::{CarrierAccount, CarrierCredentials, CarrierKind};
use crate::trunks::pacer::TrunkPace;

/// Longest time that a replica uses an account from its cache.
const CACHE_TTL: Duration = Duration::from_secs(5);

/// A trunk to create.
#[derive(Clone, Debug)]
pub struct NewTrunk {
    /// `None` for the platform's own, open to every organisation with a number on it.
    pub org: Option<OrgId>,
    pub name: String,
    pub account: CarrierAccount,
    pub cps: Decimal,
    pub max_concurrent: i32,
    pub ring_timeout_secs: i32,
}

/// Creates a trunk and its pacer, which grants its first slot one horizon from now.
///
/// # Errors
/// [`Error::NotFound`] for an unknown organisation.
pub async fn create_unscoped(
    db: &mut PgConnection,
    keys: &KeyRing,
    trunk: &NewTrunk,
) -> Result<TrunkId> {
    let id = TrunkId::new();
    upsert(db, keys, id, trunk, &trunk.account.credentials).await?;
    Ok(id)
}

/// Inserts or updates a trunk, and inserts its pacer if there is none. An existing trunk keeps
/// its owner and name, and becomes active.
async fn upsert(
    db: &mut PgConnection,
    keys: &KeyRing,
    id: TrunkId,
    trunk: &NewTrunk,
    credentials: &CarrierCredentials,
) -> Result<()> {
    let sealed = seal(keys, (trunk.org, id), credentials)?;

    sqlx::query!(
        "with written as (
             insert into trunks (id, org_id, name, kind, account_id, credentials, api_base_url,
                                 cps, max_concurrent, ring_timeout_secs)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             on conflict (id) do update
             set account_id = excluded.account_id, credentials = excluded.credentials,
                 api_base_url = excluded.api_base_url, cps = excluded.cps,
                 max_concurrent = excluded.max_concurrent, ring_timeout_secs = excluded.ring_timeout_secs,
                 status = 'active', status_reason = null, updated_at = now()
             returning id
         )
         insert into pacers (trunk_id, next_slot)
         select id, clock_timestamp() + interval '500 milliseconds'
         from written
         on conflict (trunk_id) do nothing",
        id as TrunkId,
        trunk.org as Option<OrgId>,
        trunk.name,
        trunk.account.kind as CarrierKind,
        trunk.account.account_id,
        sealed,
        trunk.account.api_base_url.as_ref().map(Url::as_str),
        trunk.cps,
        trunk.max_concurrent,
        trunk.ring_timeout_secs,
    )
    .execute(db)
    .await
    .on_constraint("trunks_org_id_fkey", || Error::NotFound("Organization"))?;
    Ok(())
}

/// Finds an organisation's trunk on a carrier's account.
pub async fn find_by_account_unscoped(
    db: &mut PgConnection,
    org: OrgId,
    kind: CarrierKind,
    account_id: &str,
) -> Result<Option<TrunkId>> {
    let id = sqlx::query_scalar!(
        r#"select id as "id: TrunkId"
           from trunks
           where org_id = $1
             and kind = $2
             and account_id = $3
             and deleted_at is null
           order by created_at
           limit 1"#,
        org as OrgId,
        kind as CarrierKind,
        account_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(id)
}

/// Lists all organisations' trunks on a carrier's account. Carriers have no principal; the sender
/// of the callback must then authenticate as the trunk's carrier.
pub async fn list_by_account_unscoped(
    db: &mut PgConnection,
    kind: CarrierKind,
    account_id: &str,
) -> Result<Vec<TrunkId>> {
    let trunks = sqlx::query_scalar!(
        r#"select id as "id: TrunkId"
           from trunks
           where kind = $1
             and account_id = $2
             and deleted_at is null
           order by created_at, id"#,
        kind as CarrierKind,
        account_id,
    )
    .fetch_all(db)
    .await?;
    Ok(trunks)
}

/// Replaces a trunk's account, credentials and limits. Its numbers stay, and the previous signing
/// secrets still verify callbacks, for calls in progress.
///
/// # Errors
/// [`Error::NotFound`] for an unknown trunk.
pub async fn replace_unscoped(
    db: &mut PgConnection,
    keys: &KeyRing,
    id: TrunkId,
    trunk: &NewTrunk,
) -> Result<()> {
    let before = sqlx::query!(
        r#"select org_id as "org_id: OrgId", credentials from trunks where id = $1 for update"#,
        id as TrunkId
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Trunk"))?;
    let old = unseal(keys, (before.org_id, id), &before.credentials)?;
    let credentials = with_old_secrets(&trunk.account.credentials, old);
    let kept = NewTrunk {
        org: before.org_id,
        ..trunk.clone()
    };
    upsert(db, keys, id, &kept, &credentials).await
}

/// Reads a trunk's account. Carriers and workers act for the platform, not for a principal.
///
/// # Errors
/// [`Error::NotFound`] for an unknown trunk.
pub async fn account_unscoped(
    pool: &PgPool,
    keys: &KeyRing,
    id: TrunkId,
) -> Result<CarrierAccount> {
    let row = sqlx::query!(
        r#"select org_id as "org_id: OrgId", kind as "kind: CarrierKind", account_id, credentials, api_base_url
           from trunks
           where id = $1"#,
        id as TrunkId,
    )
    .fetch_optional(pool)
    .await?
    .ok_or(Error::NotFound("trunk"))?;
    let credentials = unseal(keys, (row.org_id, id), &row.credentials)?;
    let api_base_url = row
        .api_base_url
        .map(|url| Url::parse(&url))
        .transpose()
        .context("the trunk's api_base_url")?;
    Ok(CarrierAccount {
        kind: row.kind,
        account_id: row.account_id,
        credentials,
        api_base_url,
    })
}

/// Pauses a trunk that its carrier refuses.
pub async fn pause_unscoped(db: &mut PgConnection, id: TrunkId, why: &str) -> Result<()> {
    sqlx::query!(
        "update trunks
         set status = 'paused', status_reason = $2, updated_at = now()
         where id = $1
           and status = 'active'",
        id as TrunkId,
        why,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Message about a paused trunk for users who call through it.
#[must_use]
pub fn paused_message(reason: Option<&str>) -> String {
    format!(
        "the caller number's trunk is paused: {}",
        reason.unwrap_or("by its owner")
    )
}

/// A trunk as the operator sees it, without credentials.
#[derive(Clone, Debug, Serialize)]
pub struct TrunkState {
    pub id: TrunkId,
    pub org_id: Option<OrgId>,
    pub name: String,
    pub status: String,
    pub status_reason: Option<String>,
    pub cps: Decimal,
    pub max_concurrent: i32,
    pub live_calls: i64,
    /// 1 is full speed; more after the carrier throttled calls.
    pub slowdown: Option<f64>,
}

/// Lists all trunks of the installation, for the operator.
pub async fn list_unscoped(db: &mut PgConnection) -> Result<Vec<TrunkState>> {
    let trunks = sqlx::query_as!(
        TrunkState,
        r#"select t.id as "id: TrunkId", t.org_id as "org_id: OrgId", t.name, t.status, t.status_reason, t.cps,
                  t.max_concurrent,
                  (select count(*) from calls c where c.trunk_id = t.id and c.live) as "live_calls!",
                  1 + (p.slowdown - 1) * power(0.5, least(extract(epoch from now() - p.slowed_at), 600)::float8 / 10) as slowdown
           from trunks t
           left join pacers p on p.trunk_id = t.id
           where t.deleted_at is null
           order by t.created_at, t.id"#,
    )
    .fetch_all(db)
    .await?;
    Ok(trunks)
}

/// Resumes a paused trunk, after the operator fixed the cause of the pause.
///
/// # Errors
/// [`Error::NotFound`] for an unknown trunk.
pub async fn resume_unscoped(db: &mut PgConnection, id: TrunkId) -> Result<()> {
    let updated = sqlx::query!(
        "update trunks
         set status = 'active', status_reason = null, updated_at = now()
         where id = $1
           and deleted_at is null",
        id as TrunkId,
    )
    .execute(db)
    .await?;
    if updated.rows_affected() == 0 {
        return Err(Error::NotFound("Trunk"));
    }
    Ok(())
}

/// Lists the active trunks with work: a running batch, queued direct calls or deferred calls.
pub async fn list_with_work_unscoped(pool: &PgPool) -> Result<Vec<TrunkId>> {
    let ids = sqlx::query_scalar!(
        r#"select t.id as "id: TrunkId"
           from trunks t
           where t.status = 'active'
             and (exists (select from call_batches b
                          where b.trunk_id = t.id and b.status = 'in_progress' and b.launched_at is not null
                            and exists (select from batch_data d
                                        where d.batch_id = b.id and d.status = 'not_started' and d.due_at <= now()))
                  or exists (select from calls c where c.trunk_id = t.id and c.queued)
                  or exists (select from calls c where c.trunk_id = t.id and c.deferred and c.check_at <= now()))"#,
    )
    .fetch_all(pool)
    .await?;
    Ok(ids)
}

/// Slows a trunk down after its carrier throttled calls, at most once a second: a burst of
/// throttled calls counts once.
pub async fn throttle_unscoped(db: &mut PgConnection, trunk: TrunkId) -> Result<()> {
    let mut db = db.begin().await?;
    let pacer = sqlx::query!(
        r#"select p.next_slot, p.slowdown, p.slowed_at, t.cps, clock_timestamp() as "now!"
           from pacers p
           join trunks t on t.id = p.trunk_id
           where p.trunk_id = $1
             and coalesce(p.slowed_at < clock_timestamp() - interval '1 second', true)
           for update of p"#,
        trunk as TrunkId,
    )
    .fetch_optional(&mut *db)
    .await?;

    if let Some(pacer) = pacer {
        let pace = TrunkPace {
            cps: pacer.cps.to_f64().unwrap_or_default(),
            next_slot: pacer.next_slot,
            slowdown: pacer.slowdown,
            slowed_at: pacer.slowed_at,
        };
        sqlx::query!(
            "update pacers set slowdown = $2, slowed_at = $3 where trunk_id = $1",
            trunk as TrunkId,
            pace.slowdown_after_push_back(pacer.now),
            pacer.now,
        )
        .execute(&mut *db)
        .await?;
    }

    db.commit().await?;
    Ok(())
}

/// Cache of accounts. Hundreds of callbacks arrive per second and each needs its trunk's secrets;
/// a changed secret takes effect within five seconds.
#[derive(Clone, Default)]
pub struct AccountCache {
    entries: Arc<Mutex<HashMap<TrunkId, CachedAccount>>>,
}

/// An account and the time at which it was read.
type CachedAccount = (Instant, Arc<CarrierAccount>);

impl AccountCache {
    /// Returns the account of a trunk, from the cache when it is fresh.
    ///
    /// # Errors
    /// As [`account_unscoped`].
    pub async fn get(
        &self,
        pool: &PgPool,
        keys: &KeyRing,
        id: TrunkId,
    ) -> Result<Arc<CarrierAccount>> {
        if let Some(account) = self.cached(id) {
            return Ok(account);
        }
        let account = Arc::new(account_unscoped(pool, keys, id).await?);
        if let Ok(mut entries) = self.entries.lock() {
            entries.retain(|_, (read_at, _)| read_at.elapsed() < CACHE_TTL);
            entries.insert(id, (Instant::now(), Arc::clone(&account)));
        }
        Ok(account)
    }

    fn cached(&self, id: TrunkId) -> Option<Arc<CarrierAccount>> {
        let entries = self.entries.lock().ok()?;
        let (read_at, account) = entries.get(&id)?;
        (read_at.elapsed() < CACHE_TTL).then(|| Arc::clone(account))
    }
}
