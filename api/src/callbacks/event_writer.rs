//! Batched writer of carrier events. Each callback is acknowledged after its commit.
//!
//! A callback takes a permit, queues its event and waits. Two writers take turns: a free one takes
//! all queued events, inserts them in one statement and resolves their callbacks, so batches grow
//! with the load. A small batch waits some milliseconds for more events, so that a hundred calls a
//! second do not cost hundreds of commits. The instructions for answered calls are read for the
//! whole batch, after the commit that decides which carrier call came first. When the database
//! rejects a batch, its events are inserted one by one, so that an invalid event affects no other.
//!
//! A permit is held from before the callback is parsed until its response. Short bursts wait a
//! moment for one. Without a free permit the carrier must retry, and gets that response with a
//! delay: after an immediate response thousands would retry at once, and rejecting them again
//! would take the time of the callbacks that have a permit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peal_shared::calls::answer::{AnswerRequest, answer_documents_unscoped};
use peal_shared::calls::events::{EventSource, NewCallEvent, append_events_unscoped};
use peal_shared::context::Context;
use peal_shared::platform::failpoint;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::telephony::AnswerDocument;
use peal_shared::{Error, Result};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::http::error::is_unreachable;

/// Concurrent writers: one inserts while the next batch fills.
const WRITERS: usize = 2;
/// Wait of a small batch for more events. Too short to be noticed on a call.
const BATCH_WINDOW: Duration = Duration::from_millis(5);
/// Batches of this size do not wait.
const MIN_BATCH: usize = 32;
/// Most events in one statement.
const MAX_BATCH: usize = 512;
/// Longest wait of a callback for its commit; carriers time out after 15 seconds.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(8);
/// Longest wait of a callback for a permit; permits are soon free again.
const PERMIT_TIMEOUT: Duration = Duration::from_millis(50);
/// Delay of the response to a rejected callback.
const REJECTION_DELAY: Duration = Duration::from_millis(450);
/// Shortest time between warnings about rejected callbacks.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// A queued event, and the channel for its result.
struct QueuedEvent {
    event: NewCallEvent,
    answer: oneshot::Sender<Result<StoredEvent>>,
}

/// Result of a stored event.
enum StoredEvent {
    /// The call does not exist on the trunk.
    UnknownCall,
    Accepted,
    /// Next instructions for an answered call.
    Answered(AnswerDocument),
}

/// Handle of the writers, with their queue.
#[derive(Clone)]
pub struct EventWriter {
    queue: mpsc::Sender<QueuedEvent>,
    permits: Arc<Semaphore>,
    /// Callbacks that may wait without a permit. Leaves connections to other requests.
    waiting_permits: Arc<Semaphore>,
    /// Time of the last warning about rejected callbacks.
    last_warning: Arc<std::sync::Mutex<Option<Instant>>>,
}

impl EventWriter {
    /// Spawns the writers, which run until the last clone of the handle is dropped.
    pub fn open(context: &Arc<Context>) -> Self {
        let (queue, queued) = mpsc::channel(context.config.inbox_capacity);
        let queued = Arc::new(Mutex::new(queued));
        for _ in 0..WRITERS {
            tokio::spawn(run_writer(Arc::clone(context), Arc::clone(&queued)));
        }

        Self {
            queue,
            permits: Arc::new(Semaphore::new(context.config.inbox_capacity)),
            waiting_permits: Arc::new(Semaphore::new(context.config.limits.connections / 2)),
            last_warning: Arc::default(),
        }
    }

    /// Acquires a permit for a callback, to be held until its response. Comes before all other
    /// work for the callback.
    ///
    /// # Errors
    /// [`Error::Busy`] after half a second: the carrier must retry.
    pub async fn acquire(&self) -> Result<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Ok(permit);
        }

        if let Ok(_waiting) = self.waiting_permits.try_acquire() {
            if let Ok(Ok(permit)) = timeout(PERMIT_TIMEOUT, permits.acquire_owned()).await {
                return Ok(permit);
            }
            sleep(REJECTION_DELAY).await;
        }

        Err(self.reject())
    }

    /// Stores an event. Returns after the commit.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the call does not exist on the trunk, [`Error::Busy`] when the
    /// queue is full or the commit takes too long: the carrier must retry.
    pub async fn insert_events(&self, event: NewCallEvent) -> Result<()> {
        match self.enqueue(event).await? {
            StoredEvent::Accepted | StoredEvent::Answered(_) => Ok(()),
            StoredEvent::UnknownCall => Err(Error::NotFound("Call")),
        }
    }

    /// Stores the event of an answered call, which must come from [`Source::Answer`]. Returns the
    /// instructions for the call, after the commit.
    ///
    /// # Errors
    /// Those of [`Self::append`].
    pub async fn answer(&self, event: NewCallEvent) -> Result<AnswerDocument> {
        match self.enqueue(event).await? {
            StoredEvent::Answered(document) => Ok(document),
            StoredEvent::Accepted | StoredEvent::UnknownCall => Err(Error::NotFound("Call")),
        }
    }

    async fn enqueue(&self, event: NewCallEvent) -> Result<StoredEvent> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .try_send(QueuedEvent { event, answer })
            .map_err(|_full| self.reject())?;

        match timeout(COMMIT_TIMEOUT, answered).await {
            Ok(Ok(written)) => written,
            Ok(Err(_gone)) => Err(Error::Busy("the server is stopping; retry".into())),
            Err(_elapsed) => {
                self.warn("callbacks are rejected: the commit takes too long");
                Err(Error::Busy("event queue is slow; retry".into()))
            }
        }
    }

    fn reject(&self) -> Error {
        self.warn("callbacks are rejected: the event queue is full");
        Error::Busy("event queue is full; retry".into())
    }

    /// Logs that callbacks are rejected. Rate-limited: a log line for each would add to the load.
    fn warn(&self, message: &'static str) {
        if let Ok(mut warned_at) = self.last_warning.try_lock()
            && warned_at.is_none_or(|at| at.elapsed() > WARNING_INTERVAL)
        {
            *warned_at = Some(Instant::now());
            tracing::warn!(capacity = self.queue.max_capacity(), "{message}");
        }
    }
}

async fn run_writer(context: Arc<Context>, queue: Arc<Mutex<mpsc::Receiver<QueuedEvent>>>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        // Unlocks the queue for the other writer as soon as this one has its batch.
        if !fill_batch(&mut *queue.lock().await, &mut batch).await {
            return;
        }

        // All writers insert in one order, so that they cannot deadlock on the same events.
        batch.sort_by(|a: &QueuedEvent, b: &QueuedEvent| {
            lock_key(&a.event).cmp(&lock_key(&b.event))
        });
        let (events, answers): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .map(|waiting| (waiting.event, waiting.answer))
            .unzip();

        // The commit; only then wake the workers and resolve the callbacks.
        let known = append_batch(&context, &events).await;
        if known.iter().any(|known| matches!(known, Ok(true))) {
            context.wakeups.notify(WakeupChannel::Inbox);
        }

        let results = resolve_events(&context, &events, known).await;
        for (answer, result) in answers.into_iter().zip(results) {
            // A callback that has stopped waiting is sent again by its carrier.
            let _gone = answer.send(result);
        }
    }
}

/// Takes a batch from the queue; false when the queue is closed and empty.
async fn fill_batch(queue: &mut mpsc::Receiver<QueuedEvent>, batch: &mut Vec<QueuedEvent>) -> bool {
    let taken = queue.recv_many(batch, MAX_BATCH).await;
    if (1..MIN_BATCH).contains(&taken) {
        sleep(BATCH_WINDOW).await;
        while batch.len() < MAX_BATCH
            && let Ok(waiting) = queue.try_recv()
        {
            batch.push(waiting);
        }
    }

    taken > 0
}

fn lock_key(event: &NewCallEvent) -> (peal_shared::platform::ids::CallId, &str) {
    (event.call, &event.event.dedup_key)
}

/// Stores events; true for each whose call exists, in order.
async fn append_batch(context: &Context, events: &[NewCallEvent]) -> Vec<Result<bool>> {
    match insert_events(context, events).await {
        Ok(known) => known.into_iter().map(Ok).collect(),
        Err(Error::Unexpected(cause)) if !is_unreachable(&cause) => {
            if events.len() == 1 {
                return vec![Err(Error::Unexpected(cause))];
            }

            tracing::warn!(
                events = events.len(),
                error = format!("{cause:#}"),
                "the database rejected a batch of events; inserting them one by one"
            );

            let mut results = Vec::with_capacity(events.len());
            for event in events {
                let single = insert_events(context, std::slice::from_ref(event)).await;
                results.push(single.map(|known| known.first() == Some(&true)));
            }
            results
        }
        Err(error) => {
            tracing::error!(
                events = events.len(),
                error = format!("{error:#}"),
                "a batch of events could not be stored; carriers must retry"
            );
            events.iter().map(|_| Err(must_retry())).collect()
        }
    }
}

/// Stores events in one statement, which is one transaction.
async fn insert_events(context: &Context, events: &[NewCallEvent]) -> Result<Vec<bool>> {
    let mut db = context.callback_pool.acquire().await?;
    let known = append_events_unscoped(&mut db, events).await?;
    context.metrics.events.record_appended(events.len());
    failpoint::hit("append.committed");
    Ok(known)
}

/// Returns one result for each event, in order. Reads the instructions for all answered calls in
/// one statement.
async fn resolve_events(
    context: &Context,
    events: &[NewCallEvent],
    known: Vec<Result<bool>>,
) -> Vec<Result<StoredEvent>> {
    let answered: Vec<AnswerRequest> = events
        .iter()
        .zip(&known)
        .enumerate()
        .filter(|(_, (new, known))| new.source == EventSource::Answer && matches!(known, Ok(true)))
        .map(|(n, (new, _))| AnswerRequest {
            index: n,
            call: new.call,
            carrier_call_id: new.event.carrier_call_id.clone().unwrap_or_default(),
        })
        .collect();

    let mut results: Vec<Result<StoredEvent>> = known
        .into_iter()
        .map(|known| {
            known.map(|known| match known {
                true => StoredEvent::Accepted,
                false => StoredEvent::UnknownCall,
            })
        })
        .collect();
    if answered.is_empty() {
        return results;
    }

    let documents = match read_documents(context, &answered).await {
        Ok(documents) => documents,
        Err(error) => {
            tracing::error!(
                calls = answered.len(),
                error = format!("{error:#}"),
                "instructions for answered calls could not be read; carriers must retry"
            );
            Vec::new()
        }
    };

    // An answered call without instructions must be retried.
    for AnswerRequest { index: n, .. } in answered {
        if let Some(slot) = results.get_mut(n) {
            *slot = Err(must_retry());
        }
    }
    for (n, document) in documents {
        if let Some(slot) = results.get_mut(n) {
            *slot = Ok(StoredEvent::Answered(document));
        }
    }
    results
}

async fn read_documents(
    context: &Context,
    answered: &[AnswerRequest],
) -> Result<Vec<(usize, AnswerDocument)>> {
    let mut db = context.callback_pool.acquire().await?;
    answer_documents_unscoped(&mut db, answered).await
}

fn must_retry() -> Error {
    Error::Busy("the database does not answer; retry".into())
}
