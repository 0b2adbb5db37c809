//! Idempotency keys: requests that may be sent twice and take effect once.
//!
//! A client puts an `Idempotency-Key` of its choice on a POST. The key is claimed in the
//! transaction of the request's effect, and the response is stored there too, so a key exists if
//! and only if its effect does: a failed request leaves nothing and may be retried. Keys belong
//! to a user and are kept for two days.
//!
//! A request that takes minutes does not run in one transaction: it [holds](KeyHold) its key
//! while its process lives, and claims it at the end like any other.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration as StdDuration;

use chrono::{DateTime, Duration, Utc};
use futures::FutureExt as _;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::access::Principal;
use crate::platform::error::{Error, FieldError, Result};
use crate::platform::ids::{JobId, OrgId, UserId};

/// Time for which a response can be replayed.
const RESPONSE_RETENTION: Duration = Duration::hours(48);

/// Longest wait for another request under the same key.
const KEY_LOCK_TIMEOUT: &str = "500ms";

/// Interval at which a hold is renewed.
const HOLD_RENEW_INTERVAL: StdDuration = StdDuration::from_secs(10);
/// Seconds without a renewal after which a hold expires.
const HOLD_EXPIRY_SECS: f64 = 40.0;

/// Idempotency key and the request it was sent with.
#[derive(Clone, Debug)]
pub struct IdempotencyClaim {
    pub key: String,
    /// SHA-256 of path, query and body.
    pub fingerprint: [u8; 32],
}

/// Stored response of an earlier request.
#[derive(Clone, Debug)]
pub struct StoredResponse {
    pub status: u16,
    pub body: Value,
}

/// Claims a key in the caller's transaction. Returns the stored response of an earlier identical
/// request, or `None` for the first one. Keys belong to the principal, whatever its scope.
///
/// # Errors
/// [`Error::Conflict`] while the first request is in progress, [`Error::Invalid`] when the key
/// was sent with another request.
pub async fn claim_unscoped(
    db: &mut PgConnection,
    principal: &Principal,
    claim: &IdempotencyClaim,
) -> Result<Option<StoredResponse>> {
    lock_key(db, principal, &claim.key).await?;
    if let Some(known) = find_unscoped(db, principal, &claim.key).await? {
        return known.replay(claim).map(Some);
    }
    sqlx::query!(
        "insert into idempotency_keys (org_id, user_id, key, fingerprint) values ($1, $2, $3, $4)",
        principal.org as OrgId,
        principal.user as UserId,
        claim.key,
        &claim.fingerprint[..],
    )
    .execute(db)
    .await?;
    Ok(None)
}

/// Stored key: the request it was used for, and the response.
#[derive(Debug)]
pub struct IdempotencyRecord {
    fingerprint: Vec<u8>,
    status: Option<i16>,
    body: Option<Value>,
}

impl IdempotencyRecord {
    /// Returns the response to the same request.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the key was sent with another request.
    pub fn replay(self, claim: &IdempotencyClaim) -> Result<StoredResponse> {
        if self.fingerprint != claim.fingerprint {
            let message = "this Idempotency-Key was used for another request; choose a new one";
            let field = FieldError::new("header", ["Idempotency-Key"], "key_reused", message);
            return Err(Error::Invalid(vec![field]));
        }
        match (self.status.map(u16::try_from), self.body) {
            (Some(Ok(status)), Some(body)) => Ok(StoredResponse { status, body }),
            _ => {
                Err(anyhow::anyhow!("an idempotency key was committed without its response").into())
            }
        }
    }
}

/// Finds a principal's own key, whatever its scope.
pub async fn find_unscoped(
    db: &mut PgConnection,
    principal: &Principal,
    key: &str,
) -> Result<Option<IdempotencyRecord>> {
    let known = sqlx::query_as!(
        IdempotencyRecord,
        "select fingerprint, status, body
         from idempotency_keys
         where org_id = $1
           and user_id = $2
           and key = $3",
        principal.org as OrgId,
        principal.user as UserId,
        key,
    );
    Ok(known.fetch_optional(db).await?)
}

fn key_in_use() -> Error {
    Error::conflict(
        "idempotency_key_in_use",
        "a request with this Idempotency-Key is in progress; retry when it has ended",
    )
}

/// Key whose request is in progress. It only signals that to other requests; [`claim_unscoped`]
/// ensures that the request takes effect once.
#[derive(Debug)]
pub struct KeyHold {
    pool: PgPool,
    org: OrgId,
    user: UserId,
    key: String,
    holder: Uuid,
}

impl KeyHold {
    /// Acquires a hold on a key of the principal, whatever its scope.
    ///
    /// # Errors
    /// [`Error::Conflict`] while another live request holds the key.
    pub async fn acquire_unscoped(pool: &PgPool, principal: &Principal, key: &str) -> Result<Self> {
        let hold = Self {
            pool: pool.clone(),
            org: principal.org,
            user: principal.user,
            key: key.to_owned(),
            holder: JobId::new().0,
        };

        // A hold that its process stopped renewing is taken over.
        let taken = sqlx::query!(
            "insert into idempotency_holds as h (org_id, user_id, key, holder, held_until)
             values ($1, $2, $3, $4, now() + make_interval(secs => $5))
             on conflict (org_id, user_id, key) do update
             set holder = excluded.holder, held_until = excluded.held_until
             where h.held_until < now()",
            hold.org as OrgId,
            hold.user as UserId,
            hold.key,
            hold.holder,
            HOLD_EXPIRY_SECS,
        )
        .execute(pool)
        .await?;

        match taken.rows_affected() {
            0 => Err(key_in_use()),
            _ => Ok(hold),
        }
    }

    /// Runs the request and releases the key afterwards, also when the request panics.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> T {
        // State that a panic leaves half done is not read again.
        let work = AssertUnwindSafe(work).catch_unwind();
        let result = tokio::select! {
            result = work => result,
            never = self.renew() => match never {},
        };
        self.release().await;
        match result {
            Ok(output) => output,
            Err(panic) => resume_unwind(panic),
        }
    }

    async fn release(&self) {
        let released = sqlx::query!(
            "delete from idempotency_holds
             where org_id = $1
               and user_id = $2
               and key = $3
               and holder = $4",
            self.org as OrgId,
            self.user as UserId,
            self.key,
            self.holder,
        );
        if let Err(error) = released.execute(&self.pool).await {
            tracing::warn!(%error, "idempotency hold not released; it expires by itself");
        }
    }

    async fn renew(&self) -> Infallible {
        let mut ticks = interval(HOLD_RENEW_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let renewed = sqlx::query!(
                "update idempotency_holds
                 set held_until = now() + make_interval(secs => $5)
                 where org_id = $1
                   and user_id = $2
                   and key = $3
                   and holder = $4",
                self.org as OrgId,
                self.user as UserId,
                self.key,
                self.holder,
                HOLD_EXPIRY_SECS,
            );
            if let Err(error) = renewed.execute(&self.pool).await {
                tracing::warn!(%error, "idempotency hold not renewed");
            }
        }
    }
}

/// Locks the key until the transaction ends, after a short wait for another request. The wait
/// covers a retry after a refusal: the response may arrive just before its transaction ends.
async fn lock_key(db: &mut PgConnection, principal: &Principal, key: &str) -> Result<()> {
    sqlx::query!(
        "select set_config('lock_timeout', $1, true)",
        KEY_LOCK_TIMEOUT
    )
    .fetch_one(&mut *db)
    .await?;

    let locked = sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('idempotency ' || $1::uuid || $2::uuid || $3, 0))",
        principal.org as OrgId,
        principal.user as UserId,
        key,
    )
    .fetch_one(&mut *db)
    .await
    .map_err(Error::from);
    match locked {
        Ok(_) => {}
        Err(Error::Busy(_)) => return Err(key_in_use()),
        Err(error) => return Err(error),
    }

    sqlx::query!("set local lock_timeout to default")
        .execute(db)
        .await?;
    Ok(())
}

/// Stores the response of a key that [`claim_unscoped`] claimed in the same transaction for the
/// same principal.
pub async fn store_response_unscoped(
    db: &mut PgConnection,
    principal: &Principal,
    claim: &IdempotencyClaim,
    answer: &StoredResponse,
) -> Result<()> {
    let status = i16::try_from(answer.status).map_err(anyhow::Error::from)?;
    sqlx::query!(
        "update idempotency_keys
         set status = $4, body = $5
         where org_id = $1
           and user_id = $2
           and key = $3",
        principal.org as OrgId,
        principal.user as UserId,
        claim.key,
        status,
        answer.body,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Deletes expired keys and holds of all organisations; returns the number of keys.
pub async fn purge_expired_unscoped(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let deleted = sqlx::query!(
        "delete from idempotency_keys where created_at < $1",
        now - RESPONSE_RETENTION
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!("delete from idempotency_holds where held_until < now()")
        .execute(db)
        .await?;
    Ok(deleted.rows_affected())
}
