//! Metrics of carriers' events, which are appended in groups and applied in groups.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::dial::count_to_f64;
use super::{DURATION_BUCKETS, GROUP_SIZE_BUCKETS};

/// Metrics of carriers' events.
#[derive(Debug)]
pub struct EventMetrics {
    appended: Histogram,
    applied: Histogram,
    apply_time: Histogram,
    set_aside: Counter,
}

impl EventMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            appended: Histogram::new(GROUP_SIZE_BUCKETS),
            applied: Histogram::new(GROUP_SIZE_BUCKETS),
            apply_time: Histogram::new(DURATION_BUCKETS),
            set_aside: Counter::default(),
        };

        registry.register(
            "peal_appended_events",
            "Carrier events appended by one statement",
            new.appended.clone(),
        );
        registry.register(
            "peal_applied_events",
            "Carrier events applied in one transaction",
            new.applied.clone(),
        );
        registry.register_with_unit(
            "peal_apply",
            "Duration of a transaction that applied events",
            Unit::Seconds,
            new.apply_time.clone(),
        );
        registry.register(
            "peal_events_set_aside",
            "Events that the database refused; they need attention",
            new.set_aside.clone(),
        );

        new
    }

    /// Records the events appended by one statement.
    pub fn record_appended(&self, events: usize) {
        self.appended.observe(count_to_f64(events));
    }

    /// Records the events applied in one transaction, and its duration.
    pub fn record_applied(&self, events: usize, took: Duration) {
        self.applied.observe(count_to_f64(events));
        self.apply_time.observe(took.as_secs_f64());
    }

    /// Counts an event that cannot be applied.
    pub fn record_set_aside(&self) {
        self.set_aside.inc();
    }
}
