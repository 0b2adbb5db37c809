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
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use peal_shared::access::Credential;
use peal_shared::audit::{Refusal, Turned, refused_unscoped};
use peal_shared::context::Context;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::auth::{API_KEY_HEADER, RequestId, Sender};
use crate::rates::neighbourhood;

/// Rows per minute of one caller or address.
const EACH: i64 = 10;
/// Rows per minute of all unauthenticated clients, besides the summaries.
const ALL: i64 = 300;
/// Summary rows per minute of addresses, and as many of callers; the others share one row.
const COUNTS: usize = 100;
/// Addresses counted separately in a minute.
const TOLD_APART: usize = 10_000;
/// Callers counted separately in a minute.
const CALLERS: usize = 5_000;
const MINUTE: Duration = Duration::from_secs(60);
/// Capacity of the queue to the writer; denials beyond it are only counted.
const WAITING: usize = 1024;
/// Part of the queue reserved for authenticated callers.
const CALLERS_WAITING: usize = 256;
/// Longest wait of a stopping process for the last rows.
const LAST_ROWS: Duration = Duration::from_secs(2);
const LOGIN: &str = "/api/v1/auth/login";

/// Request extension for the caller's identity: set by authentication, read by
/// [`record_denied`].
#[derive(Clone, Debug, Default)]
pub struct Asker(Arc<OnceLock<Turned>>);

impl Asker {
    /// Sets the identity.
    pub fn is(&self, who: Turned) {
        // A request has one caller, even when it is authenticated twice.
        let _already_set = self.0.set(who);
    }
}

/// Handle of the writer of denied requests.
#[derive(Clone)]
pub struct Refusals {
    line: mpsc::Sender<Option<Refusal>>,
    missed: Arc<AtomicI64>,
    written: CancellationToken,
}

impl Refusals {
    /// Spawns the writer; it runs until [`Self::close`] or the drop of the last clone.
    pub fn open(context: &Arc<Context>) -> Self {
        let (line, waiting) = mpsc::channel(WAITING);
        let refusals = Self {
            line,
            missed: Arc::default(),
            written: CancellationToken::new(),
        };
        let (missed, written) = (Arc::clone(&refusals.missed), refusals.written.clone());
        let context = Arc::clone(context);
        tokio::spawn(async move {
            let _finished = written.drop_guard();
            write(&context, waiting, &missed).await;
        });
        refusals
    }

    fn tell(&self, refusal: Refusal) {
        let is_known = matches!(refusal.who, Turned::Known(_));
        let has_room = is_known || self.line.capacity() > CALLERS_WAITING;
        if !has_room || self.line.try_send(Some(refusal)).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes the remaining rows when the process stops.
    pub async fn close(self) {
        let closed = async {
            let _already_closed = self.line.send(None).await;
            self.written.cancelled().await;
        };
        if timeout(LAST_ROWS, closed).await.is_err() {
            tracing::warn!("the last denied requests were not written to the audit log");
        }
    }
}

/// Middleware that records denied requests.
pub async fn note(State(refusals): State<Refusals>, mut request: Request, next: Next) -> Response {
    let pattern = request.extensions().get::<MatchedPath>().cloned();
    // Callbacks need no permission, and arrive by the thousand.
    let Some(route) = pattern.filter(|route| !route.as_str().contains("callback")) else {
        return next.run(request).await;
    };

    let asker = Asker::default();
    request.extensions_mut().insert(asker.clone());
    let (method, shown) = (request.method().clone(), shows_something(request.headers()));
    let request_id = request.extensions().get::<RequestId>();
    let request_id = request_id.map(|RequestId(id)| id.clone());
    let ip = request.extensions().get::<Sender>().map(|Sender(ip)| *ip);

    let response = next.run(request).await;

    let who = asker.0.get().cloned().unwrap_or(Turned::Nobody);
    if let Some(action) = action(response.status(), &who, shown, route.as_str()) {
        refusals.tell(Refusal {
            who,
            ip,
            request_id,
            action,
            target: format!("{method} {}", route.as_str()),
            left_out: 0,
        });
    }
    response
}

fn shows_something(headers: &HeaderMap) -> bool {
    headers.contains_key(API_KEY_HEADER) || headers.contains_key(AUTHORIZATION)
}

/// Audit action of a response; `None` when it is not recorded.
fn action(status: StatusCode, who: &Turned, shown: bool, route: &str) -> Option<&'static str> {
    match (status.as_u16(), who) {
        (403, Turned::Known(_)) => Some("auth.refused"),
        (401 | 429, _) if route == LOGIN => Some("login.failed"),
        (401 | 429, Turned::Nobody | Turned::As(..)) if shown => Some("credential.refused"),
        _ => None,
    }
}

async fn write(
    context: &Context,
    mut waiting: mpsc::Receiver<Option<Refusal>>,
    missed: &AtomicI64,
) {
    let mut minute = interval_at(Instant::now() + MINUTE, MINUTE);
    minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sample = Sample::default();
    let mut received = Vec::new();
    let mut is_open = true;
    while is_open {
        let mut rows = Vec::new();
        tokio::select! {
            count = waiting.recv_many(&mut received, WAITING) => {
                is_open = count > 0 && received.iter().all(Option::is_some);
                rows.extend(received.drain(..).flatten().filter_map(|one| sample.take(one)));
            }
            _ = minute.tick() => rows.extend(sample.turn(missed.swap(0, Ordering::Relaxed))),
        }

        if !is_open {
            rows.extend(sample.turn(missed.swap(0, Ordering::Relaxed)));
        }

        if rows.is_empty() {
            continue;
        }

        let written = async {
            let mut db = context.pool.acquire().await?;
            refused_unscoped(&mut db, &rows).await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, rows = rows.len(), "denied requests were not written to the audit log");
        }
    }
}

/// Key by which rows are limited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Sharer {
    Caller(&'static str, Uuid),
    Address(Option<IpAddr>),
}

impl Sharer {
    fn of(refusal: &Refusal) -> Self {
        match &refusal.who {
            Turned::Known(caller) => match caller.credential {
                Credential::ApiKey(key) => Self::Caller("key", key.0),
                Credential::Session => Self::Caller("user", caller.user.0),
            },
            Turned::As(..) | Turned::Nobody => Self::Address(refusal.ip.map(neighbourhood)),
        }
    }
}

/// Rows written and left out of one key.
struct Share {
    rows: i64,
    left_out: i64,
    last: Refusal,
}

/// Denied requests of one minute, of callers or of unauthenticated clients.
#[derive(Default)]
struct Crowd {
    rows: i64,
    shares: HashMap<Sharer, Share>,
    /// Denials of keys beyond the maximum that is counted separately.
    others: i64,
}

impl Crowd {
    /// Returns the denial when it is to be written: at most `apart` keys and `all` rows.
    fn take(
        &mut self,
        sharer: Sharer,
        refusal: Refusal,
        apart: usize,
        all: i64,
    ) -> Option<Refusal> {
        if self.shares.len() >= apart && !self.shares.contains_key(&sharer) {
            self.others += 1;
            return None;
        }
        let share = self.shares.entry(sharer).or_insert_with(|| Share {
            rows: 0,
            left_out: 0,
            last: refusal.clone(),
        });
        if share.rows < EACH && self.rows < all {
            share.rows += 1;
            self.rows += 1;
            return Some(refusal);
        }
        share.left_out += 1;
        share.last = refusal;
        None
    }

    /// Returns the summary rows, and the number of denials in none of them.
    fn counted(self) -> (Vec<Refusal>, i64) {
        let shares = self.shares.into_values();
        let mut left: Vec<Share> = shares.filter(|share| share.left_out > 0).collect();
        left.sort_unstable_by_key(|share| std::cmp::Reverse(share.left_out));
        let rest = left.split_off(left.len().min(COUNTS));
        let others = self.others + rest.iter().map(|share| share.left_out).sum::<i64>();
        let counted = left.into_iter().map(|share| Refusal {
            left_out: share.left_out,
            ..share.last
        });
        (counted.collect(), others)
    }
}

/// Sample of one minute's denied requests.
#[derive(Default)]
struct Sample {
    callers: Crowd,
    strangers: Crowd,
}

impl Sample {
    /// Returns the denial when it is to be written.
    fn take(&mut self, refusal: Refusal) -> Option<Refusal> {
        match Sharer::of(&refusal) {
            caller @ Sharer::Caller(..) => self.callers.take(caller, refusal, CALLERS, i64::MAX),
            address @ Sharer::Address(_) => self.strangers.take(address, refusal, TOLD_APART, ALL),
        }
    }

    /// Ends the minute. Returns the summary rows, including `missed` denials of unknown origin.
    fn turn(&mut self, missed: i64) -> Vec<Refusal> {
        let minute = std::mem::take(self);
        let (mut rows, of_callers) = minute.callers.counted();
        let (counted, of_strangers) = minute.strangers.counted();
        rows.extend(counted);

        let others = missed + of_callers + of_strangers;
        if others > 0 {
            rows.push(Refusal {
                who: Turned::Nobody,
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
    use peal_shared::ids::{OrgId, UserId};

    use super::*;

    fn refusal(address: u32) -> Refusal {
        Refusal {
            who: Turned::Nobody,
            ip: Some(IpAddr::from(address.to_be_bytes())),
            request_id: None,
            action: "credential.refused",
            target: "GET /api/v1/me".to_owned(),
            left_out: 0,
        }
    }

    fn taken(sample: &mut Sample, address: u32, times: i64) -> i64 {
        let rows = (0..times).filter_map(|_| sample.take(refusal(address)));
        i64::try_from(rows.count()).unwrap()
    }

    #[test]
    fn ten_rows_of_each_address_are_written_and_the_rest_is_counted() {
        let mut sample = Sample::default();
        assert_eq!(taken(&mut sample, 1, 3), 3);
        assert_eq!(taken(&mut sample, 2, 25), EACH);
        let counted = sample.turn(0);
        assert_eq!(counted.len(), 1);
        assert_eq!((counted[0].left_out, counted[0].ip), (15, refusal(2).ip));
        // The next minute starts from zero.
        assert_eq!(taken(&mut sample, 2, 25), EACH);
    }

    #[test]
    fn a_flood_of_many_addresses_makes_a_bounded_number_of_rows_and_all_are_counted() {
        let mut sample = Sample::default();
        let addresses = 20_000_u32;
        let rows: i64 = (0..addresses).map(|ip| taken(&mut sample, ip, 1)).sum();
        assert_eq!(rows, ALL);
        let counted = sample.turn(7);
        assert_eq!(counted.len(), COUNTS + 1);
        let left_out: i64 = counted.iter().map(|row| row.left_out).sum();
        assert_eq!(rows + left_out, i64::from(addresses) + 7);
    }

    #[test]
    fn an_unauthenticated_flood_hides_no_caller() {
        let mut sample = Sample::default();
        for address in 0..20_000 {
            taken(&mut sample, address, 2);
        }
        let member = Refusal {
            who: Turned::Known(Principal {
                user: UserId::new(),
                org: OrgId::new(),
                role: Role::User,
                email: None,
                credential: Credential::Session,
            }),
            action: "auth.refused",
            ..refusal(1)
        };
        let rows = (0..15).filter_map(|_| sample.take(member.clone()));
        assert_eq!(i64::try_from(rows.count()).unwrap(), EACH);
        let counted = sample.turn(0);
        let of_callers = counted.iter().filter(|row| row.action == "auth.refused");
        assert_eq!(of_callers.map(|row| row.left_out).sum::<i64>(), 15 - EACH);
        assert_eq!(counted.len(), COUNTS + 2);
    }

    #[test]
    fn the_audit_action_depends_on_status_route_and_credential() {
        let anonymous = Turned::Nobody;
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
                action(status, &anonymous, shown, route),
                noted,
                "{status} {route}"
            );
        }
    }
}
