//! Grants: credit added to a wallet, with expiry, priority and lock.
//!
//! The platform **mints** into any wallet. An organisation's administrators **transfer** from
//! its wallet to a member's. A transfer must not extend the life of money, so its grant has the
//! earliest expiry of the grants it was taken from. Only the platform changes minted grants;
//! administrators change transferred ones, but never to a later expiry.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::holds::Refusal;
use super::ledger::{
    CallTotals, EntryType, LedgerAccount, Leg, Posting, TransactionKind, post_unscoped,
};
use super::queries::{Grant, Source, Wallet};
use super::{WalletState, lock_unscoped, queries};
use crate::access::{Principal, Role, Scope};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{GrantId, OrgId, TransactionId, UserId, WalletId};
use crate::platform::money::Usd;

/// A grant to create.
#[derive(Clone, Debug)]
pub struct NewGrant {
    pub amount: Usd,
    pub expires_at: Option<DateTime<Utc>>,
    pub priority: i16,
    pub note: Option<String>,
    /// Idempotency key: a repeated request for the same grant has the same key.
    pub idem_key: String,
}

/// A created grant and its wallet.
#[derive(Clone, Debug)]
pub struct IssuedGrant {
    pub grant: Grant,
    pub wallet: Wallet,
    /// Id of the wallet's ledger entry.
    pub entry: i64,
}

/// Changes of a grant; `None` leaves a field unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrantChange {
    /// `Some(None)` removes the expiry.
    pub expires_at: Option<Option<DateTime<Utc>>>,
    pub locked: Option<bool>,
    pub priority: Option<i16>,
}

/// Grants credit of the platform to a wallet. The caller has checked that a super_admin asks.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when the grant was posted before.
pub async fn mint(
    db: &mut PgConnection,
    scope: &Scope,
    wallet: WalletId,
    new: &NewGrant,
    by: UserId,
    now: DateTime<Utc>,
) -> Result<IssuedGrant> {
    require_future(new.expires_at, now)?;
    let found = queries::find(db, scope, wallet, now).await?;
    lock_unscoped(db, &[wallet], now).await?;

    let id = GrantId::new();
    let leg = |account, entry, amount| Leg {
        account,
        entry,
        amount,
        grant: Some(id),
    };
    let posting = Posting {
        org: found.organization_id,
        kind: TransactionKind::Grant,
        idem_key: new.idem_key.clone(),
        reverses: None,
        actor: Some(by),
        reason: new.note.clone(),
        call_totals: CallTotals::default(),
        legs: vec![
            leg(LedgerAccount::Wallet(wallet), EntryType::Grant, new.amount),
            leg(LedgerAccount::Mint, EntryType::Mint, -new.amount),
        ],
        grant_uses: Vec::new(),
    };

    post_grant(db, scope, (id, Source::Mint), wallet, new, posting, by, now).await
}

/// Transfers credit from the wallet of the caller's organisation to a member's. The caller has
/// checked that an org_admin asks.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Rejected`] for the organisation's own wallet;
/// [`Error::InsufficientCredit`] when it has less; [`Error::Conflict`] when the transfer was
/// posted before.
pub async fn transfer(
    db: &mut PgConnection,
    scope: &Scope,
    wallet: WalletId,
    new: &NewGrant,
    by: UserId,
    now: DateTime<Utc>,
) -> Result<IssuedGrant> {
    require_future(new.expires_at, now)?;
    let to = queries::find(db, scope, wallet, now).await?;
    if to.user_id.is_none() {
        return Err(Error::rejected(
            "not_a_members_wallet",
            "only the platform adds credit to an organization's own wallet; use the wallet of a member",
        ));
    }

    // 1. Lock both wallets, in one statement.
    let from = queries::of_org(db, scope, to.organization_id, now)
        .await?
        .id;
    let mut locked = lock_unscoped(db, &[from, wallet], now).await?;
    let source = locked.get_mut(&from).ok_or(Error::NotFound("Wallet"))?;

    // 2. Take the amount from the organization's grants.
    let available = source.available();
    if available < new.amount {
        let message = format!(
            "the organization's wallet has {available} USD available: transfer less, or ask the platform for credits"
        );
        return Err(Error::InsufficientCredit {
            code: Refusal::InsufficientCredits.code(),
            detail: message,
        });
    }
    let (uses, earliest) = take_from_grants(source, new.amount);

    // 3. Post.
    let id = GrantId::new();
    let new = NewGrant {
        expires_at: new.expires_at.into_iter().chain(earliest).min(),
        ..new.clone()
    };
    let leg = |wallet, entry, amount, grant| Leg {
        account: LedgerAccount::Wallet(wallet),
        entry,
        amount,
        grant,
    };
    let posting = Posting {
        org: to.organization_id,
        kind: TransactionKind::Transfer,
        idem_key: new.idem_key.clone(),
        reverses: None,
        actor: Some(by),
        reason: new.note.clone(),
        call_totals: CallTotals::default(),
        legs: vec![
            leg(from, EntryType::TransferOut, -new.amount, None),
            leg(wallet, EntryType::TransferIn, new.amount, Some(id)),
        ],
        grant_uses: uses,
    };
    let kind = (id, Source::Transfer);
    post_grant(db, scope, kind, wallet, &new, posting, by, now).await
}

/// Takes an amount; returns the grants it was taken from and their earliest expiry.
fn take_from_grants(
    source: &mut WalletState,
    amount: Usd,
) -> (Vec<(GrantId, Usd)>, Option<DateTime<Utc>>) {
    let expiries: BTreeMap<GrantId, Option<DateTime<Utc>>> = source
        .grants
        .iter()
        .map(|grant| (grant.id, grant.expires_at))
        .collect();
    let burn = source.debit(amount);
    let earliest = burn
        .grants
        .iter()
        .filter_map(|(grant, _)| *expiries.get(grant)?)
        .min();
    (burn.grants, earliest)
}

#[expect(
    clippy::too_many_arguments,
    reason = "the fields of a grant, shared by mint and transfer"
)]
/// Posts a grant and inserts its row.
async fn post_grant(
    db: &mut PgConnection,
    scope: &Scope,
    (id, source): (GrantId, Source),
    wallet: WalletId,
    new: &NewGrant,
    posting: Posting,
    by: UserId,
    now: DateTime<Utc>,
) -> Result<IssuedGrant> {
    let org = posting.org;
    let transactions = post_unscoped(db, &[posting]).await?;
    let transaction = transactions.first().copied().unwrap_or(TransactionId(id.0));

    sqlx::query!(
        "insert into grants (id, org_id, wallet_id, source, amount_micros, remaining_micros, priority, expires_at,
                             note, transaction_id, granted_by)
         values ($1, $2, $3, $4, $5, $5, $6, $7, $8, $9, $10)",
        id as GrantId,
        org as OrgId,
        wallet as WalletId,
        source as Source,
        new.amount as Usd,
        new.priority,
        new.expires_at,
        new.note,
        transaction as TransactionId,
        by as UserId,
    )
    .execute(&mut *db)
    .await?;

    Ok(IssuedGrant {
        grant: queries::grant(db, scope, id, now).await?,
        wallet: queries::find(db, scope, wallet, now).await?,
        entry: entry_id(db, wallet, transaction).await?,
    })
}

/// Id of the ledger entry of a transaction in a wallet.
pub(super) async fn entry_id(
    db: &mut PgConnection,
    wallet: WalletId,
    transaction: TransactionId,
) -> Result<i64> {
    let entry = sqlx::query_scalar!(
        "select e.id
         from ledger_entries e
         join wallets w on w.account_id = e.account_id
         where w.id = $1
           and e.transaction_id = $2",
        wallet as WalletId,
        transaction as TransactionId,
    )
    .fetch_one(db)
    .await?;
    Ok(entry)
}

/// Changes a grant in the scope. Returns it before and after.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Forbidden`] for a minted grant or a later expiry, except for the
/// platform; [`Error::Conflict`] when it has expired or is used up.
pub async fn edit(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    id: GrantId,
    change: &GrantChange,
    now: DateTime<Utc>,
) -> Result<(Grant, Grant)> {
    if let Some(until) = change.expires_at {
        require_future(until, now)?;
    }

    // 1. Lock the wallet, then read the grant again.
    let wallet = queries::grant(db, scope, id, now).await?.wallet_id;
    lock_unscoped(db, &[wallet], now).await?;
    let before = queries::grant(db, scope, id, now).await?;

    // 2. Decide.
    check_may_change(caller, &before, change)?;
    if before.expires_at.is_some_and(|until| until <= now) || before.remaining_usd.is_zero() {
        return Err(Error::conflict(
            "grant_is_over",
            "this grant is used up or has expired and cannot be changed: create another one",
        ));
    }

    // 3. Write.
    sqlx::query!(
        "update grants
         set expires_at = case when $2 then $3 else expires_at end,
             locked = coalesce($4, locked),
             priority = coalesce($5, priority)
         where id = $1",
        id as GrantId,
        change.expires_at.is_some(),
        change.expires_at.flatten(),
        change.locked,
        change.priority,
    )
    .execute(&mut *db)
    .await?;
    let after = queries::grant(db, scope, id, now).await?;
    Ok((before, after))
}

fn check_may_change(caller: &Principal, grant: &Grant, change: &GrantChange) -> Result<()> {
    if caller.role == Role::SuperAdmin {
        return Ok(());
    }
    if grant.source == Source::Mint {
        return Err(Error::Forbidden(
            "Forbidden: only the platform changes a grant that it minted".into(),
        ));
    }
    let lasts_longer = |until: Option<DateTime<Utc>>| match (grant.expires_at, until) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(before), Some(after)) => after > before,
    };
    if change.expires_at.is_some_and(lasts_longer) {
        return Err(Error::Forbidden(
            "Forbidden: only the platform extends a grant; choose an earlier expiry".into(),
        ));
    }
    Ok(())
}

fn require_future(until: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Result<()> {
    match until {
        Some(until) if until <= now => {
            Err(Error::field("expires_at", "past", "must lie in the future"))
        }
        _ => Ok(()),
    }
}
