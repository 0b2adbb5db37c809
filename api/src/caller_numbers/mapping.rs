//! `/api/v1/phone/mapping`: agents mapped to caller numbers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::audit::AuditEntry;
use peal_shared::caller_numbers::mapping;
use peal_shared::caller_numbers::mapping::{AgentMapping, MappingFilter};
use peal_shared::context::Context;
use peal_shared::platform::ids::{AgentId, MappingId, PhoneId};
use peal_shared::platform::page::Page;
use peal_shared::{Error, agents, caller_numbers};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::auth::Caller;
use crate::batches::create::require_agent;
use crate::http::envelope::{MessageBody, ok_message};
use crate::http::error::Result;
use crate::http::extract::{PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListParams, ListResponse};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(of_agent))
        .routes(routes!(of_phone, update, delete))
}

/// List phone mappings
///
/// The newest first.
#[utoipa::path(
    get,
    path = "/api/v1/phone/mapping",
    tag = "Phone mapping",
    params(ListParams),
    responses((status = 200, body = MappingList, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<MappingList>> {
    let (page, filter) = (part.parse_page()?, MappingFilter::default());
    let mut db = caller.begin_read(&context).await?;
    let mappings = mapping::list(&mut db, &caller.scope(), filter, page).await?;
    Ok(ListResponse::from_slice(mappings, mapping_list))
}

/// List an agent's phone mappings
#[utoipa::path(
    get,
    path = "/api/v1/phone/mapping/agent/{agent_id}",
    tag = "Phone mapping",
    params(("agent_id" = AgentId, Path), ListParams),
    responses(
        (status = 200, body = MappingList, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such agent"),
        CommonErrors,
    )
)]
async fn of_agent(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<MappingList>> {
    let page = part.parse_page()?;
    let mut db = caller.begin_read(&context).await?;
    agents::find(&mut db, &caller.scope(), agent).await?;
    let filter = MappingFilter {
        agent: Some(agent),
        ..MappingFilter::default()
    };
    let mappings = mapping::list(&mut db, &caller.scope(), filter, page).await?;
    Ok(ListResponse::from_slice(mappings, mapping_list))
}

/// Show the mapping of a phone number
#[utoipa::path(
    get,
    path = "/api/v1/phone/mapping/{id}",
    tag = "Phone mapping",
    params(("id" = PhoneId, Path, description = "The phone number's id")),
    responses(
        (status = 200, body = OneMapping),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such number, or it has no mapping"),
        CommonErrors,
    )
)]
async fn of_phone(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(phone): PathIds<PhoneId>,
) -> Result<Json<OneMapping>> {
    let mut db = caller.begin_read(&context).await?;
    caller_numbers::find(&mut db, &caller.scope(), phone).await?;
    let filter = MappingFilter {
        phone: Some(phone),
        ..MappingFilter::default()
    };
    let found = mapping::list(&mut db, &caller.scope(), filter, Page::WHOLE).await?;
    let found = found.rows.into_iter().next();
    Ok(one_mapping(found.ok_or(Error::NotFound("Mapping"))?))
}

/// Map a phone number to an agent
#[utoipa::path(
    post,
    path = "/api/v1/phone/mapping",
    tag = "Phone mapping",
    request_body(content = CreateMapping, example = json!({
        "phone_number_id": "0198c0de-0000-7000-8000-000000000001",
        "agent_id": "0198c0de-0000-7000-8000-000000000002"
    })),
    responses(
        (status = 201, body = OneMapping),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "Not exactly one of `agent_id` and `workflow_id`, or a workflow"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such number or agent"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The number has a mapping already"),
        CommonErrors,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateMapping>,
) -> Result<(StatusCode, Json<OneMapping>)> {
    let agent = require_agent(body.agent_id, body.workflow_id)?;
    let mut db = caller.begin_write(&context).await?;
    let created = mapping::create(&mut db, &caller.scope(), body.phone_number_id, agent).await?;
    let note = audit_entry("phone_mapping.create", &created).after(&created)?;
    db.commit(note, StatusCode::CREATED, one_mapping(created))
        .await
}

/// Change a phone mapping
#[utoipa::path(
    put,
    path = "/api/v1/phone/mapping/{id}",
    tag = "Phone mapping",
    params(("id" = MappingId, Path, description = "The mapping's id")),
    request_body(content = UpdateMapping, example = json!({"agent_id": "0198c0de-0000-7000-8000-000000000002"})),
    responses(
        (status = 200, body = OneMapping),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "Both `agent_id` and `workflow_id`, or a workflow"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such mapping, number or agent"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The other number has a mapping already"),
        CommonErrors,
    )
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<MappingId>,
    ValidJson(body): ValidJson<UpdateMapping>,
) -> Result<(StatusCode, Json<OneMapping>)> {
    let agent = match (body.agent_id, body.workflow_id) {
        (None, None) => None,
        (agent, workflow) => Some(require_agent(agent, workflow)?),
    };

    let mut db = caller.begin_write(&context).await?;
    let before = mapping::find(&mut db, &caller.scope(), id).await?;

    let changed = mapping::update(
        &mut db,
        &caller.scope(),
        id,
        body.phone_number_id.unwrap_or(before.phone_number_id),
        agent.unwrap_or(before.agent_id),
    )
    .await?;

    let note = audit_entry("phone_mapping.update", &changed)
        .before(&before)?
        .after(&changed)?;
    db.commit(note, StatusCode::OK, one_mapping(changed)).await
}

/// Delete a phone mapping
#[utoipa::path(
    delete,
    path = "/api/v1/phone/mapping/{id}",
    tag = "Phone mapping",
    params(("id" = MappingId, Path, description = "The mapping's id")),
    responses(
        (status = 200, body = MessageBody),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such mapping"),
        CommonErrors,
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<MappingId>,
) -> Result<(StatusCode, Json<MessageBody>)> {
    let mut db = caller.begin_write(&context).await?;
    let deleted = mapping::delete(&mut db, &caller.scope(), id).await?;
    let note = audit_entry("phone_mapping.delete", &deleted).before(&deleted)?;
    db.commit(note, StatusCode::OK, ok_message("phone mapping deleted"))
        .await
}

/// Audit entry of a change of a mapping.
fn audit_entry(action: &'static str, mapping: &AgentMapping) -> AuditEntry {
    AuditEntry::new(action, mapping.org_id, mapping.id.0)
}

fn mapping_list(mappings: Vec<AgentMapping>) -> MappingList {
    MappingList {
        success: true,
        mappings,
    }
}

fn one_mapping(mapping: AgentMapping) -> Json<OneMapping> {
    Json(OneMapping {
        success: true,
        mapping,
    })
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateMapping {
    phone_number_id: PhoneId,
    /// Exactly one of this and `workflow_id`.
    agent_id: Option<AgentId>,
    /// Refused: workflows cannot place calls.
    workflow_id: Option<Uuid>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdateMapping {
    phone_number_id: Option<PhoneId>,
    agent_id: Option<AgentId>,
    /// Refused: workflows cannot place calls.
    workflow_id: Option<Uuid>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Mappings)]
struct MappingList {
    success: bool,
    mappings: Vec<AgentMapping>,
}

#[derive(Serialize, ToSchema)]
struct OneMapping {
    success: bool,
    mapping: AgentMapping,
}
