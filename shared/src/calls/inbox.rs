//! The inbox: what carriers say is first written down, then acknowledged, then applied.
//!
//! The API appends (many callbacks in one commit) and answers 2xx only behind the commit. A
//! worker takes what is not applied, in bulk, and moves the calls. Two workers that hold events
//! of one call queue up at the call's row, and the fold does not care who comes first.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool};

use super::answer::{self, ANSWERED};
use super::apply::{Applied, Change, What, apply_unscoped};
use crate::error::{Error, Result};
use crate::fault;
use crate::ids::{CallId, TrunkId};
use crate::telephony::{AnsweredBy, CallEvent, CallStatus, Outcome, Reason};

/// How an event came to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
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

#[derive(Serialize)]
struct StoredEvent<'a> {
    n: usize,
    call_id: CallId,
    trunk_id: TrunkId,
    source: Source,
    dedup_key: &'a str,
    carrier_call_id: Option<&'a str>,
    status: Option<CallStatus>,
    outcome: Option<Outcome>,
    reason: Option<Reason>,
    carrier_status: Option<&'a str>,
    carrier_code: Option<&'a str>,
    sip_code: Option<i32>,
    answered_by: Option<AnsweredBy>,
    duration_seconds: Option<i32>,
    price: Option<Decimal>,
    currency: Option<&'a str>,
    recording_url: Option<&'a str>,
    occurred_at: Option<DateTime<Utc>>,
}

/// Writes events down in one statement. An event that is known already is not written again.
/// Answers, for each event in order, whether its call exists.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database; nothing is written then.
pub async fn append_unscoped(db: &mut PgConnection, events: &[NewEvent]) -> Result<Vec<bool>> {
    let stored: Vec<StoredEvent<'_>> = events
        .iter()
        .enumerate()
        .map(|(n, new)| StoredEvent {
            n,
            call_id: new.call,
            trunk_id: new.trunk,
            source: new.source,
            dedup_key: &new.event.dedup_key,
            carrier_call_id: new.event.carrier_call_id.as_deref(),
            status: new.event.status,
            outcome: new.event.outcome,
            reason: new.event.reason,
            carrier_status: new.event.carrier_status.as_deref(),
            carrier_code: new.event.carrier_code.as_deref(),
            sip_code: new.event.sip_code,
            answered_by: new.event.answered_by,
            duration_seconds: new.event.duration_seconds,
            price: new.event.price,
            currency: new.event.currency.as_deref(),
            recording_url: new.event.recording_url.as_deref(),
            occurred_at: new.event.occurred_at,
        })
        .collect();
    let found = sqlx::query_file_scalar!("src/calls/append.sql", serde_json::to_value(&stored)?)
        .fetch_all(db)
        .await?;
    let mut known = vec![false; events.len()];
    for n in found {
        if let Some(slot) = usize::try_from(n).ok().and_then(|n| known.get_mut(n)) {
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
