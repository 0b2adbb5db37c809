//! Answer documents: fetch, execution, and the documents that follow.
//!
//! A document that cannot be fetched or parsed sends the call to its fallback URL once; without
//! a fallback, or when that fails too, the call is hung up, as Twilio does after an error
//! message.

use std::sync::Arc;

use url::Url;

use crate::call::{Answer, CallRef, Phase};
use crate::call_lifecycle::DOCUMENTS_MAX;
use crate::callback_log::Entry;
use crate::callbacks::{Post, call_params, recording_url};
use crate::clock::Micros;
use crate::delivery::Receipt;
use crate::switchboard::{Action, Switchboard, What};
use crate::twiml;
use crate::twiml::Verb;
use crate::twiml_interpreter::{Ask, AskKind, Step, Talk};

/// A document fetch in progress.
pub(crate) struct Fetch {
    pub(crate) post: Post,
    kind: AskKind,
    serial: u32,
}

/// A fetched document: its verbs or its error.
pub(crate) type Document = Result<Vec<Verb>, DocumentError>;

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
pub(crate) fn read(receipt: &Receipt) -> Document {
    if !receipt.is_success() {
        return Err(DocumentError::Retrieval);
    }
    parse(&receipt.body)
}

fn parse(text: &str) -> Document {
    twiml::parse(text).map_err(|reason| {
        tracing::warn!(reason, "an answer document is not valid");
        DocumentError::Parse
    })
}

fn word(kind: AskKind) -> &'static str {
    match kind {
        AskKind::Answer => "answer",
        AskKind::Fallback => "fallback",
        AskKind::Gather => "gather",
        AskKind::Record => "record",
        AskKind::Redirect => "redirect",
    }
}

/// Resolves a reference of a document; an empty one refers to the document itself.
fn resolve(base: &str, reference: &str) -> Option<String> {
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
    pub(crate) fn begin_document(&mut self, now: Micros, call: CallRef, answer: Answer) {
        match answer {
            Answer::Hook(hook) => {
                let ask = Ask {
                    kind: AskKind::Answer,
                    url: hook.url.to_string(),
                    method: hook.method,
                    params: Vec::new(),
                };
                self.ask(now, call, ask);
            }
            Answer::Twiml(text) => match parse(&text) {
                Ok(verbs) => self.run_document(now, call, String::new(), verbs),
                Err(_) => {
                    self.count_document(call, AskKind::Answer, true);
                    self.end(now, call, Phase::Completed, 200);
                }
            },
        }
    }

    fn ask(&mut self, now: Micros, call: CallRef, ask: Ask) {
        let Some(c) = self.call(call) else { return };
        let base = c
            .live
            .as_ref()
            .and_then(|live| live.talk.as_ref())
            .map_or("", |talk| talk.url.as_str());
        let Some(url) = resolve(base, &ask.url) else {
            self.count_document(call, ask.kind, true);
            return self.end(now, call, Phase::Completed, 200);
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

        live.talk_serial += 1;
        live.outstanding += 1;
        let serial = live.talk_serial;

        let post = Post {
            kind: word(ask.kind),
            url: Arc::from(url),
            method: ask.method,
            params,
            token,
            idempotency: format!("{sid}-d{serial}"),
        };
        let fetch = Fetch {
            post,
            kind: ask.kind,
            serial,
        };
        self.actions.push(Action::Fetch(call, Box::new(fetch)));
    }

    /// Runs a fetched document, unless the call has ended or moved on meanwhile.
    pub(crate) fn document_arrived(
        &mut self,
        now: Micros,
        call: CallRef,
        fetch: &Fetch,
        receipt: &Receipt,
        document: Document,
    ) {
        let Some(c) = self.call_mut(call) else { return };
        let in_progress = c.phase == Phase::InProgress;
        let Some(live) = c.live.as_mut() else { return };
        live.outstanding = live.outstanding.saturating_sub(1);
        let current = live.talk_serial == fetch.serial;
        self.count_document(call, fetch.kind, document.is_err());

        let entry = Entry {
            kind: fetch.post.kind,
            method: fetch.post.method,
            url: &fetch.post.url,
            params: &fetch.post.params,
            unix_micros: self.clock.unix_micros(now),
            receipt: Some(receipt),
        };
        self.kept.file(call.index, &entry);

        if in_progress && current {
            match document {
                Ok(verbs) => self.run_document(now, call, fetch.post.url.to_string(), verbs),
                Err(error) => self.document_failed(now, call, fetch, error),
            }
        }
        self.settle(call);
    }

    fn count_document(&mut self, call: CallRef, kind: AskKind, failed: bool) {
        let Some(account) = self.call(call).map(|c| c.account) else {
            return;
        };
        self.tally(account, |tally| {
            let documents = &mut tally.documents;
            let (count, failures) = match kind {
                AskKind::Answer => (&mut documents.answers, &mut documents.answers_failed),
                _ => (&mut documents.later, &mut documents.later_failed),
            };
            *count += 1;
            *failures += u64::from(failed);
        });
    }

    fn document_failed(&mut self, now: Micros, call: CallRef, fetch: &Fetch, error: DocumentError) {
        let request = self
            .call(call)
            .and_then(|c| c.live.as_ref())
            .map(|live| &live.request);
        let fallback = request
            .and_then(|request| request.fallback.clone())
            .filter(|_| fetch.kind != AskKind::Fallback);
        let Some(hook) = fallback else {
            return self.end(now, call, Phase::Completed, 200);
        };
        let ask = Ask {
            kind: AskKind::Fallback,
            url: hook.url.to_string(),
            method: hook.method,
            params: vec![
                ("ErrorCode", error.code().to_owned()),
                ("ErrorUrl", fetch.post.url.to_string()),
            ],
        };
        self.ask(now, call, ask);
    }

    fn run_document(&mut self, now: Micros, call: CallRef, url: String, verbs: Vec<Verb>) {
        let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) else {
            return;
        };
        live.documents += 1;
        live.talk_serial += 1;
        let (documents, serial) = (live.documents, live.talk_serial);
        live.talk = Some(Talk::new(url, verbs));
        if documents > DOCUMENTS_MAX {
            return self.end(now, call, Phase::Completed, 200);
        }
        self.resume_talk(now, call, serial);
    }

    /// Takes the next step of the document with this serial.
    pub(crate) fn resume_talk(&mut self, now: Micros, call: CallRef, serial: u32) {
        let behavior = Arc::clone(&self.behavior);
        let Some(c) = self.call(call) else { return };
        let Some(customer) = self.accounts.get(c.account) else {
            return;
        };
        let recording = recording_url(&self.base_url, &customer.sid, c);
        let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) else {
            return;
        };
        if live.talk_serial != serial {
            return;
        }
        let Some(talk) = live.talk.as_mut() else {
            return;
        };
        match talk.step(&behavior, &live.plan, &mut live.turn, &recording) {
            Step::Wait(secs) => self.after(now, secs, call, What::Talk(serial)),
            Step::Ask(ask) => self.ask(now, call, ask),
            Step::Hold => {}
            Step::Hangup => self.end(now, call, Phase::Completed, 200),
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
            resolve(base, "").as_deref(),
            Some("https://app/hooks/1/answer?t=1")
        );
        assert_eq!(
            resolve(base, "turn?n=2").as_deref(),
            Some("https://app/hooks/1/turn?n=2")
        );
        assert_eq!(
            resolve(base, "https://other/#rc=1").as_deref(),
            Some("https://other/#rc=1")
        );
        assert_eq!(resolve("", "turn"), None);
        assert_eq!(resolve(base, "ftp://x/"), None);
    }

    #[test]
    fn an_answer_is_a_document_only_when_it_is_2xx_and_parses() {
        let receipt = |status, body: &str| Receipt {
            status,
            body: body.to_owned(),
            ..Receipt::default()
        };
        assert_eq!(read(&receipt(Some(200), "<Response/>")), Ok(Vec::new()));
        assert_eq!(
            read(&receipt(Some(500), "<Response/>")),
            Err(DocumentError::Retrieval)
        );
        assert_eq!(read(&receipt(None, "")), Err(DocumentError::Retrieval));
        assert_eq!(read(&receipt(Some(200), "{}")), Err(DocumentError::Parse));
    }
}
