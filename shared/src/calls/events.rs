//! The inbox: carrier events are stored, then acknowledged, then applied.
//!
//! The API appends (many callbacks in one commit) and answers 2xx only after the commit. A
//! worker applies pending events in bulk and moves the calls. Two workers with events of one call
//! wait for each other at the call's row lock, and the result does not depend on their order.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::{Connection, PgConnection, PgPool};

use super::answer;
use super::answer::ANSWER_EVENT_KEY;
use super::apply::{AppliedUpdates, CallUpdate, UpdateKind, apply_unscoped};
use crate::platform::columns::column;
use crate::platform::error::{Error, Result};
use crate::platform::failpoint;
use crate::platform::ids::{CallId, TrunkId};
use crate::telephony::{AnsweredBy, CallEvent, CallStatus, Outcome, Reason};

/// Origin of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum EventSource {
    /// A callback of the carrier.
    Callback,
    /// A fetch of the answer document.
    Answer,
    /// A request of ours to the carrier.
    Poll,
}

/// An event to store.
#[derive(Clone, Debug)]
pub struct NewCallEvent {
    pub call: CallId,
    /// The trunk the event came in for; a call of another trunk is not found.
    pub trunk: TrunkId,
    pub source: EventSource,
    pub event: CallEvent,
}

/// Stores events in one statement, except those that are stored already. Returns, for each event
/// in order, true when its call exists.
pub async fn append_events_unscoped(
    db: &mut PgConnection,
    events: &[NewCallEvent],
) -> Result<Vec<bool>> {
    let found = sqlx::query_file_scalar!(
        "src/calls/append.sql",
        &column(events, |new| new.call) as &[CallId],
        &column(events, |new| new.trunk) as &[TrunkId],
        &column(events, |new| new.source) as &[EventSource],
        &column(events, |new| new.event.dedup_key.as_str()) as &[&str],
        &column(events, |new| new.event.carrier_call_id.as_deref()) as &[Option<&str>],
        &column(events, |new| new.event.status) as &[Option<CallStatus>],
        &column(events, |new| new.event.outcome) as &[Option<Outcome>],
        &column(events, |new| new.event.reason) as &[Option<Reason>],
        &column(events, |new| new.event.carrier_status.as_deref()) as &[Option<&str>],
        &column(events, |new| new.event.carrier_code.as_deref()) as &[Option<&str>],
        &column(events, |new| new.event.sip_code) as &[Option<i32>],
        &column(events, |new| new.event.answered_by) as &[Option<AnsweredBy>],
        &column(events, |new| new.event.duration_seconds) as &[Option<i32>],
        &column(events, |new| new.event.price) as &[Option<Decimal>],
        &column(events, |new| new.event.currency.as_deref()) as &[Option<&str>],
        &column(events, |new| new.event.recording_url.as_deref()) as &[Option<&str>],
        &column(events, |new| new.event.occurred_at) as &[Option<DateTime<Utc>>],
    )
    .fetch_all(db)
    .await?;

    let mut known = vec![false; events.len()];
    for n in found {
        // `with ordinality` counts from one.
        let place = usize::try_from(n - 1).ok();
        if let Some(slot) = place.and_then(|place| known.get_mut(place)) {
            *slot = true;
        }
    }
    Ok(known)
}

/// Finds the calls with this id at a carrier's account, for callbacks that do not carry our id.
/// Carriers have no principal; the request must then prove to come from the trunk's carrier.
pub async fn find_by_carrier_id_unscoped(
    db: &mut PgConnection,
    account_id: &str,
    carrier_call_id: &str,
) -> Result<Vec<(TrunkId, CallId)>> {
    let rows = sqlx::query!(
        r#"select c.trunk_id as "trunk_id: TrunkId", c.id as "id: CallId"
           from trunks t
           join calls c on c.trunk_id = t.id
           where t.account_id = $1
             and c.carrier_call_id = $2"#,
        account_id,
        carrier_call_id,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.trunk_id, row.id)).collect())
}

/// A failed attempt to apply events.
#[derive(Debug)]
pub struct RefusedEvents {
    pub error: Error,
    /// The events of the attempt; empty when they could not be loaded.
    pub events: Vec<i64>,
}

/// Applies up to `most` pending events. Returns their number and the result.
///
/// # Errors
/// [`Refused`]; the events stay pending then.
pub async fn apply_pending_unscoped(
    pool: &PgPool,
    most: i64,
    now: DateTime<Utc>,
) -> std::result::Result<(usize, AppliedUpdates), RefusedEvents> {
    let mut events = Vec::new();
    apply_pending(pool, most, now, &mut events)
        .await
        .map_err(|error| RefusedEvents { error, events })
}

async fn apply_pending(
    pool: &PgPool,
    most: i64,
    now: DateTime<Utc>,
    tried: &mut Vec<i64>,
) -> Result<(usize, AppliedUpdates)> {
    let mut connection = pool.acquire().await?;
    let mut db = connection.begin().await?;

    // 1. Lock pending events; those that another worker holds are skipped.
    let rows = sqlx::query!(
        r#"select id, call_id as "call_id: CallId", dedup_key, carrier_call_id, status as "status: CallStatus",
                  outcome as "outcome: Outcome", reason as "reason: Reason", carrier_status, carrier_code, sip_code,
                  answered_by as "answered_by: AnsweredBy", duration_seconds, price, currency, recording_url,
                  occurred_at
           from call_events
           where applied_at is null
           order by id
           limit $1
           for update skip locked"#,
        most,
    )
    .fetch_all(&mut *db)
    .await?;
    if rows.is_empty() {
        return Ok((0, AppliedUpdates::default()));
    }
    tried.extend(rows.iter().map(|row| row.id));

    // 2. Move the calls.
    let changes: Vec<CallUpdate> = rows
        .into_iter()
        .map(|row| CallUpdate {
            call: row.call_id,
            kind: UpdateKind::Event(CallEvent {
                carrier_call_id: row.carrier_call_id,
                dedup_key: row.dedup_key,
                status: row.status,
                outcome: row.outcome,
                reason: row.reason,
                carrier_status: row.carrier_status,
                carrier_code: row.carrier_code,
                sip_code: row.sip_code,
                answered_by: row.answered_by,
                duration_seconds: row.duration_seconds,
                price: row.price,
                currency: row.currency,
                recording_url: row.recording_url,
                occurred_at: row.occurred_at,
            }),
        })
        .collect();
    let applied = apply_unscoped(&mut db, &changes, now).await?;

    // 3. Store the first turn of answered calls.
    let answered: Vec<CallId> = changes
        .iter()
        .filter(|change| matches!(&change.kind, UpdateKind::Event(event) if event.dedup_key == ANSWER_EVENT_KEY))
        .map(|change| change.call)
        .collect();
    answer::store_first_turns_unscoped(&mut db, &answered).await?;

    // 4. Mark the events as applied, and commit.
    sqlx::query!(
        "update call_events set applied_at = clock_timestamp() where id = any($1)",
        &tried[..]
    )
    .execute(&mut *db)
    .await?;

    failpoint::hit("inbox.uncommitted");
    db.commit().await?;
    failpoint::hit("inbox.committed");
    Ok((tried.len(), applied))
}

/// Sets aside an event that fails even when applied alone: it stays in the table with the
/// reason and is not tried again.
pub async fn set_event_aside_unscoped(pool: &PgPool, event: i64, why: &str) -> Result<()> {
    sqlx::query!(
        "update call_events
         set applied_at = clock_timestamp(),
             carrier_status = left(concat(carrier_status, ' [set aside: ', $2::text, ']'), 500)
         where id = $1",
        event,
        why,
    )
    .execute(pool)
    .await?;
    Ok(())
}
