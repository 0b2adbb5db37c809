//! Bells: Redis lists that wake workers up, and nothing else.
//!
//! Ringing appends a hint to a list, listening takes hints off it; every hint wakes one
//! listener, and a hint is never work. Whoever is woken looks into PostgreSQL, and looks there
//! now and then without being woken. So Redis may be absent, restart, or forget everything at
//! any time: it costs latency. Lists are capped, because a bell that nobody listens to must
//! not grow.
//!
//! Ringing never waits. Hints go through a channel to one task that sends what has gathered in
//! one round trip; when Redis does not answer they are dropped and counted
//! ([`Bells::missed`]). A bell that says no more than "look" is rung at once, and then again only
//! behind a short rest: however many listen, what comes in a burst is found by few looks. Keys
//! are `prefix:{name}:bell`, one key per command, so any cluster layout will do. No personal data
//! passes here: hints are job ids or `1`.

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

use crate::error::Result;
use crate::queue::{Enqueued, Queue};

/// How long a connection may take to open, and a ring to be answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// A listener asks Redis to hold its breath for at most this long.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect: the first, and the longest.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Hints that may wait to be sent.
const UNSENT_LIMIT: usize = 4096;
/// Hints sent in one round trip.
const SEND_LIMIT: usize = 256;
/// The least time between two rings of a bell whose hints say nothing.
const REST: Duration = Duration::from_millis(25);
/// A hint that says nothing.
const LOOK: &str = "1";

/// What can be listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bell {
    /// Jobs of a queue are due.
    Jobs(Queue),
    /// A campaign has rows to dial.
    Dial,
    /// Carriers have told something.
    Inbox,
    /// Calls have ended and are to be charged.
    Settle,
}

impl Bell {
    fn name(self) -> &'static str {
        match self {
            Self::Jobs(queue) => queue.name(),
            Self::Dial => "dial",
            Self::Inbox => "inbox",
            Self::Settle => "settle",
        }
    }

    /// Whether its hints say nothing, so that one does for many.
    fn rests(self) -> bool {
        !matches!(self, Self::Jobs(_))
    }

    /// Most hints that the list keeps.
    fn cap(self) -> isize {
        match self {
            Self::Jobs(_) => 1000,
            Self::Dial | Self::Inbox | Self::Settle => 16,
        }
    }
}

/// The bells of an installation; cheap to clone. Without Redis they are silent.
#[derive(Clone, Debug)]
pub struct Bells {
    tower: Option<Tower>,
    missed: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
struct Tower {
    client: Client,
    prefix: Arc<str>,
    hints: mpsc::Sender<(Bell, String)>,
}

impl Bells {
    /// Bells on the Redis at `url`; to be called in a tokio runtime. Does not wait for Redis.
    ///
    /// # Errors
    /// Fails when `url` is not a Redis URL.
    pub fn new(url: Option<&str>, prefix: &str) -> Result<Self> {
        let Some(url) = url else {
            return Ok(Self::silent());
        };
        let client = Client::open(url).map_err(anyhow::Error::from)?;
        let missed = Arc::new(AtomicU64::new(0));
        let prefix: Arc<str> = prefix.into();
        let (hints, unsent) = mpsc::channel(UNSENT_LIMIT);
        let ringer = Ringer {
            client: client.clone(),
            prefix: Arc::clone(&prefix),
            missed: Arc::clone(&missed),
            connection: None,
            resting: HashMap::new(),
            held: HashSet::new(),
        };
        tokio::spawn(ringer.work(unsent));
        let tower = Some(Tower {
            client,
            prefix,
            hints,
        });
        Ok(Self { tower, missed })
    }

    /// Bells that nobody hears: everything is found by looking.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            tower: None,
            missed: Arc::default(),
        }
    }

    /// Wakes a worker for a job; to be called after the commit. Rings for jobs that wait for
    /// their time are left to the sweeper.
    pub fn ring_job(&self, job: &Enqueued) {
        if job.fresh && job.due {
            self.ring_with(Bell::Jobs(job.queue), job.id.to_string());
        }
    }

    /// Wakes one listener, at once or when the bell has rested.
    pub fn ring(&self, bell: Bell) {
        self.ring_with(bell, LOOK.to_owned());
    }

    pub(crate) fn ring_with(&self, bell: Bell, hint: String) {
        if let Some(tower) = &self.tower
            && tower.hints.try_send((bell, hint)).is_err()
        {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many rings were lost because Redis did not keep up.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whether Redis answers; None where none is configured.
    pub async fn answers(&self) -> Option<bool> {
        let tower = self.tower.as_ref()?;
        let Ok(mut connection) = connect(&tower.client, Some(ANSWER_TIMEOUT)).await else {
            return Some(false);
        };
        let pong: RedisResult<String> = redis::cmd("PING").query_async(&mut connection).await;
        Some(pong.is_ok())
    }

    /// An ear for one bell, with a connection of its own.
    #[must_use]
    pub fn listen(&self, bell: Bell) -> Listener {
        Listener {
            bell,
            line: self.tower.as_ref().map(|tower| Line {
                client: tower.client.clone(),
                key: key(&tower.prefix, bell),
                connection: None,
                pause: RECONNECT_PAUSES.0,
            }),
        }
    }
}

fn key(prefix: &str, bell: Bell) -> String {
    format!("{prefix}:{{{}}}:bell", bell.name())
}

async fn connect(
    client: &Client,
    answer_timeout: Option<Duration>,
) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_TIMEOUT))
        .set_response_timeout(answer_timeout);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// Sends hints.
struct Ringer {
    client: Client,
    prefix: Arc<str>,
    missed: Arc<AtomicU64>,
    connection: Option<MultiplexedConnection>,
    /// Until when bells rest.
    resting: HashMap<Bell, Instant>,
    /// Bells that were rung while they rested.
    held: HashSet<Bell>,
}

impl Ringer {
    async fn work(mut self, mut unsent: mpsc::Receiver<(Bell, String)>) {
        let mut hints = Vec::with_capacity(SEND_LIMIT);
        loop {
            tokio::select! {
                count = unsent.recv_many(&mut hints, SEND_LIMIT) => if count == 0 {
                    return;
                },
                () = rested(self.next()) => {}
            }
            let mut bells: HashMap<Bell, Vec<String>> = HashMap::new();
            for (bell, hint) in hints.drain(..) {
                if bell.rests() {
                    self.held.insert(bell);
                } else {
                    bells.entry(bell).or_default().push(hint);
                }
            }
            for bell in self.take_rested() {
                bells.insert(bell, vec![LOOK.to_owned()]);
            }
            if !bells.is_empty() {
                self.send_or_miss(&bells).await;
            }
        }
    }

    /// When the next of the bells that are held may be rung.
    fn next(&self) -> Option<Instant> {
        let until = |bell| self.resting.get(bell).copied();
        self.held.iter().filter_map(until).min()
    }

    /// The held bells that may be rung; they rest from now on.
    fn take_rested(&mut self) -> Vec<Bell> {
        let now = Instant::now();
        let resting = &mut self.resting;
        let rested = |bell: &Bell| resting.get(bell).is_none_or(|until| *until <= now);
        let bells: Vec<Bell> = self.held.extract_if(rested).collect();
        resting.extend(bells.iter().map(|bell| (*bell, now + REST)));
        bells
    }

    async fn send_or_miss(&mut self, bells: &HashMap<Bell, Vec<String>>) {
        // A connection that Redis closed is found out by using it, hence a second try.
        if self.send(bells).await.is_ok() {
            return;
        }
        self.connection = None;
        if let Err(error) = self.send(bells).await {
            self.connection = None;
            let count: usize = bells.values().map(Vec::len).sum();
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.missed.fetch_add(count, Ordering::Relaxed);
            tracing::debug!(%error, count, "bells could not be rung");
        }
    }

    async fn send(&mut self, bells: &HashMap<Bell, Vec<String>>) -> RedisResult<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.client, Some(ANSWER_TIMEOUT)).await?),
        };
        let mut pipe = redis::pipe();
        for (bell, hints) in bells {
            let key = key(&self.prefix, *bell);
            pipe.rpush(&key, hints).ignore();
            pipe.ltrim(&key, -bell.cap(), -1).ignore();
        }
        pipe.query_async(connection).await
    }
}

/// Ends at an instant; never without one.
async fn rested(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}

/// Waits for a bell.
#[derive(Debug)]
pub struct Listener {
    bell: Bell,
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    client: Client,
    key: String,
    connection: Option<MultiplexedConnection>,
    pause: Duration,
}

impl Listener {
    /// Waits until the bell rings, at most for `patience` (and five seconds); true when it
    /// rang. Takes up to `hints` hints at once, for as many things as the caller can look at.
    /// While Redis is away this waits, and keeps trying to reach it.
    pub async fn heard(&mut self, hints: usize, patience: Duration) -> bool {
        let Some(line) = &mut self.line else {
            sleep(patience).await;
            return false;
        };
        let deadline = Instant::now() + patience.min(LISTEN_LIMIT);
        loop {
            match timeout_at(deadline + ANSWER_TIMEOUT, line.wait(hints, deadline)).await {
                Ok(Ok(rang)) => {
                    line.pause = RECONNECT_PAUSES.0;
                    return rang;
                }
                Err(_elapsed) => {
                    line.connection = None;
                    tracing::debug!(bell = self.bell.name(), "bell does not answer");
                    return false;
                }
                Ok(Err(error)) => {
                    line.connection = None;
                    tracing::debug!(bell = self.bell.name(), %error, "bell cannot be heard");
                    let again = Instant::now() + line.pause;
                    line.pause = RECONNECT_PAUSES.1.min(line.pause * 2);
                    sleep_until(again.min(deadline)).await;
                    if again >= deadline {
                        return false;
                    }
                }
            }
        }
    }
}

impl Line {
    async fn wait(&mut self, hints: usize, deadline: Instant) -> RedisResult<bool> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.client, None).await?),
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        let patience_secs = patience.as_secs_f64().max(0.001);
        let heard: Option<(String, String)> = redis::cmd("BLPOP")
            .arg(&self.key)
            .arg(patience_secs)
            .query_async(connection)
            .await?;
        if heard.is_none() {
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
