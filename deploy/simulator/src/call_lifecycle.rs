//! Life cycle of a call: dialling, ringing, answer, end.
//!
//! Each function moves one call by one step and schedules the next. A timer does nothing if its
//! call is no longer in the phase that the timer was set for, so timers are never cancelled.

use std::sync::Arc;

use crate::call::{AnswerSource, CallPhase, CallRef};
use crate::callbacks::StatusEvent;
use crate::callee::CallOutcome;
use crate::clock::Micros;
use crate::refusal::TwilioError;
use crate::switchboard::{Switchboard, TimerAction};

/// Most documents of one call, which ends redirect loops.
pub(crate) const MAX_DOCUMENTS: u32 = 500;

/// A change of a live call by the caller.
pub(crate) enum CallUpdate {
    /// Allowed only before the answer.
    Cancel,
    /// Allowed at any time.
    Complete,
    /// Runs another document; allowed only on an answered call.
    Redirect(AnswerSource),
}

impl Switchboard {
    pub(crate) fn on_timer(&mut self, now: Micros, call: CallRef, what: TimerAction) {
        let Some(phase) = self.call(call).map(|c| c.phase) else {
            return;
        };
        match (what, phase) {
            (TimerAction::Dial, CallPhase::Queued) => self.dial(now, call),
            (TimerAction::Setup, CallPhase::Initiated) => self.start_ringing(now, call),
            (TimerAction::RingEnd, CallPhase::Ringing) => self.end_ringing(now, call),
            (TimerAction::Detect, CallPhase::InProgress) => self.finish_detection(now, call),
            (TimerAction::ResumeDocument(serial), CallPhase::InProgress) => {
                self.resume_document(now, call, serial)
            }
            (TimerAction::HangUp, CallPhase::InProgress) => {
                self.end_call(now, call, CallPhase::Completed, 200)
            }
            _ => {}
        }
    }

    fn dial(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        c.phase = CallPhase::Initiated;
        c.dialed = Some(now);
        c.updated = now;
        let setup = c.live.as_ref().map_or(0.0, |live| live.plan.setup_secs);
        self.queue_status(now, call, StatusEvent::Initiated);
        self.schedule_after(now, setup, call, TimerAction::Setup);
    }

    /// Rings the phone, or ends the call without ringing.
    fn start_ringing(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        let Some(live) = c.live.as_ref() else { return };
        let (callee, ring_secs) = (live.plan.outcome, live.plan.ring_secs);
        let timeout = f64::from(live.request.ring_timeout_secs);
        match callee {
            CallOutcome::Busy => return self.end_call(now, call, CallPhase::Busy, 486),
            CallOutcome::Fails => return self.end_call(now, call, CallPhase::Failed, 503),
            CallOutcome::Unallocated | CallOutcome::Invalid => {
                return self.end_call(now, call, CallPhase::Failed, 404);
            }
            _ => {}
        }

        c.phase = CallPhase::Ringing;
        c.rang = true;
        c.updated = now;
        let (to, account) = (Arc::clone(&c.to), c.account);
        let number = self.numbers.entry(Arc::clone(&to)).or_default();
        number.rung += 1;
        if number.rung > 1 {
            self.rung_twice.add(&to, account);
        }
        self.tally(account, |tally| tally.rung += 1);
        self.queue_status(now, call, StatusEvent::Ringing);

        let ring_secs = if callee == CallOutcome::NoAnswer {
            timeout
        } else {
            ring_secs.min(timeout)
        };
        self.schedule_after(now, ring_secs, call, TimerAction::RingEnd);
    }

    fn end_ringing(&mut self, now: Micros, call: CallRef) {
        let Some(live) = self.call(call).and_then(|c| c.live.as_ref()) else {
            return;
        };
        let timed_out = live.plan.ring_secs >= f64::from(live.request.ring_timeout_secs);
        match live.plan.outcome {
            CallOutcome::NoAnswer => self.end_call(now, call, CallPhase::NoAnswer, 487),
            _ if timed_out => self.end_call(now, call, CallPhase::NoAnswer, 487),
            CallOutcome::Rejects => self.end_call(now, call, CallPhase::Failed, 603),
            _ => self.pick_up(now, call),
        }
    }

    fn pick_up(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        c.phase = CallPhase::InProgress;
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
        self.queue_status(now, call, StatusEvent::Answered);
        self.queue_recording(now, call, "in-progress");

        self.schedule_after(now, talk_secs, call, TimerAction::HangUp);
        if detects {
            self.schedule_after(now, detection_secs, call, TimerAction::Detect);
        }
        if !waits {
            self.fetch_first_document(now, call);
        }
    }

    fn finish_detection(&mut self, now: Micros, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        let Some(live) = c.live.as_ref() else { return };
        let waits = live
            .request
            .detection
            .as_ref()
            .is_some_and(|detection| !detection.asynchronous);
        c.answered_by = Some(live.plan.outcome.answered_by());
        c.updated = now;
        self.queue_detection(now, call);
        if waits {
            self.fetch_first_document(now, call);
        }
    }

    fn fetch_first_document(&mut self, now: Micros, call: CallRef) {
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
    pub(crate) fn end_call(&mut self, now: Micros, call: CallRef, phase: CallPhase, sip_code: u16) {
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
            live.interpreter = None;
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
            *tally.outcomes.entry(phase.callback_status()).or_default() += 1;
        });

        self.queue_status(now, call, StatusEvent::Completed);
        self.queue_recording(now, call, "completed");
        self.release_held(call);
        self.release_if_settled(call);
    }

    /// Applies an update, or returns the reason against it.
    pub(crate) fn apply_update(
        &mut self,
        now: Micros,
        call: CallRef,
        update: CallUpdate,
    ) -> Result<(), TwilioError> {
        let phase = self.call(call).map_or(CallPhase::Failed, |c| c.phase);
        if phase.is_final() {
            let message = "Call is not in-progress. Cannot redirect or end it.";
            return Err(TwilioError::bad_request(21220, message));
        }

        let answered = phase == CallPhase::InProgress;
        match update {
            CallUpdate::Cancel if answered => Err(TwilioError::bad_request(
                21220,
                "Call is in-progress. Only queued or ringing calls can be canceled.",
            )),
            CallUpdate::Complete if answered => {
                self.end_call(now, call, CallPhase::Completed, 200);
                Ok(())
            }
            CallUpdate::Cancel | CallUpdate::Complete => {
                self.end_call(now, call, CallPhase::Canceled, 487);
                Ok(())
            }
            CallUpdate::Redirect(answer) if answered => {
                self.begin_document(now, call, answer);
                Ok(())
            }
            CallUpdate::Redirect(_) => Err(TwilioError::bad_request(
                21220,
                "Call is not in-progress. Cannot redirect.",
            )),
        }
    }

    /// Drops the live state of a call that is settled.
    pub(crate) fn release_if_settled(&mut self, call: CallRef) {
        let Some(c) = self.call_mut(call) else { return };
        if c.live.is_some() && c.is_settled() {
            c.live = None;
            self.unsettled = self.unsettled.saturating_sub(1);
        }
    }

    pub(crate) fn schedule_after(
        &mut self,
        now: Micros,
        call_secs: f64,
        call: CallRef,
        what: TimerAction,
    ) {
        let at = now.saturating_add(self.clock.real_micros(call_secs));
        self.schedule(at, call, what);
    }
}
