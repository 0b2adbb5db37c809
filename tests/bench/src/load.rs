//! Load generator with minimal cost: requests are prepared bytes, and a connection is a task that
//! writes them and parses the status of the response.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// Timeout of a carrier's request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Times at which requests are sent, and the start of their latency.
#[derive(Clone, Copy)]
pub enum LoadPace {
    /// Each connection sends as soon as it has its response.
    ClosedLoop,
    /// This many per second at even intervals, independent of earlier responses. Latency counts
    /// from the due time of a request, so that the delay of a slow server is included.
    OpenLoop(f64),
    /// At most this many per second while a connection is free. Latency counts from the send
    /// time, because the load exceeds the capacity of connections and server.
    Capped(f64),
}

/// Result of a load.
#[derive(Default)]
pub struct LoadResult {
    /// Latencies of accepted requests.
    latencies: Vec<Duration>,
    pub refused: u64,
    /// Neither accepted nor 503: other statuses, cut connections, timeouts.
    pub failed: u64,
    pub elapsed: Duration,
}

impl LoadResult {
    pub fn accepted(&self) -> u64 {
        u64::try_from(self.latencies.len()).unwrap_or(u64::MAX)
    }

    /// Accepted requests per second.
    pub fn rate(&self) -> f64 {
        per_second(self.accepted(), self.elapsed)
    }

    /// Percentile of the accepted requests' latency in milliseconds.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among some thousands"
    )]
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * share).ceil() as usize;
        let latency = self.latencies.get(rank.saturating_sub(1));
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
pub fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Requests to one server, sent in order; the first follows the last.
#[derive(Clone)]
pub struct LoadGenerator {
    address: String,
    requests: Arc<Vec<Vec<u8>>>,
    next: Arc<AtomicUsize>,
    /// Statuses of an accepted request.
    accepted_statuses: RangeInclusive<u16>,
}

impl LoadGenerator {
    pub fn new(address: &str, requests: Arc<Vec<Vec<u8>>>) -> Self {
        Self {
            address: address.to_owned(),
            requests,
            next: Arc::default(),
            accepted_statuses: 200..=299,
        }
    }

    /// Changes the status of an accepted request.
    pub fn expecting(self, status: u16) -> Self {
        Self {
            accepted_statuses: status..=status,
            ..self
        }
    }

    /// Count of requests that have not been sent.
    pub fn remaining(&self) -> usize {
        let next = self.next.load(Ordering::Relaxed);
        self.requests.len().saturating_sub(next)
    }

    /// Opens `connections` connections.
    pub async fn connect(&self, connections: usize) -> anyhow::Result<Vec<LoadConnection>> {
        let mut lanes = Vec::with_capacity(connections);
        for _ in 0..connections {
            lanes.push(LoadConnection::open(&self.address).await?);
        }
        Ok(lanes)
    }

    /// Sends up to `count` requests over these connections, for at most `within`.
    pub async fn send(
        &self,
        lanes: Vec<LoadConnection>,
        count: usize,
        pace: LoadPace,
        within: Duration,
    ) -> anyhow::Result<LoadResult> {
        let first = self.next.load(Ordering::Relaxed);
        let end = first + count;
        let start = Instant::now();

        let mut running = JoinSet::new();
        for lane in lanes {
            let share = ConnectionTask {
                load: self.clone(),
                pace,
                start,
                range: (first, end),
                deadline: start + within,
            };
            running.spawn(share.send(lane));
        }

        let mut all = LoadResult::default();
        while let Some(part) = running.join_next().await {
            let part = part?;
            all.latencies.extend(part.latencies);
            all.refused += part.refused;
            all.failed += part.failed;
        }

        all.elapsed = start.elapsed();
        all.latencies.sort_unstable();
        // Each connection counts one past the end before it stops.
        self.next.fetch_min(end, Ordering::Relaxed);
        Ok(all)
    }
}

/// Work of one connection.
struct ConnectionTask {
    load: LoadGenerator,
    pace: LoadPace,
    start: Instant,
    range: (usize, usize),
    deadline: Instant,
}

impl ConnectionTask {
    async fn send(self, mut lane: LoadConnection) -> LoadResult {
        let mut result = LoadResult::default();
        while Instant::now() < self.deadline {
            let n = self.load.next.fetch_add(1, Ordering::Relaxed);
            if n >= self.range.1 {
                break;
            }
            let Some(request) = self.load.requests.get(n % self.load.requests.len().max(1)) else {
                break;
            };
            let begin = self.wait_due(n - self.range.0).await;

            match timeout(REQUEST_TIMEOUT, lane.send(request)).await {
                Ok(Ok(status)) if self.load.accepted_statuses.contains(&status) => {
                    result.latencies.push(begin.elapsed())
                }
                Ok(Ok(503)) => result.refused += 1,
                Ok(Ok(_other)) => result.failed += 1,
                Ok(Err(_)) | Err(_) => {
                    result.failed += 1;
                    match LoadConnection::open(&self.load.address).await {
                        Ok(fresh) => lane = fresh,
                        Err(_) => return result,
                    }
                }
            }
        }
        result
    }

    /// Waits until the n-th request is due; returns the start of its latency.
    async fn wait_due(&self, n: usize) -> Instant {
        let (LoadPace::OpenLoop(rate) | LoadPace::Capped(rate)) = self.pace else {
            return Instant::now();
        };
        let place = u32::try_from(n).unwrap_or(u32::MAX);
        let due = self.start + Duration::from_secs_f64(f64::from(place) / rate);
        sleep_until(due).await;
        match self.pace {
            LoadPace::OpenLoop(_) => due,
            _ => Instant::now(),
        }
    }
}

/// A connection.
pub struct LoadConnection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl LoadConnection {
    pub async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; 4096],
        })
    }

    /// Sends a request and reads the response; returns its status.
    pub async fn send(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let mut wanted = None;
        loop {
            let space = self.buffer.get_mut(filled..).unwrap_or_default();
            let read = self.stream.read(space).await?;
            anyhow::ensure!(
                read > 0,
                "the connection was closed, or the response is too long"
            );
            filled += read;
            let answer = self.buffer.get(..filled).unwrap_or_default();
            if wanted.is_none() {
                wanted = parse_head(answer)?;
            }
            if let Some((status, length)) = wanted
                && filled >= length
            {
                return Ok(status);
            }
        }
    }
}

/// Status of a response and its length with the body, once the head is complete.
fn parse_head(answer: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(answer.get(..end).unwrap_or_default())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let body = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    let status = status.context("a response without a status")?.parse()?;
    Ok(Some((status, end + 4 + body.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_body() {
        let answer =
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\nretry-after: 1\r\n\r\nab";
        assert_eq!(parse_head(answer).unwrap(), Some((503, answer.len() + 3)));
        let bare = b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n";
        assert_eq!(parse_head(bare).unwrap(), Some((204, bare.len())));
        assert_eq!(parse_head(b"HTTP/1.1 204 No").unwrap(), None);
    }

    #[test]
    fn a_percentile_is_a_latency_that_was_measured() {
        let result = LoadResult {
            latencies: (1..=200).map(Duration::from_millis).collect(),
            ..LoadResult::default()
        };
        assert!((result.percentile_ms(0.99) - 198.0).abs() < 1e-9);
        assert!((result.percentile_ms(0.5) - 100.0).abs() < 1e-9);
        assert!(LoadResult::default().percentile_ms(0.99).is_nan());
    }
}
