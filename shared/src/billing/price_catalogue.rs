//! Price catalogue in force at one moment.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::quote::{PriceCatalogue, Service, ServiceRate};
use crate::platform::error::Result;

/// Loads the prices of outbound calls in force at `at`. The catalogue belongs to the platform, so
/// there is no scope.
pub async fn in_force_unscoped(db: &mut PgConnection, at: DateTime<Utc>) -> Result<PriceCatalogue> {
    let rows = sqlx::query!(
        r#"select service as "service: Service", match as matched, price_usd, increment_secs
           from service_prices
           where direction = 'outbound'
             and valid_from <= $1
             and (valid_until is null or valid_until > $1)
           order by valid_from"#,
        at,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ServiceRate {
            service: row.service,
            matched: row.matched,
            price_usd: row.price_usd.normalize(),
            increment_secs: row.increment_secs,
        })
        .collect())
}

/// Prices of one edition of the catalogue, valid until the next price begins or ends.
#[derive(Debug)]
pub struct CatalogueEdition {
    number: Uuid,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    pub catalogue: Arc<PriceCatalogue>,
}

impl CatalogueEdition {
    /// True when these are the prices of an edition at a moment.
    #[must_use]
    pub fn is_current(&self, number: Uuid, at: DateTime<Utc>) -> bool {
        self.number == number
            && self.since.is_none_or(|since| since <= at)
            && self.until.is_none_or(|until| at < until)
    }
}

/// Loads the edition of the catalogue in force at `at`.
pub async fn load_edition_unscoped(
    db: &mut PgConnection,
    at: DateTime<Utc>,
) -> Result<CatalogueEdition> {
    // 1. Read the edition before its prices: prices that change in between are cached under the
    // old edition, and read again under the new one.
    let edition = sqlx::query!(
        r#"select b.edition as number, max(e.at) filter (where e.at <= $1) as since,
                  min(e.at) filter (where e.at > $1) as until
           from price_book b
           left join (select valid_from as at from service_prices
                      union all
                      select valid_until from service_prices) e on true
           group by b.edition"#,
        at,
    )
    .fetch_one(&mut *db)
    .await?;

    // 2. Read the prices.
    let catalogue = in_force_unscoped(db, at).await?;
    Ok(CatalogueEdition {
        number: edition.number,
        since: edition.since,
        until: edition.until,
        catalogue: Arc::new(catalogue),
    })
}
