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

use super::SECONDS;

/// Classes of statuses, from 1xx to 5xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Histograms of durations by labels.
type Times<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindStatus {
    kind: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

/// Metrics of the API's requests.
#[derive(Debug)]
pub struct Http {
    requests: Family<RouteStatus, Counter>,
    times: Times<OfRoute>,
    callbacks: Times<KindStatus>,
    refused_signatures: Counter,
    shed: Family<Class, Counter>,
    under_way: Family<Class, Gauge>,
    /// Open event streams.
    pub streams: Gauge,
    /// Open connections.
    pub connections: Gauge,
    routes: RwLock<HashMap<Box<str>, Arc<Route>>>,
}

/// Metrics of one route, looked up by its pattern.
#[derive(Debug)]
pub struct Route {
    pattern: Box<str>,
    time: Histogram,
    requests: [OnceLock<Counter>; CLASSES.len()],
    callback: Option<Callback>,
}

/// Durations of a callback by class of status.
#[derive(Debug)]
struct Callback {
    kind: Box<str>,
    times: [OnceLock<Histogram>; CLASSES.len()],
}

impl Http {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let times = || Histogram::new(SECONDS);
        let new = Self {
            requests: Family::default(),
            times: Family::new_with_constructor(times),
            callbacks: Family::new_with_constructor(times),
            refused_signatures: Counter::default(),
            shed: Family::default(),
            under_way: Family::default(),
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
            new.refused_signatures.clone(),
        );
        registry.register(
            "peal_http_shed",
            "Requests rejected because their class was full",
            new.shed.clone(),
        );
        registry.register(
            "peal_http_under_way",
            "Requests in progress, by class",
            new.under_way.clone(),
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
    ) -> Arc<Route> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.get(pattern) {
            return Arc::clone(route);
        }
        drop(routes);

        let route = OfRoute {
            route: pattern.to_owned(),
        };
        let new = Arc::new(Route {
            pattern: pattern.into(),
            time: self.times.get_or_create_owned(&route),
            requests: Default::default(),
            callback: callback(pattern).map(|kind| Callback {
                kind: kind.into(),
                times: Default::default(),
            }),
        });
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(routes.entry(pattern.into()).or_insert(new))
    }

    /// Records a response with this status.
    pub fn answered(&self, route: &Route, status: u16, took: Duration) {
        let secs = took.as_secs_f64();
        route.time.observe(secs);
        let class = usize::from(status / 100).saturating_sub(1);
        let Some(status) = CLASSES.get(class).copied() else {
            return;
        };

        if let Some(counter) = route.requests.get(class) {
            let new = || {
                self.requests.get_or_create_owned(&RouteStatus {
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
                self.callbacks.get_or_create_owned(&KindStatus {
                    kind: callback.kind.to_string(),
                    status,
                })
            };
            time.get_or_init(new).observe(secs);
        }
    }

    /// Counts a callback without a valid signature; returns the count.
    pub fn refuse_signature(&self) -> u64 {
        self.refused_signatures.inc() + 1
    }

    /// Rejected requests of a class, and those in progress.
    #[must_use]
    pub fn class(&self, class: &'static str) -> (Counter, Gauge) {
        let class = Class { class };
        (
            self.shed.get_or_create_owned(&class),
            self.under_way.get_or_create_owned(&class),
        )
    }
}
