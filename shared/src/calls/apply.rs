//! Moves calls, their rows and their batches, in bulk and in one transaction.
//!
//! Applies every change of a call after its claim: a carrier's event (from the inbox) and the
//! result of a create request (from the worker that sent it). The rules are in
//! [`super::transition`]; this file loads sets of calls, updates them and writes them back.
//!
//! Order of locks: calls by id, then rows, then the batches' counts (by trigger), then batches.
//! Wallets are not locked: a call whose end or price changed is only appended to those that
//! `billing/settle.rs` charges.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;

use super::transition::{CallProgress, EventEffect, RetryPolicy, RowVerdict, decide_row};
use crate::platform::columns::column;
use crate::platform::error::Result;
use crate::platform::ids::{BatchId, CallId, OrgId, RowId, TrunkId};
use crate::telephony::{AnsweredBy, CallEvent, CallStatus, Outcome, Reason};

/// A carrier's event, or the result of a create request, for one call.
#[derive(Clone, Debug)]
pub struct CallUpdate {
    pub call: CallId,
    pub kind: UpdateKind,
}

/// Kinds of updates.
#[derive(Clone, Debug)]
pub enum UpdateKind {
    /// An event of the carrier.
    Event(CallEvent),
    /// The create request provably did nothing; valid for this submission only.
    Deferred { submit_count: i32, pause: TimeDelta },
    /// The create request's result is unknown; valid for this submission only.
    Unknown { submit_count: i32, detail: String },
}

/// Result of a set of updates.
#[derive(Debug, Default)]
pub struct AppliedUpdates {
    /// Calls that the updates named.
    pub calls: Vec<CallId>,
    /// Calls that reached their end.
    pub ended: Vec<(CallId, Outcome)>,
    /// Batches without rows left to call.
    pub completed: Vec<BatchId>,
    /// Second carrier calls of one attempt, to be hung up.
    pub duplicates: Vec<DuplicateCall>,
}

/// A second call at the carrier for one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateCall {
    pub org: OrgId,
    pub call: CallId,
    pub trunk: TrunkId,
    pub carrier_call_id: String,
}

/// Locked calls by their ids, in the order of their locks.
type LoadedCalls = BTreeMap<CallId, LoadedCall>;

struct LoadedCall {
    org: OrgId,
    trunk: TrunkId,
    batch: Option<BatchId>,
    row: Option<RowId>,
    attempt_no: i32,
    /// Attempts of the row, this one included; those given back unsent do not count.
    attempts_made: i64,
    submit_count: i32,
    policy: RetryPolicy,
    check_at: Option<DateTime<Utc>>,
    progress: CallProgress,
    changed: bool,
    was_final: bool,
    /// Basis of its charge before these updates.
    charge_basis: ChargeBasis,
}

/// Facts that the charge of a call is computed from.
#[derive(Clone, Debug, PartialEq)]
struct ChargeBasis {
    bound: bool,
    duration_seconds: Option<i32>,
    price: Option<Decimal>,
}

impl ChargeBasis {
    fn of(progress: &CallProgress) -> Self {
        Self {
            bound: progress.carrier_call_id.is_some(),
            duration_seconds: progress.duration_seconds,
            price: progress.price,
        }
    }
}

impl LoadedCall {
    /// True when the call must be settled, or settled again.
    fn needs_settling(&self) -> bool {
        self.progress.status == CallStatus::Final
            && (!self.was_final || self.charge_basis != ChargeBasis::of(&self.progress))
    }
}

/// Applies updates, in the given order for each call. Carriers and workers have no principal.
pub async fn apply_unscoped(
    db: &mut PgConnection,
    changes: &[CallUpdate],
    now: DateTime<Utc>,
) -> Result<AppliedUpdates> {
    // 1. Lock the calls.
    let mut calls = lock_calls(db, changes).await?;
    let mut applied = AppliedUpdates {
        calls: calls.keys().copied().collect(),
        ..AppliedUpdates::default()
    };

    // 2. Apply the rules in memory.
    for change in changes {
        if let Some(call) = calls.get_mut(&change.call) {
            apply_update(call, change, now, &mut applied);
        }
    }
    calls.retain(|_, call| call.changed);

    // 3. Write the calls, then their rows, then their batches.
    store_calls(db, &calls).await?;
    let batches = store_rows(db, &calls, now, &mut applied).await?;
    applied.completed = complete_unscoped(db, &batches).await?;
    Ok(applied)
}

fn apply_update(
    call: &mut LoadedCall,
    change: &CallUpdate,
    now: DateTime<Utc>,
    applied: &mut AppliedUpdates,
) {
    match &change.kind {
        UpdateKind::Event(event) => {
            match call.progress.apply_event(event, now) {
                EventEffect::Changed => call.changed = true,
                EventEffect::Unchanged => {}
                EventEffect::DuplicateCall => {
                    call.changed = true;
                    applied.duplicates.extend(event.carrier_call_id.clone().map(
                        |carrier_call_id| DuplicateCall {
                            org: call.org,
                            call: change.call,
                            trunk: call.trunk,
                            carrier_call_id,
                        },
                    ));
                }
            }
        }

        // The row keeps this call, and the next claim may send it again.
        UpdateKind::Deferred {
            submit_count,
            pause,
        } => {
            if may_be_deferred(call, *submit_count) {
                call.progress.status = CallStatus::Deferred;
                call.progress.error_message = None;
                call.check_at = Some(now + *pause);
                call.changed = true;
            }
        }

        // Never sent again: `reconcile` looks for evidence.
        UpdateKind::Unknown {
            submit_count,
            detail,
        } => {
            if still_submitting(call, *submit_count) {
                call.progress.status = CallStatus::Unknown;
                call.progress.error_message = Some(detail.clone());
                call.check_at = Some(now);
                call.changed = true;
            }
        }
    }
}

/// True while nothing shows that this submission reached the carrier; its worker may have been
/// presumed dead already (`unknown`).
fn may_be_deferred(call: &LoadedCall, submit_count: i32) -> bool {
    let waiting = matches!(
        call.progress.status,
        CallStatus::Submitting | CallStatus::Unknown
    );
    waiting && call.submit_count == submit_count && call.progress.carrier_call_id.is_none()
}

/// True while the call waits for the result of this submission.
fn still_submitting(call: &LoadedCall, submit_count: i32) -> bool {
    call.progress.status == CallStatus::Submitting && call.submit_count == submit_count
}

async fn lock_calls(db: &mut PgConnection, changes: &[CallUpdate]) -> Result<LoadedCalls> {
    let ids: BTreeSet<CallId> = changes.iter().map(|change| change.call).collect();
    let ids: Vec<CallId> = ids.into_iter().collect();

    let rows = sqlx::query!(
        r#"select c.id as "id: CallId", c.org_id as "org_id: OrgId", c.trunk_id as "trunk_id: TrunkId",
                  c.batch_id as "batch_id: BatchId", c.row_id as "row_id: RowId", c.attempt_no, c.submit_count,
                  c.check_at, c.status as "status: CallStatus", c.outcome as "outcome: Outcome",
                  c.reason as "reason: Reason", c.error_message, c.carrier_call_id, c.carrier_status,
                  c.carrier_code, c.sip_code, c.answered_by as "answered_by: AnsweredBy", c.dialed_at,
                  c.ringing_at, c.answered_at, c.ended_at, c.duration_seconds, c.carrier_price,
                  c.carrier_currency, c.recording_url, c.conflicts,
                  b.max_retries as "max_retries?", b.retry_delay_seconds as "retry_delay_seconds?",
                  case when c.attempt_no > 1 then
                      (select count(*) from calls p where p.row_id = c.row_id and p.outcome is distinct from 'canceled')
                  else 1 end as "attempts_made!",
                  b.retry_lost as "retry_lost?", b.status in ('in_progress', 'paused') as "wanted?"
           from calls c
           left join call_batches b on b.id = c.batch_id
           where c.id = any($1)
           order by c.id
           for update of c"#,
        &ids as &[CallId],
    )
    .fetch_all(db)
    .await?;

    let loaded = rows.into_iter().map(|row| {
        let progress = CallProgress {
            status: row.status,
            outcome: row.outcome,
            reason: row.reason,
            error_message: row.error_message,
            carrier_call_id: row.carrier_call_id,
            carrier_status: row.carrier_status,
            carrier_code: row.carrier_code,
            sip_code: row.sip_code,
            answered_by: row.answered_by,
            dialed_at: row.dialed_at,
            ringing_at: row.ringing_at,
            answered_at: row.answered_at,
            ended_at: row.ended_at,
            duration_seconds: row.duration_seconds,
            price: row.carrier_price,
            currency: row.carrier_currency,
            recording_url: row.recording_url,
            conflicts: row.conflicts,
        };

        let call = LoadedCall {
            org: row.org_id,
            trunk: row.trunk_id,
            batch: row.batch_id,
            row: row.row_id,
            attempt_no: row.attempt_no,
            attempts_made: row.attempts_made,
            submit_count: row.submit_count,
            policy: RetryPolicy {
                max_retries: row.max_retries.unwrap_or(0),
                retry_delay_seconds: row.retry_delay_seconds.unwrap_or(0),
                retry_lost: row.retry_lost.unwrap_or(false),
                batch_active: row.wanted.unwrap_or(false),
            },
            check_at: row.check_at,
            was_final: row.status == CallStatus::Final,
            charge_basis: ChargeBasis::of(&progress),
            progress,
            changed: false,
        };
        (row.id, call)
    });

    Ok(loaded.collect())
}

async fn store_calls(db: &mut PgConnection, calls: &LoadedCalls) -> Result<()> {
    if calls.is_empty() {
        return Ok(());
    }
    let ids: Vec<CallId> = calls.keys().copied().collect();
    let calls: Vec<&LoadedCall> = calls.values().collect();
    let progress: Vec<&CallProgress> = calls.iter().map(|call| &call.progress).collect();

    sqlx::query_file!(
        "src/calls/store.sql",
        &ids as &[CallId],
        &column(&progress, |p| p.status) as &[CallStatus],
        &column(&progress, |p| p.outcome) as &[Option<Outcome>],
        &column(&progress, |p| p.reason) as &[Option<Reason>],
        &column(&progress, |p| p.error_message.as_deref()) as &[Option<&str>],
        &column(&progress, |p| p.carrier_call_id.as_deref()) as &[Option<&str>],
        &column(&progress, |p| p.carrier_status.as_deref()) as &[Option<&str>],
        &column(&progress, |p| p.carrier_code.as_deref()) as &[Option<&str>],
        &column(&progress, |p| p.sip_code) as &[Option<i32>],
        &column(&progress, |p| p.answered_by) as &[Option<AnsweredBy>],
        &column(&progress, |p| p.dialed_at) as &[Option<DateTime<Utc>>],
        &column(&progress, |p| p.ringing_at) as &[Option<DateTime<Utc>>],
        &column(&progress, |p| p.answered_at) as &[Option<DateTime<Utc>>],
        &column(&progress, |p| p.ended_at) as &[Option<DateTime<Utc>>],
        &column(&progress, |p| p.duration_seconds) as &[Option<i32>],
        &column(&progress, |p| p.price) as &[Option<Decimal>],
        &column(&progress, |p| p.currency.as_deref()) as &[Option<&str>],
        &column(&progress, |p| p.recording_url.as_deref()) as &[Option<&str>],
        &column(&progress, |p| p.conflicts),
        &column(&calls, |call| call.check_at) as &[Option<DateTime<Utc>>],
        &column(&calls, |call| call.needs_settling()),
    )
    .execute(db)
    .await?;

    Ok(())
}

/// New state of a row whose call ended.
struct EndedRow<'a> {
    id: RowId,
    call: &'a LoadedCall,
    status: &'static str,
    due_at: Option<DateTime<Utc>>,
}

/// Moves the rows of calls that reached their end. Returns their batches.
async fn store_rows(
    db: &mut PgConnection,
    calls: &LoadedCalls,
    now: DateTime<Utc>,
    applied: &mut AppliedUpdates,
) -> Result<Vec<BatchId>> {
    let mut rows = Vec::new();
    let mut batches = Vec::new();

    // 1. Decide about the row of each ended call.
    for (id, call) in calls {
        let Some(outcome) = call.progress.outcome else {
            continue;
        };
        if !call.was_final {
            applied.ended.push((*id, outcome));
        }
        let (Some(row), Some(batch)) = (call.row, call.batch) else {
            continue;
        };

        let verdict = decide_row(
            outcome,
            call.progress.reason,
            call.attempts_made,
            call.policy,
            now,
        );
        let (status, due_at) = match verdict {
            // The call had ended before these updates: its row has moved on already.
            RowVerdict::Retry(_) if call.was_final => continue,
            RowVerdict::Retry(due_at) => ("not_started", Some(due_at)),
            RowVerdict::Done(status) => (status, None),
        };

        batches.push(batch);
        rows.push(EndedRow {
            id: row,
            call,
            status,
            due_at,
        });
    }
    if rows.is_empty() {
        return Ok(Vec::new());
    }

    // 2. Write them; a row that has another attempt already is left alone.
    sqlx::query!(
        "update batch_data d
         set status = n.status, outcome = n.outcome, reason = n.reason, error_message = n.error_message,
             due_at = coalesce(n.due_at, d.due_at), updated_at = now()
         from unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
             as n (id, attempt_no, status, outcome, reason, error_message, due_at)
         where d.id = n.id
           and d.attempts = n.attempt_no
           and d.status <> 'not_started'",
        &column(&rows, |row| row.id) as &[RowId],
        &column(&rows, |row| row.call.attempt_no),
        &column(&rows, |row| row.status) as &[&str],
        &column(&rows, |row| row.call.progress.outcome) as &[Option<Outcome>],
        &column(&rows, |row| row.call.progress.reason) as &[Option<Reason>],
        &column(&rows, |row| row.call.progress.error_message.as_deref()) as &[Option<&str>],
        &column(&rows, |row| row.due_at) as &[Option<DateTime<Utc>>],
    )
    .execute(db)
    .await?;

    batches.sort_unstable();
    batches.dedup();
    Ok(batches)
}

/// Completes those of the batches without rows left to call.
pub async fn complete_unscoped(db: &mut PgConnection, batches: &[BatchId]) -> Result<Vec<BatchId>> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let completed = sqlx::query_scalar!(
        r#"update call_batches b
           set status = 'completed', status_reason = null, completed_at = now(), updated_at = now()
           from batch_progress p
           where b.id = any($1)
             and p.batch_id = b.id
             and b.status in ('in_progress', 'paused')
             and b.launched_at is not null
             and p.not_started = 0
             and p.calling = 0
           returning b.id as "id: BatchId""#,
        batches as &[BatchId],
    )
    .fetch_all(db)
    .await?;
    Ok(completed)
}

/// Completes every running batch whose rows are all done: the last row may have been moved by
/// something else than the end of its call.
pub async fn complete_all_finished_unscoped(db: &mut PgConnection) -> Result<Vec<BatchId>> {
    let batches = sqlx::query_scalar!(
        r#"select b.id as "id: BatchId"
           from call_batches b
           join batch_progress p on p.batch_id = b.id
           where b.status = 'in_progress'
             and b.launched_at is not null
             and p.not_started = 0
             and p.calling = 0"#,
    )
    .fetch_all(&mut *db)
    .await?;
    complete_unscoped(db, &batches).await
}
