//! `/api/v1/me`: the caller.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use peal_shared::access::{Credential, Role};
use peal_shared::context::Context;
use peal_shared::orgs::members;
use peal_shared::platform::ids::{OrgId, UserId};
use peal_shared::users;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::openapi::CommonErrors;
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(me))
}

/// Show the caller
///
/// `phone`, `profile_image_url` and `user_metadata` come from the latest session token of an
/// external issuer.
#[utoipa::path(get, path = "/api/v1/me", tag = "Me", responses((status = 200, body = CurrentUser), CommonErrors))]
async fn me(State(context): State<Arc<Context>>, caller: Caller) -> Result<Json<CurrentUser>> {
    let scope = caller.scope_of(caller.user)?;
    let mut db = caller.begin_read(&context).await?;
    let member = members::find(&mut db, &scope, caller.org, caller.user).await?;
    let profile = users::profile(&mut db, &scope, caller.user).await?;
    Ok(Json(CurrentUser {
        user_id: member.id,
        auth: match caller.credential {
            Credential::Session => "bearer",
            Credential::ApiKey(_) => "api_key",
        },
        email: member.email,
        phone: profile.phone,
        profile_image_url: profile.profile_image_url,
        full_name: member.full_name,
        user_metadata: profile.user_metadata,
        organization_id: member.organization_id,
        role: member.role,
    }))
}

#[derive(Serialize, ToSchema)]
#[schema(as = Me, example = json!({
    "user_id": "0198c0de-0000-7000-8000-000000000002", "auth": "bearer", "email": "ada@example.com",
    "phone": "12125550123", "profile_image_url": "https://img.example.com/ada.png", "full_name": "Ada Lovelace",
    "user_metadata": {"full_name": "Ada Lovelace"}, "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "role": "org_admin"
}))]
struct CurrentUser {
    user_id: UserId,
    /// `bearer` or `api_key`.
    auth: &'static str,
    email: String,
    /// As the issuer formats it.
    phone: Option<String>,
    profile_image_url: Option<String>,
    full_name: Option<String>,
    /// At most 4096 bytes.
    #[schema(value_type = Object)]
    user_metadata: Value,
    organization_id: OrgId,
    role: Role,
}
