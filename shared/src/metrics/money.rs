//! Metrics of money: settlement of calls in groups, and verification of the ledger.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::dial::count_to_f64;
use super::{DURATION_BUCKETS, GROUP_SIZE_BUCKETS};
use crate::billing::settle::SettlementCounts;

/// Metrics of settlement and the ledger.
#[derive(Debug)]
pub struct MoneyMetrics {
    settled: Histogram,
    settle_time: Histogram,
    postponed: Counter,
    violations: Gauge,
}

impl MoneyMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            settled: Histogram::new(GROUP_SIZE_BUCKETS),
            settle_time: Histogram::new(DURATION_BUCKETS),
            postponed: Counter::default(),
            violations: Gauge::default(),
        };

        registry.register(
            "peal_settled_calls",
            "Ended calls settled in one transaction",
            new.settled.clone(),
        );
        registry.register_with_unit(
            "peal_settle",
            "Duration of a transaction that settled calls",
            Unit::Seconds,
            new.settle_time.clone(),
        );
        registry.register(
            "peal_settlements_put_off",
            "Calls that the database refused to settle; they need attention",
            new.postponed.clone(),
        );
        registry.register(
            "peal_ledger_offenders",
            "Ledger violations found by the last verification of this process",
            new.violations.clone(),
        );

        new
    }

    /// Records the calls settled in one transaction, and its duration.
    pub fn record_settled(&self, settled: &SettlementCounts, took: Duration) {
        self.settled.observe(count_to_f64(settled.processed));
        self.settle_time.observe(took.as_secs_f64());
    }

    /// Counts a call that cannot be settled.
    pub fn record_postponed(&self) {
        self.postponed.inc();
    }

    /// Sets the number of ledger violations.
    pub fn set_violations(&self, offenders: usize) {
        self.violations
            .set(i64::try_from(offenders).unwrap_or(i64::MAX));
    }
}
