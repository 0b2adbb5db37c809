//! Cancels the calls of a stopped batch that nobody has answered yet, so that none of them
//! rings later out of a carrier's queue.

use peal_shared::bells::Bell;
use peal_shared::calls::cancel::{mark_canceling_unscoped, unanswered_unscoped};
use peal_shared::calls::reconcile::release_unscoped;
use peal_shared::campaigns::lifecycle::CancelCalls;
use peal_shared::context::Context;
use peal_shared::queue::{Outcome, Running};
use peal_shared::telephony::Ending;
use peal_shared::{Error, Result};

use super::Handle;

impl Handle<Context> for CancelCalls {
    async fn handle(self, context: &Context, job: &Running) -> Outcome {
        cancel(&self, context, job).await.into()
    }
}

async fn cancel(payload: &CancelCalls, context: &Context, job: &Running) -> Result<()> {
    let mut db = context.pool.begin().await?;
    release_unscoped(&mut db).await?;
    db.commit().await?;
    let calls = unanswered_unscoped(&context.pool, payload.batch_id).await?;
    for call in calls {
        if job.lost().is_cancelled() {
            return Err(Error::Busy("stopped on the way".into()));
        }
        let account = context
            .accounts
            .get(&context.pool, &context.config.keys, call.trunk)
            .await?;
        let carrier = context.carriers.of(account.kind);
        if carrier
            .end(&account, &call.carrier_call_id, Ending::Cancel)
            .await?
        {
            let mut db = context.pool.begin().await?;
            mark_canceling_unscoped(&mut db, call.id, context.clock.now()).await?;
            db.commit().await?;
        }
    }
    context.bells.ring(Bell::Dial);
    Ok(())
}
