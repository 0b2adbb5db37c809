//! Poll tasks of watched batches: all viewers of a batch share one query a second.
//!
//! The first viewer starts the poll task of a batch, which ends with the last viewer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peal_shared::Error;
use peal_shared::access::{Scope, row_level_security};
use peal_shared::campaigns::BatchStatus;
use peal_shared::campaigns::progress::{BatchSnapshot, snapshot};
use peal_shared::context::Context;
use peal_shared::platform::ids::BatchId;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Interval at which a watched batch is read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Most batches that are read at the same time.
const MAX_CONCURRENT_POLLS: usize = 2;

/// Latest state of a watched batch.
#[derive(Clone, Default)]
pub(super) struct BatchState {
    pub progress: Option<Arc<str>>,
    pub ended: bool,
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
    pub(super) fn subscribe(
        &self,
        context: &Arc<Context>,
        shutdown: &CancellationToken,
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

        let (context, hub) = (Arc::clone(context), self.clone());
        let shutdown = shutdown.clone();

        tokio::spawn(async move {
            let polling = hub.poll(&context, batch, scope, &sender);
            shutdown.run_until_cancelled(polling).await;
            hub.remove_if(batch, &sender, |_| true);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_closes_itself_and_not_its_successor() {
        let hub = BatchEventHub::default();
        let batch = BatchId::new();
        let open = || {
            let (sender, _seen) = watch::channel(BatchState::default());
            let sender = Arc::new(sender);
            let mut open = hub.senders.lock().unwrap();
            open.insert(batch, Arc::clone(&sender));
            sender
        };
        let first = open();
        assert!(!hub.remove_if(batch, &first, |_| false));
        assert!(hub.remove_if(batch, &first, |sender| sender.receiver_count() == 0));
        let second = open();
        assert!(hub.remove_if(batch, &first, |_| true));
        assert!(Arc::ptr_eq(&hub.senders.lock().unwrap()[&batch], &second));
    }
}
