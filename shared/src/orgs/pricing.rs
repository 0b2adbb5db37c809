//! Business model of an organisation: its earnings from the spending of its customers and its own
//! members.
//!
//! An `internal` organisation earns nothing. A `channel_partner` earns the commission: a part of
//! the platform's own price. A `distributor` earns the markup, by which its customers' prices
//! are higher than the platform's, and the commission where one is set. Percentages are stored
//! under every model and apply only under those that use them. A call is charged on the terms at
//! its claim.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::lock;
use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::OrgId;

/// Business model of an organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum OrgType {
    /// Earns nothing.
    Internal,
    /// Earns a commission.
    ChannelPartner,
    /// Earns its markup, and a commission where one is set.
    Distributor,
}

impl OrgType {
    /// True for the models that earn.
    #[must_use]
    pub fn is_reseller(self) -> bool {
        self != Self::Internal
    }
}

/// Business model and percentages of an organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Pricing)]
pub struct OrgPricing {
    pub organization_id: OrgId,
    pub org_type: OrgType,
    /// Percentage of the platform's own price.
    #[schema(value_type = String, example = "10")]
    pub commission_percent: Decimal,
    /// Percentage on top of the platform's own price.
    #[schema(value_type = String, example = "25")]
    pub markup_percent: Decimal,
    #[schema(example = "USD")]
    pub markup_currency: String,
}

/// Changes to make; `None` leaves a value as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct PricingChange {
    pub org_type: Option<OrgType>,
    pub commission_percent: Option<Decimal>,
    pub markup_percent: Option<Decimal>,
}

/// Finds the business model of an organisation in the caller's own scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none; a reseller's customers are outside its own scope.
pub async fn find(db: &mut PgConnection, scope: &Scope, org: OrgId) -> Result<OrgPricing> {
    let mut pricing = sqlx::query_as!(
        OrgPricing,
        r#"select id as "organization_id: OrgId", org_type as "org_type: OrgType", commission_percent,
                  markup_percent, markup_currency
           from organizations
           where id = $1
             and ($2::uuid is null or id = $2)"#,
        org as OrgId,
        scope.org() as Option<OrgId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Organization"))?;

    pricing.commission_percent = pricing.commission_percent.normalize();
    pricing.markup_percent = pricing.markup_percent.normalize();
    Ok(pricing)
}

/// Changes the business model of an organisation, effective with the next claimed call. Returns it
/// before and after.
///
/// # Errors
/// As [`find`].
pub async fn update(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    change: &PricingChange,
) -> Result<(OrgPricing, OrgPricing)> {
    lock(db, scope, org).await?;
    let before = find(db, scope, org).await?;

    sqlx::query!(
        "update organizations
         set org_type = coalesce($2, org_type),
             commission_percent = coalesce($3, commission_percent),
             markup_percent = coalesce($4, markup_percent),
             updated_at = now()
         where id = $1",
        org as OrgId,
        change.org_type as Option<OrgType>,
        change.commission_percent,
        change.markup_percent,
    )
    .execute(&mut *db)
    .await?;

    let after = find(db, scope, org).await?;
    Ok((before, after))
}
