//! Rate limits of all requests.
//!
//! Each API key has its own limit, and each user has one over all sessions; responses report it
//! in `RateLimit-*`. Invalid keys and tokens count against the limit of their address, so they
//! do not slow down a valid key behind the same address. Carriers and probes send neither and
//! are not limited.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::HeaderMap;
use peal_shared::access::{Credential, Principal};
use peal_shared::config::ServerLimits;

use crate::http::error::{Problem, Result};
use crate::http::{RATELIMIT_LIMIT, RATELIMIT_REMAINING, RATELIMIT_RESET};
use crate::limits::token_bucket::{RateLimiter, Remaining, round_up_to_secs};

/// Rate limits of authenticated callers and of invalid credentials.
#[derive(Clone)]
pub struct RequestRateLimits {
    callers: RateLimiter,
    invalid_credentials: RateLimiter,
}

impl RequestRateLimits {
    /// Creates the limits of the settings.
    pub fn new(limits: &ServerLimits) -> Self {
        let (requests, denials) = (limits.requests_per_sec, limits.denied_per_min);
        Self {
            callers: RateLimiter::new(requests, Duration::from_secs(1) / requests.get()),
            invalid_credentials: RateLimiter::new(denials, Duration::from_secs(60) / denials.get()),
        }
    }

    /// Takes a token of an authenticated caller.
    ///
    /// # Errors
    /// 429 when the limit is reached.
    pub fn check_caller(&self, caller: &Principal) -> Result<Remaining> {
        let taken = match caller.credential {
            Credential::ApiKey(key) => self.callers.try_acquire(("key", key.0)),
            Credential::Session => self.callers.try_acquire(("user", caller.user.0)),
        };
        taken.map_err(Problem::rate_limited)
    }

    /// Takes a token of the address of an invalid credential. Returns the error to send: 401, or
    /// 429 when the limit is reached.
    pub fn refuse_credential(&self, from: Option<IpAddr>) -> Problem {
        match self.invalid_credentials.try_acquire(from.map(ip_prefix)) {
            Ok(_left) => Problem::unauthorized(),
            Err(refused) => Problem::rate_limited(refused),
        }
    }
}

/// Key of an address: the address of IPv4, the /64 network of IPv6, where a customer has many.
pub fn ip_prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// Request extension for the caller's remaining limit. Authentication records it; the outer
/// middleware writes it to the response's headers.
#[derive(Clone, Default)]
pub struct RateLimitHeaders(Arc<OnceLock<Remaining>>);

impl RateLimitHeaders {
    /// Records the remaining limit.
    pub fn record(&self, left: Remaining) {
        // A request has one caller, even when it is authenticated twice.
        let _already_recorded = self.0.set(left);
    }

    /// Writes the headers when the caller was authenticated.
    pub fn apply(&self, headers: &mut HeaderMap) {
        if let Some(left) = self.0.get() {
            headers.insert(RATELIMIT_LIMIT, left.limit.into());
            headers.insert(RATELIMIT_REMAINING, left.remaining.into());
            headers.insert(RATELIMIT_RESET, round_up_to_secs(left.reset_after).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_customer_has_one_limit() {
        let of = |text: &str| ip_prefix(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
