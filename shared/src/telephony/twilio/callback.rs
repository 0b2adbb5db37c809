//! What a verified callback says. Status callbacks are numbered, so that the same one said
//! twice has the same key; the other kinds say one thing each.

use std::collections::HashMap;

use url::form_urlencoded;

use super::records::{amount, moment};
use super::wire;
use super::words::{self, Signs};
use crate::error::{Error, Result};
use crate::telephony::{CallEvent, CallStatus, Callback, CallbackKind};

/// Reads a callback that came in on a URL of the given kind.
pub(super) fn read(kind: CallbackKind, callback: &Callback<'_>) -> Result<CallEvent> {
    let fields = Fields::of(callback)?;
    let call = fields.call_sid()?;
    match kind {
        CallbackKind::Status => status(&fields, call),
        CallbackKind::MachineDetection => machine_detection(&fields, call),
        CallbackKind::Recording => recording(&fields, call),
        CallbackKind::Answer => Ok(answer(&fields, call)),
    }
}

/// Whether a callback's body is an HTML form.
pub(super) fn is_form(callback: &Callback<'_>) -> bool {
    let kind = callback.content_type.unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The pairs of a form.
pub(super) fn form(body: &[u8]) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), value.into_owned()))
}

fn status(fields: &Fields, call: String) -> Result<CallEvent> {
    let word = fields.required("CallStatus")?;
    let source = fields.get("CallbackSource").unwrap_or_default();
    // Twilio numbers the events of a call in the order in which they happened.
    let said = fields.get("SequenceNumber").unwrap_or(word);
    let dedup_key = format!("{call}|{source}|{said}");
    let error_code = fields.get("ErrorCode");
    let signs = Signs {
        sip_code: fields.sip_code(),
        error_code: error_code.and_then(|code| code.parse().ok()),
        answered_by: fields.get("AnsweredBy").and_then(words::answered_by),
    };
    let (outcome, reason) = words::ending(word, signs).unzip();
    let price = fields.get("Price").and_then(amount);
    Ok(CallEvent {
        carrier_call_id: Some(call),
        dedup_key,
        status: words::status(word),
        outcome,
        reason: reason.flatten(),
        carrier_status: Some(word.to_owned()),
        carrier_code: error_code.map(str::to_owned),
        sip_code: signs.sip_code,
        answered_by: signs.answered_by,
        // `Duration` is in billed minutes.
        duration_seconds: fields
            .get("CallDuration")
            .and_then(|text| text.parse().ok()),
        price,
        currency: price
            .and_then(|_| fields.get("PriceUnit"))
            .map(str::to_owned),
        recording_url: fields.get("RecordingUrl").map(str::to_owned),
        occurred_at: fields.get("Timestamp").and_then(moment),
    })
}

fn machine_detection(fields: &Fields, call: String) -> Result<CallEvent> {
    let verdict = fields.required("AnsweredBy")?;
    Ok(CallEvent {
        dedup_key: format!("{call}|amd|{verdict}"),
        carrier_call_id: Some(call),
        answered_by: words::answered_by(verdict),
        ..CallEvent::default()
    })
}

fn recording(fields: &Fields, call: String) -> Result<CallEvent> {
    let recording = fields.required("RecordingSid")?;
    let state = fields.get("RecordingStatus").unwrap_or("completed");
    let url = fields.get("RecordingUrl").filter(|_| state == "completed");
    Ok(CallEvent {
        dedup_key: format!("{call}|recording|{recording}|{state}"),
        carrier_call_id: Some(call),
        recording_url: url.map(str::to_owned),
        ..CallEvent::default()
    })
}

/// Twilio fetches the document of an outbound call once it was answered.
fn answer(fields: &Fields, call: String) -> CallEvent {
    CallEvent {
        carrier_call_id: Some(call),
        dedup_key: "answer".to_owned(),
        status: Some(CallStatus::InProgress),
        carrier_status: fields.get("CallStatus").map(str::to_owned),
        answered_by: fields.get("AnsweredBy").and_then(words::answered_by),
        ..CallEvent::default()
    }
}

/// The parameters of a callback. Empty ones count as absent, and the first of several wins.
struct Fields(HashMap<String, String>);

impl Fields {
    fn of(callback: &Callback<'_>) -> Result<Self> {
        let mut fields = HashMap::new();
        let mut keep = |(name, value): (String, String)| {
            if !value.is_empty() {
                fields.entry(name).or_insert(value);
            }
        };
        if callback.method.eq_ignore_ascii_case("GET") {
            form(callback.url.query().unwrap_or_default().as_bytes()).for_each(&mut keep);
        } else if is_form(callback) {
            form(callback.body).for_each(&mut keep);
        } else {
            return Err(unreadable("the body is not a form"));
        }
        Ok(Self(fields))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn required(&self, name: &str) -> Result<&str> {
        self.get(name)
            .ok_or_else(|| unreadable(&format!("{name} is missing")))
    }

    fn call_sid(&self) -> Result<String> {
        let sid = self.required("CallSid")?;
        if !wire::is_call_sid(sid) {
            return Err(unreadable("CallSid is not the id of a call"));
        }
        Ok(sid.to_owned())
    }

    fn sip_code(&self) -> Option<i32> {
        let code = self.get("SipResponseCode")?.parse().ok()?;
        (100..=699).contains(&code).then_some(code)
    }
}

fn unreadable(detail: &str) -> Error {
    Error::rejected(
        "callback_not_readable",
        format!("Twilio callback: {detail}"),
    )
}
