//! How much is taken on at once. Requests come in classes, each with a bound of its own, so
//! that a flood in one leaves the others alone:
//!
//! | class | bounded by |
//! |---|---|
//! | callbacks, health | the inbox's places; connections to the database that nobody else uses |
//! | changes (start, pause, create ...) | `PEAL_LIMIT_CONTROL` |
//! | reads | `PEAL_LIMIT_READS` |
//! | uploads | `PEAL_LIMIT_UPLOADS` |
//! | changes that wait for a user's own server (a tool's test, an MCP server's list) | [`WAITING_OUTSIDE`], and for each organisation by the gate |
//! | what nobody needs to be anybody for (signing in, accepting an invitation) | [`STRANGERS`] |
//! | event streams | `PEAL_LIMIT_STREAMS`, `PEAL_LIMIT_STREAMS_PER_ORG`; their beginning is a read |
//!
//! A request whose class is full waits a moment for its turn, if few others do, and gets 503
//! with `Retry-After` otherwise: what is answered is answered soon, and the rest learns soon that
//! it should come again.

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

/// For each request under way, so many may wait: about as many as have their turn before they
/// lose patience.
const WAITING_PER_PLACE: usize = 64;

/// Requests that wait for somebody else's server. They hold no connection to the database while
/// they do, so there may be more than of others; in their class they hold up nobody else.
const WAITING_OUTSIDE: usize = 256;

/// Requests of strangers. However slowly they send, they hold up each other alone.
const STRANGERS: usize = 64;

/// The bound of a class.
struct Gate {
    class: &'static str,
    places: Semaphore,
    queue: Semaphore,
    patience: Duration,
    shed: Counter,
    under_way: Gauge,
}

/// A place in a class; free again when it is dropped.
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
            return Err(
                Error::Busy(format!("too many {class} at once; try again shortly").into()).into(),
            );
        };
        self.under_way.inc();
        Ok(Place {
            _permit: permit,
            under_way: &self.under_way,
        })
    }

    async fn wait(&self) -> Option<SemaphorePermit<'_>> {
        let _stand = self.queue.try_acquire().ok()?;
        timeout(self.patience, self.places.acquire())
            .await
            .ok()?
            .ok()
    }
}

/// The bounds of the classes that go through here.
#[derive(Clone)]
pub struct Gates {
    reads: Arc<Gate>,
    changes: Arc<Gate>,
    outside: Arc<Gate>,
    strangers: Arc<Gate>,
}

impl Gates {
    /// As the settings say.
    pub fn new(context: &Context) -> Self {
        let limits = &context.config.limits;
        Self {
            reads: Arc::new(Gate::new(context, "reads", limits.reads)),
            changes: Arc::new(Gate::new(context, "changes", limits.control)),
            outside: Arc::new(Gate::new(context, "outside", WAITING_OUTSIDE)),
            strangers: Arc::new(Gate::new(context, "strangers", STRANGERS)),
        }
    }
}

/// Lets a request in when its class has a place. The place is free when the answer begins.
pub async fn shed(Extension(gates): Extension<Gates>, request: Request, next: Next) -> Response {
    let gate = match request.method().is_safe() {
        true => &gates.reads,
        false => &gates.changes,
    };
    through(gate, request, next).await
}

/// The same for requests that wait for somebody else's server.
pub async fn shed_outside(
    Extension(gates): Extension<Gates>,
    request: Request,
    next: Next,
) -> Response {
    through(&gates.outside, request, next).await
}

/// The same for requests of whoever comes.
pub async fn shed_strangers(
    Extension(gates): Extension<Gates>,
    request: Request,
    next: Next,
) -> Response {
    through(&gates.strangers, request, next).await
}

async fn through(gate: &Gate, request: Request, next: Next) -> Response {
    match gate.enter().await {
        Ok(_place) => next.run(request).await,
        Err(problem) => Problem::into_response(problem),
    }
}
