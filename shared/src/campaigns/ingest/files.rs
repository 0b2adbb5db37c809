//! Files of uploads, from before they are stored until they are removed.
//!
//! A file's row is inserted before the file is stored and deleted after the file is. The end of an
//! ingest and a refused upload remove the file at once; a file that could not be removed, or whose
//! process crashed before, is purged later ([`clear_away_unscoped`]).

use std::time::Duration;

use sqlx::PgPool;

use super::{IngestLimits, StoredUpload};
use crate::platform::error::Result;
use crate::platform::ids::{IngestId, OrgId};
use crate::platform::store::FileStore;

/// Half of the slowest permitted upload rate: a file that is no ingest after that time never
/// becomes one.
const MIN_BYTES_PER_SEC: u64 = 25_000;
/// Time that any upload may take in addition.
const GRACE_SECS: u64 = 3_600;
/// Most files that one round purges.
const MAX_FILES_PER_ROUND: i64 = 100;

/// Builds the store's key of an ingest's file.
pub(super) fn file_key(org: OrgId, ingest: IngestId) -> String {
    format!("ingests/{org}/{ingest}.csv")
}

/// Records a file that is about to be stored.
pub(super) async fn record_file(
    pool: &PgPool,
    org: OrgId,
    ingest: IngestId,
    key: &str,
) -> Result<()> {
    sqlx::query!(
        "insert into upload_files (ingest_id, org_id, file_key) values ($1, $2, $3)",
        ingest as IngestId,
        org as OrgId,
        key,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Removes a file that is no longer needed.
pub(super) async fn remove_file(
    pool: &PgPool,
    store: &FileStore,
    ingest: IngestId,
    key: &str,
) -> Result<()> {
    store.delete(key).await?;
    sqlx::query!(
        "delete from upload_files where ingest_id = $1",
        ingest as IngestId,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Removes a file that is no longer needed, now or by the next purge.
pub(super) async fn try_remove_file(pool: &PgPool, store: &FileStore, ingest: IngestId, key: &str) {
    if let Err(error) = remove_file(pool, store, ingest, key).await {
        tracing::warn!(ingest.id = %ingest, error = format!("{error:#}"), "an upload's file could not be removed; the next purge removes it");
    }
}

/// Removes the file of an upload for which [`super::create`] was not called.
pub async fn discard_upload(pool: &PgPool, store: &FileStore, upload: &StoredUpload) {
    try_remove_file(pool, store, upload.ingest, &upload.key).await;
}

/// Removes files of ended ingests, of uploads that were cut off, and of deleted batches. Returns
/// their number. Runs for the platform, over all tenants.
pub async fn purge_files_unscoped(
    pool: &PgPool,
    store: &FileStore,
    limits: &IngestLimits,
) -> Result<usize> {
    let max_age = Duration::from_secs(GRACE_SECS + limits.max_bytes / MIN_BYTES_PER_SEC);
    let left = sqlx::query!(
        r#"select f.ingest_id as "ingest_id: IngestId", f.file_key
           from upload_files f
           left join ingests i on i.id = f.ingest_id
           where case
                     when i.id is null then f.created_at < now() - make_interval(secs => $1)
                     -- Whoever ends an ingest is about to remove its file.
                     else i.finished_at < now() - interval '1 minute'
                 end
           order by f.created_at
           limit $2"#,
        max_age.as_secs_f64(),
        MAX_FILES_PER_ROUND,
    )
    .fetch_all(pool)
    .await?;
    for file in &left {
        store.delete_parts(&file.file_key).await?;
        remove_file(pool, store, file.ingest_id, &file.file_key).await?;
        tracing::info!(ingest.id = %file.ingest_id, "a file without an upload was removed");
    }
    Ok(left.len())
}
