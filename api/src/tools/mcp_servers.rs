//! `/api/v1/tools-mcp-server-defs`: MCP servers, each with several tools for agents.
//!
//! Saving a server lists its tools. A server that is down is saved nevertheless, with the
//! reason in `sync_error`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::agents::usage::check_idle_unscoped;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::McpServerId;
use peal_shared::tools::mcp::McpClient as _;
use peal_shared::tools::servers::McpServer;
use peal_shared::tools::{servers, sweep};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::force::{ForceRemoval, ForceUpdate};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListResponse, OwnedListParams};
use crate::state::AppState;
use crate::tools::mcp_bodies::{McpServerBody, McpServers};
use crate::tools::{ActionMessage, reject_owner_change};

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(list_active))
        .routes(routes!(show, delete))
        .routes(routes!(delete_own))
        .routes(routes!(duplicate))
}

/// Routes that wait for a user's MCP server.
pub fn third_party_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(replace))
}

/// Create an MCP server
///
/// The server's tools are listed. When it does not answer, it is created with the reason in
/// `sync_error`.
#[utoipa::path(
    post,
    path = "/api/v1/tools-mcp-server-defs",
    tag = "MCP servers",
    request_body = McpServerBody,
    responses(
        (status = 201, body = McpServer),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user_id"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        CommonErrors
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<McpServerBody>,
) -> Result<(StatusCode, Json<McpServer>)> {
    let owner = body.user_id.unwrap_or(caller.user);
    let scope = caller.scope_of(owner)?;
    let new = body.validated(&context.outbound)?;
    let created = caller.run_once(context, move |context, caller| async move {
        // No transaction stays open during the request.
        let discovered = context.mcp.tools(caller.org, &new.endpoint()).await;
        let mut db = caller.begin_write(&context).await?;
        let keys = &context.config.keys;
        let server = servers::create(&mut db, keys, &scope, owner, &new, &discovered).await?;
        let note = audit_entry("mcp_server.create", &server).after(&server)?;
        db.commit(note, StatusCode::CREATED, Json(server)).await
    });
    created.await
}

/// List MCP servers
///
/// The newest first.
#[utoipa::path(
    get,
    path = "/api/v1/tools-mcp-server-defs",
    tag = "MCP servers",
    params(OwnedListParams),
    responses((status = 200, body = McpServers, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<OwnedListParams>,
) -> Result<ListResponse<McpServers>> {
    list_servers(&context, &caller, &query, false).await
}

/// List the MCP servers that are active
#[utoipa::path(
    get,
    path = "/api/v1/tools-mcp-server-defs/active/servers",
    tag = "MCP servers",
    params(OwnedListParams),
    responses((status = 200, body = McpServers, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list_active(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<OwnedListParams>,
) -> Result<ListResponse<McpServers>> {
    list_servers(&context, &caller, &query, true).await
}

async fn list_servers(
    context: &Context,
    caller: &Caller,
    query: &OwnedListParams,
    only_active: bool,
) -> Result<ListResponse<McpServers>> {
    let (scope, owners) = query.scope_and_owners(caller)?;
    let page = query.parse_page()?;
    let mut db = caller.begin_read(context).await?;
    let keys = &context.config.keys;
    let tools = servers::list(&mut db, keys, &scope, &owners, only_active, page).await?;
    Ok(ListResponse::from_slice(tools, |tools| McpServers {
        tools,
    }))
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
        CommonErrors
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<McpServerId>,
) -> Result<Json<McpServer>> {
    let mut db = caller.begin_read(&context).await?;
    let server = servers::find(&mut db, &context.config.keys, &caller.scope(), id).await?;
    Ok(Json(server))
}

/// Replace an MCP server
///
/// The server's tools are listed again. A secret that is sent as its mask stays unchanged.
/// When the URL's scheme, host or port changes, secrets must be sent again.
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
        CommonErrors
    )
)]
async fn replace(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<McpServerId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<McpServerBody>,
) -> Result<(StatusCode, Json<McpServer>)> {
    let mut fields = FieldErrors::default();
    reject_owner_change(&mut fields, body.user_id);
    fields.finish()?;

    let new = body.validated(&context.outbound)?;
    let (keys, scope) = (&context.config.keys, caller.scope());

    let mut db = caller.begin_read(&context).await?;
    let (before, stored) = servers::find_with_endpoint(&mut db, keys, &scope, id).await?;
    // 1. Refuse a server in use before its tools are listed; `replace` checks again under its lock.
    check_idle_unscoped(&mut db, id.0, query.requested()).await?;
    drop(db);

    // 2. List the tools without a transaction.
    let endpoint = new.endpoint().unmasked(&stored)?;
    let discovered = context.mcp.tools(before.org_id, &endpoint).await;

    // 3. Save under the lock.
    let mut db = caller.begin_write(&context).await?;
    let server = servers::replace(
        &mut db,
        keys,
        &scope,
        id,
        (&new, &discovered),
        query.requested(),
    )
    .await?;
    let note = audit_entry("mcp_server.update", &server)
        .before(&before)?
        .after(&server)?;
    db.commit(note, StatusCode::OK, Json(server)).await
}

/// Delete an MCP server
#[utoipa::path(
    delete,
    path = "/api/v1/tools-mcp-server-defs/{server_id}",
    tag = "MCP servers",
    params(("server_id" = McpServerId, Path), ForceRemoval),
    responses(
        (status = 200, body = ActionMessage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such server"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "It is in use, and force was not sent"),
        CommonErrors
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<McpServerId>,
    ValidQuery(query): ValidQuery<ForceRemoval>,
) -> Result<(StatusCode, Json<ActionMessage>)> {
    let force = query.force.unwrap_or_default();
    let mut db = caller.begin_write(&context).await?;
    let server = servers::delete(&mut db, &context.config.keys, &caller.scope(), id, force).await?;
    let note = audit_entry("mcp_server.delete", &server).before(&server)?;
    db.commit(
        note,
        StatusCode::OK,
        ActionMessage::json("MCP server deleted"),
    )
    .await
}

/// Delete all MCP servers of the caller
///
/// Deletes all or none: none when one is in use and `force` was not sent.
#[utoipa::path(
    delete,
    path = "/api/v1/tools-mcp-server-defs/user/all",
    tag = "MCP servers",
    params(ForceRemoval),
    responses(
        (status = 200, body = ActionMessage),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "One is in use, and force was not sent"),
        CommonErrors
    )
)]
async fn delete_own(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<ForceRemoval>,
) -> Result<(StatusCode, Json<ActionMessage>)> {
    let force = query.force.unwrap_or_default();
    let (scope, keys) = (caller.scope_of(caller.user)?, &context.config.keys);
    let mut db = caller.begin_write(&context).await?;
    let own = sweep::delete_all(&mut db, keys, &scope, force).await?;
    let note = AuditEntry::new("mcp_server.delete_all", caller.org, caller.user.0).before(&own)?;
    let message = format!("{} MCP servers deleted", own.len());
    db.commit(note, StatusCode::OK, ActionMessage::json(message))
        .await
}

/// Clone an MCP server
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
        CommonErrors
    )
)]
async fn duplicate(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<McpServerId>,
) -> Result<(StatusCode, Json<McpServer>)> {
    let mut db = caller.begin_write(&context).await?;
    let copy = servers::duplicate(&mut db, &context.config.keys, &caller.scope(), id).await?;
    let note = audit_entry("mcp_server.clone", &copy).after(&copy)?;
    db.commit(note, StatusCode::CREATED, Json(copy)).await
}

/// Audit entry of a change of a server.
pub fn audit_entry(action: &'static str, server: &McpServer) -> AuditEntry {
    AuditEntry::new(action, server.org_id, server.id.0)
}
