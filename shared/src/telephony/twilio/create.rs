//! Creating a call: one request, and the classification of its response.
//!
//! ```text
//! 2xx with a call id                                    accepted
//! no connection, 429 + 20429, 4xx + 10004               deferred  (proof: nothing was processed)
//! 4xx with Twilio's error document, not 408 409 425 429 refused
//! anything else                                         unknown
//! ```
//!
//! The request has no retry of any kind and follows no redirect: a repeated request would call
//! the person twice.

use reqwest::{Client, StatusCode};
use url::Url;

use super::wire::{RequestFailure, TwilioError, TwilioReply};
use super::{wire, words};
use crate::telephony::{CarrierAccount, NewCall, Placement};

/// Twilio's longest ring time.
const MAX_RING_TIMEOUT_SECS: u32 = 600;

/// Progress events to be called back for. The earliest resolves a create request whose response
/// was lost.
const STATUS_EVENTS: [&str; 4] = ["initiated", "ringing", "answered", "completed"];

/// Connection overrides of callback URLs: five retries, on every kind of failure. Twilio
/// reads the fragment and never sends it.
const RETRY_ALL_FAILURES: &str = "rc=5&rp=all";

/// Error for too many concurrent API requests; documented as not processed.
const TOO_MANY_REQUESTS: u64 = 20429;

/// Error for too many concurrent calls; the call is rejected, not queued.
const TOO_MANY_CALLS: u64 = 10004;

/// Creates a call at Twilio.
pub(super) async fn create(client: &Client, account: &CarrierAccount, call: &NewCall) -> Placement {
    let Some(url) = wire::address(account, &["Calls.json"]) else {
        return Placement::Deferred {
            proof: "nothing was sent: the trunk's API address cannot hold a path".to_owned(),
            retry_after_secs: None,
            throttled: false,
        };
    };
    let request = wire::authorize(client.post(url), account).form(&request_form(call));
    classify(wire::send_once(request).await)
}

/// Fields of the request, in the order of Twilio's reference.
pub(super) fn request_form(call: &NewCall) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("To", call.to.as_str().to_owned()),
        ("From", call.from.as_str().to_owned()),
        ("Url", callback_url(&call.answer_url)),
        ("Method", "POST".to_owned()),
        ("StatusCallback", callback_url(&call.status_url)),
        ("StatusCallbackMethod", "POST".to_owned()),
    ];

    for event in STATUS_EVENTS {
        fields.push(("StatusCallbackEvent", event.to_owned()));
    }

    let ring_timeout_secs = call.ring_timeout_secs.min(MAX_RING_TIMEOUT_SECS);
    fields.push(("Timeout", ring_timeout_secs.to_string()));
    fields.push(("TimeLimit", call.max_duration_secs.to_string()));

    if let Some(url) = &call.machine_detection_url {
        // Asynchronous: otherwise the person hears silence until the verdict.
        fields.push(("MachineDetection", "Enable".to_owned()));
        fields.push(("AsyncAmd", "true".to_owned()));
        fields.push(("AsyncAmdStatusCallback", callback_url(url)));
        fields.push(("AsyncAmdStatusCallbackMethod", "POST".to_owned()));
    }

    if let Some(url) = &call.recording_url {
        fields.push(("Record", "true".to_owned()));
        fields.push(("RecordingStatusCallback", callback_url(url)));
        fields.push(("RecordingStatusCallbackMethod", "POST".to_owned()));
        fields.push(("RecordingStatusCallbackEvent", "completed".to_owned()));
    }

    fields
}

fn callback_url(url: &Url) -> String {
    let mut url = url.clone();
    url.set_fragment(Some(RETRY_ALL_FAILURES));
    url.into()
}

/// Decides what a reply, or its absence, proves.
pub(super) fn classify(result: Result<TwilioReply, RequestFailure>) -> Placement {
    let reply = match result {
        Ok(reply) => reply,
        Err(RequestFailure::NotSent(proof)) => {
            return Placement::Deferred {
                proof,
                retry_after_secs: None,
                throttled: false,
            };
        }
        Err(RequestFailure::Lost(detail)) => return Placement::Unknown { detail },
    };

    let status = reply.status;
    if status.is_success() {
        return accepted(&reply).unwrap_or_else(|| Placement::Unknown {
            detail: format!("HTTP {status} without a call id"),
        });
    }

    match reply.error() {
        Some(fault) if is_proof_of_no_processing(status, fault.code) => Placement::Deferred {
            proof: format!("HTTP {status}, code {}: {}", fault.code, fault.message),
            retry_after_secs: reply.retry_after_secs,
            throttled: true,
        },
        Some(fault) if is_definite(status) => refused(status, fault),
        Some(fault) => Placement::Unknown {
            detail: format!("HTTP {status}, code {}: {}", fault.code, fault.message),
        },
        None => Placement::Unknown {
            detail: format!("HTTP {status} without a Twilio error"),
        },
    }
}

fn accepted(reply: &TwilioReply) -> Option<Placement> {
    let record = reply.json()?;
    let carrier_call_id = wire::text(&record, "sid").filter(|sid| wire::is_call_sid(sid))?;
    Some(Placement::Accepted {
        carrier_call_id,
        carrier_status: wire::text(&record, "status").unwrap_or_default(),
    })
}

fn refused(status: StatusCode, fault: TwilioError) -> Placement {
    Placement::Refused {
        reason: words::refusal_reason(status, fault.code),
        code: fault.code.to_string(),
        message: fault.message,
    }
}

/// True for a client error about the request itself. The others are about the connection's
/// timing, and a gateway may send them while the request is processed.
fn is_definite(status: StatusCode) -> bool {
    status.is_client_error() && !matches!(status.as_u16(), 408 | 409 | 425 | 429)
}

fn is_proof_of_no_processing(status: StatusCode, code: u64) -> bool {
    let throttled = status == StatusCode::TOO_MANY_REQUESTS;
    match code {
        TOO_MANY_REQUESTS => throttled,
        TOO_MANY_CALLS => throttled || is_definite(status),
        _ => false,
    }
}
