//! Charges of a settlement: pure decisions on a locked wallet.

use chrono::NaiveDate;
use rust_decimal::Decimal;

use super::quote::{Bill, CallPrices, CallUsage, price_call};
use crate::platform::ids::{
    CallId, ChargeId, GrantId, OrgId, SnapshotId, TransactionId, UserId, WalletId,
};
use crate::platform::money::Usd;
use crate::wallets::WalletState;
use crate::wallets::holds::{EndedHold, GrantPin};

/// An ended call, its hold and its last charge.
#[derive(Clone, Debug)]
pub(super) struct DueCall {
    pub call: CallId,
    pub org: OrgId,
    pub user: UserId,
    pub wallet: WalletId,
    pub snapshot: SnapshotId,
    pub usage: CallUsage,
    pub carrier_price: Option<Decimal>,
    pub carrier_currency: Option<String>,
    pub hold: CallHold,
    pub last_charge: Option<LastCharge>,
}

/// The hold of a call.
#[derive(Clone, Debug)]
pub(super) struct CallHold {
    pub amount: Usd,
    pub pins: Vec<GrantPin>,
    pub month: NaiveDate,
    pub open: bool,
}

/// A call's last charge.
#[derive(Clone, Debug)]
pub(super) struct LastCharge {
    pub id: ChargeId,
    /// Odd versions charge, even ones reverse.
    pub version: i32,
    pub transaction: TransactionId,
    pub bill: Bill,
    pub grants: Vec<GrantPin>,
}

impl LastCharge {
    fn is_in_force(&self) -> bool {
        self.version % 2 == 1
    }
}

/// A new charge, or the reversal of an earlier one.
#[derive(Clone, Debug)]
pub(super) struct NewCharge {
    pub id: ChargeId,
    pub version: i32,
    pub reverses: Option<(ChargeId, TransactionId)>,
    pub bill: Bill,
    /// Amounts paid from grants; negative amounts are returned to them.
    pub grant_uses: Vec<(GrantId, Usd)>,
    /// Amount above the call's hold.
    pub overage: Usd,
}

/// Result of settling a call.
#[derive(Clone, Debug, Default)]
pub(super) struct ChargeDecision {
    pub charges: Vec<NewCharge>,
    pub ended_hold: Option<EndedHold>,
    /// Change of the wallet's spending.
    pub spent: Usd,
}

/// Prices a call, and takes the difference to its last charge from the wallet.
pub(super) fn decide(
    wallet: &mut WalletState,
    due: &DueCall,
    prices: &CallPrices,
) -> ChargeDecision {
    let bill = price_call(prices, due.usage);
    let in_force = due.last_charge.as_ref().filter(|last| last.is_in_force());
    if in_force.is_some_and(|last| last.bill == bill) {
        return ChargeDecision::default();
    }

    let mut decision = ChargeDecision::default();
    // Pays first from the reversed charge, or from the hold.
    let (mut parts, mut pool): (Vec<GrantPin>, Usd) = (Vec::new(), Usd::ZERO);

    if let Some(last) = in_force {
        (parts, pool) = (
            last.grants.clone(),
            without_grants(last.bill.retail, &last.grants),
        );
        decision.spent = -last.bill.retail;
        decision.charges.push(reverse(last));
    }

    if due.hold.open {
        let hold = &due.hold;
        (parts, pool) = (hold.pins.clone(), without_grants(hold.amount, &hold.pins));
        decision.ended_hold = Some(EndedHold {
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
        let version = due.last_charge.as_ref().map_or(0, |last| last.version);
        let reversals = i32::from(in_force.is_some());
        decision.charges.push(NewCharge {
            id: ChargeId::new(),
            version: version.saturating_add(reversals).saturating_add(1),
            reverses: None,
            overage: bill.retail.minus(due.hold.amount).or_zero(),
            bill,
            grant_uses: uses,
        });
    }
    decision
}

/// Returns the part of an amount that no grant pays.
fn without_grants(amount: Usd, parts: &[GrantPin]) -> Usd {
    amount.minus(parts.iter().map(|part| Usd(part.micros)).sum())
}

fn reverse(last: &LastCharge) -> NewCharge {
    NewCharge {
        id: ChargeId::new(),
        version: last.version.saturating_add(1),
        reverses: Some((last.id, last.transaction)),
        bill: last.bill.reversed(),
        grant_uses: last
            .grants
            .iter()
            .map(|part| (part.grant, -Usd(part.micros)))
            .collect(),
        overage: Usd::ZERO,
    }
}

/// Pays from the reserved parts of grants, then from the reserved pool, then from the wallet's
/// free balance. Returns the remainder of the reserved amounts to the wallet.
fn pay(
    wallet: &mut WalletState,
    amount: Usd,
    parts: &[GrantPin],
    pool: Usd,
) -> Vec<(GrantId, Usd)> {
    let mut left = amount;
    let mut uses = Vec::new();
    for part in parts {
        let reserved = Usd(part.micros);
        let used = left.min(reserved);
        if used.is_positive() {
            uses.push((part.grant, used));
        }
        left = left.minus(used);
        wallet.restore_grant(part.grant, reserved.minus(used));
    }

    let from_pool = left.min(pool);
    wallet.pool = wallet.pool.plus(pool.minus(from_pool));
    let beyond = wallet.debit(left.minus(from_pool));
    uses.extend(beyond.grants);
    uses
}
