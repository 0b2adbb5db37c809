//! `/api/v1/batch-call/{batch_id}/events`: progress of a batch as server-sent events.
//!
//! `progress` is sent when the state has changed, at most once a second. `end` is the last event
//! when the batch is completed, or stopped with no call left. `unauthorized` is the last event
//! when the viewer is no longer authorized. All viewers of a batch share one query a second: the
//! first viewer starts the poll task, which ends with the last viewer.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderName;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use futures::stream::Stream;
use peal_shared::Error;
use peal_shared::access::{Scope, row_level_security};
use peal_shared::campaigns::progress::{BatchSnapshot, snapshot};
use peal_shared::campaigns::{BatchStatus, batches};
use peal_shared::context::Context;
use peal_shared::platform::ids::BatchId;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::auth::stream_revalidation::CallerRegistration;
use crate::http::error::Result;
use crate::http::extract::PathIds;
use crate::http::openapi::{CommonErrors, NotFoundResponse};
use crate::limits::stream_limit::OpenStream;
use crate::state::AppState;

/// Interval at which a watched batch is read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Most batches that are read at the same time.
const MAX_CONCURRENT_POLLS: usize = 2;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest stream. The client's next one is authenticated again.
const MAX_STREAM_DURATION: Duration = Duration::from_secs(3600);
/// Data of the last event when the viewer is no longer authorized.
const UNAUTHORIZED_DATA: &str = r#"{"code": "unauthorized", "detail": "the key or session has ended, or the rights of its user have changed: authenticate again"}"#;
/// Header that makes proxies forward events without buffering.
const UNBUFFERED: [(HeaderName, &str); 1] = [(HeaderName::from_static("x-accel-buffering"), "no")];

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Watch a batch
///
/// Server-sent events: `progress` when the state has changed, at most once a second, and `end`
/// when the batch is completed, or stopped with no call left. While nothing is dialled,
/// `waiting` gives the reason. When the key or session ends, or its user's rights change, the
/// last event is `unauthorized`.
#[utoipa::path(
    get,
    path = "/{batch_id}/events",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (
            status = 200, body = BatchSnapshot, content_type = "text/event-stream",
            description = "Each event's data",
            example = json!("event: progress\ndata: {\"status\": \"in_progress\"}\n\n")
        ),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn events(
    State(api): State<AppState>,
    caller: Caller,
    PathIds(batch): PathIds<BatchId>,
) -> Result<Response> {
    let scope = caller.scope();
    let mut db = caller.begin_read(&api.context).await?;
    batches::find(&mut db, &scope, batch).await?;
    drop(db);

    let stream = api.stream_limits.open(caller.org)?;
    let caller = api.stream_revalidation.register(&api.context, &caller);
    let seen = api.watches.subscribe(&api, batch, scope);

    let events = Sse::new(EventViewer::new(seen, caller, api.shutdown, stream).into_events())
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok((UNBUFFERED, events).into_response())
}

/// Latest state of a watched batch.
#[derive(Clone, Default)]
struct BatchState {
    progress: Option<Arc<str>>,
    ended: bool,
}

/// Poll tasks of the batches that have viewers.
#[derive(Clone)]
pub struct BatchEventHub {
    senders: Arc<Mutex<HashMap<BatchId, Arc<watch::Sender<BatchState>>>>>,
    poll_permits: Arc<Semaphore>,
}

impl Default for BatchEventHub {
    fn default() -> Self {
        Self {
            senders: Arc::default(),
            poll_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_POLLS)),
        }
    }
}

impl BatchEventHub {
    /// Subscribes to a batch, and starts its poll task when there is none. The poll uses the
    /// scope of its first viewer: the state is the same for all who may see the batch.
    fn subscribe(
        &self,
        api: &AppState,
        batch: BatchId,
        scope: Scope,
    ) -> watch::Receiver<BatchState> {
        let mut open = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = open.get(&batch) {
            let mut seen = sender.subscribe();
            if sender.borrow().progress.is_some() {
                seen.mark_changed();
            }
            return seen;
        }

        let (sender, seen) = watch::channel(BatchState::default());
        let sender = Arc::new(sender);
        open.insert(batch, Arc::clone(&sender));

        let (context, watches) = (Arc::clone(&api.context), self.clone());
        let shutdown = api.shutdown.clone();

        tokio::spawn(async move {
            let polling = watches.poll(&context, batch, scope, &sender);
            shutdown.run_until_cancelled(polling).await;
            watches.remove_if(batch, &sender, |_| true);
        });
        seen
    }

    /// Reads the batch until it has ended, is deleted, or has no viewers.
    async fn poll(
        &self,
        context: &Context,
        batch: BatchId,
        scope: Scope,
        sender: &Arc<watch::Sender<BatchState>>,
    ) {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

        loop {
            ticks.tick().await;
            if self.remove_if(batch, sender, |sender| sender.receiver_count() == 0) {
                return;
            }

            let read = async {
                // Leaves most connections to requests, however many batches are watched.
                let _permit = self.poll_permits.acquire().await;
                let mut db = row_level_security::begin(&context.pool, &scope).await?;
                let snapshot = snapshot(&mut db, &scope, batch).await?;
                let progress = serde_json::to_string(&snapshot)?;
                Ok::<_, Error>((Arc::<str>::from(progress), is_finished(&snapshot)))
            };

            match read.await {
                Ok((progress, ended)) => {
                    publish(sender, progress, ended);
                    if ended {
                        return;
                    }
                }
                Err(Error::NotFound(_)) => return,
                Err(error) => {
                    tracing::debug!(batch.id = %batch, %error, "a watched batch could not be read");
                }
            }
        }
    }

    /// Removes this sender if the condition holds, under the lock that subscribers take. True
    /// when it is removed, by this call or before: a later sender of the batch stays.
    fn remove_if(
        &self,
        batch: BatchId,
        watch: &Arc<watch::Sender<BatchState>>,
        when: impl FnOnce(&watch::Sender<BatchState>) -> bool,
    ) -> bool {
        let mut open = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get(&batch) {
            Some(sender) if !Arc::ptr_eq(sender, watch) => true,
            None => true,
            Some(sender) if when(sender) => {
                open.remove(&batch);
                true
            }
            Some(_) => false,
        }
    }
}

fn publish(sender: &watch::Sender<BatchState>, progress: Arc<str>, ended: bool) {
    sender.send_if_modified(|seen| {
        let changed = seen.progress.as_ref() != Some(&progress) || seen.ended != ended;
        seen.progress = Some(progress);
        seen.ended = ended;
        changed
    });
}

fn is_finished(snapshot: &BatchSnapshot) -> bool {
    match snapshot.status {
        BatchStatus::Completed => true,
        BatchStatus::Stopped => snapshot.status_counts.calling == 0,
        _ => false,
    }
}

/// One viewer's stream of events.
struct EventViewer {
    _stream: OpenStream,
    updates: watch::Receiver<BatchState>,
    caller: CallerRegistration,
    shutdown: CancellationToken,
    until: Instant,
    stage: ViewerStage,
}

/// Next event of a viewer.
enum ViewerStage {
    Progress,
    End,
    Nothing,
}

impl EventViewer {
    fn new(
        updates: watch::Receiver<BatchState>,
        caller: CallerRegistration,
        shutdown: CancellationToken,
        stream: OpenStream,
    ) -> Self {
        Self {
            _stream: stream,
            updates,
            caller,
            shutdown,
            until: Instant::now() + MAX_STREAM_DURATION,
            stage: ViewerStage::Progress,
        }
    }

    fn into_events(self) -> impl Stream<Item = std::result::Result<Event, Infallible>> {
        stream::unfold(self, async |mut viewer| {
            let event = viewer.next_event().await?;
            Some((Ok(event), viewer))
        })
    }

    async fn next_event(&mut self) -> Option<Event> {
        let name = match self.stage {
            ViewerStage::Progress => {
                let changed = timeout_at(self.until, self.updates.changed());
                tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return None,
                    () = self.caller.revoked() => {
                        self.stage = ViewerStage::Nothing;
                        return Some(Event::default().event("unauthorized").data(UNAUTHORIZED_DATA));
                    }
                    changed = changed => changed.ok()?.ok()?,
                }
                "progress"
            }
            ViewerStage::End => "end",
            ViewerStage::Nothing => return None,
        };

        let latest = self.updates.borrow_and_update().clone();
        self.stage = match (&self.stage, latest.ended) {
            (ViewerStage::Progress, false) => ViewerStage::Progress,
            (ViewerStage::Progress, true) => ViewerStage::End,
            _ => ViewerStage::Nothing,
        };

        Some(Event::default().event(name).data(latest.progress?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_closes_itself_and_not_its_successor() {
        let watches = BatchEventHub::default();
        let batch = BatchId::new();
        let open = || {
            let (sender, _seen) = watch::channel(BatchState::default());
            let sender = Arc::new(sender);
            let mut open = watches.senders.lock().unwrap();
            open.insert(batch, Arc::clone(&sender));
            sender
        };
        let first = open();
        assert!(!watches.remove_if(batch, &first, |_| false));
        assert!(watches.remove_if(batch, &first, |sender| sender.receiver_count() == 0));
        let second = open();
        assert!(watches.remove_if(batch, &first, |_| true));
        assert!(Arc::ptr_eq(
            &watches.senders.lock().unwrap()[&batch],
            &second
        ));
    }
}
