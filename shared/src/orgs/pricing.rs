//! How an organisation earns from what its customers, and its own members, spend.
//!
//! An `internal` organisation earns nothing. A `channel_partner` earns the commission: a part of
//! the platform's own price. A `distributor` earns the markup, by which its customers' prices
//! are higher than the platform's, and the commission where one is set. Numbers are kept
//! whatever the model is, and count while it is one that has them. A call that was claimed is
//! charged on the terms of that moment.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::lock;
use crate::access::Scope;
use crate::error::{Error, Result};
use crate::ids::OrgId;

/// The business model of an organisation.
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
    /// Whether it earns at all.
    #[must_use]
    pub fn is_reseller(self) -> bool {
        self != Self::Internal
    }
}

/// How an organisation earns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pricing {
    pub organization_id: OrgId,
    pub org_type: OrgType,
    /// Of the platform's own price.
    #[schema(value_type = String, example = "10")]
    pub commission_percent: Decimal,
    /// On the platform's own price.
    #[schema(value_type = String, example = "25")]
    pub markup_percent: Decimal,
    #[schema(example = "USD")]
    pub markup_currency: String,
}

/// What to change; what is `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct PricingChange {
    pub org_type: Option<OrgType>,
    pub commission_percent: Option<Decimal>,
    pub markup_percent: Option<Decimal>,
}

/// How an organisation in the caller's own sight earns.
///
/// # Errors
/// [`Error::NotFound`] when there is none; customers of a reseller are none of its own.
pub async fn find(db: &mut PgConnection, scope: &Scope, org: OrgId) -> Result<Pricing> {
    let mut pricing = sqlx::query_as!(
        Pricing,
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

/// Changes how an organisation earns, from the next call that is claimed on. Answers how it did
/// and how it does.
///
/// # Errors
/// As [`find`].
pub async fn change(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    change: &PricingChange,
) -> Result<(Pricing, Pricing)> {
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
