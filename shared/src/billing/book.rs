//! The catalogue's prices, as they are at one moment.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::quote::{Book, Rate, Service};
use crate::error::Result;

/// The prices of outbound calls that are in force at `at`. The catalogue is the platform's.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn in_force_unscoped(db: &mut PgConnection, at: DateTime<Utc>) -> Result<Book> {
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
        .map(|row| Rate {
            service: row.service,
            matched: row.matched,
            price_usd: row.price_usd.normalize(),
            increment_secs: row.increment_secs,
        })
        .collect())
}
