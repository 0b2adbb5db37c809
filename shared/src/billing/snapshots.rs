//! Price snapshots: the frozen prices of calls. Equal prices of an organisation share a row, so a
//! campaign of a million calls has only as many rows as price changes while it ran.

use std::collections::{BTreeMap, HashMap};

use anyhow::anyhow;
use rust_decimal::Decimal;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::quote::{CallPrices, ResellerTerms, ServiceRate};
use crate::platform::error::Result;
use crate::platform::ids::{OrgId, SnapshotId};

/// Key of a snapshot: its organisation, and the SHA-256 of its prices.
pub type SnapshotKey = (OrgId, [u8; 32]);

/// Snapshots of a set of prices.
pub struct FrozenSnapshots {
    /// Ids in the order of the prices.
    pub ids: Vec<SnapshotId>,
    /// Snapshots that existed before.
    pub existing: HashMap<SnapshotKey, SnapshotId>,
}

/// Returns the key of a snapshot.
pub fn snapshot_key(org: OrgId, prices: &CallPrices) -> Result<SnapshotKey> {
    Ok((org, Sha256::digest(serde_json::to_vec(prices)?).into()))
}

/// Finds or stores the snapshots of prices. The organisations were found in a scope, or by the
/// dialler.
pub async fn freeze_unscoped(
    db: &mut PgConnection,
    wanted: &[(OrgId, CallPrices)],
) -> Result<FrozenSnapshots> {
    let mut keys = Vec::with_capacity(wanted.len());
    let mut distinct: BTreeMap<SnapshotKey, &CallPrices> = BTreeMap::new();
    for (org, prices) in wanted {
        let key = snapshot_key(*org, prices)?;
        keys.push(key);
        distinct.insert(key, prices);
    }

    let found = find(db, &distinct).await?;
    let mut known = found.clone();
    distinct.retain(|key, _| !known.contains_key(key));
    if !distinct.is_empty() {
        insert(db, &distinct).await?;
        known.extend(find(db, &distinct).await?);
    }

    let ids = keys
        .iter()
        .map(|key| known.get(key).copied())
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| anyhow!("a price snapshot was not stored"))?;
    Ok(FrozenSnapshots {
        ids,
        existing: found,
    })
}

async fn find(
    db: &mut PgConnection,
    distinct: &BTreeMap<SnapshotKey, &CallPrices>,
) -> Result<HashMap<SnapshotKey, SnapshotId>> {
    let (orgs, digests) = key_columns(distinct);
    let rows = sqlx::query!(
        r#"select s.id as "id: SnapshotId", s.org_id as "org_id: OrgId", s.digest
           from unnest($1::uuid[], $2::bytea[]) as w (org_id, digest)
           join price_snapshots s on s.org_id = w.org_id and s.digest = w.digest"#,
        &orgs as &[OrgId],
        &digests,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let digest = row.digest.try_into();
            let digest = digest
                .map_err(|_longer| anyhow!("a price snapshot's digest has a wrong length"))?;
            Ok(((row.org_id, digest), row.id))
        })
        .collect()
}

fn key_columns(distinct: &BTreeMap<SnapshotKey, &CallPrices>) -> (Vec<OrgId>, Vec<Vec<u8>>) {
    distinct
        .keys()
        .map(|(org, digest)| (*org, digest.to_vec()))
        .unzip()
}

/// Stores snapshots, in key order so that concurrent inserts of the same keys cannot deadlock.
async fn insert(
    db: &mut PgConnection,
    distinct: &BTreeMap<SnapshotKey, &CallPrices>,
) -> Result<()> {
    let (orgs, digests) = key_columns(distinct);
    let ids: Vec<SnapshotId> = distinct.iter().map(|_| SnapshotId::new()).collect();

    let rates = distinct
        .values()
        .map(|prices| serde_json::to_value(&prices.rates))
        .collect::<Result<Vec<_>, _>>()?;
    let terms: Vec<&ResellerTerms> = distinct.values().map(|prices| &prices.terms).collect();
    let resellers: Vec<Option<OrgId>> = terms.iter().map(|terms| terms.reseller_org_id).collect();
    let types: Vec<&str> = terms.iter().map(|terms| terms.org_type.as_str()).collect();
    let markups: Vec<Decimal> = terms.iter().map(|terms| terms.markup_percent).collect();
    let commissions: Vec<Decimal> = terms.iter().map(|terms| terms.commission_percent).collect();

    sqlx::query!(
        "insert into price_snapshots (id, org_id, digest, rates, reseller_org_id, org_type, markup_percent,
                                      commission_percent)
         select *
         from unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::jsonb[], $5::uuid[], $6::text[], $7::numeric[],
                     $8::numeric[])
         on conflict on constraint price_snapshot_exists do nothing",
        &ids as &[SnapshotId],
        &orgs as &[OrgId],
        &digests,
        &rates,
        &resellers as &[Option<OrgId>],
        &types as &[&str],
        &markups,
        &commissions,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Loads snapshots. They were found through their calls, so there is no scope.
pub async fn load_unscoped(
    db: &mut PgConnection,
    snapshots: &[SnapshotId],
) -> Result<HashMap<SnapshotId, CallPrices>> {
    let rows = sqlx::query!(
        r#"select id as "id: SnapshotId", rates, reseller_org_id as "reseller_org_id: OrgId", org_type,
                  markup_percent, commission_percent
           from price_snapshots
           where id = any ($1)"#,
        snapshots as &[SnapshotId],
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let rates: Vec<ServiceRate> = serde_json::from_value(row.rates)?;
            let terms = ResellerTerms {
                reseller_org_id: row.reseller_org_id,
                org_type: row.org_type,
                markup_percent: row.markup_percent.normalize(),
                commission_percent: row.commission_percent.normalize(),
            };
            Ok((row.id, CallPrices { rates, terms }))
        })
        .collect()
}
