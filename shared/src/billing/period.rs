//! Periods of usage and earnings reports: today, this week, this month ... in the time zone of an
//! organisation.

use chrono::{
    DateTime, Datelike, Days, Months, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc,
};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A reporting period that ends now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// Today, by the hour.
    Day,
    /// Since Monday, by the day.
    Week,
    /// This calendar month, by the day.
    Month,
    /// This calendar month and the three before, by the month.
    #[serde(rename = "4months")]
    FourMonths,
    /// This calendar year, by the month.
    Year,
    /// Everything, by the month.
    #[default]
    All,
}

/// Length of a period's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    Hour,
    Day,
    Month,
}

impl Bucket {
    /// PostgreSQL's name, for `date_trunc`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

impl Period {
    /// Bucket length of the period.
    #[must_use]
    pub fn bucket(self) -> Bucket {
        match self {
            Self::Day => Bucket::Hour,
            Self::Week | Self::Month => Bucket::Day,
            Self::FourMonths | Self::Year | Self::All => Bucket::Month,
        }
    }

    /// Start of the period in a time zone; `None` for [`Period::All`].
    #[must_use]
    pub fn start(self, now: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let today = now.with_timezone(&zone).date_naive();
        let first = today.with_day(1)?;
        let day = match self {
            Self::Day => today,
            Self::Week => today - Days::new(u64::from(today.weekday().num_days_from_monday())),
            Self::Month => first,
            Self::FourMonths => first - Months::new(3),
            Self::Year => first.with_month(1)?,
            Self::All => return None,
        };
        Some(midnight(day, zone))
    }
}

/// First moment of a day in a time zone.
#[must_use]
pub fn midnight(day: NaiveDate, zone: Tz) -> DateTime<Utc> {
    local_to_utc(day.and_time(NaiveTime::MIN), zone)
}

/// First moment of a local time; for a skipped time, the moment of the clock change.
#[must_use]
pub fn local_to_utc(shown: NaiveDateTime, zone: Tz) -> DateTime<Utc> {
    let mut local = shown;
    // No zone skips more than a day, and all skip multiples of a quarter of an hour.
    for _ in 0..=96 {
        if let Some(moment) = zone.from_local_datetime(&local).earliest() {
            return moment.with_timezone(&Utc);
        }
        local += TimeDelta::minutes(15);
    }
    shown.and_utc()
}

/// Fills the buckets of a period up to `now`, empty ones included. `found` holds local starts in
/// order. [`Period::All`] begins with the first one found.
#[must_use]
pub fn fill_buckets<T: Default>(
    period: Period,
    now: DateTime<Utc>,
    zone: Tz,
    found: Vec<(NaiveDateTime, T)>,
) -> Vec<(DateTime<Utc>, T)> {
    let begin = period
        .start(now, zone)
        .map(|begin| begin.with_timezone(&zone).naive_local());
    let first = found.first().map(|(start, _)| *start);
    let Some(mut start) = begin.into_iter().chain(first).min() else {
        return Vec::new();
    };

    let end = now.with_timezone(&zone).naive_local();
    let last = found.last().map_or(end, |(start, _)| end.max(*start));
    let mut found = found.into_iter().peekable();
    let mut filled = Vec::new();

    while start <= last {
        let entry = found.next_if(|(at, _)| *at <= start);
        let value = entry.map(|(_, value)| value).unwrap_or_default();
        filled.push((local_to_utc(start, zone), value));

        let next = match period.bucket() {
            Bucket::Hour => start.checked_add_signed(TimeDelta::hours(1)),
            Bucket::Day => start.checked_add_days(Days::new(1)),
            Bucket::Month => start.checked_add_months(Months::new(1)),
        };
        let Some(next) = next else { break };
        start = next;
    }
    filled
}

/// Parses a time zone's name; UTC for an unknown one.
#[must_use]
pub fn parse_zone(name: &str) -> Tz {
    name.parse().unwrap_or(Tz::UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(period: Period, now: &str, zone: Tz) -> Option<String> {
        let now: DateTime<Utc> = now.parse().unwrap();
        period.start(now, zone).map(|begin| begin.to_rfc3339())
    }

    #[test]
    fn a_period_begins_at_midnight_in_the_organisations_time_zone() {
        // A Wednesday in Kolkata, still Tuesday in London.
        let now = "2026-11-24T20:00:00Z";
        for (period, expected) in [
            (Period::Day, Some("2026-11-24T18:30:00+00:00")),
            (Period::Week, Some("2026-11-22T18:30:00+00:00")),
            (Period::Month, Some("2026-10-31T18:30:00+00:00")),
            (Period::FourMonths, Some("2026-07-31T18:30:00+00:00")),
            (Period::Year, Some("2025-12-31T18:30:00+00:00")),
            (Period::All, None),
        ] {
            let begin = begins(period, now, Tz::Asia__Kolkata);
            assert_eq!(begin.as_deref(), expected, "{period:?}");
        }
        let day = begins(Period::Day, now, Tz::UTC);
        assert_eq!(day.as_deref(), Some("2026-11-24T00:00:00+00:00"));
    }

    #[test]
    fn a_day_with_a_skipped_midnight_begins_at_the_clock_change() {
        let day = NaiveDate::from_ymd_opt(2018, 11, 4).unwrap();
        let begin = midnight(day, Tz::America__Sao_Paulo);
        assert_eq!(begin.to_rfc3339(), "2018-11-04T03:00:00+00:00");
    }

    #[test]
    fn empty_buckets_are_included() {
        let at = |text: &str| text.parse::<NaiveDateTime>().unwrap();
        let now = "2026-11-04T20:00:00Z".parse().unwrap();

        let found = vec![
            (at("2026-11-02T00:00:00"), 7),
            (at("2026-11-04T00:00:00"), 9),
        ];
        let filled = fill_buckets(Period::Month, now, Tz::UTC, found);
        let values: Vec<i32> = filled.iter().map(|(_, value)| *value).collect();
        assert_eq!(values, [0, 7, 0, 9]);
        let found = vec![(at("2026-08-01T00:00:00"), 1)];
        let filled = fill_buckets(Period::All, now, Tz::Asia__Kolkata, found);
        let starts: Vec<String> = filled.iter().map(|(at, _)| at.to_rfc3339()).collect();
        assert_eq!(starts.len(), 4);
        assert_eq!(starts[0], "2026-07-31T18:30:00+00:00");

        assert!(fill_buckets::<i32>(Period::All, now, Tz::UTC, Vec::new()).is_empty());
    }

    #[test]
    fn an_unknown_zone_is_utc() {
        assert_eq!(parse_zone("Asia/Kolkata"), Tz::Asia__Kolkata);
        assert_eq!(parse_zone("Mars/Olympus"), Tz::UTC);
    }
}
