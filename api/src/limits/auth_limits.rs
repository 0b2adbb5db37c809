//! Rate limits of authentication: passwords and other secrets, invitations, new keys.

use std::num::NonZeroU32;
use std::time::Duration;

use peal_shared::auth::passwords::PasswordHasher;
use peal_shared::platform::ids::{OrgId, UserId};

use crate::auth::RequestOrigin;
use crate::http::error::{Problem, Result};
use crate::limits::rate_limit::ip_prefix;
use crate::limits::token_bucket::RateLimiter;

/// Password hasher and rate limits of authentication.
#[derive(Clone)]
pub struct AuthRateLimits {
    pub hasher: PasswordHasher,
    by_ip: RateLimiter,
    by_email: RateLimiter,
    invites: RateLimiter,
    keys: RateLimiter,
}

impl Default for AuthRateLimits {
    fn default() -> Self {
        let limit = |burst, secs| {
            let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
            RateLimiter::new(burst, Duration::from_secs(secs))
        };
        Self {
            hasher: PasswordHasher::default(),
            by_ip: limit(20, 6),
            by_email: limit(10, 30),
            invites: limit(100, 36),
            keys: limit(5, 12),
        }
    }
}

impl AuthRateLimits {
    /// Limits attempts at a secret by the client's address.
    pub fn check_secret(&self, origin: &RequestOrigin) -> Result<()> {
        let from = origin.ip.map(ip_prefix);
        self.by_ip
            .try_acquire(from)
            .map_err(Problem::rate_limited)?;
        Ok(())
    }

    /// Limits invitation e-mails by organisation.
    pub fn check_invite(&self, org: OrgId) -> Result<()> {
        self.invites
            .try_acquire(org)
            .map_err(Problem::rate_limited)?;
        Ok(())
    }

    /// Limits creation of keys by user: many attempts would reveal which keys exist.
    pub fn check_key_creation(&self, user: UserId) -> Result<()> {
        self.keys.try_acquire(user).map_err(Problem::rate_limited)?;
        Ok(())
    }

    /// Limits attempts at a password by the client's address and by the e-mail address.
    pub fn check_login(&self, origin: &RequestOrigin, email: &str) -> Result<()> {
        self.check_secret(origin)?;
        let email = email.trim().to_lowercase();
        self.by_email
            .try_acquire(email)
            .map_err(Problem::rate_limited)?;
        Ok(())
    }
}
