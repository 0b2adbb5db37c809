//! Monthly caps: the maximum that may be spent from a wallet in a calendar month of its
//! organisation's time zone, holds included. A cap below the amount already spent only blocks
//! further calls.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::queries::Wallet;
use super::{lock_unscoped, queries};
use crate::access::Scope;
use crate::platform::error::Result;
use crate::platform::ids::WalletId;
use crate::platform::money::Usd;

/// Sets or clears the cap of a wallet in the scope. Returns the wallet before and after.
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
    queries::find(db, scope, wallet, now).await?;
    lock_unscoped(db, &[wallet], now).await?;
    let before = queries::find(db, scope, wallet, now).await?;
    sqlx::query!(
        "update wallets set cap_micros = $2, updated_at = now() where id = $1",
        wallet as WalletId,
        cap as Option<Usd>,
    )
    .execute(&mut *db)
    .await?;
    let after = queries::find(db, scope, wallet, now).await?;
    Ok((before, after))
}
