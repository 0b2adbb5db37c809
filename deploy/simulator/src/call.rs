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

use crate::callbacks::Post;
use crate::callee::Plan;
use crate::clock::Micros;
use crate::twiml_interpreter::Talk;

/// The 16 bytes of a 34 character sid.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sid(pub(crate) [u8; 16]);

impl Sid {
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

impl fmt::Display for Sid {
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
pub(crate) enum Phase {
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

impl Phase {
    /// The status in callbacks.
    pub(crate) fn word(self) -> &'static str {
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
    pub(crate) fn resource_word(self) -> &'static str {
        match self {
            Self::Initiated => "queued",
            other => other.word(),
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
pub(crate) enum Method {
    Get,
    #[default]
    Post,
}

/// Status events that the caller subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Events {
    pub(crate) initiated: bool,
    pub(crate) ringing: bool,
    pub(crate) answered: bool,
    pub(crate) completed: bool,
}

impl Events {
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
pub(crate) struct Hook {
    pub(crate) url: Arc<str>,
    pub(crate) method: Method,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detection {
    /// Asynchronous detection lets the document run meanwhile.
    pub(crate) asynchronous: bool,
    pub(crate) hook: Option<Hook>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recording {
    pub(crate) hook: Option<Hook>,
    pub(crate) channels: &'static str,
    pub(crate) on_in_progress: bool,
    pub(crate) on_completed: bool,
}

/// A create whose form is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CreateRequest {
    pub(crate) to: String,
    pub(crate) from: String,
    pub(crate) answer: Answer,
    pub(crate) fallback: Option<Hook>,
    pub(crate) status: Option<Hook>,
    pub(crate) events: Events,
    pub(crate) ring_timeout_secs: u32,
    pub(crate) time_limit_secs: u32,
    pub(crate) detection: Option<Detection>,
    pub(crate) recording: Option<Recording>,
}

/// Source of the first document of an answered call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Hook(Hook),
    Twiml(String),
}

pub(crate) struct Call {
    pub(crate) sid: Sid,
    pub(crate) account: usize,
    pub(crate) to: Arc<str>,
    pub(crate) from: Arc<str>,
    pub(crate) phase: Phase,
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
    pub(crate) live: Option<Box<Live>>,
}

/// State of a call until its last callback is delivered.
pub(crate) struct Live {
    pub(crate) request: CreateRequest,
    pub(crate) plan: Plan,
    /// Count of earlier calls to the number.
    pub(crate) nth: u64,
    /// Sequence number of the next status event.
    pub(crate) sequence: u32,
    /// Count of callbacks of every kind so far.
    pub(crate) posts: u32,
    pub(crate) outbox: VecDeque<Post>,
    /// A callback that is held back until its successor is queued.
    pub(crate) held: Option<Post>,
    /// True while a task posts the outbox.
    pub(crate) delivering: bool,
    /// Count of document fetches and late callbacks in progress.
    pub(crate) outstanding: u32,
    pub(crate) talk: Option<Talk>,
    /// Incremented with every document; responses for older ones are ignored.
    pub(crate) talk_serial: u32,
    /// Count of documents run so far, bounded to end loops.
    pub(crate) documents: u32,
    pub(crate) turn: usize,
}

impl Call {
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
        let sid = Sid([7; 16]);
        assert_eq!(sid.text("CA").len(), 34);
        assert!(Sid::parse(&sid.text("CA"), "CA") == Some(sid));
        for bad in [
            "CA12",
            "RE07070707070707070707070707070707",
            "CA+7070707070707070707070707070707",
        ] {
            assert!(Sid::parse(bad, "CA").is_none(), "{bad}");
        }
    }

    #[test]
    fn the_resource_never_says_initiated() {
        assert_eq!(Phase::Initiated.resource_word(), "queued");
        assert_eq!(Phase::Initiated.word(), "initiated");
        assert!(!Phase::InProgress.is_final() && Phase::Canceled.is_final());
    }
}
