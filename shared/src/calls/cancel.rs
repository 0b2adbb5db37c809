//! Ending calls that are no longer wanted.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::apply::{Change, What, apply_unscoped};
use crate::error::Result;
use crate::ids::{BatchId, CallId, TrunkId};
use crate::telephony::{CallEvent, CallStatus};

/// A call that can still be canceled.
#[derive(Clone, Debug)]
pub struct Unanswered {
    pub id: CallId,
    pub trunk: TrunkId,
    pub carrier_call_id: String,
}

/// The calls of a batch that a carrier has and nobody has answered. Jobs have no principal.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn unanswered_unscoped(pool: &PgPool, batch: BatchId) -> Result<Vec<Unanswered>> {
    let calls = sqlx::query_as!(
        Unanswered,
        r#"select id as "id: CallId", trunk_id as "trunk: TrunkId", carrier_call_id as "carrier_call_id!"
           from calls
           where batch_id = $1
             and live
             and status in ('accepted', 'dialing', 'ringing')
             and carrier_call_id is not null"#,
        batch as BatchId,
    )
    .fetch_all(pool)
    .await?;
    Ok(calls)
}

/// Notes that the carrier was asked to end a call, and agreed.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn mark_canceling_unscoped(
    db: &mut PgConnection,
    call: CallId,
    now: DateTime<Utc>,
) -> Result<()> {
    let event = CallEvent {
        status: Some(CallStatus::Canceling),
        ..CallEvent::default()
    };
    let change = Change {
        call,
        what: What::Event(event),
    };
    apply_unscoped(db, &[change], now).await?;
    Ok(())
}
