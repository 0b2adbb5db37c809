//! Launches a started batch.

use peal_shared::bells::Bell;
use peal_shared::campaigns::lifecycle::{StartBatch, launch_unscoped};
use peal_shared::context::Context;
use peal_shared::fault;
use peal_shared::queue::{Outcome, Running};

use super::Handle;

impl Handle<Context> for StartBatch {
    async fn handle(self, context: &Context, _job: &Running) -> Outcome {
        let launched = async {
            let mut db = context.pool.begin().await?;
            let launched = launch_unscoped(&mut db, self.batch_id, context.basis()).await?;
            fault::point("start.uncommitted");
            db.commit().await?;
            fault::point("start.committed");
            Ok(launched)
        };
        match launched.await {
            Ok(true) => {
                context.bells.ring(Bell::Dial);
                Outcome::Done
            }
            Ok(false) => Outcome::Done,
            Err(error) => peal_shared::Error::into(error),
        }
    }
}
