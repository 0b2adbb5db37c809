//! Traces of calls, as a collector receives them from every process that handles the call.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use peal_shared::platform::ids::CallId;
use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, phone_number};
use crate::harness::eventually;

/// A trace collector: received bodies, and spans with the name of their program.
#[derive(Clone, Default)]
struct TraceCollector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl TraceCollector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let routes = Router::new()
            .route("/v1/traces", post(receive_spans))
            .with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (collector, url)
    }

    fn spans_of(&self, call: CallId) -> Vec<(String, Span)> {
        let spans = self.spans.lock().unwrap();
        let of_call = spans
            .iter()
            .filter(|(_, span)| span.trace_id == call.0.as_bytes());
        of_call.cloned().collect()
    }
}

async fn receive_spans(State(collector): State<TraceCollector>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("protobuf");
    let mut spans = collector.spans.lock().unwrap();
    for sent in request.resource_spans {
        let attributes = sent.resource.expect("a resource").attributes;
        let name = attributes.iter().find(|of| of.key == "service.name");
        let service = format!("{:?}", name.expect("a service"));
        for scope in sent.scope_spans {
            let of_scope = scope.spans.into_iter();
            spans.extend(of_scope.map(|span| (service.clone(), span)));
        }
    }
    collector.bodies.lock().unwrap().push(body);
}

/// URL of the collector, static because the settings function captures nothing.
static COLLECTOR_URL: OnceLock<String> = OnceLock::new();

/// Spans of every call.
const CALL_SPANS: [&str; 5] = ["apply", "callback", "claim", "final", "place"];

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_covers_a_call_from_claim_to_end_across_processes() {
    let (collector, url) = TraceCollector::start().await;
    COLLECTOR_URL.set(url).expect("set once");
    let app = App::start_with(AppOptions {
        workers: 2,
        settings: |settings| {
            settings.telemetry.otlp_url = COLLECTOR_URL.get().cloned();
            settings.telemetry.otlp_ratio = Some("1".to_owned());
        },
        ..AppOptions::default()
    })
    .await;

    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 30).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    app.drain().await;
    let calls: Vec<CallId> = sqlx::query_scalar("select id from calls")
        .fetch_all(&app.context.pool)
        .await
        .unwrap();
    assert_eq!(calls.len(), 30);

    let all_complete = || async {
        calls
            .iter()
            .all(|call| is_complete(&collector.spans_of(*call)))
    };
    eventually("every call's trace has arrived", TEST_TIMEOUT, all_complete).await;

    // Closes the exporters after the traces are complete, since a span is exported after its commit.
    // This sends the remaining spans.
    for context in app.worker_contexts.iter().chain([&app.context]) {
        context.traces.close().await;
    }

    for call in calls {
        check_trace(call, &collector.spans_of(call));
    }

    for body in collector.bodies.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(body);
        for n in 0..30 {
            assert!(!text.contains(phone_number(n).trim_start_matches('+')));
        }
        assert!(!text.contains("Person "));
    }
    app.finish().await;
}

/// True when the root and at least the minimum number of every span have arrived.
fn is_complete(spans: &[(String, Span)]) -> bool {
    let count = |name: &str| spans.iter().filter(|(_, span)| span.name == name).count();
    count("call") > 0
        && count("callback") >= 4
        && CALL_SPANS.into_iter().all(|step| count(step) > 0)
}

/// Fails unless the trace has one root with every span of the expected program below it.
fn check_trace(call: CallId, spans: &[(String, Span)]) {
    let (roots, steps): (Vec<_>, Vec<_>) = spans
        .iter()
        .partition(|(_, span)| span.parent_span_id.is_empty());
    let [(_, root)] = roots[..] else {
        panic!("{} roots", roots.len());
    };
    assert_eq!(root.name, "call");
    let mut names = BTreeSet::new();
    for (service, step) in steps {
        assert_eq!(step.parent_span_id, root.span_id, "{}", step.name);
        assert!(step.end_time_unix_nano >= step.start_time_unix_nano);
        let from = if step.name == "callback" {
            "peal-api"
        } else {
            "peal-worker"
        };
        assert!(service.contains(from), "{} from {service}", step.name);
        names.insert(step.name.as_str());
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), CALL_SPANS, "{call}");
}
