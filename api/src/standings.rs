//! Callers of long answers, who are looked at again while these go on: a revoked key, an ended
//! session, a removed member, another role and a feature that is switched off end them within a
//! second, as they end the next request.
//!
//! However many answers go on, a process looks at all their callers with one query.

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

/// How often they are looked at. What is heard of within a second is looked for twice in it.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const _: () = assert!(LOOK_EVERY.as_millis() * 2 <= 1000);

/// The callers of this process's long answers, all of them about batches.
#[derive(Clone, Default)]
pub struct Standings {
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    callers: HashMap<u64, Entry>,
    next: u64,
    /// Whether somebody looks.
    looked_at: bool,
}

#[derive(Clone)]
struct Entry {
    standing: Standing,
    /// When their token ends, where nothing else would tell.
    until: Option<DateTime<Utc>>,
    gone: CancellationToken,
}

/// A caller who is looked at as long as this lives.
pub struct Watched {
    standings: Standings,
    id: u64,
    gone: CancellationToken,
}

impl Watched {
    /// Ends when the caller would not be let in any more.
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

/// Somebody who looks. When that ends though there is somebody to look at, by a panic, these are
/// shown nothing more, and whoever comes next is looked at again.
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
    /// Looks at a caller from now on.
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

    /// Looks until there is nobody to look at.
    async fn look(self, context: Arc<Context>) {
        let mut looking = Looking {
            standings: self.clone(),
            is_over: false,
        };
        let mut pace = interval(LOOK_EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            let Some(callers) = self.callers() else {
                looking.is_over = true;
                return;
            };
            let now = context.clock.now();
            let standings: Vec<Standing> = callers.iter().map(|one| one.standing).collect();
            let looked = async {
                let mut db = context.pool.acquire().await?;
                stand_unscoped(&mut db, &standings, Feature::Outbound, now).await
            };
            let standing = match looked.await {
                Ok(standing) => standing,
                // While the database is away there is nothing to be shown either.
                Err(error) => {
                    tracing::debug!(%error, "callers were not looked at");
                    continue;
                }
            };
            for (place, caller) in callers.iter().enumerate() {
                let is_over = caller.until.is_some_and(|until| until <= now);
                if is_over || !standing.contains(&place) {
                    caller.gone.cancel();
                }
            }
        }
    }

    /// Everybody who is to be looked at; None ends the looking.
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
    fn whoever_is_not_looked_at_any_more_is_shown_nothing_more() {
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
        let looking = |is_over| Looking {
            standings: standings.clone(),
            is_over,
        };
        drop(looking(true));
        assert!(standings.open.lock().unwrap().looked_at && !gone.is_cancelled());
        drop(looking(false));
        assert!(!standings.open.lock().unwrap().looked_at && gone.is_cancelled());
    }
}
