//! `/api/v1/agents`: agents and their settings.

pub mod analysis;
pub mod bodies;
pub mod clone;
pub mod tools;
pub mod validation;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use peal_shared::agents::config::{
    AgentSetup, ModelConfig, ProfileConfig, SpecificConfig, TranscriberConfig, VadConfig,
};
use peal_shared::agents::crud::CompleteAgent;
use peal_shared::agents::list::{AgentStats, AgentSummary};
use peal_shared::agents::{crud, list};
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::outbound::OutboundClient;
use peal_shared::platform::ids::{AgentId, UserId};
use peal_shared::voices::TtsConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::agents::bodies::{AgentUpdateErrors, TranscriberPart, UpdateAgent, VadPart};
use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, JsonObject, PathIds, ValidJson, ValidQuery, convert_body};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{
    ListResponse, Visibility, parse_owners, parse_page, parse_page_or_whole,
};
use crate::state::AppState;

/// Header with the number of rows on all pages.
pub const X_TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(create_simple))
        .routes(routes!(stats))
        .routes(routes!(show, update, delete))
        .routes(routes!(set_model))
        .routes(routes!(set_voice))
        .routes(routes!(set_transcriber))
        .routes(routes!(set_vad))
}

/// List agents
///
/// Newest first. Users see their own agents, an `org_admin` those of the organisation, a
/// `super_admin` all. Without `page` and `page_size` the 1000 newest are listed (a
/// `super_admin` gets pages of 20); `X-Truncated: true` means that more follow.
#[utoipa::path(
    get,
    path = "/api/v1/agents",
    tag = "Agents",
    params(ListAgents),
    responses(
        (status = 200, body = Vec<AgentSummary>, headers(
            ("X-Total-Count" = i64, description = "Agents on all pages; absent after the last page"),
            ("X-Truncated" = bool, description = "True when more rows follow"),
        )),
        CommonErrors,
    )
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<ListAgents>,
) -> Result<(HeaderMap, ListResponse<Vec<AgentSummary>>)> {
    let scope = match query.scope {
        Some(Visibility::Mine) => caller.scope_of(caller.user)?,
        Some(Visibility::All) | None => caller.scope(),
    };

    let owners = parse_owners(
        query.organization_ids.as_deref(),
        query.owner_user_ids.as_deref(),
        query.platform_roles.as_deref(),
    )?;

    let page = match scope.org() {
        Some(_) => parse_page_or_whole(query.page, query.page_size)?,
        None => parse_page(query.page, query.page_size)?,
    };

    let q = query.q.as_deref().filter(|q| !q.is_empty());
    let mut db = caller.begin_read(&context).await?;
    let (agents, total) = list::list(&mut db, &scope, &owners, q, page).await?;

    let mut headers = HeaderMap::new();
    if let Some(total) = total {
        headers.insert(X_TOTAL_COUNT, HeaderValue::from(total));
    }
    let has_more = total.is_some_and(|total| page.has_rows_after(total));
    Ok((headers, ListResponse::new(agents, has_more)))
}

/// Create an agent
///
/// Omitted settings have defaults. An `org_admin` may create one for a member, by `user_id`.
/// Secrets of its outgoing webhook are sealed and never shown again.
#[utoipa::path(
    post,
    path = "/api/v1/agents",
    tag = "Agents",
    request_body(content = CreateAgent, example = json!({
        "agent": {"name": "Reminder", "first_response_message": "Hello {{name}}, your bill is due on {{date}}."},
        "agent_model_config": {"model_name": "gpt-4.1-mini", "temperature": 0.7, "system_prompt": "You are brief."},
        "tts_config": {"language": "en-US", "voice_name": "Polly.Joanna"},
        "agent_specific_config": {"session_timeout": 300}
    })),
    responses(
        (status = 201, body = CompleteAgent),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such user"),
        CommonErrors,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateAgent>,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let owner = body.user_id.unwrap_or(caller.user);
    let setup = AgentSetup {
        agent: body.agent,
        agent_model_config: body.agent_model_config,
        tts_config: body.tts_config,
        transcriber_config: body.transcriber_config,
        vad_config: body.vad_config,
        agent_specific_config: body.agent_specific_config,
    };
    insert_agent(&context, &caller, owner, setup).await
}

/// Create an agent with default settings
#[utoipa::path(
    post,
    path = "/api/v1/agents/simple",
    tag = "Agents",
    request_body(content = SimpleAgent, example = json!({"name": "Quick start", "description": "All defaults"})),
    responses((status = 201, body = CompleteAgent), CommonErrors)
)]
async fn create_simple(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<SimpleAgent>,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let setup =
        convert_body(json!({"agent": {"name": body.name, "description": body.description}}))?;
    insert_agent(&context, &caller, caller.user, setup).await
}

async fn insert_agent(
    context: &Context,
    caller: &Caller,
    owner: UserId,
    setup: AgentSetup,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let setup = validate_setup(&context.outbound, setup, None)?;
    let scope = caller.scope_of(owner)?;

    let mut db = caller.begin_write(context).await?;
    let agent = crud::create(&mut db, &context.config.keys, &scope, owner, &setup, None).await?;

    let note = agent_audit_entry("agent.create", &agent).after(&agent.setup())?;
    db.commit(note, StatusCode::CREATED, Json(agent)).await
}

/// Count agents
#[utoipa::path(
    get,
    path = "/api/v1/agents/stats",
    tag = "Agents",
    responses((status = 200, body = AgentStats), CommonErrors)
)]
async fn stats(State(context): State<Arc<Context>>, caller: Caller) -> Result<Json<AgentStats>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(list::stats(&mut db, &caller.scope()).await?))
}

/// Show an agent
#[utoipa::path(
    get,
    path = "/api/v1/agents/{agent_id}",
    tag = "Agents",
    params(("agent_id" = AgentId, Path)),
    responses(
        (status = 200, body = CompleteAgent),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such agent"),
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
) -> Result<Json<CompleteAgent>> {
    let mut db = caller.begin_read(&context).await?;
    let keys = &context.config.keys;
    Ok(Json(crud::find(&mut db, keys, &caller.scope(), id).await?))
}

/// Change an agent
///
/// Omitted fields keep their values; objects are merged at every depth, lists are replaced. A
/// masked secret of the outgoing webhook keeps its stored value, unless the webhook's URL gets
/// another scheme, host or port: then the secret must be sent again.
#[utoipa::path(
    put,
    path = "/api/v1/agents/{agent_id}",
    tag = "Agents",
    params(("agent_id" = AgentId, Path), AgentForceUpdate),
    request_body(content = UpdateAgent, example = json!({
        "agent": {"first_response_message": "Hello {{name}}, how are you?"},
        "tts_config": {"voice_parameters": {"rate": "slow"}}
    })),
    responses((status = 200, body = CompleteAgent), AgentUpdateErrors, CommonErrors)
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<AgentForceUpdate>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    update_agent_part(&context, &caller, id, query, Value::Object(body)).await
}

/// Change an agent's model
#[utoipa::path(
    patch,
    path = "/api/v1/agents/{agent_id}/model-config",
    tag = "Agents",
    params(("agent_id" = AgentId, Path), AgentForceUpdate),
    request_body(content = ModelConfig, example = json!({"temperature": 0.2})),
    responses((status = 200, body = CompleteAgent), AgentUpdateErrors, CommonErrors)
)]
async fn set_model(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<AgentForceUpdate>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let part = json!({"agent_model_config": body});
    update_agent_part(&context, &caller, id, query, part).await
}

/// Change an agent's voice
#[utoipa::path(
    patch,
    path = "/api/v1/agents/{agent_id}/tts-config",
    tag = "Agents",
    params(("agent_id" = AgentId, Path), AgentForceUpdate),
    request_body(content = TtsConfig, example = json!({"voice_name": "Polly.Matthew"})),
    responses((status = 200, body = CompleteAgent), AgentUpdateErrors, CommonErrors)
)]
async fn set_voice(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<AgentForceUpdate>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let part = json!({"tts_config": body});
    update_agent_part(&context, &caller, id, query, part).await
}

/// Change an agent's transcriber
#[utoipa::path(
    patch,
    path = "/api/v1/agents/{agent_id}/transcriber-config",
    tag = "Agents",
    params(("agent_id" = AgentId, Path), AgentForceUpdate),
    request_body(content = TranscriberPart, example = json!({"language": "hi-IN"})),
    responses((status = 200, body = CompleteAgent), AgentUpdateErrors, CommonErrors)
)]
async fn set_transcriber(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<AgentForceUpdate>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let part = json!({"transcriber_config": body});
    update_agent_part(&context, &caller, id, query, part).await
}

/// Change an agent's voice activity detection
#[utoipa::path(
    patch,
    path = "/api/v1/agents/{agent_id}/vad-config",
    tag = "Agents",
    params(("agent_id" = AgentId, Path), AgentForceUpdate),
    request_body(content = VadPart, example = json!({"threshold": 0.6})),
    responses((status = 200, body = CompleteAgent), AgentUpdateErrors, CommonErrors)
)]
async fn set_vad(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<AgentForceUpdate>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let part = json!({"vad_config": body});
    update_agent_part(&context, &caller, id, query, part).await
}

async fn update_agent_part(
    context: &Context,
    caller: &Caller,
    id: AgentId,
    query: AgentForceUpdate,
    part: Value,
) -> Result<(StatusCode, Json<CompleteAgent>)> {
    let mut db = caller.begin_write(context).await?;
    let (keys, scope) = (&context.config.keys, caller.scope());
    let before = crud::lock(&mut db, keys, &scope, id).await?;
    let before_setup = before.setup();

    let updated = convert_body(before_setup.merged_with(part)?)?;
    let updated = validate_setup(&context.outbound, updated, Some(&before_setup))?;

    let force = query.force_update;
    let agent = crud::update(&mut db, keys, &scope, &before, &updated, force).await?;

    // The setup as shown: the request may contain secrets.
    let note = agent_audit_entry("agent.update", &agent)
        .before(&before_setup)?
        .after(&agent.setup())?;
    db.commit(note, StatusCode::OK, Json(agent)).await
}

/// Delete an agent
///
/// Past batches and calls keep its id.
#[utoipa::path(
    delete,
    path = "/api/v1/agents/{agent_id}",
    tag = "Agents",
    params(("agent_id" = AgentId, Path), AgentForceDelete),
    responses(
        (status = 200, body = AgentDeletion),
        AgentUpdateErrors,
        CommonErrors,
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<AgentForceDelete>,
) -> Result<(StatusCode, Json<AgentDeletion>)> {
    let mut db = caller.begin_write(&context).await?;
    let agent = crud::delete(
        &mut db,
        &context.config.keys,
        &caller.scope(),
        id,
        query.force_delete,
    )
    .await?;

    let note = agent_audit_entry("agent.delete", &agent).before(&agent.setup())?;

    let body = AgentDeletion {
        message: "agent deleted",
        data: DeletedAgent { id },
    };
    db.commit(note, StatusCode::OK, Json(body)).await
}

/// Validates and completes the settings. The webhook's URL and the background noise are checked
/// only when they differ from those in `before`.
pub fn validate_setup(
    outbound: &OutboundClient,
    mut setup: AgentSetup,
    before: Option<&AgentSetup>,
) -> Result<AgentSetup> {
    let mut fields = FieldErrors::default();
    validation::check(&mut fields, outbound, &setup, before);
    fields.finish()?;

    setup.agent.name = setup.agent.name.trim().to_owned();
    setup.normalize();
    Ok(setup)
}

/// Audit entry of a change of an agent.
pub fn agent_audit_entry(action: &'static str, agent: &CompleteAgent) -> AuditEntry {
    AuditEntry::new(action, agent.org_id, agent.agent.id.0)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListAgents {
    #[param(minimum = 1, default = 1)]
    page: Option<i64>,
    #[param(minimum = 1, maximum = 100, default = 20)]
    page_size: Option<i64>,
    /// `mine` lists only the caller's own agents.
    scope: Option<Visibility>,
    /// Part of the name.
    q: Option<String>,
    /// Ids, separated by commas.
    organization_ids: Option<String>,
    /// Ids, separated by commas.
    owner_user_ids: Option<String>,
    /// Of `user`, `org_admin` and `super_admin`, separated by commas.
    platform_roles: Option<String>,
}

#[derive(Clone, Copy, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AgentForceUpdate {
    /// Also changes an active agent.
    #[serde(default)]
    #[param(default = false)]
    force_update: bool,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AgentForceDelete {
    /// Also deletes an active agent.
    #[serde(default)]
    #[param(default = false)]
    force_delete: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateAgent {
    /// Owner of the agent, by default the caller.
    user_id: Option<UserId>,
    agent: ProfileConfig,
    #[serde(default)]
    agent_model_config: ModelConfig,
    #[serde(default)]
    tts_config: TtsConfig,
    transcriber_config: Option<TranscriberConfig>,
    vad_config: Option<VadConfig>,
    #[serde(default)]
    agent_specific_config: SpecificConfig,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SimpleAgent {
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    #[schema(max_length = 2000)]
    description: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Deleted, example = json!({"message": "agent deleted", "data": {"id": "0198c0de-0000-7000-8000-00000000000a"}}))]
struct AgentDeletion {
    message: &'static str,
    data: DeletedAgent,
}

#[derive(Serialize, ToSchema)]
struct DeletedAgent {
    id: AgentId,
}
