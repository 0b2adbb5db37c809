//! A carrier that rings nobody.
//!
//! It speaks the part of Twilio's `2010-04-01` API that a dialer needs, keeps
//! its own signer and document reader, and shares no code with the dialer it
//! tests: when both agree, they agree on the wire. It runs in a test's process
//! ([`Simulator::start`]) or as the binary `peal-simulator`.
//!
//! # What it does
//!
//! A create is answered 201 and the call lives through
//! `queued -> initiated -> ringing -> in-progress -> completed`, or ends in
//! `busy`, `no-answer`, `failed` or `canceled`. On the answer the carrier
//! fetches the answer URL, runs the document (Say, Play, Pause, Gather, Record,
//! Redirect, Hangup; a stream holds the line), lets the callee speak into each
//! gather and follows the action, until the document or the callee ends the
//! call. Status, detection and recording callbacks go out signed, in sequence,
//! and are retried as the URL's `#rc=..&rp=..` fragment says.
//!
//! Call seconds (ringing, talking, detection) are compressed by `speed`: at 100
//! a minute of talk takes 600 ms, and durations and prices still say a minute.
//! Dates, calls per second, injected latencies and retry timeouts are real. So is
//! the time the dialer takes to answer: 20 ms for a document are two seconds of
//! talk at a speed of 100, so measured durations grow with the speed.
//!
//! It does not: route to other legs (`<Dial>` holds the line), place or accept
//! media, sign JSON bodies, expire queued calls after a day, or check that a
//! caller id was verified. `Status=completed` on a call nobody has answered
//! cancels it.
//!
//! # Whose phone does what
//!
//! Everything about a callee is drawn from the seed, the number and how many
//! calls the number had, never from timing: two runs with the same creates have
//! the same outcomes. The mix of fates is configurable; the last digits of a
//! number overrule it.
//!
//! | number ends in | fate | final status | SIP |
//! |---|---|---|---|
//! | `0000` | a person answers | `completed` | 200 |
//! | `0001` | busy | `busy` | 486 |
//! | `0002` | rings until `Timeout` | `no-answer` | 487 |
//! | `0003` | a machine answers, `machine_start` | `completed` | 200 |
//! | `0004` | the create is refused, 400 with 21211 | | |
//! | `0005` | rings, then declines | `failed` | 603 |
//! | `0006` | answers and hangs up within seconds | `completed` | 200 |
//! | `0007` | no circuit, without ringing | `failed` | 503 |
//! | `0008` | no such subscriber, without ringing | `failed` | 404 |
//! | `0009` | a fax answers | `completed` | 200 |
//! | anything else | drawn from the mix | | |
//!
//! The table is [`Behavior::suffixes`]: it can be replaced, emptied
//! (`--no-suffixes`) or extended, up to a whole number with its own fate. Lists
//! of consecutive numbers run into it, ten in every ten thousand.
//!
//! # What goes wrong on purpose
//!
//! [`Faults`] lists every fault; each strikes with a probability (`0.05`) or the
//! next so many times (`x3` on the command line, `{"count": 3}` in JSON).
//!
//! | fault | what the dialer sees | is there a call? |
//! |---|---|---|
//! | `create_latency_ms`, `create_jitter_ms` | a slow answer | yes |
//! | `refuse_429` | 429, code 20429 | no |
//! | `error_before`, `error_after` | 503 | no, yes |
//! | `drop_before`, `drop_after` | the connection ends | no, yes |
//! | `early_callback` | `initiated` arrives before the create is answered | yes |
//! | `hide_from_list` for `hide_for_ms` | the call is missing from lists | yes |
//! | `suppress_answer` | no answer fetch; silence until the callee hangs up | yes |
//! | `callbacks_lost`, `_duplicated`, `_reordered`, `_late` | as named | yes |
//!
//! An account's `cps` paces dialling: creates above it wait their turn with a
//! `queue_time` (`queue`), or are refused with 20429 (`refuse`).
//!
//! # Control
//!
//! | route | |
//! |---|---|
//! | `GET /_sim/health` | live and unsettled calls |
//! | `GET /_sim/idle?within_ms=N` | waits until nothing is live or undelivered |
//! | `GET /_sim/oracle?account=AC..` | what was seen: [`Oracle`] |
//! | `GET /_sim/creates?after=N&limit=M` | the arrival log: [`Create`] |
//! | `GET`, `PUT`, `DELETE /_sim/faults` | [`Faults`]; a PUT replaces all of them |
//! | `GET`, `PUT /_sim/behavior` | [`Behavior`], for calls created from then on |
//! | `GET /_sim/accounts`, `PUT /_sim/accounts/{sid}` | [`Account`] |
//! | `GET /_sim/calls/{sid}/callbacks` | every request made about a call: [`Callback`] |
//! | `POST /_sim/calls/{sid}/replay` `{"index": 0}` | makes one of them again |
//! | `POST /_sim/reset` | forgets calls and logs; live calls vanish silently |
//!
//! # Rehearsing a campaign
//!
//! Start it with the pace of the real account and a bad day's faults:
//!
//! ```text
//! peal-simulator --listen 127.0.0.1:4010 --speed 20 \
//!     --account ACxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx=token:5:queue \
//!     --mix answers=50,machine=20,no_answer=20,busy=10 \
//!     --fault-callbacks-lost 0.02 --fault-drop-after 0.01
//! ```
//!
//! Point a trunk's API base at it, launch the campaign, wait for
//! `/_sim/idle`, and read the oracle. A sound dialer leaves `worst_window.count`
//! at or below the account's pace, and `duplicates`, `blind_retries` and
//! `overlaps` empty; `rung_twice` lists exactly the numbers the campaign was
//! told to retry. Talk seconds and outcomes are what its reports must add up to.

mod accounts;
mod api;
mod call;
mod call_lifecycle;
mod callback_log;
mod callbacks;
mod callee;
mod clock;
mod config;
mod control;
mod creates;
mod delivery;
mod documents;
mod faults;
mod listener;
mod oracle;
mod refusal;
mod runtime;
mod seeded_rng;
mod signature;
mod switchboard;
mod twiml;
mod twiml_interpreter;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

pub use crate::callback_log::Callback;
pub use crate::callee::{Behavior, Callee, Mix, Span};
pub use crate::config::{Account, Config, OverCps};
use crate::faults::FaultState;
pub use crate::faults::{Chance, Faults};
use crate::listener::{Connection, Wire};
pub use crate::oracle::{CallbackCounts, Create, DocumentCounts, Oracle, Verdict, WorstWindow};
use crate::runtime::World;
pub use crate::signature::sign;

/// The carrier, before it is started.
pub struct Simulator;

impl Simulator {
    /// Listens where the configuration says and serves until stopped or dropped.
    #[expect(
        clippy::unused_async,
        reason = "it needs a runtime, and whoever awaits it has one"
    )]
    pub async fn start(config: Config) -> io::Result<Running> {
        let listener = listen(config.listen)?;
        let url = format!("http://{}", listener.local_addr()?);
        let world = World::new(&config, Arc::from(url.as_str())).map_err(io::Error::other)?;
        world.tasks.spawn(
            world
                .stop
                .clone()
                .run_until_cancelled_owned(Arc::clone(&world).run_timers()),
        );
        let routes = api::router()
            .merge(control::router())
            .with_state(Arc::clone(&world))
            .into_make_service_with_connect_info::<Connection>();
        let stopped = world.stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            let serving = axum::serve(Wire(listener), routes).with_graceful_shutdown(stopped);
            if let Err(error) = serving.await {
                tracing::error!(%error, "the simulator stopped serving");
            }
        });
        Ok(Running { url, world, server })
    }
}

/// Connections that may wait to be accepted. The usual 128 are full as soon as a busy dialer
/// opens its connections at once; the kernel then drops what comes, and it comes again a second
/// later.
const BACKLOG: u32 = 4096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A started carrier; dropping it stops it without waiting.
pub struct Running {
    url: String,
    world: Arc<World>,
    server: JoinHandle<()>,
}

impl Running {
    /// Base of the API, such as `http://127.0.0.1:4010`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The report over all accounts.
    pub fn oracle(&self) -> Oracle {
        control::report(&self.world, None)
    }

    /// The report over one account.
    pub fn oracle_of(&self, account_sid: &str) -> Oracle {
        control::report(&self.world, Some(account_sid))
    }

    /// The whole arrival log, in order of judgement.
    pub fn creates(&self) -> Vec<Create> {
        self.world.with(|board, _| board.creates(0, usize::MAX))
    }

    /// Every request made about a call, in order of completion.
    pub fn callbacks(&self, sid: &str) -> Vec<Callback> {
        self.world.with(|board, _| {
            board
                .find(sid, None)
                .map(|call| board.kept.of(call.index).to_vec())
                .unwrap_or_default()
        })
    }

    /// Makes one of those requests again; `None` when it is not kept.
    pub async fn replay(&self, sid: &str, index: usize) -> Option<Callback> {
        control::replay(&self.world, sid, index).await
    }

    pub fn faults(&self) -> Faults {
        self.world.with(|board, _| board.faults.faults().clone())
    }

    /// Replaces all faults; counts start afresh.
    pub fn set_faults(&self, faults: Faults) {
        self.world
            .with(|board, _| board.faults = FaultState::new(faults));
    }

    pub fn behavior(&self) -> Behavior {
        self.world.with(|board, _| Behavior::clone(&board.behavior))
    }

    /// Replaces the behavior for calls created from here on.
    pub fn set_behavior(&self, behavior: Behavior) {
        self.world
            .with(|board, _| board.behavior = Arc::new(behavior));
    }

    /// Adds an account or changes its token and pace.
    pub fn set_account(&self, sid: &str, account: Account) {
        self.world.with(|board, _| board.accounts.set(sid, account));
    }

    /// Forgets calls and logs; live calls vanish without another callback.
    pub fn reset(&self) {
        self.world.with(|board, _| board.reset());
    }

    /// Waits until every call has ended and every callback is delivered or given
    /// up; `false` when that takes longer.
    pub async fn wait_idle(&self, within: Duration) -> bool {
        self.world.wait_idle(Instant::now() + within).await
    }

    /// Stops accepting, abandons calls and callbacks, and waits for open requests.
    pub async fn stop(mut self) {
        self.world.stop.cancel();
        self.world.tasks.close();
        // Whoever still holds a connection has these seconds to let go.
        if timeout(Duration::from_secs(5), self.world.tasks.wait())
            .await
            .is_err()
            || timeout(Duration::from_secs(5), &mut self.server)
                .await
                .is_err()
        {
            self.server.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.world.stop.cancel();
    }
}
