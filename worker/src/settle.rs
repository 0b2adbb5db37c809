//! Charges calls that have ended, in bulk, as long as there are any.
//!
//! A group that the database refuses is cut down until the one call at fault is alone; that one
//! is put off, so a single odd call never keeps the others from being charged.

use std::sync::Arc;
use std::time::Duration;

use peal_shared::bells::Bell;
use peal_shared::billing::settle::{Refused, put_off_unscoped, settle_due_unscoped};
use peal_shared::context::Context;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Calls settled in one transaction, at most.
const GROUP_LIMIT: i64 = 500;
/// How often to look when no bell rings.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The least time between two looks: what ends meanwhile is folded together, and claims do not
/// wait for the wallet meanwhile.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

/// Settles until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut bell = context.bells.listen(Bell::Settle);
    let mut group = GROUP_LIMIT;
    while !shutdown.is_cancelled() {
        let asked = Instant::now();
        match settle_due_unscoped(&context.pool, group, context.clock.now()).await {
            Ok(settled) => {
                let full = i64::try_from(settled.taken).is_ok_and(|taken| taken >= group);
                if settled.taken > 0 {
                    tracing::debug!(?settled, "calls settled");
                    context.metrics.money.settled(&settled, asked.elapsed());
                }
                group = group.saturating_mul(2).min(GROUP_LIMIT);
                if full {
                    continue;
                }
                let pause = async {
                    sleep(LOOK_PAUSE).await;
                    bell.heard(16, LOOK_EVERY).await;
                };
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = pause => {}
                }
            }
            Err(refused) => {
                tracing::warn!(error = %refused.error, group, "calls cannot be settled");
                group = narrow(&context, group, refused).await;
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep(OUTAGE_PAUSE) => {}
                }
            }
        }
    }
}

/// An outage, a deadlock or a timeout is waited out with the group as it is; what is refused for
/// any other reason is narrowed down.
async fn narrow(context: &Context, group: i64, refused: Refused) -> i64 {
    let outage = matches!(refused.error, peal_shared::Error::Busy(_)) || refused.due.is_empty();
    if outage || refused.error.is_lost_connection() {
        return group;
    }
    let [due] = refused.due[..] else {
        return (group / 8).max(1);
    };
    tracing::error!(due, error = %refused.error, "a call is put off: it cannot be settled");
    context.metrics.money.put_off();
    if let Err(error) = put_off_unscoped(&context.pool, due).await {
        tracing::warn!(%error, "a call could not be put off");
    }
    group
}
