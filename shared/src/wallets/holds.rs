//! Holds: credit reserved for a call before it is dialled, so that a call in progress can always
//! be paid.
//!
//! ```text
//! open -> captured   the call was charged its actual cost
//!      -> voided     nothing is billed
//! ```
//!
//! A hold pins amounts of grants, in the order of spending: no other call can use them, and they
//! do not expire meanwhile. It counts in the cap's month in which it was opened.

use std::collections::BTreeMap;

use anyhow::anyhow;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::WalletState;
use crate::platform::columns::column;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{CallId, GrantId, OrgId, SnapshotId, WalletId};
use crate::platform::money::Usd;

/// Request to hold an amount for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldRequest {
    pub call: CallId,
    pub org: OrgId,
    pub wallet: WalletId,
    /// The prices by which the call is charged.
    pub snapshot: SnapshotId,
    pub amount: Usd,
}

/// Reason why no amount can be held for a call.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = NoMoney)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Refusal {
    InsufficientCredits,
    MonthlyCapReached,
}

impl Refusal {
    /// Code on the wire and in tables.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::InsufficientCredits => "insufficient_credits",
            Self::MonthlyCapReached => "monthly_cap_reached",
        }
    }

    /// Error of an API request for a call that cannot be paid.
    #[must_use]
    pub fn error(self) -> Error {
        Error::InsufficientCredit {
            code: self.code(),
            detail: self.message().to_owned(),
        }
    }

    /// Message for the wallet's owner.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::InsufficientCredits => {
                "the wallet cannot pay another call: ask your organization's administrator for credits"
            }
            Self::MonthlyCapReached => {
                "the wallet's monthly cap is reached: raise or clear it, or wait for the next month"
            }
        }
    }
}

/// An amount of a grant that a hold has pinned, or that a charge has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantPin {
    pub grant: GrantId,
    pub micros: i64,
}

impl GrantPin {
    /// Converts amounts of grants to their stored form.
    #[must_use]
    pub fn from_amounts(parts: &[(GrantId, Usd)]) -> Vec<Self> {
        let pin = |(grant, amount): &(GrantId, Usd)| Self {
            grant: *grant,
            micros: amount.0,
        };
        parts.iter().map(pin).collect()
    }
}

/// A hold to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub request: HoldRequest,
    pub pins: Vec<GrantPin>,
    pub month: NaiveDate,
}

/// Takes the amount of a hold from a wallet, if its balance and cap permit.
///
/// # Errors
/// The reason of the refusal; the wallet is unchanged.
pub fn try_hold(wallet: &mut WalletState, wanted: &HoldRequest) -> Result<Hold, Refusal> {
    let amount = wanted.amount;
    if let Some(why) = wallet.refusal(amount) {
        return Err(why);
    }
    let burn = wallet.debit(amount);
    wallet.held = wallet.held.plus(amount);
    wallet.cap_held = wallet.cap_held.plus(amount);
    Ok(Hold {
        request: wanted.clone(),
        pins: GrantPin::from_amounts(&burn.grants),
        month: wallet.month,
    })
}

/// Stores holds that were taken from locked wallets, with one conditional update of each wallet.
/// The calls must exist.
///
/// # Errors
/// [`crate::Error::Unexpected`] when a wallet was not locked and has changed; the caller must
/// roll back then.
pub async fn insert_unscoped(db: &mut PgConnection, holds: &[Hold]) -> Result<()> {
    if holds.is_empty() {
        return Ok(());
    }

    // 1. Sum the holds by wallet and by grant.
    let mut wallets: BTreeMap<WalletId, (Usd, NaiveDate)> = BTreeMap::new();
    for hold in holds {
        let (sum, month) = wallets
            .entry(hold.request.wallet)
            .or_insert((Usd::ZERO, hold.month));
        *sum = sum.plus(hold.request.amount);
        *month = hold.month;
    }
    let ids: Vec<WalletId> = wallets.keys().copied().collect();
    let (sums, months): (Vec<Usd>, Vec<NaiveDate>) = wallets.values().copied().unzip();
    let (grants, pinned) = by_grant(holds.iter().flat_map(|hold| &hold.pins));
    let pins = holds
        .iter()
        .map(|hold| serde_json::to_value(&hold.pins))
        .collect::<Result<Vec<_>, _>>()?;

    // 2. Update wallets and grants, and insert the holds.
    let taken = sqlx::query_file_scalar!(
        "src/wallets/write_holds.sql",
        &ids as &[WalletId],
        &sums as &[Usd],
        &months,
        &grants as &[GrantId],
        &pinned as &[Usd],
        &column(holds, |hold| hold.request.call) as &[CallId],
        &column(holds, |hold| hold.request.org) as &[OrgId],
        &column(holds, |hold| hold.request.wallet) as &[WalletId],
        &column(holds, |hold| hold.request.snapshot) as &[SnapshotId],
        &column(holds, |hold| hold.request.amount) as &[Usd],
        &pins,
        &column(holds, |hold| hold.month),
    )
    .fetch_one(db)
    .await?;

    // 3. Each wallet must be as it was read.
    if usize::try_from(taken).ok() != Some(ids.len()) {
        return Err(anyhow!("a wallet has changed under its lock: nothing is held").into());
    }
    Ok(())
}

/// A hold that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedHold {
    pub call: CallId,
    pub wallet: WalletId,
    pub captured: bool,
    pub amount: Usd,
    pub pins: Vec<GrantPin>,
    pub month: NaiveDate,
}

/// Amount that a wallet has spent, or got back, in the month of a call's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonthlySpend {
    pub wallet: WalletId,
    pub month: NaiveDate,
    pub amount: Usd,
}

/// Ends holds of locked wallets and unpins their amounts. Spent amounts count against the caps of
/// the months that are still current.
///
/// # Errors
/// [`crate::Error::Unexpected`] when one of them had ended before; the caller must roll back then.
pub async fn end_unscoped(
    db: &mut PgConnection,
    ended: &[EndedHold],
    spent: &[MonthlySpend],
) -> Result<()> {
    if ended.is_empty() && spent.is_empty() {
        return Ok(());
    }

    // 1. Sum by wallet and month, and by grant.
    let mut moved: BTreeMap<(WalletId, NaiveDate), (Usd, Usd)> = BTreeMap::new();
    for hold in ended {
        let (held, _) = moved.entry((hold.wallet, hold.month)).or_default();
        *held = held.plus(hold.amount);
    }
    for spent in spent {
        let (_, sum) = moved.entry((spent.wallet, spent.month)).or_default();
        *sum = sum.plus(spent.amount);
    }
    let (wallets, months): (Vec<WalletId>, Vec<NaiveDate>) = moved.keys().copied().unzip();
    let (held, sums): (Vec<Usd>, Vec<Usd>) = moved.values().copied().unzip();
    let (grants, pinned) = by_grant(ended.iter().flat_map(|hold| &hold.pins));

    // 2. Update wallets and grants, and end the holds.
    let count = sqlx::query_file_scalar!(
        "src/wallets/end_holds.sql",
        &wallets as &[WalletId],
        &months,
        &held as &[Usd],
        &sums as &[Usd],
        &grants as &[GrantId],
        &pinned as &[Usd],
        &column(ended, |hold| hold.call) as &[CallId],
        &column(ended, |hold| hold.captured),
    )
    .fetch_one(db)
    .await?;

    // 3. Each hold must have been open.
    if usize::try_from(count).ok() != Some(ended.len()) {
        return Err(anyhow!("a hold has ended before: nothing is settled").into());
    }
    Ok(())
}

fn by_grant<'a>(pins: impl Iterator<Item = &'a GrantPin>) -> (Vec<GrantId>, Vec<Usd>) {
    let mut sums: BTreeMap<GrantId, Usd> = BTreeMap::new();
    for pin in pins {
        let sum = sums.entry(pin.grant).or_default();
        *sum = sum.plus(Usd(pin.micros));
    }
    sums.into_iter().unzip()
}
