//! Prometheus metrics of this process.
//!
//! [`Metrics`] is a value in the context, so a process may hold several. Code that counts
//! keeps a handle or finds it by a small key, so counting costs one or two atomic operations and
//! no allocation. State of the database (queues, live calls, unapplied events) is sampled on a
//! scrape, at most every few seconds and with a short time limit ([`sample`]). The
//! [telemetry server](crate::telemetry_server) exposes all metrics on its own listener, which is
//! off by default.
//!
//! Labels name trunks, queues, routes and fixed words; never a person, a phone number, a call or
//! an organisation.

mod dial;
mod events;
mod http;
mod money;
mod sample;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use dial::{DialMetrics, TrunkMetrics};
pub use events::EventMetrics;
pub use http::{HttpMetrics, RouteMetrics};
pub use money::MoneyMetrics;
pub(crate) use sample::SampleSources;

/// Gauge with fractions.
type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Histogram buckets of durations, from half a millisecond to ten seconds.
const DURATION_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Histogram buckets of group sizes.
const GROUP_SIZE_BUCKETS: [f64; 10] = [0.0, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

/// Metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub dial: DialMetrics,
    pub events: EventMetrics,
    pub http: HttpMetrics,
    pub money: MoneyMetrics,
    pub(crate) sampled: sample::SampledMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        Self {
            dial: DialMetrics::register(&mut registry),
            events: EventMetrics::register(&mut registry),
            http: HttpMetrics::register(&mut registry),
            money: MoneyMetrics::register(&mut registry),
            sampled: sample::SampledMetrics::register(&mut registry),
            registry,
        }
    }
}

impl Metrics {
    /// Encodes all metrics in the OpenMetrics text format.
    pub(crate) fn encode_text(&self) -> String {
        let mut page = String::with_capacity(32 * 1024);
        // Writing to a string cannot fail.
        let _written = encode(&mut page, &self.registry);
        page
    }
}
