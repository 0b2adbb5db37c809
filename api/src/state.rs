//! What handlers share.

use std::sync::Arc;

use axum::extract::FromRef;
use peal_shared::context::Context;
use tokio_util::sync::CancellationToken;

use crate::auth::KeyCache;
use crate::batch_events::Watches;
use crate::callbacks::Refusals;
use crate::inbox::Inbox;
use crate::upload_body::UploadSlots;

/// Everything a handler may ask for, each part by its own type.
#[derive(Clone, FromRef)]
pub struct Api {
    pub context: Arc<Context>,
    pub inbox: Inbox,
    pub known_keys: KeyCache,
    pub watches: Watches,
    pub refusals: Refusals,
    pub uploads: UploadSlots,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
}

impl Api {
    /// To be called in a tokio runtime.
    pub fn new(context: Arc<Context>, shutdown: CancellationToken) -> Self {
        Self {
            inbox: Inbox::open(&context),
            known_keys: KeyCache::default(),
            watches: Watches::default(),
            refusals: Refusals::default(),
            uploads: UploadSlots::default(),
            context,
            shutdown,
        }
    }
}
