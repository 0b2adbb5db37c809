//! Settlement: charges every ended call once, by its carrier's report.
//!
//! A transaction that ends a call, or updates an ended one, appends it to `charges_due`; the
//! settlement takes it from there. It settles many calls in one transaction and folds them into
//! one posting per wallet and reseller, because the wallet's row is the contended lock.
//!
//! A call cannot be charged twice: holds and charges change only under their wallet's lock, a
//! hold ends once, and a charge's version and a posting's key are unique. Calls are only read, so
//! the settlement never waits for their writers.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool};

use super::charge::{CallHold, DueCall, LastCharge, NewCharge, decide};
use super::quote::{Bill, CallUsage};
use super::snapshots;
use crate::platform::columns::column;
use crate::platform::error::{Error, Result};
use crate::platform::failpoint;
use crate::platform::ids::{CallId, ChargeId, OrgId, SnapshotId, TransactionId, UserId, WalletId};
use crate::platform::money::Usd;
use crate::wallets::holds::{EndedHold, GrantPin, MonthlySpend, end_unscoped};
use crate::wallets::ledger::{
    CallTotals, EntryType, LedgerAccount, Leg, Posting, TransactionKind, post_unscoped,
};
use crate::wallets::lock_unscoped;

/// Delay before the retry of a call that failed to settle.
const RETRY_DELAY_SECS: f64 = 60.0;

/// Counts of a settlement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SettlementCounts {
    /// Entries of `charges_due` that were processed.
    pub processed: usize,
    /// Calls that were charged, corrections included.
    pub charged: usize,
    /// Calls whose charge was reversed.
    pub reversed: usize,
    /// Calls without billed lines.
    pub voided: usize,
}

/// A failed settlement.
#[derive(Debug)]
pub struct SettlementFailure {
    pub error: Error,
    /// Entries of `charges_due` that were tried; empty when they could not be read.
    pub entries: Vec<i64>,
}

/// Settles up to `limit` calls of all tenants.
///
/// # Errors
/// [`Refused`]; its calls stay due.
pub async fn settle_due_unscoped(
    pool: &PgPool,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<SettlementCounts, SettlementFailure> {
    let mut tried = Vec::new();
    settle_due(pool, limit, now, &mut tried)
        .await
        .map_err(|error| SettlementFailure {
            error,
            entries: tried,
        })
}

async fn settle_due(
    pool: &PgPool,
    limit: i64,
    now: DateTime<Utc>,
    tried: &mut Vec<i64>,
) -> Result<SettlementCounts> {
    let mut connection = pool.acquire().await?;
    let mut db = connection.begin().await?;

    // 1. Take due entries; other settlements skip their locks.
    let taken = sqlx::query!(
        r#"with due as (
               delete from charges_due
               where id = any (array (select id
                                      from charges_due
                                      where look_at <= now()
                                      order by id
                                      limit $1
                                      for update skip locked))
               returning id, call_id
           )
           select d.id as "id!", d.call_id as "call_id!: CallId", h.wallet_id as "wallet_id?: WalletId"
           from due d
           left join holds h on h.call_id = d.call_id"#,
        limit,
    )
    .fetch_all(&mut *db)
    .await?;

    if taken.is_empty() {
        return Ok(SettlementCounts::default());
    }
    tried.extend(taken.iter().map(|row| row.id));

    // A call without a hold was placed before calls had prices.
    let mut calls: Vec<CallId> = taken
        .iter()
        .filter(|row| row.wallet_id.is_some())
        .map(|row| row.call_id)
        .collect();
    calls.sort_unstable();
    calls.dedup();

    let mut wallets: Vec<WalletId> = taken.iter().filter_map(|row| row.wallet_id).collect();
    wallets.sort_unstable();
    wallets.dedup();

    // 2. Charge them.
    let mut settled = settle(&mut db, &calls, &wallets, now).await?;
    settled.processed = taken.len();

    failpoint::hit("settle.uncommitted");
    db.commit().await?;
    failpoint::hit("settle.committed");
    Ok(settled)
}

async fn settle(
    db: &mut PgConnection,
    calls: &[CallId],
    wallets: &[WalletId],
    now: DateTime<Utc>,
) -> Result<SettlementCounts> {
    // 1. Lock the wallets.
    let mut locked = lock_unscoped(db, wallets, now).await?;

    // 2. Read after the locks: no other settlement changes these calls.
    let due = load_due(db, calls).await?;

    let mut snapshots: Vec<SnapshotId> = due.iter().map(|due| due.snapshot).collect();
    snapshots.sort_unstable();
    snapshots.dedup();
    let prices = snapshots::load_unscoped(db, &snapshots).await?;

    // 3. Decide on each call.
    let mut settled = SettlementCounts::default();
    let mut batch = SettlementBatch::default();
    for due in &due {
        let (Some(wallet), Some(prices)) = (locked.get_mut(&due.wallet), prices.get(&due.snapshot))
        else {
            continue;
        };
        let decision = decide(wallet, due, prices);

        if decision
            .ended_hold
            .as_ref()
            .is_some_and(|hold| !hold.captured)
        {
            settled.voided += 1;
        }
        batch.ended.extend(decision.ended_hold);
        if !decision.spent.is_zero() {
            batch.spent.push(MonthlySpend {
                wallet: due.wallet,
                month: due.hold.month,
                amount: decision.spent,
            });
        }

        for charge in decision.charges {
            match charge.reverses {
                Some(_) => settled.reversed += 1,
                None => settled.charged += 1,
            }
            batch.add(due, prices.terms.reseller_org_id, charge);
        }
    }

    // 4. End holds, post and store charges.
    batch.write(db).await?;
    if settled.reversed > 0 {
        // Locking again expires what was returned to expired grants.
        lock_unscoped(db, wallets, now).await?;
    }
    Ok(settled)
}

/// Holds to end, spending and postings of a group of calls.
#[derive(Default)]
struct SettlementBatch {
    ended: Vec<EndedHold>,
    spent: Vec<MonthlySpend>,
    postings: Vec<Posting>,
    /// Index in `postings` of each wallet and reseller.
    folds: BTreeMap<(WalletId, Option<OrgId>), usize>,
    /// Charges, each with the index of its posting.
    charges: Vec<(StoredCharge, usize)>,
}

impl SettlementBatch {
    fn add(&mut self, due: &DueCall, reseller: Option<OrgId>, charge: NewCharge) {
        let fold = (due.wallet, reseller);
        let existing = match charge.reverses {
            Some(_) => None,
            None => self.folds.get(&fold).copied(),
        };

        let index = existing.unwrap_or_else(|| {
            self.postings.push(empty_posting(due, reseller, &charge));
            self.postings.len() - 1
        });
        if charge.reverses.is_none() {
            self.folds.insert(fold, index);
        }

        if let Some(posting) = self.postings.get_mut(index) {
            add_to_posting(posting, &charge);
        }
        self.charges.push((StoredCharge::new(due, charge), index));
    }

    async fn write(self, db: &mut PgConnection) -> Result<()> {
        end_unscoped(db, &self.ended, &self.spent).await?;
        if self.charges.is_empty() {
            return Ok(());
        }

        let transactions = post_unscoped(db, &self.postings).await?;
        let charges: Vec<StoredCharge> = self
            .charges
            .into_iter()
            .map(|(charge, index)| StoredCharge {
                transaction: transactions.get(index).copied(),
                ..charge
            })
            .collect();
        store(db, &charges).await
    }
}

async fn store(db: &mut PgConnection, charges: &[StoredCharge]) -> Result<()> {
    let lines = charges
        .iter()
        .map(|charge| serde_json::to_value(&charge.bill.lines))
        .collect::<Result<Vec<_>, _>>()?;
    let grants = charges
        .iter()
        .map(|charge| serde_json::to_value(&charge.grants))
        .collect::<Result<Vec<_>, _>>()?;

    sqlx::query_file!(
        "src/billing/store_charges.sql",
        &column(charges, |charge| charge.id) as &[ChargeId],
        &column(charges, |charge| charge.org) as &[OrgId],
        &column(charges, |charge| charge.user) as &[UserId],
        &column(charges, |charge| charge.wallet) as &[WalletId],
        &column(charges, |charge| charge.call) as &[CallId],
        &column(charges, |charge| charge.version),
        &column(charges, |charge| charge.reverses) as &[Option<ChargeId>],
        &column(charges, |charge| charge.transaction) as &[Option<TransactionId>],
        &column(charges, |charge| charge.snapshot) as &[SnapshotId],
        &column(charges, |charge| charge.bill.billed_seconds),
        &lines,
        &grants,
        &column(charges, |charge| charge.bill.base) as &[Usd],
        &column(charges, |charge| charge.bill.retail) as &[Usd],
        &column(charges, |charge| charge.bill.markup) as &[Usd],
        &column(charges, |charge| charge.bill.commission) as &[Usd],
        &column(charges, |charge| charge.carrier_price) as &[Option<Decimal>],
        &column(charges, |charge| charge.carrier_currency.as_deref()) as &[Option<&str>],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Returns an empty posting of the charge's kind, with the legs that charges are added to.
fn empty_posting(due: &DueCall, reseller: Option<OrgId>, charge: &NewCharge) -> Posting {
    let wallet = LedgerAccount::Wallet(due.wallet);
    let leg = |account, entry| Leg {
        account,
        entry,
        amount: Usd::ZERO,
        grant: None,
    };
    let paid = match charge.reverses {
        Some(_) => EntryType::Reversal,
        None => EntryType::Usage,
    };

    let mut legs = vec![
        leg(wallet, paid),
        leg(wallet, EntryType::Overage),
        leg(LedgerAccount::PlatformRevenue, EntryType::Revenue),
    ];
    if let Some(reseller) = reseller {
        let earnings = LedgerAccount::ResellerEarnings(reseller);
        legs.extend([
            leg(earnings, EntryType::Markup),
            leg(earnings, EntryType::Commission),
        ]);
    }

    Posting {
        org: due.org,
        kind: match charge.reverses {
            Some(_) => TransactionKind::Reversal,
            None => TransactionKind::Usage,
        },
        idem_key: charge.id.to_string(),
        reverses: charge.reverses.map(|(_, transaction)| transaction),
        actor: None,
        reason: None,
        call_totals: CallTotals {
            reseller,
            ..CallTotals::default()
        },
        legs,
        grant_uses: Vec::new(),
    }
}

fn add_to_posting(posting: &mut Posting, charge: &NewCharge) {
    let bill = &charge.bill;
    let folded = &mut posting.call_totals;
    folded.calls += if charge.reverses.is_some() { -1 } else { 1 };
    folded.billed_seconds += i64::from(bill.billed_seconds);
    folded.base = folded.base.plus(bill.base);
    folded.retail = folded.retail.plus(bill.retail);
    folded.markup = folded.markup.plus(bill.markup);
    folded.commission = folded.commission.plus(bill.commission);

    for leg in &mut posting.legs {
        let part = match leg.entry {
            EntryType::Overage => -charge.overage,
            EntryType::Revenue => bill.retail.minus(bill.markup).minus(bill.commission),
            EntryType::Markup => bill.markup,
            EntryType::Commission => bill.commission,
            _ => charge.overage.minus(bill.retail),
        };
        leg.amount = leg.amount.plus(part);
    }
    posting.grant_uses.extend(charge.grant_uses.iter().copied());
}

/// A row of `charges`.
struct StoredCharge {
    id: ChargeId,
    org: OrgId,
    user: UserId,
    wallet: WalletId,
    call: CallId,
    version: i32,
    reverses: Option<ChargeId>,
    transaction: Option<TransactionId>,
    snapshot: SnapshotId,
    bill: Bill,
    grants: Vec<GrantPin>,
    carrier_price: Option<Decimal>,
    carrier_currency: Option<String>,
}

impl StoredCharge {
    fn new(due: &DueCall, charge: NewCharge) -> Self {
        Self {
            id: charge.id,
            org: due.org,
            user: due.user,
            wallet: due.wallet,
            call: due.call,
            version: charge.version,
            reverses: charge.reverses.map(|(charge, _)| charge),
            transaction: None,
            snapshot: due.snapshot,
            grants: GrantPin::from_amounts(&charge.grant_uses),
            bill: charge.bill,
            carrier_price: due.carrier_price,
            carrier_currency: due.carrier_currency.clone(),
        }
    }
}

struct DueRow {
    call_id: CallId,
    org_id: OrgId,
    user_id: UserId,
    duration_seconds: Option<i32>,
    attempted: bool,
    carrier_price: Option<Decimal>,
    carrier_currency: Option<String>,
    wallet_id: WalletId,
    snapshot_id: SnapshotId,
    held: Usd,
    pins: Value,
    cap_month: NaiveDate,
    open: bool,
    charge_id: Option<ChargeId>,
    version: Option<i32>,
    transaction_id: Option<TransactionId>,
    billed_seconds: Option<i32>,
    lines: Option<Value>,
    grants: Option<Value>,
    base: Option<Usd>,
    retail: Option<Usd>,
    markup: Option<Usd>,
    commission: Option<Usd>,
}

impl DueRow {
    fn last_charge(&mut self) -> Result<Option<LastCharge>> {
        let (Some(id), Some(version), Some(transaction)) =
            (self.charge_id, self.version, self.transaction_id)
        else {
            return Ok(None);
        };
        let bill = Bill {
            billed_seconds: self.billed_seconds.unwrap_or_default(),
            lines: serde_json::from_value(self.lines.take().unwrap_or_default())?,
            base: self.base.unwrap_or_default(),
            retail: self.retail.unwrap_or_default(),
            markup: self.markup.unwrap_or_default(),
            commission: self.commission.unwrap_or_default(),
        };
        Ok(Some(LastCharge {
            id,
            version,
            transaction,
            bill,
            grants: serde_json::from_value(self.grants.take().unwrap_or_default())?,
        }))
    }

    fn into_due(mut self) -> Result<DueCall> {
        Ok(DueCall {
            last_charge: self.last_charge()?,
            call: self.call_id,
            org: self.org_id,
            user: self.user_id,
            wallet: self.wallet_id,
            snapshot: self.snapshot_id,
            usage: CallUsage {
                attempted: self.attempted,
                seconds: self.duration_seconds.unwrap_or_default(),
            },
            carrier_price: self.carrier_price,
            carrier_currency: self.carrier_currency,
            hold: CallHold {
                amount: self.held,
                pins: serde_json::from_value(self.pins)?,
                month: self.cap_month,
                open: self.open,
            },
        })
    }
}

async fn load_due(db: &mut PgConnection, calls: &[CallId]) -> Result<Vec<DueCall>> {
    let rows = sqlx::query_file_as!(DueRow, "src/billing/due.sql", calls as &[CallId])
        .fetch_all(db)
        .await?;
    rows.into_iter().map(DueRow::into_due).collect()
}

/// Postpones a call that fails to settle on its own, so that the others proceed. It is retried
/// after [`REFUSED_PAUSE_SECS`].
pub async fn postpone_unscoped(pool: &PgPool, due: i64) -> Result<()> {
    sqlx::query!(
        "update charges_due set look_at = now() + make_interval(secs => $2) where id = $1",
        due,
        RETRY_DELAY_SECS,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Calls that wait for settlement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SettlementBacklog {
    pub calls: i64,
    pub oldest_secs: f64,
}

/// Counts the waiting calls, up to `limit`, for operators.
pub async fn backlog_unscoped(db: &mut PgConnection, limit: i64) -> Result<SettlementBacklog> {
    let backlog = sqlx::query_as!(
        SettlementBacklog,
        r#"select count(*) as "calls!",
                  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8 as "oldest_secs!"
           from (select since
                 from charges_due
                 order by id
                 limit $1) waiting"#,
        limit,
    )
    .fetch_one(db)
    .await?;
    Ok(backlog)
}
