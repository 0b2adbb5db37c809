//! Sends create requests to carriers; no other module does.

use std::sync::Arc;

use peal_shared::calls::claim::ClaimedCall;
use peal_shared::calls::urls::CallUrls;
use peal_shared::context::Context;
use peal_shared::metrics::TrunkMetrics;
use peal_shared::platform::failpoint;
use peal_shared::platform::ids::TrunkId;
use peal_shared::telephony::{CarrierAccount, NewCall, Placement};
use peal_shared::traces::{CallStep, KeyValue};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::record::PlacementResult;

/// A create request with everything prepared that takes time.
pub struct PlacementRequest {
    trunk: TrunkId,
    call: NewCall,
    account: peal_shared::Result<Arc<CarrierAccount>>,
}

impl PlacementRequest {
    /// Prepares the request of a claimed call.
    pub async fn prepare(context: &Context, trunk: TrunkId, call: &ClaimedCall) -> Self {
        let config = &context.config;
        let urls = CallUrls::new(&config.public_url, &config.keys, trunk, call.id);
        Self {
            trunk,
            account: context
                .accounts
                .get(&context.pool, &config.keys, trunk)
                .await,
            call: NewCall {
                to: call.to.clone(),
                from: call.from.clone(),
                answer_url: urls.answer,
                status_url: urls.status,
                machine_detection_url: call.machine_detection.then_some(urls.machine_detection),
                recording_url: call.recording_enabled.then_some(urls.recording),
                ring_timeout_secs: u32::try_from(call.ring_timeout_secs).unwrap_or(30),
                max_duration_secs: u32::try_from(call.max_duration_secs).unwrap_or(180),
            },
        }
    }

    /// Sends the request, once, and passes its result to the recorder.
    pub async fn send(
        self,
        context: &Context,
        call: ClaimedCall,
        results: &mpsc::Sender<PlacementResult>,
        counts: &TrunkMetrics,
    ) {
        let span = tracing::info_span!("place", call.id = %call.id, trunk.id = %self.trunk);

        failpoint::hit("place.unsent");
        let began = context.traces.begin();
        let placement = self.create(context).instrument(span).await;
        failpoint::hit("place.answered");

        counts.record_placement(&placement);
        context.traces.end(began, call.id, CallStep::Place, || {
            vec![
                KeyValue::new("trunk.id", self.trunk.to_string()),
                KeyValue::new("place.result", placement.as_str()),
                KeyValue::new("call.submission", i64::from(call.submit_count)),
            ]
        });

        let result = PlacementResult {
            trunk: self.trunk,
            call: call.id,
            batch: call.batch,
            submit_count: call.submit_count,
            placement,
        };
        if results.send(result).await.is_err() {
            tracing::error!(call.id = %call.id, "the result of a placement was not recorded");
        }
    }

    async fn create(&self, context: &Context) -> Placement {
        match &self.account {
            Ok(account) => {
                let carrier = context.carriers.adapter(account.kind);
                carrier.create(account, &self.call).await
            }
            Err(error) => {
                tracing::error!(%error, "the trunk's account cannot be read");
                Placement::Deferred {
                    proof: "the request was not sent: the trunk's account could not be read"
                        .to_owned(),
                    retry_after_secs: Some(30),
                    throttled: false,
                }
            }
        }
    }
}
