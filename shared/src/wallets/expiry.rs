//! Expiry of grants: the part of an expired grant that no hold has pinned leaves the wallet.
//!
//! This happens whenever the wallet is locked, so that expired money is never spent even if the
//! job is late, and periodically, for wallets without activity. The pinned part stays until the
//! hold ends: a call in progress is paid by its hold.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::ledger::{
    CallTotals, EntryType, LedgerAccount, Leg, Posting, TransactionKind, post_unscoped,
};
use crate::platform::error::Result;
use crate::platform::ids::{GrantId, OrgId, WalletId};
use crate::platform::money::Usd;

/// Maximum of wallets in one transaction.
const GROUP_LIMIT: i64 = 100;

/// Amount of a grant that expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpiredGrant {
    pub grant: GrantId,
    pub org: OrgId,
    pub wallet: WalletId,
    pub amount: Usd,
    /// Number of earlier expiries of the same grant.
    pub previous_expiries: i32,
}

/// Posts the expired amounts of locked wallets.
pub(super) async fn expire(db: &mut PgConnection, expired: &[ExpiredGrant]) -> Result<()> {
    let postings: Vec<Posting> = expired.iter().map(posting).collect();
    post_unscoped(db, &postings).await?;
    let grants: Vec<GrantId> = expired.iter().map(|expired| expired.grant).collect();
    sqlx::query!(
        "update grants set expiries = expiries + 1 where id = any ($1)",
        &grants as &[GrantId],
    )
    .execute(db)
    .await?;
    Ok(())
}

fn posting(expired: &ExpiredGrant) -> Posting {
    let leg = |account, amount| Leg {
        account,
        entry: EntryType::Expiry,
        amount,
        grant: Some(expired.grant),
    };
    Posting {
        org: expired.org,
        kind: TransactionKind::Expiry,
        idem_key: format!("{}:{}", expired.grant, expired.previous_expiries),
        reverses: None,
        actor: None,
        reason: None,
        call_totals: CallTotals::default(),
        legs: vec![
            leg(LedgerAccount::Wallet(expired.wallet), -expired.amount),
            leg(LedgerAccount::Expiry, expired.amount),
        ],
        grant_uses: vec![(expired.grant, expired.amount)],
    }
}

/// Expires grants in all wallets by `now`. Returns the number of wallets. Unscoped, because
/// grants of every tenant expire.
pub async fn expire_due_unscoped(pool: &PgPool, now: DateTime<Utc>) -> Result<usize> {
    let mut count = 0_usize;
    loop {
        let wallets = sqlx::query_scalar!(
            r#"select distinct wallet_id as "id: WalletId"
               from grants
               where expires_at <= $1
                 and remaining_micros > 0
                 and remaining_micros > pinned_micros
               limit $2"#,
            now,
            GROUP_LIMIT,
        )
        .fetch_all(pool)
        .await?;
        if wallets.is_empty() {
            return Ok(count);
        }

        // Locking a wallet expires its grants.
        let mut db = pool.begin().await?;
        super::lock_unscoped(&mut db, &wallets, now).await?;
        db.commit().await?;
        count = count.saturating_add(wallets.len());
    }
}
