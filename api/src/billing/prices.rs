//! `/api/v1/service-prices`: prices of services. Callers see the prices they pay; the platform
//! sets its own.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use peal_shared::access::Role;
use peal_shared::audit::AuditEntry;
use peal_shared::billing::prices;
use peal_shared::billing::prices::{Direction, NewPrice, PriceChange, PriceFilter, ServicePrice};
use peal_shared::billing::quote::Service;
use peal_shared::context::Context;
use peal_shared::platform::ids::PriceId;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery, decimal, some_decimal};
use crate::http::openapi::{CommonErrors, ConflictResponse, NotFoundResponse};
use crate::http::paging::parse_page;
use crate::state::AppState;

/// Default billing increment, in seconds.
const DEFAULT_INCREMENT_SECS: i32 = 60;
/// Decimal places of a rate.
const MAX_RATE_DECIMALS: u32 = 10;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update, delete))
}

/// List prices
///
/// For a super_admin the platform's own; for others the prices of their organization, including
/// the markup of its distributor.
#[utoipa::path(
    get,
    path = "/api/v1/service-prices",
    tag = "Service prices",
    params(PriceQuery),
    responses((status = 200, body = ServicePrices), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<PriceQuery>,
) -> Result<Json<ServicePrices>> {
    let page = parse_page(query.page, query.page_size)?;

    let filter = PriceFilter {
        id: None,
        service: query.service,
        r#match: query.r#match,
        direction: query.direction,
        in_force: query.in_force,
    };

    let factor = price_factor(&context, &caller).await?;
    let mut db = caller.begin_read(&context).await?;
    let bounds = (page.size, page.offset());
    let (prices, total) = prices::list_unscoped(&mut db, &filter, factor, bounds).await?;

    Ok(Json(ServicePrices {
        prices,
        total,
        page: page.number,
        page_size: page.size,
    }))
}

/// Show a price
#[utoipa::path(
    get,
    path = "/api/v1/service-prices/{price_id}",
    tag = "Service prices",
    params(("price_id" = PriceId, Path)),
    responses((status = 200, body = ServicePrice), NotFoundResponse, CommonErrors)
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<PriceId>,
) -> Result<Json<ServicePrice>> {
    let factor = price_factor(&context, &caller).await?;
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(prices::find_unscoped(&mut db, id, factor).await?))
}

/// Add a price
///
/// For super_admins. The price in force for the same service and match ends when this one
/// begins. Calls claimed before keep their price.
#[utoipa::path(
    post,
    path = "/api/v1/service-prices",
    tag = "Service prices",
    security(("session" = [])),
    request_body(content = AddPrice, example = json!({
        "service": "telephony", "match": "91", "price_usd": "0.035", "increment_secs": 60
    })),
    responses((status = 201, body = ServicePrice), ConflictResponse, CommonErrors)
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<AddPrice>,
) -> Result<(StatusCode, Json<ServicePrice>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    let new = body.validated()?;
    let mut db = caller.begin_write(&context).await?;
    let price = prices::add_unscoped(&mut db, &new, caller.user).await?;
    let note = AuditEntry::new("service_price.create", caller.org, price.id.0).after(&price)?;
    db.commit(note, StatusCode::CREATED, Json(price)).await
}

/// Change a future price
///
/// For super_admins. Absent fields stay unchanged. A price that has been in force cannot change:
/// add one that begins later.
#[utoipa::path(
    patch,
    path = "/api/v1/service-prices/{price_id}",
    tag = "Service prices",
    security(("session" = [])),
    params(("price_id" = PriceId, Path)),
    request_body(content = UpdatePrice, example = json!({"price_usd": "0.03"})),
    responses((status = 200, body = ServicePrice), NotFoundResponse, ConflictResponse, CommonErrors)
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<PriceId>,
    ValidJson(body): ValidJson<UpdatePrice>,
) -> Result<(StatusCode, Json<ServicePrice>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;

    let mut fields = FieldErrors::default();
    check_rate(&mut fields, body.price_usd);
    check_increment(&mut fields, body.increment_secs);
    fields.finish()?;

    let change = PriceChange {
        price_usd: body.price_usd,
        increment_secs: body.increment_secs,
        valid_from: body.valid_from,
    };

    let mut db = caller.begin_write(&context).await?;
    let (before, after) = prices::change_unscoped(&mut db, id, &change).await?;

    let note = AuditEntry::new("service_price.update", caller.org, id.0)
        .before(&before)?
        .after(&after)?;
    db.commit(note, StatusCode::OK, Json(after)).await
}

/// Delete a future price
///
/// For super_admins. The price before it stays in force.
#[utoipa::path(
    delete,
    path = "/api/v1/service-prices/{price_id}",
    tag = "Service prices",
    security(("session" = [])),
    params(("price_id" = PriceId, Path)),
    responses((status = 200, body = PriceDeleted), NotFoundResponse, ConflictResponse, CommonErrors)
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<PriceId>,
) -> Result<(StatusCode, Json<PriceDeleted>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    let mut db = caller.begin_write(&context).await?;
    let price = prices::delete_unscoped(&mut db, id).await?;
    let note = AuditEntry::new("service_price.delete", caller.org, id.0).before(&price)?;
    let answer = PriceDeleted {
        message: "price deleted",
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}

/// Factor on the platform's prices for this caller.
async fn price_factor(context: &Context, caller: &Caller) -> Result<Decimal> {
    if caller.role == Role::SuperAdmin {
        return Ok(Decimal::ONE);
    }
    let mut db = caller.begin_read(context).await?;
    Ok(prices::markup_factor_unscoped(&mut db, caller.org).await?)
}

fn check_rate(fields: &mut FieldErrors, rate: Option<Decimal>) {
    let Some(rate) = rate else { return };
    let message = "must be 0 to 1000 USD with at most 10 decimal places, such as \"0.014\"";
    let is_rate = rate >= Decimal::ZERO
        && rate <= Decimal::ONE_THOUSAND
        && rate.normalize().scale() <= MAX_RATE_DECIMALS;
    fields.check(is_rate, "price_usd", "range", message);
}

fn check_increment(fields: &mut FieldErrors, secs: Option<i32>) {
    if let Some(secs) = secs {
        fields.check_range(secs, "increment_secs", 1, 3600);
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PriceQuery {
    #[param(inline)]
    service: Option<Service>,
    /// Exact match; an empty string for the general prices.
    r#match: Option<String>,
    #[param(inline)]
    direction: Option<Direction>,
    /// Only prices in force, or only the others.
    in_force: Option<bool>,
    /// From 1.
    page: Option<i64>,
    /// 1 to 100; 20 when left out.
    page_size: Option<i64>,
}

#[derive(Serialize, ToSchema)]
struct ServicePrices {
    prices: Vec<ServicePrice>,
    #[schema(example = 27)]
    total: i64,
    page: i64,
    page_size: i64,
}

#[derive(Serialize, ToSchema)]
struct PriceDeleted {
    #[schema(example = "price deleted")]
    message: &'static str,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AddPrice {
    service: Service,
    /// For telephony the leading digits of a number; for a model or a voice its name. Left out or
    /// empty: all that no other price matches.
    #[serde(default)]
    r#match: String,
    /// `outbound` by default.
    #[serde(default)]
    direction: Direction,
    /// Per minute; for `attempt`, per call.
    #[serde(deserialize_with = "decimal")]
    #[schema(value_type = String)]
    price_usd: Decimal,
    /// 1 to 3600; 60 when left out.
    increment_secs: Option<i32>,
    /// Immediately when left out.
    valid_from: Option<DateTime<Utc>>,
}

impl AddPrice {
    fn validated(self) -> Result<NewPrice> {
        let r#match = self.r#match.trim().to_owned();
        let mut fields = FieldErrors::default();
        check_rate(&mut fields, Some(self.price_usd));
        check_increment(&mut fields, self.increment_secs);

        let (fits, message) = match self.service {
            Service::Telephony => (
                r#match.len() <= 15 && r#match.bytes().all(|b| b.is_ascii_digit()),
                "must be up to 15 digits of a number, without +",
            ),
            Service::Model | Service::Speech => (
                r#match.chars().count() <= 200 && !r#match.chars().any(char::is_control),
                "must be a name of at most 200 characters",
            ),
            Service::Platform | Service::Attempt => (
                r#match.is_empty(),
                "must be left out: there is one price of this service",
            ),
        };

        fields.check(fits, "match", "value_error", message);
        fields.check(
            self.service == Service::Telephony || self.direction == Direction::Outbound,
            "direction",
            "value_error",
            "must be left out: only telephony has a price for inbound calls",
        );

        fields.finish()?;
        Ok(NewPrice {
            service: self.service,
            r#match,
            direction: self.direction,
            price_usd: self.price_usd,
            increment_secs: self.increment_secs.unwrap_or(DEFAULT_INCREMENT_SECS),
            valid_from: self.valid_from,
        })
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdatePrice {
    #[serde(default, deserialize_with = "some_decimal")]
    #[schema(value_type = Option<String>)]
    price_usd: Option<Decimal>,
    increment_secs: Option<i32>,
    valid_from: Option<DateTime<Utc>>,
}
