//! Jobs: one file per kind, each with the handler of its payload.
//!
//! A handler gets ids, reads the current state, and returns an [`Outcome`]. It may run twice,
//! even at the same time (see [`peal_shared::platform::queue`]), so it must be idempotent; a row that has
//! vanished is [`Outcome::Done`].
//!
//! [`Registry`] finds the handler of a claimed job by its kind. A kind without a handler was
//! written by a later version: it is retried, so that a worker of that version gets it.

mod cancel_calls;
mod export_usage;
mod ingest_csv;
mod send_email;
mod start_batch;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use peal_shared::billing::export::ExportUsage;
use peal_shared::campaigns::ingest::IngestCsv;
use peal_shared::campaigns::lifecycle::{CancelCalls, StartBatch};
use peal_shared::context::Context;
use peal_shared::mail::SendEmail;
use peal_shared::platform::queue::{JobOutcome, JobPayload, RunningJob};
use tracing::Instrument;

/// Time before the retry of a job of an unknown kind.
const UNKNOWN_KIND_PAUSE: Duration = Duration::from_secs(30);

/// A payload with a handler for its kind of job; `S` is the state shared by handlers.
pub trait JobHandler<S>: JobPayload {
    /// Runs the job.
    fn handle(self, state: &S, job: &RunningJob) -> impl Future<Output = JobOutcome> + Send;
}

type BoxedHandler<S> =
    Box<dyn Fn(Arc<S>, Arc<RunningJob>) -> BoxFuture<'static, JobOutcome> + Send + Sync>;

/// The handlers by job kind.
pub struct HandlerRegistry<S> {
    handlers: HashMap<&'static str, BoxedHandler<S>>,
}

impl<S> fmt::Debug for HandlerRegistry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}

impl<S> Default for HandlerRegistry<S> {
    fn default() -> Self {
        Self {
            handlers: HashMap::new(),
        }
    }
}

impl<S: Send + Sync + 'static> HandlerRegistry<S> {
    /// Adds the handler of `P`.
    #[must_use]
    pub fn with<P: JobHandler<S>>(mut self) -> Self {
        let handler: BoxedHandler<S> = Box::new(|state, job| Box::pin(run::<S, P>(state, job)));
        self.handlers.insert(P::KIND, handler);
        self
    }

    /// Runs a job with the handler of its kind.
    pub async fn dispatch(&self, state: Arc<S>, job: Arc<RunningJob>) -> JobOutcome {
        let span = tracing::info_span!("job", job.id = %job.id, job.kind, job.attempt);
        match self.handlers.get(job.kind.as_str()) {
            Some(handler) => handler(state, job).instrument(span).await,
            None => JobOutcome::Retry {
                after: Some(UNKNOWN_KIND_PAUSE),
                why: format!("this version has no handler for '{}'", job.kind),
            },
        }
    }
}

async fn run<S: Send + Sync + 'static, P: JobHandler<S>>(
    state: Arc<S>,
    job: Arc<RunningJob>,
) -> JobOutcome {
    match job.payload::<P>() {
        Ok(payload) => payload.handle(&state, &job).await,
        Err(error) => JobOutcome::Fail {
            why: format!("the payload of '{}' is invalid: {error}", P::KIND),
        },
    }
}

/// The handlers of this version.
#[must_use]
pub fn registry() -> HandlerRegistry<Context> {
    HandlerRegistry::default()
        .with::<StartBatch>()
        .with::<CancelCalls>()
        .with::<IngestCsv>()
        .with::<SendEmail>()
        .with::<ExportUsage>()
}
