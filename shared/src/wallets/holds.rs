//! Holds: money set aside for a call before it is dialled, so that calls which are under way
//! can be paid whatever else happens.
//!
//! ```text
//! open -> captured   the call was charged, for whatever it cost
//!      -> voided     nothing is billed
//! ```
//!
//! A hold pins what it takes from grants, by the order of spending: no other call can have it,
//! and it does not expire meanwhile. It counts in the month of the cap in which it was opened.

use std::collections::BTreeMap;

use anyhow::anyhow;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::Locked;
use crate::columns::column;
use crate::error::{Error, Result};
use crate::ids::{CallId, GrantId, OrgId, SnapshotId, WalletId};
use crate::money::Usd;

/// What a call wants set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub call: CallId,
    pub org: OrgId,
    pub wallet: WalletId,
    /// The prices it will be charged by.
    pub snapshot: SnapshotId,
    pub amount: Usd,
}

/// Why there is no money for a call.
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
    /// The code on the wire and in tables.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::InsufficientCredits => "insufficient_credits",
            Self::MonthlyCapReached => "monthly_cap_reached",
        }
    }

    /// The refusal of what there is no money for.
    #[must_use]
    pub fn error(self) -> Error {
        Error::InsufficientCredit {
            code: self.code(),
            detail: self.words().to_owned(),
        }
    }

    /// A sentence for whoever owns the wallet.
    #[must_use]
    pub fn words(self) -> &'static str {
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

/// A part of a grant that a hold has taken, or that a charge has used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub grant: GrantId,
    pub micros: i64,
}

impl Pin {
    /// Parts of grants as they are stored.
    #[must_use]
    pub fn all(parts: &[(GrantId, Usd)]) -> Vec<Self> {
        let pin = |(grant, amount): &(GrantId, Usd)| Self {
            grant: *grant,
            micros: amount.0,
        };
        parts.iter().map(pin).collect()
    }
}

/// A hold that can be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub wanted: Wanted,
    pub pins: Vec<Pin>,
    pub month: NaiveDate,
}

/// Takes what a call wants from a wallet, if it has that and its cap allows it.
///
/// # Errors
/// Why not; the wallet is as before.
pub fn take(wallet: &mut Locked, wanted: &Wanted) -> Result<Hold, Refusal> {
    let amount = wanted.amount;
    if let Some(why) = wallet.refusal(amount) {
        return Err(why);
    }
    let burn = wallet.burn(amount);
    wallet.held = wallet.held.plus(amount);
    wallet.cap_held = wallet.cap_held.plus(amount);
    Ok(Hold {
        wanted: wanted.clone(),
        pins: Pin::all(&burn.grants),
        month: wallet.month,
    })
}

/// Writes holds down that were taken from wallets under their locks: one conditional change of
/// each wallet for all of them. Their calls exist.
///
/// # Errors
/// [`crate::Error::Unexpected`] when a wallet was not locked and has changed, or from the
/// database; the caller's transaction is lost then.
pub async fn write_unscoped(db: &mut PgConnection, holds: &[Hold]) -> Result<()> {
    if holds.is_empty() {
        return Ok(());
    }
    let mut wallets: BTreeMap<WalletId, (Usd, NaiveDate)> = BTreeMap::new();
    for hold in holds {
        let (sum, month) = wallets
            .entry(hold.wanted.wallet)
            .or_insert((Usd::ZERO, hold.month));
        *sum = sum.plus(hold.wanted.amount);
        *month = hold.month;
    }
    let ids: Vec<WalletId> = wallets.keys().copied().collect();
    let (sums, months): (Vec<Usd>, Vec<NaiveDate>) = wallets.values().copied().unzip();
    let (grants, pinned) = by_grant(holds.iter().flat_map(|hold| &hold.pins));
    let pins = holds
        .iter()
        .map(|hold| serde_json::to_value(&hold.pins))
        .collect::<Result<Vec<_>, _>>()?;
    let taken = sqlx::query_file_scalar!(
        "src/wallets/write_holds.sql",
        &ids as &[WalletId],
        &sums as &[Usd],
        &months,
        &grants as &[GrantId],
        &pinned as &[Usd],
        &column(holds, |hold| hold.wanted.call) as &[CallId],
        &column(holds, |hold| hold.wanted.org) as &[OrgId],
        &column(holds, |hold| hold.wanted.wallet) as &[WalletId],
        &column(holds, |hold| hold.wanted.snapshot) as &[SnapshotId],
        &column(holds, |hold| hold.wanted.amount) as &[Usd],
        &pins,
        &column(holds, |hold| hold.month),
    )
    .fetch_one(db)
    .await?;
    if usize::try_from(taken).ok() != Some(ids.len()) {
        return Err(anyhow!("a wallet has changed under its lock: nothing is held").into());
    }
    Ok(())
}

/// A hold that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub call: CallId,
    pub wallet: WalletId,
    pub captured: bool,
    pub amount: Usd,
    pub pins: Vec<Pin>,
    pub month: NaiveDate,
}

/// What a wallet has spent, or been given back, in the month of a call's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    pub wallet: WalletId,
    pub month: NaiveDate,
    pub amount: Usd,
}

/// Ends holds of wallets that are locked: what they had pinned is free again. What was spent is
/// counted against the caps of the months that still run.
///
/// # Errors
/// [`crate::Error::Unexpected`] when one of them had ended before, or from the database; the
/// caller's transaction is lost then.
pub async fn end_unscoped(db: &mut PgConnection, ended: &[Ended], spent: &[Spent]) -> Result<()> {
    if ended.is_empty() && spent.is_empty() {
        return Ok(());
    }
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
    if usize::try_from(count).ok() != Some(ended.len()) {
        return Err(anyhow!("a hold has ended before: nothing is settled").into());
    }
    Ok(())
}

fn by_grant<'a>(pins: impl Iterator<Item = &'a Pin>) -> (Vec<GrantId>, Vec<Usd>) {
    let mut sums: BTreeMap<GrantId, Usd> = BTreeMap::new();
    for pin in pins {
        let sum = sums.entry(pin.grant).or_default();
        *sum = sum.plus(Usd(pin.micros));
    }
    sums.into_iter().unzip()
}
