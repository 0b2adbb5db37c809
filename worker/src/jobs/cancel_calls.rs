//! Cancels the unanswered calls of a stopped batch, so that none of them rings later out of a
//! carrier's queue.
//!
//! A request in flight when the batch stopped has no carrier id yet: the job retries until every
//! call is canceled, answered or ended. A batch that was started again meanwhile keeps its calls.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use peal_shared::Result;
use peal_shared::bells::Bell;
use peal_shared::calls::cancel::{Unanswered, leftovers_unscoped, mark_canceling_unscoped};
use peal_shared::calls::reconcile::release_unscoped;
use peal_shared::campaigns::lifecycle::CancelCalls;
use peal_shared::context::Context;
use peal_shared::queue::{Outcome, Running};
use peal_shared::telephony::Ending;

use super::Handle;
use crate::schedule::note_released;

/// Concurrent requests to the carrier.
const AT_ONCE: usize = 20;
/// Time before the next attempt at calls that could not be canceled yet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Handle<Context> for CancelCalls {
    async fn handle(self, context: &Context, _job: &Running) -> Outcome {
        match cancel(&self, context).await {
            Ok(0) => Outcome::Done,
            Ok(left) => Outcome::Retry {
                after: Some(LOOK_AGAIN),
                why: format!("{left} calls could not be canceled yet"),
            },
            Err(error) => error.into(),
        }
    }
}

/// Cancels the calls that can be canceled; returns how many need another attempt.
async fn cancel(payload: &CancelCalls, context: &Context) -> Result<i64> {
    // 1. Cancel deferred calls.
    let mut db = context.pool.begin().await?;
    let released = release_unscoped(&mut db).await?;
    db.commit().await?;
    note_released(context, released);

    // 2. Cancel the others at the carrier, without a transaction.
    let left = leftovers_unscoped(&context.pool, payload.batch_id).await?;
    let endings: Vec<_> = stream::iter(left.unanswered)
        .map(|call| async move { (call.id, end(context, &call).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut canceled = Vec::new();
    let mut failed = 0;
    for (call, ended) in endings {
        match ended {
            Ok(true) => canceled.push(call),
            Ok(false) => {} // Answered or ended: its own events report it.
            Err(error) => {
                tracing::warn!(%error, call.id = %call, "a call could not be canceled");
                failed += 1;
            }
        }
    }

    // 3. Record the cancellations.
    let mut db = context.pool.begin().await?;
    mark_canceling_unscoped(&mut db, &canceled, context.clock.now()).await?;
    db.commit().await?;
    context.bells.ring(Bell::Dial);
    Ok(left.undecided + failed)
}

async fn end(context: &Context, call: &Unanswered) -> Result<bool> {
    let keys = &context.config.keys;
    let account = context
        .accounts
        .get(&context.pool, keys, call.trunk)
        .await?;
    let carrier = context.carriers.of(account.kind);
    carrier
        .end(&account, &call.carrier_call_id, Ending::Cancel)
        .await
}
