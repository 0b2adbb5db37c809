//! Outbound client: the only way to URLs that users configure (HTTP tools, MCP servers, webhooks).
//!
//! Such a URL makes this machine send a request inside a network where databases, metadata
//! services and other hosts trust it (SSRF). So:
//!
//! 1. The text is parsed strictly ([`policy`]): HTTPS, few ports, no user name, no obfuscated
//!    address.
//! 2. The name is resolved once per connection, closed addresses are dropped ([`address`],
//!    [`resolve`]), and the connection goes to one of those left. DNS rebinding has no effect.
//! 3. No redirect is followed, no proxy used, no header of Peal sent.
//! 4. Time, size and concurrency of responses are limited: a slow or endless server affects its
//!    own tenant alone.
//!
//! Users learn that an address cannot be reached, never why: the difference between "no such
//! host" and "not allowed" would map the internal network. The log has the reason.

pub mod address;
pub mod credentials;
pub mod policy;
pub mod resolve;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

pub use self::policy::{OutboundPolicy, OutboundTarget};
pub use self::resolve::HostResolver;
use self::resolve::{FilteringResolver, SystemResolver};
use crate::platform::ids::OrgId;

/// Longest time of one exchange, from connecting to the last byte.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time to resolve, connect and finish the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest response body.
pub const MAX_RESPONSE_BYTES: usize = 1_000_000;
/// Concurrent exchanges of one organisation.
const MAX_EXCHANGES_PER_ORG: usize = 10;

/// Headers that belong to a connection or a proxy, not to a request.
const DROPPED_HEADERS: [&str; 16] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "accept-encoding",
    "x-real-ip",
];
/// Prefixes of such headers, and of those that authenticate Peal itself.
const DROPPED_HEADER_PREFIXES: [&str; 3] = ["x-forwarded-", "x-peal-", "x-twilio-"];

/// A request to a user's URL.
#[derive(Clone, Debug)]
pub struct OutboundRequest {
    pub method: Method,
    pub target: OutboundTarget,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    /// At most [`MAX_TIMEOUT`].
    pub timeout: Duration,
}

/// Complete response.
#[derive(Clone, Debug)]
pub struct OutboundResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Response whose body is a stream.
pub struct StreamingResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// At most [`MAX_RESPONSE_BYTES`] in all.
    pub body: BoxStream<'static, Result<Bytes, OutboundFailure>>,
}

/// Failure of a request, as shown to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundFailure {
    #[error("the address cannot be reached")]
    Unreachable,
    #[error("the response did not complete in time")]
    TimedOut,
    #[error("the response is larger than 1 MB")]
    TooLarge,
    #[error("the response is compressed; send it uncompressed")]
    Compressed,
    #[error("the response ended early")]
    Interrupted,
}

/// HTTP client for users' URLs; cheap to clone.
#[derive(Clone)]
pub struct OutboundClient {
    policy: Arc<OutboundPolicy>,
    client: reqwest::Client,
    org_semaphores: OrgSemaphores,
}

type OrgSemaphores = Arc<Mutex<HashMap<OrgId, Weak<Semaphore>>>>;

impl OutboundClient {
    /// Creates a client with the system's resolver.
    ///
    /// # Errors
    /// Fails when the TLS roots of the machine cannot be read.
    pub fn new(policy: OutboundPolicy) -> anyhow::Result<Self> {
        Self::with_resolver(policy, Arc::new(SystemResolver::new()))
    }

    /// Creates a client with the given resolver.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_resolver(
        policy: OutboundPolicy,
        resolver: Arc<dyn HostResolver>,
    ) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let vetted = FilteringResolver {
            resolver,
            policy: Arc::clone(&policy),
        };
        Ok(Self {
            client: crate::platform::http::outbound_client(vetted, CONNECT_TIMEOUT, MAX_TIMEOUT)?,
            policy,
            org_semaphores: OrgSemaphores::default(),
        })
    }

    /// Parses a user's URL.
    ///
    /// # Errors
    /// A message for the user.
    pub fn parse_url(&self, text: &str) -> Result<OutboundTarget, &'static str> {
        self.policy.parse_url(text)
    }

    /// Sends a request on behalf of an organisation and reads the whole response.
    ///
    /// # Errors
    /// The failure for the user; its reason is logged.
    pub async fn send(
        &self,
        org: OrgId,
        request: OutboundRequest,
    ) -> Result<OutboundResponse, OutboundFailure> {
        let (host, max_time) = (request_host(&request), request.timeout);
        let exchange = async {
            let _slot = self.acquire_slot(org).await;
            self.exchange(request).await
        };
        run_with_timeout(org, &host, max_time, exchange).await
    }

    /// Opens a streaming response, such as server-sent events. It counts as one of the
    /// organisation's exchanges until it is dropped.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn open_stream(
        &self,
        org: OrgId,
        request: OutboundRequest,
    ) -> Result<StreamingResponse, OutboundFailure> {
        let (host, max_time) = (request_host(&request), request.timeout);
        let opening = async {
            let slot = self.acquire_slot(org).await;
            Ok((self.send_request(request).await?, slot))
        };
        let (response, slot) = run_with_timeout(org, &host, max_time, opening).await?;
        let (status, headers) = (response.status(), response.headers().clone());

        // The slot lives as long as the stream.
        let initial = (response, MAX_RESPONSE_BYTES, slot);
        let body = stream::try_unfold(initial, async |(mut response, left, slot)| {
            let next = response.chunk().await;
            let Some(chunk) =
                next.map_err(|error| LoggedFailure::from_read_error(error).failure)?
            else {
                return Ok(None);
            };
            let left = usize::checked_sub(left, chunk.len()).ok_or(OutboundFailure::TooLarge)?;
            Ok(Some((chunk, (response, left, slot))))
        });
        Ok(StreamingResponse {
            status,
            headers,
            body: body.boxed(),
        })
    }

    /// Sends a request that belongs to an open stream, without a slot of its own.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_in_stream(
        &self,
        org: OrgId,
        request: OutboundRequest,
    ) -> Result<OutboundResponse, OutboundFailure> {
        let (host, max_time) = (request_host(&request), request.timeout);
        run_with_timeout(org, &host, max_time, self.exchange(request)).await
    }

    /// Waits for one of the organisation's slots.
    async fn acquire_slot(&self, org: OrgId) -> Option<OwnedSemaphorePermit> {
        let slots = {
            let mut running = self.org_semaphores.lock().ok()?;
            match running.get(&org).and_then(Weak::upgrade) {
                Some(slots) => slots,
                None => {
                    running.retain(|_, slots| slots.strong_count() > 0);
                    // Organisations without exchanges were just removed.
                    let slots = Arc::new(Semaphore::new(MAX_EXCHANGES_PER_ORG));
                    running.insert(org, Arc::downgrade(&slots));
                    slots
                }
            }
        };
        slots.acquire_owned().await.ok()
    }

    async fn exchange(&self, request: OutboundRequest) -> Result<OutboundResponse, LoggedFailure> {
        let response = self.send_request(request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_body(response).await?;
        Ok(OutboundResponse {
            status,
            headers,
            body,
        })
    }

    /// Sends a request and returns the head of its response.
    async fn send_request(&self, request: OutboundRequest) -> Result<Response, LoggedFailure> {
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            if is_forwarded(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        // A compressed response may expand a thousandfold.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));

        let mut builder = self
            .client
            .request(request.method, request.target.url().clone())
            .headers(headers);
        if let Some(body) = request.body {
            builder = builder.body(body);
        }

        let response = builder
            .send()
            .await
            .map_err(LoggedFailure::from_send_error)?;
        self.check_response(&response)?;
        Ok(response)
    }

    fn check_response(&self, response: &Response) -> Result<(), LoggedFailure> {
        let is_open = response
            .remote_addr()
            .is_some_and(|peer| self.policy.allows(peer.ip()));
        if !is_open {
            let reason = "the connection went to a closed address";
            return Err(LoggedFailure::new(OutboundFailure::Unreachable, reason));
        }
        let encoding = response.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(LoggedFailure::new(
                OutboundFailure::Compressed,
                "the response is compressed",
            ));
        }
        Ok(())
    }
}

fn request_host(request: &OutboundRequest) -> String {
    let host = request.target.url().host_str();
    host.unwrap_or_default().to_owned()
}

/// Runs an exchange within its time limit and logs the reason of a failure.
async fn run_with_timeout<T>(
    org: OrgId,
    host: &str,
    max_time: Duration,
    exchange: impl Future<Output = Result<T, LoggedFailure>>,
) -> Result<T, OutboundFailure> {
    let failed = match timeout(max_time.min(MAX_TIMEOUT), exchange).await {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(failed)) => failed,
        Err(_elapsed) => LoggedFailure::new(OutboundFailure::TimedOut, "timed out"),
    };
    tracing::warn!(org.id = %org, host, reason = failed.reason, "request to a user's URL failed");
    Err(failed.failure)
}

/// True for a header that users may set.
#[must_use]
pub fn is_forwarded(name: &HeaderName) -> bool {
    let name = name.as_str();
    !DROPPED_HEADERS.contains(&name)
        && !DROPPED_HEADER_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

async fn read_body(mut response: Response) -> Result<Bytes, LoggedFailure> {
    let too_large = || LoggedFailure::new(OutboundFailure::TooLarge, "the response is too large");
    let announced = response.content_length().unwrap_or_default();
    if usize::try_from(announced).map_or(true, |announced| announced > MAX_RESPONSE_BYTES) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(LoggedFailure::from_read_error)?
    {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Failure with the reason for the log.
struct LoggedFailure {
    failure: OutboundFailure,
    reason: String,
}

impl LoggedFailure {
    fn new(failure: OutboundFailure, reason: &str) -> Self {
        Self {
            failure,
            reason: reason.to_owned(),
        }
    }

    fn from_send_error(error: reqwest::Error) -> Self {
        let failure = if error.is_timeout() && !error.is_connect() {
            OutboundFailure::TimedOut
        } else if error.is_connect() {
            OutboundFailure::Unreachable
        } else {
            OutboundFailure::Interrupted
        };
        Self::with_cause(failure, error)
    }

    fn from_read_error(error: reqwest::Error) -> Self {
        let failure = if error.is_timeout() {
            OutboundFailure::TimedOut
        } else {
            OutboundFailure::Interrupted
        };
        Self::with_cause(failure, error)
    }

    /// Formats the cause without the URL, which may hold secrets.
    fn with_cause(failure: OutboundFailure, error: reqwest::Error) -> Self {
        let error = anyhow::Error::new(error.without_url());
        Self::new(failure, &format!("{error:#}"))
    }
}
