//! Uploads: a file in the store, then a queued ingest.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use futures::stream::{Stream, StreamExt as _, TryStreamExt as _};
use futures::{pin_mut, stream};
use sqlx::{PgConnection, PgPool};

use super::header::HEAD_BYTES;
use super::{IngestFailure, IngestLimits, IngestTarget, files, header};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{BatchId, IngestId, OrgId, UserId};
use crate::platform::store::FileStore;

/// The longest file name that is kept, in characters.
const MAX_FILE_NAME_CHARS: usize = 200;

/// A file that is stored and looks like CSV with a phone column.
#[derive(Clone, Debug)]
pub struct StoredUpload {
    /// Id of the ingest that [`create`] inserts for it.
    pub ingest: IngestId,
    /// Key of the file in the store.
    pub key: String,
    pub file_name: String,
    pub bytes: u64,
    pub sha256: [u8; 32],
    /// Warnings about the header.
    pub warnings: Vec<String>,
}

/// Streams an upload into the store. When the upload is not followed by [`create`],
/// [`discard`](super::discard) it.
///
/// # Errors
/// [`Error::Rejected`] when it is not CSV, is empty or has no phone column;
/// [`Error::TooLarge`] over the limit; the body's own errors.
pub async fn receive(
    pool: &PgPool,
    store: &FileStore,
    target: &IngestTarget,
    limits: &IngestLimits,
    file_name: &str,
    body: impl Stream<Item = Result<Bytes>> + Send,
) -> Result<StoredUpload> {
    pin_mut!(body);

    // 1. Check the beginning of the file before anything is stored.
    let mut head = BytesMut::new();
    while head.len() < HEAD_BYTES {
        match body.try_next().await? {
            Some(piece) => head.extend_from_slice(&piece),
            None => break,
        }
    }
    let beginning = head.get(..HEAD_BYTES).unwrap_or(&head);
    let opening =
        header::read_header(beginning, &target.variable_names, limits).map_err(rejected_error)?;

    // 2. Record the file, then store it: a crash between the two leaves a row to purge it by.
    let ingest = IngestId::new();
    let key = files::file_key(target.org, ingest);
    files::record_file(pool, target.org, ingest, &key).await?;
    let whole = stream::once(async { Ok(head.freeze()) }).chain(body);
    let stored = match store.put_stream(&key, whole, limits.max_bytes).await {
        Ok(stored) => stored,
        Err(error) => {
            files::try_remove_file(pool, store, ingest, &key).await;
            return Err(error);
        }
    };

    Ok(StoredUpload {
        ingest,
        key,
        file_name: file_name
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_FILE_NAME_CHARS)
            .collect(),
        bytes: stored.bytes,
        sha256: stored.sha256,
        warnings: opening.warnings,
    })
}

fn rejected_error(failure: IngestFailure) -> Error {
    match failure.code {
        Cow::Borrowed(code) => Error::rejected(code, failure.message),
        Cow::Owned(_) => Error::rejected("unreadable_file", failure.message),
    }
}

/// Queues the upload. The caller enqueues the job that runs it in the same transaction.
/// `notify` requests an email for an uploader who does not wait for the result.
///
/// # Errors
/// [`Error::NotFound`] when the batch was deleted; [`Error::Conflict`] when it has started.
pub async fn create(
    db: &mut PgConnection,
    target: &IngestTarget,
    upload: &StoredUpload,
    notify: bool,
) -> Result<IngestId> {
    super::write::lock_batch(db, target.org, target.batch).await?;

    sqlx::query!(
        "insert into ingests (id, org_id, batch_id, user_id, file_name, file_key, file_bytes, notify)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        upload.ingest as IngestId,
        target.org as OrgId,
        target.batch as BatchId,
        target.user as UserId,
        upload.file_name,
        upload.key,
        i64::try_from(upload.bytes).unwrap_or(i64::MAX),
        notify,
    )
    .execute(db)
    .await?;
    Ok(upload.ingest)
}
