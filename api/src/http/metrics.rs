//! Metrics of every request by route, and the span of a callback in the trace of its call.

use std::time::Duration;

use axum::http::{StatusCode, Uri};
use peal_shared::calls::urls::{CALL_PATH, STATUS_PATH};
use peal_shared::context::Context;
use peal_shared::platform::ids::CallId;
use peal_shared::traces::{CallStep, KeyValue, StepStart};

/// Counts a response.
pub fn record_response(context: &Context, pattern: &str, status: StatusCode, took: Duration) {
    let http = &context.metrics.http;
    let route = http.route(pattern, callback_kind);
    http.record_response(&route, status.as_u16(), took);
}

/// Adds a callback's span to the trace of its call, if calls are traced. A rejected callback is
/// left out: an unauthenticated client must not write into traces.
pub fn trace_callback(
    context: &Context,
    began: Option<StepStart>,
    pattern: &str,
    uri: &Uri,
    status: StatusCode,
) {
    if began.is_none() || !status.is_success() {
        return;
    }
    if let Some(kind) = callback_kind(pattern)
        && let Some(call) = call_in_path(uri)
    {
        let status = i64::from(status.as_u16());
        context.traces.end(began, call, CallStep::Callback, || {
            vec![
                KeyValue::new("callback.kind", kind),
                KeyValue::new("http.response.status_code", status),
            ]
        });
    }
}

/// Kind of a callback: `status`, or the pattern's last word (`answer`, `machine`, `recording`).
fn callback_kind(pattern: &str) -> Option<String> {
    if pattern.starts_with(STATUS_PATH) {
        return Some("status".to_owned());
    }
    let last = pattern.strip_prefix(CALL_PATH)?.rsplit('/').next()?;
    (!last.starts_with('{')).then(|| last.to_owned())
}

/// Call id in the path of a callback.
fn call_in_path(uri: &Uri) -> Option<CallId> {
    let path = uri.path();
    let rest = path
        .strip_prefix(STATUS_PATH)
        .or_else(|| path.strip_prefix(CALL_PATH))?;
    let mut parts = rest.split('/').skip(1);
    let _trunk = parts.next()?;
    parts.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callbacks_kind_comes_from_the_pattern_and_its_call_from_the_path() {
        let of_call = "{trunk}/{call}/{token}";
        for (pattern, kind) in [
            (STATUS_PATH.to_owned(), Some("status")),
            (format!("{STATUS_PATH}/{of_call}"), Some("status")),
            (format!("{CALL_PATH}/{of_call}/answer"), Some("answer")),
            (format!("{CALL_PATH}/{of_call}/machine"), Some("machine")),
            ("/api/v1/batch-call/list".to_owned(), None),
        ] {
            assert_eq!(callback_kind(&pattern).as_deref(), kind, "{pattern}");
        }
        let call = CallId::new();
        for path in [
            format!("{STATUS_PATH}/t/{call}/secret?a=b"),
            format!("{CALL_PATH}/t/{call}/secret/answer"),
        ] {
            assert_eq!(call_in_path(&path.parse().unwrap()), Some(call), "{path}");
        }
        assert_eq!(call_in_path(&STATUS_PATH.parse().unwrap()), None);
    }
}
