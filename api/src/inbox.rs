//! The inbox: events of carriers are written down many at a time, and each is acknowledged
//! only behind the commit.
//!
//! A callback puts its event in a bounded line and waits. Two writers take turns: whoever is
//! free takes all that stands in the line, writes it in one statement and answers everybody in
//! it, so the busier it is, the larger the groups. When the line is full, the carrier is told
//! to come again. When a group is refused, its events are written one by one, so that one that
//! cannot be written stands in nobody's way.

use std::sync::Arc;
use std::time::Duration;

use peal_shared::bells::Bell;
use peal_shared::calls::inbox::{NewEvent, append_unscoped};
use peal_shared::context::Context;
use peal_shared::fault;
use peal_shared::{Error, Result};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::error::is_unreachable;

/// Statements on their way at once: one is written while the next group gathers.
const WRITERS: usize = 2;
/// Most events of one statement.
const GROUP_LIMIT: usize = 512;
/// How long a carrier waits for the commit; it gives up itself after 15 seconds.
const COMMIT_LIMIT: Duration = Duration::from_secs(8);

/// An event in the line, and where to answer whether its call exists.
struct Waiting {
    event: NewEvent,
    answer: oneshot::Sender<Result<bool>>,
}

/// The line in front of the writers.
#[derive(Clone)]
pub struct Inbox {
    line: mpsc::Sender<Waiting>,
}

impl Inbox {
    /// Opens the inbox; its writers work until the last clone of it is gone.
    pub fn open(context: &Arc<Context>) -> Self {
        let (line, waiting) = mpsc::channel(context.config.inbox_capacity);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WRITERS {
            tokio::spawn(write(Arc::clone(context), Arc::clone(&waiting)));
        }
        Self { line }
    }

    /// Writes an event down. Answers behind the commit.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the call does not exist on the trunk, [`Error::Busy`] when the
    /// line is full or the commit takes too long: the carrier is to come again.
    pub async fn append(&self, event: NewEvent) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.line
            .try_send(Waiting { event, answer })
            .map_err(|_full| Error::Busy("too many callbacks at once; come again".into()))?;
        match timeout(COMMIT_LIMIT, answered).await {
            Ok(Ok(Ok(true))) => Ok(()),
            Ok(Ok(Ok(false))) => Err(Error::NotFound("Call")),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_gone)) => Err(Error::Busy("the inbox is closing; come again".into())),
            Err(_elapsed) => Err(Error::Busy("the inbox is slow; come again".into())),
        }
    }
}

async fn write(context: Arc<Context>, line: Arc<Mutex<mpsc::Receiver<Waiting>>>) {
    let mut group = Vec::with_capacity(GROUP_LIMIT);
    loop {
        // The line is free for the other writer as soon as this one has its group.
        let taken = line.lock().await.recv_many(&mut group, GROUP_LIMIT).await;
        if taken == 0 {
            return;
        }
        // One order for everybody: writers that hold the same events never wait in a circle.
        group.sort_by(|a: &Waiting, b: &Waiting| key(&a.event).cmp(&key(&b.event)));
        let (events, answers): (Vec<_>, Vec<_>) = group
            .drain(..)
            .map(|waiting| (waiting.event, waiting.answer))
            .unzip();
        let results = append_group(&context, &events).await;
        if results.iter().any(|result| matches!(result, Ok(true))) {
            context.bells.ring(Bell::Inbox);
        }
        for (answer, result) in answers.into_iter().zip(results) {
            // Whoever has stopped waiting will come again.
            let _gone = answer.send(result);
        }
    }
}

fn key(event: &NewEvent) -> (peal_shared::ids::CallId, &str) {
    (event.call, &event.event.dedup_key)
}

/// One answer for each event, in order.
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
            let again = || {
                Err(Error::Busy(
                    "the database does not answer; come again".into(),
                ))
            };
            events.iter().map(|_| again()).collect()
        }
    }
}

/// One statement is one transaction.
async fn append(context: &Context, events: &[NewEvent]) -> Result<Vec<bool>> {
    let mut db = context.callbacks.acquire().await?;
    let known = append_unscoped(&mut db, events).await?;
    fault::point("append.committed");
    Ok(known)
}
