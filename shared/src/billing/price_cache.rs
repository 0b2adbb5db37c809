//! Price cache of a worker, shared by its claims.
//!
//! Every change of the catalogue gives it a new edition. A claim reads the edition with its rows,
//! and loads the prices only for a new edition, or when a price begins or ends in between.
//! Snapshots never change, so those that were found are cached; those just stored are not,
//! because their transaction may roll back. A failed claim clears the cache: the database may
//! have been restored to an earlier state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::price_catalogue::{CatalogueEdition, load_edition_unscoped};
use super::quote::{CallPrices, PriceCatalogue};
use super::snapshots::{FrozenSnapshots, SnapshotKey, freeze_unscoped, snapshot_key};
use crate::platform::error::Result;
use crate::platform::ids::{OrgId, SnapshotId};

/// Maximum number of cached snapshots, of some hundred bytes each.
const MAX_CACHED_SNAPSHOTS: usize = 10_000;

/// Cached prices and snapshots of one database, shared within a process.
#[derive(Debug, Default)]
pub struct PriceCache {
    edition: Mutex<Option<Arc<CatalogueEdition>>>,
    snapshots: Mutex<HashMap<SnapshotKey, SnapshotId>>,
}

impl PriceCache {
    /// Clears the cache.
    pub fn clear(&self) {
        *lock_unpoisoned(&self.edition) = None;
        lock_unpoisoned(&self.snapshots).clear();
    }

    /// Returns the prices in force at `at`, of the edition that the caller's transaction saw.
    pub async fn in_force_unscoped(
        &self,
        db: &mut PgConnection,
        edition: Uuid,
        at: DateTime<Utc>,
    ) -> Result<Arc<PriceCatalogue>> {
        let cached = lock_unpoisoned(&self.edition).clone();
        if let Some(cached) = cached.filter(|cached| cached.is_current(edition, at)) {
            return Ok(Arc::clone(&cached.catalogue));
        }

        let loaded = Arc::new(load_edition_unscoped(db, at).await?);
        let catalogue = Arc::clone(&loaded.catalogue);
        *lock_unpoisoned(&self.edition) = Some(loaded);
        Ok(catalogue)
    }

    /// Calls [`freeze_unscoped`] unless all snapshots are cached.
    pub async fn freeze_unscoped(
        &self,
        db: &mut PgConnection,
        wanted: &[(OrgId, CallPrices)],
    ) -> Result<Vec<SnapshotId>> {
        let keys = wanted
            .iter()
            .map(|(org, prices)| snapshot_key(*org, prices))
            .collect::<Result<Vec<SnapshotKey>>>()?;

        let cached: Option<Vec<SnapshotId>> = {
            let snapshots = lock_unpoisoned(&self.snapshots);
            keys.iter().map(|key| snapshots.get(key).copied()).collect()
        };
        if let Some(cached) = cached {
            return Ok(cached);
        }

        let FrozenSnapshots {
            ids,
            existing: found,
        } = freeze_unscoped(db, wanted).await?;
        let mut snapshots = lock_unpoisoned(&self.snapshots);
        if snapshots.len() + found.len() > MAX_CACHED_SNAPSHOTS {
            snapshots.clear();
        }
        snapshots.extend(found);
        Ok(ids)
    }
}

/// Locks a mutex, poisoned or not: its value is consistent at every moment.
fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
