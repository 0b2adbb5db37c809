//! `/api/v1/phone`: caller numbers.

use std::str::FromStr as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::access::Scope;
use peal_shared::audit::Note;
use peal_shared::context::Context;
use peal_shared::ids::{PhoneId, TrunkId, UserId};
use peal_shared::page::{Owners, Page};
use peal_shared::phone::{Country, E164};
use peal_shared::phones::{self, Details, Phone};
use peal_shared::users;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::envelope::{Said, said};
use crate::error::Result;
use crate::extract::{Fields, Ids, ValidJson, ValidQuery};
use crate::openapi::{ProblemDocument, Refusals};
use crate::page::{Listed, Part, Sight, owners, page};
use crate::state::Api;

pub fn router() -> OpenApiRouter<Api> {
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
    params(Part),
    responses((status = 200, body = Phones, headers(("X-Truncated" = bool, description = "True when more rows follow"))), Refusals)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(part): ValidQuery<Part>,
) -> Result<Listed<Phones>> {
    all(&context, &caller, &caller.scope(), false, part.page()?).await
}

/// List active phone numbers
#[utoipa::path(
    get,
    path = "/api/v1/phone/active",
    tag = "Phone numbers",
    params(Part),
    responses((status = 200, body = Phones, headers(("X-Truncated" = bool, description = "True when more rows follow"))), Refusals)
)]
async fn active(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(part): ValidQuery<Part>,
) -> Result<Listed<Phones>> {
    all(&context, &caller, &caller.scope(), true, part.page()?).await
}

/// List phone numbers by pages
#[utoipa::path(
    get,
    path = "/api/v1/phone/browse",
    tag = "Phone numbers",
    params(Browse),
    responses((status = 200, body = PhonePage), Refusals)
)]
async fn browse(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<Browse>,
) -> Result<Json<PhonePage>> {
    let scope = match query.scope {
        Some(Sight::Mine) => caller.scope_of(caller.user)?,
        Some(Sight::All) | None => caller.scope(),
    };
    let owners = owners(
        query.organization_ids.as_deref(),
        query.owner_user_ids.as_deref(),
        query.platform_roles.as_deref(),
    )?;
    let page = page(query.page, query.page_size)?;
    let mut db = caller.read(&context).await?;
    let (phone_numbers, total) = phones::list(&mut db, &scope, &owners, false, page).await?;
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
    params(("user_id" = UserId, Path), Part),
    responses(
        (status = 200, body = Phones, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such user"),
        Refusals,
    )
)]
async fn of_user(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(user): Ids<UserId>,
    ValidQuery(part): ValidQuery<Part>,
) -> Result<Listed<Phones>> {
    let scope = caller.scope_of(user)?;
    let mut db = caller.read(&context).await?;
    if !users::is_seen(&mut db, &scope, user).await? {
        return Err(Error::NotFound("User").into());
    }
    drop(db);
    all(&context, &caller, &scope, false, part.page()?).await
}

async fn all(
    context: &Context,
    caller: &Caller,
    scope: &Scope,
    only_active: bool,
    page: Page,
) -> Result<Listed<Phones>> {
    let mut db = caller.read(context).await?;
    let owners = Owners::default();
    let (phone_numbers, total) = phones::list(&mut db, scope, &owners, only_active, page).await?;
    let phones = Phones {
        success: true,
        phone_numbers,
    };
    Ok(Listed::new(phones, page.is_exceeded_by(total)))
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
        Refusals,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<PhoneId>,
) -> Result<Json<OnePhone>> {
    let mut db = caller.read(&context).await?;
    Ok(one(phones::find(&mut db, &caller.scope(), id).await?))
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
        Refusals,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<AddPhone>,
) -> Result<(StatusCode, Json<OnePhone>)> {
    let mut fields = Fields::default();
    let number = E164::parse(&body.phone_number, None);
    if let Err(error) = &number {
        fields.check(false, "phone_number", error.code(), error.to_string());
    }

    let details = Details {
        friendly_name: text(&mut fields, body.friendly_name, "friendly_name"),
        country_code: country(&mut fields, body.country_code),
        region: text(&mut fields, body.region, "region"),
        is_active: body.is_active,
    };

    fields.finish()?;

    let Ok(number) = number else {
        return Err(Error::field("phone_number", "phone", "is not a phone number").into());
    };

    let user = body.user_id.unwrap_or(caller.user);
    // A member's numbers may belong to trunks that only the caller sees.
    let scope = caller.scope_of(user)?;

    let mut db = caller.change(&context).await?;
    let phone = phones::add(&mut db, &scope, user, body.trunk_id, &number, &details).await?;
    let note = note("phone.create", &phone).after(&phone)?;
    db.commit(note, StatusCode::CREATED, one(phone)).await
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
        Refusals,
    )
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<PhoneId>,
    ValidJson(body): ValidJson<UpdatePhone>,
) -> Result<(StatusCode, Json<OnePhone>)> {
    let mut fields = Fields::default();
    let friendly_name = body
        .friendly_name
        .map(|name| text(&mut fields, Some(name), "friendly_name"));

    let country_code = body
        .country_code
        .map(|code| country(&mut fields, Some(code)));

    let region = body
        .region
        .map(|region| text(&mut fields, Some(region), "region"));

    fields.finish()?;

    let mut db = caller.change(&context).await?;
    let before = phones::lock(&mut db, &caller.scope(), id).await?;

    let details = Details {
        friendly_name: friendly_name.unwrap_or_else(|| before.friendly_name.clone()),
        country_code: country_code.unwrap_or_else(|| before.country_code.clone()),
        region: region.unwrap_or_else(|| before.region.clone()),
        is_active: body.is_active.unwrap_or(before.is_active),
    };

    let trunk = body.trunk_id.unwrap_or(before.trunk_id);
    let phone = phones::change(&mut db, &caller.scope(), &before, trunk, &details).await?;

    let note = note("phone.update", &phone)
        .before(&before)?
        .after(&phone)?;
    db.commit(note, StatusCode::OK, one(phone)).await
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
        (status = 200, body = Said),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such number"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the number"),
        Refusals,
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<PhoneId>,
) -> Result<(StatusCode, Json<Said>)> {
    let mut db = caller.change(&context).await?;
    let phone = phones::delete(&mut db, &caller.scope(), id).await?;
    let note = note("phone.delete", &phone).before(&phone)?;
    db.commit(note, StatusCode::OK, said("phone number deleted"))
        .await
}

/// Audit entry of a change of a phone number.
fn note(action: &'static str, phone: &Phone) -> Note {
    Note::new(action, phone.org_id, phone.id.0)
}

fn one(phone_number: Phone) -> Json<OnePhone> {
    Json(OnePhone {
        success: true,
        phone_number,
    })
}

/// Trims and checks a text; `None` when it is empty.
fn text(fields: &mut Fields, text: Option<String>, path: &str) -> Option<String> {
    let text = text?.trim().to_owned();
    fields.check_text(&text, path, 0, 200);
    Some(text).filter(|text| !text.is_empty())
}

/// Parses the two letters of a country; `None` when they are empty.
fn country(fields: &mut Fields, code: Option<String>) -> Option<String> {
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
struct Browse {
    #[param(minimum = 1, default = 1)]
    page: Option<i64>,
    #[param(minimum = 1, maximum = 100, default = 20)]
    page_size: Option<i64>,
    /// `mine` lists only the caller's own numbers.
    scope: Option<Sight>,
    /// Ids, separated by commas.
    organization_ids: Option<String>,
    /// Ids, separated by commas.
    owner_user_ids: Option<String>,
    /// Of `user`, `org_admin` and `super_admin`, separated by commas.
    platform_roles: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Phones)]
struct Phones {
    success: bool,
    phone_numbers: Vec<Phone>,
}

#[derive(Serialize, ToSchema)]
struct PhonePage {
    success: bool,
    phone_numbers: Vec<Phone>,
    total: i64,
    page: i64,
    page_size: i64,
}

#[derive(Serialize, ToSchema)]
struct OnePhone {
    success: bool,
    phone_number: Phone,
}
