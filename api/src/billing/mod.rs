//! `/api/v1/billing` and `/billing`: costs of calls. All routes are read-only: an API key reads
//! what its user may read, by GET, HEAD and OPTIONS.
//!
//! Users see what they pay. Only super_admins see the platform's own price and the shares of
//! resellers.

pub mod bodies;
pub mod earnings;
pub mod prices;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono_tz::Tz;
use peal_shared::access::owner_filter::OwnerFilter;
use peal_shared::access::{Credential, Role, Scope};
use peal_shared::audit::AuditEntry;
use peal_shared::billing::export;
use peal_shared::billing::export::ExportRequest;
use peal_shared::billing::period::parse_zone;
use peal_shared::billing::usage::sessions::SessionDetail;
use peal_shared::billing::usage::totals::{UsageOverview, UsageSummary};
use peal_shared::billing::usage::{UsageFilter, sessions, totals};
use peal_shared::context::Context;
use peal_shared::mail::is_email_address;
use peal_shared::platform::ids::{CallId, ExportId};
use peal_shared::wallets::queries;
use peal_shared::{Error, orgs, users};
use sqlx::PgConnection;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::billing::bodies::{
    CreditBalance, ExportAsked, ExportLinkParams, ExportQuery, GroupedUsage, ListQuery,
    OverviewQuery, RecordsQuery, SummaryQuery,
};
use crate::http::error::Result;
use crate::http::extract::{PathIds, ValidQuery};
use crate::http::openapi::{
    BadRequestResponse, CommonErrors, ConflictResponse, NotFoundResponse, ProblemDocument,
};
use crate::http::paging::ListResponse;
use crate::state::AppState;

/// Most sessions of a list without pages.
const MAX_UNPAGED_SESSIONS: i64 = 1_000;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(usage_records))
        .routes(routes!(records))
        .routes(routes!(summary))
        .routes(routes!(overview))
        .routes(routes!(session))
        .routes(routes!(export_usage))
        .routes(routes!(download))
        .routes(routes!(credit_balance))
}

/// True when the caller may see the platform's own price and the shares of resellers.
fn may_see_split(caller: &Caller) -> bool {
    caller.role == Role::SuperAdmin
}

/// Usage by call
///
/// The newest 1000, or a page. `X-Truncated: true` means that more follow.
#[utoipa::path(
    get,
    path = "/usage-records",
    tag = "Billing",
    params(ListQuery),
    responses((status = 200, body = GroupedUsage, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn usage_records(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<ListQuery>,
) -> Result<ListResponse<GroupedUsage>> {
    let bounds = query.bounds(MAX_UNPAGED_SESSIONS)?;
    let filter = UsageFilter {
        owners: query.owners()?,
        ..UsageFilter::default()
    };

    let scope = query.scope(&caller)?;
    let mut db = caller.begin_read(&context).await?;

    let split = may_see_split(&caller);
    let (grouped_sessions, total) = sessions::list(&mut db, &scope, &filter, bounds, split).await?;

    let has_more = total > bounds.0.saturating_add(bounds.1);
    let grouped = GroupedUsage::new(grouped_sessions, total, bounds);
    Ok(ListResponse::new(grouped, has_more))
}

/// Usage by call, searched and paged
///
/// By `limit` and `offset`, or by `page` and `page_size`.
#[utoipa::path(
    get,
    path = "/usage/records",
    tag = "Billing",
    params(RecordsQuery),
    responses((status = 200, body = GroupedUsage), CommonErrors)
)]
async fn records(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<RecordsQuery>,
) -> Result<Json<GroupedUsage>> {
    let bounds = query.bounds()?;
    let owners = query.owners()?;
    let scope = query.scope(&caller)?;
    let now = context.clock.now();

    let mut db = caller.begin_read(&context).await?;

    let zone = zone_of(&mut db, &caller, &owners).await?;

    let filter = query.filter(owners, now, zone)?;
    let (grouped_sessions, total) =
        sessions::list(&mut db, &scope, &filter, bounds, may_see_split(&caller)).await?;
    Ok(Json(GroupedUsage::new(grouped_sessions, total, bounds)))
}

/// Usage over time
///
/// Sums of a period and of its hours, days or months, in the organization's time zone.
#[utoipa::path(
    get,
    path = "/usage/summary",
    tag = "Billing",
    params(SummaryQuery),
    responses((status = 200, body = UsageSummary), CommonErrors)
)]
async fn summary(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<SummaryQuery>,
) -> Result<Json<UsageSummary>> {
    let owners = query.owners()?;
    let scope = query.scope(&caller)?;
    let now = context.clock.now();

    let mut db = caller.begin_read(&context).await?;
    let zone = zone_of(&mut db, &caller, &owners).await?;

    let filter = UsageFilter {
        owners,
        ..UsageFilter::default()
    };
    let (period, split) = (query.period(), may_see_split(&caller));

    let summary = totals::summary(&mut db, &scope, &filter, period, (now, zone), split).await?;
    Ok(Json(summary))
}

/// Usage of all time, and of this month
#[utoipa::path(
    get,
    path = "/usage/overview",
    tag = "Billing",
    params(OverviewQuery),
    responses((status = 200, body = UsageOverview), NotFoundResponse, CommonErrors)
)]
async fn overview(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<OverviewQuery>,
) -> Result<Json<UsageOverview>> {
    let scope = match query.user_id {
        Some(user) => caller.scope_of(user)?,
        None => caller.scope(),
    };

    let now = context.clock.now();
    let mut db = caller.begin_read(&context).await?;

    let mut owners = OwnerFilter::default();
    if let Some(user) = query.user_id {
        let org = users::org_of(&mut db, &scope, user).await?;
        owners.orgs = Some(vec![org.ok_or(Error::NotFound("User"))?]);
    }

    let zone = zone_of(&mut db, &caller, &owners).await?;
    let filter = UsageFilter {
        owners,
        ..UsageFilter::default()
    };

    let split = may_see_split(&caller);
    let overview = totals::overview(&mut db, &scope, &filter, (now, zone), split).await?;
    Ok(Json(overview))
}

/// Cost of one call
///
/// With the history of its charges: a correction reverses one and makes another.
#[utoipa::path(
    get,
    path = "/usage/sessions/{session_id}",
    tag = "Billing",
    params(("session_id" = CallId, Path)),
    responses((status = 200, body = SessionDetail), NotFoundResponse, CommonErrors)
)]
async fn session(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<CallId>,
) -> Result<Json<SessionDetail>> {
    let mut db = caller.begin_read(&context).await?;

    let split = may_see_split(&caller);
    Ok(Json(
        sessions::find(&mut db, &caller.scope(), id, split).await?,
    ))
}

/// Mail usage as a file
///
/// Writes a CSV of the usage that the caller may see, and mails a link to it. The link is valid
/// for 24 hours, for the same user.
#[utoipa::path(
    get,
    path = "/usage/export",
    tag = "Billing",
    params(ExportQuery),
    responses((status = 202, body = ExportAsked), BadRequestResponse, CommonErrors)
)]
async fn export_usage(
    State(context): State<Arc<Context>>,
    method: Method,
    caller: Caller,
    ValidQuery(query): ValidQuery<ExportQuery>,
) -> Result<Response> {
    let scope = caller.scope_of(caller.user)?;

    let email = caller.email.clone().filter(|email| is_email_address(email));
    let email = email.ok_or_else(|| {
        Error::rejected(
            "no_email",
            "your account has no e-mail address: ask your administrator to set one",
        )
    })?;

    let now = context.clock.now();
    let mut db = caller.begin_write(&context).await?;
    let zone = zone_of(&mut db, &caller, &OwnerFilter::default()).await?;

    let request = ExportRequest {
        by_key: matches!(caller.credential, Credential::ApiKey(_)),
        ..query.into_request(now, zone)?
    };

    if method == Method::HEAD {
        // HEAD sends no mail.
        return Ok(StatusCode::ACCEPTED.into_response());
    }

    let (id, job) = export::request(&mut db, &scope, caller.user, &email, &request).await?;
    let note = AuditEntry::new("usage.export", caller.org, id.0).after(&request)?;

    let answer = ExportAsked {
        message: "export started; a link to the file will be mailed to you",
        export_id: id,
        job_id: job.id,
        email,
    };

    let answer = db.commit(note, StatusCode::ACCEPTED, Json(answer)).await?;

    context.wakeups.notify_job(&job);
    Ok(answer.into_response())
}

/// Download exported usage
///
/// Target of the mailed link, for the user who requested it: signed in, or with one of the user's
/// keys if it was requested with a key.
#[utoipa::path(
    get,
    path = "/exports/{export_id}/download",
    tag = "Billing",
    params(("export_id" = ExportId, Path), ExportLinkParams),
    responses(
        (status = 200, body = String, content_type = "text/csv", example = json!("session_id,charged_at,...\r\n")),
        NotFoundResponse,
        (status = 410, body = ProblemDocument, content_type = "application/problem+json", description = "The link was good for 24 hours"),
        ConflictResponse,
        CommonErrors,
    )
)]
async fn download(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<ExportId>,
    ValidQuery(link): ValidQuery<ExportLinkParams>,
) -> Result<Response> {
    let keys = &context.config.keys;
    if !keys.is_export_token(id, caller.org, caller.user, &link.token) {
        return Err(Error::NotFound("Export").into());
    }

    let mut db = caller.begin_read(&context).await?;
    let now = context.clock.now();
    let file = export::open(&mut db, &caller.scope(), &caller, id, now).await?;

    let name = format!(
        "attachment; filename=\"usage-{}.csv\"",
        file.created_at.date_naive()
    );
    let csv = Body::from_stream(context.store.read(&file.key, 0));

    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
        (CONTENT_DISPOSITION, name),
    ];
    Ok((headers, csv).into_response())
}

/// Show the credit balance
#[utoipa::path(
    get,
    path = "/credit-balance",
    tag = "Billing",
    responses((status = 200, body = CreditBalance), CommonErrors)
)]
async fn credit_balance(
    State(context): State<Arc<Context>>,
    caller: Caller,
) -> Result<Json<CreditBalance>> {
    let scope = caller.scope_of(caller.user)?;

    let mut db = caller.begin_read(&context).await?;
    let now = context.clock.now();
    let wallet = queries::of_user(&mut db, &scope, caller.user, now).await?;
    Ok(Json(wallet.into()))
}

/// Time zone of day boundaries: that of the one requested organisation, otherwise the caller's.
async fn zone_of(db: &mut PgConnection, caller: &Caller, owners: &OwnerFilter) -> Result<Tz> {
    let org = match owners.orgs.as_deref() {
        Some([only]) => *only,
        _ => caller.org,
    };

    let scope: Scope = caller.scope();
    let found = match orgs::find(db, &scope, org).await {
        Err(Error::NotFound(_)) => None,
        found => Some(found?),
    };
    Ok(found.map_or(Tz::UTC, |org| parse_zone(&org.timezone)))
}
