//! Sends one message, once.

use peal_shared::mail::{self, Mailer, SendEmail};
use peal_shared::queue::{Outcome, Running};
use sqlx::PgPool;

use super::Handle;

/// What sending mail takes.
pub trait SendsMail: Send + Sync + 'static {
    fn pool(&self) -> &PgPool;
    fn mailer(&self) -> &Mailer;
}

impl<S: SendsMail> Handle<S> for SendEmail {
    async fn handle(self, state: &S, _job: &Running) -> Outcome {
        mail::send_unscoped(state.pool(), state.mailer(), self.email_id)
            .await
            .into()
    }
}
