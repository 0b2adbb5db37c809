//! Requests that may be sent twice and do what they do once.
//!
//! A client puts an `Idempotency-Key` of its choice on a POST. The key is taken in the
//! transaction of what the request does, and the answer is stored there too, so a key is known
//! if and only if its effect is there: a request that failed leaves nothing and may be sent
//! again. Keys belong to a user, and are kept for two days.

use chrono::{DateTime, Duration, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use crate::access::Principal;
use crate::error::{Error, FieldError, Result};
use crate::ids::{OrgId, UserId};

/// How long an answer can be had again.
const KEPT: Duration = Duration::hours(48);

/// How long a request waits for another one under its key to end.
const PATIENCE: &str = "500ms";

/// A key, and what it was sent with.
#[derive(Clone, Debug)]
pub struct Claim {
    pub key: String,
    /// SHA-256 of method, path, query and body.
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
    let known = sqlx::query!(
        "select fingerprint, status, body
         from idempotency_keys
         where org_id = $1
           and user_id = $2
           and key = $3",
        principal.org as OrgId,
        principal.user as UserId,
        claim.key,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(known) = known else {
        sqlx::query!(
            "insert into idempotency_keys (org_id, user_id, key, fingerprint) values ($1, $2, $3, $4)",
            principal.org as OrgId,
            principal.user as UserId,
            claim.key,
            &claim.fingerprint[..],
        )
        .execute(db)
        .await?;
        return Ok(None);
    };
    match (known.status.map(u16::try_from), known.body) {
        _ if known.fingerprint != claim.fingerprint => {
            let told = "this Idempotency-Key was used for another request; choose a new one";
            let field = FieldError::new("header", ["Idempotency-Key"], "key_reused", told);
            Err(Error::Invalid(vec![field]))
        }
        (Some(Ok(status)), Some(body)) => Ok(Some(Stored { status, body })),
        _ => Err(anyhow::anyhow!("an idempotency key was committed without its answer").into()),
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
        Err(Error::Busy(_)) => {
            return Err(Error::conflict(
                "idempotency_key_in_use",
                "a request with this Idempotency-Key is under way; send it again when that has ended",
            ));
        }
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

/// Forgets keys that are too old, of all organisations: age knows no tenant.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn forget_old_unscoped(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let forgotten = sqlx::query!(
        "delete from idempotency_keys where created_at < $1",
        now - KEPT
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}
