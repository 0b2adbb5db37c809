//! `/api/v1/orgs/{org_id}`: business model, commission and markup of an organisation. The
//! platform sets the business model and the commission; a reseller sets its own markup.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::access::Role;
use peal_shared::audit::Note;
use peal_shared::context::Context;
use peal_shared::ids::OrgId;
use peal_shared::orgs::pricing::{self, OrgType, Pricing, PricingChange};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::error::Result;
use crate::extract::{Fields, Ids, ValidJson, decimal};
use crate::openapi::{Conflicting, Missing, Refusals};
use crate::state::Api;

/// Decimal places of a percentage.
const PERCENT_PLACES: u32 = 6;
const MAX_COMMISSION: Decimal = Decimal::ONE_HUNDRED;
const MAX_MARKUP: Decimal = Decimal::ONE_THOUSAND;

pub fn router() -> OpenApiRouter<Api> {
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
    request_body(content = BusinessModel, example = json!({"org_type": "distributor"})),
    responses((status = 200, body = PricingSet), Missing, Refusals)
)]
async fn business_model(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(org): Ids<OrgId>,
    ValidJson(body): ValidJson<BusinessModel>,
) -> Result<(StatusCode, Json<PricingSet>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    let change = PricingChange {
        org_type: Some(body.org_type),
        ..PricingChange::default()
    };
    set(
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
    request_body(content = Commission, example = json!({"percentage": 10})),
    responses((status = 200, body = PricingSet), Missing, Conflicting, Refusals)
)]
async fn commission(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(org): Ids<OrgId>,
    ValidJson(body): ValidJson<Commission>,
) -> Result<(StatusCode, Json<PricingSet>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    check_percentage(body.percentage, MAX_COMMISSION)?;
    let change = PricingChange {
        commission_percent: Some(body.percentage),
        ..PricingChange::default()
    };
    set(
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
    request_body(content = Markup, example = json!({"percentage": "25", "currency": "USD"})),
    responses((status = 200, body = PricingSet), Missing, Conflicting, Refusals)
)]
async fn markup(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(org): Ids<OrgId>,
    ValidJson(body): ValidJson<Markup>,
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
    set(&context, &caller, org, "organization.set_markup", change).await
}

async fn set(
    context: &Context,
    caller: &Caller,
    org: OrgId,
    action: &'static str,
    change: PricingChange,
) -> Result<(StatusCode, Json<PricingSet>)> {
    let mut db = caller.change(context).await?;
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

    let (before, after) = pricing::change(&mut db, &caller.scope(), org, &change).await?;

    let message = match (change.markup_percent, after.org_type) {
        (Some(_), OrgType::ChannelPartner) => {
            "saved; the markup applies once the organization is a distributor"
        }
        _ => "applies to calls claimed from now on",
    };

    let note = Note::new(action, org, org.0)
        .before(&before)?
        .after(&after)?;
    let answer = PricingSet {
        message,
        pricing: after,
    };

    db.commit(note, StatusCode::OK, Json(answer)).await
}

fn check_percentage(percentage: Decimal, most: Decimal) -> Result<()> {
    let mut fields = Fields::default();
    fields.check(
        percentage >= Decimal::ZERO
            && percentage <= most
            && percentage.normalize().scale() <= PERCENT_PLACES,
        "percentage",
        "range",
        format!("must be between 0 and {most}, with at most {PERCENT_PLACES} decimal places"),
    );
    fields.finish()
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BusinessModel)]
struct BusinessModel {
    org_type: OrgType,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Commission)]
struct Commission {
    /// 0 to 100.
    #[serde(deserialize_with = "decimal")]
    #[schema(value_type = String)]
    percentage: Decimal,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Markup)]
struct Markup {
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
    pricing: Pricing,
}
