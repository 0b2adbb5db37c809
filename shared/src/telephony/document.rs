//! Answer documents: the next steps of a call, as a small tree that each carrier writes in its own
//! language.

use url::Url;

/// A sequence of verbs. The call ends after the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerDocument {
    pub verbs: Vec<CallVerb>,
}

/// One step of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallVerb {
    /// Speaks `text` with the carrier's own voice.
    Say {
        text: String,
        language: String,
        voice: Option<String>,
    },
    /// Plays an audio file.
    Play { url: Url },
    /// Silence.
    Pause { secs: u32 },
    /// Speaks `prompt` while it listens, and posts the answer to `action`.
    Gather {
        action: Url,
        language: String,
        timeout_secs: u32,
        hints: Vec<String>,
        prompt: Vec<CallVerb>,
    },
    /// Records the call from here on.
    Record { action: Url, max_secs: u32 },
    /// Bridges the call's audio to a media server, which receives the parameters at the start.
    Stream {
        url: Url,
        parameters: Vec<(String, String)>,
    },
    /// Continues with the document at `url`.
    Redirect { url: Url },
    /// Ends the call.
    Hangup,
}

impl AnswerDocument {
    /// Document that ends a call which is no longer wanted.
    #[must_use]
    pub fn hang_up() -> Self {
        Self {
            verbs: vec![CallVerb::Hangup],
        }
    }
}
