//! Dialling: from free send slots to requests at the carrier.
//!
//! ```text
//! watch ------> one dialer per trunk with work
//!                claimer --(calls, slots)--> sender --> place (the POST) --> recorder
//! ```
//!
//! [`run`] keeps a dialer ([`trunk_dialer`]) for every trunk that has work. Its claimer leases slots and
//! claims rows in one transaction (`peal_shared::calls::claim`), its sender uses each slot at its
//! instant, [`place`] sends the request and reports the placement, and the recorder ([`record`])
//! stores placements in bulk. The dialers of all replicas compete for the same pacer row and so
//! keep the trunk's pace together.

mod place;
mod record;
mod trunk_dialer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use peal_shared::context::Context;
use peal_shared::platform::ids::TrunkId;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::trunks;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use record::PlacementRecorder;
use trunk_dialer::TrunkDialer;

/// Time between two searches for trunks with work when no wakeup arrives.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two searches.
const MIN_SEARCH_PAUSE: Duration = Duration::from_millis(25);
/// Results that may wait to be recorded.
const RESULTS_LIMIT: usize = 4096;

/// The task of a trunk dialer.
struct RunningDialer {
    task: JoinHandle<()>,
    wake: Arc<Notify>,
}

/// Dials until `shutdown`; then gives back unsent calls and waits for requests in flight.
pub async fn run(context: Arc<Context>, worker: Arc<str>, shutdown: CancellationToken) {
    let (results, waiting) = mpsc::channel(RESULTS_LIMIT);
    let recorder = tokio::spawn(PlacementRecorder::new(Arc::clone(&context)).run(waiting));
    let mut dialers: HashMap<TrunkId, RunningDialer> = HashMap::new();
    let mut wakeup = context.wakeups.listen(WakeupChannel::Dial);

    while !shutdown.is_cancelled() {
        match trunks::list_with_work_unscoped(&context.pool).await {
            Ok(trunks) => {
                dialers.retain(|_, dialer| !dialer.task.is_finished());
                for trunk in trunks {
                    let running = dialers.entry(trunk).or_insert_with(|| {
                        let wake = Arc::new(Notify::new());
                        let dialer = TrunkDialer {
                            context: Arc::clone(&context),
                            trunk,
                            worker: Arc::clone(&worker),
                            results: results.clone(),
                            wake: Arc::clone(&wake),
                            shutdown: shutdown.clone(),
                        };
                        RunningDialer {
                            task: tokio::spawn(dialer.run()),
                            wake,
                        }
                    });
                    running.wake.notify_one();
                }
            }
            Err(error) => tracing::warn!(%error, "cannot search for trunks with work"),
        }

        // Wakeups are as frequent as ends of calls; one search serves all that arrived meanwhile.
        let pause = async {
            sleep(MIN_SEARCH_PAUSE).await;
            wakeup.wait(16, SEARCH_INTERVAL).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = pause => {}
        }
    }

    // 1. The dialers give back unsent calls.
    for (trunk, dialer) in dialers {
        if let Err(error) = dialer.task.await {
            tracing::error!(%error, trunk.id = %trunk, "a trunk dialer failed");
        }
    }

    // 2. The recorder drains and ends when the last sender of results is dropped.
    drop(results);
    if let Err(error) = recorder.await {
        tracing::error!(%error, "the recorder failed");
    }
}
