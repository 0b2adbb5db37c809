//! Requests that may be sent twice and do what they do once.
//!
//! A client puts an `Idempotency-Key` of its choice on a POST. The key is taken in the
//! transaction of what the request does, and the answer is stored there too, so a key is known
//! if and only if its effect is there: a request that failed leaves nothing and may be sent
//! again. Keys belong to a user, and are kept for two days.
//!
//! A request that takes minutes is no transaction: it [holds](Hold) its key meanwhile, for as
//! long as its process lives, and takes it at the end like any other.

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
use crate::error::{Error, FieldError, Result};
use crate::ids::{JobId, OrgId, UserId};

/// How long an answer can be had again.
const KEPT: Duration = Duration::hours(48);

/// How long a request waits for another one under its key to end.
const PATIENCE: &str = "500ms";

/// How often a hold is renewed, and after how long without that its process is dead.
const RENEWED: StdDuration = StdDuration::from_secs(10);
const HELD_SECS: f64 = 40.0;

/// A key, and what it was sent with.
#[derive(Clone, Debug)]
pub struct Claim {
    pub key: String,
    /// SHA-256 of path, query and body.
    pub fingerprint: [u8; 32],
}

/// An answer that was given before.
#[derive(Clone, Debug)]
pub struct Stored {
    pub status: u16,
    pub body: Value,
}

/// Takes a key in the caller's transaction. Answers with what was answered when the same
/// request came first, and with `None` when this one does. A key is its principal's own, whatever they see.
///
/// # Errors
/// [`Error::Conflict`] while the first request is under way, [`Error::Invalid`] when the key
/// was sent with another request.
pub async fn claim_unscoped(
    db: &mut PgConnection,
    principal: &Principal,
    claim: &Claim,
) -> Result<Option<Stored>> {
    lock(db, principal, &claim.key).await?;
    if let Some(known) = known_unscoped(db, principal, &claim.key).await? {
        return known.answer(claim).map(Some);
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

/// What a key was used for, and what was answered.
#[derive(Debug)]
pub struct Known {
    fingerprint: Vec<u8>,
    status: Option<i16>,
    body: Option<Value>,
}

impl Known {
    /// The answer to the same request.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the key was sent with another request.
    pub fn answer(self, claim: &Claim) -> Result<Stored> {
        if self.fingerprint != claim.fingerprint {
            let told = "this Idempotency-Key was used for another request; choose a new one";
            let field = FieldError::new("header", ["Idempotency-Key"], "key_reused", told);
            return Err(Error::Invalid(vec![field]));
        }
        match (self.status.map(u16::try_from), self.body) {
            (Some(Ok(status)), Some(body)) => Ok(Stored { status, body }),
            _ => Err(anyhow::anyhow!("an idempotency key was committed without its answer").into()),
        }
    }
}

/// What is known of a principal's own key, if anything is: whatever they see.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn known_unscoped(
    db: &mut PgConnection,
    principal: &Principal,
    key: &str,
) -> Result<Option<Known>> {
    let known = sqlx::query_as!(
        Known,
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

fn in_use() -> Error {
    Error::conflict(
        "idempotency_key_in_use",
        "a request with this Idempotency-Key is under way; send it again when that has ended",
    )
}

/// A key whose request is under way. It only tells others so: that the request happens once is
/// for [`claim_unscoped`] to see to.
#[derive(Debug)]
pub struct Hold {
    pool: PgPool,
    org: OrgId,
    user: UserId,
    key: String,
    holder: Uuid,
}

impl Hold {
    /// Holds a key of the principal, whatever they see, unless a request that is alive does.
    ///
    /// # Errors
    /// [`Error::Conflict`] while another request is under way.
    pub async fn take_unscoped(pool: &PgPool, principal: &Principal, key: &str) -> Result<Self> {
        let hold = Self {
            pool: pool.clone(),
            org: principal.org,
            user: principal.user,
            key: key.to_owned(),
            holder: JobId::new().0,
        };
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
            HELD_SECS,
        )
        .execute(pool)
        .await?;
        match taken.rows_affected() {
            0 => Err(in_use()),
            _ => Ok(hold),
        }
    }

    /// Does the request, and lets go of the key, also when the request panics.
    pub async fn during<T>(self, work: impl Future<Output = T>) -> T {
        // What a panic may leave half done is not looked at again.
        let work = AssertUnwindSafe(work).catch_unwind();
        let done = tokio::select! {
            done = work => done,
            never = self.renew() => match never {},
        };
        self.release().await;
        match done {
            Ok(done) => done,
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
            tracing::warn!(%error, "an idempotency key is held until its hold ends by itself");
        }
    }

    async fn renew(&self) -> Infallible {
        let mut ticks = interval(RENEWED);
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
                HELD_SECS,
            );
            if let Err(error) = renewed.execute(&self.pool).await {
                tracing::warn!(%error, "an idempotency key's hold was not renewed");
            }
        }
    }
}

/// Waits shortly until nobody else has the key, and holds it until the transaction ends. A
/// request that was refused gives its key back a moment after its client has heard so.
async fn lock(db: &mut PgConnection, principal: &Principal, key: &str) -> Result<()> {
    sqlx::query!("select set_config('lock_timeout', $1, true)", PATIENCE)
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
        Err(Error::Busy(_)) => return Err(in_use()),
        Err(error) => return Err(error),
    }
    sqlx::query!("set local lock_timeout to default")
        .execute(db)
        .await?;
    Ok(())
}

/// Stores the answer beside a key that [`claim_unscoped`] took in the same transaction, for the same
/// principal.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn answer_unscoped(
    db: &mut PgConnection,
    principal: &Principal,
    claim: &Claim,
    answer: &Stored,
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

/// Forgets keys that are too old, and holds of the dead, of all organisations: age knows no tenant.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn forget_old_unscoped(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let forgotten = sqlx::query!(
        "delete from idempotency_keys where created_at < $1",
        now - KEPT
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!("delete from idempotency_holds where held_until < now()")
        .execute(db)
        .await?;
    Ok(forgotten.rows_affected())
}
