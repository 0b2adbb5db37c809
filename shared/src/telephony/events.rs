//! Canonical states, outcomes and events of calls, independent of the carrier.
//!
//! ```text
//! queued -> submitting -> accepted -> dialing -> ringing -> in_progress -> final
//!              |  ^          |           |          |            |
//!              v  |          +-----------+----------+--> canceling
//!           deferred  (proof that nothing was processed; sent again later)
//!              |
//!           unknown   (no proof of anything; resolved by evidence, else final: lost)
//! ```
//!
//! Progress is monotone: every status has a rank, and an event may raise a call's rank but
//! never lower it. No event leaves `final`.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// State of a call.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum CallStatus {
    /// Requested, not yet claimed by a worker.
    Queued,
    /// Claimed: its request may be on its way.
    Submitting,
    /// Provably not processed by the carrier; waits for another slot.
    Deferred,
    /// It is unknown whether the carrier processed the request.
    Unknown,
    /// The carrier has the call.
    Accepted,
    Dialing,
    Ringing,
    InProgress,
    /// The carrier was asked to end the call.
    Canceling,
    Final,
}

impl CallStatus {
    /// Statuses of a live call: claimed and not final.
    pub const LIVE: [Self; 8] = [
        Self::Submitting,
        Self::Deferred,
        Self::Unknown,
        Self::Accepted,
        Self::Dialing,
        Self::Ringing,
        Self::InProgress,
        Self::Canceling,
    ];

    /// Order of progress. Statuses before the carrier's acceptance share rank 0.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Self::Queued | Self::Submitting | Self::Deferred | Self::Unknown => 0,
            Self::Accepted => 10,
            Self::Dialing => 20,
            Self::Ringing => 30,
            Self::InProgress => 40,
            Self::Canceling => 50,
            Self::Final => 90,
        }
    }

    /// Value on the wire and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Submitting => "submitting",
            Self::Deferred => "deferred",
            Self::Unknown => "unknown",
            Self::Accepted => "accepted",
            Self::Dialing => "dialing",
            Self::Ringing => "ringing",
            Self::InProgress => "in_progress",
            Self::Canceling => "canceling",
            Self::Final => "final",
        }
    }
}

/// Outcome of a final call.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Outcome {
    /// A conversation took place.
    Completed,
    /// A machine answered.
    Machine,
    Busy,
    NoAnswer,
    /// The callee declined.
    Rejected,
    Failed,
    /// Ended by Peal before an answer.
    Canceled,
    /// Queued longer than its validity, at the carrier or in Peal.
    Expired,
    /// It was never learnt whether the carrier processed the request.
    Lost,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 9] = [
        Self::Completed,
        Self::Machine,
        Self::Busy,
        Self::NoAnswer,
        Self::Rejected,
        Self::Failed,
        Self::Canceled,
        Self::Expired,
        Self::Lost,
    ];

    /// Value on the wire and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Machine => "machine",
            Self::Busy => "busy",
            Self::NoAnswer => "no_answer",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::Lost => "lost",
        }
    }
}

/// Reason for a call's outcome, in classes that decide the next step.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Reason {
    Busy,
    NoAnswer,
    UnreachableTemp,
    RejectedByCallee,
    /// The number must not be dialled again.
    InvalidNumber,
    /// The account may not call that country.
    BlockedGeo,
    BlockedCompliance,
    /// The caller number is not usable: the batch must pause.
    CallerId,
    /// The carrier account is out of money: the trunk must pause.
    Funds,
    /// The carrier refuses the credentials: the trunk must pause.
    Auth,
    Congestion,
    /// The carrier could not fetch or read the answer document.
    AnswerDocument,
    /// The carrier refused the request for another reason.
    Refused,
    /// Waited too long in the carrier's queue or in Peal's.
    Expired,
    /// Ended by Peal.
    Canceled,
    /// No final status ever arrived.
    NoFinalStatus,
}

impl Reason {
    /// Value on the wire and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::NoAnswer => "no_answer",
            Self::UnreachableTemp => "unreachable_temp",
            Self::RejectedByCallee => "rejected_by_callee",
            Self::InvalidNumber => "invalid_number",
            Self::BlockedGeo => "blocked_geo",
            Self::BlockedCompliance => "blocked_compliance",
            Self::CallerId => "caller_id",
            Self::Funds => "funds",
            Self::Auth => "auth",
            Self::Congestion => "congestion",
            Self::AnswerDocument => "answer_document",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Canceled => "canceled",
            Self::NoFinalStatus => "no_final_status",
        }
    }
}

/// Kind of answering party.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum AnsweredBy {
    Human,
    Machine,
    Fax,
    Unknown,
}

impl AnsweredBy {
    /// Value on the wire and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Machine => "machine",
            Self::Fax => "fax",
            Self::Unknown => "unknown",
        }
    }
}

/// One report of a carrier about a call, in canonical values beside the carrier's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallEvent {
    pub carrier_call_id: Option<String>,
    /// A repeated report has the same key.
    pub dedup_key: String,
    /// `None` where the carrier's status is unknown or the report is not about progress; such
    /// an event is stored and changes no status.
    pub status: Option<CallStatus>,
    /// Set with [`CallStatus::Final`].
    pub outcome: Option<Outcome>,
    pub reason: Option<Reason>,
    pub carrier_status: Option<String>,
    pub carrier_code: Option<String>,
    pub sip_code: Option<i32>,
    pub answered_by: Option<AnsweredBy>,
    pub duration_seconds: Option<i32>,
    /// Price of the carrier, positive.
    pub price: Option<Decimal>,
    pub currency: Option<String>,
    pub recording_url: Option<String>,
    /// Time by the carrier's clock.
    pub occurred_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_an_order() {
        let order = [
            CallStatus::Submitting,
            CallStatus::Accepted,
            CallStatus::Dialing,
            CallStatus::Ringing,
            CallStatus::InProgress,
            CallStatus::Canceling,
            CallStatus::Final,
        ];
        assert!(order.windows(2).all(|pair| pair[0].rank() < pair[1].rank()));
        for status in [
            CallStatus::Queued,
            CallStatus::Deferred,
            CallStatus::Unknown,
        ] {
            assert_eq!(status.rank(), 0);
        }
    }
}
