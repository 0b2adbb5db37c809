//! Adjustments: the platform corrects a balance, up or down, with a reason. An added amount is no
//! grant: it does not expire, and is spent last.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::grants::entry_id;
use super::ledger::{
    CallTotals, EntryType, LedgerAccount, Leg, Posting, TransactionKind, post_unscoped,
};
use super::queries::Wallet;
use super::{lock_unscoped, queries};
use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{TransactionId, UserId, WalletId};
use crate::platform::money::Usd;

/// A correction of a balance.
#[derive(Clone, Debug)]
pub struct BalanceAdjustment {
    /// Not zero.
    pub delta: Usd,
    pub reason: String,
    /// Permits a negative balance.
    pub allow_negative: bool,
    /// Idempotency key: a repeated request for the same adjustment has the same key.
    pub idem_key: String,
}

/// Adjusts a wallet's balance. Returns the wallet before and after, and the id of its ledger
/// entry. The caller has checked that a super_admin asks.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when the balance would be negative, or when the
/// adjustment was posted before.
pub async fn adjust(
    db: &mut PgConnection,
    scope: &Scope,
    wallet: WalletId,
    adjustment: &BalanceAdjustment,
    by: UserId,
    now: DateTime<Utc>,
) -> Result<(Wallet, Wallet, i64)> {
    // 1. Check access before the lock.
    queries::find(db, scope, wallet, now).await?;

    // 2. Lock, then decide on what the lock protects.
    let locked = lock_unscoped(db, &[wallet], now).await?;
    let available = locked
        .get(&wallet)
        .ok_or(Error::NotFound("Wallet"))?
        .available();
    let before = queries::find(db, scope, wallet, now).await?;
    let takes = !adjustment.delta.is_positive();
    if takes && !adjustment.allow_negative && available.plus(adjustment.delta) < Usd::ZERO {
        let message =
            format!("the wallet has {available} USD to spend: take less, or send allow_negative");
        return Err(Error::conflict("balance_would_be_negative", message));
    }

    // 3. Post.
    let leg = |account, amount| Leg {
        account,
        entry: EntryType::Adjustment,
        amount,
        grant: None,
    };
    let posting = Posting {
        org: before.organization_id,
        kind: TransactionKind::Adjustment,
        idem_key: adjustment.idem_key.clone(),
        reverses: None,
        actor: Some(by),
        reason: Some(adjustment.reason.clone()),
        call_totals: CallTotals::default(),
        legs: vec![
            leg(LedgerAccount::Wallet(wallet), adjustment.delta),
            leg(LedgerAccount::Adjustment, -adjustment.delta),
        ],
        grant_uses: Vec::new(),
    };
    let posted = post_unscoped(db, &[posting]).await?;

    let transaction = posted.first().copied().unwrap_or_else(TransactionId::new);
    let entry = entry_id(db, wallet, transaction).await?;
    let after = queries::find(db, scope, wallet, now).await?;
    Ok((before, after, entry))
}
