//! Carriers. A [`Carrier`] is a stateless adapter for one vendor's wire contract; a trunk is an
//! account with that vendor. Everything vendor-specific stays in the vendor's folder: creating a
//! call, verifying and reading callbacks, and writing answer documents.
//!
//! The rule that shapes the trait: creating a call is the one request that cannot be repeated.
//! [`Carrier::create`] sends its request at most once, follows no redirect and returns no error;
//! it returns a [`Placement`], in which everything that is not proof of acceptance, refusal or
//! non-processing is [`Placement::Unknown`].
//!
//! To add a carrier: one folder that implements [`Carrier`], one variant of [`CarrierKind`], its
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

use crate::platform::e164::E164;
use crate::platform::error::Result;
pub use document::{AnswerDocument, CallVerb};
pub use events::{AnsweredBy, CallEvent, CallStatus, Outcome, Reason};
pub use twilio::Twilio;

/// Vendor of a trunk.
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

/// Account of a trunk: its id, credentials and API address.
#[derive(Clone, Debug)]
pub struct CarrierAccount {
    pub kind: CarrierKind,
    /// Id of the account at the vendor.
    pub account_id: String,
    pub credentials: CarrierCredentials,
    /// API address; the vendor's public one when absent.
    pub api_base_url: Option<Url>,
}

/// The secrets of a trunk, as they are sealed in its row.
#[derive(Clone, Debug, Deserialize)]
pub struct CarrierCredentials {
    /// User name of the requests; the account's id when absent.
    #[serde(default)]
    pub username: Option<String>,
    /// Password of the requests.
    pub password: SecretString,
    /// Secrets that may sign callbacks, several during a rotation. When empty, the password
    /// signs.
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
    /// Callback for the result of answering machine detection, which is off without it.
    pub machine_detection_url: Option<Url>,
    /// Callback for the finished recording; the call is not recorded without it.
    pub recording_url: Option<Url>,
    pub ring_timeout_secs: u32,
    pub max_duration_secs: u32,
}

/// Result of a create request.
#[derive(Clone, Debug, PartialEq)]
pub enum Placement {
    /// The carrier took the call and gave it an id.
    Accepted {
        carrier_call_id: String,
        carrier_status: String,
    },
    /// The carrier refused the call, with its own code and message.
    Refused {
        reason: Reason,
        code: String,
        message: String,
    },
    /// Nothing was processed, provably: the same call may be sent again after a pause.
    Deferred {
        proof: String,
        retry_after_secs: Option<u64>,
        /// True when the carrier rejected the rate, false when it was unreachable.
        throttled: bool,
    },
    /// Anything else: the call may or may not exist. Only evidence resolves it.
    Unknown { detail: String },
}

impl Placement {
    /// Label in metrics and traces.
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

/// A call in the carrier's records.
#[derive(Clone, Debug, PartialEq)]
pub struct CarrierCall {
    pub carrier_call_id: String,
    pub created_at: Option<DateTime<Utc>>,
    /// Record as an event, applied like a callback.
    pub event: CallEvent,
}

/// A search of the carrier's records for a call whose create request had no response.
#[derive(Clone, Debug)]
pub struct CallSearch {
    pub to: E164,
    pub from: E164,
    pub created_from: DateTime<Utc>,
    pub created_until: DateTime<Utc>,
}

/// Status of an account at its carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountStatus {
    /// Calls can be placed with these credentials.
    Good,
    /// Calls cannot be placed; the text tells the trunk's owner the reason.
    Refused(String),
}

/// Condition for ending a live call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallTermination {
    /// Ends the call only before it is answered.
    Cancel,
    /// Ends the call in any state.
    HangUp,
}

/// A callback as it arrived. `url` is rebuilt from the configured public address, never from
/// the request's own host.
#[derive(Clone, Debug)]
pub struct CarrierCallback<'a> {
    pub method: &'a str,
    pub url: &'a Url,
    pub content_type: Option<&'a str>,
    pub signature: Option<&'a str>,
    pub body: &'a Bytes,
}

/// Kind of callback, by the URL of the call that received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackKind {
    Status,
    MachineDetection,
    Recording,
    Answer,
}

/// Account and call named in the body of a callback, for URLs without the call's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallReference {
    /// Id of the account at the vendor.
    pub account_id: String,
    pub carrier_call_id: String,
}

/// A rendered answer document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedDocument {
    pub content_type: &'static str,
    pub body: String,
}

/// Adapter of a vendor.
#[async_trait]
pub trait Carrier: Send + Sync {
    /// Checks an account and its credentials at the carrier. Changes nothing there.
    async fn check(&self, account: &CarrierAccount) -> Result<AccountStatus>;

    /// Creates a call. Sends at most one request.
    async fn create(&self, account: &CarrierAccount, call: &NewCall) -> Placement;

    /// Reads the carrier's record of a call; `None` when there is none.
    async fn fetch(
        &self,
        account: &CarrierAccount,
        carrier_call_id: &str,
    ) -> Result<Option<CarrierCall>>;

    /// Lists every call that may be the one searched for, queued ones included.
    async fn search(
        &self,
        account: &CarrierAccount,
        search: &CallSearch,
    ) -> Result<Vec<CarrierCall>>;

    /// Ends a call. `false` when the call had already ended, or could no longer be cancelled.
    async fn end(
        &self,
        account: &CarrierAccount,
        carrier_call_id: &str,
        ending: CallTermination,
    ) -> Result<bool>;

    /// Request header with a callback's signature, in lower case.
    fn signature_header(&self) -> &'static str;

    /// Checks that one of the account's secrets signed this callback.
    fn verify(&self, account: &CarrierAccount, callback: &CarrierCallback<'_>) -> bool;

    /// Account and call named in a callback, before its verification. `None` when this carrier
    /// cannot have sent it.
    fn call_reference(&self, callback: &CarrierCallback<'_>) -> Option<CallReference>;

    /// Reads a verified callback.
    ///
    /// # Errors
    /// [`crate::Error::Rejected`] when the body is not one of this carrier's.
    fn read(&self, kind: CallbackKind, callback: &CarrierCallback<'_>) -> Result<CallEvent>;

    /// Writes an answer document in the carrier's language.
    fn render(&self, document: &AnswerDocument) -> RenderedDocument;
}

/// Adapters of all vendors, one of each: they keep connections open and hold no account.
#[derive(Clone, Debug)]
pub struct CarrierRegistry {
    twilio: Arc<Twilio>,
}

impl CarrierRegistry {
    /// Creates the adapters, with their own connections.
    ///
    /// # Errors
    /// Fails when the TLS roots of the machine cannot be read.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            twilio: Arc::new(Twilio::new()?),
        })
    }

    /// Adapter of a vendor.
    #[must_use]
    pub fn adapter(&self, kind: CarrierKind) -> &dyn Carrier {
        match kind {
            CarrierKind::Twilio => self.twilio.as_ref(),
        }
    }
}
