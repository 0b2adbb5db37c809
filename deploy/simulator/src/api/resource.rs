//! The call resource with every field that Twilio documents.

use serde_json::{Value, json};

use crate::call::{CallPhase, SimulatedCall};
use crate::callee::CalleeBehavior;
use crate::clock::{Clock, Micros};

pub(super) fn call_json(
    call: &SimulatedCall,
    account_sid: &str,
    behavior: &CalleeBehavior,
    clock: Clock,
    now: Micros,
) -> Value {
    let sid = call.sid.text("CA");
    let uri = format!("/2010-04-01/Accounts/{account_sid}/Calls/{sid}");
    let sub = |name: &str| format!("{uri}/{name}.json");
    let date = |at: Option<Micros>| at.map(|at| clock.rfc2822(at));

    json!({
        "sid": sid,
        "date_created": clock.rfc2822(call.created),
        "date_updated": clock.rfc2822(call.updated),
        "parent_call_sid": null,
        "account_sid": account_sid,
        "to": &*call.to,
        "to_formatted": &*call.to,
        "from": &*call.from,
        "from_formatted": &*call.from,
        "phone_number_sid": null,
        "status": call.phase.resource_status(),
        "start_time": date(call.dialed),
        "end_time": date(call.ended),
        "duration": call.ended.map(|_| call.duration_secs.to_string()),
        "price": price(call, behavior, clock, now),
        "price_unit": "USD",
        "direction": "outbound-api",
        "answered_by": call.answered_by,
        "api_version": "2010-04-01",
        "forwarded_from": null,
        "group_sid": null,
        "caller_name": null,
        "queue_time": call.queue_ms.to_string(),
        "trunk_sid": null,
        "uri": format!("{uri}.json"),
        "subresource_uris": {
            "events": sub("Events"),
            "notifications": sub("Notifications"),
            "payments": sub("Payments"),
            "recordings": sub("Recordings"),
            "siprec": sub("Siprec"),
            "streams": sub("Streams"),
            "transcriptions": sub("Transcriptions"),
            "user_defined_message_subscriptions": sub("UserDefinedMessageSubscriptions"),
            "user_defined_messages": sub("UserDefinedMessages"),
        },
    })
}

/// Price of the started minutes of an answered call, in negative dollars; absent until some time
/// after the end of the call, and for unanswered calls.
fn price(
    call: &SimulatedCall,
    behavior: &CalleeBehavior,
    clock: Clock,
    now: Micros,
) -> Option<String> {
    let known_at = call
        .ended?
        .saturating_add(clock.real_micros(behavior.price_after_secs));
    if call.phase != CallPhase::Completed || now < known_at {
        return None;
    }
    let minutes = u64::from(call.duration_secs.div_ceil(60));
    let micros = minutes.saturating_mul(behavior.price_per_minute_micros);
    let (dollars, rest) = (micros / 1_000_000, micros % 1_000_000);
    Some(format!("-{dollars}.{rest:06}"))
}
