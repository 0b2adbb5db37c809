//! `/api/v1/orgs/{org_id}`: business model, commission and markup of an organisation. The
//! platform sets the business model and the commission; a reseller sets its own markup.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::access::Role;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::orgs::pricing;
use peal_shared::orgs::pricing::{OrgPricing, OrgType, PricingChange};
use peal_shared::platform::ids::OrgId;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, decimal};
use crate::http::openapi::{CommonErrors, ConflictResponse, NotFoundResponse};
use crate::state::AppState;

/// Decimal places of a percentage.
const MAX_PERCENT_DECIMALS: u32 = 6;
const MAX_COMMISSION: Decimal = Decimal::ONE_HUNDRED;
const MAX_MARKUP: Decimal = Decimal::ONE_THOUSAND;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(business_model))
        .routes(routes!(commission))
        .routes(routes!(markup))
}

/// Set an organization's business model
///
/// For super_admins. A `channel_partner` earns its commission on what its customers and its own
/// members spend, a `distributor` its markup and, where one is set, a commission; an `internal`
/// organization earns nothing. Applies to calls claimed after the change.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org_id}/business-model",
    tag = "Organization pricing",
    security(("session" = [])),
    params(("org_id" = OrgId, Path)),
    request_body(content = SetBusinessModel, example = json!({"org_type": "distributor"})),
    responses((status = 200, body = PricingSet), NotFoundResponse, CommonErrors)
)]
async fn business_model(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(org): PathIds<OrgId>,
    ValidJson(body): ValidJson<SetBusinessModel>,
) -> Result<(StatusCode, Json<PricingSet>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    let change = PricingChange {
        org_type: Some(body.org_type),
        ..PricingChange::default()
    };
    change_pricing(
        &context,
        &caller,
        org,
        "organization.set_business_model",
        change,
    )
    .await
}

/// Set a reseller's commission
///
/// For super_admins. A percentage of the platform's own price of what the customers use.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org_id}/commission",
    tag = "Organization pricing",
    security(("session" = [])),
    params(("org_id" = OrgId, Path)),
    request_body(content = SetCommission, example = json!({"percentage": 10})),
    responses((status = 200, body = PricingSet), NotFoundResponse, ConflictResponse, CommonErrors)
)]
async fn commission(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(org): PathIds<OrgId>,
    ValidJson(body): ValidJson<SetCommission>,
) -> Result<(StatusCode, Json<PricingSet>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    check_percentage(body.percentage, MAX_COMMISSION)?;
    let change = PricingChange {
        commission_percent: Some(body.percentage),
        ..PricingChange::default()
    };
    change_pricing(
        &context,
        &caller,
        org,
        "organization.set_commission",
        change,
    )
    .await
}

/// Set a reseller's markup
///
/// For org_admins of the reseller, and super_admins. A distributor's customers pay the
/// platform's price plus this percentage.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org_id}/markup",
    tag = "Organization pricing",
    security(("session" = [])),
    params(("org_id" = OrgId, Path)),
    request_body(content = SetMarkup, example = json!({"percentage": "25", "currency": "USD"})),
    responses((status = 200, body = PricingSet), NotFoundResponse, ConflictResponse, CommonErrors)
)]
async fn markup(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(org): PathIds<OrgId>,
    ValidJson(body): ValidJson<SetMarkup>,
) -> Result<(StatusCode, Json<PricingSet>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    check_percentage(body.percentage, MAX_MARKUP)?;
    if body.currency.as_deref().is_some_and(|code| code != "USD") {
        let message = "must be USD, the currency of all wallets";
        return Err(Error::field("currency", "value_error", message).into());
    }
    let change = PricingChange {
        markup_percent: Some(body.percentage),
        ..PricingChange::default()
    };
    change_pricing(&context, &caller, org, "organization.set_markup", change).await
}

async fn change_pricing(
    context: &Context,
    caller: &Caller,
    org: OrgId,
    action: &'static str,
    change: PricingChange,
) -> Result<(StatusCode, Json<PricingSet>)> {
    let mut db = caller.begin_write(context).await?;
    let current = pricing::find(&mut db, &caller.scope(), org).await?;

    if change.org_type.is_none() && !current.org_type.is_reseller() {
        // Only the platform can make the organisation a reseller, so only it gets the hint.
        return Err(match caller.role {
            Role::SuperAdmin => Error::conflict(
                "not_a_reseller",
                "not a reseller org: make it a channel_partner or a distributor first",
            ),
            Role::OrgAdmin | Role::User => {
                Error::Forbidden("Forbidden: not a reseller org or not org_admin".into())
            }
        }
        .into());
    }

    let (before, after) = pricing::update(&mut db, &caller.scope(), org, &change).await?;

    let message = match (change.markup_percent, after.org_type) {
        (Some(_), OrgType::ChannelPartner) => {
            "saved; the markup applies once the organization is a distributor"
        }
        _ => "applies to calls claimed from now on",
    };

    let note = AuditEntry::new(action, org, org.0)
        .before(&before)?
        .after(&after)?;
    let answer = PricingSet {
        message,
        pricing: after,
    };

    db.commit(note, StatusCode::OK, Json(answer)).await
}

fn check_percentage(percentage: Decimal, most: Decimal) -> Result<()> {
    let mut fields = FieldErrors::default();
    fields.check(
        percentage >= Decimal::ZERO
            && percentage <= most
            && percentage.normalize().scale() <= MAX_PERCENT_DECIMALS,
        "percentage",
        "range",
        format!("must be between 0 and {most}, with at most {MAX_PERCENT_DECIMALS} decimal places"),
    );
    fields.finish()
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BusinessModel)]
struct SetBusinessModel {
    org_type: OrgType,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Commission)]
struct SetCommission {
    /// 0 to 100.
    #[serde(deserialize_with = "decimal")]
    #[schema(value_type = String)]
    percentage: Decimal,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Markup)]
struct SetMarkup {
    /// 0 to 1000.
    #[serde(deserialize_with = "decimal")]
    #[schema(value_type = String)]
    percentage: Decimal,
    /// USD, the default.
    currency: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct PricingSet {
    #[schema(example = "applies to calls claimed from now on")]
    message: &'static str,
    pricing: OrgPricing,
}
