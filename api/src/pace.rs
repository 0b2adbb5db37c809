//! Token buckets of this process, keyed by address, API key or e-mail address.
//!
//! A key is hashed to one of a fixed number of buckets, with a seed of this process. Memory is
//! therefore bounded, and a client cannot choose whose bucket it shares; keys that collide share
//! one limit.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::Quota;
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;

/// Number of buckets.
const BUCKETS: u64 = 1 << 17;

type Limiter = governor::RateLimiter<
    u64,
    DefaultKeyedStateStore<u64>,
    DefaultClock,
    StateInformationMiddleware,
>;

/// One rate limit, applied to each key.
#[derive(Clone)]
pub struct Pace {
    limiter: Arc<Limiter>,
    every: Duration,
    seed: RandomState,
    clock: DefaultClock,
}

/// Remaining requests of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub limit: u32,
    pub remaining: u32,
    /// Time until the bucket is full.
    pub whole_again: Duration,
}

/// Rejection, with the time until the next request is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSoon {
    pub limit: u32,
    pub wait: Duration,
}

impl TooSoon {
    /// Time to wait in whole seconds, rounded up, at least 1.
    pub fn wait_secs(self) -> u32 {
        whole_secs(self.wait).max(1)
    }
}

/// Rounds a duration up to whole seconds.
pub fn whole_secs(time: Duration) -> u32 {
    let whole = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    whole.saturating_add(u32::from(time.subsec_nanos() > 0))
}

impl Pace {
    /// Allows `burst` requests at once, and one more per `every`.
    pub fn new(burst: NonZeroU32, every: Duration) -> Self {
        let every = every.max(Duration::from_micros(1));
        let quota = Quota::with_period(every)
            .unwrap_or_else(|| Quota::per_second(burst))
            .allow_burst(burst);
        let limiter = governor::RateLimiter::keyed(quota).with_middleware();
        Self {
            limiter: Arc::new(limiter),
            every,
            seed: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// Takes a token of the key's bucket.
    ///
    /// # Errors
    /// The time to wait when the bucket is empty.
    pub fn take(&self, key: impl Hash) -> Result<Left, TooSoon> {
        let bucket = self.seed.hash_one(key) % BUCKETS;
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
    fn each_key_has_its_own_burst_and_then_waits() {
        let limiter = Pace::new(NonZeroU32::new(3).unwrap(), Duration::from_secs(60));
        for remaining in [2, 1, 0] {
            assert_eq!(
                limiter.take('a').unwrap(),
                Left {
                    limit: 3,
                    remaining,
                    whole_again: Duration::from_secs(60) * (3 - remaining),
                }
            );
        }
        let refused = limiter.take('a').unwrap_err();
        assert!((1..=60).contains(&refused.wait_secs()), "{refused:?}");
        // A key that does not share the bucket by chance.
        let bucket = |key: char| limiter.seed.hash_one(key) % BUCKETS;
        let other = ('b'..='z').find(|key| bucket(*key) != bucket('a'));
        assert!(limiter.take(other.unwrap()).is_ok());
    }

    #[test]
    fn memory_is_bounded_for_any_number_of_keys() {
        let limiter = Pace::new(NonZeroU32::MIN, Duration::from_secs(3600));
        for key in 0..3 * BUCKETS {
            let _taken = limiter.take(key);
        }
        assert!(u64::try_from(limiter.limiter.len()).unwrap() <= BUCKETS);
    }
}
