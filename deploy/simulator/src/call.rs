//! One call: its request and its state.
//!
//! ```text
//! queued -> initiated -> ringing -> in-progress -> completed
//!    |          |           |
//!    |          +-> busy, failed
//!    |                      +-> no-answer, failed
//!    +----------+-----------+-> canceled
//! ```
//!
//! The resource shows `initiated` as `queued`, as Twilio's does; only callbacks
//! contain `initiated`. The state of a live call is boxed and dropped once the call has ended
//! and its last callback is delivered, so a long run costs little memory per ended call.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::callbacks::QueuedCallback;
use crate::callee::CallPlan;
use crate::clock::Micros;
use crate::twiml_interpreter::TwimlInterpreter;

/// The 16 bytes of a 34 character sid.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TwilioSid(pub(crate) [u8; 16]);

impl TwilioSid {
    pub(crate) fn parse(text: &str, prefix: &str) -> Option<Self> {
        let hex = text.strip_prefix(prefix)?;
        if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(hex, 16)
            .ok()
            .map(|value| Self(value.to_be_bytes()))
    }

    pub(crate) fn text(self, prefix: &str) -> String {
        format!("{prefix}{self}")
    }
}

impl fmt::Display for TwilioSid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Reference to a call across an `await`; after a reset it refers to no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallRef {
    pub(crate) epoch: u32,
    pub(crate) index: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallPhase {
    Queued,
    Initiated,
    Ringing,
    InProgress,
    Completed,
    Busy,
    NoAnswer,
    Canceled,
    Failed,
}

impl CallPhase {
    /// The status in callbacks.
    pub(crate) fn callback_status(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Initiated => "initiated",
            Self::Ringing => "ringing",
            Self::InProgress => "in-progress",
            Self::Completed => "completed",
            Self::Busy => "busy",
            Self::NoAnswer => "no-answer",
            Self::Canceled => "canceled",
            Self::Failed => "failed",
        }
    }

    /// The status on the call resource.
    pub(crate) fn resource_status(self) -> &'static str {
        match self {
            Self::Initiated => "queued",
            other => other.callback_status(),
        }
    }

    pub(crate) fn is_final(self) -> bool {
        !matches!(
            self,
            Self::Queued | Self::Initiated | Self::Ringing | Self::InProgress
        )
    }
}

/// HTTP method of a callback or document request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HttpMethod {
    Get,
    #[default]
    Post,
}

/// Status events that the caller subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventSubscription {
    pub(crate) initiated: bool,
    pub(crate) ringing: bool,
    pub(crate) answered: bool,
    pub(crate) completed: bool,
}

impl EventSubscription {
    pub(crate) const NONE: Self = Self {
        initiated: false,
        ringing: false,
        answered: false,
        completed: false,
    };
    pub(crate) const DEFAULT: Self = Self {
        completed: true,
        ..Self::NONE
    };
}

/// A URL to request, with its method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WebhookTarget {
    pub(crate) url: Arc<str>,
    pub(crate) method: HttpMethod,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetectionRequest {
    /// Asynchronous detection lets the document run meanwhile.
    pub(crate) asynchronous: bool,
    pub(crate) webhook: Option<WebhookTarget>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordingRequest {
    pub(crate) webhook: Option<WebhookTarget>,
    pub(crate) channels: &'static str,
    pub(crate) on_in_progress: bool,
    pub(crate) on_completed: bool,
}

/// A create whose form is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CreateRequest {
    pub(crate) to: String,
    pub(crate) from: String,
    pub(crate) answer: AnswerSource,
    pub(crate) fallback: Option<WebhookTarget>,
    pub(crate) status: Option<WebhookTarget>,
    pub(crate) events: EventSubscription,
    pub(crate) ring_timeout_secs: u32,
    pub(crate) time_limit_secs: u32,
    pub(crate) detection: Option<DetectionRequest>,
    pub(crate) recording: Option<RecordingRequest>,
}

/// Source of the first document of an answered call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnswerSource {
    Webhook(WebhookTarget),
    Twiml(String),
}

pub(crate) struct SimulatedCall {
    pub(crate) sid: TwilioSid,
    pub(crate) account: usize,
    pub(crate) to: Arc<str>,
    pub(crate) from: Arc<str>,
    pub(crate) phase: CallPhase,
    pub(crate) created: Micros,
    pub(crate) updated: Micros,
    pub(crate) dialed: Option<Micros>,
    pub(crate) answered: Option<Micros>,
    pub(crate) ended: Option<Micros>,
    pub(crate) hidden_until: Micros,
    pub(crate) duration_secs: u32,
    pub(crate) queue_ms: u32,
    pub(crate) sip_code: u16,
    pub(crate) rang: bool,
    pub(crate) recorded: bool,
    pub(crate) answered_by: Option<&'static str>,
    pub(crate) live: Option<Box<LiveCall>>,
}

/// State of a call until its last callback is delivered.
pub(crate) struct LiveCall {
    pub(crate) request: CreateRequest,
    pub(crate) plan: CallPlan,
    /// Count of earlier calls to the number.
    pub(crate) nth: u64,
    /// Sequence number of the next status event.
    pub(crate) sequence: u32,
    /// Count of callbacks of every kind so far.
    pub(crate) callback_count: u32,
    pub(crate) outbox: VecDeque<QueuedCallback>,
    /// A callback that is held back until its successor is queued.
    pub(crate) held: Option<QueuedCallback>,
    /// True while a task posts the outbox.
    pub(crate) delivering: bool,
    /// Count of document fetches and late callbacks in progress.
    pub(crate) outstanding: u32,
    pub(crate) interpreter: Option<TwimlInterpreter>,
    /// Incremented with every document; responses for older ones are ignored.
    pub(crate) document_serial: u32,
    /// Count of documents run so far, bounded to end loops.
    pub(crate) document_count: u32,
    pub(crate) turn: usize,
}

impl SimulatedCall {
    pub(crate) fn recording_sid(&self) -> String {
        self.sid.text("RE")
    }

    /// True once the call has ended and all its requests are done.
    pub(crate) fn is_settled(&self) -> bool {
        let busy = self.live.as_ref().is_some_and(|live| {
            live.delivering
                || live.outstanding > 0
                || live.held.is_some()
                || !live.outbox.is_empty()
        });
        self.phase.is_final() && !busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sids_read_back_and_reject_other_shapes() {
        let sid = TwilioSid([7; 16]);
        assert_eq!(sid.text("CA").len(), 34);
        assert!(TwilioSid::parse(&sid.text("CA"), "CA") == Some(sid));
        for bad in [
            "CA12",
            "RE07070707070707070707070707070707",
            "CA+7070707070707070707070707070707",
        ] {
            assert!(TwilioSid::parse(bad, "CA").is_none(), "{bad}");
        }
    }

    #[test]
    fn the_resource_never_says_initiated() {
        assert_eq!(CallPhase::Initiated.resource_status(), "queued");
        assert_eq!(CallPhase::Initiated.callback_status(), "initiated");
        assert!(!CallPhase::InProgress.is_final() && CallPhase::Canceled.is_final());
    }
}
