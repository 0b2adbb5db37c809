//! Sends one message, once, and gives it up when it cannot be sent.

use peal_shared::context::Context;
use peal_shared::mail::{SendEmail, give_up_unscoped, send_unscoped};
use peal_shared::queue::{Outcome, Running};

use super::Handle;

impl Handle<Context> for SendEmail {
    async fn handle(self, context: &Context, job: &Running) -> Outcome {
        let sent = send_unscoped(&context.pool, &context.mailer, self.email_id).await;
        let outcome = Outcome::from(sent);
        let is_over = match outcome {
            Outcome::Done => false,
            Outcome::Retry { .. } => job.is_last_attempt(),
            Outcome::Fail { .. } => true,
        };
        if is_over && let Err(error) = give_up_unscoped(&context.pool, self.email_id).await {
            tracing::warn!(email.id = %self.email_id, %error, "a message is given up in some days only");
        }
        outcome
    }
}
