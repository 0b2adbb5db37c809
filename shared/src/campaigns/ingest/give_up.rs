//! Ingests that end before the end of their file.

use sqlx::{PgConnection, PgPool};

use super::{IngestFailure, email_result_unscoped, files};
use crate::platform::error::Result;
use crate::platform::ids::IngestId;
use crate::platform::queue::{EnqueuedJob, JobPayload as _};
use crate::platform::store::FileStore;

/// Ends an ingest early, unless it has ended. Committed chunks stay.
pub(super) async fn fail_ingest(
    db: &mut PgConnection,
    ingest: IngestId,
    failure: &IngestFailure,
) -> Result<()> {
    sqlx::query!(
        "update ingests
         set state = 'failed',
             failure_code = $2,
             failure_message = $3,
             finished_at = now()
         where id = $1
           and state in ('queued', 'running')",
        ingest as IngestId,
        &failure.code,
        failure.message,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends an ingest whose job is given up, so that it does not block its batch for ever: removes the
/// file and emails the uploader. Jobs have no principal.
pub async fn give_up_unscoped(
    pool: &PgPool,
    store: &FileStore,
    ingest: IngestId,
    reason: &str,
) -> Result<Option<EnqueuedJob>> {
    let failure = IngestFailure::new(
        "gave_up",
        format!(
            "the file could not be read completely ({reason}); upload it again: rows that were added already count as duplicates"
        ),
    );

    let mut tx = pool.begin().await?;
    fail_ingest(&mut tx, ingest, &failure).await?;
    let mail = email_result_unscoped(&mut tx, ingest).await?;
    let file_key = sqlx::query_scalar!(
        "select file_key from ingests where id = $1",
        ingest as IngestId,
    )
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;

    // After the commit: a rolled back failure must keep its file.
    if let Some(file_key) = file_key {
        files::try_remove_file(pool, store, ingest, &file_key).await;
    }
    Ok(mail)
}

/// Gives up ingests whose job is dead or missing, for example after it crashed its worker each
/// time. Returns the jobs of the emails to their uploaders. Runs for the platform.
pub async fn give_up_jobless_unscoped(
    pool: &PgPool,
    store: &FileStore,
) -> Result<Vec<EnqueuedJob>> {
    let jobless = sqlx::query_scalar!(
        r#"select i.id as "id: IngestId"
           from ingests i
           where i.state in ('queued', 'running')
             and not exists (select from jobs j
                             where j.kind = $1
                               and j.dedupe_key = i.id::text
                               and j.state in ('ready', 'running'))"#,
        super::IngestCsv::KIND,
    )
    .fetch_all(pool)
    .await?;

    let mut mails = Vec::new();
    for ingest in jobless {
        tracing::error!(ingest.id = %ingest, "an ingest without a live job is given up");
        let reason = "too many attempts failed";
        mails.extend(give_up_unscoped(pool, store, ingest, reason).await?);
    }
    Ok(mails)
}
