//! Monthly caps: the most that may be spent from a wallet in a calendar month of its
//! organisation's time zone, what is held included. A cap below what is spent already only
//! keeps the next call from being made.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::lock_unscoped;
use super::view::{self, Wallet};
use crate::access::Scope;
use crate::error::Result;
use crate::ids::WalletId;
use crate::money::Usd;

/// Sets the cap of a wallet in the caller's sight, or takes it away. Answers with the wallet
/// before and after.
///
/// # Errors
/// [`crate::Error::NotFound`] when there is none.
pub async fn set(
    db: &mut PgConnection,
    scope: &Scope,
    wallet: WalletId,
    cap: Option<Usd>,
    now: DateTime<Utc>,
) -> Result<(Wallet, Wallet)> {
    view::find(db, scope, wallet, now).await?;
    lock_unscoped(db, &[wallet], now).await?;
    let before = view::find(db, scope, wallet, now).await?;
    sqlx::query!(
        "update wallets set cap_micros = $2, updated_at = now() where id = $1",
        wallet as WalletId,
        cap as Option<Usd>,
    )
    .execute(&mut *db)
    .await?;
    let after = view::find(db, scope, wallet, now).await?;
    Ok((before, after))
}
