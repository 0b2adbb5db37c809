//! `/api/v1/tools-mcp-server-defs`: MCP servers, each of which offers agents several tools.
//!
//! Saving a server asks it what it offers. A server that is down is saved all the same, with
//! the reason in `sync_error`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::audit::Note;
use peal_shared::context::Context;
use peal_shared::egress::Gate;
use peal_shared::ids::{McpServerId, UserId};
use peal_shared::tools::mcp::McpClient as _;
use peal_shared::tools::servers::{self, McpServer, NewMcpServer, Transport};
use peal_shared::tools::sweep;
use peal_shared::tools::{Auth, Credentials};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::error::Result;
use crate::extract::{Fields, Ids, ValidJson, ValidQuery};
use crate::in_use::{Force, ForceUpdate};
use crate::openapi::{ProblemDocument, Refusals};
use crate::page::{Listed, Whose};
use crate::state::Api;
use crate::tools::{Told, check_credentials, check_owner_stays, yes};

const MAX_ALLOWED: usize = 200;

pub fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(list_active))
        .routes(routes!(show, delete))
        .routes(routes!(delete_own))
        .routes(routes!(duplicate))
}

/// What waits for a server to say what it offers.
pub fn outside_router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(replace))
}

/// Create an MCP server
///
/// The server is asked what it offers. When it does not answer, it is created with the reason
/// in `sync_error`.
#[utoipa::path(
    post,
    path = "/api/v1/tools-mcp-server-defs",
    tag = "MCP servers",
    request_body = McpServerBody,
    responses(
        (status = 201, body = McpServer),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user_id"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        Refusals
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<McpServerBody>,
) -> Result<(StatusCode, Json<McpServer>)> {
    let owner = body.user_id.unwrap_or(caller.user);
    let scope = caller.scope_of(owner)?;
    let new = body.validated(&context.gate)?;
    // Asked without a transaction; a request that was answered before ends here.
    drop(caller.change(&context).await?);
    let discovered = context.mcp.tools(caller.org, &new.endpoint()).await;
    let mut db = caller.change(&context).await?;
    let keys = &context.config.keys;
    let server = servers::create(&mut db, keys, &scope, owner, &new, &discovered).await?;
    let note = note("mcp_server.create", &server).after(&server)?;
    db.commit(note, StatusCode::CREATED, Json(server)).await
}

/// List MCP servers
///
/// The newest first.
#[utoipa::path(
    get,
    path = "/api/v1/tools-mcp-server-defs",
    tag = "MCP servers",
    params(Whose),
    responses((status = 200, body = McpServers, headers(("X-Truncated" = bool, description = "Whether there are more behind these"))), Refusals)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<Whose>,
) -> Result<Listed<McpServers>> {
    all(&context, &caller, &query, false).await
}

/// List the MCP servers that are active
#[utoipa::path(
    get,
    path = "/api/v1/tools-mcp-server-defs/active/servers",
    tag = "MCP servers",
    params(Whose),
    responses((status = 200, body = McpServers, headers(("X-Truncated" = bool, description = "Whether there are more behind these"))), Refusals)
)]
async fn list_active(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<Whose>,
) -> Result<Listed<McpServers>> {
    all(&context, &caller, &query, true).await
}

async fn all(
    context: &Context,
    caller: &Caller,
    query: &Whose,
    only_active: bool,
) -> Result<Listed<McpServers>> {
    let (scope, owners) = query.rows(caller)?;
    let page = query.page()?;
    let mut db = caller.read(context).await?;
    let keys = &context.config.keys;
    let tools = servers::list(&mut db, keys, &scope, &owners, only_active, page).await?;
    Ok(Listed::of(tools, |tools| McpServers { tools }))
}

/// Show an MCP server
#[utoipa::path(
    get,
    path = "/api/v1/tools-mcp-server-defs/{server_id}",
    tag = "MCP servers",
    params(("server_id" = McpServerId, Path)),
    responses(
        (status = 200, body = McpServer),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such server"),
        Refusals
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<McpServerId>,
) -> Result<Json<McpServer>> {
    let mut db = caller.read(&context).await?;
    let server = servers::find(&mut db, &context.config.keys, &caller.scope(), id).await?;
    Ok(Json(server))
}

/// Replace an MCP server
///
/// The server is asked again what it offers. A secret that is sent as its mask stays as it is.
/// When the URL gets another scheme, host or port, secrets have to be sent again.
#[utoipa::path(
    put,
    path = "/api/v1/tools-mcp-server-defs/{server_id}",
    tag = "MCP servers",
    params(("server_id" = McpServerId, Path), ForceUpdate),
    request_body = McpServerBody,
    responses(
        (status = 200, body = McpServer),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such server"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses it, and force_update was not sent"),
        Refusals
    )
)]
async fn replace(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<McpServerId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<McpServerBody>,
) -> Result<(StatusCode, Json<McpServer>)> {
    let mut fields = Fields::default();
    check_owner_stays(&mut fields, body.user_id);
    fields.finish()?;
    let new = body.validated(&context.gate)?;
    let (keys, scope) = (&context.config.keys, caller.scope());
    let mut db = caller.read(&context).await?;
    let (before, stored) = servers::find_with_endpoint(&mut db, keys, &scope, id).await?;
    drop(db);
    let endpoint = new.endpoint().unmasked(&stored)?;
    let discovered = context.mcp.tools(before.org_id, &endpoint).await;
    let mut db = caller.change(&context).await?;
    let server = servers::replace(
        &mut db,
        keys,
        &scope,
        id,
        (&new, &discovered),
        query.is_said(),
    )
    .await?;
    let note = note("mcp_server.update", &server)
        .before(&before)?
        .after(&server)?;
    db.commit(note, StatusCode::OK, Json(server)).await
}

/// Delete an MCP server
#[utoipa::path(
    delete,
    path = "/api/v1/tools-mcp-server-defs/{server_id}",
    tag = "MCP servers",
    params(("server_id" = McpServerId, Path), Force),
    responses(
        (status = 200, body = Told),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such server"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "It is in use, and force was not sent"),
        Refusals
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<McpServerId>,
    ValidQuery(query): ValidQuery<Force>,
) -> Result<(StatusCode, Json<Told>)> {
    let force = query.force.unwrap_or_default();
    let mut db = caller.change(&context).await?;
    let server = servers::delete(&mut db, &context.config.keys, &caller.scope(), id, force).await?;
    let note = note("mcp_server.delete", &server).before(&server)?;
    db.commit(note, StatusCode::OK, Told::that("MCP server deleted"))
        .await
}

/// Delete all MCP servers of the caller
///
/// All or none: when one is in use, and `force` was not sent, none is deleted.
#[utoipa::path(
    delete,
    path = "/api/v1/tools-mcp-server-defs/user/all",
    tag = "MCP servers",
    params(Force),
    responses(
        (status = 200, body = Told),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "One is in use, and force was not sent"),
        Refusals
    )
)]
async fn delete_own(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<Force>,
) -> Result<(StatusCode, Json<Told>)> {
    let force = query.force.unwrap_or_default();
    let (scope, keys) = (caller.scope_of(caller.user)?, &context.config.keys);
    let mut db = caller.change(&context).await?;
    let own = sweep::delete_all(&mut db, keys, &scope, force).await?;
    let note = Note::new("mcp_server.delete_all", caller.org, caller.user.0).before(&own)?;
    let told = format!("{} MCP servers deleted", own.len());
    db.commit(note, StatusCode::OK, Told::that(told)).await
}

/// Copy an MCP server
///
/// The copy has the same owner and credentials, and is mapped to no agent.
#[utoipa::path(
    post,
    path = "/api/v1/tools-mcp-server-defs/{server_id}/clone",
    tag = "MCP servers",
    params(("server_id" = McpServerId, Path)),
    responses(
        (status = 201, body = McpServer),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such server"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        Refusals
    )
)]
async fn duplicate(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<McpServerId>,
) -> Result<(StatusCode, Json<McpServer>)> {
    let mut db = caller.change(&context).await?;
    let copy = servers::duplicate(&mut db, &context.config.keys, &caller.scope(), id).await?;
    let note = note("mcp_server.clone", &copy).after(&copy)?;
    db.commit(note, StatusCode::CREATED, Json(copy)).await
}

/// A change of a server, for the audit log.
pub fn note(action: &'static str, server: &McpServer) -> Note {
    Note::new(action, server.org_id, server.id.0)
}

/// An MCP server as its owner writes it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Shop", "server_url": "https://mcp.shop.example.com/mcp",
    "auth": {"type": "bearer", "token": "the shop's token"}, "timeout_seconds": 10
}))]
pub struct McpServerBody {
    pub name: String,
    pub server_url: String,
    #[serde(default = "streamable_http")]
    pub transport: Transport,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub auth: Auth,
    /// How long asking the server may take, 1 to 15.
    #[serde(default = "ten")]
    pub timeout_seconds: i32,
    /// Names of the tools that agents may use; null allows all.
    pub allowed_tools: Option<Vec<String>>,
    #[serde(default = "yes")]
    pub is_active: bool,
    /// Whose server it will be; an administrator may name a member.
    pub user_id: Option<UserId>,
}

pub fn streamable_http() -> Transport {
    Transport::StreamableHttp
}

pub fn ten() -> i32 {
    10
}

impl McpServerBody {
    pub fn validated(self, gate: &Gate) -> Result<NewMcpServer> {
        let mut fields = Fields::default();
        let name = self.name.trim();
        fields.check_text(name, "name", 1, 200);
        fields.check_range(self.timeout_seconds, "timeout_seconds", 1, 15);
        if let Err(why) = gate.target(&self.server_url) {
            fields.check(false, "server_url", "url", why);
        }
        check_allowed(&mut fields, self.allowed_tools.as_deref());
        let credentials = Credentials {
            headers: self.headers,
            auth: self.auth,
        };
        check_credentials(&mut fields, &credentials);
        fields.finish()?;
        Ok(NewMcpServer {
            name: name.to_owned(),
            server_url: self.server_url,
            transport: self.transport,
            credentials,
            timeout_seconds: self.timeout_seconds,
            allowed_tools: self.allowed_tools,
            is_active: self.is_active,
        })
    }
}

pub fn check_allowed(fields: &mut Fields, names: Option<&[String]>) {
    let names = names.unwrap_or_default();
    fields.check(
        names.len() <= MAX_ALLOWED,
        "allowed_tools",
        "length",
        "must be 200 names or fewer",
    );
    for (place, name) in names.iter().enumerate() {
        fields.check_text(name, &format!("allowed_tools.{place}"), 1, 200);
    }
}

#[derive(Serialize, ToSchema)]
struct McpServers {
    tools: Vec<McpServer>,
}
