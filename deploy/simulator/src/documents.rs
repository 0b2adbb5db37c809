//! Answer documents: fetch, execution, and the documents that follow.
//!
//! A document that cannot be fetched or parsed sends the call to its fallback URL once; without
//! a fallback, or when that fails too, the call is hung up, as Twilio does after an error
//! message.

use std::sync::Arc;

use url::Url;

use crate::call::{AnswerSource, CallPhase, CallRef};
use crate::call_lifecycle::MAX_DOCUMENTS;
use crate::callback_log::CallbackLogEntry;
use crate::callbacks::{QueuedCallback, call_params, recording_url};
use crate::clock::Micros;
use crate::delivery::DeliveryReceipt;
use crate::switchboard::{PendingRequest, Switchboard, TimerAction};
use crate::twiml;
use crate::twiml::TwimlVerb;
use crate::twiml_interpreter::{DialogStep, DocumentKind, DocumentRequest, TwimlInterpreter};

/// A document fetch in progress.
pub(crate) struct DocumentFetch {
    pub(crate) request: QueuedCallback,
    kind: DocumentKind,
    serial: u32,
}

/// A fetched document: its verbs or its error.
pub(crate) type DocumentResult = Result<Vec<TwimlVerb>, DocumentError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DocumentError {
    /// No 2xx answer (Twilio's 11200).
    Retrieval,
    /// Not a document (Twilio's 12100).
    Parse,
}

impl DocumentError {
    fn code(self) -> &'static str {
        match self {
            Self::Retrieval => "11200",
            Self::Parse => "12100",
        }
    }
}

/// Parses a fetched document; runs outside the lock.
pub(crate) fn read_document(receipt: &DeliveryReceipt) -> DocumentResult {
    if !receipt.is_success() {
        return Err(DocumentError::Retrieval);
    }
    parse_document(&receipt.body)
}

fn parse_document(text: &str) -> DocumentResult {
    twiml::parse(text).map_err(|reason| {
        tracing::warn!(reason, "an answer document is not valid");
        DocumentError::Parse
    })
}

fn kind_name(kind: DocumentKind) -> &'static str {
    match kind {
        DocumentKind::Answer => "answer",
        DocumentKind::Fallback => "fallback",
        DocumentKind::Gather => "gather",
        DocumentKind::Record => "record",
        DocumentKind::Redirect => "redirect",
    }
}

/// Resolves a reference of a document; an empty one refers to the document itself.
fn resolve_url(base: &str, reference: &str) -> Option<String> {
    let (base, _) = crate::delivery::split_fragment(base);
    if let Ok(absolute) = Url::parse(reference) {
        return matches!(absolute.scheme(), "http" | "https").then(|| reference.to_owned());
    }
    if reference.is_empty() {
        return (!base.is_empty()).then(|| base.to_owned());
    }
    Some(Url::parse(base).ok()?.join(reference).ok()?.to_string())
}

impl Switchboard {
    /// Runs a document of the caller: the first one, or one from an update.
    pub(crate) fn begin_document(&mut self, now: Micros, call: CallRef, answer: AnswerSource) {
        match answer {
            AnswerSource::Webhook(hook) => {
                let ask = DocumentRequest {
                    kind: DocumentKind::Answer,
                    url: hook.url.to_string(),
                    method: hook.method,
                    params: Vec::new(),
                };
                self.fetch_document(now, call, ask);
            }
            AnswerSource::Twiml(text) => match parse_document(&text) {
                Ok(verbs) => self.run_document(now, call, String::new(), verbs),
                Err(_) => {
                    self.count_document(call, DocumentKind::Answer, true);
                    self.end_call(now, call, CallPhase::Completed, 200);
                }
            },
        }
    }

    fn fetch_document(&mut self, now: Micros, call: CallRef, ask: DocumentRequest) {
        let Some(c) = self.call(call) else { return };
        let base = c
            .live
            .as_ref()
            .and_then(|live| live.interpreter.as_ref())
            .map_or("", |talk| talk.url.as_str());
        let Some(url) = resolve_url(base, &ask.url) else {
            self.count_document(call, ask.kind, true);
            return self.end_call(now, call, CallPhase::Completed, 200);
        };

        let Some(customer) = self.accounts.get(c.account) else {
            return;
        };
        let mut params = call_params(c, &customer.sid);
        if let Some(word) = c.answered_by {
            params.push(("AnsweredBy", word.to_owned()));
        }
        params.extend(ask.params);
        let (token, sid) = (Arc::clone(&customer.token), c.sid);
        let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) else {
            return;
        };

        live.document_serial += 1;
        live.outstanding += 1;
        let serial = live.document_serial;

        let post = QueuedCallback {
            kind: kind_name(ask.kind),
            url: Arc::from(url),
            method: ask.method,
            params,
            token,
            idempotency_token: format!("{sid}-d{serial}"),
        };
        let fetch = DocumentFetch {
            request: post,
            kind: ask.kind,
            serial,
        };
        self.pending_requests
            .push(PendingRequest::FetchDocument(call, Box::new(fetch)));
    }

    /// Runs a fetched document, unless the call has ended or moved on meanwhile.
    pub(crate) fn document_arrived(
        &mut self,
        now: Micros,
        call: CallRef,
        fetch: &DocumentFetch,
        receipt: &DeliveryReceipt,
        document: DocumentResult,
    ) {
        let Some(c) = self.call_mut(call) else { return };
        let in_progress = c.phase == CallPhase::InProgress;
        let Some(live) = c.live.as_mut() else { return };
        live.outstanding = live.outstanding.saturating_sub(1);
        let current = live.document_serial == fetch.serial;
        self.count_document(call, fetch.kind, document.is_err());

        let entry = CallbackLogEntry {
            kind: fetch.request.kind,
            method: fetch.request.method,
            url: &fetch.request.url,
            params: &fetch.request.params,
            unix_micros: self.clock.unix_micros(now),
            receipt: Some(receipt),
        };
        self.callback_log.record(call.index, &entry);

        if in_progress && current {
            match document {
                Ok(verbs) => self.run_document(now, call, fetch.request.url.to_string(), verbs),
                Err(error) => self.document_failed(now, call, fetch, error),
            }
        }
        self.release_if_settled(call);
    }

    fn count_document(&mut self, call: CallRef, kind: DocumentKind, failed: bool) {
        let Some(account) = self.call(call).map(|c| c.account) else {
            return;
        };
        self.tally(account, |tally| {
            let documents = &mut tally.documents;
            let (count, failures) = match kind {
                DocumentKind::Answer => (&mut documents.answers, &mut documents.answers_failed),
                _ => (&mut documents.later, &mut documents.later_failed),
            };
            *count += 1;
            *failures += u64::from(failed);
        });
    }

    fn document_failed(
        &mut self,
        now: Micros,
        call: CallRef,
        fetch: &DocumentFetch,
        error: DocumentError,
    ) {
        let request = self
            .call(call)
            .and_then(|c| c.live.as_ref())
            .map(|live| &live.request);
        let fallback = request
            .and_then(|request| request.fallback.clone())
            .filter(|_| fetch.kind != DocumentKind::Fallback);
        let Some(hook) = fallback else {
            return self.end_call(now, call, CallPhase::Completed, 200);
        };
        let ask = DocumentRequest {
            kind: DocumentKind::Fallback,
            url: hook.url.to_string(),
            method: hook.method,
            params: vec![
                ("ErrorCode", error.code().to_owned()),
                ("ErrorUrl", fetch.request.url.to_string()),
            ],
        };
        self.fetch_document(now, call, ask);
    }

    fn run_document(&mut self, now: Micros, call: CallRef, url: String, verbs: Vec<TwimlVerb>) {
        let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) else {
            return;
        };
        live.document_count += 1;
        live.document_serial += 1;
        let (documents, serial) = (live.document_count, live.document_serial);
        live.interpreter = Some(TwimlInterpreter::new(url, verbs));
        if documents > MAX_DOCUMENTS {
            return self.end_call(now, call, CallPhase::Completed, 200);
        }
        self.resume_document(now, call, serial);
    }

    /// Takes the next step of the document with this serial.
    pub(crate) fn resume_document(&mut self, now: Micros, call: CallRef, serial: u32) {
        let behavior = Arc::clone(&self.behavior);
        let Some(c) = self.call(call) else { return };
        let Some(customer) = self.accounts.get(c.account) else {
            return;
        };
        let recording = recording_url(&self.base_url, &customer.sid, c);
        let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) else {
            return;
        };
        if live.document_serial != serial {
            return;
        }
        let Some(talk) = live.interpreter.as_mut() else {
            return;
        };
        match talk.next_step(&behavior, &live.plan, &mut live.turn, &recording) {
            DialogStep::Wait(secs) => {
                self.schedule_after(now, secs, call, TimerAction::ResumeDocument(serial))
            }
            DialogStep::Fetch(ask) => self.fetch_document(now, call, ask),
            DialogStep::Hold => {}
            DialogStep::Hangup => self.end_call(now, call, CallPhase::Completed, 200),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_resolve_against_the_document() {
        let base = "https://app/hooks/1/answer?t=1#rc=2";
        assert_eq!(
            resolve_url(base, "").as_deref(),
            Some("https://app/hooks/1/answer?t=1")
        );
        assert_eq!(
            resolve_url(base, "turn?n=2").as_deref(),
            Some("https://app/hooks/1/turn?n=2")
        );
        assert_eq!(
            resolve_url(base, "https://other/#rc=1").as_deref(),
            Some("https://other/#rc=1")
        );
        assert_eq!(resolve_url("", "turn"), None);
        assert_eq!(resolve_url(base, "ftp://x/"), None);
    }

    #[test]
    fn an_answer_is_a_document_only_when_it_is_2xx_and_parses() {
        let receipt = |status, body: &str| DeliveryReceipt {
            status,
            body: body.to_owned(),
            ..DeliveryReceipt::default()
        };
        assert_eq!(
            read_document(&receipt(Some(200), "<Response/>")),
            Ok(Vec::new())
        );
        assert_eq!(
            read_document(&receipt(Some(500), "<Response/>")),
            Err(DocumentError::Retrieval)
        );
        assert_eq!(
            read_document(&receipt(None, "")),
            Err(DocumentError::Retrieval)
        );
        assert_eq!(
            read_document(&receipt(Some(200), "{}")),
            Err(DocumentError::Parse)
        );
    }
}
