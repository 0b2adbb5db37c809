//! Carriers. A [`Carrier`] is a stateless adapter for one vendor's wire contract; a trunk is an
//! account with that vendor. Everything vendor-specific stays in the vendor's file: how a call
//! is created, how a callback is signed, what its words mean, how an answer document is written.
//!
//! The rule that shapes the trait: creating a call is the one act that cannot be repeated.
//! [`Carrier::create`] sends its request at most once, follows no redirect and never answers
//! with an error; it answers with a [`Placement`], in which everything that is not proof of
//! acceptance, refusal or non-processing is [`Placement::Unknown`].
//!
//! Adding a carrier: one folder that implements [`Carrier`], one variant of [`CarrierKind`], its
//! constraint in a migration, and signature vectors made with the vendor's own SDK.

pub mod document;
pub mod events;
pub mod twilio;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::Result;
use crate::phone::E164;
pub use document::{Document, Verb};
pub use events::{AnsweredBy, CallEvent, CallStatus, Outcome, Reason};
pub use twilio::Twilio;

/// A vendor's wire contract.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum CarrierKind {
    Twilio,
}

impl CarrierKind {
    /// Every vendor.
    pub const ALL: [Self; 1] = [Self::Twilio];
}

/// What an adapter needs to act on a trunk.
#[derive(Clone, Debug)]
pub struct Account {
    pub kind: CarrierKind,
    /// The vendor's id of the account.
    pub account_id: String,
    pub credentials: Credentials,
    /// The vendor's public address unless a trunk names another.
    pub api_base_url: Option<Url>,
}

/// The secrets of a trunk, as they are sealed in its row.
#[derive(Clone, Debug, Deserialize)]
pub struct Credentials {
    /// Who the requests authenticate as; the account itself when absent.
    #[serde(default)]
    pub username: Option<String>,
    /// The secret that goes with it.
    pub password: SecretString,
    /// Every secret that may sign callbacks, several while one is being rotated. Empty: the
    /// password signs.
    #[serde(default)]
    pub signing_secrets: Vec<SecretString>,
}

/// A call to create. Every URL already carries the call's id and token.
#[derive(Clone, Debug)]
pub struct NewCall {
    pub to: E164,
    pub from: E164,
    pub answer_url: Url,
    pub status_url: Url,
    /// Where the verdict of answering machine detection goes; detection is off without it.
    pub machine_detection_url: Option<Url>,
    /// Where the finished recording is announced; the call is not recorded without it.
    pub recording_url: Option<Url>,
    pub ring_timeout_secs: u32,
    pub max_duration_secs: u32,
}

/// What became of a create request.
#[derive(Clone, Debug, PartialEq)]
pub enum Placement {
    /// The carrier took the call and gave it an id.
    Accepted {
        carrier_call_id: String,
        carrier_status: String,
    },
    /// The carrier said no, in its own words, and will not call.
    Refused {
        reason: Reason,
        code: String,
        message: String,
    },
    /// Proof that nothing was processed: the same call may be sent again after a pause.
    Deferred {
        proof: String,
        retry_after_secs: Option<u64>,
        /// The carrier pushed back on the rate, as opposed to being out of reach.
        throttled: bool,
    },
    /// Anything else: the call may or may not exist. Only evidence resolves it.
    Unknown { detail: String },
}

impl Placement {
    /// One word for it, in metrics and traces.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Refused { .. } => "refused",
            Self::Deferred { .. } => "deferred",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// A call as the carrier's own records show it.
#[derive(Clone, Debug, PartialEq)]
pub struct CarrierCall {
    pub carrier_call_id: String,
    pub created_at: Option<DateTime<Utc>>,
    /// The record as an event, so that it takes the same road as a callback.
    pub event: CallEvent,
}

/// A search of the carrier's records for a call whose creation had no answer.
#[derive(Clone, Debug)]
pub struct Search {
    pub to: E164,
    pub from: E164,
    pub created_from: DateTime<Utc>,
    pub created_until: DateTime<Utc>,
}

/// What a carrier says of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Calls can be placed with these credentials.
    Good,
    /// They cannot; the reason is in words for the trunk's owner.
    Refused(String),
}

/// How a live call is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Only if nobody has answered yet.
    Cancel,
    /// Whatever it is doing.
    HangUp,
}

/// A callback as it arrived. `url` is rebuilt from the configured public address, never from
/// the request's own host.
#[derive(Clone, Debug)]
pub struct Callback<'a> {
    pub method: &'a str,
    pub url: &'a Url,
    pub content_type: Option<&'a str>,
    pub signature: Option<&'a str>,
    pub body: &'a Bytes,
}

/// Which of a call's URLs a callback came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackKind {
    Status,
    MachineDetection,
    Recording,
    Answer,
}

/// Whom a callback speaks of when its address does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressed {
    /// The vendor's id of the account.
    pub account_id: String,
    pub carrier_call_id: String,
}

/// A rendered answer document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub content_type: &'static str,
    pub body: String,
}

/// A vendor.
#[async_trait]
pub trait Carrier: Send + Sync {
    /// Asks the carrier whether an account and its credentials are good. Changes nothing there.
    async fn check(&self, account: &Account) -> Result<Standing>;

    /// Asks the carrier to dial. Sends at most one request.
    async fn create(&self, account: &Account, call: &NewCall) -> Placement;

    /// The carrier's record of a call, or `None` where it knows no such call.
    async fn fetch(&self, account: &Account, carrier_call_id: &str) -> Result<Option<CarrierCall>>;

    /// Every call that may be the one searched for, queued ones included.
    async fn search(&self, account: &Account, search: &Search) -> Result<Vec<CarrierCall>>;

    /// Ends a call. `false` when it had already ended, or could no longer be cancelled.
    async fn end(&self, account: &Account, carrier_call_id: &str, ending: Ending) -> Result<bool>;

    /// The request header that holds a callback's signature, in lower case.
    fn signature_header(&self) -> &'static str;

    /// Whether one of the account's secrets signed this callback.
    fn verify(&self, account: &Account, callback: &Callback<'_>) -> bool;

    /// The account and the call that a callback names, before anybody has verified it. `None`
    /// when this carrier cannot have sent it.
    fn addressed(&self, callback: &Callback<'_>) -> Option<Addressed>;

    /// What a verified callback says.
    ///
    /// # Errors
    /// [`crate::Error::Rejected`] when the body cannot be what this carrier sends.
    fn read(&self, kind: CallbackKind, callback: &Callback<'_>) -> Result<CallEvent>;

    /// Writes an answer document in the carrier's language.
    fn render(&self, document: &Document) -> Rendered;
}

/// Every vendor's adapter, one of each: they keep connections open and hold no account.
#[derive(Clone, Debug)]
pub struct Carriers {
    twilio: Arc<Twilio>,
}

impl Carriers {
    /// The adapters, with their own connections.
    ///
    /// # Errors
    /// Fails when the TLS roots of the machine cannot be read.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            twilio: Arc::new(Twilio::new()?),
        })
    }

    /// The adapter of a vendor.
    #[must_use]
    pub fn of(&self, kind: CarrierKind) -> &dyn Carrier {
        match kind {
            CarrierKind::Twilio => self.twilio.as_ref(),
        }
    }
}
