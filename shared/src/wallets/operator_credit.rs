//! Credit that the platform's operator grants to a user from the command line, for the first
//! calls.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::ledger::{
    CallTotals, EntryType, LedgerAccount, Leg, Posting, TransactionKind, post_unscoped,
};
use super::{WalletState, lock_unscoped, read_unscoped};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{GrantId, TransactionId, UserId, WalletId};
use crate::platform::money::Usd;

/// Grants an amount to a user, without expiry. The operator has no principal.
///
/// # Errors
/// [`Error::NotFound`] for a user without a wallet.
pub async fn grant_unscoped(
    db: &mut PgConnection,
    user: UserId,
    amount: Usd,
    now: DateTime<Utc>,
) -> Result<WalletId> {
    let wallet = wallet_of(db, user).await?;
    let locked = lock_unscoped(db, &[wallet], now).await?;
    let org = locked.get(&wallet).ok_or(Error::NotFound("Wallet"))?.org;

    let grant = GrantId::new();
    let leg = |account, entry, amount| Leg {
        account,
        entry,
        amount,
        grant: Some(grant),
    };
    let posting = Posting {
        org,
        kind: TransactionKind::Grant,
        idem_key: grant.to_string(),
        reverses: None,
        actor: None,
        reason: None,
        call_totals: CallTotals::default(),
        legs: vec![
            leg(LedgerAccount::Wallet(wallet), EntryType::Grant, amount),
            leg(LedgerAccount::Mint, EntryType::Mint, -amount),
        ],
        grant_uses: Vec::new(),
    };
    let transactions = post_unscoped(db, &[posting]).await?;

    sqlx::query!(
        "insert into grants (id, org_id, wallet_id, source, amount_micros, remaining_micros, transaction_id)
         select $1, w.org_id, w.id, 'mint', $3, $3, $4
         from wallets w
         where w.id = $2",
        grant as GrantId,
        wallet as WalletId,
        amount as Usd,
        transactions.first().copied() as Option<TransactionId>,
    )
    .execute(db)
    .await?;
    Ok(wallet)
}

/// Spendable amount of a user. The operator has no principal.
///
/// # Errors
/// As [`give_unscoped`].
pub async fn available_unscoped(
    db: &mut PgConnection,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<Usd> {
    let wallet = wallet_of(db, user).await?;
    let wallets = read_unscoped(db, &[wallet], now).await?;
    Ok(wallets
        .get(&wallet)
        .map(WalletState::available)
        .unwrap_or_default())
}

async fn wallet_of(db: &mut PgConnection, user: UserId) -> Result<WalletId> {
    sqlx::query_scalar!(
        r#"select w.id as "id: WalletId"
           from users u
           join wallets w on w.org_id = u.org_id and w.user_id = u.id
           where u.id = $1"#,
        user as UserId,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Wallet"))
}
