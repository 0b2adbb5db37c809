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

use peal_shared::bells::Bell;
use peal_shared::calls::answer::{Answered, documents_unscoped};
use peal_shared::calls::inbox::{NewEvent, Source, append_unscoped};
use peal_shared::context::Context;
use peal_shared::fault;
use peal_shared::telephony::Document;
use peal_shared::{Error, Result};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::error::is_unreachable;

/// Concurrent writers: one inserts while the next batch fills.
const WRITERS: usize = 2;
/// Wait of a small batch for more events. Too short to be noticed on a call.
const GATHER: Duration = Duration::from_millis(5);
/// Batches of this size do not wait.
const COMPANY: usize = 32;
/// Most events in one statement.
const GROUP_LIMIT: usize = 512;
/// Longest wait of a callback for its commit; carriers time out after 15 seconds.
const COMMIT_LIMIT: Duration = Duration::from_secs(8);
/// Longest wait of a callback for a permit; permits are soon free again.
const PLACE_PATIENCE: Duration = Duration::from_millis(50);
/// Delay of the response to a rejected callback.
const REFUSAL_PAUSE: Duration = Duration::from_millis(450);
/// Shortest time between warnings about rejected callbacks.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// A queued event, and the channel for its result.
struct Waiting {
    event: NewEvent,
    answer: oneshot::Sender<Result<Written>>,
}

/// Result of a stored event.
enum Written {
    /// The call does not exist on the trunk.
    Stranger,
    Noted,
    /// Next instructions for an answered call.
    Says(Document),
}

/// Handle of the writers, with their queue.
#[derive(Clone)]
pub struct Inbox {
    line: mpsc::Sender<Waiting>,
    places: Arc<Semaphore>,
    /// Callbacks that may wait without a permit. Leaves connections to other requests.
    patient: Arc<Semaphore>,
    /// Time of the last warning about rejected callbacks.
    complained: Arc<std::sync::Mutex<Option<Instant>>>,
}

impl Inbox {
    /// Spawns the writers, which run until the last clone of the handle is dropped.
    pub fn open(context: &Arc<Context>) -> Self {
        let (line, queued) = mpsc::channel(context.config.inbox_capacity);
        let queued = Arc::new(Mutex::new(queued));
        for _ in 0..WRITERS {
            tokio::spawn(write(Arc::clone(context), Arc::clone(&queued)));
        }

        Self {
            line,
            places: Arc::new(Semaphore::new(context.config.inbox_capacity)),
            patient: Arc::new(Semaphore::new(context.config.limits.connections / 2)),
            complained: Arc::default(),
        }
    }

    /// Acquires a permit for a callback, to be held until its response. Comes before all other
    /// work for the callback.
    ///
    /// # Errors
    /// [`Error::Busy`] after half a second: the carrier must retry.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.places);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Ok(permit);
        }

        if let Ok(_waiting) = self.patient.try_acquire() {
            if let Ok(Ok(permit)) = timeout(PLACE_PATIENCE, permits.acquire_owned()).await {
                return Ok(permit);
            }
            sleep(REFUSAL_PAUSE).await;
        }

        Err(self.too_many())
    }

    /// Stores an event. Returns after the commit.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the call does not exist on the trunk, [`Error::Busy`] when the
    /// queue is full or the commit takes too long: the carrier must retry.
    pub async fn append(&self, event: NewEvent) -> Result<()> {
        match self.put(event).await? {
            Written::Noted | Written::Says(_) => Ok(()),
            Written::Stranger => Err(Error::NotFound("Call")),
        }
    }

    /// Stores the event of an answered call, which must come from [`Source::Answer`]. Returns the
    /// instructions for the call, after the commit.
    ///
    /// # Errors
    /// Those of [`Self::append`].
    pub async fn answer(&self, event: NewEvent) -> Result<Document> {
        match self.put(event).await? {
            Written::Says(document) => Ok(document),
            Written::Noted | Written::Stranger => Err(Error::NotFound("Call")),
        }
    }

    async fn put(&self, event: NewEvent) -> Result<Written> {
        let (answer, answered) = oneshot::channel();
        self.line
            .try_send(Waiting { event, answer })
            .map_err(|_full| self.too_many())?;

        match timeout(COMMIT_LIMIT, answered).await {
            Ok(Ok(written)) => written,
            Ok(Err(_gone)) => Err(Error::Busy("the server is stopping; retry".into())),
            Err(_elapsed) => {
                self.complain("callbacks are rejected: the commit takes too long");
                Err(Error::Busy("event queue is slow; retry".into()))
            }
        }
    }

    fn too_many(&self) -> Error {
        self.complain("callbacks are rejected: the event queue is full");
        Error::Busy("event queue is full; retry".into())
    }

    /// Logs that callbacks are rejected. Rate-limited: a log line for each would add to the load.
    fn complain(&self, message: &'static str) {
        if let Ok(mut warned_at) = self.complained.try_lock()
            && warned_at.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY)
        {
            *warned_at = Some(Instant::now());
            tracing::warn!(capacity = self.line.max_capacity(), "{message}");
        }
    }
}

async fn write(context: Arc<Context>, queue: Arc<Mutex<mpsc::Receiver<Waiting>>>) {
    let mut batch = Vec::with_capacity(GROUP_LIMIT);
    loop {
        // Unlocks the queue for the other writer as soon as this one has its batch.
        if !gather(&mut *queue.lock().await, &mut batch).await {
            return;
        }

        // All writers insert in one order, so that they cannot deadlock on the same events.
        batch.sort_by(|a: &Waiting, b: &Waiting| key(&a.event).cmp(&key(&b.event)));
        let (events, answers): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .map(|waiting| (waiting.event, waiting.answer))
            .unzip();

        // The commit; only then wake the workers and resolve the callbacks.
        let known = append_group(&context, &events).await;
        if known.iter().any(|known| matches!(known, Ok(true))) {
            context.bells.ring(Bell::Inbox);
        }

        let results = say(&context, &events, known).await;
        for (answer, result) in answers.into_iter().zip(results) {
            // A callback that has stopped waiting is sent again by its carrier.
            let _gone = answer.send(result);
        }
    }
}

/// Takes a batch from the queue; false when the queue is closed and empty.
async fn gather(queue: &mut mpsc::Receiver<Waiting>, batch: &mut Vec<Waiting>) -> bool {
    let taken = queue.recv_many(batch, GROUP_LIMIT).await;
    if (1..COMPANY).contains(&taken) {
        sleep(GATHER).await;
        while batch.len() < GROUP_LIMIT
            && let Ok(waiting) = queue.try_recv()
        {
            batch.push(waiting);
        }
    }

    taken > 0
}

fn key(event: &NewEvent) -> (peal_shared::ids::CallId, &str) {
    (event.call, &event.event.dedup_key)
}

/// Stores events; true for each whose call exists, in order.
async fn append_group(context: &Context, events: &[NewEvent]) -> Vec<Result<bool>> {
    match append(context, events).await {
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
                let single = append(context, std::slice::from_ref(event)).await;
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
            events.iter().map(|_| Err(unanswered())).collect()
        }
    }
}

/// Stores events in one statement, which is one transaction.
async fn append(context: &Context, events: &[NewEvent]) -> Result<Vec<bool>> {
    let mut db = context.callbacks.acquire().await?;
    let known = append_unscoped(&mut db, events).await?;
    context.metrics.events.appended(events.len());
    fault::point("append.committed");
    Ok(known)
}

/// Returns one result for each event, in order. Reads the instructions for all answered calls in
/// one statement.
async fn say(
    context: &Context,
    events: &[NewEvent],
    known: Vec<Result<bool>>,
) -> Vec<Result<Written>> {
    let answered: Vec<Answered> = events
        .iter()
        .zip(&known)
        .enumerate()
        .filter(|(_, (new, known))| new.source == Source::Answer && matches!(known, Ok(true)))
        .map(|(n, (new, _))| Answered {
            n,
            call: new.call,
            carrier_call_id: new.event.carrier_call_id.clone().unwrap_or_default(),
        })
        .collect();

    let mut results: Vec<Result<Written>> = known
        .into_iter()
        .map(|known| {
            known.map(|known| match known {
                true => Written::Noted,
                false => Written::Stranger,
            })
        })
        .collect();
    if answered.is_empty() {
        return results;
    }

    let documents = match documents(context, &answered).await {
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
    for Answered { n, .. } in answered {
        if let Some(slot) = results.get_mut(n) {
            *slot = Err(unanswered());
        }
    }
    for (n, document) in documents {
        if let Some(slot) = results.get_mut(n) {
            *slot = Ok(Written::Says(document));
        }
    }
    results
}

async fn documents(context: &Context, answered: &[Answered]) -> Result<Vec<(usize, Document)>> {
    let mut db = context.callbacks.acquire().await?;
    documents_unscoped(&mut db, answered).await
}

fn unanswered() -> Error {
    Error::Busy("the database does not answer; retry".into())
}
