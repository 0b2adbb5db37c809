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

use crate::error::{Problem, Result};

/// Waiting requests per permit: about as many as get a permit within the queue timeout.
const WAITING_PER_PLACE: usize = 64;

/// Concurrent requests that wait for a third party's server. They hold no connection to the
/// database meanwhile, so the limit may be higher than others.
const WAITING_OUTSIDE: usize = 256;

/// Concurrent unauthenticated requests. Slow senders delay only their own class.
const STRANGERS: usize = 64;

/// Concurrency limit of a class.
struct Gate {
    class: &'static str,
    places: Semaphore,
    queue: Semaphore,
    patience: Duration,
    shed: Counter,
    under_way: Gauge,
}

/// Permit of a class, released on drop.
struct Place<'a> {
    _permit: SemaphorePermit<'a>,
    under_way: &'a Gauge,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.under_way.dec();
    }
}

impl Gate {
    fn new(context: &Context, class: &'static str, places: usize) -> Self {
        let (shed, under_way) = context.metrics.http.class(class);
        Self {
            class,
            places: Semaphore::new(places),
            queue: Semaphore::new(places.saturating_mul(WAITING_PER_PLACE)),
            patience: context.config.limits.wait,
            shed,
            under_way,
        }
    }

    async fn enter(&self) -> Result<Place<'_>> {
        let permit = match self.places.try_acquire() {
            Ok(permit) => Some(permit),
            Err(_full) => self.wait().await,
        };

        let Some(permit) = permit else {
            self.shed.inc();
            let class = self.class;
            return Err(Error::Busy(
                format!("too many requests of class {class}; try again shortly").into(),
            )
            .into());
        };

        self.under_way.inc();
        Ok(Place {
            _permit: permit,
            under_way: &self.under_way,
        })
    }

    async fn wait(&self) -> Option<SemaphorePermit<'_>> {
        let _queued = self.queue.try_acquire().ok()?;
        timeout(self.patience, self.places.acquire())
            .await
            .ok()?
            .ok()
    }
}

/// Concurrency limits of all classes.
#[derive(Clone)]
pub struct Gates {
    reads: Arc<Gate>,
    changes: Arc<Gate>,
    outside: Arc<Gate>,
    strangers: Arc<Gate>,
}

impl Gates {
    /// Creates the limits of the settings.
    pub fn new(context: &Context) -> Self {
        let limits = &context.config.limits;
        Self {
            reads: Arc::new(Gate::new(context, "reads", limits.reads)),
            changes: Arc::new(Gate::new(context, "changes", limits.control)),
            outside: Arc::new(Gate::new(context, "third_party", WAITING_OUTSIDE)),
            strangers: Arc::new(Gate::new(context, "anonymous", STRANGERS)),
        }
    }
}

/// Middleware for reads and changes. The permit is released when the response begins.
pub async fn shed(Extension(gates): Extension<Gates>, request: Request, next: Next) -> Response {
    let gate = match request.method().is_safe() {
        true => &gates.reads,
        false => &gates.changes,
    };
    through(gate, request, next).await
}

/// Middleware for requests that wait for a third party's server.
pub async fn shed_outside(
    Extension(gates): Extension<Gates>,
    request: Request,
    next: Next,
) -> Response {
    through(&gates.outside, request, next).await
}

/// Middleware for unauthenticated requests.
pub async fn shed_strangers(
    Extension(gates): Extension<Gates>,
    request: Request,
    next: Next,
) -> Response {
    through(&gates.strangers, request, next).await
}

async fn through(gate: &Gate, request: Request, next: Next) -> Response {
    match gate.enter().await {
        Ok(_permit) => next.run(request).await,
        Err(problem) => Problem::into_response(problem),
    }
}
