//! Records the results of create requests, many in one transaction.
//!
//! During a database outage results wait in memory. A result whose values the database rejects
//! is recorded as unknown. If the process dies with unrecorded results, their calls are found in
//! `submitting` and resolved by evidence.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use peal_shared::calls::apply::{AppliedUpdates, CallUpdate, UpdateKind, apply_unscoped};
use peal_shared::calls::claim::ClaimedCall;
use peal_shared::campaigns::lifecycle;
use peal_shared::context::Context;
use peal_shared::platform::failpoint;
use peal_shared::platform::ids::{BatchId, CallId, TrunkId};
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::telephony::{CallEvent, CallStatus, Outcome, Placement, Reason};
use peal_shared::traces::StepStart;
use peal_shared::trunks;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::events::{hang_up_duplicates, record_ends};

/// Maximum of results in one transaction.
const GROUP_LIMIT: usize = 512;
/// Time in which a small group gathers more results, so that a hundred calls a second do not need
/// a hundred transactions.
const GATHER_TIME: Duration = Duration::from_millis(25);
/// Size from which a group is recorded without waiting.
const MIN_GROUP: usize = 32;
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);
/// Longest backoff of a call that the carrier keeps deferring.
const DEFER_CAP_SECS: i64 = 60;
/// Longest `Retry-After` of a carrier that is honoured.
const RETRY_AFTER_CAP_SECS: i64 = 3600;
/// Deferral of a call whose refusal paused its trunk or batch.
const PAUSED_DEFER_SECS: i64 = 5;

/// Result of one create request.
#[derive(Debug)]
pub struct PlacementResult {
    pub trunk: TrunkId,
    pub call: CallId,
    pub batch: Option<BatchId>,
    pub submit_count: i32,
    pub placement: Placement,
}

impl PlacementResult {
    /// A call that was claimed and never sent.
    #[must_use]
    pub fn unsent(trunk: TrunkId, call: &ClaimedCall) -> Self {
        Self {
            trunk,
            call: call.id,
            batch: call.batch,
            submit_count: call.submit_count,
            placement: Placement::Deferred {
                proof: "never sent".to_owned(),
                retry_after_secs: Some(0),
                throttled: false,
            },
        }
    }
}

/// Trunks and batches to slow down or pause because of a group of results.
#[derive(Default)]
struct FollowUpActions {
    throttled: HashSet<TrunkId>,
    pause_trunks: HashMap<TrunkId, String>,
    pause_batches: HashMap<BatchId, String>,
}

/// The task that records placements.
pub struct PlacementRecorder {
    context: Arc<Context>,
}

impl PlacementRecorder {
    /// Creates a recorder.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Records until every sender of results is dropped.
    pub async fn run(self, mut results: mpsc::Receiver<PlacementResult>) {
        let mut group = Vec::new();
        while results.recv_many(&mut group, GROUP_LIMIT).await > 0 {
            if group.len() < MIN_GROUP {
                sleep(GATHER_TIME).await;
                while group.len() < GROUP_LIMIT
                    && let Ok(result) = results.try_recv()
                {
                    group.push(result);
                }
            }
            self.record_all(std::mem::take(&mut group)).await;
        }
    }

    /// Records a group; when the database rejects its values, each result alone; and a result
    /// that is rejected even alone as unknown.
    async fn record_all(&self, group: Vec<PlacementResult>) {
        let Err(refused) = self.record_through_outages(&group).await else {
            return;
        };

        tracing::error!(error = %refused, results = group.len(), "placements are rejected; recording each alone");
        for mut result in group {
            if self
                .record_through_outages(std::slice::from_ref(&result))
                .await
                .is_ok()
            {
                continue;
            }
            result.placement = Placement::Unknown {
                detail: "the carrier's answer could not be stored".to_owned(),
            };
            if let Err(error) = self.record_through_outages(&[result]).await {
                tracing::error!(%error, "a placement could not be recorded; it will be reconciled");
            }
        }
    }

    /// Retries until the database accepts or rejects the group.
    async fn record_through_outages(&self, group: &[PlacementResult]) -> peal_shared::Result<()> {
        let mut measures = FollowUpActions::default();
        let now = self.context.clock.now();
        let began = self.context.traces.begin();

        let changes: Vec<CallUpdate> = group
            .iter()
            .map(|result| CallUpdate {
                call: result.call,
                kind: placement_update(result, &mut measures),
            })
            .collect();

        // 1. Record the calls.
        loop {
            match self.record(&changes, now).await {
                Ok(applied) => {
                    self.notify_applied(applied, began);
                    break;
                }
                Err(error) if error.is_invalid_data() => return Err(error),
                Err(error) => {
                    tracing::error!(%error, results = group.len(), "placements cannot be recorded; retrying");
                    sleep(OUTAGE_PAUSE).await;
                }
            }
        }

        // 2. Pause trunks and batches, after the commit: they are locked before calls elsewhere.
        while let Err(error) = self.apply_follow_ups(&measures).await {
            tracing::error!(%error, "a trunk or batch cannot be paused; retrying");
            sleep(OUTAGE_PAUSE).await;
        }
        Ok(())
    }

    async fn record(
        &self,
        changes: &[CallUpdate],
        now: DateTime<Utc>,
    ) -> peal_shared::Result<AppliedUpdates> {
        let mut db = self.context.pool.begin().await?;
        let applied = apply_unscoped(&mut db, changes, now).await?;
        failpoint::hit("record.uncommitted");
        db.commit().await?;
        failpoint::hit("record.committed");
        Ok(applied)
    }

    /// Slows down and pauses trunks and batches, outside the calls' transaction: trunks and
    /// batches are locked before calls elsewhere.
    async fn apply_follow_ups(&self, measures: &FollowUpActions) -> peal_shared::Result<()> {
        let mut db = self.context.pool.acquire().await?;
        for trunk in &measures.throttled {
            trunks::throttle_unscoped(&mut db, *trunk).await?;
        }
        for (trunk, why) in &measures.pause_trunks {
            tracing::error!(trunk.id = %trunk, why, "trunk paused");
            trunks::pause_unscoped(&mut db, *trunk, why).await?;
        }
        for (batch, why) in &measures.pause_batches {
            tracing::warn!(batch.id = %batch, why, "batch paused");
            lifecycle::pause_unscoped(&mut db, *batch, why).await?;
        }
        Ok(())
    }

    /// Counts, logs and wakes up after the commit.
    fn notify_applied(&self, applied: AppliedUpdates, began: Option<StepStart>) {
        record_ends(&self.context, &applied, began);
        if !applied.ended.is_empty() {
            self.context.wakeups.notify(WakeupChannel::Dial);
            self.context.wakeups.notify(WakeupChannel::Settle);
        }
        for batch in applied.completed {
            tracing::info!(batch.id = %batch, "batch completed");
        }
        hang_up_duplicates(&self.context, applied.duplicates);
    }
}

/// Maps a placement to the update of its call. A refusal that is the trunk's or the batch's fault
/// pauses the trunk or batch and costs no row its attempt.
fn placement_update(result: &PlacementResult, measures: &mut FollowUpActions) -> UpdateKind {
    match &result.placement {
        Placement::Accepted {
            carrier_call_id,
            carrier_status,
        } => UpdateKind::Event(CallEvent {
            carrier_call_id: Some(carrier_call_id.clone()),
            status: Some(CallStatus::Accepted),
            carrier_status: Some(carrier_status.clone()),
            ..CallEvent::default()
        }),

        Placement::Refused {
            reason,
            code,
            message,
        } => {
            tracing::info!(call.id = %result.call, reason = reason.as_str(), code, "the carrier refused a call");
            match (reason, result.batch) {
                (Reason::Auth | Reason::Funds, _) => {
                    let why = format!(
                        "the carrier refuses the account (code {code}): {}",
                        redact_numbers(message)
                    );
                    measures.pause_trunks.insert(result.trunk, why);
                    defer(result, PAUSED_DEFER_SECS)
                }
                (Reason::CallerId, Some(batch)) => {
                    let why = format!("the carrier refuses the caller number (code {code})");
                    measures.pause_batches.insert(batch, why);
                    defer(result, PAUSED_DEFER_SECS)
                }
                _ => UpdateKind::Event(CallEvent {
                    status: Some(CallStatus::Final),
                    outcome: Some(Outcome::Failed),
                    reason: Some(*reason),
                    carrier_code: Some(code.clone()),
                    ..CallEvent::default()
                }),
            }
        }

        Placement::Deferred {
            retry_after_secs,
            throttled,
            ..
        } => {
            if *throttled {
                measures.throttled.insert(result.trunk);
            }

            let doubling = 1_i64
                .checked_shl(u32::try_from(result.submit_count).unwrap_or(0).min(6))
                .unwrap_or(1);
            let asked = retry_after_secs.and_then(|secs| i64::try_from(secs).ok());
            let asked = asked.map(|secs| secs.min(RETRY_AFTER_CAP_SECS));
            defer(result, asked.unwrap_or(doubling.min(DEFER_CAP_SECS)))
        }

        Placement::Unknown { detail } => {
            tracing::warn!(call.id = %result.call, "the result of a create request is unknown");
            UpdateKind::Unknown {
                submit_count: result.submit_count,
                detail: format!("the carrier's answer was lost: {}", redact_numbers(detail)),
            }
        }
    }
}

fn defer(result: &PlacementResult, secs: i64) -> UpdateKind {
    UpdateKind::Deferred {
        submit_count: result.submit_count,
        pause: TimeDelta::seconds(secs),
    }
}

/// A carrier's message without anything that could be a phone number, for owners and logs.
fn redact_numbers(text: &str) -> String {
    text.split_whitespace()
        .map(|word| {
            let digits = word.chars().filter(char::is_ascii_digit).count();
            if digits >= 7 { "[number]" } else { word }
        })
        .take(40)
        .collect::<Vec<_>>()
        .join(" ")
}
