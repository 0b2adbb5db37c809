//! Cancels the unanswered calls of a stopped batch, so that none of them rings later out of a
//! carrier's queue.
//!
//! A request in flight when the batch stopped has no carrier id yet: the job retries until every
//! call is canceled, answered or ended. A batch that was started again meanwhile keeps its calls.

use std::time::Duration;

use futures::stream;
use futures::stream::StreamExt;
use peal_shared::Result;
use peal_shared::calls::cancel::{
    CancelableCall, mark_canceling_unscoped, remaining_calls_unscoped,
};
use peal_shared::calls::reconcile::release_unsent_unscoped;
use peal_shared::campaigns::lifecycle::CancelCalls;
use peal_shared::context::Context;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::platform::queue::{JobOutcome, RunningJob};
use peal_shared::telephony::CallTermination;

use super::JobHandler;
use crate::maintenance::record_released;

/// Concurrent requests to the carrier.
const CARRIER_CONCURRENCY: usize = 20;
/// Time before the next attempt at calls that could not be canceled yet.
const RETRY_DELAY: Duration = Duration::from_secs(1);

impl JobHandler<Context> for CancelCalls {
    async fn handle(self, context: &Context, _job: &RunningJob) -> JobOutcome {
        match cancel(&self, context).await {
            Ok(0) => JobOutcome::Done,
            Ok(left) => JobOutcome::Retry {
                after: Some(RETRY_DELAY),
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
    let released = release_unsent_unscoped(&mut db).await?;
    db.commit().await?;
    record_released(context, released);

    // 2. Cancel the others at the carrier, without a transaction.
    let left = remaining_calls_unscoped(&context.pool, payload.batch_id).await?;
    let endings: Vec<_> = stream::iter(left.cancelable)
        .map(|call| async move { (call.id, cancel_call(context, &call).await) })
        .buffer_unordered(CARRIER_CONCURRENCY)
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
    context.wakeups.notify(WakeupChannel::Dial);
    Ok(left.undecided + failed)
}

async fn cancel_call(context: &Context, call: &CancelableCall) -> Result<bool> {
    let keys = &context.config.keys;
    let account = context
        .accounts
        .get(&context.pool, keys, call.trunk)
        .await?;
    let carrier = context.carriers.adapter(account.kind);
    carrier
        .end(&account, &call.carrier_call_id, CallTermination::Cancel)
        .await
}
