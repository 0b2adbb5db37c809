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
const BUCKET_COUNT: u64 = 1 << 17;

type KeyedLimiter = governor::RateLimiter<
    u64,
    DefaultKeyedStateStore<u64>,
    DefaultClock,
    StateInformationMiddleware,
>;

/// One rate limit, applied to each key.
#[derive(Clone)]
pub struct RateLimiter {
    limiter: Arc<KeyedLimiter>,
    period: Duration,
    seed: RandomState,
    clock: DefaultClock,
}

/// Remaining requests of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    pub limit: u32,
    pub remaining: u32,
    /// Time until the bucket is full.
    pub reset_after: Duration,
}

/// Rejection, with the time until the next request is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimited {
    pub limit: u32,
    pub retry_after: Duration,
}

impl RateLimited {
    /// Time to wait in whole seconds, rounded up, at least 1.
    pub fn retry_after_secs(self) -> u32 {
        round_up_to_secs(self.retry_after).max(1)
    }
}

/// Rounds a duration up to whole seconds.
pub fn round_up_to_secs(time: Duration) -> u32 {
    let whole = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    whole.saturating_add(u32::from(time.subsec_nanos() > 0))
}

impl RateLimiter {
    /// Allows `burst` requests at once, and one more per `every`.
    pub fn new(burst: NonZeroU32, every: Duration) -> Self {
        let period = every.max(Duration::from_micros(1));
        let quota = Quota::with_period(period)
            .unwrap_or_else(|| Quota::per_second(burst))
            .allow_burst(burst);
        let limiter = governor::RateLimiter::keyed(quota).with_middleware();
        Self {
            limiter: Arc::new(limiter),
            period,
            seed: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// Takes a token of the key's bucket.
    ///
    /// # Errors
    /// The time to wait when the bucket is empty.
    pub fn try_acquire(&self, key: impl Hash) -> Result<Remaining, RateLimited> {
        let bucket = self.seed.hash_one(key) % BUCKET_COUNT;
        match self.limiter.check_key(&bucket) {
            Ok(state) => {
                let limit = state.quota().burst_size().get();
                let remaining = state.remaining_burst_capacity();
                let spent = limit.saturating_sub(remaining);
                Ok(Remaining {
                    limit,
                    remaining,
                    reset_after: self.period.saturating_mul(spent),
                })
            }
            Err(refused) => Err(RateLimited {
                limit: refused.quota().burst_size().get(),
                retry_after: refused.wait_time_from(self.clock.now()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_burst_and_then_waits() {
        let limiter = RateLimiter::new(NonZeroU32::new(3).unwrap(), Duration::from_secs(60));
        for remaining in [2, 1, 0] {
            assert_eq!(
                limiter.try_acquire('a').unwrap(),
                Remaining {
                    limit: 3,
                    remaining,
                    reset_after: Duration::from_secs(60) * (3 - remaining),
                }
            );
        }
        let refused = limiter.try_acquire('a').unwrap_err();
        assert!(
            (1..=60).contains(&refused.retry_after_secs()),
            "{refused:?}"
        );
        // A key that does not share the bucket by chance.
        let bucket = |key: char| limiter.seed.hash_one(key) % BUCKET_COUNT;
        let other = ('b'..='z').find(|key| bucket(*key) != bucket('a'));
        assert!(limiter.try_acquire(other.unwrap()).is_ok());
    }

    #[test]
    fn memory_is_bounded_for_any_number_of_keys() {
        let limiter = RateLimiter::new(NonZeroU32::MIN, Duration::from_secs(3600));
        for key in 0..3 * BUCKET_COUNT {
            let _taken = limiter.try_acquire(key);
        }
        assert!(u64::try_from(limiter.limiter.len()).unwrap() <= BUCKET_COUNT);
    }
}
