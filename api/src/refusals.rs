//! Whom the API turns away, for the audit log: callers who may not do what they ask for (403),
//! failed sign-ins, and keys and tokens that are no good (401, and 429 when they are too many).
//!
//! Whoever is turned away can come back as often as they like, so what is written down is
//! bounded: of each caller or address [`EACH`] rows a minute, [`ALL`] of all strangers together,
//! and at the minute's end one more that counts the rest. Callers who are known share nothing with
//! strangers: a flood of these hides none of theirs. Nobody waits for it to be written, and what
//! is written names the route and never what was shown.

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

/// Rows a minute of one caller or address.
const EACH: i64 = 10;
/// Rows a minute of all strangers, besides those that count the rest.
const ALL: i64 = 300;
/// Rows that count the rest, each of one address, and as many of callers; the others share one.
const COUNTS: usize = 100;
/// Addresses that are told apart in a minute, and callers.
const TOLD_APART: usize = 10_000;
const CALLERS: usize = 5_000;
const MINUTE: Duration = Duration::from_secs(60);
/// Refusals that wait to be written; further ones are only counted.
const WAITING: usize = 1024;
/// Of these, what strangers leave free for callers.
const CALLERS_WAITING: usize = 256;
/// How long a stopping process waits for the last rows.
const LAST_ROWS: Duration = Duration::from_secs(2);
const LOGIN: &str = "/api/v1/auth/login";

/// Who asks, once that is known: left in the request by what goes around it.
#[derive(Clone, Debug, Default)]
pub struct Asker(Arc<OnceLock<Turned>>);

impl Asker {
    /// Says who it is.
    pub fn is(&self, who: Turned) {
        // A request has one caller, however often it is looked at.
        let _said_before = self.0.set(who);
    }
}

/// The way to the writer.
#[derive(Clone)]
pub struct Refusals {
    line: mpsc::Sender<Option<Refusal>>,
    missed: Arc<AtomicI64>,
    written: CancellationToken,
}

impl Refusals {
    /// Opens the line; its writer works until [`Self::close`], or the last clone is gone.
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
            let _written = written.drop_guard();
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

    /// Writes what is left, for a process that ends.
    pub async fn close(self) {
        let closed = async {
            let _gone_already = self.line.send(None).await;
            self.written.cancelled().await;
        };
        if timeout(LAST_ROWS, closed).await.is_err() {
            tracing::warn!("the last refusals were not written into the audit log");
        }
    }
}

/// Goes around every request, and notes those that are turned away.
pub async fn note(State(refusals): State<Refusals>, mut request: Request, next: Next) -> Response {
    let pattern = request.extensions().get::<MatchedPath>().cloned();
    // Carriers have no rights that could be missing, and come by the thousand.
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

/// What is noted of an answer, if anything is.
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
    let mut came = Vec::new();
    let mut goes_on = true;
    while goes_on {
        let mut rows = Vec::new();
        tokio::select! {
            several = waiting.recv_many(&mut came, WAITING) => {
                goes_on = several > 0 && came.iter().all(Option::is_some);
                rows.extend(came.drain(..).flatten().filter_map(|one| sample.take(one)));
            }
            _ = minute.tick() => rows.extend(sample.turn(missed.swap(0, Ordering::Relaxed))),
        }
        if !goes_on {
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
            tracing::warn!(%error, rows = rows.len(), "refusals are missing in the audit log");
        }
    }
}

/// Who shares an allowance of rows.
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

/// What was written of one of them, and what was not.
struct Share {
    rows: i64,
    left_out: i64,
    last: Refusal,
}

/// The refusals of a minute of callers, or of strangers.
#[derive(Default)]
struct Crowd {
    rows: i64,
    shares: HashMap<Sharer, Share>,
    /// Of those who are not told apart any more.
    others: i64,
}

impl Crowd {
    /// The refusal, if it is to be written: of so many who are told apart, and of so many rows.
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

    /// The rows that count what was left out, and how many are in none.
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

/// The refusals of a minute.
#[derive(Default)]
struct Sample {
    callers: Crowd,
    strangers: Crowd,
}

impl Sample {
    /// The refusal, if it is to be written.
    fn take(&mut self, refusal: Refusal) -> Option<Refusal> {
        match Sharer::of(&refusal) {
            caller @ Sharer::Caller(..) => self.callers.take(caller, refusal, CALLERS, i64::MAX),
            address @ Sharer::Address(_) => self.strangers.take(address, refusal, TOLD_APART, ALL),
        }
    }

    /// Ends the minute. Answers the rows that count what was left out, `missed` of whoever it was
    /// included.
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
    fn ten_of_each_are_written_and_the_rest_is_counted() {
        let mut sample = Sample::default();
        assert_eq!(taken(&mut sample, 1, 3), 3);
        assert_eq!(taken(&mut sample, 2, 25), EACH);
        let counted = sample.turn(0);
        assert_eq!(counted.len(), 1);
        assert_eq!((counted[0].left_out, counted[0].ip), (15, refusal(2).ip));
        // Another minute, another allowance.
        assert_eq!(taken(&mut sample, 2, 25), EACH);
    }

    #[test]
    fn a_flood_from_everywhere_comes_to_a_bounded_number_of_rows_and_none_is_forgotten() {
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
    fn a_flood_of_strangers_hides_no_caller() {
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
    fn what_is_noted_depends_on_who_was_refused_what() {
        let nobody = Turned::Nobody;
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
                action(status, &nobody, shown, route),
                noted,
                "{status} {route}"
            );
        }
    }
}
