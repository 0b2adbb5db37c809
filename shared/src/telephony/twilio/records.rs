//! Twilio's records: reading one call, searching for calls whose create request had no response,
//! and ending a call. All of these requests may be repeated.

use chrono::{DateTime, SubsecRound, Utc};
use reqwest::{Client, StatusCode};
use rust_decimal::Decimal;
use serde_json::Value;
use url::Url;

use super::wire::TwilioReply;
use super::words::StatusDetails;
use super::{wire, words};
use crate::platform::error::Result;
use crate::telephony::{
    CallEvent, CallSearch, CallStatus, CallTermination, CarrierAccount, CarrierCall,
};

/// Largest page that Twilio allows.
const PAGE_SIZE: &str = "1000";

/// Maximum pages of a search; a longer one fails rather than return a part.
const MAX_PAGES: usize = 10;

/// Error for an update of a call that has ended.
const CALL_HAS_ENDED: u64 = 21220;

/// Reads the record of one call.
pub(super) async fn fetch(
    client: &Client,
    account: &CarrierAccount,
    carrier_call_id: &str,
) -> Result<Option<CarrierCall>> {
    let url = address(account, &["Calls", &format!("{carrier_call_id}.json")])?;
    let reply = wire::send_once(wire::authorize(client.get(url), account)).await?;
    if reply.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let record = require_success(reply)?;
    parse_record(&record)
        .map(Some)
        .ok_or_else(|| wire::twilio_failure(true, "a call record without an id"))
}

/// Lists the calls between two numbers that were created within the window. Queued calls have no
/// start time, and Twilio's time filters are by day, so the window is applied here.
pub(super) async fn search(
    client: &Client,
    account: &CarrierAccount,
    search: &CallSearch,
) -> Result<Vec<CarrierCall>> {
    let list = address(account, &["Calls.json"])?;
    let mut page = list.clone();
    page.query_pairs_mut().extend_pairs(search_query(search));
    let mut found = Vec::new();

    for _ in 0..MAX_PAGES {
        let reply = wire::send_once(wire::authorize(client.get(page), account)).await?;

        let body = require_success(reply)?;
        let calls = body.get("calls").and_then(Value::as_array);
        let calls = calls.ok_or_else(|| wire::twilio_failure(true, "a list without calls"))?;
        for record in calls {
            let call = parse_record(record);
            let call =
                call.ok_or_else(|| wire::twilio_failure(true, "a listed call without an id"))?;
            if in_window(search, call.created_at) {
                found.push(call);
            }
        }

        match wire::text(&body, "next_page_uri") {
            Some(next) => page = next_page(&list, &next)?,
            None => return Ok(found),
        }
    }

    let detail = format!("the list of calls has more than {MAX_PAGES} pages");
    Err(wire::twilio_failure(false, detail))
}

/// Ends a call, in any state or only before it is answered.
pub(super) async fn end(
    client: &Client,
    account: &CarrierAccount,
    carrier_call_id: &str,
    ending: CallTermination,
) -> Result<bool> {
    let url = address(account, &["Calls", &format!("{carrier_call_id}.json")])?;
    let request = wire::authorize(client.post(url), account).form(&end_form(ending));
    let reply = wire::send_once(request).await?;

    if reply.status.is_success() {
        let status = reply.json().and_then(|call| wire::text(&call, "status"));
        return Ok(took_effect(ending, status.as_deref()));
    }

    let ended = reply
        .error()
        .is_some_and(|fault| fault.code == CALL_HAS_ENDED);
    if ended || reply.status == StatusCode::NOT_FOUND {
        return Ok(false);
    }
    Err(reply.into_error())
}

/// Filters of a search.
pub(super) fn search_query(search: &CallSearch) -> [(&'static str, &str); 3] {
    [
        ("To", search.to.as_str()),
        ("From", search.from.as_str()),
        ("PageSize", PAGE_SIZE),
    ]
}

/// Fields of the update that ends a call.
pub(super) fn end_form(ending: CallTermination) -> [(&'static str, &'static str); 1] {
    match ending {
        CallTermination::Cancel => [("Status", "canceled")],
        CallTermination::HangUp => [("Status", "completed")],
    }
}

/// Twilio answers an update that came too late with success and the call's present status.
fn took_effect(ending: CallTermination, status: Option<&str>) -> bool {
    let slipped_past = match ending {
        CallTermination::Cancel => matches!(status, Some("in-progress" | "completed")),
        CallTermination::HangUp => false,
    };
    !slipped_past && !matches!(status, Some("busy" | "no-answer" | "failed"))
}

fn address(account: &CarrierAccount, tail: &[&str]) -> Result<Url> {
    wire::address(account, tail)
        .ok_or_else(|| wire::twilio_failure(false, "the trunk's API address cannot hold a path"))
}

fn require_success(reply: TwilioReply) -> Result<Value> {
    if !reply.status.is_success() {
        return Err(reply.into_error());
    }
    reply
        .json()
        .ok_or_else(|| wire::twilio_failure(true, "a reply that is not JSON"))
}

/// URL of the next page of `list`. Only the query is taken from Twilio's reply, so that no reply
/// can send the account's credentials elsewhere.
fn next_page(list: &Url, next: &str) -> Result<Url> {
    let next = list.join(next);
    let next =
        next.map_err(|error| wire::twilio_failure(true, format!("next_page_uri: {error}")))?;
    let mut page = list.clone();
    page.set_query(next.query());
    Ok(page)
}

/// Compares a date, which Twilio gives in whole seconds. A call without a date stays a candidate.
fn in_window(search: &CallSearch, created_at: Option<DateTime<Utc>>) -> bool {
    created_at
        .is_none_or(|at| at >= search.created_from.trunc_subsecs(0) && at <= search.created_until)
}

/// Converts a call record into an event; `None` when the record has no id.
fn parse_record(record: &Value) -> Option<CarrierCall> {
    let carrier_call_id = wire::text(record, "sid")?;
    let word = wire::text(record, "status").unwrap_or_default();
    let duration = wire::text(record, "duration");
    let price = wire::text(record, "price");
    let verdict = wire::text(record, "answered_by");
    let answered_by = verdict.as_deref().and_then(words::answered_by);

    let signs = StatusDetails {
        answered_by,
        ..StatusDetails::default()
    };

    let (outcome, reason) = words::outcome_and_reason(&word, signs).unzip();
    let status = words::status(&word);
    let end = date_field(record, "end_time").filter(|_| status == Some(CallStatus::Final));

    // A record with more values than before is another event: the price comes late.
    let dedup_key = format!(
        "poll|{word}|{}|{}|{}",
        duration.as_deref().unwrap_or_default(),
        price.as_deref().unwrap_or_default(),
        verdict.as_deref().unwrap_or_default(),
    );

    let price = price.as_deref().and_then(parse_price);

    Some(CarrierCall {
        created_at: date_field(record, "date_created"),
        event: CallEvent {
            carrier_call_id: Some(carrier_call_id.clone()),
            dedup_key,
            status,
            outcome,
            reason: reason.flatten(),
            carrier_status: Some(word),
            answered_by,
            duration_seconds: duration
                .and_then(|seconds| seconds.parse().ok())
                .filter(|seconds| *seconds >= 0),
            price,
            currency: price.and_then(|_| wire::text(record, "price_unit")),
            occurred_at: end.or_else(|| date_field(record, "date_updated")),
            ..CallEvent::default()
        },
        carrier_call_id,
    })
}

/// Parses a price, which Twilio writes as a negative number.
pub(super) fn parse_price(text: &str) -> Option<Decimal> {
    text.parse::<Decimal>().ok().map(|price| price.abs())
}

/// Parses a date, which Twilio writes as RFC 2822 does.
pub(super) fn parse_date(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc2822(text)
        .ok()
        .map(|at| at.to_utc())
}

fn date_field(record: &Value, name: &str) -> Option<DateTime<Utc>> {
    wire::text(record, name).as_deref().and_then(parse_date)
}
