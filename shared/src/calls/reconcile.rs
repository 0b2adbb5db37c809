//! Stale calls: create requests without an answer, and calls without recent events. Neither is
//! dialled again; the carrier is asked about both until there is evidence.
//!
//! The carrier's answers are appended to the inbox like any callback, so a call moves in one way
//! only. A call without any evidence ends as `lost`.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};

use crate::platform::e164::E164;
use crate::platform::error::Result;
use crate::platform::ids::{CallId, OrgId, TrunkId};
use crate::telephony::{CallEvent, CallStatus, Outcome, Reason};

/// Time in `submitting` after which the worker that should have sent the request is presumed
/// dead. It is longer than a worker may hold a call ([`HOLD_LIMIT`]) plus its HTTP timeout.
pub const SUBMIT_TIMEOUT: TimeDelta = TimeDelta::seconds(30);
/// Longest time a worker may hold a claimed call before it must give it back unsent.
pub const MAX_CLAIM_AGE: std::time::Duration = std::time::Duration::from_secs(10);
/// Longest time an accepted call may have no event beyond its ring time or its longest talk.
const STALE_AFTER_SECS: i32 = 60;
/// Longest time a direct call may wait for its slot; then it expires.
const QUEUE_TIMEOUT: TimeDelta = TimeDelta::minutes(15);

/// A call to look up at its carrier.
#[derive(Clone, Debug)]
pub struct StaleCall {
    pub id: CallId,
    pub org: OrgId,
    pub trunk: TrunkId,
    pub status: CallStatus,
    pub carrier_call_id: Option<String>,
    pub to: E164,
    pub from: E164,
    pub submitted_at: DateTime<Utc>,
    /// Time after which no evidence means `lost`.
    pub deadline: DateTime<Utc>,
}

/// Marks calls `unknown` whose worker is presumed dead.
pub async fn abandon_submissions_unscoped(db: &mut PgConnection) -> Result<u64> {
    let updated = sqlx::query!(
        "with abandoned as (
             select id
             from calls
             where live
               and status = 'submitting'
               and submitted_at < now() - make_interval(secs => $1)
             order by id
             for update skip locked
         )
         update calls c
         set status = 'unknown', check_at = now(), changed_at = now(),
             error_message = 'the worker died while it placed this call'
         from abandoned a
         where c.id = a.id",
        SUBMIT_TIMEOUT.as_seconds_f64(),
    )
    .execute(db)
    .await?;

    Ok(updated.rows_affected())
}

/// Claims stale calls for a look-up at their carrier. One worker gets each call, and the call is
/// due again after `again_in` unless it has moved by then.
pub async fn claim_stale_unscoped(
    pool: &PgPool,
    most: i64,
    again_in: TimeDelta,
    unknown_deadline: TimeDelta,
) -> Result<Vec<StaleCall>> {
    let rows = sqlx::query!(
        r#"with due as (
               select c.id
               from calls c
               join trunks t on t.id = c.trunk_id
               join agents a on a.id = c.agent_id
               where c.live
                 and not exists (select from call_events e where e.call_id = c.id and e.applied_at is null)
                 and (c.status = 'unknown' and c.check_at <= now()
                      or c.status in ('accepted', 'dialing', 'ringing', 'canceling')
                         and c.changed_at < now() - make_interval(secs => t.ring_timeout_secs + $4)
                         and coalesce(c.check_at, now()) <= now()
                      or c.status = 'in_progress'
                         and c.changed_at < now() - make_interval(secs => a.session_timeout_secs + $4)
                         and coalesce(c.check_at, now()) <= now())
               order by coalesce(c.check_at, c.changed_at)
               limit $1
               for update of c skip locked
           )
           update calls c
           set check_at = now() + make_interval(secs => $2)
           from due d, trunks t
           where c.id = d.id
             and t.id = c.trunk_id
           returning c.id as "id: CallId", c.org_id as "org_id: OrgId", c.trunk_id as "trunk_id: TrunkId",
                     c.status as "status: CallStatus", c.carrier_call_id, c.to_number as "to_number: E164",
                     c.from_number as "from_number: E164", c.submitted_at as "submitted_at!",
                     c.submitted_at + make_interval(secs => t.ring_timeout_secs + $3) as "deadline!""#,
        most,
        again_in.as_seconds_f64(),
        i32::try_from(unknown_deadline.num_seconds()).unwrap_or(i32::MAX / 2),
        STALE_AFTER_SECS,
    )
    .fetch_all(pool)
    .await?;

    Ok(rows
        .into_iter()
        .map(|row| StaleCall {
            id: row.id,
            org: row.org_id,
            trunk: row.trunk_id,
            status: row.status,
            carrier_call_id: row.carrier_call_id,
            to: row.to_number,
            from: row.from_number,
            submitted_at: row.submitted_at,
            deadline: row.deadline,
        })
        .collect())
}

/// Selects those of the carrier's call ids that belong to one of our calls already.
pub async fn bound_carrier_ids_unscoped(
    pool: &PgPool,
    trunk: TrunkId,
    carrier_call_ids: &[String],
) -> Result<Vec<String>> {
    let bound = sqlx::query_scalar!(
        r#"select carrier_call_id as "carrier_call_id!"
           from calls
           where trunk_id = $1
             and carrier_call_id = any($2)"#,
        trunk as TrunkId,
        carrier_call_ids,
    )
    .fetch_all(pool)
    .await?;
    Ok(bound)
}

/// Builds the event that ends a call without evidence, or one with a carrier's id that the carrier
/// no longer knows.
#[must_use]
pub fn lost_event(carrier_call_id: Option<String>, now: DateTime<Utc>) -> CallEvent {
    CallEvent {
        carrier_call_id,
        dedup_key: "lost".to_owned(),
        status: Some(CallStatus::Final),
        outcome: Some(Outcome::Lost),
        reason: Some(Reason::NoFinalStatus),
        occurred_at: Some(now),
        ..CallEvent::default()
    }
}

/// Numbers of calls that were ended unsent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReleasedCalls {
    pub canceled: u64,
    pub expired: u64,
}

/// Cancels deferred calls of batches or trunks that do not run, so that their rows can be dialled
/// again, and expires direct calls that waited too long.
pub async fn release_unsent_unscoped(db: &mut PgConnection) -> Result<ReleasedCalls> {
    // 1. Cancel deferred calls, settle them, and give their rows back.
    let canceled = sqlx::query_scalar!(
        r#"with unwanted as (
             select c.id, c.row_id
             from calls c
             join call_batches b on b.id = c.batch_id
             join trunks t on t.id = c.trunk_id
             where c.deferred
               and (b.status <> 'in_progress' or t.status <> 'active')
             order by c.id
             for update of c skip locked
         ),
         ended as (
             update calls c
             set status = 'final', outcome = 'canceled', reason = 'canceled', ended_at = now(), changed_at = now(),
                 error_message = 'given back unsent because the batch or its trunk is not running'
             from unwanted u
             where c.id = u.id
             returning c.id
         ),
         due as (
             insert into charges_due (call_id)
             select id from ended
         ),
         given_back as (
             update batch_data d
             set status = 'not_started', due_at = now(), updated_at = now()
             from unwanted u
             where d.id = u.row_id
               and d.status = 'calling'
         )
         select count(*) as "calls!" from ended"#,
    )
    .fetch_one(&mut *db)
    .await?;

    // 2. Expire direct calls.
    let expired = sqlx::query!(
        "with ended as (
             update calls
             set status = 'final', outcome = 'expired', reason = 'expired', ended_at = now(), changed_at = now(),
                 error_message = 'the call waited too long for its slot and was dropped'
             where batch_id is null
               and (queued or deferred)
               and created_at < now() - make_interval(secs => $1)
             returning id
         )
         insert into charges_due (call_id)
         select id from ended",
        QUEUE_TIMEOUT.as_seconds_f64(),
    )
    .execute(db)
    .await?;

    Ok(ReleasedCalls {
        canceled: u64::try_from(canceled).unwrap_or(0),
        expired: expired.rows_affected(),
    })
}
