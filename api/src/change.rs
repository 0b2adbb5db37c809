//! How requests read and change things.
//!
//! Both happen in a transaction that is bound to the caller's organisation. A change cannot be
//! committed without the note that goes into the audit log, and when the request carries an
//! `Idempotency-Key`, the answer is stored in the same transaction: sent again, the request
//! does nothing and is answered as before.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use peal_shared::access::wall;
use peal_shared::audit::{self, Actor, Note};
use peal_shared::context::Context;
use peal_shared::idempotency::{self, Claim, Hold, Stored};
use serde::Serialize;
use sqlx::{PgConnection, Postgres, Transaction};
use tracing::Instrument as _;

use crate::auth::Caller;
use crate::error::{Problem, Result};

/// A transaction that changes something for a caller.
pub struct Change {
    db: Transaction<'static, Postgres>,
    actor: Actor,
    claim: Option<Claim>,
}

impl Caller {
    /// Opens a transaction to read in.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn read(&self, context: &Context) -> Result<Transaction<'static, Postgres>> {
        Ok(wall::begin(&context.pool, &self.scope()).await?)
    }

    /// Does what asks somebody else's server before it changes something. The request's key is
    /// held meanwhile, so of two that are sent at once only one asks; and what it has asked is
    /// written down though its client goes away: it goes on in a task of its own.
    ///
    /// # Errors
    /// As `work`; when the `Idempotency-Key` is in use or was used for another request.
    pub async fn once<T, F>(
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
        let hold = Hold::take_unscoped(&pool, &principal, &claim.key).await?;
        let work = Box::pin(work(context, self));
        let work = async move {
            let mut db = pool.acquire().await?;
            let known = idempotency::known_unscoped(&mut db, &principal, &claim.key).await?;
            drop(db);
            match known {
                Some(known) => Err(Problem::answered_before(known.answer(&claim)?)),
                None => work.await,
            }
        };
        let done = tokio::spawn(hold.during(work).in_current_span());
        done.await.map_err(anyhow::Error::from)?
    }

    /// Opens a transaction to change something in. A request that was answered before ends
    /// here, with the same answer.
    ///
    /// # Errors
    /// When the database does not answer, or the `Idempotency-Key` is in use or was used for
    /// another request.
    pub async fn change(&self, context: &Context) -> Result<Change> {
        let mut db = wall::begin(&context.pool, &self.scope()).await?;
        if let Some(claim) = &self.origin.claim
            && let Some(stored) =
                idempotency::claim_unscoped(&mut db, &self.principal, claim).await?
        {
            return Err(Problem::answered_before(stored));
        }
        Ok(Change {
            db,
            actor: Actor {
                principal: self.principal.clone(),
                ip: self.origin.ip,
                request_id: self.origin.request_id.clone(),
            },
            claim: self.origin.claim.clone(),
        })
    }
}

impl Deref for Change {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.db
    }
}

impl DerefMut for Change {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.db
    }
}

impl Change {
    /// Commits the change with its note and its answer, and answers.
    ///
    /// # Errors
    /// When the database does not answer; nothing is changed then, or it is not known.
    pub async fn commit<T: Serialize>(
        self,
        note: Note,
        status: StatusCode,
        Json(body): Json<T>,
    ) -> Result<(StatusCode, Json<T>)> {
        self.write(note, status, &body).await?;
        Ok((status, Json(body)))
    }

    /// Commits as [`Self::commit`] an answer with something that is shown once, of which only
    /// `kept` is stored: the same request sent again is answered without it.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub async fn commit_showing<T: Serialize>(
        self,
        note: Note,
        status: StatusCode,
        kept: &T,
        Json(shown): Json<T>,
    ) -> Result<(StatusCode, Json<T>)> {
        self.write(note, status, kept).await?;
        Ok((status, Json(shown)))
    }

    async fn write(mut self, note: Note, status: StatusCode, kept: &impl Serialize) -> Result<()> {
        audit::write_unscoped(&mut self.db, &self.actor, &note).await?;
        if let Some(claim) = &self.claim {
            let stored = Stored {
                status: status.as_u16(),
                body: serde_json::to_value(kept).map_err(peal_shared::Error::from)?,
            };
            idempotency::answer_unscoped(&mut self.db, &self.actor.principal, claim, &stored)
                .await?;
        }
        self.db.commit().await?;
        Ok(())
    }
}
