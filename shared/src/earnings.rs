//! Earnings of resellers, read from the ledger alone. The transactions that name a reseller hold
//! the costs and revenue, the entries of its account the amounts earned.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDateTime, Utc};
use chrono_tz::Tz;
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::billing::period::{Bucket, Period, fill_buckets};
use crate::orgs::pricing;
use crate::orgs::pricing::OrgType;
use crate::platform::error::Result;
use crate::platform::ids::OrgId;
use crate::platform::money::Usd;

/// Earned amounts, and the calls they come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Earned)]
pub struct EarnedAmounts {
    /// Cost of the calls at the platform's own prices.
    pub base_cost_usd: Usd,
    /// Amount that customers paid for the calls.
    pub retail_revenue_usd: Usd,
    pub markup_earned_usd: Usd,
    pub commission_earned_usd: Usd,
    /// Amount credited to the reseller's account.
    pub total_earned_usd: Usd,
    #[schema(example = 1000)]
    pub calls: i64,
    #[schema(example = 91230)]
    pub billed_seconds: i64,
    /// `billed_seconds` in minutes.
    #[schema(value_type = String, example = "1520.5")]
    pub minutes: Decimal,
}

impl EarnedAmounts {
    fn plus(self, other: &Self) -> Self {
        Self {
            base_cost_usd: self.base_cost_usd.plus(other.base_cost_usd),
            retail_revenue_usd: self.retail_revenue_usd.plus(other.retail_revenue_usd),
            markup_earned_usd: self.markup_earned_usd.plus(other.markup_earned_usd),
            commission_earned_usd: self.commission_earned_usd.plus(other.commission_earned_usd),
            total_earned_usd: self.total_earned_usd.plus(other.total_earned_usd),
            calls: self.calls.saturating_add(other.calls),
            billed_seconds: self.billed_seconds.saturating_add(other.billed_seconds),
            minutes: to_minutes(self.billed_seconds.saturating_add(other.billed_seconds)),
        }
    }
}

/// Earnings of a reseller in a period.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Earnings {
    pub organization_id: OrgId,
    pub org_type: OrgType,
    pub period: Period,
    /// Null for the period `all`.
    pub from: Option<DateTime<Utc>>,
    pub to: DateTime<Utc>,
    /// Time zone of the day boundaries.
    #[schema(example = "Asia/Kolkata")]
    pub timezone: String,
    #[schema(example = "USD")]
    pub currency: &'static str,
    #[serde(flatten)]
    pub earned: EarnedAmounts,
}

/// Earnings in one bucket of a period.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct EarningsBucket {
    pub start: DateTime<Utc>,
    #[serde(flatten)]
    pub earned: EarnedAmounts,
}

/// Earnings of a reseller in a period, by buckets.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Breakdown)]
pub struct EarningsBreakdown {
    pub bucket: Bucket,
    pub buckets: Vec<EarningsBucket>,
    #[serde(flatten)]
    pub whole: Earnings,
}

struct EarningsRow {
    start: NaiveDateTime,
    base: Usd,
    retail: Usd,
    markup: Usd,
    commission: Usd,
    calls: i64,
    billed_seconds: i64,
    earned: Usd,
}

/// Returns the earnings of an organisation in the caller's scope, in total and by buckets of its
/// time zone.
///
/// # Errors
/// [`crate::Error::NotFound`] when there is none.
pub async fn breakdown(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    period: Period,
    (now, zone): (DateTime<Utc>, Tz),
) -> Result<EarningsBreakdown> {
    let pricing = pricing::find(db, scope, org).await?;
    let (from, bucket) = (period.start(now, zone), period.bucket());

    let mut by_start: BTreeMap<NaiveDateTime, EarnedAmounts> = BTreeMap::new();
    for part in load_rows(db, scope, org, from, bucket, zone).await? {
        by_start.insert(part.start, part.amounts());
    }

    let buckets: Vec<EarningsBucket> =
        fill_buckets(period, now, zone, by_start.into_iter().collect())
            .into_iter()
            .map(|(start, earned)| EarningsBucket { start, earned })
            .collect();
    let earned = buckets
        .iter()
        .fold(EarnedAmounts::default(), |sum, bucket| {
            sum.plus(&bucket.earned)
        });

    Ok(EarningsBreakdown {
        bucket,
        buckets,
        whole: Earnings {
            organization_id: org,
            org_type: pricing.org_type,
            period,
            from,
            to: now,
            timezone: zone.name().to_owned(),
            currency: "USD",
            earned,
        },
    })
}

fn to_minutes(seconds: i64) -> Decimal {
    (Decimal::from(seconds) / Decimal::from(60))
        .round_dp(2)
        .normalize()
}

impl EarningsRow {
    fn amounts(&self) -> EarnedAmounts {
        EarnedAmounts {
            base_cost_usd: self.base,
            retail_revenue_usd: self.retail,
            markup_earned_usd: self.markup,
            commission_earned_usd: self.commission,
            total_earned_usd: self.earned,
            calls: self.calls,
            billed_seconds: self.billed_seconds,
            minutes: to_minutes(self.billed_seconds),
        }
    }
}

async fn load_rows(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    from: Option<DateTime<Utc>>,
    bucket: Bucket,
    zone: Tz,
) -> Result<Vec<EarningsRow>> {
    let rows = sqlx::query_as!(
        EarningsRow,
        r#"select date_trunc($4, t.created_at at time zone $5) as "start!",
                  sum(t.base_micros)::bigint as "base!: Usd", sum(t.retail_micros)::bigint as "retail!: Usd",
                  sum(t.markup_micros)::bigint as "markup!: Usd",
                  sum(t.commission_micros)::bigint as "commission!: Usd",
                  sum(t.calls)::bigint as "calls!", sum(t.billed_seconds)::bigint as "billed_seconds!",
                  coalesce(sum(came.micros), 0)::bigint as "earned!: Usd"
           from ledger_transactions t
           left join lateral (
               select sum(e.amount_micros) as micros
               from ledger_entries e
               join ledger_accounts a on a.id = e.account_id
               where e.transaction_id = t.id
                 and a.kind = 'reseller_earnings'
                 and a.org_id = $1) came on true
           where t.reseller_org_id = $1
             and ($2::uuid is null or t.reseller_org_id = $2)
             and ($3::timestamptz is null or t.created_at >= $3)
           group by 1
           order by 1"#,
        org as OrgId,
        scope.org() as Option<OrgId>,
        from,
        bucket.as_str(),
        zone.name(),
    )
    .fetch_all(db)
    .await?;

    Ok(rows)
}
