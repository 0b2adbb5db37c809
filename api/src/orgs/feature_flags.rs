//! `/api/v1/feature-flags`: features that users may use.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::access::Role;
use peal_shared::access::permissions::Feature;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::feature_flags::FeatureFlags;
use peal_shared::platform::ids::UserId;
use peal_shared::{Error, feature_flags};
use serde_json::{Map, Value};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, JsonObject, PathIds};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(mine))
        .routes(routes!(show, switch))
}

/// Show the caller's feature flags
#[utoipa::path(
    get,
    path = "/api/v1/feature-flags/me",
    tag = "Feature flags",
    responses(
        (status = 200, body = BTreeMap<String, bool>, example = json!({"call_analytics": true, "call_logs": true, "outbound": true})),
        CommonErrors,
    )
)]
async fn mine(State(context): State<Arc<Context>>, caller: Caller) -> Result<Json<FeatureFlags>> {
    let scope = caller.scope_of(caller.user)?;
    let mut db = caller.begin_read(&context).await?;
    let (_org, flags) = feature_flags::for_user(&mut db, &scope, caller.user).await?;
    Ok(Json(flags))
}

/// Show a user's feature flags
#[utoipa::path(
    get,
    path = "/api/v1/feature-flags/{user_id}",
    tag = "Feature flags",
    params(("user_id" = UserId, Path)),
    responses(
        (status = 200, body = BTreeMap<String, bool>, example = json!({"call_analytics": true, "call_logs": true, "outbound": false})),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user"),
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(user): PathIds<UserId>,
) -> Result<Json<FeatureFlags>> {
    let scope = caller.scope_of(user)?;
    let mut db = caller.begin_read(&context).await?;
    let (_org, flags) = feature_flags::for_user(&mut db, &scope, user).await?;
    Ok(Json(flags))
}

/// Switch a user's features on or off
///
/// Omitted features keep their state. For org_admins (their members) and super_admins (all users);
/// no user can switch their own. Applies from the user's next request on.
#[utoipa::path(
    put,
    path = "/api/v1/feature-flags/{user_id}",
    tag = "Feature flags",
    security(("session" = [])),
    params(("user_id" = UserId, Path)),
    request_body(content = BTreeMap<String, bool>, example = json!({"outbound": false})),
    responses(
        (status = 200, body = BTreeMap<String, bool>, example = json!({"call_analytics": true, "call_logs": true, "outbound": false})),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user"),
        CommonErrors,
    )
)]
async fn switch(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(user): PathIds<UserId>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<FeatureFlags>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    if user == caller.user {
        let message = "Forbidden: you cannot switch your own features; ask another administrator";
        return Err(Error::Forbidden(message.into()).into());
    }

    let flags = parse_flags(&body)?;
    let mut db = caller.begin_write(&context).await?;
    let (org, before, after) =
        feature_flags::set_flags(&mut db, &caller.scope(), &caller, user, &flags).await?;

    let note = AuditEntry::new("feature_flags.update", org, user.0)
        .before(&before)?
        .after(&after)?;
    db.commit(note, StatusCode::OK, Json(after)).await
}

fn parse_flags(body: &Map<String, Value>) -> Result<Vec<(Feature, bool)>> {
    let known = Feature::ALL.map(Feature::as_str).join(", ");
    let (mut fields, mut flags) = (FieldErrors::default(), Vec::new());
    for (name, value) in body {
        match (Feature::from_name(name), value) {
            (Some(feature), Value::Bool(on)) => flags.push((feature, *on)),
            (Some(_), _) => fields.check(false, name, "type_error", "must be true or false"),
            (None, _) => {
                let message = format!("is not a feature; known: {known}");
                fields.check(false, name, "extra_forbidden", message);
            }
        }
    }

    fields.finish()?;
    Ok(flags)
}
