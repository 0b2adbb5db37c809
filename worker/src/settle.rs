//! Charges ended calls, in bulk.
//!
//! A group that the database rejects is reduced until the faulty call is alone; that call is
//! postponed, so that one faulty call never blocks the charges of the others.

use std::sync::Arc;
use std::time::Duration;

use peal_shared::billing::settle::{SettlementFailure, postpone_unscoped, settle_due_unscoped};
use peal_shared::context::Context;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Maximum of calls in one transaction.
const GROUP_LIMIT: i64 = 500;
/// Time between two polls when no wakeup arrives.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two polls: calls that end meanwhile are charged together, and claims do
/// not wait for the wallet's lock meanwhile.
const MIN_POLL_PAUSE: Duration = Duration::from_millis(250);
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

/// Settles until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut wakeup = context.wakeups.listen(WakeupChannel::Settle);
    let mut group = GROUP_LIMIT;

    while !shutdown.is_cancelled() {
        let asked = Instant::now();
        match settle_due_unscoped(&context.pool, group, context.clock.now()).await {
            Ok(settled) => {
                let full = i64::try_from(settled.processed).is_ok_and(|taken| taken >= group);
                if settled.processed > 0 {
                    tracing::debug!(?settled, "calls settled");
                    context
                        .metrics
                        .money
                        .record_settled(&settled, asked.elapsed());
                }

                group = group.saturating_mul(2).min(GROUP_LIMIT);
                if full {
                    continue;
                }

                let pause = async {
                    sleep(MIN_POLL_PAUSE).await;
                    wakeup.wait(16, POLL_INTERVAL).await;
                };
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = pause => {}
                }
            }

            Err(refused) => {
                tracing::warn!(error = %refused.error, group, "calls cannot be settled");
                group = next_group_size(&context, group, refused).await;
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep(OUTAGE_PAUSE) => {}
                }
            }
        }
    }
}

/// Returns the next group size. An outage, a deadlock or a timeout is retried with the same
/// group; a group that is rejected for any other reason gets smaller.
async fn next_group_size(context: &Context, group: i64, refused: SettlementFailure) -> i64 {
    let outage = matches!(refused.error, peal_shared::Error::Busy(_)) || refused.entries.is_empty();
    if outage || refused.error.is_lost_connection() {
        return group;
    }
    let [due] = refused.entries[..] else {
        return (group / 8).max(1);
    };

    tracing::error!(due, error = %refused.error, "a call cannot be settled: its charge is postponed");
    context.metrics.money.record_postponed();
    if let Err(error) = postpone_unscoped(&context.pool, due).await {
        tracing::warn!(%error, "a charge could not be postponed");
    }
    group
}
