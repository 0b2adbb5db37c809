//! Writes a usage export into the store and queues the mail with its link.

use peal_shared::billing::export::{ExportUsage, fail_unscoped, run_unscoped};
use peal_shared::context::Context;
use peal_shared::queue::{Outcome, Running};

use super::Handle;

impl Handle<Context> for ExportUsage {
    async fn handle(self, context: &Context, job: &Running) -> Outcome {
        match run_unscoped(context, self.export_id).await {
            Ok(mail) => {
                mail.iter().for_each(|mail| context.bells.ring_job(mail));
                Outcome::Done
            }
            Err(error) => {
                if (job.is_last_attempt() || !error.retryable())
                    && let Err(error) = fail_unscoped(&context.pool, self.export_id).await
                {
                    tracing::error!(%error, export.id = %self.export_id, "an export could not be marked as failed");
                }
                error.into()
            }
        }
    }
}
