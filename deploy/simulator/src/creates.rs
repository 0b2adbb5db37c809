//! Processing of a create: credentials, form, injected faults, calls per second; then the call
//! is inserted and the arrival is logged with its verdict. All of it happens under one lock, so
//! the log always matches the calls.

use std::sync::Arc;
use std::time::Duration;

use crate::call::{CallPhase, CallRef, CreateRequest, LiveCall, SimulatedCall, TwilioSid};
use crate::callee::CallOutcome;
use crate::clock::Micros;
use crate::oracle::CreateVerdict;
use crate::refusal::TwilioError;
use crate::seeded_rng::SeededRng;
use crate::switchboard::{CreateArrival, Switchboard, TimerAction};

/// A create request as received.
pub(crate) struct IncomingCreate<'a> {
    pub(crate) arrived: Micros,
    pub(crate) account: &'a str,
    pub(crate) login: Option<(String, String)>,
    pub(crate) to: &'a str,
    pub(crate) from: &'a str,
    pub(crate) url: &'a str,
    pub(crate) request: Result<CreateRequest, TwilioError>,
}

/// Response to a create.
pub(crate) struct CreateDecision {
    pub(crate) outcome: Result<CallRef, TwilioError>,
    pub(crate) cut_connection: bool,
    pub(crate) latency: Duration,
    /// The queued callbacks are delivered before the response.
    pub(crate) callbacks_first: bool,
}

impl Switchboard {
    /// Decides a create, and inserts the call if it is accepted.
    pub(crate) fn create(&mut self, now: Micros, incoming: IncomingCreate<'_>) -> CreateDecision {
        let account = self
            .accounts
            .authenticate(incoming.account, incoming.login.as_ref());
        let (to, url) = (Arc::from(incoming.to), Arc::from(incoming.url));
        let account_sid = match account.and_then(|index| self.accounts.get(index)) {
            Some(customer) => Arc::clone(&customer.sid),
            None => Arc::from(incoming.account),
        };

        let mut arrival = CreateArrival {
            at: incoming.arrived,
            account,
            account_sid,
            to,
            from: self.intern_caller_id(incoming.from),
            url,
            call: None,
            verdict: CreateVerdict::Error,
        };

        let judged = match (account, incoming.request) {
            (None, _) => Err(TwilioError::unauthenticated()),
            (Some(_), Err(refusal)) => Err(refusal),
            (Some(account), Ok(request)) => Ok((account, request)),
        };

        let decision = match judged {
            Ok((account, request)) => self.decide(now, account, request, &mut arrival),
            Err(refusal) => {
                arrival.verdict = CreateVerdict::Refused(refusal.code);
                CreateDecision::refuse(refusal)
            }
        };
        self.log_arrival(arrival);
        decision
    }

    fn decide(
        &mut self,
        now: Micros,
        account: usize,
        request: CreateRequest,
        arrival: &mut CreateArrival,
    ) -> CreateDecision {
        // 1. Refusals: an invalid number, a fault, the account's calls per second.
        let key = Arc::clone(&arrival.to);
        let nth = self.count_create(&mut arrival.to);
        let latency = Duration::from_millis(self.faults.create_latency_ms(&key, nth));
        let calls = self.numbers.get(&key).map_or(0, |n| n.calls.len());
        let calls = u64::try_from(calls).unwrap_or(u64::MAX);
        let refused = if self.behavior.outcome(&key, calls) == CallOutcome::Invalid {
            let message = format!("The 'To' number {key} is not a valid phone number.");
            Some((
                CreateVerdict::Refused(21211),
                TwilioError::bad_request(21211, message),
            ))
        } else {
            self.refused_by_fault(&key, nth)
        };

        if let Some((verdict, refusal)) = refused {
            arrival.verdict = verdict;
            return CreateDecision {
                latency,
                cut_connection: verdict == CreateVerdict::Dropped,
                ..CreateDecision::refuse(refusal)
            };
        }

        let customer = self.accounts.get_mut(account);
        let slot = customer.and_then(|customer| customer.next_slot(arrival.at));
        let Some(dial_at) = slot else {
            arrival.verdict = CreateVerdict::Refused(20429);
            return CreateDecision {
                latency,
                ..CreateDecision::refuse(TwilioError::too_many_requests())
            };
        };

        // 2. The call, and the faults after its acceptance.
        let early = dial_at <= now && self.fault("early_callback", |f| f.early_callback, &key, nth);
        let drop = self.fault("drop_after", |f| f.drop_after, &key, nth);
        let error = !drop && self.fault("error_after", |f| f.error_after, &key, nth);
        let call = self.insert_call(now, dial_at, account, request, arrival, nth);
        if early {
            self.on_timer(now, call, TimerAction::Dial);
        }

        arrival.verdict = match (drop, error) {
            (true, _) => CreateVerdict::AcceptedThenDropped,
            (_, true) => CreateVerdict::AcceptedThenError,
            _ => CreateVerdict::Accepted,
        };

        CreateDecision {
            outcome: if error {
                Err(TwilioError::unavailable())
            } else {
                Ok(call)
            },
            cut_connection: drop,
            latency,
            callbacks_first: early,
        }
    }

    fn refused_by_fault(&mut self, key: &str, nth: u64) -> Option<(CreateVerdict, TwilioError)> {
        if self.fault("drop_before", |f| f.drop_before, key, nth) {
            return Some((CreateVerdict::Dropped, TwilioError::unavailable()));
        }
        if self.fault("error_before", |f| f.error_before, key, nth) {
            return Some((CreateVerdict::Error, TwilioError::unavailable()));
        }
        if self.fault("refuse_429", |f| f.refuse_429, key, nth) {
            return Some((
                CreateVerdict::Refused(20429),
                TwilioError::too_many_requests(),
            ));
        }
        None
    }

    fn insert_call(
        &mut self,
        now: Micros,
        dial_at: Micros,
        account: usize,
        request: CreateRequest,
        arrival: &mut CreateArrival,
        nth_create: u64,
    ) -> CallRef {
        let to = Arc::clone(&arrival.to);
        let number = self.numbers.entry(Arc::clone(&to)).or_default();
        let nth = u64::try_from(number.calls.len()).unwrap_or(u64::MAX);
        let plan = self.behavior.plan(&to, nth);
        let index = u32::try_from(self.calls.len()).unwrap_or(u32::MAX);
        number.calls.push(index);
        number.live += 1;
        if number.live > 1 {
            self.overlaps.add(&to, account);
        }

        let hidden = self.fault("hide_from_list", |f| f.hide_from_list, &to, nth_create);
        let hidden_ms = if hidden {
            self.faults.faults().hide_for_ms
        } else {
            0
        };

        let sid = self.new_sid(index);
        self.by_sid.insert(sid, index);
        self.calls.push(SimulatedCall {
            sid,
            account,
            to,
            from: Arc::clone(&arrival.from),
            phase: CallPhase::Queued,
            created: now,
            updated: now,
            dialed: None,
            answered: None,
            ended: None,
            hidden_until: now.saturating_add(hidden_ms.saturating_mul(1000)),
            duration_secs: 0,
            queue_ms: u32::try_from((dial_at - arrival.at) / 1000).unwrap_or(u32::MAX),
            sip_code: 0,
            rang: false,
            recorded: false,
            answered_by: None,
            live: Some(Box::new(LiveCall::new(request, plan, nth))),
        });

        arrival.call = Some(index);
        self.unsettled += 1;
        self.tally(account, |tally| {
            tally.live += 1;
            tally.max_live = tally.max_live.max(tally.live);
        });

        let call = self.call_ref(index);
        // The slot counts from the arrival of the head, but the form may arrive after the slot.
        self.schedule(dial_at.max(now), call, TimerAction::Dial);
        call
    }

    fn new_sid(&self, index: u32) -> TwilioSid {
        let mut draw = SeededRng::new(
            self.salt,
            "sid",
            "call",
            u64::from(index) | (u64::from(self.epoch) << 32),
        );
        let value = (u128::from(draw.next()) << 64) | u128::from(draw.next());
        TwilioSid(value.to_be_bytes())
    }

    /// Counts a create for its number and interns the number's text.
    fn count_create(&mut self, to: &mut Arc<str>) -> u64 {
        if let Some((shared, _)) = self.numbers.get_key_value(to) {
            *to = Arc::clone(shared);
        }
        let number = self.numbers.entry(Arc::clone(to)).or_default();
        number.creates += 1;
        number.creates - 1
    }

    /// Interns a caller id.
    fn intern_caller_id(&mut self, from: &str) -> Arc<str> {
        if let Some(known) = self.caller_ids.get(from) {
            return Arc::clone(known);
        }
        let from: Arc<str> = Arc::from(from);
        // Caller ids are few; a flood of invalid ones must not grow the set without bound.
        if self.caller_ids.len() < 10_000 {
            self.caller_ids.insert(Arc::clone(&from));
        }
        from
    }

    fn log_arrival(&mut self, mut arrival: CreateArrival) {
        let verdict = arrival.verdict;
        let accepted = verdict.is_accepted();
        if let Some(account) = arrival.account {
            self.tally(account, |tally| tally.count_create(verdict));
        } else {
            self.total.count_create(verdict);
        }
        if !arrival.url.is_empty() {
            if let Some((shared, _)) = self.urls.get_key_value(&arrival.url) {
                arrival.url = Arc::clone(shared);
            }
            let account = arrival.account.unwrap_or(usize::MAX);
            let used = self.urls.entry(Arc::clone(&arrival.url)).or_default();
            if used.ambiguous {
                self.blind_retries.add(&arrival.url, account);
            }
            used.ambiguous |= !verdict.proves_nothing_happened();
            used.accepted += u32::from(accepted);
            if accepted && used.accepted > 1 {
                self.duplicates.add(&arrival.url, account);
            }
        }
        self.arrivals.push(arrival);
    }
}

impl CreateDecision {
    fn refuse(refusal: TwilioError) -> Self {
        Self {
            outcome: Err(refusal),
            cut_connection: false,
            latency: Duration::ZERO,
            callbacks_first: false,
        }
    }
}
