//! State of the carrier, under one lock.
//!
//! The switchboard never blocks: its functions change state, schedule timers (one heap) and
//! queue requests, which the runtime sends after the lock is released. The lock is held for
//! microseconds, except when many timers are due at once, and a call that rings or talks costs
//! only its entry in the heap.
//!
//! A timer runs with the time it was set for and before any later event: taking the lock first
//! fires all due timers. A delayed timer task therefore does not prolong calls. Callbacks and
//! documents take real time: on an overloaded machine a callee may hang up before the first
//! document is read.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::accounts::AccountRegistry;
use crate::call::{CallRef, SimulatedCall, TwilioSid};
use crate::callback_log::CallbackLog;
use crate::callbacks::QueuedCallback;
use crate::callee::CalleeBehavior;
use crate::clock::{Clock, Micros};
use crate::config::SimulatorConfig;
use crate::documents::DocumentFetch;
use crate::faults::FaultState;
use crate::oracle::{
    AccountTally, CreateRecord, CreateVerdict, OffenceLog, Oracle, WorstWindow, mean_rate,
    worst_window,
};

/// Effect of a timer on its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerAction {
    Dial,
    Setup,
    RingEnd,
    Detect,
    /// The current wait of the document with this serial is over.
    ResumeDocument(u32),
    HangUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CallTimer {
    at: Micros,
    seq: u64,
    index: u32,
    action: TimerAction,
}

/// A request to make once the lock is released.
pub(crate) enum PendingRequest {
    /// Posts the outbox of a call, in order.
    PostOutbox(CallRef),
    /// Posts one callback outside the outbox, after a delay.
    PostLate(CallRef, Box<QueuedCallback>, Duration),
    FetchDocument(CallRef, Box<DocumentFetch>),
}

#[derive(Default)]
pub(crate) struct NumberState {
    pub(crate) calls: Vec<u32>,
    pub(crate) creates: u64,
    pub(crate) live: u32,
    pub(crate) rung: u32,
}

#[derive(Default)]
pub(crate) struct UrlUse {
    pub(crate) accepted: u32,
    /// An earlier create with this URL may have had an effect.
    pub(crate) ambiguous: bool,
}

pub(crate) struct CreateArrival {
    pub(crate) at: Micros,
    pub(crate) account: Option<usize>,
    pub(crate) account_sid: Arc<str>,
    pub(crate) to: Arc<str>,
    pub(crate) from: Arc<str>,
    pub(crate) url: Arc<str>,
    pub(crate) call: Option<u32>,
    pub(crate) verdict: CreateVerdict,
}

pub(crate) struct Switchboard {
    pub(crate) clock: Clock,
    /// Base URL of this simulator, for recording URLs.
    pub(crate) base_url: Arc<str>,
    pub(crate) epoch: u32,
    pub(crate) salt: u64,
    pub(crate) calls: Vec<SimulatedCall>,
    pub(crate) by_sid: HashMap<TwilioSid, u32>,
    pub(crate) numbers: HashMap<Arc<str>, NumberState>,
    pub(crate) caller_ids: HashSet<Arc<str>>,
    pub(crate) urls: HashMap<Arc<str>, UrlUse>,
    pub(crate) arrivals: Vec<CreateArrival>,
    pub(crate) accounts: AccountRegistry,
    pub(crate) behavior: Arc<CalleeBehavior>,
    pub(crate) faults: FaultState,
    pub(crate) callback_log: CallbackLog,
    pub(crate) total: AccountTally,
    pub(crate) duplicates: OffenceLog,
    pub(crate) blind_retries: OffenceLog,
    pub(crate) overlaps: OffenceLog,
    pub(crate) rung_twice: OffenceLog,
    timers: BinaryHeap<Reverse<CallTimer>>,
    timer_seq: u64,
    pub(crate) pending_requests: Vec<PendingRequest>,
    /// Count of calls that are live or have callbacks to deliver.
    pub(crate) unsettled: usize,
}

impl Switchboard {
    pub(crate) fn new(config: &SimulatorConfig, clock: Clock, base_url: Arc<str>) -> Self {
        let accounts = AccountRegistry::new(
            &config.accounts,
            config.default_account.clone(),
            config.known_accounts_only,
        );

        Self {
            clock,
            base_url,
            epoch: 0,
            salt: clock.unix_micros(0),
            calls: Vec::new(),
            by_sid: HashMap::new(),
            numbers: HashMap::new(),
            caller_ids: HashSet::new(),
            urls: HashMap::new(),
            arrivals: Vec::new(),
            accounts,
            behavior: Arc::new(config.behavior.clone()),
            faults: FaultState::new(config.faults.clone()),
            callback_log: CallbackLog::new(config.keep_callbacks, config.kept_callbacks_max),
            total: AccountTally::default(),
            duplicates: OffenceLog::default(),
            blind_retries: OffenceLog::default(),
            overlaps: OffenceLog::default(),
            rung_twice: OffenceLog::default(),
            timers: BinaryHeap::new(),
            timer_seq: 0,
            pending_requests: Vec::new(),
            unsettled: 0,
        }
    }

    /// Discards every call and log; live calls end without another callback.
    /// Accounts, faults (with reset counts) and behavior stay.
    pub(crate) fn reset(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.calls = Vec::new();
        self.by_sid = HashMap::new();
        self.numbers = HashMap::new();
        self.urls = HashMap::new();
        self.arrivals = Vec::new();
        self.accounts.reset();
        self.faults = FaultState::new(self.faults.faults().clone());
        self.callback_log.clear();
        self.total = AccountTally::default();
        for offences in [
            &mut self.duplicates,
            &mut self.blind_retries,
            &mut self.overlaps,
            &mut self.rung_twice,
        ] {
            offences.clear();
        }
        self.timers.clear();
        self.pending_requests.clear();
        self.unsettled = 0;
    }

    pub(crate) fn call(&self, call: CallRef) -> Option<&SimulatedCall> {
        let index = usize::try_from(call.index).ok()?;
        self.calls.get(index).filter(|_| call.epoch == self.epoch)
    }

    pub(crate) fn call_mut(&mut self, call: CallRef) -> Option<&mut SimulatedCall> {
        let index = usize::try_from(call.index).ok()?;
        let current = call.epoch == self.epoch;
        self.calls.get_mut(index).filter(|_| current)
    }

    /// Finds a call of this account, or of any account.
    pub(crate) fn find_call(&self, sid: &str, account: Option<usize>) -> Option<CallRef> {
        let index = *self.by_sid.get(&TwilioSid::parse(sid, "CA")?)?;
        let call = self.call_ref(index);
        let owner = self.call(call)?.account;
        account.is_none_or(|wanted| wanted == owner).then_some(call)
    }

    pub(crate) fn call_ref(&self, index: u32) -> CallRef {
        CallRef {
            epoch: self.epoch,
            index,
        }
    }

    pub(crate) fn tally(&mut self, account: usize, change: impl Fn(&mut AccountTally)) {
        change(&mut self.total);
        if let Some(customer) = self.accounts.get_mut(account) {
            change(&mut customer.tally);
        }
    }

    pub(crate) fn schedule(&mut self, at: Micros, call: CallRef, what: TimerAction) {
        self.timer_seq += 1;
        self.timers.push(Reverse(CallTimer {
            at,
            seq: self.timer_seq,
            index: call.index,
            action: what,
        }));
    }

    pub(crate) fn next_due(&self) -> Option<Micros> {
        self.timers.peek().map(|Reverse(timer)| timer.at)
    }

    /// Fires every timer that is due by `now`, in order, including timers that are set meanwhile.
    /// A timer left in the heap would run after a later event.
    pub(crate) fn fire_due(&mut self, now: Micros) {
        while self.next_due().is_some_and(|at| at <= now) {
            if let Some(Reverse(timer)) = self.timers.pop() {
                let call = self.call_ref(timer.index);
                self.on_timer(timer.at, call, timer.action);
            }
        }
    }

    pub(crate) fn fault(
        &mut self,
        name: &'static str,
        pick: impl Fn(&crate::faults::Faults) -> crate::faults::FaultChance,
        key: &str,
        nth: u64,
    ) -> bool {
        self.faults.strikes(name, pick, key, nth)
    }

    /// Entries of the arrival log after entry `after`.
    pub(crate) fn creates(&self, after: usize, limit: usize) -> Vec<CreateRecord> {
        let lines = self.arrivals.iter().enumerate().skip(after).take(limit);
        lines
            .map(|(place, arrival)| CreateRecord {
                n: u64::try_from(place + 1).unwrap_or(u64::MAX),
                at_micros: arrival.at,
                unix_micros: self.clock.unix_micros(arrival.at),
                account: arrival.account_sid.to_string(),
                to: arrival.to.to_string(),
                from: arrival.from.to_string(),
                url: arrival.url.to_string(),
                sid: arrival
                    .call
                    .and_then(|index| self.call(self.call_ref(index)))
                    .map(|call| call.sid.text("CA")),
                verdict: arrival.verdict,
            })
            .collect()
    }

    /// Copies the data of a report; the caller computes rates outside the lock.
    pub(crate) fn oracle(&self, account: Option<&str>) -> (Oracle, Vec<Micros>) {
        let index = account.map(|sid| self.accounts.find(sid).unwrap_or(usize::MAX));
        let arrivals = self
            .arrivals
            .iter()
            .filter(|arrival| index.is_none() || arrival.account == index)
            .map(|arrival| arrival.at)
            .collect();

        let empty = AccountTally::default();
        let tally = match index {
            None => &self.total,
            Some(index) => self.accounts.get(index).map_or(&empty, |c| &c.tally),
        };

        let (duplicates, duplicate_count) = self.duplicates.report(index);
        let (blind_retries, blind_retry_count) = self.blind_retries.report(index);
        let (overlaps, overlap_count) = self.overlaps.report(index);
        let (rung_twice, rung_twice_count) = self.rung_twice.report(index);

        let oracle = Oracle {
            account: account.map(str::to_owned),
            duplicates,
            duplicate_count,
            blind_retries,
            blind_retry_count,
            overlaps,
            overlap_count,
            rung_twice,
            rung_twice_count,
            ..tally.report()
        };
        (oracle, arrivals)
    }
}

/// Adds the rates of the arrivals to a report.
pub(crate) fn finish_oracle(mut oracle: Oracle, arrivals: Vec<Micros>, clock: Clock) -> Oracle {
    oracle.mean_rate = mean_rate(&arrivals);
    if let Some((count, start)) = worst_window(arrivals) {
        oracle.worst_window = WorstWindow {
            count,
            start_micros: start,
            start_unix_micros: clock.unix_micros(start),
        };
    }
    oracle
}
