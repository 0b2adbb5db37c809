//! Wallets, grants and ledger pages for the API.

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::ledger::EntryType;
use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{GrantId, OrgId, TransactionId, UserId, WalletId};
use crate::platform::money::Usd;
use crate::platform::page::{Page, PageSlice};

/// Page of grants shown with a wallet, spendable ones first.
const GRANTS_SHOWN: Page = Page {
    number: 1,
    size: 500,
};

/// Kind of a wallet's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Owner)]
pub enum WalletOwner {
    User,
    Organization,
}

/// A wallet with its balances and cap.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Wallet {
    pub id: WalletId,
    pub owner: WalletOwner,
    pub organization_id: OrgId,
    #[schema(example = "Acme")]
    pub organization_name: String,
    pub user_id: Option<UserId>,
    #[schema(example = "ada@example.com")]
    pub email: Option<String>,
    /// Spendable amount, without held, locked or expired amounts.
    pub available_balance_usd: Usd,
    /// Same as `available_balance_usd`.
    pub credit_balance_usd: Usd,
    /// Total balance.
    pub posted_usd: Usd,
    /// Amount held for calls in progress.
    pub held_usd: Usd,
    /// Maximum that may be spent in a month; null for no limit.
    pub monthly_cap_usd: Option<Usd>,
    /// First day of the cap's current month, in the organization's time zone.
    pub month: NaiveDate,
    pub month_spend_usd: Usd,
    /// Part of the held amount that counts in this month.
    pub month_held_usd: Usd,
    /// Remainder of the cap; null without one.
    pub cap_remaining_usd: Option<Usd>,
    #[schema(example = "USD")]
    pub currency: &'static str,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Origin of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Source {
    /// Granted by the platform.
    Mint,
    /// Transferred from the organisation's wallet.
    Transfer,
}

/// State of a grant; only an active one can be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum GrantState {
    Active,
    Locked,
    Expired,
    Used,
}

/// Credit added to a wallet.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Grant {
    pub id: GrantId,
    pub wallet_id: WalletId,
    pub amount_usd: Usd,
    pub remaining_usd: Usd,
    /// Part of the remainder that is held for calls in progress.
    pub held_usd: Usd,
    pub source: Source,
    pub state: GrantState,
    /// 0 is spent first, 100 last; equal priorities by earlier expiry, then by age.
    #[schema(example = 50)]
    pub priority: i16,
    pub expires_at: Option<DateTime<Utc>>,
    pub locked: bool,
    pub note: Option<String>,
    pub granted_by: Option<UserId>,
    pub created_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// An entry of a wallet's ledger. Entries never change; a correction is another entry.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LedgerEntry {
    pub id: i64,
    pub wallet_id: WalletId,
    /// Consecutive number in the wallet, from 1.
    #[schema(example = 1)]
    pub number: i64,
    pub entry_type: EntryType,
    /// Negative when it left the wallet.
    pub amount_usd: Usd,
    pub balance_after_usd: Usd,
    /// `grant` or `transaction`.
    #[schema(example = "grant")]
    pub reference_type: String,
    pub reference_id: String,
    pub transaction_id: TransactionId,
    /// Number of calls in the entry; negative for refunded calls.
    #[schema(example = 0)]
    pub calls: i32,
    pub note: Option<String>,
    pub actor_user_id: Option<UserId>,
    pub created_at: DateTime<Utc>,
}

/// One page of a ledger, the newest first.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LedgerPage {
    pub entries: Vec<LedgerEntry>,
    /// The `after` of the next page; null on the last page.
    pub next: Option<i64>,
}

/// Amount that will expire unless it is spent.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Expiring)]
pub struct ExpiringAmount {
    pub grant_id: GrantId,
    pub amount_usd: Usd,
    pub expires_at: DateTime<Utc>,
}

struct WalletDetailsRow {
    id: WalletId,
    organization_id: OrgId,
    organization_name: String,
    user_id: Option<UserId>,
    email: Option<String>,
    posted: Usd,
    held: Usd,
    idle: Usd,
    cap: Option<Usd>,
    month: NaiveDate,
    cap_spent: Usd,
    cap_held: Usd,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<WalletDetailsRow> for Wallet {
    fn from(row: WalletDetailsRow) -> Self {
        let available = row.posted.minus(row.held).minus(row.idle);
        let used = row.cap_spent.plus(row.cap_held);
        Self {
            id: row.id,
            owner: match row.user_id {
                Some(_) => WalletOwner::User,
                None => WalletOwner::Organization,
            },
            organization_id: row.organization_id,
            organization_name: row.organization_name,
            user_id: row.user_id,
            email: row.email,
            available_balance_usd: available,
            credit_balance_usd: available,
            posted_usd: row.posted,
            held_usd: row.held,
            monthly_cap_usd: row.cap,
            month: row.month,
            month_spend_usd: row.cap_spent,
            month_held_usd: row.cap_held,
            cap_remaining_usd: row.cap.map(|cap| cap.minus(used).or_zero()),
            currency: "USD",
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Query of wallets `w` in the scope. The remainder of grants that cannot be spent is `idle`. The
/// conditions' arguments begin at `$4`.
macro_rules! wallets {
    ($rest:tt, $scope:expr, $now:expr $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            WalletDetailsRow,
            r#"select w.id as "id: WalletId", w.org_id as "organization_id: OrgId", o.name as organization_name,
                      w.user_id as "user_id: UserId", u.email as "email?", w.posted_micros as "posted: Usd",
                      w.held_micros as "held: Usd", idle.micros as "idle!: Usd", w.cap_micros as "cap: Usd",
                      greatest(this.month, w.cap_month) as "month!",
                      case when this.month > w.cap_month then 0 else w.cap_spent_micros end as "cap_spent!: Usd",
                      case when this.month > w.cap_month then 0 else w.cap_held_micros end as "cap_held!: Usd",
                      w.created_at, w.updated_at
               from wallets w
               join organizations o on o.id = w.org_id
               left join users u on u.id = w.user_id
               cross join lateral (
                   select date_trunc('month', $3::timestamptz at time zone o.timezone)::date as month) this
               cross join lateral (
                   select coalesce(sum(g.remaining_micros - g.pinned_micros), 0)::bigint as micros
                   from grants g
                   where g.wallet_id = w.id
                     and g.remaining_micros > 0
                     and (g.locked or g.expires_at <= $3)) idle
               where ($1::uuid is null or w.org_id = $1)
                 and ($2::uuid is null or w.user_id = $2) "# + $rest,
            $scope.org() as Option<OrgId>,
            $scope.user() as Option<UserId>,
            $now,
            $($argument),*
        )
    };
}

/// Finds a wallet in the scope: a user sees their own, not the organisation's.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(
    db: &mut PgConnection,
    scope: &Scope,
    id: WalletId,
    now: DateTime<Utc>,
) -> Result<Wallet> {
    wallets!("and w.id = $4", scope, now, id as WalletId)
        .fetch_optional(db)
        .await?
        .map(Wallet::from)
        .ok_or(Error::NotFound("Wallet"))
}

/// Finds the wallet of a user in the scope.
///
/// # Errors
/// As [`find`].
pub async fn of_user(
    db: &mut PgConnection,
    scope: &Scope,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<Wallet> {
    wallets!("and w.user_id = $4", scope, now, user as UserId)
        .fetch_optional(db)
        .await?
        .map(Wallet::from)
        .ok_or(Error::NotFound("Wallet"))
}

/// Finds the wallet of an organisation in the scope.
///
/// # Errors
/// As [`find`].
pub async fn of_org(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    now: DateTime<Utc>,
) -> Result<Wallet> {
    wallets!(
        "and w.org_id = $4 and w.user_id is null",
        scope,
        now,
        org as OrgId
    )
    .fetch_optional(db)
    .await?
    .map(Wallet::from)
    .ok_or(Error::NotFound("Organization"))
}

/// Lists the wallets of one kind of owner in the scope, optionally of one organisation, by their
/// owners' names; also returns their total number. A removed user's empty wallet is omitted.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owner: WalletOwner,
    org: Option<OrgId>,
    page: Page,
    now: DateTime<Utc>,
) -> Result<(Vec<Wallet>, i64)> {
    let of_users = owner == WalletOwner::User;

    let total = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from wallets w
           left join users u on u.id = w.user_id
           where ($1::uuid is null or w.org_id = $1)
             and ($2::uuid is null or w.user_id = $2)
             and (w.user_id is not null) = $3
             and ($4::uuid is null or w.org_id = $4)
             and (u.removed_at is null or w.posted_micros <> 0)"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        of_users,
        org as Option<OrgId>,
    )
    .fetch_one(&mut *db)
    .await?;

    let rows = wallets!(
        "and (w.user_id is not null) = $4
         and ($5::uuid is null or w.org_id = $5)
         and (u.removed_at is null or w.posted_micros <> 0)
         order by o.name, lower(u.email), w.id
         limit $6
         offset $7",
        scope,
        now,
        of_users,
        org as Option<OrgId>,
        page.size,
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    Ok((rows.into_iter().map(Wallet::from).collect(), total))
}

/// Query of grants `g` in the scope; the conditions' arguments begin at `$4`.
macro_rules! grants {
    ($rest:tt, $scope:expr, $now:expr $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Grant,
            r#"select g.id as "id: GrantId", g.wallet_id as "wallet_id: WalletId", g.amount_micros as "amount_usd: Usd",
                      g.remaining_micros as "remaining_usd: Usd", g.pinned_micros as "held_usd: Usd",
                      g.source as "source: Source",
                      case when g.remaining_micros = 0 and g.expiries = 0 then 'used'
                           when g.expires_at <= $3 then 'expired'
                           when g.locked then 'locked'
                           else 'active' end as "state!: GrantState",
                      g.priority, g.expires_at, g.locked, g.note, g.granted_by as "granted_by: UserId", g.created_at,
                      g.org_id as "org_id: OrgId"
               from grants g
               join wallets w on w.id = g.wallet_id
               where ($1::uuid is null or w.org_id = $1)
                 and ($2::uuid is null or w.user_id = $2) "# + $rest,
            $scope.org() as Option<OrgId>,
            $scope.user() as Option<UserId>,
            $now,
            $($argument),*
        )
    };
}

/// Finds a grant in the scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn grant(
    db: &mut PgConnection,
    scope: &Scope,
    id: GrantId,
    now: DateTime<Utc>,
) -> Result<Grant> {
    grants!("and g.id = $4", scope, now, id as GrantId)
        .fetch_optional(db)
        .await?
        .ok_or(Error::NotFound("Grant"))
}

/// Lists the grants of a wallet in the scope: spendable ones in the order of spending, then the
/// others, the newest first.
pub async fn grants_of(
    db: &mut PgConnection,
    scope: &Scope,
    wallet: WalletId,
    now: DateTime<Utc>,
) -> Result<PageSlice<Grant>> {
    let grants = grants!(
        "and g.wallet_id = $4
         order by (g.remaining_micros > 0) desc, g.priority, g.expires_at nulls last, g.created_at, g.id
         limit $5",
        scope,
        now,
        wallet as WalletId,
        GRANTS_SHOWN.limit(),
    )
    .fetch_all(db)
    .await?;
    let PageSlice {
        rows: mut grants,
        has_more,
    } = GRANTS_SHOWN.slice(grants);

    let others = grants.extract_if(.., |grant| grant.state != GrantState::Active);
    let mut others: Vec<Grant> = others.collect();
    others.sort_by_key(|grant| std::cmp::Reverse((grant.created_at, grant.id)));
    grants.append(&mut others);

    Ok(PageSlice {
        rows: grants,
        has_more,
    })
}

/// Amounts of these grants that will expire, the soonest first.
#[must_use]
pub fn upcoming_expiries(grants: &[Grant]) -> Vec<ExpiringAmount> {
    let mut expiring: Vec<ExpiringAmount> = grants
        .iter()
        .filter(|grant| !grant.remaining_usd.is_zero() && grant.state != GrantState::Expired)
        .filter_map(|grant| {
            Some(ExpiringAmount {
                grant_id: grant.id,
                amount_usd: grant.remaining_usd,
                expires_at: grant.expires_at?,
            })
        })
        .collect();
    expiring.sort_by_key(|expiring| (expiring.expires_at, expiring.grant_id));
    expiring
}

/// Reads a page of the ledger of a wallet in the scope: entries older than the one numbered
/// `after`, the newest first.
pub async fn ledger_page(
    db: &mut PgConnection,
    scope: &Scope,
    wallet: WalletId,
    after: Option<i64>,
    limit: i64,
) -> Result<LedgerPage> {
    let entries = sqlx::query_as!(
        LedgerEntry,
        r#"select e.id, w.id as "wallet_id: WalletId", e.account_seq as "number!", e.entry_type as "entry_type: EntryType",
                  e.amount_micros as "amount_usd: Usd", e.balance_after_micros as "balance_after_usd!: Usd",
                  case when e.grant_id is null then 'transaction' else 'grant' end as "reference_type!",
                  coalesce(e.grant_id, t.id)::text as "reference_id!", t.id as "transaction_id: TransactionId",
                  t.calls, t.reason as note, t.actor_user_id as "actor_user_id: UserId", e.created_at
           from wallets w
           join ledger_entries e on e.account_id = w.account_id
           join ledger_transactions t on t.id = e.transaction_id
           where w.id = $1
             and ($2::uuid is null or w.org_id = $2)
             and ($3::uuid is null or w.user_id = $3)
             and ($4::bigint is null or e.account_seq < $4)
           order by e.account_seq desc
           limit $5"#,
        wallet as WalletId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        after,
        limit,
    )
    .fetch_all(db)
    .await?;

    let is_full = i64::try_from(entries.len()).is_ok_and(|n| n == limit);
    let next = entries.last().map(|entry| entry.number);
    Ok(LedgerPage {
        next: next.filter(|number| is_full && *number > 1),
        entries,
    })
}
