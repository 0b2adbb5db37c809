//! Launches a started batch.

use peal_shared::campaigns::lifecycle::{StartBatch, launch_unscoped};
use peal_shared::context::Context;
use peal_shared::platform::failpoint;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::platform::queue::{JobOutcome, RunningJob};

use super::JobHandler;

impl JobHandler<Context> for StartBatch {
    async fn handle(self, context: &Context, _job: &RunningJob) -> JobOutcome {
        let launched = async {
            let mut db = context.pool.begin().await?;
            let launched =
                launch_unscoped(&mut db, self.batch_id, context.estimate_basis()).await?;
            failpoint::hit("start.uncommitted");
            db.commit().await?;
            failpoint::hit("start.committed");
            Ok(launched)
        };
        match launched.await {
            Ok(true) => {
                context.wakeups.notify(WakeupChannel::Dial);
                JobOutcome::Done
            }
            Ok(false) => JobOutcome::Done,
            Err(error) => peal_shared::Error::into(error),
        }
    }
}
