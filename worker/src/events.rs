//! Applies carrier events, in bulk.
//!
//! A group that the database rejects is reduced until the faulty event is alone; that event
//! is set aside with its reason, so that one faulty event never blocks the others.

use std::sync::Arc;
use std::time::Duration;

use peal_shared::calls::apply::{AppliedUpdates, DuplicateCall};
use peal_shared::calls::events::{RefusedEvents, apply_pending_unscoped, set_event_aside_unscoped};
use peal_shared::context::Context;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::telephony::CallTermination;
use peal_shared::traces::{CallStep, KeyValue, StepStart};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Maximum of events in one transaction.
const GROUP_LIMIT: i64 = 500;
/// Time between two polls when no wakeup arrives.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

/// Applies events until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut wakeup = context.wakeups.listen(WakeupChannel::Inbox);
    let mut group = GROUP_LIMIT;

    while !shutdown.is_cancelled() {
        let (asked, began) = (Instant::now(), context.traces.begin());

        match apply_pending_unscoped(&context.pool, group, context.clock.now()).await {
            Ok((0, _)) => {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    _ = wakeup.wait(64, POLL_INTERVAL) => {}
                }
            }

            Ok((taken, applied)) => {
                tracing::debug!(taken, finals = applied.ended.len(), "events applied");
                context
                    .metrics
                    .events
                    .record_applied(taken, asked.elapsed());
                for call in &applied.calls {
                    context.traces.end(began, *call, CallStep::Apply, || {
                        let taken = i64::try_from(taken).unwrap_or(i64::MAX);
                        vec![KeyValue::new("apply.events", taken)]
                    });
                }

                record_ends(&context, &applied, began);
                if !applied.ended.is_empty() {
                    context.wakeups.notify(WakeupChannel::Dial);
                    context.wakeups.notify(WakeupChannel::Settle);
                }
                for batch in &applied.completed {
                    tracing::info!(batch.id = %batch, "batch completed");
                }
                hang_up_duplicates(&context, applied.duplicates);

                group = group.saturating_mul(2).min(GROUP_LIMIT);
            }

            Err(refused) => {
                tracing::warn!(error = %refused.error, group, "events cannot be applied");
                group = next_group_size(&context, group, refused).await;
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep(OUTAGE_PAUSE) => {}
                }
            }
        }
    }
}

/// Returns the next group size. Only a group whose values the database rejects gets smaller; an
/// outage, a deadlock or a timeout is retried with the same group.
async fn next_group_size(context: &Context, group: i64, refused: RefusedEvents) -> i64 {
    if !refused.error.is_invalid_data() {
        return group;
    }
    let [event] = refused.events[..] else {
        return (group / 8).max(1);
    };

    let why = refused.error.to_string();
    tracing::error!(event, why, "an event is set aside");
    context.metrics.events.record_set_aside();
    if let Err(error) = set_event_aside_unscoped(&context.pool, event, &why).await {
        tracing::warn!(%error, "an event could not be set aside");
    }
    group
}

/// Counts ended calls and ends their traces.
pub fn record_ends(context: &Context, applied: &AppliedUpdates, began: Option<StepStart>) {
    for (call, outcome) in &applied.ended {
        context.metrics.dial.record_ended(*outcome, 1);
        context.traces.end_call(began, *call, *outcome);
    }
}

/// Ends duplicate calls: the second ones of their attempt. If this fails, the answer document
/// still hangs them up.
pub fn hang_up_duplicates(context: &Arc<Context>, foreign: Vec<DuplicateCall>) {
    for call in foreign {
        tracing::error!(call.id = %call.call, trunk.id = %call.trunk, "an attempt has a duplicate call: hanging it up");
        let context = Arc::clone(context);
        tokio::spawn(async move {
            let ended = async {
                let account = context
                    .accounts
                    .get(&context.pool, &context.config.keys, call.trunk)
                    .await?;
                let carrier = context.carriers.adapter(account.kind);
                carrier
                    .end(&account, &call.carrier_call_id, CallTermination::HangUp)
                    .await
            };
            if let Err(error) = ended.await {
                tracing::error!(%error, call.id = %call.call, "a duplicate call could not be hung up");
            }
        });
    }
}
