//! `/api/v1/phone/mapping`: agents mapped to caller numbers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::audit::Note;
use peal_shared::context::Context;
use peal_shared::ids::{AgentId, MappingId, PhoneId};
use peal_shared::page::Page;
use peal_shared::phones::mapping::{self, Mapping, Wanted};
use peal_shared::{agents, phones};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::auth::Caller;
use crate::envelope::{Said, said};
use crate::error::Result;
use crate::extract::{Ids, ValidJson, ValidQuery};
use crate::new_batch::one_of;
use crate::openapi::{ProblemDocument, Refusals};
use crate::page::{Listed, Part};
use crate::state::Api;

pub fn router() -> OpenApiRouter<Api> {
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
    params(Part),
    responses((status = 200, body = Mappings, headers(("X-Truncated" = bool, description = "True when more rows follow"))), Refusals)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(part): ValidQuery<Part>,
) -> Result<Listed<Mappings>> {
    let (page, filter) = (part.page()?, Wanted::default());
    let mut db = caller.read(&context).await?;
    let mappings = mapping::list(&mut db, &caller.scope(), filter, page).await?;
    Ok(Listed::of(mappings, several))
}

/// List an agent's phone mappings
#[utoipa::path(
    get,
    path = "/api/v1/phone/mapping/agent/{agent_id}",
    tag = "Phone mapping",
    params(("agent_id" = AgentId, Path), Part),
    responses(
        (status = 200, body = Mappings, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such agent"),
        Refusals,
    )
)]
async fn of_agent(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(agent): Ids<AgentId>,
    ValidQuery(part): ValidQuery<Part>,
) -> Result<Listed<Mappings>> {
    let page = part.page()?;
    let mut db = caller.read(&context).await?;
    agents::find(&mut db, &caller.scope(), agent).await?;
    let filter = Wanted {
        agent: Some(agent),
        ..Wanted::default()
    };
    let mappings = mapping::list(&mut db, &caller.scope(), filter, page).await?;
    Ok(Listed::of(mappings, several))
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
        Refusals,
    )
)]
async fn of_phone(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(phone): Ids<PhoneId>,
) -> Result<Json<OneMapping>> {
    let mut db = caller.read(&context).await?;
    phones::find(&mut db, &caller.scope(), phone).await?;
    let filter = Wanted {
        phone: Some(phone),
        ..Wanted::default()
    };
    let found = mapping::list(&mut db, &caller.scope(), filter, Page::WHOLE).await?;
    let found = found.rows.into_iter().next();
    Ok(one(found.ok_or(Error::NotFound("Mapping"))?))
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
        Refusals,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateMapping>,
) -> Result<(StatusCode, Json<OneMapping>)> {
    let agent = one_of(body.agent_id, body.workflow_id)?;
    let mut db = caller.change(&context).await?;
    let created = mapping::create(&mut db, &caller.scope(), body.phone_number_id, agent).await?;
    let note = note("phone_mapping.create", &created).after(&created)?;
    db.commit(note, StatusCode::CREATED, one(created)).await
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
        Refusals,
    )
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<MappingId>,
    ValidJson(body): ValidJson<UpdateMapping>,
) -> Result<(StatusCode, Json<OneMapping>)> {
    let agent = match (body.agent_id, body.workflow_id) {
        (None, None) => None,
        (agent, workflow) => Some(one_of(agent, workflow)?),
    };

    let mut db = caller.change(&context).await?;
    let before = mapping::find(&mut db, &caller.scope(), id).await?;

    let changed = mapping::change(
        &mut db,
        &caller.scope(),
        id,
        body.phone_number_id.unwrap_or(before.phone_number_id),
        agent.unwrap_or(before.agent_id),
    )
    .await?;

    let note = note("phone_mapping.update", &changed)
        .before(&before)?
        .after(&changed)?;
    db.commit(note, StatusCode::OK, one(changed)).await
}

/// Delete a phone mapping
#[utoipa::path(
    delete,
    path = "/api/v1/phone/mapping/{id}",
    tag = "Phone mapping",
    params(("id" = MappingId, Path, description = "The mapping's id")),
    responses(
        (status = 200, body = Said),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such mapping"),
        Refusals,
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<MappingId>,
) -> Result<(StatusCode, Json<Said>)> {
    let mut db = caller.change(&context).await?;
    let deleted = mapping::delete(&mut db, &caller.scope(), id).await?;
    let note = note("phone_mapping.delete", &deleted).before(&deleted)?;
    db.commit(note, StatusCode::OK, said("phone mapping deleted"))
        .await
}

/// Audit entry of a change of a mapping.
fn note(action: &'static str, mapping: &Mapping) -> Note {
    Note::new(action, mapping.org_id, mapping.id.0)
}

fn several(mappings: Vec<Mapping>) -> Mappings {
    Mappings {
        success: true,
        mappings,
    }
}

fn one(mapping: Mapping) -> Json<OneMapping> {
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
struct Mappings {
    success: bool,
    mappings: Vec<Mapping>,
}

#[derive(Serialize, ToSchema)]
struct OneMapping {
    success: bool,
    mapping: Mapping,
}
