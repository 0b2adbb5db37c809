//! Carrier simulator: a carrier that places no real calls.
//!
//! The simulator implements the part of Twilio's `2010-04-01` API that a dialer needs. It has
//! its own signer and document reader and shares no code with the dialer under test, so
//! agreement between the two is agreement on the wire. It runs in a test's process
//! ([`Simulator::start`]) or as the binary `peal-simulator`.
//!
//! # Behavior
//!
//! A create is answered 201 and the call goes through
//! `queued -> initiated -> ringing -> in-progress -> completed`, or ends in
//! `busy`, `no-answer`, `failed` or `canceled`. On the answer the carrier
//! fetches the answer URL, runs the document (Say, Play, Pause, Gather, Record,
//! Redirect, Hangup; a stream keeps the call open), lets the callee speak into each
//! gather and follows the action, until the document or the callee ends the
//! call. Status, detection and recording callbacks are signed, posted in sequence,
//! and retried as the URL's `#rc=..&rp=..` fragment specifies.
//!
//! Call seconds (ringing, talking, detection) are compressed by `speed`: at 100
//! a minute of talk takes 600 ms, while durations and prices still count a minute.
//! Dates, calls per second, injected latencies and retry timeouts are in real time. So is
//! the dialer's response time: 20 ms for a document are two seconds of talk at a speed
//! of 100, so measured durations grow with the speed.
//!
//! Not simulated: other legs (`<Dial>` keeps the call open), media, signatures of JSON
//! bodies, expiry of queued calls after a day, verification of caller ids.
//! `Status=completed` cancels a call that is not answered yet.
//!
//! # Outcomes
//!
//! Everything about a callee is derived from the seed, the number and the count of its
//! earlier calls, never from timing: two runs with the same creates have the same
//! outcomes. The mix of outcomes is configurable; the last digits of a number override it.
//!
//! | number ends in | outcome | final status | SIP |
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
//! The table is [`CalleeBehavior::suffixes`]: it can be replaced, emptied
//! (`--no-suffixes`) or extended, even by a whole number with its own outcome. In a list
//! of consecutive numbers, ten in every ten thousand match it.
//!
//! # Injected faults
//!
//! [`Faults`] lists every fault; each applies with a probability (`0.05`) or to a number of
//! next events (`x3` on the command line, `{"count": 3}` in JSON).
//!
//! | fault | effect at the dialer | call exists |
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
//! An account's `cps` limits dialling: creates above it are queued, with a `queue_time`
//! (`queue`), or refused with 20429 (`refuse`).
//!
//! # Control
//!
//! | route | |
//! |---|---|
//! | `GET /_sim/health` | live and unsettled calls |
//! | `GET /_sim/idle?within_ms=N` | waits until no call is live and no callback undelivered |
//! | `GET /_sim/oracle?account=AC..` | the report: [`Oracle`] |
//! | `GET /_sim/creates?after=N&limit=M` | the arrival log: [`CreateRecord`] |
//! | `GET`, `PUT`, `DELETE /_sim/faults` | [`Faults`]; a PUT replaces all of them |
//! | `GET`, `PUT /_sim/behavior` | [`CalleeBehavior`], for later calls |
//! | `GET /_sim/accounts`, `PUT /_sim/accounts/{sid}` | [`AccountConfig`] |
//! | `GET /_sim/calls/{sid}/callbacks` | every request about a call: [`CallbackRecord`] |
//! | `POST /_sim/calls/{sid}/replay` `{"index": 0}` | repeats one of them |
//! | `POST /_sim/reset` | discards calls and logs; live calls end without callbacks |
//!
//! # Rehearsing a campaign
//!
//! Start the simulator with the calls per second of the real account and with faults:
//!
//! ```text
//! peal-simulator --listen 127.0.0.1:4010 --speed 20 \
//!     --account ACxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx=token:5:queue \
//!     --mix answers=50,machine=20,no_answer=20,busy=10 \
//!     --fault-callbacks-lost 0.02 --fault-drop-after 0.01
//! ```
//!
//! Set the base URL of a trunk to it, launch the campaign, wait for `/_sim/idle`, and read
//! the oracle. A correct dialer leaves `worst_window.count` at or below the account's calls
//! per second, and `duplicates`, `blind_retries` and `overlaps` empty; `rung_twice` lists
//! exactly the numbers that the campaign retries. The campaign's reports must match the
//! talk seconds and outcomes.

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

pub use crate::callback_log::CallbackRecord;
pub use crate::callee::{CallOutcome, CalleeBehavior, OutcomeMix, SecondsRange};
pub use crate::config::{AccountConfig, OverCps, SimulatorConfig};
use crate::faults::FaultState;
pub use crate::faults::{FaultChance, Faults};
use crate::listener::{ConnectionHandle, StampedListener};
pub use crate::oracle::{
    CallbackCounts, CreateRecord, CreateVerdict, DocumentCounts, Oracle, WorstWindow,
};
use crate::runtime::SimulatorRuntime;
pub use crate::signature::sign;

/// The simulator before its start.
pub struct Simulator;

impl Simulator {
    /// Listens on the configured address and serves until stopped or dropped.
    #[expect(
        clippy::unused_async,
        reason = "needs a runtime, which every caller that awaits has"
    )]
    pub async fn start(config: SimulatorConfig) -> io::Result<RunningSimulator> {
        // 1. The socket and the state.
        let listener = listen(config.listen)?;
        let url = format!("http://{}", listener.local_addr()?);
        let sim =
            SimulatorRuntime::new(&config, Arc::from(url.as_str())).map_err(io::Error::other)?;

        // 2. The timers.
        sim.tasks.spawn(
            sim.stop
                .clone()
                .run_until_cancelled_owned(Arc::clone(&sim).run_timers()),
        );

        // 3. The server.
        let routes = api::router()
            .merge(control::router())
            .with_state(Arc::clone(&sim))
            .into_make_service_with_connect_info::<ConnectionHandle>();
        let stopped = sim.stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            let serving =
                axum::serve(StampedListener(listener), routes).with_graceful_shutdown(stopped);
            if let Err(error) = serving.await {
                tracing::error!(%error, "the simulator stopped serving");
            }
        });

        Ok(RunningSimulator {
            url,
            runtime: sim,
            server,
        })
    }
}

/// Most connections that wait to be accepted. A busy dialer that opens its connections at once
/// fills the usual 128; the kernel then drops SYN packets, which are resent a second later.
const LISTEN_BACKLOG: u32 = 4096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// A running simulator; dropping it stops it without waiting.
pub struct RunningSimulator {
    url: String,
    runtime: Arc<SimulatorRuntime>,
    server: JoinHandle<()>,
}

impl RunningSimulator {
    /// Base of the API, such as `http://127.0.0.1:4010`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The report over all accounts.
    pub fn oracle(&self) -> Oracle {
        control::report(&self.runtime, None)
    }

    /// The report over one account.
    pub fn account_oracle(&self, account_sid: &str) -> Oracle {
        control::report(&self.runtime, Some(account_sid))
    }

    /// The whole arrival log, in order of processing.
    pub fn creates(&self) -> Vec<CreateRecord> {
        self.runtime
            .with_board(|board, _| board.creates(0, usize::MAX))
    }

    /// Every request about a call, in order of completion.
    pub fn callbacks(&self, sid: &str) -> Vec<CallbackRecord> {
        self.runtime.with_board(|board, _| {
            board
                .find_call(sid, None)
                .map(|call| board.callback_log.for_call(call.index).to_vec())
                .unwrap_or_default()
        })
    }

    /// Repeats one of those requests; `None` when it is not in the log.
    pub async fn replay(&self, sid: &str, index: usize) -> Option<CallbackRecord> {
        control::replay(&self.runtime, sid, index).await
    }

    pub fn faults(&self) -> Faults {
        self.runtime
            .with_board(|board, _| board.faults.faults().clone())
    }

    /// Replaces all faults and resets their counts.
    pub fn set_faults(&self, faults: Faults) {
        self.runtime
            .with_board(|board, _| board.faults = FaultState::new(faults));
    }

    pub fn behavior(&self) -> CalleeBehavior {
        self.runtime
            .with_board(|board, _| CalleeBehavior::clone(&board.behavior))
    }

    /// Replaces the behavior for calls created later.
    pub fn set_behavior(&self, behavior: CalleeBehavior) {
        self.runtime
            .with_board(|board, _| board.behavior = Arc::new(behavior));
    }

    /// Adds an account or changes its token and calls per second.
    pub fn set_account(&self, sid: &str, account: AccountConfig) {
        self.runtime
            .with_board(|board, _| board.accounts.set(sid, account));
    }

    /// Discards calls and logs; live calls end without another callback.
    pub fn reset(&self) {
        self.runtime.with_board(|board, _| board.reset());
    }

    /// Waits until every call has ended and every callback is delivered or given
    /// up; returns `false` after the timeout.
    pub async fn wait_idle(&self, within: Duration) -> bool {
        self.runtime.wait_idle(Instant::now() + within).await
    }

    /// Stops accepting, abandons calls and callbacks, and waits for open requests.
    pub async fn stop(mut self) {
        self.runtime.stop.cancel();
        self.runtime.tasks.close();
        // Grace for open requests and connections.
        if timeout(Duration::from_secs(5), self.runtime.tasks.wait())
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

impl Drop for RunningSimulator {
    fn drop(&mut self) {
        self.runtime.stop.cancel();
    }
}
