//! The inbox: what carriers say is first written down, then acknowledged, then applied.
//!
//! The API appends (many callbacks in one commit) and answers 2xx only behind the commit. A
//! worker takes what is not applied, in bulk, and moves the calls. Two workers that hold events
//! of one call queue up at the call's row, and the fold does not care who comes first.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::{Connection, PgConnection, PgPool};

use super::answer::{self, ANSWERED};
use super::apply::{Applied, Change, What, apply_unscoped};
use crate::columns::column;
use crate::error::{Error, Result};
use crate::fault;
use crate::ids::{CallId, TrunkId};
use crate::telephony::{AnsweredBy, CallEvent, CallStatus, Outcome, Reason};

/// How an event came to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Source {
    /// The carrier called us back.
    Callback,
    /// The carrier fetched the answer document.
    Answer,
    /// We asked the carrier.
    Poll,
}

/// An event to write down.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub call: CallId,
    /// The trunk the event came in for; a call of another trunk is not found.
    pub trunk: TrunkId,
    pub source: Source,
    pub event: CallEvent,
}

/// Writes events down in one statement. An event that is known already is not written again.
/// Answers, for each event in order, whether its call exists.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database; nothing is written then.
pub async fn append_unscoped(db: &mut PgConnection, events: &[NewEvent]) -> Result<Vec<bool>> {
    let found = sqlx::query_file_scalar!(
        "src/calls/append.sql",
        &column(events, |new| new.call) as &[CallId],
        &column(events, |new| new.trunk) as &[TrunkId],
        &column(events, |new| new.source) as &[Source],
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
        // Places are counted from one.
        let place = usize::try_from(n - 1).ok();
        if let Some(slot) = place.and_then(|place| known.get_mut(place)) {
            *slot = true;
        }
    }
    Ok(known)
}

/// The calls that a carrier's account knows by this id, where the carrier does not name ours.
/// Carriers have no principal; whoever asks must then prove to be the trunk's carrier.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn of_carrier_unscoped(
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

/// Events that could not be applied.
#[derive(Debug)]
pub struct Refused {
    pub error: Error,
    /// The events that were tried; none when the database could not even be asked for them.
    pub events: Vec<i64>,
}

/// Applies up to `most` events that wait. Answers with their number and what they came to.
///
/// # Errors
/// [`Refused`]; the events stay unapplied then.
pub async fn apply_waiting_unscoped(
    pool: &PgPool,
    most: i64,
    now: DateTime<Utc>,
) -> std::result::Result<(usize, Applied), Refused> {
    let mut events = Vec::new();
    apply_waiting(pool, most, now, &mut events)
        .await
        .map_err(|error| Refused { error, events })
}

async fn apply_waiting(
    pool: &PgPool,
    most: i64,
    now: DateTime<Utc>,
    tried: &mut Vec<i64>,
) -> Result<(usize, Applied)> {
    let mut connection = pool.acquire().await?;
    let mut db = connection.begin().await?;
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
        return Ok((0, Applied::default()));
    }
    tried.extend(rows.iter().map(|row| row.id));
    let changes: Vec<Change> = rows
        .into_iter()
        .map(|row| Change {
            call: row.call_id,
            what: What::Event(CallEvent {
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
    let answered: Vec<CallId> = changes
        .iter()
        .filter(|change| matches!(&change.what, What::Event(event) if event.dedup_key == ANSWERED))
        .map(|change| change.call)
        .collect();
    answer::note_first_turns_unscoped(&mut db, &answered).await?;
    sqlx::query!(
        "update call_events set applied_at = clock_timestamp() where id = any($1)",
        &tried[..]
    )
    .execute(&mut *db)
    .await?;
    fault::point("inbox.uncommitted");
    db.commit().await?;
    fault::point("inbox.committed");
    Ok((tried.len(), applied))
}

/// Sets an event aside that the database refuses on its own: it stays in the table with its
/// reason and is not tried again.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn set_aside_unscoped(pool: &PgPool, event: i64, why: &str) -> Result<()> {
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
