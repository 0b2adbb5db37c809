//! Wallets: the credit of users and organisations.
//!
//! Every user and every organisation has one. Calls are paid from the wallet of their user;
//! administrators transfer credit from their organisation's own wallet.
//!
//! ```text
//! mint --grant--> wallet --transfer--> wallet --hold, then usage--> platform and reseller
//!                   |
//!                   '-- expiry: the remainder of an expired grant
//! ```
//!
//! A wallet has grants and a pool: the sum of adjustments, less the cost of calls beyond their
//! holds that no grant could pay. Money is taken from grants by priority, then earliest expiry,
//! then age, and from the pool last; the pool may be negative, which reduces the amount available
//! to the next hold. A locked or expired grant pays for nothing, except for calls whose holds
//! have pinned it before.
//!
//! ```text
//! available = unpinned remainder of spendable grants + pool
//! pool      = posted - remainder of all grants - the part of open holds that is pinned to no grant
//! ```
//!
//! The API moves money by [`grants`], [`adjust`] and [`caps`], and reads it by [`queries`].
//!
//! The [`ledger`] is the source of truth; wallets and grants are projections of it, updated in
//! the statements that post. Locks are taken in one order: wallets by id, and nothing of a
//! wallet (grants, holds, charges) changes without its lock. A transaction with a wallet's lock
//! must not wait for calls, rows or batches, which the apply of carrier events may have locked.

pub mod adjust;
pub mod caps;
pub mod expiry;
pub mod grants;
pub mod holds;
pub mod ledger;
pub mod operator_credit;
pub mod overview;
pub mod queries;
pub mod verify;

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;

use crate::platform::error::Result;
use crate::platform::ids::{GrantId, OrgId, WalletId};
use crate::platform::money::Usd;

/// A grant that can be spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpendableGrant {
    pub id: GrantId,
    /// Amount that no hold has pinned.
    pub unpinned: Usd,
    pub expires_at: Option<DateTime<Utc>>,
}

/// A wallet without expired amounts, usually under its lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalletState {
    pub id: WalletId,
    pub org: OrgId,
    pub posted: Usd,
    pub held: Usd,
    /// Amount outside the grants; may be negative.
    pub pool: Usd,
    /// Spendable grants, in the order of spending.
    pub grants: Vec<SpendableGrant>,
    /// Maximum that may be spent in a month, holds included.
    pub cap: Option<Usd>,
    /// The current month of the organisation's time zone; `cap_spent` and `cap_held` count in it.
    pub month: NaiveDate,
    pub cap_spent: Usd,
    pub cap_held: Usd,
}

/// Sources of an amount taken from a wallet: grants, and the pool for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalletDebit {
    pub grants: Vec<(GrantId, Usd)>,
    pub pool: Usd,
}

impl WalletState {
    /// Spendable amount.
    #[must_use]
    pub fn available(&self) -> Usd {
        self.grants
            .iter()
            .map(|grant| grant.unpinned)
            .sum::<Usd>()
            .plus(self.pool)
    }

    /// Remainder of the cap this month; `None` without a cap.
    #[must_use]
    pub fn cap_remaining(&self) -> Option<Usd> {
        self.cap
            .map(|cap| cap.minus(self.cap_spent).minus(self.cap_held))
    }

    /// Reason why an amount cannot be held; `None` when it can. Zero can always be held.
    #[must_use]
    pub fn refusal(&self, amount: Usd) -> Option<holds::Refusal> {
        if !amount.is_positive() {
            None
        } else if self.available() < amount {
            Some(holds::Refusal::InsufficientCredits)
        } else if self.cap_remaining().is_some_and(|room| room < amount) {
            Some(holds::Refusal::MonthlyCapReached)
        } else {
            None
        }
    }

    /// Takes an amount, in the order of spending. The pool pays what grants do not cover and may
    /// become negative: the caller decides whether that is permitted.
    pub fn debit(&mut self, amount: Usd) -> WalletDebit {
        let mut left = amount;
        let mut grants = Vec::new();
        for grant in &mut self.grants {
            let part = left.min(grant.unpinned);
            if part.is_positive() {
                grant.unpinned = grant.unpinned.minus(part);
                left = left.minus(part);
                grants.push((grant.id, part));
            }
        }
        self.pool = self.pool.minus(left);
        WalletDebit { grants, pool: left }
    }

    /// Returns an amount to a grant; has no effect when the grant is not spendable any more.
    pub fn restore_grant(&mut self, grant: GrantId, amount: Usd) {
        if let Some(grant) = self.grants.iter_mut().find(|known| known.id == grant) {
            grant.unpinned = grant.unpinned.plus(amount);
        }
    }
}

/// Query of wallets by id, with their current month; `$lock` is the locking clause.
macro_rules! wallets {
    ($lock:literal, $wallets:expr, $now:expr) => {
        sqlx::query_as!(
            WalletRow,
            r#"select w.id as "id: WalletId", w.org_id as "org_id: OrgId", w.posted_micros as "posted: Usd",
                      w.held_micros as "held: Usd", w.cap_micros as "cap: Usd", w.cap_month,
                      w.cap_spent_micros as "cap_spent: Usd", w.cap_held_micros as "cap_held: Usd",
                      date_trunc('month', $2::timestamptz at time zone o.timezone)::date as "month!"
               from wallets w
               join organizations o on o.id = w.org_id
               where w.id = any ($1)
               order by w.id "# + $lock,
            $wallets as &[WalletId],
            $now,
        )
    };
}

/// Locks wallets, expires their grants by `now`, and reads them. A wallet that does not exist is
/// missing in the result. The caller has checked access.
///
/// # Errors
/// [`crate::Error::Busy`] when another transaction holds one of the locks for too long.
pub async fn lock_unscoped(
    db: &mut PgConnection,
    wallets: &[WalletId],
    now: DateTime<Utc>,
) -> Result<BTreeMap<WalletId, WalletState>> {
    if wallets.is_empty() {
        return Ok(BTreeMap::new());
    }

    let (locked, expired) = lock(db, wallets, now).await?;
    if expired.is_empty() {
        return Ok(locked);
    }

    // The expiry changes balances, so the wallets are read again.
    expiry::expire(db, &expired).await?;
    let (locked, _) = lock(db, wallets, now).await?;
    Ok(locked)
}

/// Reads wallets as [`lock_unscoped`] does, without a lock and without expiring anything: the
/// result may be outdated already.
pub async fn read_unscoped(
    db: &mut PgConnection,
    wallets: &[WalletId],
    now: DateTime<Utc>,
) -> Result<BTreeMap<WalletId, WalletState>> {
    let rows = wallets!("", wallets, now).fetch_all(&mut *db).await?;
    let (wallets, _) = with_grants(db, rows, now).await?;
    Ok(wallets)
}

async fn lock(
    db: &mut PgConnection,
    wallets: &[WalletId],
    now: DateTime<Utc>,
) -> Result<(BTreeMap<WalletId, WalletState>, Vec<expiry::ExpiredGrant>)> {
    let rows = wallets!("for no key update of w", wallets, now)
        .fetch_all(&mut *db)
        .await?;
    with_grants(db, rows, now).await
}

struct WalletRow {
    id: WalletId,
    org_id: OrgId,
    posted: Usd,
    held: Usd,
    cap: Option<Usd>,
    cap_month: NaiveDate,
    cap_spent: Usd,
    cap_held: Usd,
    month: NaiveDate,
}

impl From<WalletRow> for WalletState {
    fn from(row: WalletRow) -> Self {
        // A new month counts from zero. An earlier month, after a change of the time zone, is not
        // a new one.
        let begins = row.month > row.cap_month;
        Self {
            id: row.id,
            org: row.org_id,
            posted: row.posted,
            held: row.held,
            pool: row.posted.minus(row.held),
            grants: Vec::new(),
            cap: row.cap,
            month: row.month.max(row.cap_month),
            cap_spent: if begins { Usd::ZERO } else { row.cap_spent },
            cap_held: if begins { Usd::ZERO } else { row.cap_held },
        }
    }
}

/// Adds grants to wallets and returns the expired amounts. A statement of its own: its snapshot
/// must be taken after the lock, where there is one.
async fn with_grants(
    db: &mut PgConnection,
    rows: Vec<WalletRow>,
    now: DateTime<Utc>,
) -> Result<(BTreeMap<WalletId, WalletState>, Vec<expiry::ExpiredGrant>)> {
    let mut wallets: BTreeMap<WalletId, WalletState> =
        rows.into_iter().map(|row| (row.id, row.into())).collect();
    let ids: Vec<WalletId> = wallets.keys().copied().collect();

    let grants = sqlx::query!(
        r#"select id as "id: GrantId", wallet_id as "wallet_id: WalletId", remaining_micros as "remaining: Usd",
                  pinned_micros as "pinned: Usd", expires_at, locked, expiries
           from grants
           where wallet_id = any ($1)
             and remaining_micros > 0
           order by wallet_id, priority, expires_at nulls last, created_at, id"#,
        &ids as &[WalletId],
    )
    .fetch_all(db)
    .await?;

    let mut expired = Vec::new();
    for grant in grants {
        let Some(wallet) = wallets.get_mut(&grant.wallet_id) else {
            continue;
        };
        let free = grant.remaining.minus(grant.pinned);
        wallet.pool = wallet.pool.minus(free);

        let is_over = grant.expires_at.is_some_and(|until| until <= now);
        if is_over && free.is_positive() {
            expired.push(expiry::ExpiredGrant {
                grant: grant.id,
                org: wallet.org,
                wallet: wallet.id,
                amount: free,
                previous_expiries: grant.expiries,
            });
        } else if !is_over && !grant.locked {
            wallet.grants.push(SpendableGrant {
                id: grant.id,
                unpinned: free,
                expires_at: grant.expires_at,
            });
        }
    }
    Ok((wallets, expired))
}
