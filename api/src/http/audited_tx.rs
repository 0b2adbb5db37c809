//! Transactions of requests.
//!
//! Each is bound to the caller's organisation. A write cannot be committed without its audit
//! entry. When the request carries an `Idempotency-Key`, the response is stored in the same
//! transaction: a repeated request changes nothing and gets the stored response.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use peal_shared::access::row_level_security;
use peal_shared::audit::{AuditActor, AuditEntry};
use peal_shared::context::Context;
use peal_shared::idempotency::{IdempotencyClaim, KeyHold, StoredResponse};
use peal_shared::{audit, idempotency};
use serde::Serialize;
use sqlx::{PgConnection, Postgres, Transaction};
use tracing::Instrument as _;

use crate::auth::Caller;
use crate::http::error::{Problem, Result};

/// A write transaction of a caller, committed together with its audit entry.
pub struct AuditedTx {
    db: Transaction<'static, Postgres>,
    actor: AuditActor,
    claim: Option<IdempotencyClaim>,
}

impl Caller {
    /// Begins a transaction for reads.
    pub async fn begin_read(&self, context: &Context) -> Result<Transaction<'static, Postgres>> {
        Ok(row_level_security::begin(&context.pool, &self.scope()).await?)
    }

    /// Runs work that calls a third party before it writes. The `Idempotency-Key` is held
    /// meanwhile, so only one of two concurrent requests makes the call. The work runs in a task
    /// of its own: its result is stored even when the client disconnects.
    ///
    /// # Errors
    /// Those of `work`; the `Idempotency-Key` is in use or was used for another request.
    pub async fn run_once<T, F>(
        self,
        context: Arc<Context>,
        work: impl FnOnce(Arc<Context>, Self) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let Some(claim) = self.origin.claim.clone() else {
            return Box::pin(work(context, self)).await;
        };

        let (pool, principal) = (context.pool.clone(), self.principal.clone());

        let hold = KeyHold::acquire_unscoped(&pool, &principal, &claim.key).await?;

        let work = Box::pin(work(context, self));
        let work = async move {
            let mut db = pool.acquire().await?;
            let stored = idempotency::find_unscoped(&mut db, &principal, &claim.key).await?;
            drop(db);

            match stored {
                Some(stored) => Err(Problem::replayed(stored.replay(&claim)?)),
                None => work.await,
            }
        };

        let result = tokio::spawn(hold.run(work).in_current_span());
        result.await.map_err(anyhow::Error::from)?
    }

    /// Begins a transaction for writes.
    ///
    /// # Errors
    /// The stored response of a repeated request; the `Idempotency-Key` is in use or was used for
    /// another request.
    pub async fn begin_write(&self, context: &Context) -> Result<AuditedTx> {
        let mut db = row_level_security::begin(&context.pool, &self.scope()).await?;
        if let Some(claim) = &self.origin.claim
            && let Some(stored) =
                idempotency::claim_unscoped(&mut db, &self.principal, claim).await?
        {
            return Err(Problem::replayed(stored));
        }

        Ok(AuditedTx {
            db,
            actor: AuditActor {
                principal: self.principal.clone(),
                ip: self.origin.ip,
                request_id: self.origin.request_id.clone(),
            },
            claim: self.origin.claim.clone(),
        })
    }
}

impl Deref for AuditedTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.db
    }
}

impl DerefMut for AuditedTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.db
    }
}

impl AuditedTx {
    /// Commits with an audit entry, and returns the response.
    ///
    /// # Errors
    /// The database does not answer: nothing is changed, or the outcome is unknown.
    pub async fn commit<T: Serialize>(
        self,
        note: AuditEntry,
        status: StatusCode,
        Json(body): Json<T>,
    ) -> Result<(StatusCode, Json<T>)> {
        self.commit_stored(note, status, &body).await?;
        Ok((status, Json(body)))
    }

    /// Commits as [`Self::commit`], but stores only `kept` of a response with a secret: a
    /// repeated request gets it without the secret.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub async fn commit_redacted<T: Serialize>(
        self,
        note: AuditEntry,
        status: StatusCode,
        kept: &T,
        Json(shown): Json<T>,
    ) -> Result<(StatusCode, Json<T>)> {
        self.commit_stored(note, status, kept).await?;
        Ok((status, Json(shown)))
    }

    async fn commit_stored(
        mut self,
        note: AuditEntry,
        status: StatusCode,
        kept: &impl Serialize,
    ) -> Result<()> {
        audit::write_unscoped(&mut self.db, &self.actor, &note).await?;
        if let Some(claim) = &self.claim {
            let stored = StoredResponse {
                status: status.as_u16(),
                body: serde_json::to_value(kept).map_err(peal_shared::Error::from)?,
            };
            idempotency::store_response_unscoped(
                &mut self.db,
                &self.actor.principal,
                claim,
                &stored,
            )
            .await?;
        }

        self.db.commit().await?;
        Ok(())
    }
}
