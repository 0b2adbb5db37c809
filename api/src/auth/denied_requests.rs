//! Audit log of denied requests: callers without permission (403), failed logins, and invalid
//! keys and tokens (401, and 429 when there are too many).
//!
//! A client can repeat a denied request without end, so the rows are bounded: [`ROWS_PER_KEY`] a
//! minute of each caller or address, [`ANONYMOUS_ROWS`] a minute of all unauthenticated clients
//! together, and at the end of the minute rows that count the rest. Authenticated callers are
//! sampled apart from unauthenticated clients, so a flood of these hides none of their rows.
//! Requests do not wait for the write. A row names the route and never the credential.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use peal_shared::access::Credential;
use peal_shared::audit::{DeniedCaller, DeniedRequest, record_denied_unscoped};
use peal_shared::context::Context;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::http::request_info::{API_KEY_HEADER, CallerSlot, ClientIp, RequestId};
use crate::limits::rate_limit::ip_prefix;

/// Rows per minute of one caller or address.
const ROWS_PER_KEY: i64 = 10;
/// Rows per minute of all unauthenticated clients, besides the summaries.
const ANONYMOUS_ROWS: i64 = 300;
/// Summary rows per minute of addresses, and as many of callers; the others share one row.
const SUMMARY_ROWS: usize = 100;
/// Addresses counted separately in a minute.
const MAX_ADDRESSES: usize = 10_000;
/// Callers counted separately in a minute.
const MAX_CALLERS: usize = 5_000;
const MINUTE: Duration = Duration::from_secs(60);
/// Capacity of the queue to the writer; denials beyond it are only counted.
const QUEUE_CAPACITY: usize = 1024;
/// Part of the queue reserved for authenticated callers.
const CALLER_RESERVE: usize = 256;
/// Longest wait of a stopping process for the last rows.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const LOGIN: &str = "/api/v1/auth/login";

/// Handle of the writer of denied requests.
#[derive(Clone)]
pub struct DeniedRequests {
    queue: mpsc::Sender<Option<DeniedRequest>>,
    dropped: Arc<AtomicI64>,
    finished: CancellationToken,
}

impl DeniedRequests {
    /// Spawns the writer; it runs until [`Self::close`] or the drop of the last clone.
    pub fn spawn(context: &Arc<Context>) -> Self {
        let (line, waiting) = mpsc::channel(QUEUE_CAPACITY);
        let handle = Self {
            queue: line,
            dropped: Arc::default(),
            finished: CancellationToken::new(),
        };
        let (missed, written) = (Arc::clone(&handle.dropped), handle.finished.clone());
        let context = Arc::clone(context);
        tokio::spawn(async move {
            let _finished = written.drop_guard();
            write_rows(&context, waiting, &missed).await;
        });
        handle
    }

    fn record(&self, refusal: DeniedRequest) {
        let is_known = matches!(refusal.caller, DeniedCaller::Authenticated(_));
        let has_room = is_known || self.queue.capacity() > CALLER_RESERVE;
        if !has_room || self.queue.try_send(Some(refusal)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes the remaining rows when the process stops.
    pub async fn close(self) {
        let closed = async {
            let _already_closed = self.queue.send(None).await;
            self.finished.cancelled().await;
        };
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!("the last denied requests were not written to the audit log");
        }
    }
}

/// Middleware that records denied requests.
pub async fn record_denied(
    State(handle): State<DeniedRequests>,
    mut request: Request,
    next: Next,
) -> Response {
    let pattern = request.extensions().get::<MatchedPath>().cloned();
    // Callbacks need no permission, and arrive by the thousand.
    let Some(route) = pattern.filter(|route| !route.as_str().contains("callback")) else {
        return next.run(request).await;
    };

    let caller_slot = CallerSlot::default();
    request.extensions_mut().insert(caller_slot.clone());
    let (method, shown) = (request.method().clone(), has_credentials(request.headers()));
    let request_id = request.extensions().get::<RequestId>();
    let request_id = request_id.map(|RequestId(id)| id.clone());
    let ip = request
        .extensions()
        .get::<ClientIp>()
        .map(|ClientIp(ip)| *ip);

    let response = next.run(request).await;

    let who = caller_slot.caller();
    if let Some(action) = audit_action(response.status(), &who, shown, route.as_str()) {
        handle.record(DeniedRequest {
            caller: who,
            ip,
            request_id,
            action,
            target: format!("{method} {}", route.as_str()),
            left_out: 0,
        });
    }
    response
}

fn has_credentials(headers: &HeaderMap) -> bool {
    headers.contains_key(API_KEY_HEADER) || headers.contains_key(AUTHORIZATION)
}

/// Audit action of a response; `None` when it is not recorded.
fn audit_action(
    status: StatusCode,
    who: &DeniedCaller,
    shown: bool,
    route: &str,
) -> Option<&'static str> {
    match (status.as_u16(), who) {
        (403, DeniedCaller::Authenticated(_)) => Some("auth.refused"),
        (401 | 429, _) if route == LOGIN => Some("login.failed"),
        (401 | 429, DeniedCaller::Anonymous | DeniedCaller::Expired(..)) if shown => {
            Some("credential.refused")
        }
        _ => None,
    }
}

async fn write_rows(
    context: &Context,
    mut waiting: mpsc::Receiver<Option<DeniedRequest>>,
    missed: &AtomicI64,
) {
    let mut minute = interval_at(Instant::now() + MINUTE, MINUTE);
    minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sample = MinuteSample::default();
    let mut received = Vec::new();
    let mut is_open = true;
    while is_open {
        let mut rows = Vec::new();
        tokio::select! {
            count = waiting.recv_many(&mut received, QUEUE_CAPACITY) => {
                is_open = count > 0 && received.iter().all(Option::is_some);
                rows.extend(received.drain(..).flatten().filter_map(|one| sample.sample(one)));
            }
            _ = minute.tick() => rows.extend(sample.end_minute(missed.swap(0, Ordering::Relaxed))),
        }

        if !is_open {
            rows.extend(sample.end_minute(missed.swap(0, Ordering::Relaxed)));
        }

        if rows.is_empty() {
            continue;
        }

        let written = async {
            let mut db = context.pool.acquire().await?;
            record_denied_unscoped(&mut db, &rows).await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, rows = rows.len(), "denied requests were not written to the audit log");
        }
    }
}

/// Key by which rows are limited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SampleKey {
    Caller(&'static str, Uuid),
    Address(Option<IpAddr>),
}

impl SampleKey {
    fn of(refusal: &DeniedRequest) -> Self {
        match &refusal.caller {
            DeniedCaller::Authenticated(caller) => match caller.credential {
                Credential::ApiKey(key) => Self::Caller("key", key.0),
                Credential::Session => Self::Caller("user", caller.user.0),
            },
            DeniedCaller::Expired(..) | DeniedCaller::Anonymous => {
                Self::Address(refusal.ip.map(ip_prefix))
            }
        }
    }
}

/// Rows written and left out of one key.
struct KeyCount {
    rows: i64,
    left_out: i64,
    latest: DeniedRequest,
}

/// Denied requests of one minute, of callers or of unauthenticated clients.
#[derive(Default)]
struct SampleGroup {
    rows: i64,
    counts: HashMap<SampleKey, KeyCount>,
    /// Denials of keys beyond the maximum that is counted separately.
    uncounted: i64,
}

impl SampleGroup {
    /// Returns the denial when it is to be written: at most `apart` keys and `all` rows.
    fn sample(
        &mut self,
        sharer: SampleKey,
        refusal: DeniedRequest,
        apart: usize,
        all: i64,
    ) -> Option<DeniedRequest> {
        if self.counts.len() >= apart && !self.counts.contains_key(&sharer) {
            self.uncounted += 1;
            return None;
        }
        let share = self.counts.entry(sharer).or_insert_with(|| KeyCount {
            rows: 0,
            left_out: 0,
            latest: refusal.clone(),
        });
        if share.rows < ROWS_PER_KEY && self.rows < all {
            share.rows += 1;
            self.rows += 1;
            return Some(refusal);
        }
        share.left_out += 1;
        share.latest = refusal;
        None
    }

    /// Returns the summary rows, and the number of denials in none of them.
    fn summarize(self) -> (Vec<DeniedRequest>, i64) {
        let shares = self.counts.into_values();
        let mut left: Vec<KeyCount> = shares.filter(|share| share.left_out > 0).collect();
        left.sort_unstable_by_key(|share| std::cmp::Reverse(share.left_out));
        let rest = left.split_off(left.len().min(SUMMARY_ROWS));
        let others = self.uncounted + rest.iter().map(|share| share.left_out).sum::<i64>();
        let counted = left.into_iter().map(|share| DeniedRequest {
            left_out: share.left_out,
            ..share.latest
        });
        (counted.collect(), others)
    }
}

/// Sample of one minute's denied requests.
#[derive(Default)]
struct MinuteSample {
    callers: SampleGroup,
    anonymous: SampleGroup,
}

impl MinuteSample {
    /// Returns the denial when it is to be written.
    fn sample(&mut self, refusal: DeniedRequest) -> Option<DeniedRequest> {
        match SampleKey::of(&refusal) {
            caller @ SampleKey::Caller(..) => {
                self.callers.sample(caller, refusal, MAX_CALLERS, i64::MAX)
            }
            address @ SampleKey::Address(_) => {
                self.anonymous
                    .sample(address, refusal, MAX_ADDRESSES, ANONYMOUS_ROWS)
            }
        }
    }

    /// Ends the minute. Returns the summary rows, including `missed` denials of unknown origin.
    fn end_minute(&mut self, missed: i64) -> Vec<DeniedRequest> {
        let minute = std::mem::take(self);
        let (mut rows, of_callers) = minute.callers.summarize();
        let (counted, of_strangers) = minute.anonymous.summarize();
        rows.extend(counted);

        let others = missed + of_callers + of_strangers;
        if others > 0 {
            rows.push(DeniedRequest {
                caller: DeniedCaller::Anonymous,
                ip: None,
                request_id: None,
                action: "credential.refused",
                target: "*".to_owned(),
                left_out: others,
            });
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use peal_shared::access::{Principal, Role};
    use peal_shared::platform::ids::{OrgId, UserId};

    use super::*;

    fn refusal(address: u32) -> DeniedRequest {
        DeniedRequest {
            caller: DeniedCaller::Anonymous,
            ip: Some(IpAddr::from(address.to_be_bytes())),
            request_id: None,
            action: "credential.refused",
            target: "GET /api/v1/me".to_owned(),
            left_out: 0,
        }
    }

    fn taken(sample: &mut MinuteSample, address: u32, times: i64) -> i64 {
        let rows = (0..times).filter_map(|_| sample.sample(refusal(address)));
        i64::try_from(rows.count()).unwrap()
    }

    #[test]
    fn ten_rows_of_each_address_are_written_and_the_rest_is_counted() {
        let mut sample = MinuteSample::default();
        assert_eq!(taken(&mut sample, 1, 3), 3);
        assert_eq!(taken(&mut sample, 2, 25), ROWS_PER_KEY);
        let counted = sample.end_minute(0);
        assert_eq!(counted.len(), 1);
        assert_eq!((counted[0].left_out, counted[0].ip), (15, refusal(2).ip));
        // The next minute starts from zero.
        assert_eq!(taken(&mut sample, 2, 25), ROWS_PER_KEY);
    }

    #[test]
    fn a_flood_of_many_addresses_makes_a_bounded_number_of_rows_and_all_are_counted() {
        let mut sample = MinuteSample::default();
        let addresses = 20_000_u32;
        let rows: i64 = (0..addresses).map(|ip| taken(&mut sample, ip, 1)).sum();
        assert_eq!(rows, ANONYMOUS_ROWS);
        let counted = sample.end_minute(7);
        assert_eq!(counted.len(), SUMMARY_ROWS + 1);
        let left_out: i64 = counted.iter().map(|row| row.left_out).sum();
        assert_eq!(rows + left_out, i64::from(addresses) + 7);
    }

    #[test]
    fn an_unauthenticated_flood_hides_no_caller() {
        let mut sample = MinuteSample::default();
        for address in 0..20_000 {
            taken(&mut sample, address, 2);
        }
        let member = DeniedRequest {
            caller: DeniedCaller::Authenticated(Principal {
                user: UserId::new(),
                org: OrgId::new(),
                role: Role::User,
                email: None,
                credential: Credential::Session,
            }),
            action: "auth.refused",
            ..refusal(1)
        };
        let rows = (0..15).filter_map(|_| sample.sample(member.clone()));
        assert_eq!(i64::try_from(rows.count()).unwrap(), ROWS_PER_KEY);
        let counted = sample.end_minute(0);
        let of_callers = counted.iter().filter(|row| row.action == "auth.refused");
        assert_eq!(
            of_callers.map(|row| row.left_out).sum::<i64>(),
            15 - ROWS_PER_KEY
        );
        assert_eq!(counted.len(), SUMMARY_ROWS + 2);
    }

    #[test]
    fn the_audit_action_depends_on_status_route_and_credential() {
        let anonymous = DeniedCaller::Anonymous;
        let place = "/api/v1/me";
        for (status, route, shown, noted) in [
            (200, place, true, None),
            (401, place, false, None),
            (401, place, true, Some("credential.refused")),
            (429, place, true, Some("credential.refused")),
            (401, LOGIN, false, Some("login.failed")),
            (429, LOGIN, false, Some("login.failed")),
            (422, LOGIN, false, None),
            (403, place, true, None),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                audit_action(status, &anonymous, shown, route),
                noted,
                "{status} {route}"
            );
        }
    }
}
