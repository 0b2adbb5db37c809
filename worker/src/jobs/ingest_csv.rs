//! Reads an uploaded file into its batch.

use peal_shared::campaigns::ingest::{
    IngestCsv, announce_unscoped, give_up_unscoped, run_unscoped,
};
use peal_shared::context::Context;
use peal_shared::queue::{Outcome, Running};
use peal_shared::{Error, Result};

use super::Handle;

impl Handle<Context> for IngestCsv {
    async fn handle(self, context: &Context, job: &Running) -> Outcome {
        match ingest(&self, context, job).await {
            // The batch was deleted during the upload.
            Err(Error::NotFound(_)) => Outcome::Done,
            Err(error) if job.is_last_attempt() || !error.retryable() => {
                let why = "an internal error, which has been logged";
                let (pool, store) = (&context.pool, &context.store);
                match give_up_unscoped(pool, store, self.ingest_id, why).await {
                    Ok(mail) => mail.iter().for_each(|mail| context.bells.ring_job(mail)),
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

async fn ingest(payload: &IngestCsv, context: &Context, job: &Running) -> Result<()> {
    let limits = &context.config.uploads;
    run_unscoped(
        &context.pool,
        &context.store,
        limits,
        payload.ingest_id,
        job.lost(),
    )
    .await?;
    let mut db = context.pool.begin().await?;
    let mail = announce_unscoped(&mut db, payload.ingest_id).await?;
    db.commit().await?;
    if let Some(mail) = mail {
        context.bells.ring_job(&mail);
    }
    Ok(())
}
