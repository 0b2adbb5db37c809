//! `/api/v1/batch-call/{batch_id}/events`: progress of a batch as server-sent events.
//!
//! `progress` is sent when the state has changed, at most once a second. `end` is the last event
//! when the batch is completed, or stopped with no call left. `unauthorized` is the last event
//! when the viewer is no longer authorized. All viewers of a batch share the poll of
//! [`BatchEventHub`](super::event_hub::BatchEventHub).

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderName;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use futures::stream::Stream;
use peal_shared::campaigns::batches;
use peal_shared::campaigns::progress::BatchSnapshot;
use peal_shared::platform::ids::BatchId;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::auth::stream_revalidation::CallerRegistration;
use crate::batches::event_hub::BatchState;
use crate::http::error::Result;
use crate::http::extract::PathIds;
use crate::http::openapi::{CommonErrors, NotFoundResponse};
use crate::limits::stream_limit::OpenStream;
use crate::state::AppState;

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
    let seen = api
        .batch_events
        .subscribe(&api.context, &api.shutdown, batch, scope);

    let events = Sse::new(EventViewer::new(seen, caller, api.shutdown, stream).into_events())
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok((UNBUFFERED, events).into_response())
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
