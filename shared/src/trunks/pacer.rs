//! Arithmetic of a trunk's pace. A trunk's row holds the time of its next free send slot (GCRA's
//! theoretical arrival time). The worker that holds the row's lock leases the slots up to the
//! horizon and moves the time on, so every slot belongs to one worker and any number of workers
//! together keep the pace.
//!
//! Slots are 4 % further apart than the carrier's limit requires. With a limit of n, the n-th
//! call after any other has its slot 1.04 seconds later, and the two fall into one second at the
//! carrier only if the first is delayed 40 ms more than the second. Of these, [`LATE_LIMIT`] is
//! ours (a later slot is burned, never sent late) and the rest is the network's.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// Share by which slots are further apart than the limit requires.
const HEADROOM: f64 = 0.04;
/// Longest delay of a send; a later slot is burned.
pub const MAX_SEND_DELAY: Duration = Duration::from_millis(10);
/// Longest time ahead for which slots are leased.
const HORIZON_MILLIS: i64 = 250;
/// Horizon of trunks slower than [`SLOW_CPS`], which are claimed from less often.
const SLOW_HORIZON_MILLIS: i64 = 500;
const SLOW_CPS: f64 = 20.0;
/// Time for the claim's commit: a first slot before it would be burned.
const COMMIT_LEAD_MILLIS: i64 = 15;
/// Half-life of the slowdown after a carrier pushed back.
const SLOWDOWN_HALF_LIFE_SECS: f64 = 10.0;
const SLOWDOWN_STEP: f64 = 1.5;
const SLOWDOWN_LIMIT: f64 = 20.0;

/// State of a trunk's pacer, by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrunkPace {
    pub cps: f64,
    pub next_slot: DateTime<Utc>,
    pub slowdown: f64,
    pub slowed_at: Option<DateTime<Utc>>,
}

/// Leased slots: `count` of them from `first` on, `interval` apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotLease {
    pub count: u32,
    pub first: DateTime<Utc>,
    pub interval: TimeDelta,
}

impl SlotLease {
    /// The slot after the last leased one.
    #[must_use]
    pub fn next_slot(&self) -> DateTime<Utc> {
        i32::try_from(self.count).map_or(DateTime::<Utc>::MAX_UTC, |count| {
            self.first + self.interval * count
        })
    }

    /// The same lease with at most `count` slots.
    #[must_use]
    pub fn at_most(self, count: u32) -> Self {
        Self {
            count: self.count.min(count),
            ..self
        }
    }
}

impl TrunkPace {
    /// Longest time ahead for which this trunk's slots are leased.
    #[must_use]
    pub fn horizon(&self) -> TimeDelta {
        TimeDelta::milliseconds(if self.cps < SLOW_CPS {
            SLOW_HORIZON_MILLIS
        } else {
            HORIZON_MILLIS
        })
    }

    /// Slowdown at `now`; 1 is full speed.
    #[must_use]
    pub fn slowdown_at(&self, now: DateTime<Utc>) -> f64 {
        let Some(since) = self.slowed_at else {
            return 1.0;
        };
        let secs = (now - since).as_seconds_f64().max(0.0);
        1.0 + (self.slowdown - 1.0) * 0.5_f64.powf(secs / SLOWDOWN_HALF_LIFE_SECS)
    }

    /// Slowdown to store after the carrier pushed back at `now`.
    #[must_use]
    pub fn slowdown_after_push_back(&self, now: DateTime<Utc>) -> f64 {
        (self.slowdown_at(now) * SLOWDOWN_STEP).min(SLOWDOWN_LIMIT)
    }

    /// Time between two slots.
    #[must_use]
    pub fn interval(&self, now: DateTime<Utc>) -> TimeDelta {
        let secs = (1.0 + HEADROOM) / self.cps * self.slowdown_at(now);
        Duration::try_from_secs_f64(secs)
            .ok()
            .and_then(|interval| TimeDelta::from_std(interval).ok())
            .unwrap_or(TimeDelta::MAX)
            .max(TimeDelta::microseconds(1))
    }

    /// Every free slot up to the horizon, without those in the past or before the claim can be
    /// committed.
    #[must_use]
    pub fn lease(&self, now: DateTime<Utc>) -> SlotLease {
        let interval = self.interval(now);
        let first = self
            .next_slot
            .max(now + TimeDelta::milliseconds(COMMIT_LEAD_MILLIS));
        let room = (now + self.horizon() - first)
            .num_microseconds()
            .unwrap_or(-1);
        let step = interval.num_microseconds().unwrap_or(i64::MAX).max(1);
        let count = if room < 0 { 0 } else { room / step + 1 };
        SlotLease {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            first,
            interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(1_700_000_000_000_000 + micros).unwrap()
    }

    fn pace(cps: f64, next_slot: i64) -> TrunkPace {
        TrunkPace {
            cps,
            next_slot: at(next_slot),
            slowdown: 1.0,
            slowed_at: None,
        }
    }

    #[test]
    fn slots_are_four_percent_apart_and_reach_to_the_horizon() {
        let lease = pace(100.0, 0).lease(at(0));
        assert_eq!(lease.interval, TimeDelta::microseconds(10_400));
        assert_eq!((lease.first, lease.count), (at(15_000), 23));
        assert_eq!(lease.next_slot(), at(254_200));
    }

    #[test]
    fn a_trunk_slower_than_its_horizon_still_gets_its_slot() {
        let lease = pace(1.0, 0).lease(at(0));
        assert_eq!(lease.count, 1);
        assert_eq!(lease.next_slot(), at(1_055_000));
        assert_eq!(pace(1.0, 1_040_000).lease(at(100_000)).count, 0);
    }

    #[test]
    fn past_slots_are_not_saved_up() {
        let lease = pace(10.0, -60_000_000).lease(at(0));
        assert_eq!((lease.first, lease.count), (at(15_000), 5));
    }

    #[test]
    fn a_clock_that_jumps_back_grants_nothing_twice() {
        assert_eq!(pace(10.0, 5_000_000).lease(at(0)).count, 0);
    }

    #[test]
    fn push_back_slows_and_decays() {
        let slow = TrunkPace {
            slowdown: 3.0,
            slowed_at: Some(at(0)),
            ..pace(10.0, 0)
        };
        assert!((slow.slowdown_at(at(0)) - 3.0).abs() < 1e-9);
        assert!((slow.slowdown_at(at(10_000_000)) - 2.0).abs() < 1e-9);
        assert!(slow.slowdown_at(at(200_000_000)) < 1.001);
        assert!((slow.slowdown_after_push_back(at(0)) - 4.5).abs() < 1e-9);
        assert!(slow.slowdown_after_push_back(at(0)) <= SLOWDOWN_LIMIT);
    }

    proptest! {
        /// Workers that lease at any times never hold more slots in a second than the limit.
        #[test]
        fn no_second_holds_more_slots_than_the_limit(
            cps in 1.0_f64..200.0,
            asks in proptest::collection::vec((0_i64..400_000, 1_u32..60), 1..80),
        ) {
            let mut now = 0;
            let mut pace = pace(cps, 250_000);
            let mut slots = Vec::new();
            for (pause, wanted) in asks {
                now += pause;
                let lease = pace.lease(at(now)).at_most(wanted);
                slots.extend((0..lease.count).map(|n| lease.first + lease.interval * i32::try_from(n).unwrap()));
                if lease.count > 0 {
                    pace.next_slot = lease.next_slot();
                }
            }
            for (n, slot) in slots.iter().enumerate() {
                let second = slots[n..].iter().take_while(|other| **other - *slot < TimeDelta::seconds(1)).count();
                prop_assert!(f64::from(u32::try_from(second).unwrap()) <= cps.ceil());
            }
        }
    }
}
