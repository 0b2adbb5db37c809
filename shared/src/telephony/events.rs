//! The canonical words for what a call is doing, whatever the carrier calls it.
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
//! never lower it. `final` is never left.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Where a call stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum CallStatus {
    /// Asked for, not yet claimed by a worker.
    Queued,
    /// Claimed: its request may be on its way.
    Submitting,
    /// Provably not processed by the carrier; waits for another slot.
    Deferred,
    /// The request's fate is not known.
    Unknown,
    /// The carrier has it.
    Accepted,
    Dialing,
    Ringing,
    InProgress,
    /// We asked the carrier to end it.
    Canceling,
    Final,
}

impl CallStatus {
    /// Those of a live call: claimed and not over.
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

    /// The order of progress. Statuses before the carrier's acceptance share rank 0.
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

    /// The word on the wire and in tables.
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

/// How a final call went.
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
    /// We ended it before anybody answered.
    Canceled,
    /// It waited past its validity, at the carrier or with us.
    Expired,
    /// The request's fate was never learnt.
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

    /// The word on the wire and in tables.
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

/// Why a call ended the way it did, in classes that decide what happens next.
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
    /// Never dial it again.
    InvalidNumber,
    /// The account may not call there.
    BlockedGeo,
    BlockedCompliance,
    /// The caller number is not usable: the batch must pause.
    CallerId,
    /// The carrier account is out of money: the trunk must pause.
    Funds,
    /// The carrier account refuses us: the trunk must pause.
    Auth,
    Congestion,
    /// The carrier could not fetch or read our answer document.
    AnswerDocument,
    /// The carrier refused the request for another reason.
    Refused,
    /// Waited too long in the carrier's queue or in ours.
    Expired,
    /// Ended by us.
    Canceled,
    /// No final word ever came.
    NoFinalStatus,
}

impl Reason {
    /// The word on the wire and in tables.
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

/// Who or what picked up.
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
    /// The word on the wire and in tables.
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

/// One thing a carrier said about a call, in canonical words beside its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallEvent {
    pub carrier_call_id: Option<String>,
    /// The same thing said again has the same key.
    pub dedup_key: String,
    /// None where the carrier's word is unknown to us or says nothing about progress; such an
    /// event is kept and changes no status.
    pub status: Option<CallStatus>,
    /// Set with [`CallStatus::Final`].
    pub outcome: Option<Outcome>,
    pub reason: Option<Reason>,
    pub carrier_status: Option<String>,
    pub carrier_code: Option<String>,
    pub sip_code: Option<i32>,
    pub answered_by: Option<AnsweredBy>,
    pub duration_seconds: Option<i32>,
    /// What the carrier charges, positive.
    pub price: Option<Decimal>,
    pub currency: Option<String>,
    pub recording_url: Option<String>,
    /// By the carrier's clock.
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
