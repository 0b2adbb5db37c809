//! Emails the result of an ingest to an uploader who did not wait for it.

use sqlx::PgConnection;

use crate::mail;
use crate::mail::NewEmail;
use crate::platform::error::Result;
use crate::platform::ids::{IngestId, OrgId};
use crate::platform::queue::EnqueuedJob;

/// Writes the email about an ended ingest, once. A job has no principal.
pub async fn email_result_unscoped(
    db: &mut PgConnection,
    ingest: IngestId,
) -> Result<Option<EnqueuedJob>> {
    let row = sqlx::query!(
        r#"select i.org_id as "org: OrgId", i.file_name, i.total_rows, i.inserted, i.duplicates, i.rejected,
                  i.failure_message, b.batch_name, u.email
           from ingests i
           join call_batches b on b.id = i.batch_id
           join users u on u.id = i.user_id
           where i.id = $1
             and i.notify
             and i.state in ('completed', 'failed')"#,
        ingest as IngestId,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };

    let verdict = match &row.failure_message {
        None => "The whole file was read.".to_owned(),
        Some(reason) => format!("Reading stopped early: {reason}"),
    };
    let body = format!(
        "Your file {} for the batch {} has been processed. {verdict}\n\n\
         {} rows read: {} added, {} duplicates, {} rejected.\n\
         The rejected rows can be downloaded, each with its reason, from the batch's page.\n",
        row.file_name, row.batch_name, row.total_rows, row.inserted, row.duplicates, row.rejected,
    );

    let email = NewEmail {
        org: row.org,
        kind: "ingest_finished",
        subject_id: ingest.0,
        to: &row.email,
        subject: &format!("Upload finished: {}", row.batch_name),
        body: &body,
    };
    mail::enqueue(db, email).await
}
