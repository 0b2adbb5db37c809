//! `/api/v1/tools-mcp-server-defs`: the tools of MCP servers, and the filter of allowed tools.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::agents::usage::check_idle_unscoped;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::McpServerId;
use peal_shared::tools::mcp::McpClient as _;
use peal_shared::tools::servers;
use peal_shared::tools::servers::McpServer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::force::ForceUpdate;
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::state::AppState;
use crate::tools::mcp_bodies::{
    AllowedTools, FetchTools, FetchedTools, McpServerSource, check_allowed_tools,
};
use crate::tools::mcp_servers::audit_entry;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(filter))
}

/// Routes that wait for a user's MCP server.
pub fn third_party_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(fetch))
}

/// List the tools of an MCP server
///
/// Either a saved server, by `tool_id`, whose list is updated, or one at `server_url`, of
/// which nothing is saved.
#[utoipa::path(
    post,
    path = "/api/v1/tools-mcp-server-defs/fetch_mcp_tools",
    tag = "MCP servers",
    params(ForceUpdate),
    request_body = FetchTools,
    responses(
        (status = 200, body = FetchedTools),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "Neither or both of tool_id and server_url"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such server"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the saved server, and force_update was not sent; or the Idempotency-Key is in use"),
        CommonErrors
    )
)]
async fn fetch(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<FetchTools>,
) -> Result<(StatusCode, Json<FetchedTools>)> {
    let (asked, force) = (body.source(&context.outbound)?, query.requested());

    let fetched = caller.run_once(context, move |context, caller| async move {
        let (keys, scope) = (&context.config.keys, caller.scope());

        let (org, subject, endpoint, saved) = match asked {
            McpServerSource::Saved(id) => {
                let mut db = caller.begin_read(&context).await?;
                let found = servers::find_with_endpoint(&mut db, keys, &scope, id).await?;
                check_idle_unscoped(&mut db, id.0, force).await?;
                (found.0.org_id, id.0, found.1, Some(id))
            }
            McpServerSource::Unsaved(new) => (caller.org, caller.user.0, new.endpoint(), None),
        };

        let discovered = context.mcp.tools(org, &endpoint).await;

        let mut db = caller.begin_write(&context).await?;
        if let Some(id) = saved {
            servers::sync(&mut db, keys, &scope, id, &discovered, force).await?;
        }

        let fetched = FetchedTools::from_result(discovered);
        let note = AuditEntry::new("mcp_server.fetch", org, subject);
        db.commit(note, StatusCode::OK, Json(fetched)).await
    });
    fetched.await
}

/// Choose which of a server's tools agents may use
#[utoipa::path(
    put,
    path = "/api/v1/tools-mcp-server-defs/{server_id}/filter-tools",
    tag = "MCP servers",
    params(("server_id" = McpServerId, Path), ForceUpdate),
    request_body = AllowedTools,
    responses(
        (status = 200, body = McpServer),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such server"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses it, and force_update was not sent"),
        CommonErrors
    )
)]
async fn filter(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<McpServerId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<AllowedTools>,
) -> Result<(StatusCode, Json<McpServer>)> {
    let mut fields = FieldErrors::default();
    check_allowed_tools(&mut fields, body.allowed_tools.as_deref());
    fields.finish()?;

    let (keys, scope) = (&context.config.keys, caller.scope());
    let mut db = caller.begin_write(&context).await?;
    let before = servers::find(&mut db, keys, &scope, id).await?;

    let (allowed, force) = (body.allowed_tools.as_deref(), query.requested());
    let server = servers::set_allowed_tools(&mut db, keys, &scope, id, allowed, force).await?;

    let note = audit_entry("mcp_server.filter", &server)
        .before(&before)?
        .after(&server)?;
    db.commit(note, StatusCode::OK, Json(server)).await
}
