//! Sums over sessions: of a period and its buckets, and of all time.

use chrono::{DateTime, NaiveDateTime, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::{CostSplit, ShownSplit, UsageFilter, of_sessions};
use crate::access::Scope;
use crate::billing::period::{Bucket, Period, fill_buckets};
use crate::platform::error::Result;
use crate::platform::money::Usd;

/// Sums over sessions.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[schema(as = Totals)]
pub struct UsageTotals {
    #[schema(example = 1000)]
    pub calls: i64,
    #[schema(example = 42000)]
    pub duration_seconds: i64,
    #[schema(example = 60000)]
    pub billed_seconds: i64,
    pub cost_usd: Usd,
    #[serde(flatten)]
    #[schema(value_type = ShownSplit)]
    pub split: Option<CostSplit>,
}

impl UsageTotals {
    /// Adds two sums.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let split = self.split.zip(other.split).map(|(one, two)| CostSplit {
            base_cost_usd: one.base_cost_usd.plus(two.base_cost_usd),
            markup_usd: one.markup_usd.plus(two.markup_usd),
            commission_usd: one.commission_usd.plus(two.commission_usd),
        });
        Self {
            calls: self.calls + other.calls,
            duration_seconds: self.duration_seconds + other.duration_seconds,
            billed_seconds: self.billed_seconds + other.billed_seconds,
            cost_usd: self.cost_usd.plus(other.cost_usd),
            split,
        }
    }
}

/// Sums of one bucket of a period.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UsageBucket {
    pub start: DateTime<Utc>,
    #[serde(flatten)]
    pub totals: UsageTotals,
}

/// Sums over a period and its buckets.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Summary)]
pub struct UsageSummary {
    pub time_period: Period,
    /// Null for the period `all`.
    pub from: Option<DateTime<Utc>>,
    pub to: DateTime<Utc>,
    /// Time zone of the day boundaries.
    #[schema(example = "Asia/Kolkata")]
    pub timezone: String,
    pub bucket: Bucket,
    pub buckets: Vec<UsageBucket>,
    pub totals: UsageTotals,
    #[schema(example = "USD")]
    pub currency: &'static str,
}

/// Sums of all time, and of this month.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Overview)]
pub struct UsageOverview {
    pub total: UsageTotals,
    pub this_month: UsageTotals,
    /// Start of this month.
    pub month_began_at: DateTime<Utc>,
    #[schema(example = "Asia/Kolkata")]
    pub timezone: String,
    #[schema(example = "USD")]
    pub currency: &'static str,
}

struct UsageSums {
    start: Option<NaiveDateTime>,
    calls: i64,
    duration_seconds: i64,
    billed_seconds: i64,
    retail: Usd,
    base: Usd,
    markup: Usd,
    commission: Usd,
}

impl UsageSums {
    fn into_totals(self, with_split: bool) -> UsageTotals {
        UsageTotals {
            calls: self.calls,
            duration_seconds: self.duration_seconds,
            billed_seconds: self.billed_seconds,
            cost_usd: self.retail,
            split: with_split.then_some(CostSplit {
                base_cost_usd: self.base,
                markup_usd: self.markup,
                commission_usd: self.commission,
            }),
        }
    }
}

/// Query of [`Sums`] of sessions, one row per value of the first column.
macro_rules! sums {
    ($start:tt, $tail:tt, $scope:expr, $filter:expr $(, $more:expr)* $(,)?) => {
        of_sessions!(
            UsageSums,
            [$start + r#", count(*) as "calls!", coalesce(sum(c.duration_seconds), 0)::bigint as "duration_seconds!",
                      coalesce(sum(spent.billed_seconds), 0)::bigint as "billed_seconds!",
                      coalesce(sum(spent.retail), 0)::bigint as "retail!: Usd",
                      coalesce(sum(spent.base), 0)::bigint as "base!: Usd",
                      coalesce(sum(spent.markup), 0)::bigint as "markup!: Usd",
                      coalesce(sum(spent.commission), 0)::bigint as "commission!: Usd""#],
            r#"cross join lateral (
                   select sum(e.billed_seconds) as billed_seconds, sum(e.retail_micros) as retail,
                          sum(e.base_micros) as base, sum(e.markup_micros) as markup,
                          sum(e.commission_micros) as commission
                   from charges e
                   where e.call_id = c.id) spent"#,
            $tail,
            $scope,
            $filter,
            $($more),*
        )
    };
}

/// Sums all sessions in the caller's scope.
pub async fn total(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &UsageFilter,
    with_split: bool,
) -> Result<UsageTotals> {
    let sums = sums!(
        r#"select null::timestamp as "start""#,
        "and first.id is not null",
        scope,
        filter,
    )
    .fetch_one(db)
    .await?;
    Ok(sums.into_totals(with_split))
}

/// Sums the filtered sessions in the caller's scope, of all time and of this month in a time zone.
pub async fn overview(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &UsageFilter,
    (now, zone): (DateTime<Utc>, Tz),
    with_split: bool,
) -> Result<UsageOverview> {
    let all = total(db, scope, filter, with_split).await?;
    let month_began_at = Period::Month.start(now, zone).unwrap_or(now);
    let month = UsageFilter {
        from: Some(month_began_at),
        ..filter.clone()
    };

    let this_month = total(db, scope, &month, with_split).await?;

    Ok(UsageOverview {
        total: all,
        this_month,
        month_began_at,
        timezone: zone.name().to_owned(),
        currency: "USD",
    })
}

/// Sums the sessions of a period and of its buckets, in a time zone.
pub async fn summary(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &UsageFilter,
    period: Period,
    (now, zone): (DateTime<Utc>, Tz),
    with_split: bool,
) -> Result<UsageSummary> {
    let from = period.start(now, zone);
    let filter = UsageFilter {
        from,
        ..filter.clone()
    };

    let bucket = period.bucket();
    let sums = sums!(
        r#"select date_trunc($10, first.created_at at time zone $11) as "start""#,
        "and first.id is not null
         group by 1
         order by 1",
        scope,
        filter,
        bucket.as_str(),
        zone.name(),
    )
    .fetch_all(&mut *db)
    .await?;

    let parts = sums
        .into_iter()
        .filter_map(|sums| Some((sums.start?, Some(sums))))
        .collect();
    let zero = UsageTotals {
        split: with_split.then(CostSplit::default),
        ..UsageTotals::default()
    };
    let buckets: Vec<UsageBucket> = fill_buckets(period, now, zone, parts)
        .into_iter()
        .map(|(start, sums)| UsageBucket {
            start,
            totals: sums.map_or(zero, |sums: UsageSums| sums.into_totals(with_split)),
        })
        .collect();

    let totals = buckets
        .iter()
        .fold(zero, |sum, bucket| sum.plus(&bucket.totals));

    Ok(UsageSummary {
        time_period: period,
        from,
        to: now,
        timezone: zone.name().to_owned(),
        bucket,
        buckets,
        totals,
        currency: "USD",
    })
}
