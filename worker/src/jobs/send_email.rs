//! Sends one queued mail.

use peal_shared::context::Context;
use peal_shared::mail::{SendEmail, send_unscoped};
use peal_shared::queue::{Outcome, Running};

use super::Handle;

impl Handle<Context> for SendEmail {
    async fn handle(self, context: &Context, _job: &Running) -> Outcome {
        Outcome::from(send_unscoped(&context.pool, &context.mailer, self.email_id).await)
    }
}
