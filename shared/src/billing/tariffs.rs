//! Prices as a worker remembers them from claim to claim.
//!
//! The catalogue has an edition, and every change makes another: a claim reads the edition
//! along with its rows, and asks for the prices only when it is another one, or when a price
//! begins or ends in between. Snapshots are never changed, so one that was found is there for
//! good; one that was just stored is not, until its transaction is committed, and is looked for
//! again. A claim that fails has everything forgotten: the database may have been set back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::book::{Edition, edition_unscoped};
use super::quote::{Book, Prices};
use super::snapshots::{Frozen, Key, freeze_unscoped, key};
use crate::error::Result;
use crate::ids::{OrgId, SnapshotId};

/// Snapshots that are remembered: some hundred bytes each.
const SNAPSHOTS_LIMIT: usize = 10_000;

/// What is remembered; to be shared by everything in a process that claims from one database.
#[derive(Debug, Default)]
pub struct Tariffs {
    edition: Mutex<Option<Arc<Edition>>>,
    snapshots: Mutex<HashMap<Key, SnapshotId>>,
}

impl Tariffs {
    /// Forgets everything.
    pub fn forget(&self) {
        *lock(&self.edition) = None;
        lock(&self.snapshots).clear();
    }

    /// The prices in force at `at`, of the edition that the caller's transaction saw.
    ///
    /// # Errors
    /// [`crate::Error::Unexpected`] from the database.
    pub async fn in_force_unscoped(
        &self,
        db: &mut PgConnection,
        edition: Uuid,
        at: DateTime<Utc>,
    ) -> Result<Arc<Book>> {
        let known = lock(&self.edition).clone();
        if let Some(known) = known.filter(|known| known.is(edition, at)) {
            return Ok(Arc::clone(&known.book));
        }
        let read = Arc::new(edition_unscoped(db, at).await?);
        let book = Arc::clone(&read.book);
        *lock(&self.edition) = Some(read);
        Ok(book)
    }

    /// As [`freeze_unscoped`], which it asks only for snapshots that are not remembered.
    ///
    /// # Errors
    /// As [`freeze_unscoped`].
    pub async fn freeze_unscoped(
        &self,
        db: &mut PgConnection,
        wanted: &[(OrgId, Prices)],
    ) -> Result<Vec<SnapshotId>> {
        let keys = wanted
            .iter()
            .map(|(org, prices)| key(*org, prices))
            .collect::<Result<Vec<Key>>>()?;
        let known: Option<Vec<SnapshotId>> = {
            let snapshots = lock(&self.snapshots);
            keys.iter().map(|key| snapshots.get(key).copied()).collect()
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let Frozen { ids, found } = freeze_unscoped(db, wanted).await?;
        let mut snapshots = lock(&self.snapshots);
        if snapshots.len() + found.len() > SNAPSHOTS_LIMIT {
            snapshots.clear();
        }
        snapshots.extend(found);
        Ok(ids)
    }
}

/// What is behind it is whole at every moment, so a holder that panicked did no harm.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
