//! `/api/v1/workflows`: conversations that follow a graph.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::{AgentId, UserId, WorkflowId};
use peal_shared::workflows::{NewWorkflow, Node, Transition, Workflow, WorkflowGraph, store};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListResponse, OwnedListParams};
use crate::state::AppState;
use crate::tools::{ActionMessage, yes};

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, change, delete))
        .routes(routes!(duplicate))
}

/// List workflows
///
/// The newest first.
#[utoipa::path(
    get,
    path = "/api/v1/workflows",
    tag = "Workflows",
    params(OwnedListParams),
    responses((status = 200, body = WorkflowList, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<OwnedListParams>,
) -> Result<ListResponse<WorkflowList>> {
    let (scope, owners) = query.scope_and_owners(&caller)?;
    let page = query.parse_page()?;
    let mut db = caller.begin_read(&context).await?;
    let workflows = store::list(&mut db, &scope, &owners, page).await?;
    Ok(ListResponse::from_slice(workflows, |workflows| {
        WorkflowList { workflows }
    }))
}

/// Create a workflow
///
/// The graph must have one start, every node must be reachable, and every node must lead to an
/// end. Errors name the invalid node.
#[utoipa::path(
    post,
    path = "/api/v1/workflows",
    tag = "Workflows",
    request_body = CreateWorkflow,
    responses(
        (status = 201, body = Workflow),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent_id or user_id"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        CommonErrors
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateWorkflow>,
) -> Result<(StatusCode, Json<Workflow>)> {
    let owner = body.user_id.unwrap_or(caller.user);
    let scope = caller.scope_of(owner)?;

    let new = validate_workflow(NewWorkflow {
        agent: body.agent_id,
        name: body.name,
        description: body.description,
        graph: WorkflowGraph {
            nodes: body.nodes,
            transitions: body.transitions,
        },
        is_active: body.is_active,
    })?;

    let mut db = caller.begin_write(&context).await?;
    let workflow = store::create(&mut db, &scope, owner, &new).await?;
    let note = audit_entry("workflow.create", &workflow).after(&workflow)?;
    db.commit(note, StatusCode::CREATED, Json(workflow)).await
}

/// Show a workflow
#[utoipa::path(
    get,
    path = "/api/v1/workflows/{workflow_id}",
    tag = "Workflows",
    params(("workflow_id" = WorkflowId, Path)),
    responses(
        (status = 200, body = Workflow),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such workflow"),
        CommonErrors
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<WorkflowId>,
) -> Result<Json<Workflow>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(store::find(&mut db, &caller.scope(), id).await?))
}

/// Change a workflow
///
/// Absent fields stay unchanged. Nodes and transitions are replaced as a whole, and validated
/// together.
#[utoipa::path(
    patch,
    path = "/api/v1/workflows/{workflow_id}",
    tag = "Workflows",
    params(("workflow_id" = WorkflowId, Path)),
    request_body = ChangeWorkflow,
    responses(
        (status = 200, body = Workflow),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such workflow or agent_id"),
        CommonErrors
    )
)]
async fn change(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<WorkflowId>,
    ValidJson(body): ValidJson<ChangeWorkflow>,
) -> Result<(StatusCode, Json<Workflow>)> {
    let scope = caller.scope();
    let mut db = caller.begin_write(&context).await?;
    let before = store::lock(&mut db, &scope, id).await?;
    let new = validate_workflow(body.apply_to(before.clone()))?;
    let workflow = store::replace(&mut db, &scope, id, &new).await?;
    let note = audit_entry("workflow.update", &workflow)
        .before(&before)?
        .after(&workflow)?;
    db.commit(note, StatusCode::OK, Json(workflow)).await
}

/// Delete a workflow
#[utoipa::path(
    delete,
    path = "/api/v1/workflows/{workflow_id}",
    tag = "Workflows",
    params(("workflow_id" = WorkflowId, Path)),
    responses(
        (status = 200, body = ActionMessage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such workflow"),
        CommonErrors
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<WorkflowId>,
) -> Result<(StatusCode, Json<ActionMessage>)> {
    let mut db = caller.begin_write(&context).await?;
    let workflow = store::delete(&mut db, &caller.scope(), id).await?;
    let note = audit_entry("workflow.delete", &workflow).before(&workflow)?;
    db.commit(
        note,
        StatusCode::OK,
        ActionMessage::json("workflow deleted"),
    )
    .await
}

/// Clone a workflow
///
/// The copy has the same owner, agent and graph.
#[utoipa::path(
    post,
    path = "/api/v1/workflows/{workflow_id}/clone",
    tag = "Workflows",
    params(("workflow_id" = WorkflowId, Path)),
    responses(
        (status = 201, body = Workflow),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such workflow"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        CommonErrors
    )
)]
async fn duplicate(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<WorkflowId>,
) -> Result<(StatusCode, Json<Workflow>)> {
    let mut db = caller.begin_write(&context).await?;
    let copy = store::duplicate(&mut db, &caller.scope(), id).await?;
    let note = audit_entry("workflow.clone", &copy).after(&copy)?;
    db.commit(note, StatusCode::CREATED, Json(copy)).await
}

/// Audit entry of a change of a workflow.
fn audit_entry(action: &'static str, workflow: &Workflow) -> AuditEntry {
    AuditEntry::new(action, workflow.org_id, workflow.id.0)
}

/// A workflow to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Survey",
    "nodes": [
        {"id": "ask", "start": true, "type": "gather", "text": "Press one to talk to us.", "input": "digits"},
        {"id": "desk", "type": "transfer", "number": "+12125550100"},
        {"id": "bye", "type": "hangup", "text": "Good bye."}
    ],
    "transitions": [{"from": "ask", "to": "desk", "when": "1"}, {"from": "ask", "to": "bye"}]
}))]
struct CreateWorkflow {
    name: String,
    description: Option<String>,
    /// The agent whose voice and model it uses.
    agent_id: Option<AgentId>,
    nodes: Vec<Node>,
    #[serde(default)]
    transitions: Vec<Transition>,
    #[serde(default = "yes")]
    is_active: bool,
    /// The owner; an administrator may name a member.
    user_id: Option<UserId>,
}

/// Changes; absent fields stay unchanged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Survey of May", "is_active": false}))]
struct ChangeWorkflow {
    name: Option<String>,
    /// Null removes it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    description: Option<Option<String>>,
    /// Null removes it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<AgentId>)]
    agent_id: Option<Option<AgentId>>,
    nodes: Option<Vec<Node>>,
    transitions: Option<Vec<Transition>>,
    is_active: Option<bool>,
}

/// Distinguishes a null field from an absent one.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    input: D,
) -> std::result::Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(input).map(Some)
}

impl ChangeWorkflow {
    fn apply_to(self, workflow: Workflow) -> NewWorkflow {
        let old = NewWorkflow::from(workflow);
        NewWorkflow {
            agent: self.agent_id.unwrap_or(old.agent),
            name: self.name.unwrap_or(old.name),
            description: self.description.unwrap_or(old.description),
            graph: WorkflowGraph {
                nodes: self.nodes.unwrap_or(old.graph.nodes),
                transitions: self.transitions.unwrap_or(old.graph.transitions),
            },
            is_active: self.is_active.unwrap_or(old.is_active),
        }
    }
}

fn validate_workflow(mut workflow: NewWorkflow) -> Result<NewWorkflow> {
    let mut fields = FieldErrors::default();
    workflow.name = workflow.name.trim().to_owned();
    fields.check_text(&workflow.name, "name", 1, 200);
    let description = workflow.description.as_deref().unwrap_or_default();
    fields.check_text(description, "description", 0, 2000);
    fields.finish()?;
    Ok(workflow)
}

#[derive(Serialize, ToSchema)]
#[schema(as = Workflows)]
struct WorkflowList {
    workflows: Vec<Workflow>,
}
