//! Reads an uploaded file into its batch.

use peal_shared::campaigns::ingest::{
    IngestCsv, email_result_unscoped, give_up_unscoped, run_unscoped,
};
use peal_shared::context::Context;
use peal_shared::platform::queue::{JobOutcome, RunningJob};
use peal_shared::{Error, Result};

use super::JobHandler;

impl JobHandler<Context> for IngestCsv {
    async fn handle(self, context: &Context, job: &RunningJob) -> JobOutcome {
        match ingest(&self, context, job).await {
            // The batch was deleted during the upload.
            Err(Error::NotFound(_)) => JobOutcome::Done,
            Err(error) if job.is_last_attempt() || !error.is_retryable() => {
                let why = "an internal error, which has been logged";
                let (pool, store) = (&context.pool, &context.store);
                match give_up_unscoped(pool, store, self.ingest_id, why).await {
                    Ok(mail) => mail
                        .iter()
                        .for_each(|mail| context.wakeups.notify_job(mail)),
                    Err(error) => {
                        tracing::error!(%error, ingest.id = %self.ingest_id, "an ingest could not be marked as failed");
                    }
                }
                error.into()
            }
            result => result.into(),
        }
    }
}

async fn ingest(payload: &IngestCsv, context: &Context, job: &RunningJob) -> Result<()> {
    let limits = &context.config.uploads;
    run_unscoped(
        &context.pool,
        &context.store,
        limits,
        payload.ingest_id,
        job.lease_lost(),
    )
    .await?;
    let mut db = context.pool.begin().await?;
    let mail = email_result_unscoped(&mut db, payload.ingest_id).await?;
    db.commit().await?;
    if let Some(mail) = mail {
        context.wakeups.notify_job(&mail);
    }
    Ok(())
}
