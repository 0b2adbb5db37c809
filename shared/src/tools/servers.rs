//! Stored MCP servers, each with its last list of tools.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use utoipa::ToSchema;

pub use super::mcp::Transport;
use super::mcp::{McpEndpoint, McpTool};
use super::{EndpointAuth, EndpointCredentials, org_of, usage};
use crate::access::owner_filter::OwnerFilter;
use crate::access::{Role, Scope};
use crate::agents::usage::check_idle_unscoped;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{McpServerId, OrgId, UserId};
use crate::platform::page::{Page, PageSlice};
use crate::platform::secret::KeyRing;

const TABLE: &str = "mcp_servers";

/// An MCP server. Secrets are masked.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000003", "user_id": "0198c0de-0000-7000-8000-000000000002", "name": "Shop", "server_url": "https://mcp.shop.example.com/mcp",
    "transport": "streamable_http", "headers": {}, "auth": {"type": "none"}, "timeout_seconds": 10,
    "allowed_tools": null, "is_active": true, "sync_error": null, "last_synced_at": "2026-06-09T08:00:00Z",
    "discovered_tools": [{"name": "find_order", "description": "Finds an order", "input_schema": {"type": "object"}}],
    "created_at": "2026-06-09T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}))]
pub struct McpServer {
    pub id: McpServerId,
    pub user_id: UserId,
    pub name: String,
    pub server_url: String,
    pub transport: Transport,
    pub headers: BTreeMap<String, String>,
    pub auth: EndpointAuth,
    pub timeout_seconds: i32,
    /// Names of the tools that agents may use; null allows all.
    pub allowed_tools: Option<Vec<String>>,
    pub is_active: bool,
    /// Tools from the server's last list.
    pub discovered_tools: Vec<McpTool>,
    pub last_synced_at: Option<DateTime<Utc>>,
    /// Reason why the last attempt to list the tools failed.
    pub sync_error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// Fields of a server that its owner sets.
#[derive(Clone, Debug)]
pub struct NewMcpServer {
    pub name: String,
    pub server_url: String,
    pub transport: Transport,
    pub credentials: EndpointCredentials,
    pub timeout_seconds: i32,
    pub allowed_tools: Option<Vec<String>>,
    pub is_active: bool,
}

impl NewMcpServer {
    /// Connection settings of the server.
    #[must_use]
    pub fn endpoint(&self) -> McpEndpoint {
        endpoint(
            (&self.server_url, self.transport),
            self.credentials.clone(),
            self.timeout_seconds,
        )
    }
}

/// Tools that a server listed, or a message for its owner.
pub type DiscoveryResult = std::result::Result<Vec<McpTool>, String>;

struct McpServerRow {
    id: McpServerId,
    org_id: OrgId,
    user_id: UserId,
    name: String,
    server_url: String,
    transport: Transport,
    credentials: Vec<u8>,
    timeout_seconds: i32,
    allowed_tools: Option<Vec<String>>,
    is_active: bool,
    discovered_tools: Json<Vec<McpTool>>,
    last_synced_at: Option<DateTime<Utc>>,
    sync_error: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl McpServerRow {
    /// Opens the credentials and masks them in the server.
    fn open(self, keys: &KeyRing) -> Result<(McpServer, EndpointCredentials)> {
        let sealed = &self.credentials;
        let credentials = EndpointCredentials::opened(keys, TABLE, self.org_id, self.id.0, sealed)?;
        let shown = credentials.masked();
        let server = McpServer {
            id: self.id,
            user_id: self.user_id,
            name: self.name,
            server_url: self.server_url,
            transport: self.transport,
            headers: shown.headers,
            auth: shown.auth,
            timeout_seconds: self.timeout_seconds,
            allowed_tools: self.allowed_tools,
            is_active: self.is_active,
            discovered_tools: self.discovered_tools.0,
            last_synced_at: self.last_synced_at,
            sync_error: self.sync_error,
            created_at: self.created_at,
            updated_at: self.updated_at,
            org_id: self.org_id,
        };
        Ok((server, credentials))
    }
}

fn endpoint(
    (url, transport): (&str, Transport),
    credentials: EndpointCredentials,
    timeout_seconds: i32,
) -> McpEndpoint {
    McpEndpoint {
        url: url.to_owned(),
        transport,
        credentials,
        timeout: Duration::from_secs(u64::try_from(timeout_seconds).unwrap_or(1)),
    }
}

/// Creates a server for `owner`, with the result of its discovery.
///
/// # Errors
/// [`Error::NotFound`] for an owner outside the scope, [`Error::Invalid`] for a masked secret.
pub async fn create(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    owner: UserId,
    new: &NewMcpServer,
    discovered: &DiscoveryResult,
) -> Result<McpServer> {
    let org = org_of(db, scope, owner).await?;
    let id = McpServerId::new();
    let sealed = seal(keys, org, id, &new.credentials)?;

    sqlx::query!(
        "insert into mcp_servers (id, org_id, user_id, name, server_url, credentials, timeout_seconds, allowed_tools,
                                  is_active, transport)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        id as McpServerId,
        org as OrgId,
        owner as UserId,
        new.name,
        new.server_url,
        sealed,
        new.timeout_seconds,
        new.allowed_tools.as_deref(),
        new.is_active,
        new.transport as Transport,
    )
    .execute(&mut *db)
    .await?;

    store_discovery(db, keys, scope, id, discovered).await
}

/// Finds a server in the scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
) -> Result<McpServer> {
    Ok(find_with_endpoint(db, keys, scope, id).await?.0)
}

/// Finds a server in the scope, with its connection settings.
///
/// # Errors
/// As [`find`].
pub async fn find_with_endpoint(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
) -> Result<(McpServer, McpEndpoint)> {
    let (server, credentials) = sqlx::query_as!(
        McpServerRow,
        r#"select id as "id: McpServerId", org_id as "org_id: OrgId", user_id as "user_id: UserId", name, server_url,
                  transport as "transport: Transport", credentials, timeout_seconds, allowed_tools, is_active,
                  discovered_tools as "discovered_tools: Json<Vec<McpTool>>", last_synced_at, sync_error, created_at,
                  updated_at
           from mcp_servers
           where id = $1
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or user_id = $3)"#,
        id as McpServerId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("MCP server"))?
    .open(keys)?;

    let endpoint = endpoint(
        (&server.server_url, server.transport),
        credentials,
        server.timeout_seconds,
    );
    Ok((server, endpoint))
}

/// Lists the servers in the scope, the newest first.
pub async fn list(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    owners: &OwnerFilter,
    only_active: bool,
    page: Page,
) -> Result<PageSlice<McpServer>> {
    let rows = sqlx::query_as!(
        McpServerRow,
        r#"select id as "id: McpServerId", org_id as "org_id: OrgId", user_id as "user_id: UserId", name, server_url,
                  transport as "transport: Transport", credentials, timeout_seconds, allowed_tools, is_active,
                  discovered_tools as "discovered_tools: Json<Vec<McpTool>>", last_synced_at, sync_error, created_at,
                  updated_at
           from mcp_servers
           where ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or user_id = $2)
             and (is_active or not $3)
             and ($4::uuid[] is null or org_id = any($4))
             and ($5::uuid[] is null or user_id = any($5))
             and ($6::text[] is null
                  or exists (select from users u where u.id = mcp_servers.user_id and u.role = any($6)))
           order by id desc
           limit $7
           offset $8"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        only_active,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    page.slice(rows).try_map(|row| Ok(row.open(keys)?.0))
}

/// Replaces the fields that a server's owner sets, and stores the result of its discovery.
///
/// # Errors
/// As [`create`], and [`Error::NotFound`] for a server outside the scope; [`Error::Invalid`] also
/// for a mask when the address changes; [`Error::Conflict`] while a running batch or a call uses
/// it, unless `force`.
pub async fn replace(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
    (new, discovered): (&NewMcpServer, &DiscoveryResult),
    force: bool,
) -> Result<McpServer> {
    lock(db, scope, id).await?;
    check_idle_unscoped(db, id.0, force).await?;

    let (before, stored) = find_with_endpoint(db, keys, scope, id).await?;
    let credentials = new.endpoint().unmasked(&stored)?.credentials;
    let sealed = seal(keys, before.org_id, id, &credentials)?;

    sqlx::query!(
        "update mcp_servers
         set name = $2, server_url = $3, credentials = $4, timeout_seconds = $5, allowed_tools = $6, is_active = $7,
             transport = $8, updated_at = now()
         where id = $1",
        id as McpServerId,
        new.name,
        new.server_url,
        sealed,
        new.timeout_seconds,
        new.allowed_tools.as_deref(),
        new.is_active,
        new.transport as Transport,
    )
    .execute(&mut *db)
    .await?;

    store_discovery(db, keys, scope, id, discovered).await
}

/// Stores the result of a new discovery of a server.
///
/// # Errors
/// [`Error::NotFound`] for a server outside the scope, [`Error::Conflict`] while a running batch
/// or a call uses it, unless `force`.
pub async fn sync(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
    discovered: &DiscoveryResult,
    force: bool,
) -> Result<McpServer> {
    lock(db, scope, id).await?;
    check_idle_unscoped(db, id.0, force).await?;
    store_discovery(db, keys, scope, id, discovered).await
}

/// Stores the result of a discovery. The previous list of tools stays when the discovery failed.
async fn store_discovery(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
    discovered: &DiscoveryResult,
) -> Result<McpServer> {
    sqlx::query!(
        "update mcp_servers
         set discovered_tools = coalesce($4, discovered_tools),
             last_synced_at = case when $4::jsonb is null then last_synced_at else now() end,
             sync_error = $5
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)",
        id as McpServerId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        discovered.as_ref().ok().map(Json) as Option<Json<&Vec<McpTool>>>,
        discovered.as_ref().err(),
    )
    .execute(&mut *db)
    .await?;
    find(db, keys, scope, id).await
}

/// Sets which of a server's tools agents may use; `None` allows all.
///
/// # Errors
/// [`Error::NotFound`] for a server outside the scope, [`Error::Invalid`] for a tool that it does
/// not offer, [`Error::Conflict`] while a running batch or a call uses it, unless `force`.
pub async fn set_allowed_tools(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
    allowed: Option<&[String]>,
    force: bool,
) -> Result<McpServer> {
    lock(db, scope, id).await?;
    check_idle_unscoped(db, id.0, force).await?;

    let server = find(db, keys, scope, id).await?;
    let offers = |name: &String| {
        server
            .discovered_tools
            .iter()
            .any(|tool| &tool.name == name)
    };
    if let Some(unknown) = allowed.and_then(|names| names.iter().find(|name| !offers(name))) {
        return Err(Error::field(
            "allowed_tools",
            "unknown_tool",
            format!(
                "the server does not offer {unknown:?}; refresh its tools with POST fetch_mcp_tools"
            ),
        ));
    }

    sqlx::query!(
        "update mcp_servers set allowed_tools = $2, updated_at = now() where id = $1",
        id as McpServerId,
        allowed,
    )
    .execute(&mut *db)
    .await?;
    find(db, keys, scope, id).await
}

/// Copies a server for the same owner.
///
/// # Errors
/// [`Error::NotFound`] for a server outside the scope.
pub async fn duplicate(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
) -> Result<McpServer> {
    let (server, endpoint) = find_with_endpoint(db, keys, scope, id).await?;
    let copy = McpServerId::new();
    let sealed = seal(keys, server.org_id, copy, &endpoint.credentials)?;
    sqlx::query!(
        "insert into mcp_servers (id, org_id, user_id, name, server_url, transport, credentials, timeout_seconds,
                                  allowed_tools, is_active, discovered_tools, last_synced_at, sync_error)
         select $2, org_id, user_id, left(name, 193) || ' (copy)', server_url, transport, $3, timeout_seconds,
                allowed_tools, is_active, discovered_tools, last_synced_at, sync_error
         from mcp_servers
         where id = $1",
        id as McpServerId,
        copy as McpServerId,
        sealed,
    )
    .execute(&mut *db)
    .await?;
    find(db, keys, scope, copy).await
}

/// Deletes a server.
///
/// # Errors
/// [`Error::NotFound`] for a server outside the scope, [`Error::Conflict`] for one that agents
/// have, unless `force`.
pub async fn delete(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: McpServerId,
    force: bool,
) -> Result<McpServer> {
    lock(db, scope, id).await?;
    let server = find(db, keys, scope, id).await?;
    usage::remove_uses(db, scope, id.0, force).await?;
    sqlx::query!("delete from mcp_servers where id = $1", id as McpServerId)
        .execute(db)
        .await?;
    Ok(server)
}

async fn lock(db: &mut PgConnection, scope: &Scope, id: McpServerId) -> Result<()> {
    sqlx::query!(
        "select
         from mcp_servers
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)
         for update",
        id as McpServerId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("MCP server"))?;
    Ok(())
}

/// Reseals all credentials that are under an earlier master key under the current one, of all
/// organisations: the platform's operator rotates. Returns their number.
///
/// # Errors
/// [`Error::Unexpected`] when some open under no configured key.
pub async fn reseal_unscoped(db: &mut PgConnection, keys: &KeyRing) -> Result<u64> {
    let servers = sqlx::query!(
        r#"select id as "id: McpServerId", org_id as "org_id: OrgId", credentials
           from mcp_servers
           order by id
           for no key update"#
    )
    .fetch_all(&mut *db)
    .await?;

    let mut resealed = 0;
    for server in servers {
        let (org, id) = (server.org_id, server.id);
        if let Some(sealed) =
            EndpointCredentials::resealed(keys, TABLE, org, id.0, &server.credentials)?
        {
            sqlx::query!(
                "update mcp_servers set credentials = $2 where id = $1",
                id as McpServerId,
                sealed,
            )
            .execute(&mut *db)
            .await?;
            resealed += 1;
        }
    }
    Ok(resealed)
}

fn seal(
    keys: &KeyRing,
    org: OrgId,
    id: McpServerId,
    credentials: &EndpointCredentials,
) -> Result<Vec<u8>> {
    let whole = credentials.clone().without_masks()?;
    whole.sealed(keys, TABLE, org, id.0)
}
