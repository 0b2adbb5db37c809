//! Runtime around the switchboard: the timer task, and the tasks that post callbacks and fetch
//! documents.
//!
//! A task exists only while it has something to send. The lock is never held across an
//! `await`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::CallRef;
use crate::callbacks::QueuedCallback;
use crate::clock::{Clock, Micros};
use crate::config::SimulatorConfig;
use crate::delivery::{CallbackClient, DeliveryReceipt};
use crate::documents;
use crate::documents::DocumentFetch;
use crate::switchboard::{PendingRequest, Switchboard};

pub(crate) struct SimulatorRuntime {
    board: Mutex<Switchboard>,
    pub(crate) clock: Clock,
    pub(crate) callback_client: CallbackClient,
    timers_changed: Notify,
    settled: Notify,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Tokio runtime that makes all requests, independent of the thread that fires the timers.
    tokio_handle: Handle,
}

impl SimulatorRuntime {
    /// Must be called in the Tokio runtime that makes the requests.
    pub(crate) fn new(
        config: &SimulatorConfig,
        base_url: Arc<str>,
    ) -> Result<Arc<Self>, reqwest::Error> {
        let clock = Clock::start(config.speed);
        Ok(Arc::new(Self {
            board: Mutex::new(Switchboard::new(config, clock, base_url)),
            clock,
            callback_client: CallbackClient::new(config.callback_concurrency)?,
            timers_changed: Notify::new(),
            settled: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            tokio_handle: Handle::current(),
        }))
    }

    /// Fires the due timers and runs `f` under the lock, then starts the requests that `f` queued.
    pub(crate) fn with_board<R>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut Switchboard, Micros) -> R,
    ) -> R {
        let (result, actions) = self.with_board_deferred(f);
        for action in actions {
            self.perform(action);
        }
        result
    }

    /// Like [`SimulatorRuntime::with_board`], but returns the requests that `f` queued instead of
    /// starting them.
    pub(crate) fn with_board_deferred<R>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut Switchboard, Micros) -> R,
    ) -> (R, Vec<PendingRequest>) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);

        // 1. Due timers first, then `f`.
        let before = board.next_due();
        let now = self.clock.now();
        board.fire_due(now);
        let fired = board.pending_requests.len();
        let result = f(&mut board, now);

        // 2. Separate the requests of the timers from those of `f`. A reset in `f` discards both.
        let mut by_timers = std::mem::take(&mut board.pending_requests);
        let actions = by_timers.split_off(fired.min(by_timers.len()));
        let after = board.next_due();
        let settled = board.unsettled == 0;
        drop(board);

        // 3. Start requests and wake waiting tasks without the lock.
        for action in by_timers {
            self.perform(action);
        }
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.timers_changed.notify_one();
        }
        if settled {
            self.settled.notify_waiters();
        }
        (result, actions)
    }

    /// Fires each timer when it is due, until stopped: taking the lock fires all due timers.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            match self.with_board(|board, _| board.next_due()) {
                Some(at) => tokio::select! {
                    () = sleep_until(self.clock.instant(at)) => {}
                    () = self.timers_changed.notified() => {}
                },
                None => self.timers_changed.notified().await,
            }
        }
    }

    /// Waits until every call has ended and every callback is delivered or given up.
    pub(crate) async fn wait_idle(self: &Arc<Self>, deadline: Instant) -> bool {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.with_board(|board, _| board.unsettled == 0) {
                return true;
            }
            if timeout_at(deadline, settled).await.is_err() {
                return self.with_board(|board, _| board.unsettled == 0);
            }
        }
    }

    pub(crate) fn perform(self: &Arc<Self>, action: PendingRequest) -> JoinHandle<Option<()>> {
        let sim = Arc::clone(self);
        match action {
            PendingRequest::PostOutbox(call) => self.spawn(sim.post_outbox(call)),
            PendingRequest::PostLate(call, post, delay) => {
                self.spawn(sim.post_late(call, post, delay))
            }
            PendingRequest::FetchDocument(call, fetch) => self.spawn(sim.fetch(call, fetch)),
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<Option<()>> {
        let work = self.stop.clone().run_until_cancelled_owned(work);
        self.tasks.spawn_on(work, &self.tokio_handle)
    }

    async fn post_outbox(self: Arc<Self>, call: CallRef) {
        while let Some(post) = self.with_board(|board, _| board.next_callback(call)) {
            let receipt = self.post(&post).await;
            self.with_board(|board, now| board.record_delivery(now, call, &post, &receipt));
        }
    }

    async fn post_late(self: Arc<Self>, call: CallRef, post: Box<QueuedCallback>, delay: Duration) {
        sleep(delay).await;
        let receipt = self.post(&post).await;
        self.with_board(|board, now| {
            board.record_delivery(now, call, &post, &receipt);
            board.finish_late_post(call);
        });
    }

    async fn post(&self, post: &QueuedCallback) -> DeliveryReceipt {
        // The semaphore is never closed, so a permit is always granted.
        let _permit = self.callback_client.callbacks.acquire().await.ok();
        self.callback_client.deliver(&post.to_request()).await
    }

    async fn fetch(self: Arc<Self>, call: CallRef, fetch: Box<DocumentFetch>) {
        let receipt = {
            let _permit = self.callback_client.documents.acquire().await.ok();
            self.callback_client
                .deliver(&fetch.request.to_request())
                .await
        };
        let document = documents::read_document(&receipt);
        self.with_board(|board, now| board.document_arrived(now, call, &fetch, &receipt, document));
    }
}
