//! The platform's price catalogue.
//!
//! A price has a key (service, match, direction) and is in force from a moment on, until the next
//! price of the same key begins. A price that has been in force is never changed or deleted,
//! because calls were sold at it. A future price may be changed or deleted.
//!
//! The catalogue holds the platform's own prices. Customers of a distributor see the prices that
//! they pay, markup included.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::quote::Service;
use crate::platform::error::{Error, OnConstraint, Result};
use crate::platform::ids::{OrgId, PriceId, UserId};

/// Direction of a call.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    sqlx::Type,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Direction {
    #[default]
    Outbound,
    Inbound,
}

/// A price of a service.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ServicePrice {
    pub id: PriceId,
    pub service: Service,
    /// For telephony a prefix of the number's digits, where the longest match counts; for a model
    /// or a voice its name. Empty matches all that no other price matches.
    #[schema(example = "91")]
    pub r#match: String,
    pub direction: Direction,
    /// Per minute; for `attempt`, per call. Includes the markup of the caller's distributor.
    #[schema(value_type = String, example = "0.04")]
    pub price_usd: Decimal,
    /// Billing increment, in seconds.
    #[schema(example = 60)]
    pub increment_secs: i32,
    pub valid_from: DateTime<Utc>,
    /// Start of the next price of the same service, match and direction.
    pub valid_until: Option<DateTime<Utc>>,
    pub in_force: bool,
    pub created_at: DateTime<Utc>,
}

/// Filter of prices; `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct PriceFilter {
    pub id: Option<PriceId>,
    pub service: Option<Service>,
    pub r#match: Option<String>,
    pub direction: Option<Direction>,
    pub in_force: Option<bool>,
}

/// A price to be added.
#[derive(Clone, Debug)]
pub struct NewPrice {
    pub service: Service,
    pub r#match: String,
    pub direction: Direction,
    pub price_usd: Decimal,
    pub increment_secs: i32,
    /// `None` means now.
    pub valid_from: Option<DateTime<Utc>>,
}

/// Changes of a future price; `None` keeps the value.
#[derive(Clone, Debug, Default)]
pub struct PriceChange {
    pub price_usd: Option<Decimal>,
    pub increment_secs: Option<i32>,
    pub valid_from: Option<DateTime<Utc>>,
}

/// Lists prices times `factor`, by key and newest first, with their total. All users may read the
/// catalogue, so there is no scope.
pub async fn list_unscoped(
    db: &mut PgConnection,
    wanted: &PriceFilter,
    factor: Decimal,
    (limit, offset): (i64, i64),
) -> Result<(Vec<ServicePrice>, i64)> {
    let total = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from service_prices
           where ($1::uuid is null or id = $1)
             and ($2::text is null or service = $2)
             and ($3::text is null or match = $3)
             and ($4::text is null or direction = $4)
             and ($5::boolean is null
                  or $5 = (valid_from <= now() and (valid_until is null or valid_until > now())))"#,
        wanted.id as Option<PriceId>,
        wanted.service as Option<Service>,
        wanted.r#match,
        wanted.direction as Option<Direction>,
        wanted.in_force,
    )
    .fetch_one(&mut *db)
    .await?;

    let mut prices = sqlx::query_as!(
        ServicePrice,
        r#"select id as "id: PriceId", service as "service: Service", match, direction as "direction: Direction",
                  price_usd, increment_secs, valid_from, valid_until,
                  (valid_from <= now() and (valid_until is null or valid_until > now())) as "in_force!", created_at
           from service_prices
           where ($1::uuid is null or id = $1)
             and ($2::text is null or service = $2)
             and ($3::text is null or match = $3)
             and ($4::text is null or direction = $4)
             and ($5::boolean is null
                  or $5 = (valid_from <= now() and (valid_until is null or valid_until > now())))
           order by service, direction desc, match, valid_from desc
           limit $6
           offset $7"#,
        wanted.id as Option<PriceId>,
        wanted.service as Option<Service>,
        wanted.r#match,
        wanted.direction as Option<Direction>,
        wanted.in_force,
        limit,
        offset,
    )
    .fetch_all(db)
    .await?;

    for price in &mut prices {
        price.price_usd = with_markup(price.price_usd, factor);
    }
    Ok((prices, total))
}

/// Multiplies a rate, rounded to ten decimal places, half to even.
fn with_markup(rate: Decimal, factor: Decimal) -> Decimal {
    (rate * factor).round_dp(10).normalize()
}

/// Finds a price, times `factor`.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find_unscoped(
    db: &mut PgConnection,
    id: PriceId,
    factor: Decimal,
) -> Result<ServicePrice> {
    let wanted = PriceFilter {
        id: Some(id),
        ..PriceFilter::default()
    };
    let (mut found, _) = list_unscoped(db, &wanted, factor, (1, 0)).await?;
    found.pop().ok_or(Error::NotFound("Price"))
}

/// Returns the factor on the platform's prices for members of an organisation: one plus the
/// markup of their distributor. The distributor may be the parent organisation, which they do
/// not see; hence no scope.
pub async fn markup_factor_unscoped(db: &mut PgConnection, org: OrgId) -> Result<Decimal> {
    let markup = sqlx::query_scalar!(
        r#"select markup_percent as "percent!" from reseller_terms($1)"#,
        org as OrgId,
    )
    .fetch_optional(db)
    .await?
    .unwrap_or_default();
    Ok(Decimal::ONE + markup / Decimal::ONE_HUNDRED)
}

/// Adds a price; the previous one ends where it begins. For the platform only, so there is no
/// scope.
///
/// # Errors
/// [`Error::Invalid`] for one that begins in the past, [`Error::Conflict`] when another price of
/// the same key begins at the same moment.
pub async fn add_unscoped(
    db: &mut PgConnection,
    new: &NewPrice,
    by: UserId,
) -> Result<ServicePrice> {
    lock_catalogue(db).await?;
    check_not_past(db, new.valid_from).await?;

    let id = PriceId::new();
    sqlx::query!(
        "insert into service_prices (id, service, match, direction, price_usd, increment_secs, valid_from, created_by)
         values ($1, $2, $3, $4, $5, $6, coalesce($7, now()), $8)",
        id as PriceId,
        new.service as Service,
        new.r#match,
        new.direction as Direction,
        new.price_usd,
        new.increment_secs,
        new.valid_from,
        by as UserId,
    )
    .execute(&mut *db)
    .await
    .on_constraint("price_begins_once", price_exists)?;

    link_validity(db, new.service, &new.r#match, new.direction).await?;
    find_unscoped(db, id, Decimal::ONE).await
}

/// Changes a future price. Returns it before and after.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when it has been in force; as [`add_unscoped`].
pub async fn change_unscoped(
    db: &mut PgConnection,
    id: PriceId,
    change: &PriceChange,
) -> Result<(ServicePrice, ServicePrice)> {
    lock_catalogue(db).await?;
    let before = find_future(db, id).await?;
    check_not_past(db, change.valid_from).await?;

    sqlx::query!(
        "update service_prices
         set price_usd = coalesce($2, price_usd),
             increment_secs = coalesce($3, increment_secs),
             valid_from = coalesce($4, valid_from),
             valid_until = null
         where id = $1",
        id as PriceId,
        change.price_usd,
        change.increment_secs,
        change.valid_from,
    )
    .execute(&mut *db)
    .await
    .on_constraint("price_begins_once", price_exists)?;

    link_validity(db, before.service, &before.r#match, before.direction).await?;
    let after = find_unscoped(db, id, Decimal::ONE).await?;
    Ok((before, after))
}

/// Deletes a future price; the previous one stays in force.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when it has been in force.
pub async fn delete_unscoped(db: &mut PgConnection, id: PriceId) -> Result<ServicePrice> {
    lock_catalogue(db).await?;
    let price = find_future(db, id).await?;
    sqlx::query!("delete from service_prices where id = $1", id as PriceId)
        .execute(&mut *db)
        .await?;
    link_validity(db, price.service, &price.r#match, price.direction).await?;
    Ok(price)
}

/// Locks the catalogue against concurrent changes, not against reads.
async fn lock_catalogue(db: &mut PgConnection) -> Result<()> {
    sqlx::query!("lock table service_prices in share row exclusive mode")
        .execute(db)
        .await?;
    Ok(())
}

async fn check_not_past(db: &mut PgConnection, moment: Option<DateTime<Utc>>) -> Result<()> {
    let past = sqlx::query_scalar!(
        r#"select coalesce($1::timestamptz < now(), false) as "past!""#,
        moment,
    )
    .fetch_one(db)
    .await?;

    match past {
        true => Err(Error::field(
            "valid_from",
            "past",
            "must not lie in the past; leave it out for a price that begins at once",
        )),
        false => Ok(()),
    }
}

async fn find_future(db: &mut PgConnection, id: PriceId) -> Result<ServicePrice> {
    let price = find_unscoped(db, id, Decimal::ONE).await?;
    // A price that has ended has also begun.
    let begun = sqlx::query_scalar!(
        r#"select valid_from <= now() as "begun!" from service_prices where id = $1"#,
        id as PriceId,
    )
    .fetch_one(db)
    .await?;

    match begun {
        true => Err(Error::conflict(
            "price_was_in_force",
            "this price has been in force, so it stays as it is; add one that begins later",
        )),
        false => Ok(price),
    }
}

/// Sets the end of every price of a key to the start of the next one.
async fn link_validity(
    db: &mut PgConnection,
    service: Service,
    r#match: &str,
    direction: Direction,
) -> Result<()> {
    sqlx::query!(
        "update service_prices p
         set valid_until = n.next
         from (select id, lead(valid_from) over (order by valid_from) as next
               from service_prices
               where service = $1
                 and match = $2
                 and direction = $3) n
         where p.id = n.id
           and p.valid_until is distinct from n.next",
        service as Service,
        r#match,
        direction as Direction,
    )
    .execute(db)
    .await?;
    Ok(())
}

fn price_exists() -> Error {
    Error::conflict(
        "price_exists",
        "another price of the same thing begins at the same moment: change that one, or choose another moment",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_with_markup_keeps_ten_places() {
        for (rate, factor, expected) in [
            ("0.04", "1", "0.04"),
            ("0.04", "1.25", "0.05"),
            ("0.0000000001", "1.5", "0.0000000002"),
            ("0.0000000001", "1.4", "0.0000000001"),
        ] {
            let rate = with_markup(rate.parse().unwrap(), factor.parse().unwrap());
            assert_eq!(rate.to_string(), expected);
        }
    }
}
