//! Sends one queued mail.

use peal_shared::context::Context;
use peal_shared::mail::{SendEmail, send_unscoped};
use peal_shared::platform::queue::{JobOutcome, RunningJob};

use super::JobHandler;

impl JobHandler<Context> for SendEmail {
    async fn handle(self, context: &Context, _job: &RunningJob) -> JobOutcome {
        JobOutcome::from(send_unscoped(&context.pool, &context.mailer, self.email_id).await)
    }
}
