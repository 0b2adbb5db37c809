//! Dialling on one trunk in one worker.
//!
//! The claimer and the sender are two tasks, so that the next slots are leased while the last
//! ones are used. A slot that comes up late is burned; its call then waits in memory for another
//! slot: the claimer leases slots for such calls first. A call that waited too long is given
//! back, because by then other workers may consider this one dead.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use peal_shared::calls::claim::{CallClaim, ClaimRequest, ClaimedCall, IdleReason, claim_unscoped};
use peal_shared::calls::reconcile::MAX_CLAIM_AGE;
use peal_shared::context::Context;
use peal_shared::metrics::TrunkMetrics;
use peal_shared::platform::ids::TrunkId;
use peal_shared::platform::secret::jitter;
use peal_shared::traces::{CallStep, KeyValue, StepStart};
use peal_shared::trunks::pacer::MAX_SEND_DELAY;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::place::PlacementRequest;
use super::record::PlacementResult;

/// Requests that one trunk dialer may have in flight.
const IN_FLIGHT_LIMIT: usize = 1024;
/// Maximum of calls in one claim.
const CLAIM_LIMIT: u32 = 256;
/// Longest time without work before a trunk dialer ends.
const IDLE_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for a wakeup before the next claim.
const MAX_WAKEUP_WAIT: Duration = Duration::from_millis(500);
/// Shortest time between two claims, so that wakeups are served in bulk.
const CLAIM_PAUSE: Duration = Duration::from_millis(10);
/// Reach of the slots that other workers leased at which the next claim is due: less than the
/// horizon by as much as a claim should give, more than a claim takes.
const CLAIM_AHEAD: TimeDelta = TimeDelta::milliseconds(150);
const OUTAGE_PAUSE: Duration = Duration::from_secs(1);
/// Longest round trip of the database's time for which its slots are trusted. A slot may be
/// earlier than it seems by this much; together with [`LATE_LIMIT`] it stays well below the 40 ms
/// by which slots a second apart are further apart than a second.
const READ_UNCERTAINTY_LIMIT: Duration = Duration::from_millis(15);
/// Time between two checks for calls that have been held too long.
const HELD_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The claimer of one trunk; it starts the sender.
pub struct TrunkDialer {
    pub context: Arc<Context>,
    pub trunk: TrunkId,
    pub worker: Arc<str>,
    pub results: mpsc::Sender<PlacementResult>,
    pub wake: Arc<Notify>,
    pub shutdown: CancellationToken,
}

/// Calls and slots that the claimer passes to the sender.
struct ClaimedBatch {
    calls: Vec<ClaimedCall>,
    slots: Vec<Instant>,
    /// Start of the claim; [`HOLD_LIMIT`] counts from here.
    claimed_at: Instant,
}

/// A claimed call and the start of its claim by this machine's monotonic clock.
struct PendingCall {
    call: ClaimedCall,
    claimed_at: Instant,
}

impl TrunkDialer {
    /// Dials on this trunk until there is nothing more to dial, or the shutdown.
    pub async fn run(self) {
        tracing::debug!(trunk.id = %self.trunk, "trunk dialer starts");
        let (loads, waiting) = mpsc::channel(4);

        // Calls in this worker that have no slot: raised by a burned slot, lowered by a spare one.
        let slotless = Arc::new(AtomicI64::new(0));
        let counts = self.context.metrics.dial.for_trunk(self.trunk);
        let sender = SlotSender {
            context: Arc::clone(&self.context),
            trunk: self.trunk,
            counts: Arc::clone(&counts),
            results: self.results.clone(),
            slotless: Arc::clone(&slotless),
            shutdown: self.shutdown.clone(),
            pending: VecDeque::new(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_LIMIT)),
            requests: JoinSet::new(),
        };
        let sender = tokio::spawn(sender.run(waiting));

        // The claimer drops its end of the channel when it returns, which ends the sender.
        self.claim_until_idle(loads, &slotless, &counts).await;
        if let Err(error) = sender.await {
            tracing::error!(%error, trunk.id = %self.trunk, "the sender of a trunk dialer failed");
        }
        tracing::debug!(trunk.id = %self.trunk, "trunk dialer stops");
    }

    async fn claim_until_idle(
        &self,
        loads: mpsc::Sender<ClaimedBatch>,
        slotless: &AtomicI64,
        counts: &TrunkMetrics,
    ) {
        let mut last_work = Instant::now();

        while !self.shutdown.is_cancelled() {
            let held = u32::try_from(slotless.load(Ordering::Acquire)).unwrap_or(0);
            let ask = ClaimRequest {
                trunk: self.trunk,
                worker: &self.worker,
                max_calls: CLAIM_LIMIT,
                held_calls: held,
                hold_max_secs: self.context.config.hold_max_secs,
                price_cache: &self.context.price_cache,
            };

            let asked = Instant::now();
            let began = self.context.traces.begin();
            let pause = match claim_unscoped(&self.context.pool, ask).await {
                Ok(claim) => {
                    self.record_claim(&claim, asked, began, counts);
                    if claim.lease.count > 0
                        || matches!(
                            claim.idle,
                            Some(IdleReason::NoFreeSlot | IdleReason::AtCapacity)
                        )
                    {
                        last_work = Instant::now();
                    }
                    let pause = pause_after(&claim, held, asked.elapsed());
                    if !self
                        .send_claim(claim, asked, slotless, &loads, counts)
                        .await
                    {
                        return;
                    }
                    pause
                }
                Err(error) => {
                    tracing::warn!(%error, trunk.id = %self.trunk, "claim failed");
                    self.context.price_cache.clear();
                    ClaimPause::For(OUTAGE_PAUSE)
                }
            };

            if last_work.elapsed() > IDLE_LIMIT && slotless.load(Ordering::Acquire) <= 0 {
                return;
            }
            self.wait_for_next_claim(pause, asked).await;
        }
    }

    /// Counts and traces a claim, except one that found no free slot: those are frequent and
    /// change nothing.
    fn record_claim(
        &self,
        claim: &CallClaim,
        asked: Instant,
        began: Option<StepStart>,
        counts: &TrunkMetrics,
    ) {
        if matches!(
            claim.idle,
            Some(IdleReason::TrunkInactive | IdleReason::NoFreeSlot | IdleReason::CommitUnknown)
        ) {
            return;
        }

        let calls = claim.calls.len();
        self.context
            .metrics
            .dial
            .record_claim(calls, asked.elapsed());
        counts.record_granted(claim.lease.count);
        for call in &claim.calls {
            self.context
                .traces
                .end(began, call.id, CallStep::Claim, || {
                    vec![
                        KeyValue::new("trunk.id", self.trunk.to_string()),
                        KeyValue::new("claim.calls", i64::try_from(calls).unwrap_or(i64::MAX)),
                    ]
                });
        }
    }

    /// Passes a claim to the sender; false when the sender is gone.
    async fn send_claim(
        &self,
        claim: CallClaim,
        asked: Instant,
        slotless: &AtomicI64,
        loads: &mpsc::Sender<ClaimedBatch>,
        counts: &TrunkMetrics,
    ) -> bool {
        if claim.idle == Some(IdleReason::CommitUnknown) {
            for call in claim.calls {
                release_call(self.trunk, &self.results, call).await;
            }
            return true;
        }
        if claim.lease.count == 0 && claim.calls.is_empty() {
            return true;
        }

        let slots = slots(&claim);
        let usable = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        counts.record_burned(claim.lease.count.saturating_sub(usable));

        // Negative when there are more slots than new calls: held calls get the spare ones.
        let missing = i64::try_from(claim.calls.len())
            .unwrap_or(i64::MAX)
            .saturating_sub(i64::try_from(slots.len()).unwrap_or(i64::MAX));
        slotless.fetch_add(missing, Ordering::AcqRel);

        loads
            .send(ClaimedBatch {
                calls: claim.calls,
                slots,
                claimed_at: asked,
            })
            .await
            .is_ok()
    }

    async fn wait_for_next_claim(&self, pause: ClaimPause, asked: Instant) {
        let nap = async {
            match pause {
                ClaimPause::For(pause) => sleep(pause).await,
                ClaimPause::UntilWakeup => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = sleep(MAX_WAKEUP_WAIT.mul_f64(0.75 + jitter() / 2.0)) => {}
                    }
                }
            }
            sleep_until(asked + CLAIM_PAUSE).await;
        };
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = nap => {}
        }
    }
}

/// The instants of a claim's slots on this machine's clock. A slot may have passed already when
/// the claim took long: then it is late and gets burned. When the round trip of the database's
/// time was too long (this process was suspended), no slot can be located, and all are burned.
fn slots(claim: &CallClaim) -> Vec<Instant> {
    if claim.read_uncertainty > READ_UNCERTAINTY_LIMIT {
        tracing::debug!(slots = claim.lease.count, within = ?claim.read_uncertainty, "slots burned");
        return Vec::new();
    }

    let read_at = Instant::from_std(claim.read_at);
    (0..claim.lease.count)
        .filter_map(|n| i32::try_from(n).ok())
        .map(|n| claim.lease.first + claim.lease.interval * n - claim.now)
        .filter_map(|offset| match offset.to_std() {
            Ok(ahead) => read_at.checked_add(ahead),
            Err(_) => read_at.checked_sub(offset.abs().to_std().ok()?),
        })
        .collect()
}

/// Pause before the next claim.
#[derive(Debug, PartialEq)]
enum ClaimPause {
    For(Duration),
    /// Until something changes: a call ended, a batch started.
    UntilWakeup,
}

/// Picks the pause after a claim. After slots were given, the next claim is due when half of them
/// are used, or sooner when a claim as slow as this one would come too late; when the horizon was
/// full, as soon as a good part of it is free; otherwise at the next wakeup.
fn pause_after(claim: &CallClaim, held: u32, took: Duration) -> ClaimPause {
    match claim.idle {
        Some(IdleReason::NoFreeSlot) => {
            let until = claim.lease.first - claim.now;
            let wait = (until - CLAIM_AHEAD).max(TimeDelta::milliseconds(5));
            ClaimPause::For(
                wait.to_std()
                    .unwrap_or(MAX_WAKEUP_WAIT)
                    .mul_f64(1.0 - jitter() / 5.0),
            )
        }
        Some(IdleReason::CommitUnknown) => ClaimPause::For(OUTAGE_PAUSE),
        Some(_) => ClaimPause::UntilWakeup,
        None if claim.lease.count > held || !claim.calls.is_empty() => {
            let spent = claim.lease.next_slot() - claim.now;
            let spent = spent.to_std().unwrap_or(Duration::ZERO);
            let pause = (spent / 2).min(spent.saturating_sub(took.mul_f64(1.25)));
            ClaimPause::For(pause.clamp(CLAIM_PAUSE, MAX_WAKEUP_WAIT))
        }
        None => ClaimPause::For(CLAIM_PAUSE),
    }
}

/// Uses slots: each in its own task that sleeps until the slot's instant, so that as little as
/// possible comes between the instant and the request.
struct SlotSender {
    context: Arc<Context>,
    trunk: TrunkId,
    counts: Arc<TrunkMetrics>,
    results: mpsc::Sender<PlacementResult>,
    slotless: Arc<AtomicI64>,
    shutdown: CancellationToken,
    pending: VecDeque<PendingCall>,
    in_flight: Arc<Semaphore>,
    requests: JoinSet<Option<PendingCall>>,
}

impl SlotSender {
    async fn run(mut self, mut loads: mpsc::Receiver<ClaimedBatch>) {
        let mut check = interval(HELD_CHECK_INTERVAL);

        loop {
            let load = tokio::select! {
                load = loads.recv() => load,
                Some(ended) = self.requests.join_next() => {
                    self.requeue(ended);
                    continue;
                }
                _ = check.tick() => {
                    self.release_expired().await;
                    continue;
                }
            };

            let Some(load) = load else { break };
            let since = load.claimed_at;
            self.pending
                .extend(load.calls.into_iter().map(|call| PendingCall {
                    call,
                    claimed_at: since,
                }));
            for slot in load.slots {
                self.assign(slot);
            }
        }

        while let Some(ended) = self.requests.join_next().await {
            self.requeue(ended);
        }
        for held in std::mem::take(&mut self.pending) {
            release_call(self.trunk, &self.results, held.call).await;
        }
    }

    /// Puts a call whose slot was burned in front of the others.
    fn requeue(&mut self, ended: std::result::Result<Option<PendingCall>, JoinError>) {
        match ended {
            Ok(Some(held)) => {
                self.slotless.fetch_add(1, Ordering::AcqRel);
                self.pending.push_front(held);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, trunk.id = %self.trunk, "a request task failed"),
        }
    }

    /// Gives calls back before other workers consider this one dead. Their trunk may have been
    /// paused, or the database unreachable, so that no slot comes for them.
    async fn release_expired(&mut self) {
        let held = std::mem::take(&mut self.pending);
        for held in held {
            if held.claimed_at.elapsed() > MAX_CLAIM_AGE {
                self.slotless.fetch_sub(1, Ordering::AcqRel);
                release_call(self.trunk, &self.results, held.call).await;
            } else {
                self.pending.push_back(held);
            }
        }
    }

    /// Starts the task of a slot with the call that has waited longest.
    fn assign(&mut self, slot: Instant) {
        let Some(held) = self.pending.pop_front() else {
            self.slotless.fetch_add(1, Ordering::AcqRel);
            return;
        };
        let turn = SlotTask {
            context: Arc::clone(&self.context),
            trunk: self.trunk,
            counts: Arc::clone(&self.counts),
            results: self.results.clone(),
            in_flight: Arc::clone(&self.in_flight),
            shutdown: self.shutdown.clone(),
        };
        self.requests.spawn(turn.run(slot, held));
    }
}

/// The task of one slot and its call.
struct SlotTask {
    context: Arc<Context>,
    trunk: TrunkId,
    counts: Arc<TrunkMetrics>,
    results: mpsc::Sender<PlacementResult>,
    in_flight: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl SlotTask {
    /// Sends the call at its slot's instant; returns the call when the slot was burned.
    async fn run(self, slot: Instant, held: PendingCall) -> Option<PendingCall> {
        // 1. Prepare before the slot, so that only the request itself remains.
        let request = PlacementRequest::prepare(&self.context, self.trunk, &held.call).await;

        // 2. Wait for the slot.
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                release_call(self.trunk, &self.results, held.call).await;
                return None;
            }
            () = sleep_until(slot) => {}
        }

        // 3. Give the call back when other workers may have claimed it by now.
        if held.claimed_at.elapsed() > MAX_CLAIM_AGE {
            release_call(self.trunk, &self.results, held.call).await;
            return None;
        }

        // 4. Burn the slot when it is late or too many requests are in flight.
        let permit = self.in_flight.try_acquire();
        let late = slot.elapsed();
        self.counts.record_lateness(late);
        if permit.is_err() || late > MAX_SEND_DELAY {
            tracing::debug!(trunk.id = %self.trunk, ?late, "slot burned");
            self.counts.record_burned(1);
            return Some(held);
        }

        // 5. Send.
        request
            .send(&self.context, held.call, &self.results, &self.counts)
            .await;
        None
    }
}

/// Returns an unsent call to the database through the recorder.
async fn release_call(trunk: TrunkId, results: &mpsc::Sender<PlacementResult>, call: ClaimedCall) {
    let unsent = PlacementResult::unsent(trunk, &call);
    if results.send(unsent).await.is_err() {
        tracing::error!(call.id = %call.id, "a call could not be given back");
    }
}
