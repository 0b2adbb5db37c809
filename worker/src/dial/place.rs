//! The one place that asks a carrier to dial.

use std::sync::Arc;

use peal_shared::calls::claim::Claimed;
use peal_shared::calls::urls::CallUrls;
use peal_shared::context::Context;
use peal_shared::ids::TrunkId;
use peal_shared::telephony::{NewCall, Placement};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::record::Result;

/// Sends a claimed call's request, once, and reports what became of it.
pub async fn place(
    context: &Arc<Context>,
    trunk: TrunkId,
    call: Claimed,
    results: &mpsc::Sender<Result>,
) {
    let span = tracing::info_span!("place", call.id = %call.id, trunk.id = %trunk);
    let placement = create(context, trunk, &call).instrument(span).await;
    let result = Result {
        trunk,
        call: call.id,
        batch: call.batch,
        submit_count: call.submit_count,
        placement,
    };
    if results.send(result).await.is_err() {
        tracing::error!(call.id = %call.id, "the result of a placement was not recorded");
    }
}

async fn create(context: &Context, trunk: TrunkId, call: &Claimed) -> Placement {
    let account = match context
        .accounts
        .get(&context.pool, &context.config.keys, trunk)
        .await
    {
        Ok(account) => account,
        Err(error) => {
            tracing::error!(%error, "the trunk's account cannot be read");
            return Placement::Deferred {
                proof: "the request was not sent: the trunk's account could not be read".to_owned(),
                retry_after_secs: Some(30),
                throttled: false,
            };
        }
    };
    let urls = CallUrls::new(
        &context.config.public_url,
        &context.config.keys,
        trunk,
        call.id,
    );
    let new = NewCall {
        to: call.to.clone(),
        from: call.from.clone(),
        answer_url: urls.answer,
        status_url: urls.status,
        machine_detection_url: call.machine_detection.then_some(urls.machine_detection),
        recording_url: call.recording_enabled.then_some(urls.recording),
        ring_timeout_secs: u32::try_from(call.ring_timeout_secs).unwrap_or(30),
        max_duration_secs: u32::try_from(call.max_duration_secs).unwrap_or(180),
    };
    context
        .carriers
        .of(account.kind)
        .create(&account, &new)
        .await
}
