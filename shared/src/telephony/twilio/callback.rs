//! Reading verified callbacks. Status callbacks are numbered, so that a repeated one has the same
//! key; the other kinds report one fact each.

use std::collections::HashMap;

use url::form_urlencoded;

use super::records::{parse_date, parse_price};
use super::words::StatusDetails;
use super::{wire, words};
use crate::platform::error::{Error, Result};
use crate::telephony::{CallEvent, CallReference, CallStatus, CallbackKind, CarrierCallback};

/// Reads a callback that arrived at a URL of the given kind.
pub(super) fn read(kind: CallbackKind, callback: &CarrierCallback<'_>) -> Result<CallEvent> {
    let fields = CallbackFields::parse(callback)?;
    let call = fields.call_sid()?;
    match kind {
        CallbackKind::Status => read_status(&fields, call),
        CallbackKind::MachineDetection => read_machine_detection(&fields, call),
        CallbackKind::Recording => read_recording(&fields, call),
        CallbackKind::Answer => Ok(read_answer(&fields, call)),
    }
}

/// Account and call named in a callback.
pub(super) fn call_reference(callback: &CarrierCallback<'_>) -> Option<CallReference> {
    let fields = CallbackFields::parse(callback).ok()?;
    Some(CallReference {
        account_id: fields.get("AccountSid")?.to_owned(),
        carrier_call_id: fields.call_sid().ok()?,
    })
}

/// True when a callback's body is an HTML form.
pub(super) fn is_form(callback: &CarrierCallback<'_>) -> bool {
    let kind = callback.content_type.unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Pairs of a form.
pub(super) fn form(body: &[u8]) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), value.into_owned()))
}

fn read_status(fields: &CallbackFields, call: String) -> Result<CallEvent> {
    let word = fields.required("CallStatus")?;
    let source = fields.get("CallbackSource").unwrap_or_default();
    // Twilio numbers the events of a call in the order in which they happened.
    let sequence = fields.get("SequenceNumber").unwrap_or(word);
    let dedup_key = format!("{call}|{source}|{sequence}");

    let error_code = fields.get("ErrorCode");
    let signs = StatusDetails {
        sip_code: fields.sip_code(),
        error_code: error_code.and_then(|code| code.parse().ok()),
        answered_by: fields.get("AnsweredBy").and_then(words::answered_by),
    };

    let (outcome, reason) = words::outcome_and_reason(word, signs).unzip();
    let price = fields.get("Price").and_then(parse_price);

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
            .and_then(|text| text.parse().ok())
            .filter(|seconds| *seconds >= 0),
        price,
        currency: price
            .and_then(|_| fields.get("PriceUnit"))
            .map(str::to_owned),
        recording_url: fields.get("RecordingUrl").map(str::to_owned),
        occurred_at: fields.get("Timestamp").and_then(parse_date),
    })
}

fn read_machine_detection(fields: &CallbackFields, call: String) -> Result<CallEvent> {
    let verdict = fields.required("AnsweredBy")?;
    Ok(CallEvent {
        dedup_key: format!("{call}|amd|{verdict}"),
        carrier_call_id: Some(call),
        answered_by: words::answered_by(verdict),
        ..CallEvent::default()
    })
}

fn read_recording(fields: &CallbackFields, call: String) -> Result<CallEvent> {
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

/// Twilio fetches the answer document of an outbound call only after an answer.
fn read_answer(fields: &CallbackFields, call: String) -> CallEvent {
    CallEvent {
        carrier_call_id: Some(call),
        dedup_key: "answer".to_owned(),
        status: Some(CallStatus::InProgress),
        carrier_status: fields.get("CallStatus").map(str::to_owned),
        answered_by: fields.get("AnsweredBy").and_then(words::answered_by),
        ..CallEvent::default()
    }
}

/// Parameters of a callback. Empty ones count as absent, and the first of several wins.
struct CallbackFields(HashMap<String, String>);

impl CallbackFields {
    fn parse(callback: &CarrierCallback<'_>) -> Result<Self> {
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rust_decimal::Decimal;
    use url::Url;

    use super::*;
    use crate::telephony::{AnsweredBy, Outcome, Reason};

    const CALL: &str = "CA00000000000000000000000000000002";
    const FORM: Option<&str> = Some("application/x-www-form-urlencoded; charset=utf-8");

    fn posted(kind: CallbackKind, body: &str) -> Result<CallEvent> {
        let url = Url::parse("https://dialer.example.com/callbacks/x").unwrap();
        read(
            kind,
            &CarrierCallback {
                method: "POST",
                url: &url,
                content_type: FORM,
                signature: None,
                body: &Bytes::copy_from_slice(body.as_bytes()),
            },
        )
    }

    fn read_status(body: &str) -> CallEvent {
        posted(CallbackKind::Status, &format!("CallSid={CALL}&{body}")).unwrap()
    }

    #[test]
    fn a_status_callback_is_read_in_full() {
        let event = read_status(
            "CallStatus=completed&CallbackSource=call-progress-events&SequenceNumber=3\
             &CallDuration=61&Duration=2&AnsweredBy=human&SipResponseCode=200\
             &Timestamp=Wed%2C+04+Mar+2026+09%3A31%3A19+%2B0000&Price=-0.0135&PriceUnit=USD\
             &RecordingUrl=https%3A%2F%2Fapi.twilio.com%2FRE1",
        );
        let expected = CallEvent {
            carrier_call_id: Some(CALL.to_owned()),
            dedup_key: format!("{CALL}|call-progress-events|3"),
            status: Some(CallStatus::Final),
            outcome: Some(Outcome::Completed),
            reason: None,
            carrier_status: Some("completed".to_owned()),
            carrier_code: None,
            sip_code: Some(200),
            answered_by: Some(AnsweredBy::Human),
            duration_seconds: Some(61),
            price: Some(Decimal::new(135, 4)),
            currency: Some("USD".to_owned()),
            recording_url: Some("https://api.twilio.com/RE1".to_owned()),
            occurred_at: "2026-03-04T09:31:19Z".parse().ok(),
        };
        assert_eq!(event, expected);
    }

    #[test]
    fn progress_carries_no_outcome() {
        for (word, expected) in [
            ("queued", Some(CallStatus::Accepted)),
            ("initiated", Some(CallStatus::Dialing)),
            ("ringing", Some(CallStatus::Ringing)),
            ("in-progress", Some(CallStatus::InProgress)),
            ("levitating", None),
        ] {
            let event = read_status(&format!("CallStatus={word}&SequenceNumber=0"));
            assert_eq!(event.status, expected);
            assert_eq!((event.outcome, event.reason), (None, None));
            assert_eq!(event.carrier_status.as_deref(), Some(word));
        }
    }

    #[test]
    fn a_failure_keeps_the_codes_that_explain_it() {
        let event = read_status("CallStatus=failed&SipResponseCode=603&CallDuration=0");
        assert_eq!(event.outcome, Some(Outcome::Rejected));
        assert_eq!(event.reason, Some(Reason::RejectedByCallee));
        assert_eq!(
            (event.sip_code, event.duration_seconds),
            (Some(603), Some(0))
        );
        let event = read_status("CallStatus=failed&ErrorCode=21215&SipResponseCode=abc");
        assert_eq!(event.reason, Some(Reason::BlockedGeo));
        assert_eq!(event.carrier_code.as_deref(), Some("21215"));
        assert_eq!(event.sip_code, None);
        let event = read_status("CallStatus=completed&AnsweredBy=machine_end_beep");
        assert_eq!(event.outcome, Some(Outcome::Machine));
    }

    #[test]
    fn an_unnumbered_callback_is_known_by_its_status() {
        assert_eq!(
            read_status("CallStatus=busy&CallbackSource=&SequenceNumber=").dedup_key,
            format!("{CALL}||busy")
        );
        assert_eq!(
            read_status("CallStatus=busy&SequenceNumber=2&Extra=1").dedup_key,
            read_status("SequenceNumber=2&CallStatus=busy").dedup_key
        );
    }

    #[test]
    fn a_verdict_and_a_recording_change_no_status() {
        let body = format!("CallSid={CALL}&AnsweredBy=machine_start&MachineDetectionDuration=3200");
        let event = posted(CallbackKind::MachineDetection, &body).unwrap();
        assert_eq!(event.answered_by, Some(AnsweredBy::Machine));
        assert_eq!((event.status, event.outcome), (None, None));

        let body = format!(
            "CallSid={CALL}&RecordingSid=RE1&RecordingStatus=completed&RecordingUrl=https%3A%2F%2Fx%2FRE1"
        );
        let event = posted(CallbackKind::Recording, &body).unwrap();
        assert_eq!(event.recording_url.as_deref(), Some("https://x/RE1"));
        assert_eq!(event.status, None);
        let absent = body.replace("completed", "absent");
        let absent = posted(CallbackKind::Recording, &absent).unwrap();
        assert_eq!(absent.recording_url, None);
        assert_ne!(absent.dedup_key, event.dedup_key);
    }

    #[test]
    fn fetching_the_document_means_that_the_call_was_answered() {
        let expected = CallEvent {
            carrier_call_id: Some(CALL.to_owned()),
            dedup_key: "answer".to_owned(),
            status: Some(CallStatus::InProgress),
            carrier_status: Some("in-progress".to_owned()),
            ..CallEvent::default()
        };
        let parameters = format!("CallSid={CALL}&CallStatus=in-progress");
        let event = posted(CallbackKind::Answer, &parameters).unwrap();
        assert_eq!(event, expected);

        let url = Url::parse(&format!("https://dialer.example.com/a?{parameters}")).unwrap();
        let fetched = CarrierCallback {
            method: "GET",
            url: &url,
            content_type: None,
            signature: None,
            body: &Bytes::new(),
        };
        assert_eq!(read(CallbackKind::Answer, &fetched).unwrap(), expected);
    }

    #[test]
    fn a_body_that_twilio_would_not_send_is_rejected() {
        for (kind, body) in [
            (CallbackKind::Status, String::new()),
            (CallbackKind::Status, "CallStatus=busy".to_owned()),
            (
                CallbackKind::Status,
                "CallSid=CA1&CallStatus=busy".to_owned(),
            ),
            (CallbackKind::Status, format!("CallSid={CALL}")),
            (CallbackKind::Status, "{\"CallSid\":\"CA1\"}".to_owned()),
            (CallbackKind::MachineDetection, format!("CallSid={CALL}")),
            (CallbackKind::Recording, format!("CallSid={CALL}")),
            (CallbackKind::Answer, "To=%2B15550100002".to_owned()),
        ] {
            let error = posted(kind, &body).unwrap_err();
            let rejected = matches!(
                error,
                Error::Rejected {
                    code: "callback_not_readable",
                    ..
                }
            );
            assert!(rejected, "{body}: {error}");
        }

        let url = Url::parse("https://dialer.example.com/a").unwrap();
        let body = Bytes::from(format!("{{\"CallSid\":\"{CALL}\"}}"));
        let json = CarrierCallback {
            method: "POST",
            url: &url,
            content_type: Some("application/json"),
            signature: None,
            body: &body,
        };
        assert!(read(CallbackKind::Status, &json).is_err());
    }
}
