//! Load shedding. Each class of requests has its own concurrency limit, so that a flood in one
//! class does not affect the others:
//!
//! | class | bounded by |
//! |---|---|
//! | callbacks, health | the event queue's capacity; reserved connections to the database |
//! | changes (start, pause, create ...) | `PEAL_LIMIT_CONTROL` |
//! | reads | `PEAL_LIMIT_READS` |
//! | uploads | `PEAL_LIMIT_UPLOADS` |
//! | changes that wait for a user's own server (a tool's test, an MCP server's list) | [`MAX_THIRD_PARTY`], and per organisation by the outbound client |
//! | unauthenticated routes (login, accepting an invitation) | [`MAX_ANONYMOUS`] |
//! | event streams | `PEAL_LIMIT_STREAMS`, `PEAL_LIMIT_STREAMS_PER_ORG`; opening one is a read |
//!
//! A request whose class is full waits briefly for a permit when the queue has room. Otherwise it
//! gets 503 with `Retry-After`: accepted requests stay fast, and the rest can retry soon.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use peal_shared::Error;
use peal_shared::context::Context;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::http::error::{Problem, Result};

/// Waiting requests per permit: about as many as get a permit within the queue timeout.
const QUEUED_PER_PERMIT: usize = 64;

/// Concurrent requests that wait for a third party's server. They hold no connection to the
/// database meanwhile, so the limit may be higher than others.
const MAX_THIRD_PARTY: usize = 256;

/// Concurrent unauthenticated requests. Slow senders delay only their own class.
const MAX_ANONYMOUS: usize = 64;

/// Concurrency limit of a class.
struct ConcurrencyLimit {
    class: &'static str,
    permits: Semaphore,
    queue: Semaphore,
    queue_timeout: Duration,
    shed: Counter,
    in_flight: Gauge,
}

/// Permit of a class, released on drop.
struct Permit<'a> {
    _permit: SemaphorePermit<'a>,
    in_flight: &'a Gauge,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

impl ConcurrencyLimit {
    fn new(context: &Context, class: &'static str, places: usize) -> Self {
        let (shed, in_flight) = context.metrics.http.class_metrics(class);
        Self {
            class,
            permits: Semaphore::new(places),
            queue: Semaphore::new(places.saturating_mul(QUEUED_PER_PERMIT)),
            queue_timeout: context.config.limits.queue_timeout,
            shed,
            in_flight,
        }
    }

    async fn acquire(&self) -> Result<Permit<'_>> {
        let permit = match self.permits.try_acquire() {
            Ok(permit) => Some(permit),
            Err(_full) => self.wait_for_permit().await,
        };

        let Some(permit) = permit else {
            self.shed.inc();
            let class = self.class;
            return Err(Error::Busy(
                format!("too many requests of class {class}; try again shortly").into(),
            )
            .into());
        };

        self.in_flight.inc();
        Ok(Permit {
            _permit: permit,
            in_flight: &self.in_flight,
        })
    }

    async fn wait_for_permit(&self) -> Option<SemaphorePermit<'_>> {
        let _queued = self.queue.try_acquire().ok()?;
        timeout(self.queue_timeout, self.permits.acquire())
            .await
            .ok()?
            .ok()
    }
}

/// Concurrency limits of all classes.
#[derive(Clone)]
pub struct ConcurrencyLimits {
    reads: Arc<ConcurrencyLimit>,
    changes: Arc<ConcurrencyLimit>,
    third_party: Arc<ConcurrencyLimit>,
    anonymous: Arc<ConcurrencyLimit>,
}

impl ConcurrencyLimits {
    /// Creates the limits of the settings.
    pub fn new(context: &Context) -> Self {
        let limits = &context.config.limits;
        Self {
            reads: Arc::new(ConcurrencyLimit::new(context, "reads", limits.reads)),
            changes: Arc::new(ConcurrencyLimit::new(context, "changes", limits.changes)),
            third_party: Arc::new(ConcurrencyLimit::new(
                context,
                "third_party",
                MAX_THIRD_PARTY,
            )),
            anonymous: Arc::new(ConcurrencyLimit::new(context, "anonymous", MAX_ANONYMOUS)),
        }
    }
}

/// Middleware for reads and changes. The permit is released when the response begins.
pub async fn limit_concurrency(
    Extension(gates): Extension<ConcurrencyLimits>,
    request: Request,
    next: Next,
) -> Response {
    let limit = match request.method().is_safe() {
        true => &gates.reads,
        false => &gates.changes,
    };
    run_limited(limit, request, next).await
}

/// Middleware for requests that wait for a third party's server.
pub async fn limit_third_party(
    Extension(gates): Extension<ConcurrencyLimits>,
    request: Request,
    next: Next,
) -> Response {
    run_limited(&gates.third_party, request, next).await
}

/// Middleware for unauthenticated requests.
pub async fn limit_anonymous(
    Extension(gates): Extension<ConcurrencyLimits>,
    request: Request,
    next: Next,
) -> Response {
    run_limited(&gates.anonymous, request, next).await
}

async fn run_limited(limit: &ConcurrencyLimit, request: Request, next: Next) -> Response {
    match limit.acquire().await {
        Ok(_permit) => next.run(request).await,
        Err(problem) => Problem::into_response(problem),
    }
}
