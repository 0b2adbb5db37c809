//! The ledger: all movements of money are posted here.
//!
//! A posting is a transaction whose legs sum to zero. Its effects on wallets (`posted`) and on
//! grants (`remaining`) are written here too, in the same database transaction, so that the
//! projections cannot drift from their entries. The caller has locked the wallets
//! ([`super::lock_unscoped`]); other accounts have no running balance and are not locked.

use std::collections::BTreeMap;

use anyhow::anyhow;
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::platform::error::{Error, OnConstraint, Result};
use crate::platform::ids::{GrantId, OrgId, TransactionId, UserId, WalletId};
use crate::platform::money::Usd;

/// Kind of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum TransactionKind {
    /// Credit from the platform.
    Grant,
    /// Between two wallets of an organisation.
    Transfer,
    /// Charges of calls.
    Usage,
    /// Correction by a person of the platform.
    Adjustment,
    /// Expiry of a grant.
    Expiry,
    /// Refund of charged calls.
    Reversal,
}

/// Type of a ledger entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum EntryType {
    Grant,
    TransferIn,
    TransferOut,
    /// Cost of calls up to their holds.
    Usage,
    /// Cost of calls beyond their holds.
    Overage,
    Adjustment,
    Expiry,
    Reversal,
    Revenue,
    Markup,
    Commission,
    Mint,
}

/// A ledger account. All but a reseller's belong to the organisation of the posting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerAccount {
    Wallet(WalletId),
    Mint,
    Expiry,
    Adjustment,
    PlatformRevenue,
    ResellerEarnings(OrgId),
}

/// One side of a posting; positive amounts are added to the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    pub account: LedgerAccount,
    pub entry: EntryType,
    pub amount: Usd,
    /// The grant that the leg creates, expires or moves, if any.
    pub grant: Option<GrantId>,
}

/// Totals of the calls in a posting; negative in a reversal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTotals {
    pub calls: i32,
    pub billed_seconds: i64,
    pub base: Usd,
    pub retail: Usd,
    pub reseller: Option<OrgId>,
    pub markup: Usd,
    pub commission: Usd,
}

/// A transaction to post.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Organisation of the accounts.
    pub org: OrgId,
    pub kind: TransactionKind,
    /// Idempotency key: a second posting with the same key is refused.
    pub idem_key: String,
    /// The transaction that a reversal refunds, wholly or in part.
    pub reverses: Option<TransactionId>,
    /// `None` for the platform itself.
    pub actor: Option<UserId>,
    /// Required for adjustments.
    pub reason: Option<String>,
    pub call_totals: CallTotals,
    pub legs: Vec<Leg>,
    /// Amounts taken from grants; negative for refunds. They reduce the grants' remainders, so a
    /// grant that the posting creates is not among them.
    pub grant_uses: Vec<(GrantId, Usd)>,
}

/// Posts transactions, in order, on wallets that the caller has locked. Legs of zero are omitted.
/// Returns their ids. The caller has checked access.
///
/// # Errors
/// [`Error::Conflict`] when one of them was posted before; [`Error::Unexpected`] when one does
/// not sum to zero, or takes more from a grant than remains. The caller must roll back then.
pub async fn post_unscoped(
    db: &mut PgConnection,
    postings: &[Posting],
) -> Result<Vec<TransactionId>> {
    if postings.is_empty() {
        return Ok(Vec::new());
    }

    for posting in postings {
        let sum: i128 = posting
            .legs
            .iter()
            .map(|leg| i128::from(leg.amount.0))
            .sum();
        if sum != 0 {
            let key = &posting.idem_key;
            return Err(anyhow!("posting {key} is out of balance by {sum}").into());
        }
    }

    let accounts = AccountIds::find_or_open(db, postings).await?;
    let ids: Vec<TransactionId> = postings.iter().map(|_| TransactionId::new()).collect();
    insert_transactions(db, postings, &ids).await?;
    let mut balances = move_wallets(db, postings).await?;
    insert_entries(db, postings, &ids, &accounts, &mut balances).await?;
    use_grants(db, postings, &ids).await?;
    Ok(ids)
}

/// Legs with an amount.
fn nonzero_legs(posting: &Posting) -> impl Iterator<Item = &Leg> {
    posting.legs.iter().filter(|leg| !leg.amount.is_zero())
}

/// Ids of the accounts of postings.
struct AccountIds {
    wallets: BTreeMap<WalletId, (OrgId, Uuid)>,
    others: BTreeMap<(OrgId, &'static str), Uuid>,
}

impl AccountIds {
    /// Finds the accounts, and opens missing ones.
    async fn find_or_open(db: &mut PgConnection, postings: &[Posting]) -> Result<Self> {
        let mut wallets = Vec::new();
        let mut others = Vec::new();
        for posting in postings {
            for leg in nonzero_legs(posting) {
                match leg.account {
                    LedgerAccount::Wallet(wallet) => wallets.push(wallet),
                    account => others.push(account_key(posting.org, account)),
                }
            }
        }
        wallets.sort_unstable();
        wallets.dedup();
        others.sort_unstable();
        others.dedup();

        let mut accounts = Self {
            wallets: BTreeMap::new(),
            others: BTreeMap::new(),
        };
        accounts.load(db, &wallets, &others).await?;

        let missing: Vec<_> = others
            .iter()
            .filter(|key| !accounts.others.contains_key(*key))
            .copied()
            .collect();
        if !missing.is_empty() {
            open_accounts(db, &missing).await?;
            accounts.load(db, &wallets, &others).await?;
        }
        Ok(accounts)
    }

    async fn load(
        &mut self,
        db: &mut PgConnection,
        wallets: &[WalletId],
        others: &[(OrgId, &'static str)],
    ) -> Result<()> {
        let (orgs, kinds): (Vec<OrgId>, Vec<&str>) = others.iter().copied().unzip();

        let rows = sqlx::query!(
            r#"select w.account_id as "id!", w.org_id as "org_id!: OrgId", w.id as "wallet_id: WalletId", '' as "kind!"
               from wallets w
               where w.id = any ($1)
               union all
               select a.id, a.org_id, null, a.kind
               from unnest($2::uuid[], $3::text[]) as o (org_id, kind)
               join ledger_accounts a on a.org_id = o.org_id and a.kind = o.kind and a.wallet_id is null"#,
            wallets as &[WalletId],
            &orgs as &[OrgId],
            &kinds as &[&str],
        )
        .fetch_all(db)
        .await?;

        for row in rows {
            if let Some(wallet) = row.wallet_id {
                self.wallets.insert(wallet, (row.org_id, row.id));
            } else if let Some(key) = others
                .iter()
                .find(|(org, kind)| *org == row.org_id && *kind == row.kind)
            {
                self.others.insert(*key, row.id);
            }
        }
        Ok(())
    }

    fn get(&self, org: OrgId, account: LedgerAccount) -> Result<(OrgId, Uuid)> {
        let found = match account {
            LedgerAccount::Wallet(wallet) => self.wallets.get(&wallet).copied(),
            account => {
                let key = account_key(org, account);
                self.others.get(&key).map(|id| (key.0, *id))
            }
        };
        found.ok_or_else(|| anyhow!("there is no account {account:?} of {org}").into())
    }
}

/// Organisation and kind of an account other than a wallet.
fn account_key(org: OrgId, account: LedgerAccount) -> (OrgId, &'static str) {
    match account {
        LedgerAccount::Wallet(_) => (org, "wallet"),
        LedgerAccount::Mint => (org, "mint"),
        LedgerAccount::Expiry => (org, "expiry"),
        LedgerAccount::Adjustment => (org, "adjustment"),
        LedgerAccount::PlatformRevenue => (org, "platform_revenue"),
        LedgerAccount::ResellerEarnings(reseller) => (reseller, "reseller_earnings"),
    }
}

async fn open_accounts(db: &mut PgConnection, missing: &[(OrgId, &'static str)]) -> Result<()> {
    let (orgs, kinds): (Vec<OrgId>, Vec<&str>) = missing.iter().copied().unzip();
    sqlx::query!(
        "insert into ledger_accounts (id, org_id, kind)
         select gen_random_uuid(), m.org_id, m.kind
         from unnest($1::uuid[], $2::text[]) as m (org_id, kind)
         on conflict on constraint ledger_account_exists do nothing",
        &orgs as &[OrgId],
        &kinds as &[&str],
    )
    .execute(db)
    .await?;
    Ok(())
}

async fn insert_transactions(
    db: &mut PgConnection,
    postings: &[Posting],
    ids: &[TransactionId],
) -> Result<()> {
    let amounts = |number: fn(&CallTotals) -> Usd| -> Vec<Usd> {
        postings
            .iter()
            .map(|posting| number(&posting.call_totals))
            .collect()
    };

    let orgs: Vec<OrgId> = postings.iter().map(|posting| posting.org).collect();
    let kinds: Vec<TransactionKind> = postings.iter().map(|posting| posting.kind).collect();
    let keys: Vec<&str> = postings
        .iter()
        .map(|posting| posting.idem_key.as_str())
        .collect();
    let reverses: Vec<Option<TransactionId>> = postings.iter().map(|p| p.reverses).collect();
    let actors: Vec<Option<UserId>> = postings.iter().map(|posting| posting.actor).collect();
    let reasons: Vec<Option<&str>> = postings.iter().map(|p| p.reason.as_deref()).collect();
    let calls: Vec<i32> = postings.iter().map(|p| p.call_totals.calls).collect();
    let seconds: Vec<i64> = postings
        .iter()
        .map(|p| p.call_totals.billed_seconds)
        .collect();
    let resellers: Vec<Option<OrgId>> = postings.iter().map(|p| p.call_totals.reseller).collect();

    sqlx::query!(
        "insert into ledger_transactions (id, org_id, kind, idem_key, reverses_id, actor_user_id, reason, calls,
                                          billed_seconds, base_micros, retail_micros, reseller_org_id,
                                          markup_micros, commission_micros)
         select *
         from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::uuid[], $7::text[],
                     $8::integer[], $9::bigint[], $10::bigint[], $11::bigint[], $12::uuid[], $13::bigint[],
                     $14::bigint[])",
        ids as &[TransactionId],
        &orgs as &[OrgId],
        &kinds as &[TransactionKind],
        &keys as &[&str],
        &reverses as &[Option<TransactionId>],
        &actors as &[Option<UserId>],
        &reasons as &[Option<&str>],
        &calls,
        &seconds,
        &amounts(|folded| folded.base) as &[Usd],
        &amounts(|folded| folded.retail) as &[Usd],
        &resellers as &[Option<OrgId>],
        &amounts(|folded| folded.markup) as &[Usd],
        &amounts(|folded| folded.commission) as &[Usd],
    )
    .execute(db)
    .await
    .on_constraint("ledger_transaction_exists", || {
        Error::conflict("posted_already", "this has been posted already")
    })?;
    Ok(())
}

/// A wallet's balance and number of entries.
type WalletBalance = (Usd, i64);

/// Adds the postings to the wallets' balances; returns the balances before.
async fn move_wallets(
    db: &mut PgConnection,
    postings: &[Posting],
) -> Result<BTreeMap<WalletId, WalletBalance>> {
    let mut sums: BTreeMap<WalletId, WalletBalance> = BTreeMap::new();
    for leg in postings.iter().flat_map(nonzero_legs) {
        if let LedgerAccount::Wallet(wallet) = leg.account {
            let (sum, entries) = sums.entry(wallet).or_default();
            *sum = sum.plus(leg.amount);
            *entries = entries.saturating_add(1);
        }
    }
    if sums.is_empty() {
        return Ok(sums);
    }

    let wallets: Vec<WalletId> = sums.keys().copied().collect();
    let (amounts, entries): (Vec<Usd>, Vec<i64>) = sums.values().copied().unzip();
    let rows = sqlx::query!(
        r#"update wallets w
           set posted_micros = w.posted_micros + m.amount, entries = w.entries + m.entries, updated_at = now()
           from unnest($1::uuid[], $2::bigint[], $3::bigint[]) as m (id, amount, entries)
           where w.id = m.id
           returning w.id as "id: WalletId", w.posted_micros - m.amount as "posted!: Usd",
                     w.entries - m.entries as "entries!""#,
        &wallets as &[WalletId],
        &amounts as &[Usd],
        &entries,
    )
    .fetch_all(db)
    .await?;

    Ok(rows
        .into_iter()
        .map(|row| (row.id, (row.posted, row.entries)))
        .collect())
}

/// Columns of the entries to insert.
#[derive(Default)]
struct EntryColumns {
    orgs: Vec<OrgId>,
    transactions: Vec<TransactionId>,
    accounts: Vec<Uuid>,
    types: Vec<EntryType>,
    amounts: Vec<Usd>,
    grants: Vec<Option<GrantId>>,
    balances: Vec<Option<Usd>>,
    numbers: Vec<Option<i64>>,
}

async fn insert_entries(
    db: &mut PgConnection,
    postings: &[Posting],
    ids: &[TransactionId],
    accounts: &AccountIds,
    balances: &mut BTreeMap<WalletId, WalletBalance>,
) -> Result<()> {
    // 1. Compute each wallet's running balance and entry number.
    let mut entries = EntryColumns::default();
    for (posting, id) in postings.iter().zip(ids) {
        for leg in nonzero_legs(posting) {
            let (org, account) = accounts.get(posting.org, leg.account)?;

            let mut after = (None, None);
            if let LedgerAccount::Wallet(wallet) = leg.account
                && let Some((balance, number)) = balances.get_mut(&wallet)
            {
                *balance = balance.plus(leg.amount);
                *number = number.saturating_add(1);
                after = (Some(*balance), Some(*number));
            }

            entries.orgs.push(org);
            entries.transactions.push(*id);
            entries.accounts.push(account);
            entries.types.push(leg.entry);
            entries.amounts.push(leg.amount);
            entries.grants.push(leg.grant);
            entries.balances.push(after.0);
            entries.numbers.push(after.1);
        }
    }

    // 2. Insert.
    sqlx::query!(
        "insert into ledger_entries (org_id, transaction_id, account_id, entry_type, amount_micros, grant_id,
                                     balance_after_micros, account_seq)
         select *
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::uuid[], $7::bigint[],
                     $8::bigint[])",
        &entries.orgs as &[OrgId],
        &entries.transactions as &[TransactionId],
        &entries.accounts,
        &entries.types as &[EntryType],
        &entries.amounts as &[Usd],
        &entries.grants as &[Option<GrantId>],
        &entries.balances as &[Option<Usd>],
        &entries.numbers as &[Option<i64>],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Records the uses of grants and reduces the grants' remainders.
async fn use_grants(
    db: &mut PgConnection,
    postings: &[Posting],
    ids: &[TransactionId],
) -> Result<()> {
    let mut orgs = Vec::new();
    let mut transactions = Vec::new();
    let mut grants = Vec::new();
    let mut amounts = Vec::new();

    // A grant is used once per transaction.
    for (posting, id) in postings.iter().zip(ids) {
        let mut sums: BTreeMap<GrantId, Usd> = BTreeMap::new();
        for (grant, amount) in &posting.grant_uses {
            let sum = sums.entry(*grant).or_default();
            *sum = sum.plus(*amount);
        }
        for (grant, amount) in sums.into_iter().filter(|(_, sum)| !sum.is_zero()) {
            orgs.push(posting.org);
            transactions.push(*id);
            grants.push(grant);
            amounts.push(amount);
        }
    }
    if grants.is_empty() {
        return Ok(());
    }

    sqlx::query!(
        "with used as (
             insert into grant_uses (transaction_id, grant_id, org_id, amount_micros)
             select *
             from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[])
             returning grant_id, amount_micros
         )
         update grants g
         set remaining_micros = g.remaining_micros - u.amount
         from (select grant_id, sum(amount_micros)::bigint as amount from used group by grant_id) u
         where g.id = u.grant_id",
        &transactions as &[TransactionId],
        &grants as &[GrantId],
        &orgs as &[OrgId],
        &amounts as &[Usd],
    )
    .execute(db)
    .await?;
    Ok(())
}
