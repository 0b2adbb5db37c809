//! Traces: the steps of a call, from its claim to its end, sent to an OpenTelemetry collector.
//! Off unless a collector is configured; then a step that is not traced costs a comparison.
//!
//! The id of a call's trace is the call's own id, so every process that handles the call adds
//! to one trace without passing a context, and a call's id finds its trace. The same id decides
//! whether the call is sampled, so all processes agree. The trace's root is sent last, by the
//! process that applies the end, with an id that every step derives from the call's id:
//!
//! ```text
//! call ──┬─ claim      worker, one transaction for many calls
//!        ├─ place      worker, the create request
//!        ├─ callback   api, one for each
//!        ├─ apply      worker, one transaction for many events
//!        └─ final      worker, the transaction that ended the call
//! ```
//!
//! Steps are reported after their end, many at a time, because calls are processed in bulk; so
//! the exporter gets complete spans and no span is kept open or passed along.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SpanData, SpanEvents,
    SpanLinks, SpanProcessor,
};
use tokio::runtime::Handle;

use crate::config::TracesConfig;
use crate::platform::clock::Clock;
use crate::platform::http;
use crate::platform::ids::CallId;
use crate::telephony::Outcome;

pub use opentelemetry::KeyValue;

/// Timeout of requests to the collector.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two exports of spans.
const SEND_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum of unsent spans; further ones are dropped.
const UNSENT_LIMIT: usize = 8192;
/// Longest time for the last export when the process ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A step of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStep {
    Claim,
    Place,
    Callback,
    Apply,
    Final,
}

impl CallStep {
    fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Place => "place",
            Self::Callback => "callback",
            Self::Apply => "apply",
            Self::Final => "final",
        }
    }

    fn kind(self) -> SpanKind {
        match self {
            Self::Place => SpanKind::Client,
            Self::Callback => SpanKind::Server,
            Self::Claim | Self::Apply | Self::Final => SpanKind::Internal,
        }
    }
}

/// Start time of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepStart(DateTime<Utc>);

/// The traces of this process.
#[derive(Clone, Debug, Default)]
pub struct CallTracer(Option<Arc<SpanCollector>>);

#[derive(Debug)]
struct SpanCollector {
    processor: BatchSpanProcessor,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
    ratio: f64,
    clock: Clock,
}

impl CallTracer {
    /// Starts tracing for the program `service`; requires a tokio runtime. Does not wait for the
    /// collector.
    ///
    /// # Errors
    /// Fails when no HTTP client can be made.
    pub fn open(
        settings: Option<&TracesConfig>,
        service: &'static str,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let Some(settings) = settings else {
            return Ok(Self(None));
        };

        let client = OtlpHttpClient {
            http: http::carrier_client(SEND_TIMEOUT)?,
            runtime: Handle::current(),
            failing: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.url.as_str())
            .with_timeout(SEND_TIMEOUT)
            .build()
            .context("PEAL_OTLP_URL")?;

        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(UNSENT_LIMIT)
            .with_scheduled_delay(SEND_INTERVAL)
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();

        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(version)
            .build();
        processor.set_resource(&resource);

        Ok(Self(Some(Arc::new(SpanCollector {
            processor,
            ids: RandomIdGenerator::default(),
            scope: InstrumentationScope::builder("peal").build(),
            ratio: settings.ratio,
            clock,
        }))))
    }

    /// Returns the current time when tracing is on.
    #[must_use]
    pub fn begin(&self) -> Option<StepStart> {
        let collector = self.0.as_ref()?;
        Some(StepStart(collector.clock.now()))
    }

    /// Reports a step of a call that has just ended. The attributes are evaluated only when the
    /// call is sampled; they must contain no personal data.
    pub fn end(
        &self,
        began: Option<StepStart>,
        call: CallId,
        step: CallStep,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) {
        if let (Some(collector), Some(StepStart(began))) = (&self.0, began)
            && is_sampled(call, collector.ratio)
        {
            let id = collector.ids.new_span_id();
            let mut span = collector.span(call, id, step.name(), began);
            span.parent_span_id = root_span_id(call);
            span.parent_span_is_remote = true;
            span.span_kind = step.kind();
            span.attributes.extend(attributes());
            collector.processor.on_end(span);
        }
    }

    /// Reports the end of a call and the root of its trace.
    pub fn end_call(&self, began: Option<StepStart>, call: CallId, outcome: Outcome) {
        let attributes = || vec![KeyValue::new("call.outcome", outcome.as_str())];
        self.end(began, call, CallStep::Final, attributes);
        if let Some(collector) = &self.0
            && is_sampled(call, collector.ratio)
        {
            let created = created_at(call).unwrap_or_else(|| collector.clock.now());
            let mut span = collector.span(call, root_span_id(call), "call", created);
            span.attributes.extend(attributes());
            collector.processor.on_end(span);
        }
    }

    /// Sends the remaining spans and stops tracing.
    pub async fn close(&self) {
        let Some(collector) = self.0.clone() else {
            return;
        };
        // The processor waits for its own thread, which waits for this runtime.
        let closing = tokio::task::spawn_blocking(move || {
            collector.processor.shutdown_with_timeout(CLOSE_TIMEOUT)
        });
        match closing.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not sent"),
            Err(error) => tracing::warn!(%error, "the last spans were not sent"),
        }
    }
}

impl SpanCollector {
    /// Creates a span that ends at the current time, without a parent.
    fn span(&self, call: CallId, id: SpanId, name: &'static str, began: DateTime<Utc>) -> SpanData {
        let trace = TraceId::from_bytes(*call.0.as_bytes());
        let flags = TraceFlags::SAMPLED;
        SpanData {
            span_context: SpanContext::new(trace, id, flags, false, TraceState::default()),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: began.into(),
            end_time: self.clock.now().max(began).into(),
            attributes: vec![KeyValue::new("call.id", call.to_string())],
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// Id of the root span of a call's trace: the second half of the call's id, never zero because it
/// contains the UUID's variant.
fn root_span_id(call: CallId) -> SpanId {
    let [.., a, b, c, d, e, f, g, h] = *call.0.as_bytes();
    SpanId::from_bytes([a, b, c, d, e, f, g, h])
}

/// True when a call is in the sampled part of all calls: the last bytes of its id are random.
fn is_sampled(call: CallId, ratio: f64) -> bool {
    let [.., a, b, c, d] = *call.0.as_bytes();
    f64::from(u32::from_be_bytes([a, b, c, d])) < ratio * 4_294_967_296.0
}

/// Creation time of a call, from its id.
fn created_at(call: CallId) -> Option<DateTime<Utc>> {
    let (secs, nanos) = call.0.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(secs).ok()?, nanos)
}

/// Sends spans with the shared HTTP client. The exporter runs on its own thread, outside of the
/// runtime that the client needs.
#[derive(Debug)]
struct OtlpHttpClient {
    http: reqwest::Client,
    runtime: Handle,
    failing: AtomicBool,
}

impl OtlpHttpClient {
    /// Logs the first failure and the first success after failures.
    fn log_transition<E: fmt::Display>(&self, sent: &Result<Response<Bytes>, E>) {
        let why = match sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("status {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        let failed_before = self.failing.swap(why.is_some(), Ordering::Relaxed);
        match why {
            Some(why) if !failed_before => {
                tracing::warn!(
                    why,
                    "the collector rejects spans; calls continue without traces"
                );
            }
            None if failed_before => tracing::info!("the collector accepts spans again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for OtlpHttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sending = self.runtime.spawn(async move {
            let request = request.try_into()?;
            let answer = http.execute(request).await?;
            let status = answer.status();
            let mut response = Response::new(answer.bytes().await?);
            *response.status_mut() = status;
            Ok::<_, reqwest::Error>(response)
        });
        let sent = sending.await?;
        // The address may contain a password.
        let sent = sent.map_err(reqwest::Error::without_url);
        self.log_transition(&sent);
        Ok(sent?)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// A call id with the `nth` of `of` endings that are spread evenly over all endings.
    fn call_at(nth: u64, of: u64) -> CallId {
        let mut id = *CallId::new().0.as_bytes();
        let end = u32::try_from((nth << 32) / of).unwrap();
        id[12..].copy_from_slice(&end.to_be_bytes());
        CallId(Uuid::from_bytes(id))
    }

    #[test]
    fn the_part_of_calls_that_is_traced_is_the_part_asked_for() {
        let calls: Vec<CallId> = (0..20_000).map(|nth| call_at(nth, 20_000)).collect();
        for (ratio, expected) in [(0.0, 0), (0.25, 5_000), (1.0, 20_000)] {
            let traced = calls
                .iter()
                .filter(|call| is_sampled(**call, ratio))
                .count();
            assert_eq!(traced, expected, "{ratio}");
        }
        // Ids end at random, so a thousand of them are never all in one half.
        let halves = std::iter::repeat_with(|| is_sampled(CallId::new(), 0.5));
        let halves: Vec<bool> = halves.take(1_000).collect();
        assert!(halves.contains(&true) && halves.contains(&false));
    }

    #[test]
    fn a_call_knows_its_roots_id_and_its_birth() {
        let call = CallId::new();
        assert_ne!(root_span_id(call), SpanId::INVALID);
        assert_eq!(root_span_id(call), root_span_id(call));
        let age = Clock::default().now() - created_at(call).unwrap();
        assert!(age.num_seconds().abs() < 5, "{age}");
    }
}
