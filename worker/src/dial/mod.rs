//! Dialling: from free send slots to requests at the carrier.
//!
//! ```text
//! watch ------> one line per trunk with work
//!                claimer --(calls, slots)--> sender --> place (the POST) --> recorder
//! ```
//!
//! [`run`] keeps a line ([`trunk`]) going for every trunk that has work. A line's claimer takes
//! slots and rows in one transaction (`peal_shared::calls::claim`), its sender spends each slot
//! at its instant, [`place`] sends the request and says what became of it, and the recorder
//! ([`record`]) writes that down in bulk. The lines of all replicas compete for the same pacer
//! row and so keep the trunk's pace together.

mod place;
mod record;
mod trunk;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use peal_shared::bells::Bell;
use peal_shared::context::Context;
use peal_shared::ids::TrunkId;
use peal_shared::trunks;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use record::Recorder;
use trunk::Line;

/// How often to look for trunks with work when no bell rings.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// The least time between two looks.
const WATCH_PAUSE: Duration = Duration::from_millis(25);
/// Results that may wait to be recorded.
const RESULTS_LIMIT: usize = 4096;

struct Running {
    task: JoinHandle<()>,
    wake: Arc<Notify>,
}

/// Dials until `shutdown`; then gives back what was not sent and waits for what was.
pub async fn run(context: Arc<Context>, worker: Arc<str>, shutdown: CancellationToken) {
    let (results, waiting) = mpsc::channel(RESULTS_LIMIT);
    let recorder = tokio::spawn(Recorder::new(Arc::clone(&context)).run(waiting));
    let mut lines: HashMap<TrunkId, Running> = HashMap::new();
    let mut bell = context.bells.listen(Bell::Dial);
    while !shutdown.is_cancelled() {
        match trunks::with_work_unscoped(&context.pool).await {
            Ok(trunks) => {
                lines.retain(|_, line| !line.task.is_finished());
                for trunk in trunks {
                    let line = lines.entry(trunk).or_insert_with(|| {
                        let wake = Arc::new(Notify::new());
                        let line = Line {
                            context: Arc::clone(&context),
                            trunk,
                            worker: Arc::clone(&worker),
                            results: results.clone(),
                            wake: Arc::clone(&wake),
                            shutdown: shutdown.clone(),
                        };
                        Running {
                            task: tokio::spawn(line.run()),
                            wake,
                        }
                    });
                    line.wake.notify_one();
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look for work to dial"),
        }
        // Bells ring as often as calls end; one look serves all that rang meanwhile.
        let pause = async {
            sleep(WATCH_PAUSE).await;
            bell.heard(16, WATCH_EVERY).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = pause => {}
        }
    }
    for (trunk, line) in lines {
        if let Err(error) = line.task.await {
            tracing::error!(%error, trunk.id = %trunk, "a line ended badly");
        }
    }
    drop(results);
    if let Err(error) = recorder.await {
        tracing::error!(%error, "the recorder ended badly");
    }
}
