//! `/api/v1/agents/{agent_id}/tools`: the tools of an agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::agents;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::AgentId;
use peal_shared::tools::mapping;
use peal_shared::tools::mapping::{AgentTool, MAX_TOOLS, NewAgentTool, ToolType, When};
use peal_shared::tools::schema::is_storable;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::force::ForceUpdate;
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::state::AppState;
use crate::tools::{ActionMessage, yes};

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, add, replace))
        .routes(routes!(remove))
}

/// List an agent's tools
#[utoipa::path(
    get,
    path = "/api/v1/agents/{agent_id}/tools",
    tag = "Agent tools",
    params(("agent_id" = AgentId, Path)),
    responses(
        (status = 200, body = [AgentTool]),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent"),
        CommonErrors
    )
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
) -> Result<Json<Vec<AgentTool>>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(mapping::list(&mut db, &caller.scope(), agent).await?))
}

/// Add tools to an agent
///
/// Updates the tools that the agent already has. Returns all tools of the agent, which has at
/// most 100.
#[utoipa::path(
    post,
    path = "/api/v1/agents/{agent_id}/tools",
    tag = "Agent tools",
    params(("agent_id" = AgentId, Path), ForceUpdate),
    request_body = Vec<AgentToolBody>,
    responses(
        (status = 200, body = [AgentTool]),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent, or its owner cannot see a tool"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the agent, and force_update was not sent; or it would have too many tools"),
        CommonErrors
    )
)]
async fn add(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<Vec<AgentToolBody>>,
) -> Result<(StatusCode, Json<Vec<AgentTool>>)> {
    let tools = validate_tools(body)?;
    let (scope, force) = (caller.scope(), query.requested());

    let mut db = caller.begin_write(&context).await?;
    let org = agents::find(&mut db, &scope, agent).await?.org_id;

    let before = mapping::list(&mut db, &scope, agent).await?;
    let after = mapping::add(&mut db, &scope, agent, &tools, force).await?;

    let note = AuditEntry::new("agent.add_tools", org, agent.0)
        .before(&before)?
        .after(&after)?;
    db.commit(note, StatusCode::OK, Json(after)).await
}

/// Replace the tools of an agent
#[utoipa::path(
    patch,
    path = "/api/v1/agents/{agent_id}/tools",
    tag = "Agent tools",
    params(("agent_id" = AgentId, Path), ForceUpdate),
    request_body = Vec<AgentToolBody>,
    responses(
        (status = 200, body = [AgentTool]),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent, or its owner cannot see a tool"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the agent, and force_update was not sent"),
        CommonErrors
    )
)]
async fn replace(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<Vec<AgentToolBody>>,
) -> Result<(StatusCode, Json<Vec<AgentTool>>)> {
    let tools = validate_tools(body)?;
    let (scope, force) = (caller.scope(), query.requested());

    let mut db = caller.begin_write(&context).await?;
    let org = agents::find(&mut db, &scope, agent).await?.org_id;

    let before = mapping::list(&mut db, &scope, agent).await?;
    let after = mapping::replace(&mut db, &scope, agent, &tools, force).await?;

    let note = AuditEntry::new("agent.set_tools", org, agent.0)
        .before(&before)?
        .after(&after)?;
    db.commit(note, StatusCode::OK, Json(after)).await
}

/// Remove a tool from an agent
#[utoipa::path(
    delete,
    path = "/api/v1/agents/{agent_id}/tools/{tool_id}",
    tag = "Agent tools",
    params(("agent_id" = AgentId, Path), ("tool_id" = Uuid, Path), ForceUpdate),
    responses(
        (status = 200, body = ActionMessage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent, or it does not have the tool"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the agent, and force_update was not sent"),
        CommonErrors
    )
)]
async fn remove(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds((agent, tool)): PathIds<(AgentId, Uuid)>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
) -> Result<(StatusCode, Json<ActionMessage>)> {
    let (scope, force) = (caller.scope(), query.requested());

    let mut db = caller.begin_write(&context).await?;
    let before = mapping::list(&mut db, &scope, agent).await?;
    let owner = mapping::remove(&mut db, &scope, agent, tool, force).await?;

    let note = AuditEntry::new("agent.remove_tool", owner.org_id, agent.0).before(&before)?;
    db.commit(note, StatusCode::OK, ActionMessage::json("tool removed"))
        .await
}

/// A tool to give to an agent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "tool_id": "0198c0de-0000-7000-8000-000000000001", "tool_type": "endpoint", "when": "during_call"
}))]
struct AgentToolBody {
    /// The HTTP tool or the MCP server.
    tool_id: Uuid,
    tool_type: ToolType,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default = "during_call")]
    when: When,
    /// For an MCP server, names of the tools that this agent may use; null means all that the
    /// server allows.
    allowed_tools: Option<Vec<String>>,
    /// Arguments that are set here instead of by the model.
    #[serde(default)]
    #[schema(value_type = Object)]
    param_defaults: Map<String, Value>,
    /// Position in the list; by default the position in the request.
    order: Option<i32>,
}

fn during_call() -> When {
    When::DuringCall
}

fn validate_tools(body: Vec<AgentToolBody>) -> Result<Vec<NewAgentTool>> {
    let mut fields = FieldErrors::default();
    fields.check(
        body.len() <= MAX_TOOLS,
        "tools",
        "length",
        format!("must be {MAX_TOOLS} tools or fewer"),
    );

    for (place, tool) in body.iter().enumerate() {
        let path = format!("{place}.allowed_tools");
        fields.check(
            tool.allowed_tools.is_none() || tool.tool_type == ToolType::McpServer,
            &path,
            "value_error",
            "is for MCP servers; an endpoint is one tool",
        );

        let storable =
            |(name, value): (&String, &Value)| !name.contains('\0') && is_storable(value);
        fields.check(
            tool.param_defaults.iter().all(storable),
            &format!("{place}.param_defaults"),
            "characters",
            "must not have a NUL character",
        );

        for name in tool.allowed_tools.iter().flatten() {
            fields.check_text(name, &path, 1, 200);
        }
    }

    fields.finish()?;

    let tools = body.into_iter().zip(0..).map(|(tool, place)| NewAgentTool {
        tool: tool.tool_id,
        kind: tool.tool_type,
        enabled: tool.enabled,
        when: tool.when,
        allowed_tools: tool.allowed_tools,
        param_defaults: tool.param_defaults,
        order: tool.order.unwrap_or(place),
    });
    Ok(tools.collect())
}
