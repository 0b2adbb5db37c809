//! Wallets: who may spend how much.
//!
//! Every user and every organisation has one. Calls are paid from the wallet of their user; an
//! organisation's own wallet is where its administrators transfer from.
//!
//! ```text
//! mint --grant--> wallet --transfer--> wallet --hold, then usage--> platform and reseller
//!                   |
//!                   '-- expiry: what a grant had left when its time was up
//! ```
//!
//! A wallet holds grants, and beside them its pool: what adjustments put in, less what calls
//! cost beyond their holds and nothing else could pay. Money is taken from grants by priority,
//! then earliest expiry, then age, and from the pool last; the pool may be below zero, and the
//! next hold then finds so much less. A grant that is locked or whose time is up pays for
//! nothing, except for calls it was held for before.
//!
//! ```text
//! available = what spendable grants have that no hold has taken + pool
//! pool      = posted - what remains of all grants - the part of open holds that no grant carries
//! ```
//!
//! People move money by [`grants`], [`adjust`] and [`caps`], and look at it by [`view`].
//!
//! The truth is the [`ledger`]; wallets and grants are what follows from it, kept in step inside
//! the statements that post. Locks are taken in one order: wallets by id, and nothing of a
//! wallet (grants, holds, charges) changes without its lock. Whoever has a wallet's lock must
//! not wait for calls, rows or batches that applying carriers' events may have.

pub mod adjust;
pub mod caps;
pub mod expiry;
pub mod grants;
pub mod holds;
pub mod ledger;
pub mod opening;
pub mod overview;
pub mod verify;
pub mod view;

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;

use crate::error::Result;
use crate::ids::{GrantId, OrgId, WalletId};
use crate::money::Usd;

/// A grant that may be spent from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spendable {
    pub id: GrantId,
    /// What no hold has taken.
    pub free: Usd,
    pub expires_at: Option<DateTime<Utc>>,
}

/// A wallet under its lock, with what was expired already taken out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    pub id: WalletId,
    pub org: OrgId,
    pub posted: Usd,
    pub held: Usd,
    /// What is there beside the grants; may be below zero.
    pub pool: Usd,
    /// In the order in which they are spent.
    pub grants: Vec<Spendable>,
    /// The most that may be spent in a month, holds included.
    pub cap: Option<Usd>,
    /// The current month of the organisation's time zone, and what was spent and is held in it.
    pub month: NaiveDate,
    pub cap_spent: Usd,
    pub cap_held: Usd,
}

/// What an amount was taken from; the rest of it came from the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Burn {
    pub grants: Vec<(GrantId, Usd)>,
    pub pool: Usd,
}

impl Locked {
    /// What may be spent.
    #[must_use]
    pub fn available(&self) -> Usd {
        self.grants
            .iter()
            .map(|grant| grant.free)
            .sum::<Usd>()
            .plus(self.pool)
    }

    /// What the cap leaves this month; none where there is no cap.
    #[must_use]
    pub fn under_cap(&self) -> Option<Usd> {
        self.cap
            .map(|cap| cap.minus(self.cap_spent).minus(self.cap_held))
    }

    /// Why an amount cannot be held; none when it can. Nothing can always be held.
    #[must_use]
    pub fn refusal(&self, amount: Usd) -> Option<holds::Refusal> {
        if !amount.is_positive() {
            None
        } else if self.available() < amount {
            Some(holds::Refusal::InsufficientCredits)
        } else if self.under_cap().is_some_and(|room| room < amount) {
            Some(holds::Refusal::MonthlyCapReached)
        } else {
            None
        }
    }

    /// Takes an amount, in the order of spending. What grants do not cover comes from the pool,
    /// even where that is not there: whether it may is for the caller to know.
    pub fn burn(&mut self, amount: Usd) -> Burn {
        let mut left = amount;
        let mut grants = Vec::new();
        for grant in &mut self.grants {
            let part = left.min(grant.free);
            if part.is_positive() {
                grant.free = grant.free.minus(part);
                left = left.minus(part);
                grants.push((grant.id, part));
            }
        }
        self.pool = self.pool.minus(left);
        Burn { grants, pool: left }
    }

    /// Puts back what was taken from a grant; if that can still be spent, it can be spent again.
    pub fn give_back(&mut self, grant: GrantId, amount: Usd) {
        if let Some(grant) = self.grants.iter_mut().find(|known| known.id == grant) {
            grant.free = grant.free.plus(amount);
        }
    }
}

/// A query of wallets by id, with the month they are in; the caller says whether it locks.
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

/// Locks wallets and reads them, having taken out what has expired by `now`. A wallet that does
/// not exist is not answered. Whose wallets they are was decided by whoever calls.
///
/// # Errors
/// [`crate::Error::Busy`] when somebody holds one of them for long; [`crate::Error::Unexpected`]
/// from the database.
pub async fn lock_unscoped(
    db: &mut PgConnection,
    wallets: &[WalletId],
    now: DateTime<Utc>,
) -> Result<BTreeMap<WalletId, Locked>> {
    if wallets.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (locked, expired) = lock(db, wallets, now).await?;
    if expired.is_empty() {
        return Ok(locked);
    }
    expiry::expire(db, &expired).await?;
    let (locked, _) = lock(db, wallets, now).await?;
    Ok(locked)
}

/// Reads wallets as [`lock_unscoped`] does, without a lock and without moving anything: what is
/// answered may be over already.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn look_unscoped(
    db: &mut PgConnection,
    wallets: &[WalletId],
    now: DateTime<Utc>,
) -> Result<BTreeMap<WalletId, Locked>> {
    let rows = wallets!("", wallets, now).fetch_all(&mut *db).await?;
    let (seen, _) = with_grants(db, rows, now).await?;
    Ok(seen)
}

async fn lock(
    db: &mut PgConnection,
    wallets: &[WalletId],
    now: DateTime<Utc>,
) -> Result<(BTreeMap<WalletId, Locked>, Vec<expiry::Expired>)> {
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

impl From<WalletRow> for Locked {
    fn from(row: WalletRow) -> Self {
        // A month that has begun counts from nothing. One that a change of the time zone brings
        // back has not begun.
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

/// Adds their grants to wallets. A statement of its own: its snapshot must be taken behind the
/// lock, where there is one.
async fn with_grants(
    db: &mut PgConnection,
    rows: Vec<WalletRow>,
    now: DateTime<Utc>,
) -> Result<(BTreeMap<WalletId, Locked>, Vec<expiry::Expired>)> {
    let mut wallets: BTreeMap<WalletId, Locked> =
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
            expired.push(expiry::Expired {
                grant: grant.id,
                org: wallet.org,
                wallet: wallet.id,
                amount: free,
                times: grant.expiries,
            });
        } else if !is_over && !grant.locked {
            wallet.grants.push(Spendable {
                id: grant.id,
                free,
                expires_at: grant.expires_at,
            });
        }
    }
    Ok((wallets, expired))
}
