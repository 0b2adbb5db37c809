//! What handlers share.

use std::sync::Arc;

use axum::extract::FromRef;
use peal_shared::context::Context;
use tokio_util::sync::CancellationToken;

use crate::auth::KeyCache;

/// Everything a handler may ask for, each part by its own type.
#[derive(Clone, FromRef)]
pub struct Api {
    pub context: Arc<Context>,
    pub known_keys: KeyCache,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
}
