//! Request and response bodies of [`crate::tools::mcp_servers`] and [`crate::tools::mcp_tools`].

use std::collections::BTreeMap;

use peal_shared::Error;
use peal_shared::outbound::OutboundClient;
use peal_shared::platform::ids::{McpServerId, UserId};
use peal_shared::tools::mcp::McpTool;
use peal_shared::tools::servers::{McpServer, NewMcpServer, Transport};
use peal_shared::tools::{EndpointAuth, EndpointCredentials};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::error::Result;
use crate::http::extract::FieldErrors;
use crate::tools::{check_credentials, yes};

const MAX_ALLOWED_TOOLS: usize = 200;

/// Definition of an MCP server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Shop", "server_url": "https://mcp.shop.example.com/mcp",
    "auth": {"type": "bearer", "token": "the shop's token"}, "timeout_seconds": 10
}))]
pub struct McpServerBody {
    name: String,
    server_url: String,
    #[serde(default = "streamable_http")]
    transport: Transport,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    auth: EndpointAuth,
    /// Timeout of a request to the server, 1 to 15.
    #[serde(default = "ten")]
    timeout_seconds: i32,
    /// Names of the tools that agents may use; null allows all.
    allowed_tools: Option<Vec<String>>,
    #[serde(default = "yes")]
    is_active: bool,
    /// The owner; an administrator may name a member.
    pub user_id: Option<UserId>,
}

fn streamable_http() -> Transport {
    Transport::StreamableHttp
}

fn ten() -> i32 {
    10
}

impl McpServerBody {
    /// Validates the definition.
    ///
    /// # Errors
    /// Every invalid field.
    pub fn validated(self, outbound: &OutboundClient) -> Result<NewMcpServer> {
        let mut fields = FieldErrors::default();
        let name = self.name.trim();
        fields.check_text(name, "name", 1, 200);
        fields.check_range(self.timeout_seconds, "timeout_seconds", 1, 15);
        if let Err(why) = outbound.parse_url(&self.server_url) {
            fields.check(false, "server_url", "url", why);
        }
        check_allowed_tools(&mut fields, self.allowed_tools.as_deref());
        let credentials = EndpointCredentials {
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

/// Checks a list of allowed tool names.
pub fn check_allowed_tools(fields: &mut FieldErrors, names: Option<&[String]>) {
    let names = names.unwrap_or_default();
    fields.check(
        names.len() <= MAX_ALLOWED_TOOLS,
        "allowed_tools",
        "length",
        "must be 200 names or fewer",
    );
    for (place, name) in names.iter().enumerate() {
        fields.check_text(name, &format!("allowed_tools.{place}"), 1, 200);
    }
}

/// The server to list tools of: exactly one of `tool_id` and `server_url`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"server_url": "https://mcp.shop.example.com/mcp"}))]
pub struct FetchTools {
    /// A saved server.
    tool_id: Option<McpServerId>,
    /// A server that is not saved.
    server_url: Option<String>,
    #[serde(default = "streamable_http")]
    transport: Transport,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    auth: EndpointAuth,
    #[serde(default = "ten")]
    timeout_seconds: i32,
}

/// The server to list tools of.
pub enum McpServerSource {
    Saved(McpServerId),
    Unsaved(NewMcpServer),
}

impl FetchTools {
    /// Resolves the server.
    ///
    /// # Errors
    /// Neither or both of `tool_id` and `server_url`; every invalid field of an unsaved server.
    pub fn source(self, outbound: &OutboundClient) -> Result<McpServerSource> {
        match (self.tool_id, self.server_url) {
            (Some(id), None) => Ok(McpServerSource::Saved(id)),
            (None, Some(server_url)) => {
                let unnamed = McpServerBody {
                    name: "unnamed".to_owned(),
                    server_url,
                    transport: self.transport,
                    headers: self.headers,
                    auth: self.auth,
                    timeout_seconds: self.timeout_seconds,
                    allowed_tools: None,
                    is_active: true,
                    user_id: None,
                };
                unnamed.validated(outbound).map(McpServerSource::Unsaved)
            }
            _ => {
                let message = "send exactly one of tool_id and server_url";
                Err(Error::rejected("tool_id_or_server_url", message).into())
            }
        }
    }
}

/// The tools that a server offers.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "success": true, "sync_error": null,
    "tools": [{"name": "find_order", "description": "Finds an order", "input_schema": {"type": "object"}}]
}))]
pub struct FetchedTools {
    success: bool,
    tools: Vec<McpTool>,
    /// The reason when the tools could not be listed.
    sync_error: Option<String>,
}

impl FetchedTools {
    /// Wraps the result of listing a server's tools.
    pub fn from_result(discovered: std::result::Result<Vec<McpTool>, String>) -> Self {
        let sync_error = discovered.as_ref().err().cloned();
        Self {
            success: sync_error.is_none(),
            tools: discovered.unwrap_or_default(),
            sync_error,
        }
    }
}

/// Names of tools; null allows all.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"allowed_tools": ["find_order"]}))]
pub struct AllowedTools {
    pub allowed_tools: Option<Vec<String>>,
}

#[derive(Serialize, ToSchema)]
pub struct McpServers {
    pub tools: Vec<McpServer>,
}
