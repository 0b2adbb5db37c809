//! Metrics of money: settlement of calls in groups, and verification of the ledger.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::dial::as_number;
use super::{GROUPS, SECONDS};
use crate::billing::settle::Settled;

/// Metrics of settlement and the ledger.
#[derive(Debug)]
pub struct Money {
    settled: Histogram,
    settle_time: Histogram,
    put_off: Counter,
    offenders: Gauge,
}

impl Money {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            settled: Histogram::new(GROUPS),
            settle_time: Histogram::new(SECONDS),
            put_off: Counter::default(),
            offenders: Gauge::default(),
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
            new.put_off.clone(),
        );
        registry.register(
            "peal_ledger_offenders",
            "Ledger violations found by the last verification of this process",
            new.offenders.clone(),
        );

        new
    }

    /// Records the calls settled in one transaction, and its duration.
    pub fn settled(&self, settled: &Settled, took: Duration) {
        self.settled.observe(as_number(settled.taken));
        self.settle_time.observe(took.as_secs_f64());
    }

    /// Counts a call that cannot be settled.
    pub fn put_off(&self) {
        self.put_off.inc();
    }

    /// Sets the number of ledger violations.
    pub fn verified(&self, offenders: usize) {
        self.offenders
            .set(i64::try_from(offenders).unwrap_or(i64::MAX));
    }
}
