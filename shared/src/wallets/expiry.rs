//! Grants whose time is up: what no hold has taken of them leaves the wallet.
//!
//! It does so whenever the wallet is locked, so that a late job never leaves expired money to be
//! spent, and periodically, so that it is seen in wallets that nobody uses. What a hold has
//! taken stays until the hold ends: a call that was under way is paid by what was held for it.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::ledger::{Account, EntryType, Folded, Kind, Leg, Posting, post_unscoped};
use crate::error::Result;
use crate::ids::{GrantId, OrgId, WalletId};
use crate::money::Usd;

/// Wallets looked through in one transaction.
const GROUP_LIMIT: i64 = 100;

/// What expires of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expired {
    pub grant: GrantId,
    pub org: OrgId,
    pub wallet: WalletId,
    pub amount: Usd,
    /// How often some of it has expired before.
    pub times: i32,
}

/// Takes what has expired out of wallets that are locked.
pub(super) async fn expire(db: &mut PgConnection, expired: &[Expired]) -> Result<()> {
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

fn posting(expired: &Expired) -> Posting {
    let leg = |account, amount| Leg {
        account,
        entry: EntryType::Expiry,
        amount,
        grant: Some(expired.grant),
    };
    Posting {
        org: expired.org,
        kind: Kind::Expiry,
        idem_key: format!("{}:{}", expired.grant, expired.times),
        reverses: None,
        actor: None,
        reason: None,
        folded: Folded::default(),
        legs: vec![
            leg(Account::Wallet(expired.wallet), -expired.amount),
            leg(Account::Expiry, expired.amount),
        ],
        uses: vec![(expired.grant, expired.amount)],
    }
}

/// Takes out of all wallets what has expired by `now`. Answers with how many wallets there were.
/// Time passes for every tenant.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn expire_due_unscoped(pool: &PgPool, now: DateTime<Utc>) -> Result<usize> {
    let mut done = 0_usize;
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
            return Ok(done);
        }
        let mut db = pool.begin().await?;
        super::lock_unscoped(&mut db, &wallets, now).await?;
        db.commit().await?;
        done = done.saturating_add(wallets.len());
    }
}
