//! Records the results of create requests, many in one transaction.
//!
//! During a database outage results wait in memory. A result whose values the database rejects
//! is recorded as unknown. If the process dies with unrecorded results, their calls are found in
//! `submitting` and resolved by evidence.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use peal_shared::bells::Bell;
use peal_shared::calls::apply::{Applied, Change, What, apply_unscoped};
use peal_shared::calls::claim::Claimed;
use peal_shared::campaigns::lifecycle;
use peal_shared::context::Context;
use peal_shared::fault;
use peal_shared::ids::{BatchId, CallId, TrunkId};
use peal_shared::telephony::{CallEvent, CallStatus, Outcome, Placement, Reason};
use peal_shared::traces::Began;
use peal_shared::trunks;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::inbox::{hang_up_foreign, note_ends};

/// Maximum of results in one transaction.
const GROUP_LIMIT: usize = 512;
/// Time in which a small group gathers more results, so that a hundred calls a second do not need
/// a hundred transactions.
const GATHER: Duration = Duration::from_millis(25);
/// Size from which a group is recorded without waiting.
const COMPANY: usize = 32;
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);
/// Longest backoff of a call that the carrier keeps deferring.
const DEFER_CAP_SECS: i64 = 60;
/// Longest `Retry-After` of a carrier that is honoured.
const ASKED_CAP_SECS: i64 = 3600;
/// Deferral of a call whose refusal paused its trunk or batch.
const PAUSED_SECS: i64 = 5;

/// Result of one create request.
#[derive(Debug)]
pub struct Result {
    pub trunk: TrunkId,
    pub call: CallId,
    pub batch: Option<BatchId>,
    pub submit_count: i32,
    pub placement: Placement,
}

impl Result {
    /// A call that was claimed and never sent.
    #[must_use]
    pub fn unsent(trunk: TrunkId, call: &Claimed) -> Self {
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
struct Measures {
    throttled: HashSet<TrunkId>,
    pause_trunks: HashMap<TrunkId, String>,
    pause_batches: HashMap<BatchId, String>,
}

/// The task that records placements.
pub struct Recorder {
    context: Arc<Context>,
}

impl Recorder {
    /// Creates a recorder.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Records until every sender of results is dropped.
    pub async fn run(self, mut results: mpsc::Receiver<Result>) {
        let mut group = Vec::new();
        while results.recv_many(&mut group, GROUP_LIMIT).await > 0 {
            if group.len() < COMPANY {
                sleep(GATHER).await;
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
    async fn record_all(&self, group: Vec<Result>) {
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
    async fn record_through_outages(&self, group: &[Result]) -> peal_shared::Result<()> {
        let mut measures = Measures::default();
        let now = self.context.clock.now();
        let began = self.context.traces.begin();

        let changes: Vec<Change> = group
            .iter()
            .map(|result| Change {
                call: result.call,
                what: judge(result, &mut measures),
            })
            .collect();

        // 1. Record the calls.
        loop {
            match self.record(&changes, now).await {
                Ok(applied) => {
                    self.announce(applied, began);
                    break;
                }
                Err(error) if error.is_data_fault() => return Err(error),
                Err(error) => {
                    tracing::error!(%error, results = group.len(), "placements cannot be recorded; retrying");
                    sleep(OUTAGE_PAUSE).await;
                }
            }
        }

        // 2. Pause trunks and batches, after the commit: they are locked before calls elsewhere.
        while let Err(error) = self.take(&measures).await {
            tracing::error!(%error, "a trunk or batch cannot be paused; retrying");
            sleep(OUTAGE_PAUSE).await;
        }
        Ok(())
    }

    async fn record(&self, changes: &[Change], now: DateTime<Utc>) -> peal_shared::Result<Applied> {
        let mut db = self.context.pool.begin().await?;
        let applied = apply_unscoped(&mut db, changes, now).await?;
        fault::point("record.uncommitted");
        db.commit().await?;
        fault::point("record.committed");
        Ok(applied)
    }

    /// Slows down and pauses trunks and batches, outside the calls' transaction: trunks and
    /// batches are locked before calls elsewhere.
    async fn take(&self, measures: &Measures) -> peal_shared::Result<()> {
        let mut db = self.context.pool.acquire().await?;
        for trunk in &measures.throttled {
            trunks::push_back_unscoped(&mut db, *trunk).await?;
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
    fn announce(&self, applied: Applied, began: Option<Began>) {
        note_ends(&self.context, &applied, began);
        if !applied.finals.is_empty() {
            self.context.bells.ring(Bell::Dial);
            self.context.bells.ring(Bell::Settle);
        }
        for batch in applied.completed {
            tracing::info!(batch.id = %batch, "batch completed");
        }
        hang_up_foreign(&self.context, applied.foreign);
    }
}

/// Maps a placement to the update of its call. A refusal that is the trunk's or the batch's fault
/// pauses the trunk or batch and costs no row its attempt.
fn judge(result: &Result, measures: &mut Measures) -> What {
    match &result.placement {
        Placement::Accepted {
            carrier_call_id,
            carrier_status,
        } => What::Event(CallEvent {
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
                        unnumbered(message)
                    );
                    measures.pause_trunks.insert(result.trunk, why);
                    defer(result, PAUSED_SECS)
                }
                (Reason::CallerId, Some(batch)) => {
                    let why = format!("the carrier refuses the caller number (code {code})");
                    measures.pause_batches.insert(batch, why);
                    defer(result, PAUSED_SECS)
                }
                _ => What::Event(CallEvent {
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
            let asked = asked.map(|secs| secs.min(ASKED_CAP_SECS));
            defer(result, asked.unwrap_or(doubling.min(DEFER_CAP_SECS)))
        }

        Placement::Unknown { detail } => {
            tracing::warn!(call.id = %result.call, "the result of a create request is unknown");
            What::Unknown {
                submit_count: result.submit_count,
                detail: format!("the carrier's answer was lost: {}", unnumbered(detail)),
            }
        }
    }
}

fn defer(result: &Result, secs: i64) -> What {
    What::Deferred {
        submit_count: result.submit_count,
        pause: TimeDelta::seconds(secs),
    }
}

/// A carrier's message without anything that could be a phone number, for owners and logs.
fn unnumbered(text: &str) -> String {
    text.split_whitespace()
        .map(|word| {
            let digits = word.chars().filter(char::is_ascii_digit).count();
            if digits >= 7 { "[number]" } else { word }
        })
        .take(40)
        .collect::<Vec<_>>()
        .join(" ")
}
