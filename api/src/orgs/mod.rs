//! `/api/v1/organizations`: organisations and their settings. Their members are in
//! [`crate::orgs::members`].

pub mod feature_flags;
pub mod me;
pub mod members;
pub mod pricing;

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::access::Role;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::orgs;
use peal_shared::orgs::{Headcount, NewOrganization, OrgSettings, Organization, is_timezone};
use peal_shared::platform::e164::Country;
use peal_shared::platform::ids::OrgId;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{PageParams, parse_page};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(detail))
        .routes(routes!(update))
}

/// List organizations
///
/// The caller's own and its customers; all of them for a super_admin.
#[utoipa::path(
    get,
    path = "/api/v1/organizations",
    tag = "Organizations",
    params(PageParams),
    responses((status = 200, body = OrganizationPage), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<PageParams>,
) -> Result<Json<OrganizationPage>> {
    let page = parse_page(query.page, query.page_size)?;
    let mut db = caller.begin_read(&context).await?;
    let (organizations, total) =
        orgs::list(&mut db, &caller.scope(), (page.number, page.size)).await?;
    Ok(Json(OrganizationPage {
        organizations,
        total,
        page: page.number,
        page_size: page.size,
    }))
}

/// Create an organization
///
/// For super_admins. Customers of a reseller have the reseller as parent.
#[utoipa::path(
    post,
    path = "/api/v1/organizations",
    tag = "Organizations",
    security(("session" = [])),
    request_body(content = CreateOrganization, example = json!({
        "name": "Acme", "timezone": "Asia/Kolkata", "default_country": "IN"
    })),
    responses(
        (status = 201, body = Organization),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "The parent has a parent itself"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such parent"),
        CommonErrors,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateOrganization>,
) -> Result<(StatusCode, Json<Organization>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;

    let settings = OrgSettings {
        name: Some(body.name.trim().to_owned()),
        timezone: body.timezone,
        default_country: Some(body.default_country),
        hipaa_compliance: body.hipaa_compliance,
        max_concurrent_calls: body.max_concurrent_calls,
    };
    let settings = validate_settings(settings)?;

    let new = NewOrganization {
        name: settings.name.clone().unwrap_or_default(),
        parent: body.parent_organization_id,
        settings,
    };

    let mut db = caller.begin_write(&context).await?;
    let created = orgs::create_unscoped(&mut db, &new).await?;
    let note = AuditEntry::new("organization.create", created.id, created.id.0).after(&created)?;
    db.commit(note, StatusCode::CREATED, Json(created)).await
}

/// Show an organization with its headcount
#[utoipa::path(
    get,
    path = "/api/v1/organizations/{id}/detail",
    tag = "Organizations",
    params(("id" = OrgId, Path)),
    responses(
        (status = 200, body = OrganizationDetail),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such organization"),
        CommonErrors,
    )
)]
async fn detail(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<OrgId>,
) -> Result<Json<OrganizationDetail>> {
    let scope = caller.scope();
    let mut db = caller.begin_read(&context).await?;
    let organization = orgs::find(&mut db, &scope, id).await?;
    // A reseller sees that its customer exists, but not its members.
    let headcount = match scope.org().is_none_or(|own| own == id) {
        true => Some(orgs::count_members(&mut db, &scope, id).await?),
        false => None,
    };
    Ok(Json(OrganizationDetail {
        organization,
        headcount,
    }))
}

/// Change an organization's settings
///
/// For its org_admins, and super_admins. Only a super_admin sets `max_concurrent_calls`.
#[utoipa::path(
    patch,
    path = "/api/v1/organizations/{id}",
    tag = "Organizations",
    security(("session" = [])),
    params(("id" = OrgId, Path)),
    request_body(content = UpdateOrganization, example = json!({"timezone": "Europe/Berlin", "default_country": null})),
    responses(
        (status = 200, body = Organization),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such organization"),
        CommonErrors,
    )
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<OrgId>,
    ValidJson(body): ValidJson<UpdateOrganization>,
) -> Result<(StatusCode, Json<Organization>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;

    if body.max_concurrent_calls.is_some() {
        caller.require(Role::SuperAdmin)?;
    }

    let settings = validate_settings(OrgSettings {
        name: body.name.map(|name| name.trim().to_owned()),
        timezone: body.timezone,
        default_country: body.default_country,
        hipaa_compliance: body.hipaa_compliance,
        max_concurrent_calls: body.max_concurrent_calls,
    })?;

    let scope = caller.scope();
    let mut db = caller.begin_write(&context).await?;
    let before = orgs::lock(&mut db, &scope, id).await?;
    let after = orgs::update(&mut db, &scope, id, &settings).await?;

    let note = AuditEntry::new("organization.update", id, id.0)
        .before(&before)?
        .after(&after)?;
    db.commit(note, StatusCode::OK, Json(after)).await
}

/// Validates settings and normalizes the country.
fn validate_settings(mut settings: OrgSettings) -> Result<OrgSettings> {
    let mut fields = FieldErrors::default();
    if let Some(name) = &settings.name {
        fields.check_text(name, "name", 1, 200);
    }
    if let Some(zone) = &settings.timezone {
        let message = "must be the name of a time zone, such as Asia/Kolkata";
        fields.check(is_timezone(zone), "timezone", "timezone", message);
    }
    if let Some(Some(country)) = &mut settings.default_country {
        let parsed = Country::from_str(country).map(String::from);
        let message = "must be the two letters of a country, such as IN or US";
        fields.check(parsed.is_ok(), "default_country", "country", message);
        *country = parsed.unwrap_or_default();
    }
    if let Some(calls) = settings.max_concurrent_calls {
        fields.check_range(calls, "max_concurrent_calls", 0, 100_000);
    }
    fields.finish()?;
    Ok(settings)
}

/// Distinguishes a null field from an absent one.
fn given<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateOrganization {
    name: String,
    /// The reseller's organization.
    parent_organization_id: Option<OrgId>,
    /// IANA name of the time zone; UTC when left out.
    timezone: Option<String>,
    default_country: Option<String>,
    /// Makes later calls under HIPAA: they are not recorded, and their variables are never shown.
    /// Earlier calls are unaffected.
    hipaa_compliance: Option<bool>,
    max_concurrent_calls: Option<i32>,
}

/// Absent fields stay unchanged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdateOrganization {
    name: Option<String>,
    timezone: Option<String>,
    /// null removes the country.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    default_country: Option<Option<String>>,
    /// Makes later calls under HIPAA: they are not recorded, and their variables are never shown.
    /// Earlier calls are unaffected.
    hipaa_compliance: Option<bool>,
    max_concurrent_calls: Option<i32>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Organizations, example = json!({"organizations": [{
    "id": "0198c0de-0000-7000-8000-000000000001", "name": "Acme", "parent_organization_id": null,
    "timezone": "Asia/Kolkata", "default_country": "IN", "hipaa_compliance": false, "max_concurrent_calls": 100,
    "created_at": "2026-06-01T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}], "total": 1, "page": 1, "page_size": 20}))]
struct OrganizationPage {
    organizations: Vec<Organization>,
    total: i64,
    page: i64,
    page_size: i64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Detail, example = json!({
    "id": "0198c0de-0000-7000-8000-000000000001", "name": "Acme", "parent_organization_id": null,
    "timezone": "Asia/Kolkata", "default_country": "IN", "hipaa_compliance": false, "max_concurrent_calls": 100,
    "created_at": "2026-06-01T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z",
    "members": 3, "open_invites": 1
}))]
struct OrganizationDetail {
    #[serde(flatten)]
    organization: Organization,
    #[serde(flatten)]
    headcount: Option<Headcount>,
}
