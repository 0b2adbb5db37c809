//! Passwords, hashed with Argon2id, with a limit on concurrent hashes.
//!
//! A hash costs 19 MiB and some tens of milliseconds on purpose, so many concurrent requests could
//! stop the process: there are few permits, and a request that waits too long must retry. An
//! unknown address costs the same as a wrong password.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::anyhow;
use argon2::password_hash::SaltString;
use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgConnection;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::platform::error::{Error, Result};
use crate::platform::ids::{OrgId, UserId};
use crate::platform::secret::random_bytes;

/// OWASP's parameters: memory in KiB, passes, lanes.
const ARGON2_COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// Maximum concurrent hashes.
const MAX_CONCURRENT_HASHES: usize = 2;
/// Longest wait for a permit.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Lengths of a password, in characters.
const LENGTH_CHARS: std::ops::RangeInclusive<usize> = 12..=128;
/// Minimum number of different characters.
const MIN_DISTINCT_CHARS: usize = 5;

/// Hashes and compares passwords.
#[derive(Clone, Debug)]
pub struct PasswordHasher {
    permits: Arc<Semaphore>,
    /// Hash that the password of an unknown address is compared with.
    dummy_hash: Arc<OnceLock<String>>,
}

impl Default for PasswordHasher {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_HASHES)),
            dummy_hash: Arc::default(),
        }
    }
}

impl PasswordHasher {
    /// Hashes a password for storage.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many other requests wait.
    pub async fn hash(&self, password: SecretString) -> Result<String> {
        self.with_permit(move || hash(password.expose_secret()))
            .await
    }

    /// Compares a password with a stored hash. Takes as long without a hash, and returns false.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many other requests wait.
    pub async fn verify(&self, password: SecretString, stored: Option<String>) -> Result<bool> {
        let dummy = Arc::clone(&self.dummy_hash);
        self.with_permit(move || {
            let known = stored.is_some();
            let stored = match stored {
                Some(stored) => stored,
                None => match dummy.get() {
                    Some(hash) => hash.clone(),
                    None => {
                        let hash = hash("password of an unknown address")?;
                        dummy.get_or_init(|| hash).clone()
                    }
                },
            };

            let parsed = PasswordHash::new(&stored)
                .map_err(|_error| anyhow!("a stored password hash cannot be read"))?;

            let matches = Argon2::default()
                .verify_password(password.expose_secret().as_bytes(), &parsed)
                .is_ok();
            Ok(matches && known)
        })
        .await
    }

    async fn with_permit<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = timeout(PERMIT_TIMEOUT, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Error::Busy(
                "too many people are signing in; retry shortly".into(),
            ));
        };

        // The permit moves along: a cancelled request does not release it early.
        let result = spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        Ok(result.await.map_err(anyhow::Error::from)??)
    }
}

fn hash(password: &str) -> anyhow::Result<String> {
    let (memory, passes, lanes) = ARGON2_COST;
    let params = Params::new(memory, passes, lanes, None)
        .map_err(|error| anyhow!("argon2 parameters: {error}"))?;

    let salt = SaltString::encode_b64(&random_bytes::<16>()?)
        .map_err(|error| anyhow!("argon2 salt: {error}"))?;

    let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password.as_bytes(), &salt)
        .map_err(|error| anyhow!("argon2: {error}"))?;
    Ok(hash.to_string())
}

/// Reports the weakness of a chosen password, if it has one.
#[must_use]
pub fn weakness(password: &str, email: &str) -> Option<&'static str> {
    let mut distinct: Vec<char> = password.chars().collect();
    let length = distinct.len();
    distinct.sort_unstable();
    distinct.dedup();

    let lower = password.to_lowercase();
    let name = email.split('@').next().unwrap_or_default().to_lowercase();

    if !LENGTH_CHARS.contains(&length) {
        Some("must have 12 to 128 characters; several words make a good one")
    } else if distinct.len() < MIN_DISTINCT_CHARS {
        Some("repeats few characters; choose several words")
    } else if lower.contains(&email.to_lowercase()) || (name.len() >= 6 && lower.contains(&name)) {
        Some("must not contain the e-mail address")
    } else {
        None
    }
}

/// Finds the member with an e-mail address and a password, with their organisation and hash.
/// The caller is not authenticated yet, so there is no scope.
pub async fn find_by_email_unscoped(
    db: &mut PgConnection,
    email: &str,
) -> Result<Option<((OrgId, UserId), String)>> {
    let row = sqlx::query!(
        r#"select u.id as "id: UserId", u.org_id as "org_id: OrgId", p.hash
           from users u
           join passwords p on p.user_id = u.id
           where lower(u.email) = lower($1)
             and u.removed_at is null"#,
        email,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| ((row.org_id, row.id), row.hash)))
}

/// Hash of a user's local password; `None` for users of another issuer.
pub async fn hash_of_user_unscoped(db: &mut PgConnection, user: UserId) -> Result<Option<String>> {
    let hash = sqlx::query_scalar!(
        "select hash from passwords where user_id = $1",
        user as UserId
    )
    .fetch_optional(db)
    .await?;
    Ok(hash)
}

/// Sets a user's password. The user is authenticated, or an operator acts.
pub async fn set_unscoped(
    db: &mut PgConnection,
    org: OrgId,
    user: UserId,
    hash: &str,
) -> Result<()> {
    sqlx::query!(
        "insert into passwords (user_id, org_id, hash)
         values ($1, $2, $3)
         on conflict (user_id) do update set hash = excluded.hash, changed_at = now()",
        user as UserId,
        org as OrgId,
        hash,
    )
    .execute(db)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_and_nothing_else() {
        let hasher = PasswordHasher::default();
        let stored = hasher.hash("correct horse battery".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(!stored.contains("horse"));
        let matches = async |password: &str, stored: Option<String>| {
            hasher.verify(password.into(), stored).await.unwrap()
        };
        assert!(matches("correct horse battery", Some(stored.clone())).await);
        assert!(!matches("correct horse batterz", Some(stored)).await);
        assert!(!matches("password of an unknown address", None).await);
    }

    #[test]
    fn weak_passwords_are_refused_with_the_reason() {
        for (password, weak) in [
            ("correct horse battery", false),
            ("short", true),
            ("aaaaaaaaaaaaaaaa", true),
            ("abababababababab", true),
            ("ada.lovelace-2026", true),
            ("ADA.LOVELACE@example.com", true),
            (&"x1y2z3".repeat(22), true),
        ] {
            let weakness = weakness(password, "ada.lovelace@example.com");
            assert_eq!(weakness.is_some(), weak, "{password}");
        }
    }
}
