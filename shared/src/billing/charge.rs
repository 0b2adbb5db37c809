//! What settling a call comes to: pure decisions on a wallet under its lock.

use chrono::NaiveDate;
use rust_decimal::Decimal;

use super::quote::{Bill, Prices, Used, price};
use crate::ids::{CallId, ChargeId, GrantId, OrgId, SnapshotId, TransactionId, UserId, WalletId};
use crate::money::Usd;
use crate::wallets::Locked;
use crate::wallets::holds::{Ended, Pin};

/// A call that has ended, and what has been charged for it.
#[derive(Clone, Debug)]
pub(super) struct Due {
    pub call: CallId,
    pub org: OrgId,
    pub user: UserId,
    pub wallet: WalletId,
    pub snapshot: SnapshotId,
    pub used: Used,
    pub carrier_price: Option<Decimal>,
    pub carrier_currency: Option<String>,
    pub hold: Held,
    pub last: Option<Last>,
}

/// What was set aside for a call.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub amount: Usd,
    pub pins: Vec<Pin>,
    pub month: NaiveDate,
    pub open: bool,
}

/// A call's last charge.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub id: ChargeId,
    /// Odd ones charge, even ones take back.
    pub version: i32,
    pub transaction: TransactionId,
    pub bill: Bill,
    pub grants: Vec<Pin>,
}

impl Last {
    fn is_in_force(&self) -> bool {
        self.version % 2 == 1
    }
}

/// A charge to make, or one that takes another back.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub id: ChargeId,
    pub version: i32,
    pub reverses: Option<(ChargeId, TransactionId)>,
    pub bill: Bill,
    /// What of it comes from grants; negative where it goes back to them.
    pub uses: Vec<(GrantId, Usd)>,
    /// What of it is beyond the call's hold.
    pub beyond: Usd,
}

/// What becomes of a call.
#[derive(Clone, Debug, Default)]
pub(super) struct Decision {
    pub charges: Vec<Charge>,
    pub ended: Option<Ended>,
    /// By how much the wallet has spent more.
    pub spent: Usd,
}

/// Decides what a call costs beside what it was charged, and takes it from the wallet.
pub(super) fn decide(wallet: &mut Locked, due: &Due, prices: &Prices) -> Decision {
    let bill = price(prices, due.used);
    let in_force = due.last.as_ref().filter(|last| last.is_in_force());
    if in_force.is_some_and(|last| last.bill == bill) {
        return Decision::default();
    }
    let mut decision = Decision::default();
    // What pays first: what was paid before, or what is held.
    let (mut parts, mut pool): (Vec<Pin>, Usd) = (Vec::new(), Usd::ZERO);
    if let Some(last) = in_force {
        (parts, pool) = (last.grants.clone(), rest(last.bill.retail, &last.grants));
        decision.spent = -last.bill.retail;
        decision.charges.push(take_back(last));
    }
    if due.hold.open {
        let hold = &due.hold;
        (parts, pool) = (hold.pins.clone(), rest(hold.amount, &hold.pins));
        decision.ended = Some(Ended {
            call: due.call,
            wallet: due.wallet,
            captured: bill.retail.is_positive(),
            amount: hold.amount,
            pins: hold.pins.clone(),
            month: hold.month,
        });
    }
    decision.spent = decision.spent.plus(bill.retail);
    let uses = pay(wallet, bill.retail, &parts, pool);
    if bill.retail.is_positive() {
        let version = due.last.as_ref().map_or(0, |last| last.version);
        let taken_back = i32::from(in_force.is_some());
        decision.charges.push(Charge {
            id: ChargeId::new(),
            version: version.saturating_add(taken_back).saturating_add(1),
            reverses: None,
            beyond: bill.retail.minus(due.hold.amount).or_nothing(),
            bill,
            uses,
        });
    }
    decision
}

/// The part of an amount that no grant carries.
fn rest(amount: Usd, parts: &[Pin]) -> Usd {
    amount.minus(parts.iter().map(|part| Usd(part.micros)).sum())
}

fn take_back(last: &Last) -> Charge {
    Charge {
        id: ChargeId::new(),
        version: last.version.saturating_add(1),
        reverses: Some((last.id, last.transaction)),
        bill: last.bill.reversed(),
        uses: last
            .grants
            .iter()
            .map(|part| (part.grant, -Usd(part.micros)))
            .collect(),
        beyond: Usd::ZERO,
    }
}

/// Pays from parts of grants that are set aside, then from what is set aside beside them, then
/// from whatever the wallet has. What is left over of the parts is the wallet's again.
fn pay(wallet: &mut Locked, amount: Usd, parts: &[Pin], pool: Usd) -> Vec<(GrantId, Usd)> {
    let mut left = amount;
    let mut uses = Vec::new();
    for part in parts {
        let set_aside = Usd(part.micros);
        let used = left.min(set_aside);
        if used.is_positive() {
            uses.push((part.grant, used));
        }
        left = left.minus(used);
        wallet.give_back(part.grant, set_aside.minus(used));
    }
    let from_pool = left.min(pool);
    wallet.pool = wallet.pool.plus(pool.minus(from_pool));
    let beyond = wallet.burn(left.minus(from_pool));
    uses.extend(beyond.grants);
    uses
}
