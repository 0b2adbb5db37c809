//! The inbox: events of carriers are written down many at a time, and each is acknowledged
//! only behind the commit.
//!
//! A callback takes one of so many places, puts its event in the line and waits. Two writers take
//! turns: whoever is free takes all that stands in the line, writes it in one statement and
//! answers everybody in it, so the busier it is, the larger the groups; while it is not busy, it
//! waits some milliseconds for company, so that a hundred calls a second do not cost hundreds of
//! commits. What answered calls say is read for the whole group at once, behind the commit that
//! decides which carrier call came first. When a group is refused, its events are written one by
//! one, so that one that cannot be written stands in nobody's way.
//!
//! A place is had from before the callback is looked at until its answer. What comes in a short
//! burst waits a moment for one. When none is free by then, the carrier is told to come again, but
//! not at once: told so at once, thousands come right back, and turning them away again and again
//! would take the time of those who have a place.

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

/// Statements on their way at once: one is written while the next group gathers.
const WRITERS: usize = 2;
/// How long a small group waits for company. Nobody on the phone notices, and carriers wait
/// for seconds.
const GATHER: Duration = Duration::from_millis(5);
/// Groups of so many events do not wait.
const COMPANY: usize = 32;
/// Most events of one statement.
const GROUP_LIMIT: usize = 512;
/// How long a carrier waits for the commit; it gives up itself after 15 seconds.
const COMMIT_LIMIT: Duration = Duration::from_secs(8);
/// How long a callback may wait for a place: what is taken is answered soon.
const PLACE_PATIENCE: Duration = Duration::from_millis(50);
/// How long a callback that is turned away is kept waiting for that answer.
const REFUSAL_PAUSE: Duration = Duration::from_millis(450);
/// How often to say that callbacks are turned away.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// An event in the line, and where to answer.
struct Waiting {
    event: NewEvent,
    answer: oneshot::Sender<Result<Written>>,
}

/// What is said of an event that is written down.
enum Written {
    /// Its call does not exist on its trunk.
    Stranger,
    Noted,
    /// What an answered call says next.
    Says(Document),
}

/// The line in front of the writers.
#[derive(Clone)]
pub struct Inbox {
    line: mpsc::Sender<Waiting>,
    places: Arc<Semaphore>,
    /// Those who may wait without a place. The rest of the connections are for others.
    patient: Arc<Semaphore>,
    /// When it was last said that callbacks are turned away.
    complained: Arc<std::sync::Mutex<Option<Instant>>>,
}

impl Inbox {
    /// Opens the inbox; its writers work until the last clone of it is gone.
    pub fn open(context: &Arc<Context>) -> Self {
        let (line, waiting) = mpsc::channel(context.config.inbox_capacity);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WRITERS {
            tokio::spawn(write(Arc::clone(context), Arc::clone(&waiting)));
        }
        Self {
            line,
            places: Arc::new(Semaphore::new(context.config.inbox_capacity)),
            patient: Arc::new(Semaphore::new(context.config.limits.connections / 2)),
            complained: Arc::default(),
        }
    }

    /// A place for a callback, to be kept until its answer. To be asked for before anything is
    /// done for a callback that could not be taken anyway.
    ///
    /// # Errors
    /// [`Error::Busy`], half a second later: the carrier is to come again.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Ok(place);
        }
        if let Ok(_patience) = self.patient.try_acquire() {
            if let Ok(Ok(place)) = timeout(PLACE_PATIENCE, places.acquire_owned()).await {
                return Ok(place);
            }
            sleep(REFUSAL_PAUSE).await;
        }
        Err(self.too_many())
    }

    /// Writes an event down. Answers behind the commit.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the call does not exist on the trunk, [`Error::Busy`] when the
    /// line is full or the commit takes too long: the carrier is to come again.
    pub async fn append(&self, event: NewEvent) -> Result<()> {
        match self.put(event).await? {
            Written::Noted | Written::Says(_) => Ok(()),
            Written::Stranger => Err(Error::NotFound("Call")),
        }
    }

    /// Writes down that a call was answered, which must come from [`Source::Answer`], and
    /// answers behind the commit with what the call says.
    ///
    /// # Errors
    /// As [`Self::append`].
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
            Ok(Err(_gone)) => Err(Error::Busy("the inbox is closing; come again".into())),
            Err(_elapsed) => {
                self.complain("callbacks are turned away: their commit takes too long");
                Err(Error::Busy("the inbox is slow; come again".into()))
            }
        }
    }

    fn too_many(&self) -> Error {
        self.complain("callbacks are turned away: more come than can be written down");
        Error::Busy("too many callbacks at once; come again".into())
    }

    /// Carriers that are turned away are counted; a line for each would only make it worse.
    fn complain(&self, what: &'static str) {
        if let Ok(mut complained) = self.complained.try_lock()
            && complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY)
        {
            *complained = Some(Instant::now());
            tracing::warn!(capacity = self.line.max_capacity(), what);
        }
    }
}

async fn write(context: Arc<Context>, line: Arc<Mutex<mpsc::Receiver<Waiting>>>) {
    let mut group = Vec::with_capacity(GROUP_LIMIT);
    loop {
        // The line is free for the other writer as soon as this one has its group.
        if !gather(&mut *line.lock().await, &mut group).await {
            return;
        }
        // One order for everybody: writers that hold the same events never wait in a circle.
        group.sort_by(|a: &Waiting, b: &Waiting| key(&a.event).cmp(&key(&b.event)));
        let (events, answers): (Vec<_>, Vec<_>) = group
            .drain(..)
            .map(|waiting| (waiting.event, waiting.answer))
            .unzip();
        let known = append_group(&context, &events).await;
        if known.iter().any(|known| matches!(known, Ok(true))) {
            context.bells.ring(Bell::Inbox);
        }
        let written = say(&context, &events, known).await;
        for (answer, result) in answers.into_iter().zip(written) {
            // Whoever has stopped waiting will come again.
            let _gone = answer.send(result);
        }
    }
}

/// Takes a group from the line; false when the line is closed and empty.
async fn gather(line: &mut mpsc::Receiver<Waiting>, group: &mut Vec<Waiting>) -> bool {
    let taken = line.recv_many(group, GROUP_LIMIT).await;
    if (1..COMPANY).contains(&taken) {
        sleep(GATHER).await;
        while group.len() < GROUP_LIMIT
            && let Ok(waiting) = line.try_recv()
        {
            group.push(waiting);
        }
    }
    taken > 0
}

fn key(event: &NewEvent) -> (peal_shared::ids::CallId, &str) {
    (event.call, &event.event.dedup_key)
}

/// Whether the call of each event exists, in order.
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
                "a group of events was refused; they are written one by one"
            );
            let mut results = Vec::with_capacity(events.len());
            for event in events {
                let alone = append(context, std::slice::from_ref(event)).await;
                results.push(alone.map(|known| known.first() == Some(&true)));
            }
            results
        }
        Err(error) => {
            tracing::error!(
                events = events.len(),
                error = format!("{error:#}"),
                "a group of events could not be written; carriers come again"
            );
            events.iter().map(|_| Err(unanswered())).collect()
        }
    }
}

/// One statement is one transaction.
async fn append(context: &Context, events: &[NewEvent]) -> Result<Vec<bool>> {
    let mut db = context.callbacks.acquire().await?;
    let known = append_unscoped(&mut db, events).await?;
    context.metrics.events.appended(events.len());
    fault::point("append.committed");
    Ok(known)
}

/// One answer for each event, in order: the calls among them that were answered get what they
/// say, all in one statement.
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
    let mut written: Vec<Result<Written>> = known
        .into_iter()
        .map(|known| {
            known.map(|known| match known {
                true => Written::Noted,
                false => Written::Stranger,
            })
        })
        .collect();
    if answered.is_empty() {
        return written;
    }
    let documents = match documents(context, &answered).await {
        Ok(documents) => documents,
        Err(error) => {
            tracing::error!(
                calls = answered.len(),
                error = format!("{error:#}"),
                "what calls say could not be read; carriers come again"
            );
            Vec::new()
        }
    };
    for Answered { n, .. } in answered {
        if let Some(slot) = written.get_mut(n) {
            *slot = Err(unanswered());
        }
    }
    for (n, document) in documents {
        if let Some(slot) = written.get_mut(n) {
            *slot = Ok(Written::Says(document));
        }
    }
    written
}

async fn documents(context: &Context, answered: &[Answered]) -> Result<Vec<(usize, Document)>> {
    let mut db = context.callbacks.acquire().await?;
    documents_unscoped(&mut db, answered).await
}

fn unanswered() -> Error {
    Error::Busy("the database does not answer; come again".into())
}
