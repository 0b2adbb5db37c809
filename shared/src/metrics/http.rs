//! Metrics of the API's requests.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::DURATION_BUCKETS;

/// Classes of statuses, from 1xx to 5xx.
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Histograms of durations by labels.
type DurationFamily<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatusLabels {
    route: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindStatusLabels {
    kind: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

/// Metrics of the API's requests.
#[derive(Debug)]
pub struct HttpMetrics {
    requests: Family<RouteStatusLabels, Counter>,
    times: DurationFamily<RouteLabel>,
    callbacks: DurationFamily<KindStatusLabels>,
    invalid_signatures: Counter,
    shed: Family<ClassLabel, Counter>,
    in_progress: Family<ClassLabel, Gauge>,
    /// Open event streams.
    pub streams: Gauge,
    /// Open connections.
    pub connections: Gauge,
    routes: RwLock<HashMap<Box<str>, Arc<RouteMetrics>>>,
}

/// Metrics of one route, looked up by its pattern.
#[derive(Debug)]
pub struct RouteMetrics {
    pattern: Box<str>,
    time: Histogram,
    requests: [OnceLock<Counter>; STATUS_CLASSES.len()],
    callback: Option<CallbackMetrics>,
}

/// Durations of a callback by class of status.
#[derive(Debug)]
struct CallbackMetrics {
    kind: Box<str>,
    times: [OnceLock<Histogram>; STATUS_CLASSES.len()],
}

impl HttpMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let times = || Histogram::new(DURATION_BUCKETS);
        let new = Self {
            requests: Family::default(),
            times: Family::new_with_constructor(times),
            callbacks: Family::new_with_constructor(times),
            invalid_signatures: Counter::default(),
            shed: Family::default(),
            in_progress: Family::default(),
            streams: Gauge::default(),
            connections: Gauge::default(),
            routes: RwLock::default(),
        };

        registry.register(
            "peal_http_requests",
            "Requests by route pattern and class of status",
            new.requests.clone(),
        );
        registry.register_with_unit(
            "peal_http_request",
            "Time until a response began",
            Unit::Seconds,
            new.times.clone(),
        );
        registry.register_with_unit(
            "peal_callback",
            "Time that carriers waited for the response to a callback",
            Unit::Seconds,
            new.callbacks.clone(),
        );
        registry.register(
            "peal_callback_signatures_refused",
            "Callbacks without a valid signature of their carrier",
            new.invalid_signatures.clone(),
        );
        registry.register(
            "peal_http_shed",
            "Requests rejected because their class was full",
            new.shed.clone(),
        );
        registry.register(
            "peal_http_under_way",
            "Requests in progress, by class",
            new.in_progress.clone(),
        );
        registry.register(
            "peal_http_streams",
            "Open event streams",
            new.streams.clone(),
        );
        registry.register(
            "peal_http_connections",
            "Open connections",
            new.connections.clone(),
        );

        new
    }

    /// Metrics of a route. `callback` returns its kind if it is a carrier's callback.
    #[must_use]
    pub fn route(
        &self,
        pattern: &str,
        callback: impl FnOnce(&str) -> Option<String>,
    ) -> Arc<RouteMetrics> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.get(pattern) {
            return Arc::clone(route);
        }
        drop(routes);

        let route = RouteLabel {
            route: pattern.to_owned(),
        };
        let new = Arc::new(RouteMetrics {
            pattern: pattern.into(),
            time: self.times.get_or_create_owned(&route),
            requests: Default::default(),
            callback: callback(pattern).map(|kind| CallbackMetrics {
                kind: kind.into(),
                times: Default::default(),
            }),
        });
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(routes.entry(pattern.into()).or_insert(new))
    }

    /// Records a response with this status.
    pub fn record_response(&self, route: &RouteMetrics, status: u16, took: Duration) {
        let secs = took.as_secs_f64();
        route.time.observe(secs);
        let class = usize::from(status / 100).saturating_sub(1);
        let Some(status) = STATUS_CLASSES.get(class).copied() else {
            return;
        };

        if let Some(counter) = route.requests.get(class) {
            let new = || {
                self.requests.get_or_create_owned(&RouteStatusLabels {
                    route: route.pattern.to_string(),
                    status,
                })
            };
            counter.get_or_init(new).inc();
        }

        if let Some(callback) = &route.callback
            && let Some(time) = callback.times.get(class)
        {
            let new = || {
                self.callbacks.get_or_create_owned(&KindStatusLabels {
                    kind: callback.kind.to_string(),
                    status,
                })
            };
            time.get_or_init(new).observe(secs);
        }
    }

    /// Counts a callback without a valid signature; returns the count.
    pub fn record_invalid_signature(&self) -> u64 {
        self.invalid_signatures.inc() + 1
    }

    /// Rejected requests of a class, and those in progress.
    #[must_use]
    pub fn class_metrics(&self, class: &'static str) -> (Counter, Gauge) {
        let class = ClassLabel { class };
        (
            self.shed.get_or_create_owned(&class),
            self.in_progress.get_or_create_owned(&class),
        )
    }
}
