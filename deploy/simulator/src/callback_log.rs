//! Log of the requests about each call, for tests to read and to replay.
//!
//! The log is bounded: beyond the configured number of requests it drops all entries of the
//! oldest calls.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::call::HttpMethod;
use crate::delivery::DeliveryReceipt;

/// One request of the carrier, sent or lost by fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackRecord {
    /// Position among the requests of this call, in order of completion.
    pub index: usize,
    /// `status`, `detection`, `recording`, `answer`, `fallback`, `gather`,
    /// `record` or `redirect`.
    pub kind: String,
    pub method: String,
    /// URL as given at the create, with its fragment.
    pub url: String,
    /// The encoded form, sent as body or as query.
    pub body: String,
    pub unix_micros: u64,
    pub attempts: u32,
    pub response_status: Option<u16>,
    /// At most 2,048 bytes of the last response.
    pub response_body: String,
    pub error: Option<String>,
    /// Not sent, by fault.
    pub lost: bool,
    pub replay_of: Option<usize>,
}

impl CallbackRecord {
    /// Value of a parameter of the form.
    pub fn param(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.body.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }
}

/// A request before it is logged.
pub(crate) struct CallbackLogEntry<'a> {
    pub(crate) kind: &'static str,
    pub(crate) method: HttpMethod,
    pub(crate) url: &'a str,
    pub(crate) params: &'a [(&'static str, String)],
    pub(crate) unix_micros: u64,
    /// `None` when the request was lost by fault.
    pub(crate) receipt: Option<&'a DeliveryReceipt>,
}

pub(crate) struct CallbackLog {
    enabled: bool,
    max: usize,
    total: usize,
    by_call: HashMap<u32, Vec<CallbackRecord>>,
    order: VecDeque<u32>,
}

impl CallbackLog {
    pub(crate) fn new(enabled: bool, max: usize) -> Self {
        Self {
            enabled,
            max,
            total: 0,
            by_call: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.enabled, self.max);
    }

    pub(crate) fn for_call(&self, call: u32) -> &[CallbackRecord] {
        self.by_call.get(&call).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn record(&mut self, call: u32, entry: &CallbackLogEntry<'_>) {
        if !self.enabled {
            return;
        }
        let receipt = entry.receipt;
        self.push(
            call,
            CallbackRecord {
                index: 0,
                kind: entry.kind.to_owned(),
                method: match entry.method {
                    HttpMethod::Get => "GET".to_owned(),
                    HttpMethod::Post => "POST".to_owned(),
                },
                url: entry.url.to_owned(),
                body: crate::delivery::encode_form(entry.params),
                unix_micros: entry.unix_micros,
                attempts: receipt.map_or(0, |r| r.attempts),
                response_status: receipt.and_then(|r| r.status),
                response_body: receipt.map(|r| truncate_body(&r.body)).unwrap_or_default(),
                error: receipt.and_then(|r| r.error.clone()),
                lost: receipt.is_none(),
                replay_of: None,
            },
        );
    }

    pub(crate) fn push(&mut self, call: u32, mut callback: CallbackRecord) {
        if !self.enabled {
            return;
        }
        let list = self.by_call.entry(call).or_insert_with(|| {
            self.order.push_back(call);
            Vec::new()
        });
        callback.index = list.len();
        list.push(callback);
        self.total += 1;
        while self.total > self.max {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            let dropped = self.by_call.remove(&oldest).map_or(0, |list| list.len());
            self.total = self.total.saturating_sub(dropped);
        }
    }
}

fn truncate_body(body: &str) -> String {
    let mut end = body.len().min(2048);
    while !body.is_char_boundary(end) {
        end -= 1;
    }
    body.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(params: &'a [(&'static str, String)]) -> CallbackLogEntry<'a> {
        CallbackLogEntry {
            kind: "status",
            method: HttpMethod::Post,
            url: "http://x/",
            params,
            unix_micros: 1,
            receipt: None,
        }
    }

    #[test]
    fn the_oldest_calls_are_dropped_beyond_the_bound() {
        let mut log = CallbackLog::new(true, 5);
        let params = [("CallStatus", "in progress & more".to_owned())];
        for call in 0..3 {
            log.record(call, &entry(&params));
            log.record(call, &entry(&params));
        }
        assert!(log.for_call(0).is_empty());
        assert_eq!(log.for_call(2).len(), 2);
        assert_eq!(log.for_call(2)[1].index, 1);
        assert_eq!(
            log.for_call(2)[0].param("CallStatus").as_deref(),
            Some("in progress & more")
        );
    }

    #[test]
    fn a_disabled_log_stays_empty() {
        let mut log = CallbackLog::new(false, 5);
        log.record(0, &entry(&[]));
        assert!(log.for_call(0).is_empty());
    }
}
