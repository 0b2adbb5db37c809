//! Storage of workflows, by owner.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Node, Transition, WorkflowGraph};
use crate::access::owner_filter::OwnerFilter;
use crate::access::{Role, Scope};
use crate::agents;
use crate::platform::error::{Error, FieldError, OnConstraint, Result};
use crate::platform::ids::{AgentId, OrgId, ToolId, UserId, WorkflowId};
use crate::platform::page::{Page, PageSlice};
use crate::tools::org_of;

/// Stored workflow.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000008", "user_id": "0198c0de-0000-7000-8000-000000000002", "agent_id": null, "name": "Survey", "description": null,
    "nodes": [{"id": "bye", "start": true, "type": "hangup", "text": "Good bye."}], "transitions": [],
    "is_active": true, "created_at": "2026-06-09T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}))]
pub struct Workflow {
    pub id: WorkflowId,
    pub user_id: UserId,
    /// Agent that provides the voice and the model.
    pub agent_id: Option<AgentId>,
    pub name: String,
    pub description: Option<String>,
    #[schema(value_type = Vec<Node>)]
    pub nodes: Json<Vec<Node>>,
    #[schema(value_type = Vec<Transition>)]
    pub transitions: Json<Vec<Transition>>,
    pub is_active: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// Fields of a workflow that its owner sets.
#[derive(Clone, Debug)]
pub struct NewWorkflow {
    pub agent: Option<AgentId>,
    pub name: String,
    pub description: Option<String>,
    pub graph: WorkflowGraph,
    pub is_active: bool,
}

impl From<Workflow> for NewWorkflow {
    fn from(workflow: Workflow) -> Self {
        Self {
            agent: workflow.agent_id,
            name: workflow.name,
            description: workflow.description,
            graph: WorkflowGraph {
                nodes: workflow.nodes.0,
                transitions: workflow.transitions.0,
            },
            is_active: workflow.is_active,
        }
    }
}

/// Creates a workflow for `owner`.
///
/// # Errors
/// [`Error::NotFound`] for an owner or agent outside the scope, [`Error::Invalid`] for a faulty
/// graph or a tool that the owner cannot see.
pub async fn create(
    db: &mut PgConnection,
    scope: &Scope,
    owner: UserId,
    new: &NewWorkflow,
) -> Result<Workflow> {
    let org = org_of(db, scope, owner).await?;
    check_references(db, scope, org, owner, new).await?;

    let id = WorkflowId::new();
    sqlx::query!(
        "insert into workflows (id, org_id, user_id, agent_id, name, description, nodes, transitions, is_active)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        id as WorkflowId,
        org as OrgId,
        owner as UserId,
        new.agent as Option<AgentId>,
        new.name,
        new.description,
        Json(&new.graph.nodes) as Json<&Vec<Node>>,
        Json(&new.graph.transitions) as Json<&Vec<Transition>>,
        new.is_active,
    )
    .execute(&mut *db)
    .await
    .on_constraint("agent_has_workflows", || Error::NotFound("Agent"))?;

    link_tools(db, scope, org, id, &new.graph).await?;
    find(db, scope, id).await
}

/// Finds a workflow in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: WorkflowId) -> Result<Workflow> {
    sqlx::query_as!(
        Workflow,
        r#"select id as "id: WorkflowId", org_id as "org_id: OrgId", user_id as "user_id: UserId",
                  agent_id as "agent_id: AgentId", name, description, nodes as "nodes: Json<Vec<Node>>",
                  transitions as "transitions: Json<Vec<Transition>>", is_active, created_at, updated_at
           from workflows
           where id = $1
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or user_id = $3)"#,
        id as WorkflowId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Workflow"))
}

/// Lists the workflows in the caller's scope, the newest first.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owners: &OwnerFilter,
    page: Page,
) -> Result<PageSlice<Workflow>> {
    let workflows = sqlx::query_as!(
        Workflow,
        r#"select id as "id: WorkflowId", org_id as "org_id: OrgId", user_id as "user_id: UserId",
                  agent_id as "agent_id: AgentId", name, description, nodes as "nodes: Json<Vec<Node>>",
                  transitions as "transitions: Json<Vec<Transition>>", is_active, created_at, updated_at
           from workflows
           where ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or user_id = $2)
             and ($3::uuid[] is null or org_id = any($3))
             and ($4::uuid[] is null or user_id = any($4))
             and ($5::text[] is null
                  or exists (select from users u where u.id = workflows.user_id and u.role = any($5)))
           order by id desc
           limit $6
           offset $7"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    Ok(page.slice(workflows))
}

/// Locks a workflow for a change and reads it.
///
/// # Errors
/// [`Error::NotFound`] for a workflow outside the scope.
pub async fn lock(db: &mut PgConnection, scope: &Scope, id: WorkflowId) -> Result<Workflow> {
    sqlx::query!(
        "select
         from workflows
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)
         for update",
        id as WorkflowId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Workflow"))?;
    find(db, scope, id).await
}

/// Replaces the fields of a workflow, which the caller has locked.
///
/// # Errors
/// As [`create`], and [`Error::NotFound`] for a workflow outside the scope.
pub async fn replace(
    db: &mut PgConnection,
    scope: &Scope,
    id: WorkflowId,
    new: &NewWorkflow,
) -> Result<Workflow> {
    let before = find(db, scope, id).await?;
    check_references(db, scope, before.org_id, before.user_id, new).await?;

    sqlx::query!(
        "update workflows
         set agent_id = $3, name = $4, description = $5, nodes = $6, transitions = $7, is_active = $8,
             updated_at = now()
         where id = $1
           and org_id = $2",
        id as WorkflowId,
        before.org_id as OrgId,
        new.agent as Option<AgentId>,
        new.name,
        new.description,
        Json(&new.graph.nodes) as Json<&Vec<Node>>,
        Json(&new.graph.transitions) as Json<&Vec<Transition>>,
        new.is_active,
    )
    .execute(&mut *db)
    .await
    .on_constraint("agent_has_workflows", || Error::NotFound("Agent"))?;

    link_tools(db, scope, before.org_id, id, &new.graph).await?;
    find(db, scope, id).await
}

/// Copies a workflow for the same owner.
///
/// # Errors
/// As [`create`].
pub async fn duplicate(db: &mut PgConnection, scope: &Scope, id: WorkflowId) -> Result<Workflow> {
    let workflow = find(db, scope, id).await?;
    let owner = workflow.user_id;
    let mut copy = NewWorkflow::from(workflow);
    copy.name = copy
        .name
        .chars()
        .take(193)
        .chain(" (copy)".chars())
        .collect();
    create(db, scope, owner, &copy).await
}

/// Deletes a workflow.
///
/// # Errors
/// [`Error::NotFound`] for a workflow outside the scope.
pub async fn delete(db: &mut PgConnection, scope: &Scope, id: WorkflowId) -> Result<Workflow> {
    let workflow = lock(db, scope, id).await?;
    sqlx::query!(
        "delete from workflows where id = $1 and org_id = $2",
        id as WorkflowId,
        workflow.org_id as OrgId,
    )
    .execute(db)
    .await?;
    Ok(workflow)
}

/// Checks the graph, and that its agent and tools are visible to the owner.
async fn check_references(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    owner: UserId,
    new: &NewWorkflow,
) -> Result<()> {
    let mut errors = new.graph.errors();

    if let Some(agent) = new.agent
        && agents::find(db, scope, agent).await?.org_id != org
    {
        return Err(Error::NotFound("Agent"));
    }

    // Tools in the owner's view: their own, or all of the organisation for administrators.
    let named: Vec<Uuid> = new.graph.tools().map(|(_, _, tool)| tool.0).collect();
    let visible = sqlx::query_scalar!(
        r#"select t.id as "id: ToolId"
           from tools t, users u
           where t.id = any($1)
             and t.org_id = $2
             and u.id = $3
             and (u.role <> 'user' or t.user_id = u.id)"#,
        &named,
        org as OrgId,
        owner as UserId,
    )
    .fetch_all(db)
    .await?;

    for (index, node, tool) in new.graph.tools() {
        if !visible.contains(&tool) {
            let path = ["nodes".to_owned(), index.to_string(), "tool_id".to_owned()];
            let message = format!("node {node:?} calls a tool that the owner cannot see");
            errors.push(FieldError::new("body", path, "graph", message));
        }
    }

    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(errors))
    }
}

/// Records the tools that a workflow calls.
async fn link_tools(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    id: WorkflowId,
    graph: &WorkflowGraph,
) -> Result<()> {
    let tools: Vec<Uuid> = graph.tools().map(|(_, _, tool)| tool.0).collect();

    sqlx::query!(
        "delete from workflow_tools
         where workflow_id = $1
           and ($2::uuid is null or org_id = $2)",
        id as WorkflowId,
        scope.org() as Option<OrgId>,
    )
    .execute(&mut *db)
    .await?;

    sqlx::query!(
        "insert into workflow_tools (org_id, workflow_id, tool_id)
         select distinct $1::uuid, $2::uuid, tool
         from unnest($3::uuid[]) as named (tool)",
        org as OrgId,
        id as WorkflowId,
        &tools,
    )
    .execute(db)
    .await
    // The tool was deleted after `check`.
    .on_constraint("tool_has_workflows", || Error::NotFound("Tool"))?;
    Ok(())
}
