//! Uses of a tool or a server that block its deletion: agents that have it, rules and workflows
//! that call it.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::access::Scope;
use crate::agents::usage::describe_running_unscoped;
use crate::platform::error::{Error, Result};
use crate::platform::ids::OrgId;

/// Fails while something uses the tool or server `id`; with `force`, removes the uses: agents
/// lose it, and the rules and workflows that call it become inactive.
///
/// # Errors
/// [`Error::Conflict`] with the number of uses and the names of running batches.
pub(super) async fn remove_uses(
    db: &mut PgConnection,
    scope: &Scope,
    id: Uuid,
    force: bool,
) -> Result<()> {
    let uses = sqlx::query!(
        r#"select (select count(*) from agent_tools
                   where (tool_id = $1 or mcp_server_id = $1) and ($2::uuid is null or org_id = $2)) as "agents!",
                  (select count(*) from analysis_rules
                   where tool_id = $1 and ($2::uuid is null or org_id = $2)) as "rules!",
                  (select count(*) from workflow_tools
                   where tool_id = $1 and ($2::uuid is null or org_id = $2)) as "workflows!""#,
        id,
        scope.org() as Option<OrgId>,
    )
    .fetch_one(&mut *db)
    .await?;

    if uses.agents + uses.rules + uses.workflows == 0 {
        return Ok(());
    }
    if !force {
        let running = describe_running_unscoped(db, id).await?;
        let running = running.map_or_else(String::new, |who| format!("; {who}"));
        return Err(Error::conflict(
            "tool_in_use",
            format!(
                "{} agent(s), {} analysis rule(s) and {} workflow(s) use this{running}: remove it from them, \
                 or send force=true, which removes it from these agents and deactivates these rules and workflows",
                uses.agents, uses.rules, uses.workflows
            ),
        ));
    }

    sqlx::query!(
        "delete from agent_tools
         where (tool_id = $1 or mcp_server_id = $1)
           and ($2::uuid is null or org_id = $2)",
        id,
        scope.org() as Option<OrgId>,
    )
    .execute(&mut *db)
    .await?;

    sqlx::query!(
        "update analysis_rules
         set tool_id = null, is_active = is_active and analysis_type <> 'integration', updated_at = now()
         where tool_id = $1
           and ($2::uuid is null or org_id = $2)",
        id,
        scope.org() as Option<OrgId>,
    )
    .execute(&mut *db)
    .await?;

    sqlx::query!(
        "with untied as (
             delete from workflow_tools
             where tool_id = $1
               and ($2::uuid is null or org_id = $2)
             returning workflow_id
         )
         update workflows
         set is_active = false, updated_at = now()
         where id in (select workflow_id from untied)",
        id,
        scope.org() as Option<OrgId>,
    )
    .execute(db)
    .await?;
    Ok(())
}
