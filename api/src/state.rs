//! Shared state of the handlers.

use std::sync::Arc;

use axum::extract::FromRef;
use peal_shared::context::Context;
use tokio_util::sync::CancellationToken;

use crate::auth::KeyCache;
use crate::auth::denied_requests::DeniedRequests;
use crate::auth::stream_revalidation::StreamRevalidation;
use crate::auth::tokens::TokenCodec;
use crate::batches::event_hub::BatchEventHub;
use crate::batches::uploads::body::UploadSlots;
use crate::callbacks::event_writer::EventWriter;
use crate::limits::auth_limits::AuthRateLimits;
use crate::limits::load_shed::ConcurrencyLimits;
use crate::limits::rate_limit::RequestRateLimits;
use crate::limits::stream_limit::StreamLimits;

/// Shared state; handlers extract each part by its type.
#[derive(Clone, FromRef)]
pub struct AppState {
    pub context: Arc<Context>,
    pub event_writer: EventWriter,
    pub key_cache: KeyCache,
    pub tokens: TokenCodec,
    pub auth_limits: AuthRateLimits,
    pub rate_limits: RequestRateLimits,
    pub denied_requests: DeniedRequests,
    pub batch_events: BatchEventHub,
    pub stream_revalidation: StreamRevalidation,
    pub stream_limits: StreamLimits,
    pub concurrency_limits: ConcurrencyLimits,
    pub upload_slots: UploadSlots,
    /// Cancelled when the process shuts down.
    pub shutdown: CancellationToken,
}

impl AppState {
    /// Creates the state. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// TLS roots for the issuer of session tokens are missing.
    pub fn new(context: Arc<Context>, shutdown: CancellationToken) -> anyhow::Result<Self> {
        Ok(Self {
            event_writer: EventWriter::open(&context),
            key_cache: KeyCache::default(),
            tokens: TokenCodec::new(&context)?,
            auth_limits: AuthRateLimits::default(),
            rate_limits: RequestRateLimits::new(&context.config.limits),
            denied_requests: DeniedRequests::spawn(&context),
            batch_events: BatchEventHub::default(),
            stream_revalidation: StreamRevalidation::default(),
            stream_limits: StreamLimits::new(&context),
            concurrency_limits: ConcurrencyLimits::new(&context),
            upload_slots: UploadSlots::new(context.config.limits.uploads),
            context,
            shutdown,
        })
    }
}
