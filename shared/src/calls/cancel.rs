//! Cancellation of calls that are no longer wanted.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::apply::{CallUpdate, UpdateKind, apply_unscoped};
use crate::platform::error::Result;
use crate::platform::ids::{BatchId, CallId, TrunkId};
use crate::telephony::{CallEvent, CallStatus};

/// A call that can still be canceled.
#[derive(Clone, Debug)]
pub struct CancelableCall {
    pub id: CallId,
    pub trunk: TrunkId,
    pub carrier_call_id: String,
}

/// Live calls of a stopped batch.
#[derive(Clone, Debug)]
pub struct RemainingCalls {
    pub cancelable: Vec<CancelableCall>,
    /// Calls whose request is being sent or has no known result: they cannot be canceled yet.
    pub undecided: i64,
}

/// Loads the live calls of a stopped batch; none once it was started again. Jobs have no
/// principal.
pub async fn remaining_calls_unscoped(pool: &PgPool, batch: BatchId) -> Result<RemainingCalls> {
    let rows = sqlx::query!(
        r#"select c.id as "id: CallId", c.trunk_id as "trunk: TrunkId", c.carrier_call_id,
                  c.status as "status: CallStatus"
           from calls c
           join call_batches b on b.id = c.batch_id
           where c.batch_id = $1
             and c.live
             and b.status = 'stopped'
             and c.status in ('submitting', 'unknown', 'accepted', 'dialing', 'ringing')"#,
        batch as BatchId,
    )
    .fetch_all(pool)
    .await?;

    let mut left = RemainingCalls {
        cancelable: Vec::new(),
        undecided: 0,
    };

    for row in rows {
        match row.carrier_call_id {
            Some(carrier_call_id) if row.status.rank() > 0 => {
                left.cancelable.push(CancelableCall {
                    id: row.id,
                    trunk: row.trunk,
                    carrier_call_id,
                })
            }
            _ => left.undecided += 1,
        }
    }

    Ok(left)
}

/// Moves calls to `canceling` after the carrier accepted the request to end them.
pub async fn mark_canceling_unscoped(
    db: &mut PgConnection,
    calls: &[CallId],
    now: DateTime<Utc>,
) -> Result<()> {
    let canceling = CallEvent {
        status: Some(CallStatus::Canceling),
        ..CallEvent::default()
    };
    let changes: Vec<CallUpdate> = calls
        .iter()
        .map(|call| CallUpdate {
            call: *call,
            kind: UpdateKind::Event(canceling.clone()),
        })
        .collect();
    apply_unscoped(db, &changes, now).await?;
    Ok(())
}
