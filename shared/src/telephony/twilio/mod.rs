//! Twilio Programmable Voice, over its REST API of 2010-04-01 and TwiML.
//!
//! Constraints of this adapter:
//!
//! - Creating a call has no idempotency key, so its request is sent at most once (`create`)
//!   and the call's id and token travel in the callback URLs instead.
//! - Above its rate Twilio does not refuse: it queues for up to a day. Pacing is the caller's
//!   duty, and a campaign that stops must end the calls that are still queued.
//! - Status callbacks arrive out of order, are numbered by `SequenceNumber`, and are lost for
//!   good after 15 seconds of failures on Peal's side, so every call is also polled
//!   (`records`). Prices are known later than the final status, which is why a record with
//!   more values is an event of its own.
//!
//! The files: `create` places a call and classifies the response; `records` reads and ends
//! calls; `standing` checks an account; `signature` and `callback` verify and read callbacks;
//! `twiml` writes answer documents; `words` translates Twilio's vocabulary; `wire` is the shared
//! HTTP. Webhooks signed with Twilio's newer shared keys (HMAC-SHA256) are not accepted: their
//! settings header is not part of a [`Callback`].

mod callback;
mod create;
mod records;
mod signature;
mod standing;
mod twiml;
mod wire;
mod words;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use std::time::Duration;

use async_trait::async_trait;

use super::{
    AccountStatus, AnswerDocument, CallEvent, CallReference, CallSearch, CallTermination,
    CallbackKind, Carrier, CarrierAccount, CarrierCall, CarrierCallback, NewCall, Placement,
    RenderedDocument,
};
use crate::platform::error::Result;

/// Name of the vendor in errors.
const SERVICE: &str = "twilio";

/// Timeout of a create request, after which its result counts as unknown.
const CREATE_TIMEOUT: Duration = Duration::from_secs(12);

/// Timeout of one request to Twilio's records.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(20);

/// Twilio's adapter. It has two clients, so that slow lists never delay create requests.
#[derive(Clone, Debug)]
pub struct Twilio {
    create_client: reqwest::Client,
    records_client: reqwest::Client,
}

impl Twilio {
    /// Creates an adapter with its own connections.
    ///
    /// # Errors
    /// Fails when the TLS roots of the machine cannot be read.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            create_client: crate::platform::http::carrier_client(CREATE_TIMEOUT)?,
            records_client: crate::platform::http::carrier_client(RECORDS_TIMEOUT)?,
        })
    }
}

#[async_trait]
impl Carrier for Twilio {
    async fn check(&self, account: &CarrierAccount) -> Result<AccountStatus> {
        standing::check(&self.records_client, account).await
    }

    async fn create(&self, account: &CarrierAccount, call: &NewCall) -> Placement {
        create::create(&self.create_client, account, call).await
    }

    async fn fetch(
        &self,
        account: &CarrierAccount,
        carrier_call_id: &str,
    ) -> Result<Option<CarrierCall>> {
        records::fetch(&self.records_client, account, carrier_call_id).await
    }

    async fn search(
        &self,
        account: &CarrierAccount,
        search: &CallSearch,
    ) -> Result<Vec<CarrierCall>> {
        records::search(&self.records_client, account, search).await
    }

    async fn end(
        &self,
        account: &CarrierAccount,
        carrier_call_id: &str,
        ending: CallTermination,
    ) -> Result<bool> {
        records::end(&self.records_client, account, carrier_call_id, ending).await
    }

    fn signature_header(&self) -> &'static str {
        "x-twilio-signature"
    }

    fn verify(&self, account: &CarrierAccount, callback: &CarrierCallback<'_>) -> bool {
        signature::verify(account, callback)
    }

    fn call_reference(&self, callback: &CarrierCallback<'_>) -> Option<CallReference> {
        callback::call_reference(callback)
    }

    fn read(&self, kind: CallbackKind, callback: &CarrierCallback<'_>) -> Result<CallEvent> {
        callback::read(kind, callback)
    }

    fn render(&self, document: &AnswerDocument) -> RenderedDocument {
        twiml::render(document)
    }
}
