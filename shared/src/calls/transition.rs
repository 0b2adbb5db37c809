//! Pure rules: the effect of an event on its call, and of an ended call on its row.
//!
//! A call's status only climbs (see [`CallStatus::rank`]); events that arrive late, twice or in
//! the wrong order lead to the same end as the right order. A final call is frozen: later events
//! may only add missing facts (price, recording, `answered_by`). The one exception is `lost`,
//! which means no evidence: evidence that arrives afterwards replaces it.

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;

use crate::telephony::{AnsweredBy, CallEvent, CallStatus, Outcome, Reason};

/// The part of a call that events change.
#[derive(Clone, Debug, PartialEq)]
pub struct CallProgress {
    pub status: CallStatus,
    pub outcome: Option<Outcome>,
    pub reason: Option<Reason>,
    pub error_message: Option<String>,
    pub carrier_call_id: Option<String>,
    pub carrier_status: Option<String>,
    pub carrier_code: Option<String>,
    pub sip_code: Option<i32>,
    pub answered_by: Option<AnsweredBy>,
    pub dialed_at: Option<DateTime<Utc>>,
    pub ringing_at: Option<DateTime<Utc>>,
    pub answered_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub duration_seconds: Option<i32>,
    pub price: Option<Decimal>,
    pub currency: Option<String>,
    pub recording_url: Option<String>,
    pub conflicts: i32,
}

/// Effect of an event on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventEffect {
    /// The event changed the call.
    Changed,
    /// The event added nothing.
    Unchanged,
    /// The event belongs to another call at the carrier: two exist for one attempt.
    DuplicateCall,
}

impl CallProgress {
    /// Applies an event. `now` is used where the carrier gave no time.
    pub fn apply_event(&mut self, event: &CallEvent, now: DateTime<Utc>) -> EventEffect {
        match (&self.carrier_call_id, &event.carrier_call_id) {
            (Some(bound), Some(other)) if bound != other => {
                self.conflicts += 1;
                return EventEffect::DuplicateCall;
            }
            _ => {}
        }

        let before = self.clone();
        fill_missing(&mut self.carrier_call_id, &event.carrier_call_id);
        self.enrich(event);
        if let Some(status) = event.status {
            self.advance_status(status, event, now);
        }
        if *self == before {
            EventEffect::Unchanged
        } else {
            EventEffect::Changed
        }
    }

    fn enrich(&mut self, event: &CallEvent) {
        fill_missing(&mut self.sip_code, &event.sip_code);
        fill_missing(&mut self.carrier_code, &event.carrier_code);
        fill_missing(&mut self.price, &event.price);
        fill_missing(&mut self.currency, &event.currency);
        fill_missing(&mut self.recording_url, &event.recording_url);
        if matches!(self.answered_by, None | Some(AnsweredBy::Unknown))
            && event.answered_by.is_some()
        {
            self.answered_by = event.answered_by;
        }
        if self.status == CallStatus::Final {
            fill_missing(&mut self.duration_seconds, &event.duration_seconds);
        }
        if self.outcome == Some(Outcome::Completed) && self.by_machine() {
            self.outcome = Some(Outcome::Machine);
        }
    }

    fn by_machine(&self) -> bool {
        matches!(
            self.answered_by,
            Some(AnsweredBy::Machine | AnsweredBy::Fax)
        )
    }

    fn advance_status(&mut self, status: CallStatus, event: &CallEvent, now: DateTime<Utc>) {
        let at = event.occurred_at.unwrap_or(now);
        match status {
            CallStatus::Dialing => fill_missing(&mut self.dialed_at, &Some(at)),
            CallStatus::Ringing => fill_missing(&mut self.ringing_at, &Some(at)),
            CallStatus::InProgress => fill_missing(&mut self.answered_at, &Some(at)),
            _ => {}
        }
        let nothing_known = self.status.rank() == 0 || event.carrier_call_id.is_some();
        if event.outcome == Some(Outcome::Lost) && !nothing_known {
            // Evidence arrived while the call was being given up as lost.
        } else if self.status == CallStatus::Final {
            self.merge_final(status, event, at);
        } else if status.rank() > self.status.rank() {
            self.status = status;
            overwrite(&mut self.carrier_status, event.carrier_status.as_ref());
            if status == CallStatus::Final {
                self.finish(event, at);
            }
        }
    }

    /// Merges a final event into a call that is final already.
    fn merge_final(&mut self, status: CallStatus, event: &CallEvent, at: DateTime<Utc>) {
        if status != CallStatus::Final {
            return;
        }
        if self.outcome == Some(Outcome::Lost) {
            self.finish(event, at);
        } else if event.outcome.map(without_machine) != self.outcome.map(without_machine) {
            self.conflicts += 1;
        }
    }

    fn finish(&mut self, event: &CallEvent, at: DateTime<Utc>) {
        let outcome = event.outcome.unwrap_or(Outcome::Failed);
        self.outcome = Some(match outcome {
            Outcome::Completed if self.by_machine() => Outcome::Machine,
            outcome => outcome,
        });
        self.reason = event.reason;
        self.error_message = self
            .outcome
            .and_then(|outcome| failure_message(outcome, event));
        self.duration_seconds = event.duration_seconds.or(self.duration_seconds);
        // Times come from the carrier's clock: an end must not precede the answer.
        self.ended_at = Some(
            self.answered_at
                .map_or(at, |answered_at| at.max(answered_at)),
        );
    }
}

/// Folds `machine` into `completed`: it refines the outcome and does not contradict it.
fn without_machine(outcome: Outcome) -> Outcome {
    if outcome == Outcome::Machine {
        Outcome::Completed
    } else {
        outcome
    }
}

fn fill_missing<T: Clone>(slot: &mut Option<T>, value: &Option<T>) {
    if slot.is_none() {
        slot.clone_from(value);
    }
}

fn overwrite(slot: &mut Option<String>, value: Option<&String>) {
    if let Some(value) = value {
        *slot = Some(value.clone());
    }
}

/// Explains to the owner why a call was not completed.
fn failure_message(outcome: Outcome, event: &CallEvent) -> Option<String> {
    // 1. Text by outcome, and by reason where a failure has one.
    let text = match (outcome, event.reason) {
        (Outcome::Completed | Outcome::Machine, _) => return None,
        (Outcome::Busy, _) => "the line was busy",
        (Outcome::NoAnswer, _) => "nobody answered",
        (Outcome::Rejected, _) => "the callee declined the call",
        (Outcome::Canceled, _) => "the call was canceled before anybody answered",
        (Outcome::Expired, _) => "the call waited too long and was dropped",
        (Outcome::Lost, _) => "no final status: the carrier never confirmed this call",
        (Outcome::Failed, Some(Reason::InvalidNumber)) => {
            "the number does not exist or cannot be dialled"
        }
        (Outcome::Failed, Some(Reason::BlockedGeo)) => {
            "the carrier account may not call this country"
        }
        (Outcome::Failed, Some(Reason::BlockedCompliance)) => {
            "the carrier blocks calls to this number"
        }
        (Outcome::Failed, Some(Reason::CallerId)) => {
            "the carrier does not accept the caller number"
        }
        (Outcome::Failed, Some(Reason::Funds)) => "the carrier account is out of money",
        (Outcome::Failed, Some(Reason::Auth)) => "the carrier refuses the trunk's credentials",
        (Outcome::Failed, Some(Reason::AnswerDocument)) => {
            "the carrier could not read the answer document"
        }
        (Outcome::Failed, _) => "the carrier could not complete the call",
    };

    // 2. The carrier's own code, for its support.
    let code = event
        .carrier_code
        .as_ref()
        .map_or(String::new(), |code| format!(" (carrier code {code})"));
    Some(format!("{text}{code}"))
}

/// A batch's rules for rows whose call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    pub max_retries: i32,
    pub retry_delay_seconds: i32,
    /// True when a row whose call was lost may be dialled again.
    pub retry_lost: bool,
    /// True while the batch is in progress or paused.
    pub batch_active: bool,
}

/// Next state of a row whose call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowVerdict {
    /// The row is done, with this wire status.
    Done(&'static str),
    /// Another attempt, as a new call, not before this time.
    Retry(DateTime<Utc>),
}

/// Decides the row's next state. `attempts` includes the one that just ended.
#[must_use]
pub fn decide_row(
    outcome: Outcome,
    reason: Option<Reason>,
    attempts: i64,
    policy: RetryPolicy,
    ended_at: DateTime<Utc>,
) -> RowVerdict {
    let again = RowVerdict::Retry(ended_at + TimeDelta::seconds(policy.retry_delay_seconds.into()));
    let tries_left = policy.batch_active && attempts <= i64::from(policy.max_retries);
    let transient = matches!(reason, Some(Reason::Congestion | Reason::UnreachableTemp));

    match outcome {
        Outcome::Completed | Outcome::Machine => RowVerdict::Done("completed"),
        Outcome::Busy | Outcome::NoAnswer if tries_left => again,
        Outcome::Failed if tries_left && transient => again,
        Outcome::Lost if tries_left && policy.retry_lost => again,
        Outcome::Busy | Outcome::NoAnswer => RowVerdict::Done("no_answer"),
        Outcome::Rejected
        | Outcome::Failed
        | Outcome::Canceled
        | Outcome::Expired
        | Outcome::Lost => RowVerdict::Done("failed"),
    }
}

#[cfg(test)]
#[path = "transition_tests.rs"]
mod tests;
