//! How often somebody may ask, whatever they ask for.
//!
//! Each API key has an allowance of its own, and so has each signed-in user over all of their
//! sessions; an answer tells in `RateLimit-*` how much of it is left. Whoever is not known by
//! what they show uses up their address's allowance; a good key or token is not kept waiting by
//! its neighbours' bad ones. Carriers and probes show neither and have no allowance.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};
use peal_shared::access::{Credential, Principal};
use peal_shared::config::ServerLimits;

use crate::error::{Problem, Result};
use crate::pace::{Left, Pace, whole_secs};

pub const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
pub const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
pub const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// The allowances of everybody.
#[derive(Clone)]
pub struct Rates {
    callers: Pace,
    refusals: Pace,
}

impl Rates {
    /// As the settings say.
    pub fn new(limits: &ServerLimits) -> Self {
        let (requests, refusals) = (limits.requests_per_sec, limits.refusals_per_min);
        Self {
            callers: Pace::new(requests, Duration::from_secs(1) / requests.get()),
            refusals: Pace::new(refusals, Duration::from_secs(60) / refusals.get()),
        }
    }

    /// Takes a turn of a caller.
    ///
    /// # Errors
    /// 429 when their allowance is used up.
    pub fn known(&self, caller: &Principal) -> Result<Left> {
        let taken = match caller.credential {
            Credential::ApiKey(key) => self.callers.take(("key", key.0)),
            Credential::Session => self.callers.take(("user", caller.user.0)),
        };
        taken.map_err(Problem::too_soon)
    }

    /// Takes a turn of an address that somebody unknown asks from. Answers what they are told.
    pub fn unknown(&self, from: Option<IpAddr>) -> Problem {
        match self.refusals.take(from.map(neighbourhood)) {
            Ok(_left) => Problem::unauthorized(),
            Err(refused) => Problem::too_soon(refused),
        }
    }
}

/// An address; of IPv6, where a customer has a whole network, the network.
pub fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// What is left to the caller of one request, once that is known: left in the request by what
/// goes around it, which tells it in the answer.
#[derive(Clone, Default)]
pub struct Allowance(Arc<OnceLock<Left>>);

impl Allowance {
    /// Notes what is left.
    pub fn note(&self, left: Left) {
        // A request has one caller, however often it is looked at.
        let _noted_before = self.0.set(left);
    }

    /// Tells what is left, if a caller was known.
    pub fn tell(&self, headers: &mut HeaderMap) {
        if let Some(left) = self.0.get() {
            headers.insert(LIMIT, left.limit.into());
            headers.insert(REMAINING, left.remaining.into());
            headers.insert(RESET, whole_secs(left.whole_again).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_customer_has_one_allowance() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
