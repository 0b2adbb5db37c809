//! Listing of an MCP server's tools, over streamable HTTP or the protocol's earlier SSE transport
//! ([`events`]).
//!
//! `rmcp` implements the protocol; its only HTTP client is the outbound client, so that all of
//! its requests (streams and the end of a session included) have the same limits.

mod events;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use rmcp::RoleClient;
use rmcp::model::{ClientJsonRpcMessage, PaginatedRequestParams, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse,
};
use rmcp::transport::{IntoTransport, StreamableHttpClientTransport};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sse_stream::{Sse, SseStream};
use tokio::time::timeout;
use utoipa::ToSchema;

use self::events::SseTransport;
use super::EndpointCredentials;
use crate::outbound::{OutboundClient, OutboundFailure, OutboundRequest, OutboundResponse};
use crate::platform::ids::OrgId;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
/// Maximum of tools of one server; a model cannot choose between more.
const MAX_SERVER_TOOLS: usize = 200;
const MAX_PAGES: usize = 20;
/// Maximum size of the descriptions of all tools together.
const MAX_LIST_BYTES: usize = 512 * 1024;

/// Transport of the MCP protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Transport {
    StreamableHttp,
    /// HTTP with server-sent events, as the protocol had it before March 2025.
    Sse,
}

/// A tool that an MCP server offers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct McpTool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments.
    #[schema(value_type = Object)]
    pub input_schema: Value,
}

/// Address, credentials and timeout of a server.
#[derive(Clone, Debug)]
pub struct McpEndpoint {
    pub url: String,
    pub transport: Transport,
    pub credentials: EndpointCredentials,
    pub timeout: Duration,
}

impl McpEndpoint {
    /// Replaces masks by the stored secrets.
    ///
    /// # Errors
    /// As [`Credentials::unmasked`].
    pub fn unmasked(self, stored: &Self) -> crate::platform::error::Result<Self> {
        let credentials = self
            .credentials
            .unmasked(&self.url, &stored.credentials, &stored.url)?;
        Ok(Self {
            credentials,
            ..self
        })
    }
}

/// Client for MCP servers.
#[async_trait]
pub trait McpClient: Send + Sync {
    /// Lists every tool that a server offers, or returns a message for its owner.
    async fn tools(&self, org: OrgId, server: &McpEndpoint) -> Result<Vec<McpTool>, String>;
}

/// MCP client on the outbound HTTP client.
pub struct OutboundMcpClient {
    outbound: OutboundClient,
}

impl OutboundMcpClient {
    /// Creates a client that sends all requests through the outbound client.
    #[must_use]
    pub fn new(outbound: OutboundClient) -> Self {
        Self { outbound }
    }
}

#[async_trait]
impl McpClient for OutboundMcpClient {
    async fn tools(&self, org: OrgId, server: &McpEndpoint) -> Result<Vec<McpTool>, String> {
        let headers = server
            .credentials
            .header_map()
            .map_err(|error| error.to_string())?;
        let transport = McpTransport {
            outbound: self.outbound.clone(),
            org,
            headers,
            timeout: server.timeout,
        };
        // Boxed: rmcp's futures are large.
        match timeout(server.timeout, Box::pin(list_tools(transport, server))).await {
            Ok(listed) => listed,
            Err(_elapsed) => Err(OutboundFailure::TimedOut.to_string()),
        }
    }
}

async fn list_tools(transport: McpTransport, server: &McpEndpoint) -> Result<Vec<McpTool>, String> {
    match server.transport {
        Transport::StreamableHttp => {
            let mut config = StreamableHttpClientTransportConfig::with_uri(server.url.as_str());
            config.allow_stateless = true;
            let transport = StreamableHttpClientTransport::with_client(transport, config);
            list_over(
                transport,
                "the server does not speak MCP over streamable HTTP",
            )
            .await
        }
        Transport::Sse => {
            let otherwise = "the server does not speak MCP over SSE";
            let events = SseTransport::open(transport, &server.url).await;
            let events = events.map_err(|error| failure_message(&error, otherwise))?;
            list_over(events, otherwise).await
        }
    }
}

async fn list_over<E, A>(
    transport: impl IntoTransport<RoleClient, E, A>,
    otherwise: &str,
) -> Result<Vec<McpTool>, String>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let client = rmcp::serve_client((), transport).await.map_err(|error| {
        tracing::info!(%error, "an MCP session could not be initialized");
        failure_message(&error, otherwise)
    })?;
    let listed = list_pages(&client).await;

    // Ends the session at the server, if it has one.
    if let Err(error) = client.cancel().await {
        tracing::debug!(%error, "an MCP session could not be closed");
    }

    let tools = listed?;
    let written = serde_json::to_value(&tools).map_err(|error| error.to_string())?;
    if !super::schema::is_storable(&written) {
        return Err("the server describes its tools with NUL characters".to_owned());
    }
    let size = serde_json::to_vec(&tools).map_or(usize::MAX, |json| json.len());
    if size > MAX_LIST_BYTES {
        return Err("the server describes its tools in more than 512 KB".to_owned());
    }
    Ok(tools)
}

async fn list_pages(client: &rmcp::Peer<RoleClient>) -> Result<Vec<McpTool>, String> {
    let mut tools = Vec::new();
    let mut cursor = None;
    for _ in 0..MAX_PAGES {
        let page = PaginatedRequestParams::default().with_cursor(cursor);
        let page = client.list_tools(Some(page)).await.map_err(|error| {
            tracing::info!(%error, "an MCP server did not list its tools");
            failure_message(&error, "the server does not list its tools")
        })?;
        tools.extend(page.tools.into_iter().map(|tool| McpTool {
            name: tool.name.into_owned(),
            description: tool.description.map(std::borrow::Cow::into_owned),
            input_schema: Value::Object((*tool.input_schema).clone()),
        }));
        if tools.len() > MAX_SERVER_TOOLS {
            return Err(format!(
                "the server offers more than {MAX_SERVER_TOOLS} tools"
            ));
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(tools);
        }
    }
    Err(format!(
        "the server lists its tools on more than {MAX_PAGES} pages"
    ))
}

/// Message for a server's owner: the outbound client's failure when it caused rmcp's error, and
/// `otherwise` for any other error.
fn failure_message(error: &(dyn std::error::Error + 'static), otherwise: &str) -> String {
    let text = format!("{error:?} {error}");
    let failures = [
        OutboundFailure::Unreachable,
        OutboundFailure::TimedOut,
        OutboundFailure::TooLarge,
        OutboundFailure::Compressed,
        OutboundFailure::Interrupted,
    ];
    let known = failures.iter().map(ToString::to_string);
    for failure in known {
        if text.contains(&failure) {
            return failure;
        }
    }
    for status in [401, 403] {
        if text.contains(&status_text(status)) {
            return format!("the server refuses these credentials ({status})");
        }
    }
    otherwise.to_owned()
}

fn status_text(status: u16) -> String {
    format!("status {status}")
}

/// The HTTP client of rmcp, on the outbound client.
#[derive(Clone)]
struct McpTransport {
    outbound: OutboundClient,
    org: OrgId,
    headers: HeaderMap,
    timeout: Duration,
}

type McpTransportError = StreamableHttpError<OutboundFailure>;

impl McpTransport {
    async fn send(
        &self,
        method: Method,
        uri: &str,
        session: Option<&str>,
        auth: Option<&str>,
        custom: HashMap<HeaderName, HeaderValue>,
        body: Option<Bytes>,
    ) -> Result<OutboundResponse, McpTransportError> {
        let mut headers = self.headers.clone();
        headers.extend(custom);
        let accepted = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(ACCEPT, accepted);
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let wrong = |_invalid| StreamableHttpError::UnexpectedServerResponse("session id".into());
        if let Some(session) = session {
            headers.insert(SESSION_ID, HeaderValue::from_str(session).map_err(wrong)?);
        }
        if let Some(token) = auth {
            let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(wrong)?;
            headers.insert(AUTHORIZATION, value);
        }
        let request = self.request(method, uri, headers, body);
        let request = request.map_err(StreamableHttpError::Client)?;
        let answer = self.outbound.send(self.org, request).await;
        answer.map_err(StreamableHttpError::Client)
    }

    fn request(
        &self,
        method: Method,
        uri: &str,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<OutboundRequest, OutboundFailure> {
        let target = self.outbound.parse_url(uri);
        Ok(OutboundRequest {
            method,
            target: target.map_err(|_why| OutboundFailure::Unreachable)?,
            headers,
            body,
            timeout: self.timeout,
        })
    }
}

impl StreamableHttpClient for McpTransport {
    type Error = OutboundFailure;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, McpTransportError> {
        let body = Bytes::from(serde_json::to_vec(&message)?);
        let session = session_id.as_deref();
        let auth = auth_header.as_deref();
        let sending = self.send(
            Method::POST,
            &uri,
            session,
            auth,
            custom_headers,
            Some(body),
        );
        parse_response(sending.await?, session.is_some())
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), McpTransportError> {
        let auth = auth_header.as_deref();
        let session = Some(&*session_id);
        let sending = self.send(Method::DELETE, &uri, session, auth, custom_headers, None);
        sending.await.map(drop)
    }

    /// Refuses the stream of unsolicited messages.
    async fn get_stream(
        &self,
        _uri: Arc<str>,
        _session_id: Option<Arc<str>>,
        _last_event_id: Option<String>,
        _auth_header: Option<String>,
        _custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, McpTransportError> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}

/// Maps the answer to a message to rmcp's response.
fn parse_response(
    answer: OutboundResponse,
    in_session: bool,
) -> Result<StreamableHttpPostResponse, McpTransportError> {
    let status = answer.status;
    if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
        return Ok(StreamableHttpPostResponse::Accepted);
    }
    if status == StatusCode::NOT_FOUND && in_session {
        return Err(StreamableHttpError::SessionExpired);
    }

    let header = |name: HeaderName| {
        let value = answer.headers.get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let session = header(SESSION_ID);
    let kind = header(CONTENT_TYPE).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();

    if status.is_success() && answer.body.is_empty() {
        return Ok(StreamableHttpPostResponse::Accepted);
    }
    if status.is_success() && essence.eq_ignore_ascii_case("text/event-stream") {
        let whole = stream::once(async move { Ok::<_, OutboundFailure>(answer.body) });
        let events = SseStream::from_bytes_stream(Box::pin(whole)).boxed();
        return Ok(StreamableHttpPostResponse::Sse(events, session));
    }

    match serde_json::from_slice::<ServerJsonRpcMessage>(&answer.body) {
        Ok(message) => Ok(StreamableHttpPostResponse::Json(message, session)),
        Err(error) if status.is_success() => Err(error.into()),
        Err(_) => {
            let message = status_text(status.as_u16());
            Err(StreamableHttpError::UnexpectedServerResponse(
                message.into(),
            ))
        }
    }
}
