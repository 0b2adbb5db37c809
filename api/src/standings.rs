//! Revalidation of the callers of event streams. A revoked key, an ended session, a removed
//! member, a changed role and a disabled feature end a stream within a second, as they end the
//! next request.
//!
//! A process revalidates the callers of all its streams with one query.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use peal_shared::access::known::Feature;
use peal_shared::access::standing::{Standing, stand_unscoped};
use peal_shared::context::Context;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::auth::Caller;

/// Interval of revalidation: twice within the promised second.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const _: () = assert!(LOOK_EVERY.as_millis() * 2 <= 1000);

/// Callers of this process's event streams, all of them about batches.
#[derive(Clone, Default)]
pub struct Standings {
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    callers: HashMap<u64, Entry>,
    next: u64,
    /// True while the revalidation task runs.
    looked_at: bool,
}

#[derive(Clone)]
struct Entry {
    standing: Standing,
    /// Expiry of a token without a session.
    until: Option<DateTime<Utc>>,
    gone: CancellationToken,
}

/// Registration of a caller, ended on drop.
pub struct Watched {
    standings: Standings,
    id: u64,
    gone: CancellationToken,
}

impl Watched {
    /// Completes when the caller is no longer authorized.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let open = &self.standings.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.callers.remove(&self.id);
    }
}

/// Guard of the revalidation task. When the task panics, all its streams end, and the next stream
/// starts a new task.
struct Looking {
    standings: Standings,
    is_over: bool,
}

impl Drop for Looking {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let open = &self.standings.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.looked_at = false;
        for caller in open.callers.values() {
            caller.gone.cancel();
        }
    }
}

impl Standings {
    /// Registers a caller for revalidation.
    pub fn watch(&self, context: &Arc<Context>, caller: &Caller) -> Watched {
        let gone = CancellationToken::new();
        let entry = Entry {
            standing: Standing::of(&caller.principal, caller.session),
            until: caller.until,
            gone: gone.clone(),
        };

        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let id = open.next;
        open.next += 1;
        open.callers.insert(id, entry);

        if !std::mem::replace(&mut open.looked_at, true) {
            tokio::spawn(self.clone().look(Arc::clone(context)));
        }

        Watched {
            standings: self.clone(),
            id,
            gone,
        }
    }

    /// Revalidates until no caller is registered.
    async fn look(self, context: Arc<Context>) {
        let mut task = Looking {
            standings: self.clone(),
            is_over: false,
        };

        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;

            let Some(callers) = self.callers() else {
                task.is_over = true;
                return;
            };

            let now = context.clock.now();
            let snapshots: Vec<Standing> = callers.iter().map(|one| one.standing).collect();
            let result = async {
                let mut db = context.pool.acquire().await?;
                stand_unscoped(&mut db, &snapshots, Feature::Outbound, now).await
            };

            let authorized = match result.await {
                Ok(authorized) => authorized,
                // Without the database a stream has nothing to send either.
                Err(error) => {
                    tracing::debug!(%error, "callers were not revalidated");
                    continue;
                }
            };

            for (place, caller) in callers.iter().enumerate() {
                let has_expired = caller.until.is_some_and(|until| until <= now);
                if has_expired || !authorized.contains(&place) {
                    caller.gone.cancel();
                }
            }
        }
    }

    /// Registered callers; `None` ends the task.
    fn callers(&self) -> Option<Vec<Entry>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.looked_at = !open.callers.is_empty();
        open.looked_at
            .then(|| open.callers.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use peal_shared::access::{Credential, Principal, Role};
    use peal_shared::ids::{OrgId, UserId};

    use super::*;

    #[test]
    fn a_panic_of_the_revalidation_task_ends_its_streams() {
        let standings = Standings::default();
        let principal = Principal {
            user: UserId::new(),
            org: OrgId::new(),
            role: Role::User,
            email: None,
            credential: Credential::Session,
        };
        let gone = CancellationToken::new();
        let caller = Entry {
            standing: Standing::of(&principal, None),
            until: None,
            gone: gone.clone(),
        };
        {
            let mut open = standings.open.lock().unwrap();
            open.callers.insert(0, caller);
            open.looked_at = true;
        }
        let task = |is_over| Looking {
            standings: standings.clone(),
            is_over,
        };
        drop(task(true));
        assert!(standings.open.lock().unwrap().looked_at && !gone.is_cancelled());
        drop(task(false));
        assert!(!standings.open.lock().unwrap().looked_at && gone.is_cancelled());
    }
}
