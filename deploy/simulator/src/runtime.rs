//! The switchboard with its surroundings: the timer task, and the tasks that
//! post callbacks and fetch documents.
//!
//! A task exists only while there is something to send. Nothing holds the lock
//! across an `await`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::CallRef;
use crate::callbacks::Post;
use crate::clock::{Clock, Micros};
use crate::config::Config;
use crate::delivery::{Courier, Receipt};
use crate::documents;
use crate::documents::Fetch;
use crate::switchboard::{Action, Switchboard};

pub(crate) struct World {
    board: Mutex<Switchboard>,
    pub(crate) clock: Clock,
    pub(crate) courier: Courier,
    wake: Notify,
    settled: Notify,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Where requests are made, whoever fires the timers that ask for them.
    runtime: Handle,
}

impl World {
    /// To be called in the runtime that makes its requests.
    pub(crate) fn new(config: &Config, base_url: Arc<str>) -> Result<Arc<Self>, reqwest::Error> {
        let clock = Clock::start(config.speed);
        Ok(Arc::new(Self {
            board: Mutex::new(Switchboard::new(config, clock, base_url)),
            clock,
            courier: Courier::new(config.callback_concurrency)?,
            wake: Notify::new(),
            settled: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }))
    }

    /// Runs `f` under the lock, after the timers that are due, then starts what it asked for.
    pub(crate) fn with<R>(self: &Arc<Self>, f: impl FnOnce(&mut Switchboard, Micros) -> R) -> R {
        let (result, actions) = self.locked(f);
        for action in actions {
            self.perform(action);
        }
        result
    }

    /// Like [`World::with`], but leaves starting the actions of `f` to the caller.
    pub(crate) fn locked<R>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut Switchboard, Micros) -> R,
    ) -> (R, Vec<Action>) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let before = board.next_due();
        let now = self.clock.now();
        board.fire_due(now);
        let fired = board.actions.len();
        let result = f(&mut board, now);
        let mut asked = std::mem::take(&mut board.actions);
        // Fewer when `f` was a reset, which forgets them.
        let actions = asked.split_off(fired.min(asked.len()));
        let after = board.next_due();
        let settled = board.unsettled == 0;
        drop(board);
        for action in asked {
            self.perform(action);
        }
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.wake.notify_one();
        }
        if settled {
            self.settled.notify_waiters();
        }
        (result, actions)
    }

    /// Takes the lock when the next timer is due, which fires it, until stopped.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            match self.with(|board, _| board.next_due()) {
                Some(at) => tokio::select! {
                    () = sleep_until(self.clock.instant(at)) => {}
                    () = self.wake.notified() => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// Waits until every call has ended and every callback is delivered or given up.
    pub(crate) async fn wait_idle(self: &Arc<Self>, deadline: Instant) -> bool {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.with(|board, _| board.unsettled == 0) {
                return true;
            }
            if timeout_at(deadline, settled).await.is_err() {
                return self.with(|board, _| board.unsettled == 0);
            }
        }
    }

    pub(crate) fn perform(self: &Arc<Self>, action: Action) -> JoinHandle<Option<()>> {
        let world = Arc::clone(self);
        match action {
            Action::Drain(call) => self.spawn(world.drain(call)),
            Action::Late(call, post, delay) => self.spawn(world.post_late(call, post, delay)),
            Action::Fetch(call, fetch) => self.spawn(world.fetch(call, fetch)),
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<Option<()>> {
        let work = self.stop.clone().run_until_cancelled_owned(work);
        self.tasks.spawn_on(work, &self.runtime)
    }

    async fn drain(self: Arc<Self>, call: CallRef) {
        while let Some(post) = self.with(|board, _| board.next_post(call)) {
            let receipt = self.post(&post).await;
            self.with(|board, now| board.posted(now, call, &post, &receipt));
        }
    }

    async fn post_late(self: Arc<Self>, call: CallRef, post: Box<Post>, delay: Duration) {
        sleep(delay).await;
        let receipt = self.post(&post).await;
        self.with(|board, now| {
            board.posted(now, call, &post, &receipt);
            board.posted_alone(call);
        });
    }

    async fn post(&self, post: &Post) -> Receipt {
        // The semaphore is never closed; without a permit there is still a bound of one.
        let _permit = self.courier.callbacks.acquire().await.ok();
        self.courier.deliver(&post.parcel()).await
    }

    async fn fetch(self: Arc<Self>, call: CallRef, fetch: Box<Fetch>) {
        let receipt = {
            let _permit = self.courier.documents.acquire().await.ok();
            self.courier.deliver(&fetch.post.parcel()).await
        };
        let document = documents::read(&receipt);
        self.with(|board, now| board.document_arrived(now, call, &fetch, &receipt, document));
    }
}
