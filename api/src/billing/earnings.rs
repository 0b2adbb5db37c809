//! `/api/v1/earnings`: earnings of resellers, for their administrators with a session.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use peal_shared::access::Role;
use peal_shared::billing::period::{Period, parse_zone};
use peal_shared::context::Context;
use peal_shared::earnings::{Earnings, EarningsBreakdown};
use peal_shared::orgs::pricing;
use peal_shared::platform::ids::OrgId;
use peal_shared::{Error, earnings, orgs};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{PathIds, ValidQuery};
use crate::http::openapi::{CommonErrors, NotFoundResponse};
use crate::http::paging::query_error;
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
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
    responses((status = 200, body = Earnings), CommonErrors)
)]
async fn mine(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<EarningsQuery>,
) -> Result<Json<Earnings>> {
    let breakdown = own_breakdown(&context, &caller, query.period()?).await?;
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
    responses((status = 200, body = EarningsBreakdown), CommonErrors)
)]
async fn my_breakdown(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<EarningsQuery>,
) -> Result<Json<EarningsBreakdown>> {
    Ok(Json(
        own_breakdown(&context, &caller, query.period()?).await?,
    ))
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
    responses((status = 200, body = Earnings), NotFoundResponse, CommonErrors)
)]
async fn of_org(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(org): PathIds<OrgId>,
    ValidQuery(query): ValidQuery<EarningsQuery>,
) -> Result<Json<Earnings>> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    let breakdown = org_breakdown(&context, &caller, org, query.period()?).await?;
    Ok(Json(breakdown.whole))
}

async fn own_breakdown(
    context: &Context,
    caller: &Caller,
    period: Period,
) -> Result<EarningsBreakdown> {
    caller.require_session()?;
    let mut db = caller.begin_read(context).await?;
    let pricing = pricing::find(&mut db, &caller.scope(), caller.org).await?;
    drop(db);

    if caller.role < Role::OrgAdmin || !pricing.org_type.is_reseller() {
        let message = "Forbidden: not a reseller org or not org_admin";
        return Err(Error::Forbidden(message.into()).into());
    }

    org_breakdown(context, caller, caller.org, period).await
}

async fn org_breakdown(
    context: &Context,
    caller: &Caller,
    org: OrgId,
    period: Period,
) -> Result<EarningsBreakdown> {
    let (scope, now) = (caller.scope(), context.clock.now());
    let mut db = caller.begin_read(context).await?;

    let zone = parse_zone(&orgs::find(&mut db, &scope, org).await?.timezone);
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
            Period::FourMonths => Err(query_error(
                "period",
                "must be one of day, week, month, year, all",
            )),
            period => Ok(period),
        }
    }
}
