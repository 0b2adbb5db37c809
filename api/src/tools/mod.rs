//! `/api/v1/tool-endpoint-defs`: HTTP tools, which agents call during and after a conversation.

pub mod mcp_bodies;
pub mod mcp_servers;
pub mod mcp_tools;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::access::Credential;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::outbound::OutboundClient;
use peal_shared::platform::ids::{ToolId, UserId};
use peal_shared::tools::request::ToolExecution;
use peal_shared::tools::{
    EndpointAuth, EndpointCredentials, NewTool, Tool, ToolMethod, definitions, request, schema,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, OptionalJson, PathIds, ValidJson, ValidQuery};
use crate::http::force::{ForceRemoval, ForceUpdate};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListResponse, OwnedListParams};
use crate::state::AppState;

const MAX_OUTPUT_FIELDS: usize = 50;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(list_active))
        .routes(routes!(show, replace, delete))
}

/// Routes that wait for a tool's endpoint.
pub fn third_party_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(test))
}

/// Create an HTTP tool
///
/// The secrets in `auth` and in secret-like headers are encrypted and never shown again.
#[utoipa::path(
    post,
    path = "/api/v1/tool-endpoint-defs",
    tag = "Tools",
    request_body = ToolBody,
    responses(
        (status = 201, body = Tool),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user_id"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The owner has a tool of this name"),
        CommonErrors
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<ToolBody>,
) -> Result<(StatusCode, Json<Tool>)> {
    let owner = body.user_id.unwrap_or(caller.user);
    let scope = caller.scope_of(owner)?;
    let new = body.validated(&context.outbound)?;
    let mut db = caller.begin_write(&context).await?;
    let tool = definitions::create(&mut db, &context.config.keys, &scope, owner, &new).await?;
    let note = audit_entry("tool.create", &tool).after(&tool)?;
    db.commit(note, StatusCode::CREATED, Json(tool)).await
}

/// List HTTP tools
///
/// The newest first.
#[utoipa::path(
    get,
    path = "/api/v1/tool-endpoint-defs",
    tag = "Tools",
    params(OwnedListParams),
    responses((status = 200, body = ToolList, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<OwnedListParams>,
) -> Result<ListResponse<ToolList>> {
    list_tools(&context, &caller, &query, false).await
}

/// List the HTTP tools that are active
#[utoipa::path(
    get,
    path = "/api/v1/tool-endpoint-defs/active/endpoints",
    tag = "Tools",
    params(OwnedListParams),
    responses((status = 200, body = ToolList, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list_active(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<OwnedListParams>,
) -> Result<ListResponse<ToolList>> {
    list_tools(&context, &caller, &query, true).await
}

async fn list_tools(
    context: &Context,
    caller: &Caller,
    query: &OwnedListParams,
    only_active: bool,
) -> Result<ListResponse<ToolList>> {
    let (scope, owners) = query.scope_and_owners(caller)?;
    let page = query.parse_page()?;
    let mut db = caller.begin_read(context).await?;
    let keys = &context.config.keys;
    let tools = definitions::list(&mut db, keys, &scope, &owners, only_active, page).await?;
    Ok(ListResponse::from_slice(tools, |tools| ToolList { tools }))
}

/// Show an HTTP tool
///
/// Secrets are masked. The owner may see them with `reveal_secret=true` in a session.
#[utoipa::path(
    get,
    path = "/api/v1/tool-endpoint-defs/{tool_id}",
    tag = "Tools",
    params(("tool_id" = ToolId, Path), RevealParams),
    responses(
        (status = 200, body = Tool),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such tool"),
        CommonErrors
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<ToolId>,
    ValidQuery(query): ValidQuery<RevealParams>,
) -> Result<Json<Tool>> {
    let keys = &context.config.keys;
    if !query.reveal_secret.unwrap_or_default() {
        let mut db = caller.begin_read(&context).await?;
        return Ok(Json(
            definitions::find(&mut db, keys, &caller.scope(), id).await?,
        ));
    }

    let mut db = caller.begin_write(&context).await?;
    let (mut tool, credentials) =
        definitions::find_with_credentials(&mut db, keys, &caller.scope(), id).await?;
    if tool.user_id != caller.user || caller.credential != Credential::Session {
        return Err(Error::Forbidden(
            "Forbidden: only the owner of a tool sees its secrets, signed in with a session".into(),
        )
        .into());
    }

    let note = audit_entry("tool.reveal", &tool);
    tool.headers = credentials.headers;
    tool.auth = credentials.auth;
    let (_, tool) = db.commit(note, StatusCode::OK, Json(tool)).await?;
    Ok(tool)
}

/// Replace an HTTP tool
///
/// A secret that is sent as its mask stays unchanged. When the URL's scheme, host or port
/// changes, secrets must be sent again.
#[utoipa::path(
    put,
    path = "/api/v1/tool-endpoint-defs/{tool_id}",
    tag = "Tools",
    params(("tool_id" = ToolId, Path), ForceUpdate),
    request_body = ToolBody,
    responses(
        (status = 200, body = Tool),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such tool"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The owner has another tool of this name; or a running batch or a call uses it, and force_update was not sent"),
        CommonErrors
    )
)]
async fn replace(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<ToolId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<ToolBody>,
) -> Result<(StatusCode, Json<Tool>)> {
    let mut fields = FieldErrors::default();
    reject_owner_change(&mut fields, body.user_id);
    fields.finish()?;
    let new = body.validated(&context.outbound)?;
    let (keys, scope) = (&context.config.keys, caller.scope());
    let mut db = caller.begin_write(&context).await?;
    let before = definitions::find(&mut db, keys, &scope, id).await?;
    let force = query.requested();
    let tool = definitions::replace(&mut db, keys, &scope, id, &new, force).await?;
    let note = audit_entry("tool.update", &tool)
        .before(&before)?
        .after(&tool)?;
    db.commit(note, StatusCode::OK, Json(tool)).await
}

/// Delete an HTTP tool
#[utoipa::path(
    delete,
    path = "/api/v1/tool-endpoint-defs/{tool_id}",
    tag = "Tools",
    params(("tool_id" = ToolId, Path), ForceRemoval),
    responses(
        (status = 200, body = ActionMessage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such tool"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "It is in use, and force was not sent"),
        CommonErrors
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<ToolId>,
    ValidQuery(query): ValidQuery<ForceRemoval>,
) -> Result<(StatusCode, Json<ActionMessage>)> {
    let force = query.force.unwrap_or_default();
    let mut db = caller.begin_write(&context).await?;
    let tool =
        definitions::delete(&mut db, &context.config.keys, &caller.scope(), id, force).await?;
    let note = audit_entry("tool.delete", &tool).before(&tool)?;
    db.commit(note, StatusCode::OK, ActionMessage::json("tool deleted"))
        .await
}

/// Test an HTTP tool with sample arguments
///
/// Sends the real request. Returns it, with secrets masked, and the part of the response that a
/// model would see. A failure of the endpoint is reported in `error`, with status 200.
#[utoipa::path(
    post,
    path = "/api/v1/tool-endpoint-defs/{tool_id}/test",
    tag = "Tools",
    params(("tool_id" = ToolId, Path)),
    request_body = SampleArguments,
    responses(
        (status = 200, body = ToolExecution),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "The arguments do not form a valid URL"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such tool"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        CommonErrors
    )
)]
async fn test(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<ToolId>,
    OptionalJson(sample): OptionalJson<SampleArguments>,
) -> Result<(StatusCode, Json<ToolExecution>)> {
    let used = caller.run_once(context, move |context, caller| async move {
        // No transaction stays open during the request.
        let (keys, scope) = (&context.config.keys, caller.scope());
        let mut db = caller.begin_read(&context).await?;
        let found = definitions::find_with_credentials(&mut db, keys, &scope, id).await?;
        let (tool, credentials) = found;
        drop(db);

        let used = request::send(&context.outbound, &tool, &credentials, &sample.arguments).await?;

        let db = caller.begin_write(&context).await?;
        db.commit(audit_entry("tool.test", &tool), StatusCode::OK, Json(used))
            .await
    });
    used.await
}

/// Audit entry of a change of a tool.
fn audit_entry(action: &'static str, tool: &Tool) -> AuditEntry {
    AuditEntry::new(action, tool.org_id, tool.id.0)
}

/// Rejects a change of the owner.
pub fn reject_owner_change(fields: &mut FieldErrors, user: Option<UserId>) {
    fields.check(
        user.is_none(),
        "user_id",
        "extra_forbidden",
        "cannot change after creation; leave it out",
    );
}

/// Definition of an HTTP tool.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "find_order", "description": "Finds an order by its number",
    "url": "https://shop.example.com/orders/{{order_id}}", "method": "GET",
    "auth": {"type": "bearer", "token": "the shop's token"}, "timeout_seconds": 5,
    "tool_schema": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
    "output_schema": ["status", "items.name"]
}))]
struct ToolBody {
    /// Function name for the model: letters, digits and underscores.
    name: String,
    /// Purpose and use of the tool, for the model.
    description: String,
    /// URL of the endpoint; `{{parameters}}` are allowed after the host.
    url: String,
    #[serde(default = "post")]
    method: ToolMethod,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    auth: EndpointAuth,
    /// Timeout of a request, 1 to 15.
    #[serde(default = "ten")]
    timeout_seconds: i32,
    /// JSON Schema of the arguments, also accepted as `parameters`.
    #[serde(default = "schema::empty_object", alias = "parameters")]
    #[schema(value_type = Object)]
    tool_schema: Value,
    /// Required arguments, besides those that the schema requires.
    #[serde(default)]
    required: Vec<String>,
    /// Fields of the response to keep, such as `order.status`; all when left out.
    output_schema: Option<Vec<String>>,
    #[serde(default = "yes")]
    is_active: bool,
    /// The owner; an administrator may name a member.
    user_id: Option<UserId>,
}

fn post() -> ToolMethod {
    ToolMethod::Post
}

fn ten() -> i32 {
    10
}

pub fn yes() -> bool {
    true
}

impl ToolBody {
    fn validated(self, outbound: &OutboundClient) -> Result<NewTool> {
        let mut fields = FieldErrors::default();
        fields.check(
            is_function_name(&self.name),
            "name",
            "identifier",
            "must be 1 to 64 letters, digits and underscores, and not begin with a digit",
        );

        let description = self.description.trim();
        fields.check_text(description, "description", 1, 1024);

        fields.check_range(self.timeout_seconds, "timeout_seconds", 1, 15);

        let credentials = EndpointCredentials {
            headers: self.headers,
            auth: self.auth,
        };
        check_credentials(&mut fields, &credentials);

        if let Err(why) = schema::check(&self.tool_schema) {
            fields.check(false, "tool_schema", "json_schema", why);
        } else {
            let parameters = schema::parameters(&self.tool_schema);
            for (place, name) in self.required.iter().enumerate() {
                fields.check(
                    parameters.contains(&name.as_str()),
                    &format!("required.{place}"),
                    "value_error",
                    "is not among the properties of tool_schema",
                );
            }
            if let Err(why) = request::check_url(outbound, &self.url, &self.tool_schema) {
                fields.check(false, "url", "url", why);
            }
        }

        if let Some(paths) = &self.output_schema {
            fields.check(
                (1..=MAX_OUTPUT_FIELDS).contains(&paths.len()),
                "output_schema",
                "length",
                "must have 1 to 50 fields; leave it out to keep all",
            );
            for (place, path) in paths.iter().enumerate() {
                fields.check_text(path, &format!("output_schema.{place}"), 1, 200);
            }
        }

        fields.finish()?;
        Ok(NewTool {
            description: description.to_owned(),
            tool_schema: schema::with_required(self.tool_schema, &self.required),
            name: self.name,
            url: self.url,
            method: self.method,
            credentials,
            timeout_seconds: self.timeout_seconds,
            output_schema: self.output_schema,
            is_active: self.is_active,
        })
    }
}

/// Checks the headers and the authentication of an endpoint.
pub fn check_credentials(fields: &mut FieldErrors, credentials: &EndpointCredentials) {
    for (path, why) in credentials.field_errors() {
        fields.check(false, &path, "value_error", why);
    }
}

/// True for names that model vendors accept for functions.
fn is_function_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// Sample arguments.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Sample, example = json!({"arguments": {"order_id": "A-17"}}))]
struct SampleArguments {
    #[serde(default)]
    #[schema(value_type = Object)]
    arguments: Map<String, Value>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RevealParams {
    /// Returns secrets unmasked.
    reveal_secret: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Tools)]
struct ToolList {
    tools: Vec<Tool>,
}

/// Success message.
#[derive(Serialize, ToSchema)]
#[schema(as = Told, example = json!({"message": "deleted"}))]
pub struct ActionMessage {
    message: String,
}

impl ActionMessage {
    pub fn json(message: impl Into<String>) -> Json<Self> {
        Json(Self {
            message: message.into(),
        })
    }
}
