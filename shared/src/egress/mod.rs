//! The gate: the one way to a URL that a user wrote down (HTTP tools, MCP servers, webhooks).
//!
//! Such a URL is an instruction by a stranger to our own machine, which stands in a network
//! where databases, metadata services and neighbours trust it. So:
//!
//! 1. The text is read strictly ([`policy`]): HTTPS, few ports, no user name, no address in
//!    disguise.
//! 2. The name is resolved once per connection, closed addresses are dropped ([`address`],
//!    [`resolve`]), and the connection goes to one of those left. A name that changes its mind
//!    changes nothing.
//! 3. No redirect is followed, no proxy asked, no header of ours sent.
//! 4. An answer has a time, a size and a number of neighbours: a slow or endless server costs
//!    its own tenant alone.
//!
//! Users are told that an address cannot be reached, never why: the difference between "no such
//! host" and "not allowed" is a map of our network. The reason is in the log.

pub mod address;
pub mod policy;
pub mod resolve;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

pub use self::policy::{Policy, Target};
pub use self::resolve::Resolver;
use self::resolve::{System, Vetted};
use crate::ids::OrgId;

/// The longest that one exchange may take, with everything.
pub const LONGEST: Duration = Duration::from_secs(15);
/// How long it may take to resolve, connect and agree on TLS.
const CONNECT: Duration = Duration::from_secs(3);
/// The largest answer.
pub const LARGEST_BYTES: usize = 1_000_000;
/// How many exchanges of one organisation run at the same time.
const PER_ORG: usize = 10;

/// Headers that belong to a connection, not to a request, or say on whose behalf it is made.
const NOT_FORWARDED: [&str; 16] = [
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
/// Beginnings of such names, and of those that Peal itself proves who it is with.
const NOT_FORWARDED_PREFIXES: [&str; 3] = ["x-forwarded-", "x-peal-", "x-twilio-"];

/// A request to a user's URL.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub method: Method,
    pub target: Target,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    /// At most [`LONGEST`].
    pub timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer that goes on.
pub struct Ongoing {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// At most as much as a whole answer may be.
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
}

/// Why nothing came back, for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the address cannot be reached")]
    Unreachable,
    #[error("there was no whole answer in time")]
    TimedOut,
    #[error("the answer is larger than 1 MB")]
    TooLarge,
    #[error("the answer is compressed although it was asked not to be")]
    Compressed,
    #[error("the answer broke off")]
    BrokenOff,
}

/// The gate.
#[derive(Clone)]
pub struct Gate {
    policy: Arc<Policy>,
    client: reqwest::Client,
    running: Running,
}

type Running = Arc<Mutex<HashMap<OrgId, Weak<Semaphore>>>>;

impl Gate {
    /// A gate with the machine's resolver.
    ///
    /// # Errors
    /// Fails when the TLS roots of the machine cannot be read.
    pub fn new(policy: Policy) -> anyhow::Result<Self> {
        Self::with_resolver(policy, Arc::new(System::new()))
    }

    /// A gate with a resolver of one's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_resolver(policy: Policy, resolver: Arc<dyn Resolver>) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let vetted = Vetted {
            resolver,
            policy: Arc::clone(&policy),
        };
        Ok(Self {
            client: crate::http::gated_client(vetted, CONNECT, LONGEST)?,
            policy,
            running: Running::default(),
        })
    }

    /// Reads a user's URL.
    ///
    /// # Errors
    /// What is wrong with it, for the user.
    pub fn target(&self, text: &str) -> Result<Target, &'static str> {
        self.policy.target(text)
    }

    /// Sends a request on behalf of an organisation and reads the whole answer.
    ///
    /// # Errors
    /// Why there is no answer. The reason behind is logged.
    pub async fn send(&self, org: OrgId, request: Outgoing) -> Result<Incoming, Failure> {
        let (host, patience) = (host_of(&request), request.timeout);
        let exchange = async {
            let _slot = self.slot(org).await;
            self.exchange(request).await
        };
        within(org, &host, patience, exchange).await
    }

    /// Opens an answer that goes on, such as a stream of events. It keeps its place among the
    /// exchanges of its organisation until it is dropped.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn listen(&self, org: OrgId, request: Outgoing) -> Result<Ongoing, Failure> {
        let (host, patience) = (host_of(&request), request.timeout);
        let opening = async {
            let slot = self.slot(org).await;
            Ok((self.begin(request).await?, slot))
        };
        let (response, slot) = within(org, &host, patience, opening).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let begun = (response, LARGEST_BYTES, slot);
        let body = stream::try_unfold(begun, async |(mut response, left, slot)| {
            let next = response.chunk().await;
            let Some(chunk) = next.map_err(|error| Failed::of_reading(error).failure)? else {
                return Ok(None);
            };
            let left = usize::checked_sub(left, chunk.len()).ok_or(Failure::TooLarge)?;
            Ok(Some((chunk, (response, left, slot))))
        });
        Ok(Ongoing {
            status,
            headers,
            body: body.boxed(),
        })
    }

    /// Sends a request that belongs to an answer which goes on, in its place.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_beside(&self, org: OrgId, request: Outgoing) -> Result<Incoming, Failure> {
        let (host, patience) = (host_of(&request), request.timeout);
        within(org, &host, patience, self.exchange(request)).await
    }

    /// A place among the exchanges of an organisation.
    async fn slot(&self, org: OrgId) -> Option<OwnedSemaphorePermit> {
        let slots = {
            let mut running = self.running.lock().ok()?;
            match running.get(&org).and_then(Weak::upgrade) {
                Some(slots) => slots,
                None => {
                    running.retain(|_, slots| slots.strong_count() > 0);
                    let slots = Arc::new(Semaphore::new(PER_ORG));
                    running.insert(org, Arc::downgrade(&slots));
                    slots
                }
            }
        };
        slots.acquire_owned().await.ok()
    }

    async fn exchange(&self, request: Outgoing) -> Result<Incoming, Failed> {
        let response = self.begin(request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read(response).await?;
        Ok(Incoming {
            status,
            headers,
            body,
        })
    }

    /// Sends a request; the head of its answer.
    async fn begin(&self, request: Outgoing) -> Result<Response, Failed> {
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            if is_forwarded(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        // A compressed answer may be a thousand times larger than it looks.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut sending = self
            .client
            .request(request.method, request.target.url().clone())
            .headers(headers);
        if let Some(body) = request.body {
            sending = sending.body(body);
        }
        let response = sending.send().await.map_err(Failed::of_sending)?;
        self.judge(&response)?;
        Ok(response)
    }

    fn judge(&self, response: &Response) -> Result<(), Failed> {
        let is_open = response
            .remote_addr()
            .is_some_and(|peer| self.policy.opens(peer.ip()));
        if !is_open {
            let reason = "the connection went to a closed address";
            return Err(Failed::new(Failure::Unreachable, reason));
        }
        let encoding = response.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Failed::new(Failure::Compressed, "the answer is compressed"));
        }
        Ok(())
    }
}

fn host_of(request: &Outgoing) -> String {
    let host = request.target.url().host_str();
    host.unwrap_or_default().to_owned()
}

/// Waits as long as may be, and logs why nothing came of it.
async fn within<T>(
    org: OrgId,
    host: &str,
    patience: Duration,
    exchange: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failure> {
    let failed = match timeout(patience.min(LONGEST), exchange).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(failed)) => failed,
        Err(_elapsed) => Failed::new(Failure::TimedOut, "it took too long"),
    };
    tracing::warn!(org.id = %org, host, reason = failed.reason, "a user's address failed");
    Err(failed.failure)
}

/// Whether a user's header is sent along.
#[must_use]
pub fn is_forwarded(name: &HeaderName) -> bool {
    let name = name.as_str();
    !NOT_FORWARDED.contains(&name)
        && !NOT_FORWARDED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

async fn read(mut response: Response) -> Result<Bytes, Failed> {
    let too_large = || Failed::new(Failure::TooLarge, "the answer is too large");
    let announced = response.content_length().unwrap_or_default();
    if usize::try_from(announced).map_or(true, |announced| announced > LARGEST_BYTES) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(Failed::of_reading)? {
        if body.len() + chunk.len() > LARGEST_BYTES {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// A failure with the reason that only the log may know.
struct Failed {
    failure: Failure,
    reason: String,
}

impl Failed {
    fn new(failure: Failure, reason: &str) -> Self {
        Self {
            failure,
            reason: reason.to_owned(),
        }
    }

    fn of_sending(error: reqwest::Error) -> Self {
        let failure = if error.is_timeout() && !error.is_connect() {
            Failure::TimedOut
        } else if error.is_connect() {
            Failure::Unreachable
        } else {
            Failure::BrokenOff
        };
        Self::caused(failure, error)
    }

    fn of_reading(error: reqwest::Error) -> Self {
        let failure = if error.is_timeout() {
            Failure::TimedOut
        } else {
            Failure::BrokenOff
        };
        Self::caused(failure, error)
    }

    /// URLs may hold secrets, so the reason goes without.
    fn caused(failure: Failure, error: reqwest::Error) -> Self {
        let error = anyhow::Error::new(error.without_url());
        Self::new(failure, &format!("{error:#}"))
    }
}
