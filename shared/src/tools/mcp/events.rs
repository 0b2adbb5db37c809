//! The SSE transport of earlier MCP versions: the server sends its messages as events of one long
//! response, and its first event names the URL to which the client posts its messages.
//!
//! `rmcp` no longer has this transport but many servers do, so it is implemented here on rmcp's
//! `Transport` trait.

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use rmcp::RoleClient;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::transport::streamable_http_client::SseError;
use sse_stream::{Sse, SseStream};
use url::Url;

use super::{McpTransport, status_text};
use crate::outbound::OutboundFailure;

/// Error of this transport, with a text that the parent module recognizes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct SseTransportError(String);

impl From<OutboundFailure> for SseTransportError {
    fn from(failure: OutboundFailure) -> Self {
        Self(failure.to_string())
    }
}

/// An open SSE session.
pub(super) struct SseTransport {
    http: McpTransport,
    /// URL for the client's messages.
    post_url: String,
    events: BoxStream<'static, Result<Sse, SseError>>,
}

impl SseTransport {
    /// Opens a session and waits for the server's `endpoint` event.
    ///
    /// # Errors
    /// Fails when the server does not answer, or names an endpoint on another server: messages
    /// carry the credentials of this one.
    pub(super) async fn open(
        transport: McpTransport,
        url: &str,
    ) -> Result<Self, SseTransportError> {
        let mut headers = transport.headers.clone();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let request = transport.request(Method::GET, url, headers, None)?;
        let base = request.target.url().clone();
        let answer = transport
            .outbound
            .open_stream(transport.org, request)
            .await?;
        check_status(answer.status)?;
        let mut events = SseStream::from_bytes_stream(answer.body).boxed();
        while let Some(Ok(event)) = events.next().await {
            if event.event.as_deref() == Some("endpoint") {
                let post = resolve_endpoint(&base, event.data.as_deref().unwrap_or_default())?;
                return Ok(Self {
                    http: transport,
                    post_url: post,
                    events,
                });
            }
        }
        Err(SseTransportError("no event names the endpoint".to_owned()))
    }
}

/// Resolves the endpoint that a server named, on the same origin only.
fn resolve_endpoint(base: &Url, endpoint: &str) -> Result<String, SseTransportError> {
    let post = base.join(endpoint.trim()).ok();
    let post = post.filter(|post| post.origin() == base.origin());
    let foreign = || SseTransportError("messages would go to another server".to_owned());
    Ok(post.ok_or_else(foreign)?.into())
}

fn check_status(status: StatusCode) -> Result<(), SseTransportError> {
    match status.is_success() {
        true => Ok(()),
        false => Err(SseTransportError(status_text(status.as_u16()))),
    }
}

async fn post_message(
    transport: McpTransport,
    url: String,
    message: ClientJsonRpcMessage,
) -> Result<(), SseTransportError> {
    let body =
        serde_json::to_vec(&message).map_err(|error| SseTransportError(error.to_string()))?;
    let mut headers = transport.headers.clone();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let request = transport.request(Method::POST, &url, headers, Some(Bytes::from(body)))?;
    let answer = transport
        .outbound
        .send_in_stream(transport.org, request)
        .await?;
    check_status(answer.status)
}

impl Transport<RoleClient> for SseTransport {
    type Error = SseTransportError;

    fn send(
        &mut self,
        message: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), SseTransportError>> + Send + 'static {
        post_message(self.http.clone(), self.post_url.clone(), message)
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let event = self.events.next().await?.ok()?;
            let is_message = event.event.as_deref().is_none_or(|kind| kind == "message");
            let message = event.data.as_deref().map(serde_json::from_str);
            if let (true, Some(Ok(message))) = (is_message, message) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), SseTransportError> {
        self.events = stream::empty().boxed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_to_the_server_itself_alone() {
        let base: Url = "https://mcp.example.com/a/sse".parse().unwrap();
        for (endpoint, post) in [
            (
                "/messages?s=1",
                Some("https://mcp.example.com/messages?s=1"),
            ),
            ("post", Some("https://mcp.example.com/a/post")),
            (
                "https://mcp.example.com/m",
                Some("https://mcp.example.com/m"),
            ),
            ("https://evil.example.com/m", None),
            ("//evil.example.com/m", None),
            ("http://mcp.example.com/m", None),
            ("https://mcp.example.com:8443/m", None),
        ] {
            assert_eq!(
                resolve_endpoint(&base, endpoint).ok().as_deref(),
                post,
                "{endpoint}"
            );
        }
    }
}
