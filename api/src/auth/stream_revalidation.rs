//! Revalidation of the callers of event streams. A revoked key, an ended session, a removed
//! member, a changed role and a disabled feature end a stream within a second, as they end the
//! next request.
//!
//! A process revalidates the callers of all its streams with one query.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use peal_shared::access::permissions::Feature;
use peal_shared::access::revalidation::{CallerSnapshot, still_authorized_unscoped};
use peal_shared::context::Context;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::auth::Caller;

/// Interval of revalidation: twice within the promised second.
const REVALIDATION_INTERVAL: Duration = Duration::from_millis(500);
const _: () = assert!(REVALIDATION_INTERVAL.as_millis() * 2 <= 1000);

/// Callers of this process's event streams, all of them about batches.
#[derive(Clone, Default)]
pub struct StreamRevalidation {
    registry: Arc<Mutex<CallerRegistry>>,
}

#[derive(Default)]
struct CallerRegistry {
    callers: HashMap<u64, RegisteredCaller>,
    next_id: u64,
    /// True while the revalidation task runs.
    is_running: bool,
}

#[derive(Clone)]
struct RegisteredCaller {
    snapshot: CallerSnapshot,
    /// Expiry of a token without a session.
    expires_at: Option<DateTime<Utc>>,
    revoked: CancellationToken,
}

/// Registration of a caller, ended on drop.
pub struct CallerRegistration {
    revalidation: StreamRevalidation,
    id: u64,
    revoked: CancellationToken,
}

impl CallerRegistration {
    /// Completes when the caller is no longer authorized.
    pub async fn revoked(&self) {
        self.revoked.cancelled().await;
    }
}

impl Drop for CallerRegistration {
    fn drop(&mut self) {
        let open = &self.revalidation.registry;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.callers.remove(&self.id);
    }
}

/// Guard of the revalidation task. When the task panics, all its streams end, and the next stream
/// starts a new task.
struct TaskGuard {
    revalidation: StreamRevalidation,
    is_finished: bool,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let open = &self.revalidation.registry;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.is_running = false;
        for caller in open.callers.values() {
            caller.revoked.cancel();
        }
    }
}

impl StreamRevalidation {
    /// Registers a caller for revalidation.
    pub fn register(&self, context: &Arc<Context>, caller: &Caller) -> CallerRegistration {
        let gone = CancellationToken::new();
        let entry = RegisteredCaller {
            snapshot: CallerSnapshot::new(&caller.principal, caller.session),
            expires_at: caller.until,
            revoked: gone.clone(),
        };

        let mut open = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let id = open.next_id;
        open.next_id += 1;
        open.callers.insert(id, entry);

        if !std::mem::replace(&mut open.is_running, true) {
            tokio::spawn(self.clone().run(Arc::clone(context)));
        }

        CallerRegistration {
            revalidation: self.clone(),
            id,
            revoked: gone,
        }
    }

    /// Revalidates until no caller is registered.
    async fn run(self, context: Arc<Context>) {
        let mut task = TaskGuard {
            revalidation: self.clone(),
            is_finished: false,
        };

        let mut ticks = interval(REVALIDATION_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;

            let Some(callers) = self.callers() else {
                task.is_finished = true;
                return;
            };

            let now = context.clock.now();
            let snapshots: Vec<CallerSnapshot> = callers.iter().map(|one| one.snapshot).collect();
            let result = async {
                let mut db = context.pool.acquire().await?;
                still_authorized_unscoped(&mut db, &snapshots, Feature::Outbound, now).await
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
                let has_expired = caller.expires_at.is_some_and(|until| until <= now);
                if has_expired || !authorized.contains(&place) {
                    caller.revoked.cancel();
                }
            }
        }
    }

    /// Registered callers; `None` ends the task.
    fn callers(&self) -> Option<Vec<RegisteredCaller>> {
        let mut open = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        open.is_running = !open.callers.is_empty();
        open.is_running
            .then(|| open.callers.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use peal_shared::access::{Credential, Principal, Role};
    use peal_shared::platform::ids::{OrgId, UserId};

    use super::*;

    #[test]
    fn a_panic_of_the_revalidation_task_ends_its_streams() {
        let standings = StreamRevalidation::default();
        let principal = Principal {
            user: UserId::new(),
            org: OrgId::new(),
            role: Role::User,
            email: None,
            credential: Credential::Session,
        };
        let gone = CancellationToken::new();
        let caller = RegisteredCaller {
            snapshot: CallerSnapshot::new(&principal, None),
            expires_at: None,
            revoked: gone.clone(),
        };
        {
            let mut open = standings.registry.lock().unwrap();
            open.callers.insert(0, caller);
            open.is_running = true;
        }
        let task = |is_over| TaskGuard {
            revalidation: standings.clone(),
            is_finished: is_over,
        };
        drop(task(true));
        assert!(standings.registry.lock().unwrap().is_running && !gone.is_cancelled());
        drop(task(false));
        assert!(!standings.registry.lock().unwrap().is_running && gone.is_cancelled());
    }
}
