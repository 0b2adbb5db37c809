//! Fields of a create, checked as Twilio checks them.

use super::form::FormParams;
use crate::call::{
    AnswerSource, CreateRequest, DetectionRequest, EventSubscription, RecordingRequest,
};
use crate::refusal::TwilioError;

const SINGLE_FIELDS: [&str; 34] = [
    "To",
    "From",
    "Url",
    "Method",
    "FallbackUrl",
    "FallbackMethod",
    "Twiml",
    "ApplicationSid",
    "StatusCallback",
    "StatusCallbackMethod",
    "SendDigits",
    "Timeout",
    "TimeLimit",
    "Record",
    "RecordingChannels",
    "RecordingStatusCallback",
    "RecordingStatusCallbackMethod",
    "RecordingTrack",
    "Trim",
    "SipAuthUsername",
    "SipAuthPassword",
    "MachineDetection",
    "MachineDetectionTimeout",
    "MachineDetectionSpeechThreshold",
    "MachineDetectionSpeechEndThreshold",
    "MachineDetectionSilenceTimeout",
    "AsyncAmd",
    "AsyncAmdStatusCallback",
    "AsyncAmdStatusCallbackMethod",
    "Byoc",
    "CallerId",
    "CallReason",
    "CallToken",
    "ClientNotificationUrl",
];
const REPEATED_FIELDS: [&str; 2] = ["StatusCallbackEvent", "RecordingStatusCallbackEvent"];

const MAX_TWIML_CHARS: usize = 4000;

/// Parses the form of a create.
pub(super) fn read(form: &FormParams<'_>) -> Result<CreateRequest, TwilioError> {
    form.check(&SINGLE_FIELDS, &REPEATED_FIELDS)?;
    let to = form
        .get("To")
        .ok_or_else(|| TwilioError::bad_request(21201, "No 'To' number is specified"))?;
    if !is_address(to) {
        let message = format!("The 'To' number {to} is not a valid phone number.");
        return Err(TwilioError::bad_request(21211, message));
    }
    let from = form
        .get("From")
        .ok_or_else(|| TwilioError::bad_request(21213, "A 'From' phone number is required."))?;
    if !is_address(from) {
        let message = format!("The 'From' number {from} is not a valid phone number.");
        return Err(TwilioError::bad_request(21212, message));
    }
    Ok(CreateRequest {
        to: to.to_owned(),
        from: from.to_owned(),
        answer: answer(form)?
            .ok_or_else(|| TwilioError::bad_request(21205, "Url parameter is required."))?,
        fallback: form.hook("FallbackUrl", "FallbackMethod", 21205)?,
        status: form.hook("StatusCallback", "StatusCallbackMethod", 21609)?,
        events: events(form)?,
        ring_timeout_secs: form.number("Timeout", 60, 1..=600, 21208)?,
        time_limit_secs: form.number("TimeLimit", 14_400, 1..=86_400, 20001)?,
        detection: detection(form)?,
        recording: recording(form)?,
    })
}

/// The document of a create or of an update.
pub(super) fn answer(form: &FormParams<'_>) -> Result<Option<AnswerSource>, TwilioError> {
    if form.get("ApplicationSid").is_some() {
        return Err(TwilioError::bad_request(
            21218,
            "ApplicationSid is not valid: the simulator has no applications",
        ));
    }
    if let Some(hook) = form.hook("Url", "Method", 21205)? {
        return Ok(Some(AnswerSource::Webhook(hook)));
    }
    let Some(twiml) = form.get("Twiml") else {
        return Ok(None);
    };
    if twiml.chars().count() > MAX_TWIML_CHARS {
        return Err(TwilioError::bad_request(
            20001,
            "Twiml may have at most 4000 characters",
        ));
    }
    Ok(Some(AnswerSource::Twiml(twiml.to_owned())))
}

/// True for an E.164 number, a SIP address or a client address.
fn is_address(text: &str) -> bool {
    if let Some(digits) = text.strip_prefix('+') {
        return (7..=15).contains(&digits.len())
            && !digits.starts_with('0')
            && digits.bytes().all(|byte| byte.is_ascii_digit());
    }
    ["sip:", "client:"].iter().any(|scheme| {
        text.strip_prefix(scheme)
            .is_some_and(|rest| !rest.is_empty())
    })
}

fn events(form: &FormParams<'_>) -> Result<EventSubscription, TwilioError> {
    let mut events = EventSubscription::NONE;
    // The API documents a repeated key; older clients send one key with a space separated list.
    for word in form
        .all("StatusCallbackEvent")
        .flat_map(str::split_whitespace)
    {
        match word {
            "initiated" => events.initiated = true,
            "ringing" => events.ringing = true,
            "answered" => events.answered = true,
            "completed" => events.completed = true,
            other => {
                let message = format!("Invalid StatusCallbackEvent {other}");
                return Err(TwilioError::bad_request(21626, message));
            }
        }
    }
    Ok(if events == EventSubscription::NONE {
        EventSubscription::DEFAULT
    } else {
        events
    })
}

fn detection(form: &FormParams<'_>) -> Result<Option<DetectionRequest>, TwilioError> {
    form.number("MachineDetectionTimeout", 30, 3..=59, 20001)?;
    form.number("MachineDetectionSpeechThreshold", 2400, 1000..=6000, 20001)?;
    form.number(
        "MachineDetectionSpeechEndThreshold",
        1200,
        500..=5000,
        20001,
    )?;
    form.number("MachineDetectionSilenceTimeout", 5000, 2000..=10_000, 20001)?;
    let asynchronous = form.flag("AsyncAmd")?;
    let hook = form.hook(
        "AsyncAmdStatusCallback",
        "AsyncAmdStatusCallbackMethod",
        21609,
    )?;
    match form.get("MachineDetection") {
        // SendDigits turns detection off.
        Some("Enable" | "DetectMessageEnd") if form.get("SendDigits").is_none() => {
            Ok(Some(DetectionRequest {
                asynchronous,
                webhook: hook,
            }))
        }
        None | Some("None" | "Enable" | "DetectMessageEnd") => Ok(None),
        Some(other) => Err(TwilioError::bad_request(
            20001,
            format!("MachineDetection {other} is neither Enable nor DetectMessageEnd"),
        )),
    }
}

fn recording(form: &FormParams<'_>) -> Result<Option<RecordingRequest>, TwilioError> {
    let hook = form.hook(
        "RecordingStatusCallback",
        "RecordingStatusCallbackMethod",
        21609,
    )?;
    let channels = match form.get("RecordingChannels") {
        None | Some("mono") => "1",
        Some("dual") => "2",
        Some(other) => {
            let message = format!("RecordingChannels {other} is neither mono nor dual");
            return Err(TwilioError::bad_request(20001, message));
        }
    };
    let (mut on_in_progress, mut on_completed, mut any) = (false, false, false);
    for word in form
        .all("RecordingStatusCallbackEvent")
        .flat_map(str::split_whitespace)
    {
        any = true;
        match word {
            "in-progress" => on_in_progress = true,
            "completed" => on_completed = true,
            "absent" => {}
            other => {
                let message = format!("Invalid RecordingStatusCallbackEvent {other}");
                return Err(TwilioError::bad_request(21626, message));
            }
        }
    }
    let record = form.flag("Record")?;
    Ok(record.then_some(RecordingRequest {
        webhook: hook,
        channels,
        on_in_progress,
        on_completed: on_completed || !any,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "To=%2B14155550100&From=%2B14155550111&Url=http://x/a";

    fn code(text: &str) -> u32 {
        read(&FormParams::parse(text.as_bytes())).map_or_else(|refusal| refusal.code, |_| 0)
    }

    #[test]
    fn each_mistake_has_twilios_code() {
        assert_eq!(code(GOOD), 0);
        for (text, expected) in [
            ("From=%2B14155550111&Url=http://x/", 21201),
            ("To=4155550100&From=%2B14155550111&Url=http://x/", 21211),
            ("To=%2B04155550100&From=%2B14155550111&Url=http://x/", 21211),
            ("To=%2B14155550100&Url=http://x/", 21213),
            ("To=%2B14155550100&From=abc&Url=http://x/", 21212),
            ("To=%2B14155550100&From=%2B14155550111", 21205),
            ("To=%2B14155550100&From=%2B14155550111&Url=nowhere", 21205),
        ] {
            assert_eq!(code(text), expected, "{text}");
        }
        for (extra, expected) in [
            ("Timeout=601", 21208),
            ("StatusCallback=x", 21609),
            ("StatusCallbackEvent=answerd", 21626),
            ("StatusCalback=http://x/", 20001),
            ("MachineDetection=Yes", 20001),
            ("Record=maybe", 20001),
            ("ApplicationSid=AP1", 21218),
            ("Method=PUT", 20001),
        ] {
            assert_eq!(code(&format!("{GOOD}&{extra}")), expected, "{extra}");
        }
    }

    #[test]
    fn events_come_as_repeated_keys_or_one_list_and_default_to_completed() {
        let events = |extra: &str| {
            let text = format!("{GOOD}{extra}");
            read(&FormParams::parse(text.as_bytes())).unwrap().events
        };
        let both = EventSubscription {
            initiated: true,
            answered: true,
            ..EventSubscription::NONE
        };
        assert_eq!(
            events("&StatusCallbackEvent=initiated&StatusCallbackEvent=answered"),
            both
        );
        assert_eq!(events("&StatusCallbackEvent=initiated+answered"), both);
        assert_eq!(events(""), EventSubscription::DEFAULT);
    }

    #[test]
    fn detection_and_recording_are_read() {
        let text = format!(
            "{GOOD}&MachineDetection=Enable&AsyncAmd=true&AsyncAmdStatusCallback=http://x/amd\
             &Record=true&RecordingChannels=dual&RecordingStatusCallback=http://x/rec"
        );
        let request = read(&FormParams::parse(text.as_bytes())).unwrap();
        let detection = request.detection.unwrap();
        assert!(detection.asynchronous && detection.webhook.is_some());
        let recording = request.recording.unwrap();
        assert_eq!(recording.channels, "2");
        assert!(recording.on_completed && !recording.on_in_progress);
        let text = format!("{GOOD}&MachineDetection=Enable&SendDigits=1");
        assert_eq!(
            read(&FormParams::parse(text.as_bytes())).unwrap().detection,
            None
        );
    }
}
