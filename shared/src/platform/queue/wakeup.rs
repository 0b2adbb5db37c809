//! Wakeups: Redis lists that wake workers up before their next poll.
//!
//! A notification appends a hint to a list, a listener takes hints off it. Every hint wakes one
//! listener and carries no work: the woken worker reads PostgreSQL, which it also polls without
//! wakeups. So Redis may be absent, restart or lose its data at any time: the cost is latency.
//! Lists are capped, because a list without a listener must not grow.
//!
//! Notifying never waits. Hints go through a channel to one task that sends the queued ones in
//! one round trip; when Redis does not answer they are dropped and counted
//! ([`Wakeups::dropped`]). Channels whose hints name no job coalesce: the first hint is sent at
//! once, the next only after a short interval, so a burst costs few database reads with any
//! number of listeners. Keys are `prefix:{name}:bell`, one key per command, so any cluster layout
//! works. Hints hold no personal data: they are job ids or `1`.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::platform::error::Result;
use crate::platform::queue::{EnqueuedJob, Queue};

/// Time limit for opening a connection, and for a response of Redis.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest blocking read of a listener.
const MAX_LISTEN_TIME: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect: the first and the longest.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Most hints that wait to be sent.
const MAX_QUEUED_HINTS: usize = 4096;
/// Most hints taken from the queue for one round trip.
const MAX_HINTS_PER_SEND: usize = 256;
/// Least time between two hints of a channel that coalesces.
const COALESCE_INTERVAL: Duration = Duration::from_millis(25);
/// Hint without content.
const EMPTY_HINT: &str = "1";

/// Wakeup channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WakeupChannel {
    /// Jobs of a queue are due.
    Jobs(Queue),
    /// A campaign has rows to dial.
    Dial,
    /// Events of carriers wait to be applied.
    Inbox,
    /// Ended calls wait to be charged.
    Settle,
}

impl WakeupChannel {
    fn name(self) -> &'static str {
        match self {
            Self::Jobs(queue) => queue.name(),
            Self::Dial => "dial",
            Self::Inbox => "inbox",
            Self::Settle => "settle",
        }
    }

    /// True when its hints carry nothing, so that one stands for many.
    fn coalesces(self) -> bool {
        !matches!(self, Self::Jobs(_))
    }

    /// Most hints kept in the list.
    fn max_len(self) -> isize {
        match self {
            Self::Jobs(_) => 1000,
            Self::Dial | Self::Inbox | Self::Settle => 16,
        }
    }
}

/// Wakeups of an installation; cheap to clone. Without Redis they do nothing.
#[derive(Clone, Debug)]
pub struct Wakeups {
    sender: Option<WakeupSender>,
    dropped: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
struct WakeupSender {
    client: Client,
    prefix: Arc<str>,
    hints: mpsc::Sender<(WakeupChannel, String)>,
}

impl Wakeups {
    /// Wakeups over the Redis at `url`. Needs a tokio runtime; does not wait for Redis.
    ///
    /// # Errors
    /// Fails when `url` is not a Redis URL.
    pub fn new(url: Option<&str>, prefix: &str) -> Result<Self> {
        let Some(url) = url else {
            return Ok(Self::disabled());
        };
        let client = Client::open(url).map_err(anyhow::Error::from)?;
        let missed = Arc::new(AtomicU64::new(0));
        let prefix: Arc<str> = prefix.into();
        let (hints, unsent) = mpsc::channel(MAX_QUEUED_HINTS);

        let publisher = WakeupPublisher {
            client: client.clone(),
            prefix: Arc::clone(&prefix),
            dropped: Arc::clone(&missed),
            connection: None,
            next_send_at: HashMap::new(),
            pending: HashSet::new(),
        };
        tokio::spawn(publisher.run(unsent));

        let publisher = Some(WakeupSender {
            client,
            prefix,
            hints,
        });
        Ok(Self {
            sender: publisher,
            dropped: missed,
        })
    }

    /// Disabled wakeups: workers find all work by polling.
    #[must_use]
    pub fn disabled() -> Self {
        Self {
            sender: None,
            dropped: Arc::default(),
        }
    }

    /// Wakes a worker for a job; called after the commit. Jobs that are not due yet are left to
    /// the sweeper.
    pub fn notify_job(&self, job: &EnqueuedJob) {
        if job.is_new && job.is_due {
            self.notify_with_hint(WakeupChannel::Jobs(job.queue), job.id.to_string());
        }
    }

    /// Wakes one listener, at once or after the channel's interval.
    pub fn notify(&self, channel: WakeupChannel) {
        self.notify_with_hint(channel, EMPTY_HINT.to_owned());
    }

    pub(crate) fn notify_with_hint(&self, channel: WakeupChannel, hint: String) {
        if let Some(publisher) = &self.sender
            && publisher.hints.try_send((channel, hint)).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hints dropped because Redis did not keep up.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Pings Redis; `None` when none is configured.
    pub async fn ping(&self) -> Option<bool> {
        let publisher = self.sender.as_ref()?;
        let Ok(mut connection) = connect(&publisher.client, Some(RESPONSE_TIMEOUT)).await else {
            return Some(false);
        };
        let pong: RedisResult<String> = redis::cmd("PING").query_async(&mut connection).await;
        Some(pong.is_ok())
    }

    /// Listener of one channel, with its own connection.
    #[must_use]
    pub fn listen(&self, channel: WakeupChannel) -> WakeupListener {
        WakeupListener {
            channel,
            connection: self.sender.as_ref().map(|publisher| ListenerConnection {
                client: publisher.client.clone(),
                key: key(&publisher.prefix, channel),
                connection: None,
                reconnect_pause: RECONNECT_PAUSES.0,
            }),
        }
    }
}

fn key(prefix: &str, channel: WakeupChannel) -> String {
    format!("{prefix}:{{{}}}:bell", channel.name())
}

async fn connect(
    client: &Client,
    answer_timeout: Option<Duration>,
) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(RESPONSE_TIMEOUT))
        .set_response_timeout(answer_timeout);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// Task that sends queued hints to Redis.
struct WakeupPublisher {
    client: Client,
    prefix: Arc<str>,
    dropped: Arc<AtomicU64>,
    connection: Option<MultiplexedConnection>,
    /// Earliest next send, by channel.
    next_send_at: HashMap<WakeupChannel, Instant>,
    /// Coalescing channels with a hint to send.
    pending: HashSet<WakeupChannel>,
}

impl WakeupPublisher {
    async fn run(mut self, mut unsent: mpsc::Receiver<(WakeupChannel, String)>) {
        let mut hints = Vec::with_capacity(MAX_HINTS_PER_SEND);
        loop {
            tokio::select! {
                count = unsent.recv_many(&mut hints, MAX_HINTS_PER_SEND) => if count == 0 {
                    return;
                },
                () = sleep_until_some(self.next_send_at()) => {}
            }

            let mut pending_hints: HashMap<WakeupChannel, Vec<String>> = HashMap::new();
            for (channel, hint) in hints.drain(..) {
                if channel.coalesces() {
                    self.pending.insert(channel);
                } else {
                    pending_hints.entry(channel).or_default().push(hint);
                }
            }

            for channel in self.take_due() {
                pending_hints.insert(channel, vec![EMPTY_HINT.to_owned()]);
            }
            if !pending_hints.is_empty() {
                self.send_or_drop(&pending_hints).await;
            }
        }
    }

    /// Earliest time at which a pending channel may be sent.
    fn next_send_at(&self) -> Option<Instant> {
        let until = |channel| self.next_send_at.get(channel).copied();
        self.pending.iter().filter_map(until).min()
    }

    /// Takes the pending channels that are due and starts their next interval.
    fn take_due(&mut self) -> Vec<WakeupChannel> {
        let now = Instant::now();
        let resting = &mut self.next_send_at;
        let rested =
            |channel: &WakeupChannel| resting.get(channel).is_none_or(|until| *until <= now);
        let pending_hints: Vec<WakeupChannel> = self.pending.extract_if(rested).collect();
        resting.extend(
            pending_hints
                .iter()
                .map(|channel| (*channel, now + COALESCE_INTERVAL)),
        );
        pending_hints
    }

    async fn send_or_drop(&mut self, pending_hints: &HashMap<WakeupChannel, Vec<String>>) {
        // A connection that Redis has closed fails on first use, hence a second try.
        if self.send(pending_hints).await.is_ok() {
            return;
        }
        self.connection = None;
        if let Err(error) = self.send(pending_hints).await {
            self.connection = None;
            let count: usize = pending_hints.values().map(Vec::len).sum();
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.dropped.fetch_add(count, Ordering::Relaxed);
            tracing::debug!(%error, count, "wakeups dropped: Redis did not answer");
        }
    }

    async fn send(
        &mut self,
        pending_hints: &HashMap<WakeupChannel, Vec<String>>,
    ) -> RedisResult<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.client, Some(RESPONSE_TIMEOUT)).await?),
        };
        let mut pipe = redis::pipe();
        for (channel, hints) in pending_hints {
            let key = key(&self.prefix, *channel);
            pipe.rpush(&key, hints).ignore();
            pipe.ltrim(&key, -channel.max_len(), -1).ignore();
        }
        pipe.query_async(connection).await
    }
}

/// Sleeps until an instant; forever without one.
async fn sleep_until_some(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}

/// Listener of one wakeup channel.
#[derive(Debug)]
pub struct WakeupListener {
    channel: WakeupChannel,
    connection: Option<ListenerConnection>,
}

#[derive(Debug)]
struct ListenerConnection {
    client: Client,
    key: String,
    connection: Option<MultiplexedConnection>,
    reconnect_pause: Duration,
}

impl WakeupListener {
    /// Waits for a hint, at most for `max_wait` (and five seconds); true when there was one.
    /// Takes up to `hints` hints at once, one for each job that the caller can start. While Redis
    /// is unreachable, waits and keeps reconnecting.
    pub async fn wait(&mut self, hints: usize, max_wait: Duration) -> bool {
        let Some(line) = &mut self.connection else {
            sleep(max_wait).await;
            return false;
        };

        let deadline = Instant::now() + max_wait.min(MAX_LISTEN_TIME);
        loop {
            match timeout_at(deadline + RESPONSE_TIMEOUT, line.pop_hints(hints, deadline)).await {
                Ok(Ok(woken)) => {
                    line.reconnect_pause = RECONNECT_PAUSES.0;
                    return woken;
                }
                Err(_elapsed) => {
                    line.connection = None;
                    tracing::debug!(channel = self.channel.name(), "wakeup listener timed out");
                    return false;
                }
                Ok(Err(error)) => {
                    line.connection = None;
                    tracing::debug!(channel = self.channel.name(), %error, "wakeup listener failed");

                    let retry_at = Instant::now() + line.reconnect_pause;
                    line.reconnect_pause = RECONNECT_PAUSES.1.min(line.reconnect_pause * 2);
                    sleep_until(retry_at.min(deadline)).await;
                    if retry_at >= deadline {
                        return false;
                    }
                }
            }
        }
    }
}

impl ListenerConnection {
    async fn pop_hints(&mut self, hints: usize, deadline: Instant) -> RedisResult<bool> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.client, None).await?),
        };

        let wait = deadline.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        let wait_secs = wait.as_secs_f64().max(0.001);
        let first: Option<(String, String)> = redis::cmd("BLPOP")
            .arg(&self.key)
            .arg(wait_secs)
            .query_async(connection)
            .await?;
        if first.is_none() {
            return Ok(false);
        }

        if let Some(more) = NonZeroUsize::new(hints.saturating_sub(1)) {
            let _: Option<Vec<String>> = redis::cmd("LPOP")
                .arg(&self.key)
                .arg(more.get())
                .query_async(connection)
                .await?;
        }
        Ok(true)
    }
}
