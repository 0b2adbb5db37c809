//! The files of uploads, from before they are stored until they are gone.
//!
//! A file's row is written before the file and removed behind it. Whoever ends an ingest, or
//! refuses an upload, removes the file at once; what they could not remove, or did not live to,
//! is cleared away later ([`clear_away_unscoped`]).

use std::time::Duration;

use sqlx::PgPool;

use super::{Limits, Upload};
use crate::error::Result;
use crate::ids::{IngestId, OrgId};
use crate::store::Store;

/// Half of the least rate at which an upload may come: a file that is still not an ingest when
/// it would have come that slowly never becomes one.
const BYTES_PER_SEC: u64 = 25_000;
/// What an upload may take whatever its length.
const GRACE_SECS: u64 = 3_600;
/// Files that one round clears away.
const ROUND: i64 = 100;

/// Where the store holds the file of an ingest.
pub(super) fn key(org: OrgId, ingest: IngestId) -> String {
    format!("ingests/{org}/{ingest}.csv")
}

/// Notes a file that is about to be stored.
pub(super) async fn expect(pool: &PgPool, org: OrgId, ingest: IngestId, key: &str) -> Result<()> {
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

/// Removes a file that nobody needs any more.
pub(super) async fn remove(
    pool: &PgPool,
    store: &Store,
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

/// Removes a file that nobody needs any more, now or when files are cleared away.
pub(super) async fn remove_or_leave(pool: &PgPool, store: &Store, ingest: IngestId, key: &str) {
    if let Err(error) = remove(pool, store, ingest, key).await {
        tracing::warn!(ingest.id = %ingest, error = format!("{error:#}"), "an upload's file is left to be cleared away");
    }
}

/// Removes the file of an upload that was not followed by [`super::create`].
pub async fn discard(pool: &PgPool, store: &Store, upload: &Upload) {
    remove_or_leave(pool, store, upload.ingest, &upload.key).await;
}

/// Clears away what is left of ended ingests, of uploads that broke off with their process, and
/// of deleted batches; says how many files. Runs for the platform, over all tenants.
///
/// # Errors
/// The database's, or the store's; the next round begins anew.
pub async fn clear_away_unscoped(pool: &PgPool, store: &Store, limits: &Limits) -> Result<usize> {
    let patience = Duration::from_secs(GRACE_SECS + limits.max_bytes / BYTES_PER_SEC);
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
        patience.as_secs_f64(),
        ROUND,
    )
    .fetch_all(pool)
    .await?;
    for file in &left {
        store.delete_parts(&file.file_key).await?;
        remove(pool, store, file.ingest_id, &file.file_key).await?;
        tracing::info!(ingest.id = %file.ingest_id, "a file without an upload was cleared away");
    }
    Ok(left.len())
}
