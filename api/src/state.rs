//! Shared state of the handlers.

use std::sync::Arc;

use axum::extract::FromRef;
use peal_shared::context::Context;
use tokio_util::sync::CancellationToken;

use crate::auth::KeyCache;
use crate::auth::tokens::Tokens;
use crate::batch_events::Watches;
use crate::inbox::Inbox;
use crate::rates::Rates;
use crate::refusals::Refusals;
use crate::shed::Gates;
use crate::sign_in::Door;
use crate::standings::Standings;
use crate::streams::Streams;
use crate::upload_body::UploadSlots;

/// Shared state; handlers extract each part by its type.
#[derive(Clone, FromRef)]
pub struct Api {
    pub context: Arc<Context>,
    pub inbox: Inbox,
    pub known_keys: KeyCache,
    pub tokens: Tokens,
    pub door: Door,
    pub rates: Rates,
    pub refusals: Refusals,
    pub watches: Watches,
    pub standings: Standings,
    pub streams: Streams,
    pub gates: Gates,
    pub uploads: UploadSlots,
    /// Cancelled when the process shuts down.
    pub shutdown: CancellationToken,
}

impl Api {
    /// Creates the state. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// TLS roots for the issuer of session tokens are missing.
    pub fn new(context: Arc<Context>, shutdown: CancellationToken) -> anyhow::Result<Self> {
        Ok(Self {
            inbox: Inbox::open(&context),
            known_keys: KeyCache::default(),
            tokens: Tokens::new(&context)?,
            door: Door::default(),
            rates: Rates::new(&context.config.limits),
            refusals: Refusals::open(&context),
            watches: Watches::default(),
            standings: Standings::default(),
            streams: Streams::new(&context),
            gates: Gates::new(&context),
            uploads: UploadSlots::new(context.config.limits.uploads),
            context,
            shutdown,
        })
    }
}
