//! Overview of all wallets with entries, for the platform's operator.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use super::read_unscoped;
use crate::platform::error::Result;
use crate::platform::ids::WalletId;
use crate::platform::money::Usd;

/// Balances of one wallet.
#[derive(Clone, Debug, Serialize)]
pub struct WalletOverview {
    pub wallet_id: WalletId,
    pub organization: String,
    /// Absent for the organisation's own wallet.
    pub email: Option<String>,
    pub balance_usd: Usd,
    /// Part of the balance that is held for calls in progress.
    pub held_usd: Usd,
    pub available_usd: Usd,
    pub monthly_cap_usd: Option<Usd>,
}

/// Lists the wallets with entries, by organisation and owner. The operator has no principal.
pub async fn all_unscoped(
    db: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<Vec<WalletOverview>> {
    let rows = sqlx::query!(
        r#"select w.id as "id: WalletId", o.name, u.email as "email?"
           from wallets w
           join organizations o on o.id = w.org_id
           left join users u on u.id = w.user_id
           where w.entries > 0
           order by o.name, u.email nulls first"#,
    )
    .fetch_all(&mut *db)
    .await?;
    let ids: Vec<WalletId> = rows.iter().map(|row| row.id).collect();
    let wallets = read_unscoped(db, &ids, now).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let wallet = wallets.get(&row.id)?;
            Some(WalletOverview {
                wallet_id: row.id,
                organization: row.name,
                email: row.email,
                balance_usd: wallet.posted,
                held_usd: wallet.held,
                available_usd: wallet.available(),
                monthly_cap_usd: wallet.cap,
            })
        })
        .collect())
}
