//! `/api/v1/agents/{agent_id}/clone`: copies of agents.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::agents::crud;
use peal_shared::agents::crud::CompleteAgent;
use peal_shared::analysis::attached;
use peal_shared::context::Context;
use peal_shared::platform::ids::AgentId;
use peal_shared::tools::mapping;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::agents::{agent_audit_entry, validate_setup};
use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{OptionalJson, PathIds};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(clone))
}

/// Copy an agent
///
/// The copy belongs to the caller, or to the owner of the original when that is of another
/// organization. It has the same settings and webhook secrets, and those of the tools and
/// analysis rules that its owner can see.
#[utoipa::path(
    post,
    path = "/api/v1/agents/{agent_id}/clone",
    tag = "Agents",
    params(("agent_id" = AgentId, Path)),
    request_body(content = Option<CloneAgent>, example = json!({"name": "Reminder, in Hindi"})),
    responses(
        (status = 201, body = CompleteAgent),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such agent"),
        CommonErrors,
    )
)]
async fn clone(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
    OptionalJson(body): OptionalJson<CloneAgent>,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let (keys, scope) = (&context.config.keys, caller.scope());

    let mut db = caller.begin_write(&context).await?;
    let original = crud::find(&mut db, keys, &scope, id).await?;
    let before = original.setup();

    let mut copy = before.clone();
    copy.agent.name = body.name.unwrap_or_else(|| {
        let name: String = copy.agent.name.chars().take(193).collect();
        format!("{name} (copy)")
    });
    let copy = validate_setup(&context.outbound, copy, Some(&before))?;

    let owner = match original.org_id == caller.org {
        true => caller.user,
        false => original.agent.user_id,
    };

    let stored = original.stored_webhook();
    let agent = crud::create(&mut db, keys, &scope, owner, &copy, stored.as_ref()).await?;
    mapping::copy(&mut db, &scope, id, agent.agent.id).await?;
    attached::copy(&mut db, &scope, id, agent.agent.id).await?;

    let note = agent_audit_entry("agent.clone", &agent).after(&agent.setup())?;
    db.commit(note, StatusCode::CREATED, Json(agent)).await
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CloneAgent {
    /// Name of the copy; by default the name of the original and ` (copy)`.
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
}
