//! Verification of the ledger and of all charges, recomputed from the rows.
//!
//! `wallets/verify.sql` checks the ledger, wallets, grants and holds; this module prices each
//! ended call again, from its carrier's duration and its frozen prices, and compares the result
//! with its charges. All reads share one database snapshot, so it may run during calls.

use futures::TryStreamExt;
use serde_json::json;
use sqlx::{PgConnection, PgPool};

use super::quote::{Bill, CallUsage, price_call};
use super::snapshots;
use crate::platform::error::Result;
use crate::platform::ids::{CallId, SnapshotId};
use crate::platform::money::Usd;
use crate::wallets::verify::{LedgerViolation, violations_unscoped};

/// Begins one snapshot for all reads, with plans that scan whole tables.
const WHOLE_TABLES: &str =
    "begin isolation level repeatable read read only; set local enable_seqscan = on";

/// Verifies the ledger and all charges, of all tenants. Returns the rows that do not add up. Calls
/// that wait for settlement are not priced.
pub async fn verify_unscoped(pool: &PgPool) -> Result<Vec<LedgerViolation>> {
    let mut db = pool.begin_with(WHOLE_TABLES).await?;
    let mut offenders = violations_unscoped(&mut db).await?;
    offenders.extend(find_mispriced(&mut db).await?);
    db.rollback().await?;
    Ok(offenders)
}

/// Finds calls whose charges differ from their price.
async fn find_mispriced(db: &mut PgConnection) -> Result<Vec<LedgerViolation>> {
    let snapshots = sqlx::query_scalar!(r#"select id as "id: SnapshotId" from price_snapshots"#)
        .fetch_all(&mut *db)
        .await?;
    let prices = snapshots::load_unscoped(db, &snapshots).await?;

    let mut offenders = Vec::new();
    let mut calls = sqlx::query!(
        r#"select c.id as "id: CallId", c.duration_seconds, c.carrier_call_id is not null as "attempted!",
                  h.price_snapshot_id as "snapshot_id: SnapshotId", coalesce(k.seconds, 0) as "seconds!",
                  coalesce(k.base, 0)::bigint as "base!: Usd", coalesce(k.retail, 0)::bigint as "retail!: Usd",
                  coalesce(k.markup, 0)::bigint as "markup!: Usd",
                  coalesce(k.commission, 0)::bigint as "commission!: Usd"
           from holds h
           join calls c on c.id = h.call_id
           left join (
               select call_id, sum(billed_seconds) as seconds, sum(base_micros) as base, sum(retail_micros) as retail,
                      sum(markup_micros) as markup, sum(commission_micros) as commission
               from charges
               group by call_id
           ) k on k.call_id = c.id
           where c.status = 'final'
             and not exists (select from charges_due d where d.call_id = c.id)"#,
    )
    .fetch(db);

    while let Some(call) = calls.try_next().await? {
        let used = CallUsage {
            attempted: call.attempted,
            seconds: call.duration_seconds.unwrap_or_default(),
        };
        let bill = prices
            .get(&call.snapshot_id)
            .map(|prices| price_call(prices, used))
            .unwrap_or_default();

        let charged = [call.base, call.retail, call.markup, call.commission];
        if !matches_charge(&bill, call.seconds, charged) {
            offenders.push(LedgerViolation {
                check: "call_is_charged_its_price",
                of: call.id.to_string(),
                found: json!({
                    "price": bill.retail, "charged": call.retail, "base": bill.base, "charged_base": call.base,
                    "seconds": used.seconds, "billed_seconds": bill.billed_seconds, "charged_seconds": call.seconds,
                }),
            });
        }
    }
    Ok(offenders)
}

/// Compares a bill with the charged amounts. Seconds are not compared for a bill of zero, which has
/// no charge.
fn matches_charge(bill: &Bill, seconds: i64, charged: [Usd; 4]) -> bool {
    if charged != [bill.base, bill.retail, bill.markup, bill.commission] {
        return false;
    }
    bill.retail.is_zero() || seconds == i64::from(bill.billed_seconds)
}
