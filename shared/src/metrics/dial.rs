//! Metrics of the dialler.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{DURATION_BUCKETS, GROUP_SIZE_BUCKETS};
use crate::platform::ids::TrunkId;
use crate::telephony::{Outcome, Placement};

/// Histogram buckets of a slot's lateness in seconds; the limit is ten milliseconds.
const LATENESS_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 1.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TrunkLabel {
    trunk: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TrunkResultLabels {
    trunk: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Metrics of the dialler.
#[derive(Debug)]
pub struct DialMetrics {
    dials: Family<TrunkResultLabels, Counter>,
    granted: Family<TrunkLabel, Counter>,
    burned: Family<TrunkLabel, Counter>,
    lateness: Histogram,
    claimed: Histogram,
    claim_time: Histogram,
    ended: Family<OutcomeLabel, Counter>,
}

/// Metrics of one trunk, looked up once for many calls.
#[derive(Debug)]
pub struct TrunkMetrics {
    accepted: Counter,
    refused: Counter,
    deferred: Counter,
    unknown: Counter,
    granted: Counter,
    burned: Counter,
    lateness: Histogram,
}

impl DialMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            dials: Family::default(),
            granted: Family::default(),
            burned: Family::default(),
            lateness: Histogram::new(LATENESS_BUCKETS),
            claimed: Histogram::new(GROUP_SIZE_BUCKETS),
            claim_time: Histogram::new(DURATION_BUCKETS),
            ended: Family::default(),
        };
        // Every outcome is present from the start, with zero calls.
        for outcome in Outcome::ALL {
            new.record_ended(outcome, 0);
        }

        registry.register(
            "peal_dials",
            "Create requests sent to carriers, by result",
            new.dials.clone(),
        );
        registry.register(
            "peal_slots_granted",
            "Send slots leased from the pacer",
            new.granted.clone(),
        );
        registry.register(
            "peal_slots_burned",
            "Send slots dropped because they came up too late",
            new.burned.clone(),
        );
        registry.register_with_unit(
            "peal_slot_lateness",
            "Lateness of send slots, burned ones included",
            Unit::Seconds,
            new.lateness.clone(),
        );
        registry.register(
            "peal_claimed_calls",
            "Calls taken by one claim",
            new.claimed.clone(),
        );
        registry.register_with_unit(
            "peal_claim",
            "Duration of a claim",
            Unit::Seconds,
            new.claim_time.clone(),
        );
        registry.register(
            "peal_calls_ended",
            "Ended calls, by outcome",
            new.ended.clone(),
        );

        new
    }

    /// Metrics of a trunk.
    #[must_use]
    pub fn for_trunk(&self, id: TrunkId) -> Arc<TrunkMetrics> {
        let trunk = id.to_string();
        let dials = |result| {
            let trunk = trunk.clone();
            self.dials
                .get_or_create_owned(&TrunkResultLabels { trunk, result })
        };
        let label = TrunkLabel {
            trunk: trunk.clone(),
        };
        Arc::new(TrunkMetrics {
            accepted: dials("accepted"),
            refused: dials("refused"),
            deferred: dials("deferred"),
            unknown: dials("unknown"),
            granted: self.granted.get_or_create_owned(&label),
            burned: self.burned.get_or_create_owned(&label),
            lateness: self.lateness.clone(),
        })
    }

    /// Records the calls of one claim, and its duration.
    pub fn record_claim(&self, calls: usize, took: Duration) {
        self.claimed.observe(count_to_f64(calls));
        self.claim_time.observe(took.as_secs_f64());
    }

    /// Counts ended calls.
    pub fn record_ended(&self, outcome: Outcome, calls: u64) {
        let outcome = outcome.as_str();
        self.ended
            .get_or_create(&OutcomeLabel { outcome })
            .inc_by(calls);
    }
}

impl TrunkMetrics {
    /// Counts leased slots.
    pub fn record_granted(&self, slots: u32) {
        self.granted.inc_by(slots.into());
    }

    /// Counts dropped slots.
    pub fn record_burned(&self, slots: u32) {
        self.burned.inc_by(slots.into());
    }

    /// Records the lateness of a slot.
    pub fn record_lateness(&self, late: Duration) {
        self.lateness.observe(late.as_secs_f64());
    }

    /// Counts a request by its result.
    pub fn record_placement(&self, placement: &Placement) {
        let counter = match placement {
            Placement::Accepted { .. } => &self.accepted,
            Placement::Refused { .. } => &self.refused,
            Placement::Deferred { .. } => &self.deferred,
            Placement::Unknown { .. } => &self.unknown,
        };
        counter.inc();
    }
}

/// Converts a count for a histogram.
pub(super) fn count_to_f64(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}
