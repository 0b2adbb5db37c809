//! Life cycle of a call: dialling, ringing, answer, end.
//!
//! Each function moves one call by one step and schedules the next. A timer does nothing if its
//! call is no longer in the phase that the timer was set for, so timers are never cancelled.

use std::sync::Arc;

use crate::call::{Answer, CallRef, Phase};
use crate::callbacks::StatusEvent;
use crate::callee::Callee;
use crate::clock::Micros;
use crate::refusal::Refusal;
use crate::switchboard::{Switchboard, What};

/// Most documents of one call, which ends redirect loops.
pub(crate) const DOCUMENTS_MAX: u32 = 500;

/// A change of a live call by the caller.
pub(crate) enum Update {
    /// Allowed only before the answer.
    Cancel,
    /// Allowed at any time.
    Complete,
    /// Runs another document; allowed only on an answered call.
    Redirect(Answer),
}

impl Switchboard {
    pub(crate) fn fire(&mut self, now: Micros, call: CallRef, what: What) {
        let Some(phase) = self.call(call).map(|c| c.phase) else {
            return;
        };
        match (what, phase) {
            (What::Dial, Phase::Queued) => self.dial(now, call),
            (What::Setup, Phase::Initiated) => self.set_up(now, call),
            (What::RingEnd, Phase::Ringing) => self.ring_end(now, call),
            (What::Detect, Phase::InProgress) => self.detect(now, call),
            (What::Talk(serial), Phase::InProgress) => self.resume_talk(now, call, serial),
            (What::HangUp, Phase::InProgress) => self.end(now, call, Phase::Completed, 200),
            _ => {}
        }
    }

    fn dial(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        c.phase = Phase::Initiated;
        c.dialed = Some(now);
        c.updated = now;
        let setup = c.live.as_ref().map_or(0.0, |live| live.plan.setup_secs);
        self.announce(now, call, StatusEvent::Initiated);
        self.after(now, setup, call, What::Setup);
    }

    /// Rings the phone, or ends the call without ringing.
    fn set_up(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        let Some(live) = c.live.as_ref() else { return };
        let (callee, ring_secs) = (live.plan.callee, live.plan.ring_secs);
        let timeout = f64::from(live.request.ring_timeout_secs);
        match callee {
            Callee::Busy => return self.end(now, call, Phase::Busy, 486),
            Callee::Fails => return self.end(now, call, Phase::Failed, 503),
            Callee::Unallocated | Callee::Invalid => {
                return self.end(now, call, Phase::Failed, 404);
            }
            _ => {}
        }

        c.phase = Phase::Ringing;
        c.rang = true;
        c.updated = now;
        let (to, account) = (Arc::clone(&c.to), c.account);
        let number = self.numbers.entry(Arc::clone(&to)).or_default();
        number.rung += 1;
        if number.rung > 1 {
            self.rung_twice.add(&to, account);
        }
        self.tally(account, |tally| tally.rung += 1);
        self.announce(now, call, StatusEvent::Ringing);

        let ring_secs = if callee == Callee::NoAnswer {
            timeout
        } else {
            ring_secs.min(timeout)
        };
        self.after(now, ring_secs, call, What::RingEnd);
    }

    fn ring_end(&mut self, now: Micros, call: CallRef) {
        let Some(live) = self.call(call).and_then(|c| c.live.as_ref()) else {
            return;
        };
        let timed_out = live.plan.ring_secs >= f64::from(live.request.ring_timeout_secs);
        match live.plan.callee {
            Callee::NoAnswer => self.end(now, call, Phase::NoAnswer, 487),
            _ if timed_out => self.end(now, call, Phase::NoAnswer, 487),
            Callee::Rejects => self.end(now, call, Phase::Failed, 603),
            _ => self.pick_up(now, call),
        }
    }

    fn pick_up(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        c.phase = Phase::InProgress;
        c.answered = Some(now);
        c.updated = now;
        let account = c.account;
        let Some(live) = c.live.as_ref() else { return };
        let talk_secs = live
            .plan
            .talk_secs
            .min(f64::from(live.request.time_limit_secs));
        let detection_secs = live.plan.detection_secs;
        let detection = live.request.detection.as_ref();
        let (detects, waits) = (
            detection.is_some(),
            detection.is_some_and(|detection| !detection.asynchronous),
        );

        self.tally(account, |tally| tally.answered += 1);
        self.announce(now, call, StatusEvent::Answered);
        self.announce_recording(now, call, "in-progress");

        self.after(now, talk_secs, call, What::HangUp);
        if detects {
            self.after(now, detection_secs, call, What::Detect);
        }
        if !waits {
            self.first_document(now, call);
        }
    }

    fn detect(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        let Some(live) = c.live.as_ref() else { return };
        let waits = live
            .request
            .detection
            .as_ref()
            .is_some_and(|detection| !detection.asynchronous);
        c.answered_by = Some(live.plan.callee.answered_by());
        c.updated = now;
        self.announce_detection(now, call);
        if waits {
            self.first_document(now, call);
        }
    }

    fn first_document(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call(call) else { return };
        let Some(live) = c.live.as_ref() else { return };
        let (to, account) = (Arc::clone(&c.to), c.account);
        let answer = live.request.answer.clone();
        let nth = live.nth;
        if self.fault("suppress_answer", |f| f.suppress_answer, &to, nth) {
            self.tally(account, |tally| tally.documents.answers_suppressed += 1);
            return;
        }
        self.begin_document(now, call, answer);
    }

    /// Ends a call once, queues its last callbacks, and releases its live state.
    pub(crate) fn end(&mut self, now: Micros, call: CallRef, phase: Phase, sip_code: u16) {
        let clock = self.clock;
        let Some(c) = self.call_mut(call) else { return };
        if c.phase.is_final() {
            return;
        }

        c.phase = phase;
        c.ended = Some(now);
        c.updated = now;
        c.sip_code = sip_code;
        c.duration_secs = c
            .answered
            .map_or(0, |answered| clock.call_secs(now.saturating_sub(answered)));
        if let Some(live) = c.live.as_mut() {
            live.talk = None;
            c.recorded = c.answered.is_some() && live.request.recording.is_some();
        }

        let (to, account) = (Arc::clone(&c.to), c.account);
        let duration_secs = u64::from(c.duration_secs);
        if let Some(number) = self.numbers.get_mut(&to) {
            number.live = number.live.saturating_sub(1);
        }
        self.tally(account, |tally| {
            tally.live = tally.live.saturating_sub(1);
            tally.talk_secs += duration_secs;
            *tally.outcomes.entry(phase.word()).or_default() += 1;
        });

        self.announce(now, call, StatusEvent::Completed);
        self.announce_recording(now, call, "completed");
        self.flush(call);
        self.settle(call);
    }

    /// Applies an update, or returns the reason against it.
    pub(crate) fn update(
        &mut self,
        now: Micros,
        call: CallRef,
        update: Update,
    ) -> Result<(), Refusal> {
        let phase = self.call(call).map_or(Phase::Failed, |c| c.phase);
        if phase.is_final() {
            let message = "Call is not in-progress. Cannot redirect or end it.";
            return Err(Refusal::bad(21220, message));
        }

        let answered = phase == Phase::InProgress;
        match update {
            Update::Cancel if answered => Err(Refusal::bad(
                21220,
                "Call is in-progress. Only queued or ringing calls can be canceled.",
            )),
            Update::Complete if answered => {
                self.end(now, call, Phase::Completed, 200);
                Ok(())
            }
            Update::Cancel | Update::Complete => {
                self.end(now, call, Phase::Canceled, 487);
                Ok(())
            }
            Update::Redirect(answer) if answered => {
                self.begin_document(now, call, answer);
                Ok(())
            }
            Update::Redirect(_) => Err(Refusal::bad(
                21220,
                "Call is not in-progress. Cannot redirect.",
            )),
        }
    }

    /// Drops the live state of a call that is settled.
    pub(crate) fn settle(&mut self, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        if c.live.is_some() && c.is_settled() {
            c.live = None;
            self.unsettled = self.unsettled.saturating_sub(1);
        }
    }

    pub(crate) fn after(&mut self, now: Micros, call_secs: f64, call: CallRef, what: What) {
        let at = now.saturating_add(self.clock.real_micros(call_secs));
        self.schedule(at, call, what);
    }
}
