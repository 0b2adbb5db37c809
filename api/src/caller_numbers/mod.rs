//! `/api/v1/phone`: caller numbers.

pub mod mapping;

use std::str::FromStr as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::access::Scope;
use peal_shared::access::owner_filter::OwnerFilter;
use peal_shared::audit::AuditEntry;
use peal_shared::caller_numbers::{CallerNumber, CallerNumberDetails};
use peal_shared::context::Context;
use peal_shared::platform::e164::{Country, E164};
use peal_shared::platform::ids::{PhoneId, TrunkId, UserId};
use peal_shared::platform::page::Page;
use peal_shared::{Error, caller_numbers, users};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::envelope::{MessageBody, ok_message};
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListParams, ListResponse, Visibility, parse_owners, parse_page};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(active))
        .routes(routes!(browse))
        .routes(routes!(of_user))
        .routes(routes!(show, update, delete))
}

/// List phone numbers
///
/// All visible ones, the newest first. `/browse` filters and counts them.
#[utoipa::path(
    get,
    path = "/api/v1/phone",
    tag = "Phone numbers",
    params(ListParams),
    responses((status = 200, body = PhoneList, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<PhoneList>> {
    list_phones(
        &context,
        &caller,
        &caller.scope(),
        false,
        part.parse_page()?,
    )
    .await
}

/// List active phone numbers
#[utoipa::path(
    get,
    path = "/api/v1/phone/active",
    tag = "Phone numbers",
    params(ListParams),
    responses((status = 200, body = PhoneList, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn active(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<PhoneList>> {
    list_phones(&context, &caller, &caller.scope(), true, part.parse_page()?).await
}

/// List phone numbers by pages
#[utoipa::path(
    get,
    path = "/api/v1/phone/browse",
    tag = "Phone numbers",
    params(BrowsePhonesParams),
    responses((status = 200, body = PhonePage), CommonErrors)
)]
async fn browse(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<BrowsePhonesParams>,
) -> Result<Json<PhonePage>> {
    let scope = match query.scope {
        Some(Visibility::Mine) => caller.scope_of(caller.user)?,
        Some(Visibility::All) | None => caller.scope(),
    };
    let owners = parse_owners(
        query.organization_ids.as_deref(),
        query.owner_user_ids.as_deref(),
        query.platform_roles.as_deref(),
    )?;
    let page = parse_page(query.page, query.page_size)?;
    let mut db = caller.begin_read(&context).await?;
    let (phone_numbers, total) =
        caller_numbers::list(&mut db, &scope, &owners, false, page).await?;
    Ok(Json(PhonePage {
        success: true,
        phone_numbers,
        total,
        page: page.number,
        page_size: page.size,
    }))
}

/// List a user's phone numbers
#[utoipa::path(
    get,
    path = "/api/v1/phone/user/{user_id}",
    tag = "Phone numbers",
    params(("user_id" = UserId, Path), ListParams),
    responses(
        (status = 200, body = PhoneList, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such user"),
        CommonErrors,
    )
)]
async fn of_user(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(user): PathIds<UserId>,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<PhoneList>> {
    let scope = caller.scope_of(user)?;
    let mut db = caller.begin_read(&context).await?;
    if !users::is_in_scope(&mut db, &scope, user).await? {
        return Err(Error::NotFound("User").into());
    }
    drop(db);
    list_phones(&context, &caller, &scope, false, part.parse_page()?).await
}

async fn list_phones(
    context: &Context,
    caller: &Caller,
    scope: &Scope,
    only_active: bool,
    page: Page,
) -> Result<ListResponse<PhoneList>> {
    let mut db = caller.begin_read(context).await?;
    let owners = OwnerFilter::default();
    let (phone_numbers, total) =
        caller_numbers::list(&mut db, scope, &owners, only_active, page).await?;
    let phones = PhoneList {
        success: true,
        phone_numbers,
    };
    Ok(ListResponse::new(phones, page.has_rows_after(total)))
}

/// Show a phone number
#[utoipa::path(
    get,
    path = "/api/v1/phone/{phone_id}",
    tag = "Phone numbers",
    params(("phone_id" = PhoneId, Path)),
    responses(
        (status = 200, body = OnePhone),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such number"),
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<PhoneId>,
) -> Result<Json<OnePhone>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(one_phone(
        caller_numbers::find(&mut db, &caller.scope(), id).await?,
    ))
}

/// Add a phone number
///
/// The trunk must own the number: the carrier refuses calls from any other.
#[utoipa::path(
    post,
    path = "/api/v1/phone",
    tag = "Phone numbers",
    request_body(content = AddPhone, example = json!({"phone_number": "+12125550100", "friendly_name": "Main line"})),
    responses(
        (status = 201, body = OnePhone),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "`trunk_id` is needed, because there is not exactly one trunk"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such user or trunk"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The number is on the trunk already"),
        CommonErrors,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<AddPhone>,
) -> Result<(StatusCode, Json<OnePhone>)> {
    let mut fields = FieldErrors::default();
    let number = E164::parse(&body.phone_number, None);
    if let Err(error) = &number {
        fields.check(false, "phone_number", error.code(), error.to_string());
    }

    let details = CallerNumberDetails {
        friendly_name: optional_text(&mut fields, body.friendly_name, "friendly_name"),
        country_code: optional_country(&mut fields, body.country_code),
        region: optional_text(&mut fields, body.region, "region"),
        is_active: body.is_active,
    };

    fields.finish()?;

    let Ok(number) = number else {
        return Err(Error::field("phone_number", "phone", "is not a phone number").into());
    };

    let user = body.user_id.unwrap_or(caller.user);
    // A member's numbers may belong to trunks that only the caller sees.
    let scope = caller.scope_of(user)?;

    let mut db = caller.begin_write(&context).await?;
    let phone =
        caller_numbers::add(&mut db, &scope, user, body.trunk_id, &number, &details).await?;
    let note = audit_entry("phone.create", &phone).after(&phone)?;
    db.commit(note, StatusCode::CREATED, one_phone(phone)).await
}

/// Change a phone number
///
/// Absent fields stay unchanged; an empty string removes the value.
#[utoipa::path(
    put,
    path = "/api/v1/phone/{phone_id}",
    tag = "Phone numbers",
    params(("phone_id" = PhoneId, Path)),
    request_body(content = UpdatePhone, example = json!({"friendly_name": "Evening line", "is_active": true})),
    responses(
        (status = 200, body = OnePhone),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such number or trunk"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the number"),
        CommonErrors,
    )
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<PhoneId>,
    ValidJson(body): ValidJson<UpdatePhone>,
) -> Result<(StatusCode, Json<OnePhone>)> {
    let mut fields = FieldErrors::default();
    let friendly_name = body
        .friendly_name
        .map(|name| optional_text(&mut fields, Some(name), "friendly_name"));

    let country_code = body
        .country_code
        .map(|code| optional_country(&mut fields, Some(code)));

    let region = body
        .region
        .map(|region| optional_text(&mut fields, Some(region), "region"));

    fields.finish()?;

    let mut db = caller.begin_write(&context).await?;
    let before = caller_numbers::lock(&mut db, &caller.scope(), id).await?;

    let details = CallerNumberDetails {
        friendly_name: friendly_name.unwrap_or_else(|| before.friendly_name.clone()),
        country_code: country_code.unwrap_or_else(|| before.country_code.clone()),
        region: region.unwrap_or_else(|| before.region.clone()),
        is_active: body.is_active.unwrap_or(before.is_active),
    };

    let trunk = body.trunk_id.unwrap_or(before.trunk_id);
    let phone = caller_numbers::update(&mut db, &caller.scope(), &before, trunk, &details).await?;

    let note = audit_entry("phone.update", &phone)
        .before(&before)?
        .after(&phone)?;
    db.commit(note, StatusCode::OK, one_phone(phone)).await
}

/// Delete a phone number
///
/// Deletes its mapping too. Past batches and calls keep its id.
#[utoipa::path(
    delete,
    path = "/api/v1/phone/{phone_id}",
    tag = "Phone numbers",
    params(("phone_id" = PhoneId, Path)),
    responses(
        (status = 200, body = MessageBody),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such number"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the number"),
        CommonErrors,
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<PhoneId>,
) -> Result<(StatusCode, Json<MessageBody>)> {
    let mut db = caller.begin_write(&context).await?;
    let phone = caller_numbers::delete(&mut db, &caller.scope(), id).await?;
    let note = audit_entry("phone.delete", &phone).before(&phone)?;
    db.commit(note, StatusCode::OK, ok_message("phone number deleted"))
        .await
}

/// Audit entry of a change of a phone number.
fn audit_entry(action: &'static str, phone: &CallerNumber) -> AuditEntry {
    AuditEntry::new(action, phone.org_id, phone.id.0)
}

fn one_phone(phone_number: CallerNumber) -> Json<OnePhone> {
    Json(OnePhone {
        success: true,
        phone_number,
    })
}

/// Trims and checks a text; `None` when it is empty.
fn optional_text(fields: &mut FieldErrors, text: Option<String>, path: &str) -> Option<String> {
    let text = text?.trim().to_owned();
    fields.check_text(&text, path, 0, 200);
    Some(text).filter(|text| !text.is_empty())
}

/// Parses the two letters of a country; `None` when they are empty.
fn optional_country(fields: &mut FieldErrors, code: Option<String>) -> Option<String> {
    let code = code.filter(|code| !code.is_empty())?;
    match Country::from_str(&code) {
        Ok(country) => Some(country.into()),
        Err(error) => {
            fields.check(false, "country_code", "country", error.to_string());
            None
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AddPhone {
    /// In E.164.
    phone_number: String,
    /// The trunk that owns it; the organisation's only one when absent.
    trunk_id: Option<TrunkId>,
    #[schema(max_length = 200)]
    friendly_name: Option<String>,
    /// The two letters of a country.
    country_code: Option<String>,
    #[schema(max_length = 200)]
    region: Option<String>,
    #[serde(default = "yes")]
    #[schema(default = true)]
    is_active: bool,
    /// The owner; the caller when absent.
    user_id: Option<UserId>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdatePhone {
    trunk_id: Option<TrunkId>,
    #[schema(max_length = 200)]
    friendly_name: Option<String>,
    /// The two letters of a country.
    country_code: Option<String>,
    #[schema(max_length = 200)]
    region: Option<String>,
    is_active: Option<bool>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct BrowsePhonesParams {
    #[param(minimum = 1, default = 1)]
    page: Option<i64>,
    #[param(minimum = 1, maximum = 100, default = 20)]
    page_size: Option<i64>,
    /// `mine` lists only the caller's own numbers.
    scope: Option<Visibility>,
    /// Ids, separated by commas.
    organization_ids: Option<String>,
    /// Ids, separated by commas.
    owner_user_ids: Option<String>,
    /// Of `user`, `org_admin` and `super_admin`, separated by commas.
    platform_roles: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Phones)]
struct PhoneList {
    success: bool,
    phone_numbers: Vec<CallerNumber>,
}

#[derive(Serialize, ToSchema)]
struct PhonePage {
    success: bool,
    phone_numbers: Vec<CallerNumber>,
    total: i64,
    page: i64,
    page_size: i64,
}

#[derive(Serialize, ToSchema)]
struct OnePhone {
    success: bool,
    phone_number: CallerNumber,
}
