//! The pace of a trunk, as arithmetic. A trunk's row holds the time of its next free send slot
//! (GCRA's theoretical arrival time). Whoever holds the row's lock takes the slots that fall
//! into the horizon and moves the time on, so every slot belongs to one worker and any number
//! of workers together keep the pace.
//!
//! Slots are 4 % further apart than the carrier's limit asks. The n-th call behind any other,
//! n being the limit, therefore has its slot 1.04 seconds later, and the two fall into one
//! second at the carrier only if the first is 40 ms later on its way than the second. Of these,
//! [`LATE_LIMIT`] is ours (a slot later than that is burned, never sent late) and the rest is
//! the network's.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// How much further apart slots are than the limit asks.
const HEADROOM: f64 = 0.04;
/// How late a send may be before its slot is burned.
pub const LATE_LIMIT: Duration = Duration::from_millis(10);
/// How far ahead slots are handed out.
const HORIZON_MILLIS: i64 = 250;
/// The horizon of trunks slower than [`SLOW_CPS`], so that they are asked less often.
const SLOW_HORIZON_MILLIS: i64 = 500;
const SLOW_CPS: f64 = 20.0;
/// A claim has to be committed before its first slot, or that slot is burned.
const LEAD_MILLIS: i64 = 15;
/// The push-back of a carrier halves in this time.
const SLOWDOWN_HALF_LIFE_SECS: f64 = 10.0;
const SLOWDOWN_STEP: f64 = 1.5;
const SLOWDOWN_LIMIT: f64 = 20.0;

/// A trunk's pace at one moment, by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub cps: f64,
    pub next_slot: DateTime<Utc>,
    pub slowdown: f64,
    pub slowed_at: Option<DateTime<Utc>>,
}

/// Slots taken: `count` of them from `first` on, `interval` apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lease {
    pub count: u32,
    pub first: DateTime<Utc>,
    pub interval: TimeDelta,
}

impl Lease {
    /// The slot behind the last one taken.
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

impl Pace {
    /// How far ahead this trunk's slots are handed out.
    #[must_use]
    pub fn horizon(&self) -> TimeDelta {
        TimeDelta::milliseconds(if self.cps < SLOW_CPS {
            SLOW_HORIZON_MILLIS
        } else {
            HORIZON_MILLIS
        })
    }

    /// The slowdown at `now`: 1 is full speed.
    #[must_use]
    pub fn slowdown_at(&self, now: DateTime<Utc>) -> f64 {
        let Some(since) = self.slowed_at else {
            return 1.0;
        };
        let secs = (now - since).as_seconds_f64().max(0.0);
        1.0 + (self.slowdown - 1.0) * 0.5_f64.powf(secs / SLOWDOWN_HALF_LIFE_SECS)
    }

    /// The slowdown to store after the carrier pushed back at `now`.
    #[must_use]
    pub fn pushed_back(&self, now: DateTime<Utc>) -> f64 {
        (self.slowdown_at(now) * SLOWDOWN_STEP).min(SLOWDOWN_LIMIT)
    }

    /// The time between two slots.
    #[must_use]
    pub fn interval(&self, now: DateTime<Utc>) -> TimeDelta {
        let secs = (1.0 + HEADROOM) / self.cps * self.slowdown_at(now);
        Duration::try_from_secs_f64(secs)
            .ok()
            .and_then(|interval| TimeDelta::from_std(interval).ok())
            .unwrap_or(TimeDelta::MAX)
            .max(TimeDelta::microseconds(1))
    }

    /// Every slot that is free up to the horizon. Slots in the past are gone, and so are those
    /// that come before the claim can be committed.
    #[must_use]
    pub fn lease(&self, now: DateTime<Utc>) -> Lease {
        let interval = self.interval(now);
        let first = self
            .next_slot
            .max(now + TimeDelta::milliseconds(LEAD_MILLIS));
        let room = (now + self.horizon() - first)
            .num_microseconds()
            .unwrap_or(-1);
        let step = interval.num_microseconds().unwrap_or(i64::MAX).max(1);
        let count = if room < 0 { 0 } else { room / step + 1 };
        Lease {
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

    fn pace(cps: f64, next_slot: i64) -> Pace {
        Pace {
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
    fn slots_of_the_past_are_not_saved_up() {
        let lease = pace(10.0, -60_000_000).lease(at(0));
        assert_eq!((lease.first, lease.count), (at(15_000), 5));
    }

    #[test]
    fn a_clock_that_jumps_back_grants_nothing_twice() {
        assert_eq!(pace(10.0, 5_000_000).lease(at(0)).count, 0);
    }

    #[test]
    fn push_back_slows_and_wears_off() {
        let slow = Pace {
            slowdown: 3.0,
            slowed_at: Some(at(0)),
            ..pace(10.0, 0)
        };
        assert!((slow.slowdown_at(at(0)) - 3.0).abs() < 1e-9);
        assert!((slow.slowdown_at(at(10_000_000)) - 2.0).abs() < 1e-9);
        assert!(slow.slowdown_at(at(200_000_000)) < 1.001);
        assert!((slow.pushed_back(at(0)) - 4.5).abs() < 1e-9);
        assert!(slow.pushed_back(at(0)) <= SLOWDOWN_LIMIT);
    }

    proptest! {
        /// Workers that ask at any times never hold more slots in a second than the limit.
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
