//! Progress of a batch: exact counts, rate, estimated time left, and the reason while nothing is
//! dialled.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use super::batches::{Batch, BatchStatus, find};
use crate::access::Scope;
use crate::platform::error::Result;
use crate::platform::ids::BatchId;
use crate::trunks;
use crate::wallets::holds::Refusal;

/// Window over which the rate is measured.
const RATE_WINDOW_SECS: i32 = 10;

/// Rows by status; they add up to `total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct StatusCounts {
    pub not_started: i64,
    pub calling: i64,
    pub completed: i64,
    pub failed: i64,
    pub no_answer: i64,
    pub total: i64,
}

/// The reason why nothing is dialled at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = Waiting)]
pub struct WaitingReason {
    pub code: &'static str,
    pub message: String,
    /// Time at which dialling continues, where known.
    pub until: Option<DateTime<Utc>>,
}

/// The state of a batch at one moment.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Snapshot)]
pub struct BatchSnapshot {
    pub status: BatchStatus,
    pub status_reason: Option<String>,
    pub status_counts: StatusCounts,
    /// Calls started per second over the last ten.
    pub calls_per_second: f64,
    /// Seconds until the last row, at this rate.
    pub eta_seconds: Option<f64>,
    /// None while calls are being started, or when there is nothing left to start.
    pub waiting: Option<WaitingReason>,
}

/// Counts a batch's rows by status.
///
/// # Errors
/// [`crate::Error::NotFound`] for a batch outside the scope.
pub async fn counts(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
) -> Result<(Batch, StatusCounts)> {
    let batch = find(db, scope, id).await?;
    let counts = sqlx::query_as!(
        StatusCounts,
        r#"select not_started, calling, completed, failed, no_answer,
                  not_started + calling + completed + failed + no_answer as "total!"
           from batch_progress
           where batch_id = $1"#,
        id as BatchId,
    )
    .fetch_one(db)
    .await?;
    Ok((batch, counts))
}

/// Reads the whole state of a batch.
///
/// # Errors
/// As [`counts`].
#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
pub async fn snapshot(db: &mut PgConnection, scope: &Scope, id: BatchId) -> Result<BatchSnapshot> {
    // 1. Count rows, and calls of the last seconds.
    let (batch, counts) = counts(db, scope, id).await?;
    let started = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from calls
           where batch_id = $1
             and created_at > now() - make_interval(secs => $2)"#,
        id as BatchId,
        f64::from(RATE_WINDOW_SECS),
    )
    .fetch_one(&mut *db)
    .await?;
    let rate = started as f64 / f64::from(RATE_WINDOW_SECS);
    let left = counts.not_started;
    let dialling = batch.status == BatchStatus::InProgress && left > 0;
    let starting = started > 0 && batch.status == BatchStatus::InProgress;

    // 2. Find the reason for waiting. A row whose call is not sent yet waits like one without.
    let waiting = if starting || left + counts.calling == 0 {
        None
    } else {
        waiting_reason(db, &batch).await?
    };

    Ok(BatchSnapshot {
        status: batch.status,
        status_reason: batch.status_reason,
        status_counts: counts,
        calls_per_second: rate,
        eta_seconds: (dialling && rate > 0.0).then(|| left as f64 / rate),
        waiting,
    })
}

struct WaitingFacts {
    launched: bool,
    starved: Option<Refusal>,
    trunk_active: bool,
    trunk_reason: Option<String>,
    has_pacer: bool,
    trunk_live: i64,
    trunk_limit: Option<i32>,
    org_live: i64,
    org_limit: i32,
    batch_live: i64,
    under_way: i64,
    deferred_until: Option<DateTime<Utc>>,
    rows_left: bool,
    due: bool,
    next_due: Option<DateTime<Utc>>,
    busy: bool,
    slowdown: Option<f64>,
    next_slot: Option<DateTime<Utc>>,
    pace_used: bool,
}

async fn waiting_reason(db: &mut PgConnection, batch: &Batch) -> Result<Option<WaitingReason>> {
    let waiting = |code, message: String, until| {
        Some(WaitingReason {
            code,
            message,
            until,
        })
    };
    let reason = batch.status_reason.clone().unwrap_or_default();

    Ok(match batch.status {
        BatchStatus::InProgress => {
            let facts = sqlx::query_file_as!(
                WaitingFacts,
                "src/campaigns/waiting_facts.sql",
                batch.id as BatchId
            )
            .fetch_one(db)
            .await?;
            (facts.under_way == 0 || facts.rows_left)
                .then(|| first_obstacle(&facts, batch.batch_size))
        }
        BatchStatus::Paused => waiting(
            batch.status_reason_code.map_or("paused", Refusal::code),
            format!("the batch is paused: {reason}"),
            None,
        ),
        BatchStatus::Stopped => {
            waiting("stopped", format!("the batch was stopped: {reason}"), None)
        }
        BatchStatus::NotStarted => waiting(
            "not_started",
            "the batch has not been started".to_owned(),
            None,
        ),
        BatchStatus::Scheduled => waiting(
            "scheduled",
            "the batch waits for its start time".to_owned(),
            None,
        ),
        BatchStatus::Completed => None,
    })
}

/// Reports the first obstacle between a row and its call.
fn first_obstacle(facts: &WaitingFacts, batch_size: i32) -> WaitingReason {
    let first = obstacles(facts, batch_size)
        .into_iter()
        .find(|(applies, ..)| *applies);
    let (_, code, message) = first.unwrap_or((
        true,
        "waiting_for_worker",
        "rows are due and slots are free: no worker with the role dial has claimed them yet"
            .to_owned(),
    ));
    WaitingReason {
        code,
        message,
        until: obstacle_end(code, facts),
    }
}

/// Lists all obstacles in the order in which they must be cleared: true when one applies, its
/// code, and a sentence for the batch's owner.
fn obstacles(facts: &WaitingFacts, batch_size: i32) -> Vec<(bool, &'static str, String)> {
    let text = |text: &str| text.to_owned();

    let org_limit = facts.org_limit;
    let trunk_full = facts
        .trunk_limit
        .is_some_and(|limit| facts.trunk_live >= i64::from(limit));

    vec![
        // The batch and its trunk.
        (!facts.launched, "starting", text("the batch is starting")),
        (
            !facts.trunk_active,
            "trunk_paused",
            trunks::paused_message(facts.trunk_reason.as_deref()),
        ),
        (
            !facts.has_pacer,
            "no_pacer",
            text("the trunk has no pacer: set its cps again"),
        ),
        // Its rows.
        (
            !facts.rows_left && facts.deferred_until.is_some(),
            "deferred",
            text("the carrier did not accept the last calls; they will be sent again"),
        ),
        (
            facts.starved.is_some(),
            facts.starved.map_or("", Refusal::code),
            text(facts.starved.map_or("", Refusal::message)),
        ),
        (
            !facts.due,
            "retry_later",
            text("the remaining rows wait for their next attempt"),
        ),
        // Limits of live calls.
        (
            facts.batch_live >= i64::from(batch_size),
            "batch_size",
            format!("all {batch_size} concurrent calls of the batch are in use (batch_size)"),
        ),
        (
            facts.org_live >= i64::from(org_limit),
            "organization_limit",
            format!("all {org_limit} concurrent calls of the organization are in use"),
        ),
        (
            trunk_full,
            "trunk_limit",
            text("all concurrent calls of the trunk are in use"),
        ),
        (
            facts.busy,
            "number_busy",
            text("the due numbers are on another call of the organization"),
        ),
        // The trunk's pace.
        (
            facts.slowdown.is_some_and(|slowdown| slowdown > 1.5),
            "carrier_pushback",
            text("the carrier rejects the pace; dialling continues more slowly"),
        ),
        (
            facts.pace_used,
            "pace",
            text("all of the trunk's calls per second are in use"),
        ),
    ]
}

/// Time at which an obstacle goes away by itself, where known.
fn obstacle_end(code: &str, facts: &WaitingFacts) -> Option<DateTime<Utc>> {
    match code {
        "retry_later" => facts.next_due,
        "deferred" => facts.deferred_until,
        "carrier_pushback" | "pace" | "waiting_for_worker" => facts.next_slot,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH_SIZE: i32 = 5;

    fn at(secs: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(1_700_000_000 + secs, 0)
    }

    /// A batch with due rows, on a trunk with free slots.
    fn free() -> WaitingFacts {
        WaitingFacts {
            launched: true,
            starved: None,
            trunk_active: true,
            trunk_reason: None,
            has_pacer: true,
            trunk_live: 3,
            trunk_limit: Some(10),
            org_live: 3,
            org_limit: 100,
            batch_live: 3,
            under_way: 0,
            deferred_until: None,
            rows_left: true,
            due: true,
            next_due: at(0),
            busy: false,
            slowdown: Some(1.0),
            next_slot: at(7),
            pace_used: false,
        }
    }

    #[test]
    fn each_obstacle_is_reported_with_its_end_before_the_later_ones() {
        type ObstacleStep = (fn(&mut WaitingFacts), &'static str, Option<i64>);

        // From the last obstacle to the first, each added to the ones before.
        let steps: [ObstacleStep; 13] = [
            (|_| {}, "waiting_for_worker", Some(7)),
            (|facts| facts.pace_used = true, "pace", Some(7)),
            (
                |facts| facts.slowdown = Some(1.6),
                "carrier_pushback",
                Some(7),
            ),
            (|facts| facts.busy = true, "number_busy", None),
            (|facts| facts.trunk_live = 10, "trunk_limit", None),
            (|facts| facts.org_live = 100, "organization_limit", None),
            (|facts| facts.batch_live = 5, "batch_size", None),
            (
                |facts| (facts.due, facts.next_due) = (false, at(60)),
                "retry_later",
                Some(60),
            ),
            (
                |facts| facts.starved = Some(Refusal::InsufficientCredits),
                "insufficient_credits",
                None,
            ),
            (
                |facts| (facts.rows_left, facts.deferred_until) = (false, at(9)),
                "deferred",
                Some(9),
            ),
            (|facts| facts.has_pacer = false, "no_pacer", None),
            (|facts| facts.trunk_active = false, "trunk_paused", None),
            (|facts| facts.launched = false, "starting", None),
        ];

        let mut facts = free();
        for (apply, code, until) in steps {
            apply(&mut facts);
            let waiting = first_obstacle(&facts, BATCH_SIZE);
            assert_eq!((waiting.code, waiting.until), (code, until.and_then(at)));
            assert!(!waiting.message.is_empty(), "{code}");
        }
    }

    #[test]
    fn a_trunk_that_is_nearly_full_or_slow_is_no_obstacle() {
        let facts = WaitingFacts {
            trunk_live: 9,
            org_live: 99,
            batch_live: 4,
            slowdown: Some(1.5),
            deferred_until: at(9),
            ..free()
        };
        assert_eq!(
            first_obstacle(&facts, BATCH_SIZE).code,
            "waiting_for_worker"
        );
        let unlimited = WaitingFacts {
            trunk_limit: None,
            slowdown: None,
            ..free()
        };
        assert_eq!(
            first_obstacle(&unlimited, BATCH_SIZE).code,
            "waiting_for_worker"
        );
    }
}
