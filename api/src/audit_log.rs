//! `/api/v1/audit-log`: changes and denied requests, for administrators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use peal_shared::access::Role;
use peal_shared::audit;
use peal_shared::audit::{AuditFilter, AuditRecord};
use peal_shared::context::Context;
use peal_shared::platform::ids::{AuditId, OrgId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::ValidQuery;
use crate::http::openapi::CommonErrors;
use crate::http::paging::query_error;
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// List changes and denied requests, newest first
///
/// For org_admins (their organization) and super_admins. Only super_admins see denied requests
/// of unauthenticated callers. Of the denied requests of one caller or address in a minute the
/// first ten are listed; `left_out` of one more entry counts the rest. `next` is the `before` of
/// the next page; null on the last page.
#[utoipa::path(
    get,
    path = "/api/v1/audit-log",
    tag = "Audit log",
    security(("session" = [])),
    params(AuditLogParams),
    responses((status = 200, body = AuditLogPage), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<AuditLogParams>,
) -> Result<Json<AuditLogPage>> {
    caller.require(Role::OrgAdmin)?;

    let limit = query.limit.unwrap_or(50);
    if !(1..=200).contains(&limit) {
        return Err(query_error("limit", "must be between 1 and 200"));
    }

    let filter = AuditFilter {
        action: query.action,
        subject: query.subject_id,
        actor: query.actor_user_id,
        org: query.organization_id,
        from: query.from_date,
        to: query.to_date,
        before: query.before,
    };

    let mut db = caller.begin_read(&context).await?;
    let entries = audit::list(&mut db, &caller.scope(), &filter, limit).await?;

    let is_full = i64::try_from(entries.len()).is_ok_and(|n| n == limit);
    let next = entries.last().map(|entry| entry.id).filter(|_| is_full);
    Ok(Json(AuditLogPage { entries, next }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditLogParams {
    /// Resource and verb: `batch.create`.
    action: Option<String>,
    /// Id of the changed resource; for denied requests the route.
    subject_id: Option<String>,
    actor_user_id: Option<UserId>,
    organization_id: Option<OrgId>,
    /// Entries at or after this time.
    from_date: Option<DateTime<Utc>>,
    /// Entries before this time.
    to_date: Option<DateTime<Utc>>,
    /// Entries older than this one.
    before: Option<AuditId>,
    /// 1 to 200; 50 by default.
    limit: Option<i64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Log, example = json!({"entries": [{
    "id": "0198c0de-0000-7000-8000-000000000007", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "actor_user_id": "0198c0de-0000-7000-8000-000000000002", "actor_kind": "session", "api_key_id": null,
    "ip": "203.0.113.7", "request_id": "0198c0de-0000-7000-8000-000000000008", "action": "batch.create",
    "subject_id": "0198c0de-0000-7000-8000-000000000009", "changed": [], "before_digest": null,
    "after_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "left_out": 0,
    "created_at": "2026-06-09T08:00:00Z"
}], "next": null}))]
struct AuditLogPage {
    entries: Vec<AuditRecord>,
    next: Option<AuditId>,
}
