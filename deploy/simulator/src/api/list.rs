//! Lists of calls: filters, pages, and hidden calls.
//!
//! Calls are listed newest first. Times are UTC days. A call that has not been dialled has no
//! start time, so any `StartTime` filter omits it, as at Twilio: a search for a lost create must
//! list without that filter. The page token names the last call of the previous page, so pages
//! do not shift while calls are created.

use chrono::NaiveDate;
use serde_json::{Value, json};

use super::form::FormParams;
use super::resource::call_json;
use crate::call::{CallRef, SimulatedCall};
use crate::clock::Micros;
use crate::refusal::TwilioError;
use crate::switchboard::Switchboard;

const LIST_PARAMS: [&str; 14] = [
    "To",
    "From",
    "ParentCallSid",
    "Status",
    "StartTime",
    "StartTime<",
    "StartTime>",
    "EndTime",
    "EndTime<",
    "EndTime>",
    "PageSize",
    "Page",
    "PageToken",
    "Format",
];

/// Parameters of a list.
pub(super) struct CallListQuery {
    to: Option<String>,
    from: Option<String>,
    status: Option<String>,
    has_parent: bool,
    start: DayRange,
    end: DayRange,
    page_size: usize,
    page: usize,
    token: Option<String>,
    /// The encoded filters, for the links to other pages.
    filters: String,
}

#[derive(Default)]
struct DayRange {
    on: Option<NaiveDate>,
    until: Option<NaiveDate>,
    from: Option<NaiveDate>,
}

impl DayRange {
    fn read(form: &FormParams<'_>, name: &str) -> Result<Self, TwilioError> {
        let day = |name: String| match form.get(&name) {
            None => Ok(None),
            Some(text) => text
                .get(..10)
                .and_then(|day| day.parse().ok())
                .map(Some)
                .ok_or_else(|| TwilioError::bad_request(20001, format!("{name} is not a date"))),
        };
        Ok(Self {
            on: day(name.to_owned())?,
            until: day(format!("{name}<"))?,
            from: day(format!("{name}>"))?,
        })
    }

    fn admits(&self, day: Option<NaiveDate>) -> bool {
        if self.on.is_none() && self.until.is_none() && self.from.is_none() {
            return true;
        }
        day.is_some_and(|day| {
            self.on.is_none_or(|on| day == on)
                && self.until.is_none_or(|until| day <= until)
                && self.from.is_none_or(|from| day >= from)
        })
    }
}

impl CallListQuery {
    pub(super) fn read(form: &FormParams<'_>) -> Result<Self, TwilioError> {
        form.check(&LIST_PARAMS, &[])?;
        let text = |name: &str| form.get(name).map(str::to_owned);
        let size = form.number("PageSize", 50, 1..=1000, 20001)?;
        let page = form.number("Page", 0, 0..=u32::MAX, 20001)?;
        let filters = LIST_PARAMS.iter().take(10).filter_map(|name| {
            let value = form.get(name)?;
            Some((*name, value))
        });
        let filters = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(filters)
            .finish();
        Ok(Self {
            to: text("To"),
            from: text("From"),
            status: text("Status"),
            has_parent: form.get("ParentCallSid").is_some(),
            start: DayRange::read(form, "StartTime")?,
            end: DayRange::read(form, "EndTime")?,
            page_size: usize::try_from(size).unwrap_or(50),
            page: usize::try_from(page).unwrap_or(0),
            token: text("PageToken"),
            filters,
        })
    }

    fn admits(&self, board: &Switchboard, call: &SimulatedCall, now: Micros) -> bool {
        let day = |at: Option<Micros>| at.map(|at| board.clock.day(at));
        // No call placed through the API has a parent.
        !self.has_parent
            && call.hidden_until <= now
            && self.to.as_deref().is_none_or(|to| to == &*call.to)
            && self.from.as_deref().is_none_or(|from| from == &*call.from)
            && self
                .status
                .as_deref()
                .is_none_or(|status| status == call.phase.resource_status())
            && self.start.admits(day(call.dialed))
            && self.end.admits(day(call.ended))
    }

    fn uri(&self, base: &str, page: usize, token: Option<&str>) -> String {
        let mut uri = format!("{base}?");
        if !self.filters.is_empty() {
            uri.push_str(&self.filters);
            uri.push('&');
        }
        uri.push_str(&format!("PageSize={}&Page={page}", self.page_size));
        if let Some(token) = token {
            uri.push_str(&format!("&PageToken={token}"));
        }
        uri
    }
}

/// The requested page in Twilio's envelope.
pub(super) fn list_json(
    board: &Switchboard,
    account: usize,
    account_sid: &str,
    query: &CallListQuery,
    now: Micros,
) -> Value {
    let after = query
        .token
        .as_deref()
        .and_then(|token| token.strip_prefix("PA"))
        .and_then(|hex| board.find_call(&format!("CA{hex}"), Some(account)));
    let skip = match after {
        Some(_) => 0,
        None => query.page.saturating_mul(query.page_size),
    };

    let mut found = candidates(board, query, after)
        .filter_map(|index| board.call(board.call_ref(index)))
        .filter(|call| call.account == account && query.admits(board, call, now))
        .skip(skip);
    let page: Vec<&SimulatedCall> = found.by_ref().take(query.page_size).collect();
    let more = found.next().is_some();

    let base = format!("/2010-04-01/Accounts/{account_sid}/Calls.json");
    let next = page.last().filter(|_| more).map(|last| {
        let token = last.sid.text("PA");
        query.uri(&base, query.page + 1, Some(&token))
    });
    let previous = query
        .page
        .checked_sub(1)
        .map(|before| query.uri(&base, before, None));

    let start = query.page.saturating_mul(query.page_size);
    json!({
        "calls": page
            .iter()
            .map(|call| call_json(call, account_sid, &board.behavior, board.clock, now))
            .collect::<Vec<_>>(),
        "first_page_uri": query.uri(&base, 0, None),
        "next_page_uri": next,
        "previous_page_uri": previous,
        "page": query.page,
        "page_size": query.page_size,
        "start": start,
        "end": start.saturating_add(page.len()).saturating_sub(1),
        "uri": query.uri(&base, query.page, query.token.as_deref()),
    })
}

/// Indices of calls from new to old; only the calls to one number when the query has one.
fn candidates<'a>(
    board: &'a Switchboard,
    query: &CallListQuery,
    after: Option<CallRef>,
) -> Box<dyn Iterator<Item = u32> + 'a> {
    let before = after.map_or(u32::MAX, |call| call.index);
    match query.to.as_deref() {
        Some(to) => {
            let calls = board.numbers.get(to).map(|number| number.calls.as_slice());
            let calls = calls.unwrap_or_default().iter().rev().copied();
            Box::new(calls.filter(move |index| *index < before))
        }
        None => {
            let count = u32::try_from(board.calls.len()).unwrap_or(u32::MAX);
            Box::new((0..count.min(before)).rev())
        }
    }
}
