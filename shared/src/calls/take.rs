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

use super::claim::{Ask, Claimed, ClaimedRow};
use super::fair::Division;
use crate::billing::quote::{Destination, Prices, Terms, worst_case};
use crate::error::Result;
use crate::ids::{BatchId, CallId, OrgId, RowId, TrunkId, WalletId};
use crate::money::Usd;
use crate::phone::E164;
use crate::wallets::holds::{Refusal, Wanted, take, write_unscoped};
use crate::wallets::{Locked, lock_unscoped};

/// Funding of a batch that was granted slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Money was held for at least one of its rows.
    Fed,
    /// Rows were due, and the wallet could pay for none of them.
    Starved(Refusal),
}

/// Calls made from rows, and the funding of their batches.
#[derive(Default)]
pub(super) struct Taken {
    pub calls: Vec<Claimed>,
    pub fates: HashMap<BatchId, Fate>,
    /// Time spent on prices and holds.
    pub money_took: Duration,
}

struct Picked {
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
pub(super) async fn rows(
    db: &mut PgConnection,
    request: Ask<'_>,
    division: &Division,
    now: DateTime<Utc>,
) -> Result<Taken> {
    // 1. Lock the due rows.
    let picked = pick(db, division).await?;
    if picked.is_empty() {
        return Ok(Taken::default());
    }

    // 2. Price them.
    let started = Instant::now();
    let wanted = price(db, request, &picked, now).await?;

    // 3. Lock the wallets by id, and select the rows they can pay.
    let mut wallets: Vec<WalletId> = picked.iter().map(|row| row.wallet_id).collect();
    wallets.sort_unstable();
    wallets.dedup();
    let locked = lock_unscoped(db, &wallets, now).await?;
    let (affordable, refused) = afford(locked.clone(), &wanted);
    let priced = started.elapsed();

    // 4. Insert the calls. Some may be missing: only those that were made need a hold.
    let calls = make(db, request, &picked, &wanted, &affordable).await?;

    // 5. Hold the money, and store the refusals.
    let started = Instant::now();
    hold(db, locked, &wanted, &calls).await?;
    turn_away(db, &picked, &wanted, &refused).await?;
    let money_took = priced + started.elapsed();

    let mut fates = HashMap::new();
    for (row, wanted) in picked.iter().zip(&wanted) {
        if let Some(refusal) = refused.get(&wanted.call) {
            fates.entry(row.batch_id).or_insert(Fate::Starved(*refusal));
        } else {
            fates.insert(row.batch_id, Fate::Fed);
        }
    }

    Ok(Taken {
        calls,
        fates,
        money_took,
    })
}

async fn pick(db: &mut PgConnection, division: &Division) -> Result<Vec<Picked>> {
    let (batches, counts): (Vec<BatchId>, Vec<i64>) = division
        .grants
        .iter()
        .filter_map(|grant| Some((grant.batch?, i64::from(grant.count))))
        .unzip();
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let picked = sqlx::query_file_as!(
        Picked,
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
async fn price(
    db: &mut PgConnection,
    request: Ask<'_>,
    picked: &[Picked],
    now: DateTime<Utc>,
) -> Result<Vec<Wanted>> {
    let Some(edition) = picked.first().map(|row| row.edition) else {
        return Ok(Vec::new());
    };
    let book = request.tariffs.in_force_unscoped(db, edition, now).await?;

    // 1. Quote each pair of batch and prefix once.
    let mut kinds: HashMap<(BatchId, &str), usize> = HashMap::new();
    let mut prices: Vec<(OrgId, Prices)> = Vec::new();
    let mut costs: Vec<Usd> = Vec::new();
    let mut kind_of = Vec::with_capacity(picked.len());
    for row in picked {
        let kind = *kinds
            .entry((row.batch_id, book.prefix_of(&row.to)))
            .or_insert_with(|| {
                let destination = Destination {
                    to: &row.to,
                    model: row.model.as_deref(),
                    speech: row.speech.as_deref(),
                };
                let quoted = Prices {
                    rates: book.rates_for(&destination),
                    terms: Terms::of(
                        row.reseller_org_id,
                        row.org_type.clone(),
                        row.markup_percent,
                        row.commission_percent,
                    ),
                };
                let seconds = row.session_timeout_secs.min(request.hold_max_secs);
                costs.push(worst_case(&quoted, seconds));
                prices.push((row.org_id, quoted));
                prices.len() - 1
            });
        kind_of.push(kind);
    }

    // 2. Freeze the quotes, and give each row its own.
    let snapshots = request.tariffs.freeze_unscoped(db, &prices).await?;
    picked
        .iter()
        .zip(kind_of)
        .map(|(row, kind)| {
            let (Some(snapshot), Some(cost)) = (snapshots.get(kind), costs.get(kind)) else {
                return Err(anyhow!("a row has no price").into());
            };
            Ok(Wanted {
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
fn afford(
    mut wallets: BTreeMap<WalletId, Locked>,
    wanted: &[Wanted],
) -> (HashSet<CallId>, HashMap<CallId, Refusal>) {
    let mut affordable = HashSet::new();
    let mut refused = HashMap::new();
    for wanted in wanted {
        let Some(wallet) = wallets.get_mut(&wanted.wallet) else {
            continue;
        };
        match take(wallet, wanted) {
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
async fn make(
    db: &mut PgConnection,
    request: Ask<'_>,
    picked: &[Picked],
    wanted: &[Wanted],
    affordable: &HashSet<CallId>,
) -> Result<Vec<Claimed>> {
    let paid: Vec<(&Picked, CallId)> = picked
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
        ClaimedRow,
        "src/calls/make_calls.sql",
        request.trunk as TrunkId,
        request.worker,
        &rows as &[RowId],
        &calls as &[CallId],
        &private,
    )
    .fetch_all(db)
    .await?;

    Ok(made.into_iter().map(Claimed::from).collect())
}

/// Holds the money of the calls that were made, all of which can be paid.
async fn hold(
    db: &mut PgConnection,
    mut wallets: BTreeMap<WalletId, Locked>,
    wanted: &[Wanted],
    calls: &[Claimed],
) -> Result<()> {
    let made: HashSet<CallId> = calls.iter().map(|call| call.id).collect();
    let mut holds = Vec::with_capacity(made.len());
    for wanted in wanted.iter().filter(|wanted| made.contains(&wanted.call)) {
        let hold = wallets
            .get_mut(&wanted.wallet)
            .and_then(|wallet| take(wallet, wanted).ok());
        holds.push(hold.ok_or_else(|| anyhow!("a call was made without money for it"))?);
    }
    write_unscoped(db, &holds).await
}

/// Writes the refusal on rows that could not be paid.
async fn turn_away(
    db: &mut PgConnection,
    picked: &[Picked],
    wanted: &[Wanted],
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
