//! From due rows to calls: lock, price, hold, insert.
//!
//! Rows are locked, priced by the prices in force, and become calls as far as their wallets can
//! pay the worst case of each. The others stay `not_started` with the reason, and their batch is
//! skipped for two seconds. A call and the hold of its cost are committed together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use uuid::Uuid;

use super::claim::{ClaimRequest, ClaimedCall, ClaimedCallRow};
use super::fair::SlotDivision;
use crate::billing::quote::{CallPrices, PricedCall, ResellerTerms, max_cost};
use crate::platform::e164::E164;
use crate::platform::error::Result;
use crate::platform::ids::{BatchId, CallId, OrgId, RowId, TrunkId, WalletId};
use crate::platform::money::Usd;
use crate::wallets::holds::{HoldRequest, Refusal, insert_unscoped, try_hold};
use crate::wallets::{WalletState, lock_unscoped};

/// Funding of a batch that was granted slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Funding {
    /// Money was held for at least one of its rows.
    Funded,
    /// Rows were due, and the wallet could pay for none of them.
    Unfunded(Refusal),
}

/// Calls made from rows, and the funding of their batches.
#[derive(Default)]
pub(super) struct ClaimedRows {
    pub calls: Vec<ClaimedCall>,
    pub funding: HashMap<BatchId, Funding>,
    /// Time spent on prices and holds.
    pub funding_time: Duration,
}

struct CallableRow {
    row_id: RowId,
    to: E164,
    batch_id: BatchId,
    org_id: OrgId,
    wallet_id: WalletId,
    session_timeout_secs: i32,
    /// True when its call is made under HIPAA.
    hipaa_compliance: bool,
    model: Option<String>,
    speech: Option<String>,
    reseller_org_id: Option<OrgId>,
    org_type: Option<String>,
    markup_percent: Option<Decimal>,
    commission_percent: Option<Decimal>,
    /// Edition of the price catalogue.
    edition: Uuid,
}

/// Claims batch rows: each becomes a call, unless its number has a live call already or its
/// wallet cannot pay.
pub(super) async fn claim_rows(
    db: &mut PgConnection,
    request: ClaimRequest<'_>,
    division: &SlotDivision,
    now: DateTime<Utc>,
) -> Result<ClaimedRows> {
    // 1. Lock the due rows.
    let picked = lock_due_rows(db, division).await?;
    if picked.is_empty() {
        return Ok(ClaimedRows::default());
    }

    // 2. Price them.
    let started = Instant::now();
    let wanted = price_rows(db, request, &picked, now).await?;

    // 3. Lock the wallets by id, and select the rows they can pay.
    let mut wallets: Vec<WalletId> = picked.iter().map(|row| row.wallet_id).collect();
    wallets.sort_unstable();
    wallets.dedup();
    let locked = lock_unscoped(db, &wallets, now).await?;
    let (affordable, refused) = select_affordable(locked.clone(), &wanted);
    let priced = started.elapsed();

    // 4. Insert the calls. Some may be missing: only those that were made need a hold.
    let calls = insert_calls(db, request, &picked, &wanted, &affordable).await?;

    // 5. Hold the money, and store the refusals.
    let started = Instant::now();
    hold_funds(db, locked, &wanted, &calls).await?;
    store_refusals(db, &picked, &wanted, &refused).await?;
    let money_took = priced + started.elapsed();

    let mut fates = HashMap::new();
    for (row, wanted) in picked.iter().zip(&wanted) {
        if let Some(refusal) = refused.get(&wanted.call) {
            fates
                .entry(row.batch_id)
                .or_insert(Funding::Unfunded(*refusal));
        } else {
            fates.insert(row.batch_id, Funding::Funded);
        }
    }

    Ok(ClaimedRows {
        calls,
        funding: fates,
        funding_time: money_took,
    })
}

async fn lock_due_rows(db: &mut PgConnection, division: &SlotDivision) -> Result<Vec<CallableRow>> {
    let (batches, counts): (Vec<BatchId>, Vec<i64>) = division
        .grants
        .iter()
        .filter_map(|grant| Some((grant.batch?, i64::from(grant.count))))
        .unzip();
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let picked = sqlx::query_file_as!(
        CallableRow,
        "src/calls/pick_rows.sql",
        &batches as &[BatchId],
        &counts,
    )
    .fetch_all(db)
    .await?;
    Ok(picked)
}

/// Freezes prices and computes the hold of each row. Rows of one batch with the same dialling
/// prefix cost the same.
async fn price_rows(
    db: &mut PgConnection,
    request: ClaimRequest<'_>,
    picked: &[CallableRow],
    now: DateTime<Utc>,
) -> Result<Vec<HoldRequest>> {
    let Some(edition) = picked.first().map(|row| row.edition) else {
        return Ok(Vec::new());
    };
    let catalogue = request
        .price_cache
        .in_force_unscoped(db, edition, now)
        .await?;

    // 1. Quote each pair of batch and prefix once.
    let mut kinds: HashMap<(BatchId, &str), usize> = HashMap::new();
    let mut prices: Vec<(OrgId, CallPrices)> = Vec::new();
    let mut costs: Vec<Usd> = Vec::new();
    let mut kind_of = Vec::with_capacity(picked.len());
    for row in picked {
        let kind = *kinds
            .entry((row.batch_id, catalogue.prefix_of(&row.to)))
            .or_insert_with(|| {
                let destination = PricedCall {
                    to: &row.to,
                    model: row.model.as_deref(),
                    speech: row.speech.as_deref(),
                };
                let quoted = CallPrices {
                    rates: catalogue.rates_for(&destination),
                    terms: ResellerTerms::new(
                        row.reseller_org_id,
                        row.org_type.clone(),
                        row.markup_percent,
                        row.commission_percent,
                    ),
                };
                let seconds = row.session_timeout_secs.min(request.hold_max_secs);
                costs.push(max_cost(&quoted, seconds));
                prices.push((row.org_id, quoted));
                prices.len() - 1
            });
        kind_of.push(kind);
    }

    // 2. Freeze the quotes, and give each row its own.
    let snapshots = request.price_cache.freeze_unscoped(db, &prices).await?;
    picked
        .iter()
        .zip(kind_of)
        .map(|(row, kind)| {
            let (Some(snapshot), Some(cost)) = (snapshots.get(kind), costs.get(kind)) else {
                return Err(anyhow!("a row has no price").into());
            };
            Ok(HoldRequest {
                call: CallId::new(),
                org: row.org_id,
                wallet: row.wallet_id,
                snapshot: *snapshot,
                amount: *cost,
            })
        })
        .collect()
}

/// Selects the rows that can be paid, in order, with a refusal for each of the others.
fn select_affordable(
    mut wallets: BTreeMap<WalletId, WalletState>,
    wanted: &[HoldRequest],
) -> (HashSet<CallId>, HashMap<CallId, Refusal>) {
    let mut affordable = HashSet::new();
    let mut refused = HashMap::new();
    for wanted in wanted {
        let Some(wallet) = wallets.get_mut(&wanted.wallet) else {
            continue;
        };
        match try_hold(wallet, wanted) {
            Ok(_) => {
                affordable.insert(wanted.call);
            }
            Err(refusal) => {
                refused.insert(wanted.call, refusal);
            }
        }
    }
    (affordable, refused)
}

/// Inserts calls for the rows that can be paid.
async fn insert_calls(
    db: &mut PgConnection,
    request: ClaimRequest<'_>,
    picked: &[CallableRow],
    wanted: &[HoldRequest],
    affordable: &HashSet<CallId>,
) -> Result<Vec<ClaimedCall>> {
    let paid: Vec<(&CallableRow, CallId)> = picked
        .iter()
        .zip(wanted.iter().map(|wanted| wanted.call))
        .filter(|(_, call)| affordable.contains(call))
        .collect();
    if paid.is_empty() {
        return Ok(Vec::new());
    }

    let (rows, calls): (Vec<RowId>, Vec<CallId>) =
        paid.iter().map(|(row, call)| (row.row_id, *call)).unzip();
    let private: Vec<bool> = paid.iter().map(|(row, _)| row.hipaa_compliance).collect();

    let made = sqlx::query_file_as!(
        ClaimedCallRow,
        "src/calls/make_calls.sql",
        request.trunk as TrunkId,
        request.worker,
        &rows as &[RowId],
        &calls as &[CallId],
        &private,
    )
    .fetch_all(db)
    .await?;

    Ok(made.into_iter().map(ClaimedCall::from).collect())
}

/// Holds the money of the calls that were made, all of which can be paid.
async fn hold_funds(
    db: &mut PgConnection,
    mut wallets: BTreeMap<WalletId, WalletState>,
    wanted: &[HoldRequest],
    calls: &[ClaimedCall],
) -> Result<()> {
    let made: HashSet<CallId> = calls.iter().map(|call| call.id).collect();
    let mut holds = Vec::with_capacity(made.len());
    for wanted in wanted.iter().filter(|wanted| made.contains(&wanted.call)) {
        let hold = wallets
            .get_mut(&wanted.wallet)
            .and_then(|wallet| try_hold(wallet, wanted).ok());
        holds.push(hold.ok_or_else(|| anyhow!("a call was made without money for it"))?);
    }
    insert_unscoped(db, &holds).await
}

/// Writes the refusal on rows that could not be paid.
async fn store_refusals(
    db: &mut PgConnection,
    picked: &[CallableRow],
    wanted: &[HoldRequest],
    refused: &HashMap<CallId, Refusal>,
) -> Result<()> {
    if refused.is_empty() {
        return Ok(());
    }
    let (rows, reasons): (Vec<RowId>, Vec<Refusal>) = picked
        .iter()
        .zip(wanted)
        .filter_map(|(row, wanted)| Some((row.row_id, *refused.get(&wanted.call)?)))
        .unzip();
    sqlx::query!(
        "update batch_data d
         set reason = n.reason, updated_at = now()
         from unnest($1::uuid[], $2::text[]) as n (id, reason)
         where d.id = n.id
           and d.id = any ($1)
           and d.reason is distinct from n.reason",
        &rows as &[RowId],
        &reasons as &[Refusal],
    )
    .execute(db)
    .await?;
    Ok(())
}
