//! Bulk deletion of MCP servers.

use sqlx::PgConnection;

use super::servers;
use super::servers::McpServer;
use crate::access::Scope;
use crate::platform::error::Result;
use crate::platform::ids::{McpServerId, OrgId, UserId};
use crate::platform::secret::KeyRing;

/// Deletes all servers in the scope, as [`servers::delete`] does.
///
/// # Errors
/// [`crate::Error::Conflict`] when agents use one of them, unless `force`.
pub async fn delete_all(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    force: bool,
) -> Result<Vec<McpServer>> {
    // Locks the rows, so that no concurrent request deletes one of them.
    let ids = sqlx::query_scalar!(
        r#"select id as "id: McpServerId"
           from mcp_servers
           where ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or user_id = $2)
           order by id desc
           for update"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_all(&mut *db)
    .await?;

    let mut deleted = Vec::with_capacity(ids.len());
    for id in ids {
        deleted.push(servers::delete(db, keys, scope, id, force).await?);
    }
    Ok(deleted)
}
