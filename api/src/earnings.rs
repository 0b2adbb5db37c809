//! `/api/v1/earnings`: earnings of resellers, for their administrators with a session.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use peal_shared::Error;
use peal_shared::access::Role;
use peal_shared::billing::period::{Period, zone};
use peal_shared::context::Context;
use peal_shared::earnings::{self, Breakdown, Earnings};
use peal_shared::ids::OrgId;
use peal_shared::orgs;
use peal_shared::orgs::pricing;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::error::Result;
use crate::extract::{Ids, ValidQuery};
use crate::openapi::{Missing, Refusals};
use crate::page::query_field;
use crate::state::Api;

pub fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(mine))
        .routes(routes!(my_breakdown))
        .routes(routes!(of_org))
}

/// Show the earnings of the caller's organization
///
/// For org_admins of resellers. Periods are in the reseller's time zone.
#[utoipa::path(
    get,
    path = "/api/v1/earnings/me",
    tag = "Earnings",
    security(("session" = [])),
    params(EarningsQuery),
    responses((status = 200, body = Earnings), Refusals)
)]
async fn mine(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<EarningsQuery>,
) -> Result<Json<Earnings>> {
    let breakdown = own(&context, &caller, query.period()?).await?;
    Ok(Json(breakdown.whole))
}

/// Show the earnings of the caller's organization by hours, days or months
///
/// For org_admins of resellers.
#[utoipa::path(
    get,
    path = "/api/v1/earnings/me/breakdown",
    tag = "Earnings",
    security(("session" = [])),
    params(EarningsQuery),
    responses((status = 200, body = Breakdown), Refusals)
)]
async fn my_breakdown(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<EarningsQuery>,
) -> Result<Json<Breakdown>> {
    Ok(Json(own(&context, &caller, query.period()?).await?))
}

/// Show the earnings of an organization
///
/// For super_admins.
#[utoipa::path(
    get,
    path = "/api/v1/earnings/orgs/{org_id}",
    tag = "Earnings",
    security(("session" = [])),
    params(("org_id" = OrgId, Path), EarningsQuery),
    responses((status = 200, body = Earnings), Missing, Refusals)
)]
async fn of_org(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(org): Ids<OrgId>,
    ValidQuery(query): ValidQuery<EarningsQuery>,
) -> Result<Json<Earnings>> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    let breakdown = earned(&context, &caller, org, query.period()?).await?;
    Ok(Json(breakdown.whole))
}

async fn own(context: &Context, caller: &Caller, period: Period) -> Result<Breakdown> {
    caller.require_session()?;
    let mut db = caller.read(context).await?;
    let pricing = pricing::find(&mut db, &caller.scope(), caller.org).await?;
    drop(db);

    if caller.role < Role::OrgAdmin || !pricing.org_type.is_reseller() {
        let message = "Forbidden: not a reseller org or not org_admin";
        return Err(Error::Forbidden(message.into()).into());
    }

    earned(context, caller, caller.org, period).await
}

async fn earned(
    context: &Context,
    caller: &Caller,
    org: OrgId,
    period: Period,
) -> Result<Breakdown> {
    let (scope, now) = (caller.scope(), context.clock.now());
    let mut db = caller.read(context).await?;

    let zone = zone(&orgs::find(&mut db, &scope, org).await?.timezone);
    Ok(earnings::breakdown(&mut db, &scope, org, period, (now, zone)).await?)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EarningsQuery {
    /// day, week, month (the default), year or all.
    #[param(inline)]
    period: Option<Period>,
}

impl EarningsQuery {
    fn period(&self) -> Result<Period> {
        match self.period.unwrap_or(Period::Month) {
            Period::FourMonths => Err(query_field(
                "period",
                "must be one of day, week, month, year, all",
            )),
            period => Ok(period),
        }
    }
}
