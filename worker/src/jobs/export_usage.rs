//! Writes a usage export into the store and queues the mail with its link.

use peal_shared::billing::export::{ExportUsage, fail_unscoped, run_unscoped};
use peal_shared::context::Context;
use peal_shared::platform::queue::{JobOutcome, RunningJob};

use super::JobHandler;

impl JobHandler<Context> for ExportUsage {
    async fn handle(self, context: &Context, job: &RunningJob) -> JobOutcome {
        match run_unscoped(
            &context.pool,
            &context.store,
            &context.config,
            self.export_id,
        )
        .await
        {
            Ok(mail) => {
                mail.iter()
                    .for_each(|mail| context.wakeups.notify_job(mail));
                JobOutcome::Done
            }
            Err(error) => {
                if (job.is_last_attempt() || !error.is_retryable())
                    && let Err(error) = fail_unscoped(&context.pool, self.export_id).await
                {
                    tracing::error!(%error, export.id = %self.export_id, "an export could not be marked as failed");
                }
                error.into()
            }
        }
    }
}
