//! How often somebody may do something: token buckets in this process, by address, key or
//! e-mail address.
//!
//! Whoever asks is hashed to one of a fixed number of buckets, under a seed of this process.
//! So the memory is bounded whatever arrives, and nobody can choose whose bucket they share;
//! two that meet by chance share their allowance.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

/// Different buckets.
const BUCKETS: u64 = 1 << 17;

type Limiter =
    RateLimiter<u64, DefaultKeyedStateStore<u64>, DefaultClock, StateInformationMiddleware>;

/// One pace, for many who ask.
#[derive(Clone)]
pub struct Pace {
    limiter: Arc<Limiter>,
    every: Duration,
    seed: RandomState,
    clock: DefaultClock,
}

/// What is left of an allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub limit: u32,
    pub remaining: u32,
    /// Until all of it is there again.
    pub whole_again: Duration,
}

/// How long to wait for the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSoon {
    pub limit: u32,
    pub wait: Duration,
}

impl TooSoon {
    /// In whole seconds, rounded up.
    pub fn wait_secs(self) -> u32 {
        whole_secs(self.wait).max(1)
    }
}

/// In whole seconds, rounded up.
pub fn whole_secs(time: Duration) -> u32 {
    let whole = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    whole.saturating_add(u32::from(time.subsec_nanos() > 0))
}

impl Pace {
    /// `burst` at once, and then one every `every`.
    pub fn new(burst: NonZeroU32, every: Duration) -> Self {
        let every = every.max(Duration::from_micros(1));
        let quota = Quota::with_period(every)
            .unwrap_or_else(|| Quota::per_second(burst))
            .allow_burst(burst);
        let limiter = RateLimiter::keyed(quota).with_middleware();
        Self {
            limiter: Arc::new(limiter),
            every,
            seed: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// Takes a turn.
    ///
    /// # Errors
    /// How long to wait when there is none.
    pub fn take(&self, who: impl Hash) -> Result<Left, TooSoon> {
        let bucket = self.seed.hash_one(who) % BUCKETS;
        match self.limiter.check_key(&bucket) {
            Ok(state) => {
                let limit = state.quota().burst_size().get();
                let remaining = state.remaining_burst_capacity();
                let spent = limit.saturating_sub(remaining);
                Ok(Left {
                    limit,
                    remaining,
                    whole_again: self.every.saturating_mul(spent),
                })
            }
            Err(refused) => Err(TooSoon {
                limit: refused.quota().burst_size().get(),
                wait: refused.wait_time_from(self.clock.now()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_burst_of_their_own_and_then_waits() {
        let pace = Pace::new(NonZeroU32::new(3).unwrap(), Duration::from_secs(60));
        for remaining in [2, 1, 0] {
            assert_eq!(
                pace.take('a').unwrap(),
                Left {
                    limit: 3,
                    remaining,
                    whole_again: Duration::from_secs(60) * (3 - remaining),
                }
            );
        }
        let refused = pace.take('a').unwrap_err();
        assert!((1..=60).contains(&refused.wait_secs()), "{refused:?}");
        // Somebody who does not share the bucket by chance.
        let bucket = |who: char| pace.seed.hash_one(who) % BUCKETS;
        let other = ('b'..='z').find(|who| bucket(*who) != bucket('a'));
        assert!(pace.take(other.unwrap()).is_ok());
    }

    #[test]
    fn the_memory_is_bounded_whoever_asks() {
        let pace = Pace::new(NonZeroU32::MIN, Duration::from_secs(3600));
        for who in 0..3 * BUCKETS {
            let _taken = pace.take(who);
        }
        assert!(u64::try_from(pace.limiter.len()).unwrap() <= BUCKETS);
    }
}
