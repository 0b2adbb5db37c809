//! Tools of an agent. An agent has only tools visible to its owner: the owner's own, and for
//! administrators those of their organisation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;
use std::collections::HashSet;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::access::Scope;
use crate::agents;
use crate::agents::{Agent, usage};
use crate::platform::error::{Error, FieldError, OnConstraint, Result};
use crate::platform::ids::{AgentId, OrgId};

/// Maximum of tools of an agent, so that one response lists them all.
pub const MAX_TOOLS: usize = 100;

/// Kind of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum ToolType {
    /// An HTTP tool.
    Endpoint,
    McpServer,
}

/// Phase in which an agent uses a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum When {
    DuringCall,
    PostCall,
}

/// A tool of an agent.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000004", "agent_id": "0198c0de-0000-7000-8000-000000000005", "tool_id": "0198c0de-0000-7000-8000-000000000001", "tool_type": "endpoint", "name": "find_order",
    "enabled": true, "when": "during_call", "allowed_tools": null, "param_defaults": {}, "order": 0
}))]
pub struct AgentTool {
    pub id: Uuid,
    pub agent_id: AgentId,
    /// The HTTP tool or the MCP server.
    pub tool_id: Uuid,
    pub tool_type: ToolType,
    pub name: String,
    pub enabled: bool,
    pub when: When,
    pub allowed_tools: Option<Vec<String>>,
    #[schema(value_type = Object)]
    pub param_defaults: Value,
    pub order: i32,
}

/// A tool to give to an agent.
#[derive(Clone, Debug)]
pub struct NewAgentTool {
    pub tool: Uuid,
    pub kind: ToolType,
    pub enabled: bool,
    pub when: When,
    pub allowed_tools: Option<Vec<String>>,
    pub param_defaults: Map<String, Value>,
    pub order: i32,
}

/// Lists the tools of an agent in the scope.
///
/// # Errors
/// [`Error::NotFound`] when there is no such agent.
pub async fn list(db: &mut PgConnection, scope: &Scope, agent: AgentId) -> Result<Vec<AgentTool>> {
    let agent = agents::find(db, scope, agent).await?;
    let tools = sqlx::query_as!(
        AgentTool,
        r#"select m.id, m.agent_id as "agent_id: AgentId", coalesce(m.tool_id, m.mcp_server_id) as "tool_id!",
                  case when m.tool_id is null then 'mcp_server' else 'endpoint' end as "tool_type!: ToolType",
                  coalesce(t.name, s.name) as "name!", m.enabled, m.used as "when: When", m.allowed_tools,
                  m.param_defaults, m.position as "order"
           from agent_tools m
           left join tools t on t.id = m.tool_id
           left join mcp_servers s on s.id = m.mcp_server_id
           where m.agent_id = $1
             and m.org_id = $2
           order by m.position, m.id"#,
        agent.id as AgentId,
        agent.org_id as OrgId,
    )
    .fetch_all(db)
    .await?;
    Ok(tools)
}

/// Adds tools to an agent; a tool that it has already is updated.
///
/// # Errors
/// [`Error::NotFound`] for an agent outside the scope or a tool that its owner cannot see,
/// [`Error::Invalid`] for a duplicate tool, [`Error::Conflict`] when the agent would have too
/// many, and while it is on calls, unless `force`: an additional tool changes its behaviour.
pub async fn add(
    db: &mut PgConnection,
    scope: &Scope,
    agent: AgentId,
    tools: &[NewAgentTool],
    force: bool,
) -> Result<Vec<AgentTool>> {
    let agent = agents::find_locked(db, scope, agent).await?;
    reject_duplicates(tools)?;
    usage::check_idle_unscoped(db, agent.id.0, force).await?;

    let had = list(db, scope, agent.id).await?.len();
    for tool in tools {
        upsert(db, &agent, tool).await?;
    }
    let all = list(db, scope, agent.id).await?;
    // An agent with more tools than the limit may keep and update them.
    if all.len() > MAX_TOOLS.max(had) {
        return Err(Error::conflict(
            "too_many_tools",
            format!("an agent has at most {MAX_TOOLS} tools: remove some first"),
        ));
    }
    Ok(all)
}

/// Replaces the tools of an agent. A tool that stays keeps the id of its mapping.
///
/// # Errors
/// As [`add`].
pub async fn replace(
    db: &mut PgConnection,
    scope: &Scope,
    agent: AgentId,
    tools: &[NewAgentTool],
    force: bool,
) -> Result<Vec<AgentTool>> {
    let agent = agents::find_locked(db, scope, agent).await?;
    reject_duplicates(tools)?;
    usage::check_idle_unscoped(db, agent.id.0, force).await?;

    let ids: Vec<Uuid> = tools.iter().map(|tool| tool.tool).collect();
    sqlx::query!(
        "delete from agent_tools
         where agent_id = $1
           and org_id = $2
           and coalesce(tool_id, mcp_server_id) <> all($3)",
        agent.id as AgentId,
        agent.org_id as OrgId,
        &ids,
    )
    .execute(&mut *db)
    .await?;
    for tool in tools {
        upsert(db, &agent, tool).await?;
    }
    list(db, scope, agent.id).await
}

/// Removes a tool from an agent, by the id of the tool or of the mapping.
///
/// # Errors
/// [`Error::NotFound`] for an agent outside the scope or a tool that it does not have,
/// [`Error::Conflict`] while the agent is on calls, unless `force`.
pub async fn remove(
    db: &mut PgConnection,
    scope: &Scope,
    agent: AgentId,
    tool: Uuid,
    force: bool,
) -> Result<Agent> {
    let agent = agents::find_locked(db, scope, agent).await?;
    let removed = sqlx::query!(
        "delete from agent_tools
         where agent_id = $1
           and org_id = $2
           and (tool_id = $3 or mcp_server_id = $3 or id = $3)",
        agent.id as AgentId,
        agent.org_id as OrgId,
        tool,
    )
    .execute(&mut *db)
    .await?;
    if removed.rows_affected() == 0 {
        return Err(Error::NotFound("Tool of this agent"));
    }
    usage::check_idle_unscoped(db, agent.id.0, force).await?;
    Ok(agent)
}

/// Copies the tools of another agent of the organisation to an agent without tools, in their
/// order, as far as its owner sees them.
///
/// # Errors
/// [`Error::NotFound`] when one of the two is outside the scope.
pub async fn copy(
    db: &mut PgConnection,
    scope: &Scope,
    from: AgentId,
    to: AgentId,
) -> Result<Vec<AgentTool>> {
    let from = agents::find(db, scope, from).await?;
    let to = agents::find(db, scope, to).await?;

    let visible = sqlx::query_scalar!(
        "select m.id
         from agent_tools m
         join users owner on owner.id = $3
         left join tools t on t.id = m.tool_id
         left join mcp_servers s on s.id = m.mcp_server_id
         where m.agent_id = $1
           and m.org_id = $2
           and (owner.role <> 'user' or coalesce(t.user_id, s.user_id) = owner.id)
         order by m.position, m.id",
        from.id as AgentId,
        to.org_id as OrgId,
        to.user_id.0,
    )
    .fetch_all(&mut *db)
    .await?;

    // New ids ascend in this order, which orders tools of equal position.
    let ids: Vec<Uuid> = visible.iter().map(|_| AgentId::new().0).collect();
    sqlx::query!(
        "insert into agent_tools (id, org_id, agent_id, tool_id, mcp_server_id, enabled, used, allowed_tools,
                                  param_defaults, position)
         select c.id, m.org_id, $1, m.tool_id, m.mcp_server_id, m.enabled, m.used, m.allowed_tools,
                m.param_defaults, m.position
         from unnest($2::uuid[], $3::uuid[]) as c (id, original)
         join agent_tools m on m.id = c.original",
        to.id as AgentId,
        &ids,
        &visible,
    )
    .execute(&mut *db)
    .await
    // A concurrent request deleted the tool.
    .on_constraint("tool_is_mapped", || Error::NotFound("Tool"))
    .map(drop)?;

    list(db, scope, to.id).await
}

/// Updates or inserts one tool of an agent.
async fn upsert(db: &mut PgConnection, agent: &Agent, tool: &NewAgentTool) -> Result<()> {
    let (endpoint, server) = match tool.kind {
        ToolType::Endpoint => (Some(tool.tool), None),
        ToolType::McpServer => (None, Some(tool.tool)),
    };

    let visible = sqlx::query_scalar!(
        r#"select exists (
               select
               from users owner
               left join tools t on t.id = $3
               left join mcp_servers s on s.id = $4
               where owner.id = $1
                 and coalesce(t.org_id, s.org_id) = $2
                 and (owner.role <> 'user' or coalesce(t.user_id, s.user_id) = owner.id)
           ) as "visible!""#,
        agent.user_id.0,
        agent.org_id as OrgId,
        endpoint,
        server,
    )
    .fetch_one(&mut *db)
    .await?;
    if !visible {
        return Err(Error::NotFound(match tool.kind {
            ToolType::Endpoint => "Tool",
            ToolType::McpServer => "MCP server",
        }));
    }

    let updated = sqlx::query!(
        "update agent_tools
         set enabled = $4, used = $5, allowed_tools = $6, param_defaults = $7, position = $8, updated_at = now()
         where agent_id = $1
           and org_id = $2
           and coalesce(tool_id, mcp_server_id) = $3",
        agent.id as AgentId,
        agent.org_id as OrgId,
        tool.tool,
        tool.enabled,
        tool.when as When,
        tool.allowed_tools.as_deref(),
        Json(&tool.param_defaults) as Json<&Map<String, Value>>,
        tool.order,
    )
    .execute(&mut *db)
    .await?;
    if updated.rows_affected() > 0 {
        return Ok(());
    }

    sqlx::query!(
        "insert into agent_tools (id, org_id, agent_id, tool_id, mcp_server_id, enabled, used, allowed_tools,
                                  param_defaults, position)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        AgentId::new().0,
        agent.org_id as OrgId,
        agent.id as AgentId,
        endpoint,
        server,
        tool.enabled,
        tool.when as When,
        tool.allowed_tools.as_deref(),
        Json(&tool.param_defaults) as Json<&Map<String, Value>>,
        tool.order,
    )
    .execute(db)
    .await
    // A concurrent request deleted the tool.
    .on_constraint("tool_is_mapped", || Error::NotFound("Tool"))
    .map(drop)
}

fn reject_duplicates(tools: &[NewAgentTool]) -> Result<()> {
    let mut seen = HashSet::new();
    let doubles: Vec<FieldError> = tools
        .iter()
        .enumerate()
        .filter(|(_, tool)| !seen.insert(tool.tool))
        .map(|(place, _)| {
            let path = [place.to_string(), "tool_id".to_owned()];
            FieldError::new("body", path, "duplicate", "is there twice; remove one")
        })
        .collect();
    if doubles.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(doubles))
    }
}
