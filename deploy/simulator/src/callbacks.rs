//! Callbacks of the carrier: status events, detection, recordings.
//!
//! A callback goes into its call's outbox with the sequence number of its event; one task per
//! call posts the outbox in order, so without faults callbacks arrive in sequence. Faults are
//! applied between event and outbox.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::call::{
    CallRef, CreateRequest, EventSubscription, HttpMethod, LiveCall, SimulatedCall, WebhookTarget,
};
use crate::callback_log::CallbackLogEntry;
use crate::callee::CallPlan;
use crate::clock::{Clock, Micros};
use crate::delivery::{CallbackRequest, DeliveryReceipt, encode_form};
use crate::switchboard::{PendingRequest, Switchboard};

/// Status event of a call, as the caller subscribes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusEvent {
    Initiated,
    Ringing,
    Answered,
    /// Any final status.
    Completed,
}

impl StatusEvent {
    fn is_wanted(self, events: EventSubscription) -> bool {
        match self {
            Self::Initiated => events.initiated,
            Self::Ringing => events.ringing,
            Self::Answered => events.answered,
            Self::Completed => events.completed,
        }
    }
}

/// A callback in the outbox.
#[derive(Clone, Debug)]
pub(crate) struct QueuedCallback {
    pub(crate) kind: &'static str,
    pub(crate) url: Arc<str>,
    pub(crate) method: HttpMethod,
    pub(crate) params: Vec<(&'static str, String)>,
    pub(crate) token: Arc<str>,
    /// Idempotency token, the same for every attempt and unique per callback.
    pub(crate) idempotency_token: String,
}

impl QueuedCallback {
    pub(crate) fn to_request(&self) -> CallbackRequest {
        CallbackRequest {
            url: Arc::clone(&self.url),
            method: self.method,
            body: encode_form(&self.params),
            token: Arc::clone(&self.token),
            idempotency_token: self.idempotency_token.clone(),
        }
    }
}

impl LiveCall {
    pub(crate) fn new(request: CreateRequest, plan: CallPlan, nth: u64) -> Self {
        Self {
            request,
            plan,
            nth,
            sequence: 0,
            callback_count: 0,
            outbox: VecDeque::new(),
            held: None,
            delivering: false,
            outstanding: 0,
            interpreter: None,
            document_serial: 0,
            document_count: 0,
            turn: 0,
        }
    }
}

/// Parameters of every request about a call.
pub(crate) fn call_params(call: &SimulatedCall, account_sid: &str) -> Vec<(&'static str, String)> {
    let mut params = Vec::with_capacity(20);
    params.extend([
        ("CallSid", call.sid.text("CA")),
        ("AccountSid", account_sid.to_owned()),
        ("From", call.from.to_string()),
        ("To", call.to.to_string()),
        ("Caller", call.from.to_string()),
        ("Called", call.to.to_string()),
        ("CallStatus", call.phase.callback_status().to_owned()),
        ("ApiVersion", "2010-04-01".to_owned()),
        ("Direction", "outbound-api".to_owned()),
    ]);
    params
}

pub(crate) fn recording_url(base: &str, account_sid: &str, call: &SimulatedCall) -> String {
    format!(
        "{base}/2010-04-01/Accounts/{account_sid}/Recordings/{}",
        call.recording_sid()
    )
}

fn status_params(
    call: &SimulatedCall,
    account_sid: &str,
    base_url: &str,
    clock: Clock,
    now: Micros,
    sequence: u32,
) -> Vec<(&'static str, String)> {
    let mut params = call_params(call, account_sid);
    params.extend([
        ("Timestamp", clock.rfc2822(now)),
        ("CallbackSource", "call-progress-events".to_owned()),
        ("SequenceNumber", sequence.to_string()),
    ]);

    if let Some(word) = call.answered_by {
        params.push(("AnsweredBy", word.to_owned()));
    }

    if call.phase.is_final() {
        params.extend([
            ("CallDuration", call.duration_secs.to_string()),
            ("Duration", call.duration_secs.div_ceil(60).to_string()),
            ("SipResponseCode", call.sip_code.to_string()),
        ]);
        if call.recorded {
            params.extend([
                ("RecordingUrl", recording_url(base_url, account_sid, call)),
                ("RecordingSid", call.recording_sid()),
                ("RecordingDuration", call.duration_secs.to_string()),
            ]);
        }
    }
    params
}

impl Switchboard {
    /// Queues the status callback of an event, if the caller subscribes to it.
    pub(crate) fn queue_status(&mut self, now: Micros, call: CallRef, event: StatusEvent) {
        let (clock, base_url) = (self.clock, Arc::clone(&self.base_url));
        let Some((c, account_sid)) = self.call_and_account(call) else {
            return;
        };
        let Some(live) = c.live.as_mut() else { return };
        if !event.is_wanted(live.request.events) {
            return;
        }
        let Some(hook) = live.request.status.clone() else {
            return;
        };
        let sequence = live.sequence;
        live.sequence += 1;
        let params = status_params(c, &account_sid, &base_url, clock, now, sequence);
        self.enqueue(now, call, "status", &hook, params);
    }

    pub(crate) fn queue_detection(&mut self, now: Micros, call: CallRef) {
        let clock = self.clock;
        let Some((c, account_sid)) = self.call_and_account(call) else {
            return;
        };
        let request = c.live.as_ref().map(|live| &live.request);
        let Some(hook) = request
            .and_then(|request| request.detection.as_ref())
            .filter(|detection| detection.asynchronous)
            .and_then(|detection| detection.webhook.clone())
        else {
            return;
        };
        let took_secs = clock.call_secs(now.saturating_sub(c.answered.unwrap_or(now)));
        let params = vec![
            ("CallSid", c.sid.text("CA")),
            ("AccountSid", account_sid.to_string()),
            ("AnsweredBy", c.answered_by.unwrap_or("unknown").to_owned()),
            (
                "MachineDetectionDuration",
                u64::from(took_secs).saturating_mul(1000).to_string(),
            ),
        ];
        self.enqueue(now, call, "detection", &hook, params);
    }

    /// Queues the recording callback; `status` is `in-progress` or `completed`.
    pub(crate) fn queue_recording(&mut self, now: Micros, call: CallRef, status: &'static str) {
        let (clock, base_url) = (self.clock, Arc::clone(&self.base_url));
        let Some((c, account_sid)) = self.call_and_account(call) else {
            return;
        };
        let Some(answered) = c.answered else { return };
        let request = c.live.as_ref().map(|live| &live.request);
        let Some(recording) = request.and_then(|request| request.recording.as_ref()) else {
            return;
        };

        let wanted = match status {
            "in-progress" => recording.on_in_progress,
            _ => recording.on_completed,
        };
        let Some(hook) = recording.webhook.clone().filter(|_| wanted) else {
            return;
        };

        let mut params = vec![
            ("AccountSid", account_sid.to_string()),
            ("CallSid", c.sid.text("CA")),
            ("RecordingSid", c.recording_sid()),
            ("RecordingUrl", recording_url(&base_url, &account_sid, c)),
            ("RecordingStatus", status.to_owned()),
            ("RecordingChannels", recording.channels.to_owned()),
            ("RecordingStartTime", clock.rfc2822(answered)),
            ("RecordingSource", "OutboundAPI".to_owned()),
            ("RecordingTrack", "both".to_owned()),
            ("ErrorCode", "0".to_owned()),
        ];
        if status == "completed" {
            params.push(("RecordingDuration", c.duration_secs.to_string()));
        }
        self.enqueue(now, call, "recording", &hook, params);
    }

    fn call_and_account(&mut self, call: CallRef) -> Option<(&mut SimulatedCall, Arc<str>)> {
        let account = self.call(call)?.account;
        let sid = Arc::clone(&self.accounts.get(account)?.sid);
        Some((self.call_mut(call)?, sid))
    }

    /// Applies the faults and queues the callback for posting.
    fn enqueue(
        &mut self,
        now: Micros,
        call: CallRef,
        kind: &'static str,
        hook: &WebhookTarget,
        params: Vec<(&'static str, String)>,
    ) {
        let Some(c) = self.call_mut(call) else { return };
        let (account, to, sid) = (c.account, Arc::clone(&c.to), c.sid);
        let Some(live) = c.live.as_mut() else { return };
        let place = live.callback_count;
        live.callback_count += 1;
        let nth = live.nth.wrapping_mul(64).wrapping_add(u64::from(place));

        let Some(customer) = self.accounts.get(account) else {
            return;
        };
        let post = QueuedCallback {
            kind,
            url: Arc::clone(&hook.url),
            method: hook.method,
            params,
            token: Arc::clone(&customer.token),
            idempotency_token: format!("{sid}-{place}"),
        };

        if self.fault("callbacks_lost", |f| f.callbacks_lost, &to, nth) {
            self.tally(account, |tally| tally.callbacks.lost += 1);
            self.log_callback(now, call, &post, None);
            return;
        }

        if self.fault("callbacks_duplicated", |f| f.callbacks_duplicated, &to, nth) {
            self.tally(account, |tally| tally.callbacks.duplicated += 1);
            self.push_to_outbox(call, post.clone());
        }

        if self.fault("callbacks_late", |f| f.callbacks_late, &to, nth) {
            self.tally(account, |tally| tally.callbacks.late += 1);
            let delay = Duration::from_millis(self.faults.faults().late_by_ms);
            self.post_late(call, post, delay);
            return;
        }

        let live_call = self.call(call).is_some_and(|c| !c.phase.is_final());
        if live_call && self.fault("callbacks_reordered", |f| f.callbacks_reordered, &to, nth) {
            self.tally(account, |tally| tally.callbacks.reordered += 1);
            self.release_held(call);
            if let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) {
                live.held = Some(post);
            }
            return;
        }

        self.push_to_outbox(call, post);
        self.release_held(call);
    }

    /// Queues the callback that was held back for its successor.
    pub(crate) fn release_held(&mut self, call: CallRef) {
        let held = self
            .call_mut(call)
            .and_then(|c| c.live.as_mut())
            .and_then(|live| live.held.take());
        if let Some(post) = held {
            self.push_to_outbox(call, post);
        }
    }

    fn push_to_outbox(&mut self, call: CallRef, post: QueuedCallback) {
        let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) else {
            return;
        };
        live.outbox.push_back(post);
        if !live.delivering {
            live.delivering = true;
            self.pending_requests.push(PendingRequest::PostOutbox(call));
        }
    }

    fn post_late(&mut self, call: CallRef, post: QueuedCallback, delay: Duration) {
        if let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) {
            live.outstanding += 1;
            self.pending_requests
                .push(PendingRequest::PostLate(call, Box::new(post), delay));
        }
    }

    /// The next callback of the outbox; `None` ends the task that posts it.
    pub(crate) fn next_callback(&mut self, call: CallRef) -> Option<QueuedCallback> {
        let live = self.call_mut(call)?.live.as_mut()?;
        let post = live.outbox.pop_front();
        if post.is_none() {
            live.delivering = false;
            self.release_if_settled(call);
        }
        post
    }

    /// Records the result of a post.
    pub(crate) fn record_delivery(
        &mut self,
        now: Micros,
        call: CallRef,
        post: &QueuedCallback,
        receipt: &DeliveryReceipt,
    ) {
        let Some(account) = self.call(call).map(|c| c.account) else {
            return;
        };
        self.tally(account, |tally| {
            tally.callbacks.requests += u64::from(receipt.attempts);
            if receipt.is_success() {
                tally.callbacks.sent += 1;
            } else {
                tally.callbacks.failed += 1;
            }
        });
        self.log_callback(now, call, post, Some(receipt));
    }

    /// Finishes a post outside the outbox.
    pub(crate) fn finish_late_post(&mut self, call: CallRef) {
        if let Some(live) = self.call_mut(call).and_then(|c| c.live.as_mut()) {
            live.outstanding = live.outstanding.saturating_sub(1);
        }
        self.release_if_settled(call);
    }

    fn log_callback(
        &mut self,
        now: Micros,
        call: CallRef,
        post: &QueuedCallback,
        receipt: Option<&DeliveryReceipt>,
    ) {
        let entry = CallbackLogEntry {
            kind: post.kind,
            method: post.method,
            url: &post.url,
            params: &post.params,
            unix_micros: self.clock.unix_micros(now),
            receipt,
        };
        self.callback_log.record(call.index, &entry);
    }
}
