//! How much the API takes on at once, and what a request may cost.
//!
//! What is not set follows from the size of the database pool: reads may have half of its
//! connections, changes a quarter, and the rest is left to uploads and event streams.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use super::Complaints;

/// Limits as they are typed.
#[derive(Args, Clone, Debug, Default)]
pub struct LimitSettings {
    /// Reads that the API answers at the same time [default: half of PEAL_DATABASE_POOL].
    #[arg(long, env = "PEAL_LIMIT_READS", global = true)]
    pub limit_reads: Option<String>,
    /// Changes that the API makes at the same time [default: a quarter of PEAL_DATABASE_POOL].
    #[arg(long, env = "PEAL_LIMIT_CONTROL", global = true)]
    pub limit_control: Option<String>,
    /// Uploads that the API receives at the same time [default: 32].
    #[arg(long, env = "PEAL_LIMIT_UPLOADS", global = true)]
    pub limit_uploads: Option<String>,
    /// Milliseconds that a request waits for its turn before it gets 503 [default: 500].
    #[arg(long, env = "PEAL_LIMIT_WAIT_MS", global = true)]
    pub limit_wait_ms: Option<String>,
    /// Event streams of one process [default: 1000].
    #[arg(long, env = "PEAL_LIMIT_STREAMS", global = true)]
    pub limit_streams: Option<String>,
    /// Event streams of one organisation in one process [default: 100].
    #[arg(long, env = "PEAL_LIMIT_STREAMS_PER_ORG", global = true)]
    pub limit_streams_per_org: Option<String>,
    /// Connections that the API holds open; further ones wait to be accepted [default: 4096].
    #[arg(long, env = "PEAL_LIMIT_CONNECTIONS", global = true)]
    pub limit_connections: Option<String>,
    /// Seconds that a connection has for the head of its next request [default: 65].
    #[arg(long, env = "PEAL_LIMIT_HEADER_SECS", global = true)]
    pub limit_header_secs: Option<String>,
    /// Seconds that one statement of the API may take [default: 5].
    #[arg(long, env = "PEAL_LIMIT_STATEMENT_SECS", global = true)]
    pub limit_statement_secs: Option<String>,
    /// Requests of one API key, or of one signed-in user, in a second [default: 100].
    #[arg(long, env = "PEAL_LIMIT_REQUESTS_PER_SEC", global = true)]
    pub limit_requests_per_sec: Option<String>,
    /// Requests of one address in a minute whose key or token is not good [default: 60].
    #[arg(long, env = "PEAL_LIMIT_REFUSALS_PER_MIN", global = true)]
    pub limit_refusals_per_min: Option<String>,
}

/// How much the API takes on.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    pub reads: usize,
    pub control: usize,
    pub uploads: usize,
    /// How long a request waits for its turn.
    pub wait: Duration,
    pub streams: usize,
    pub streams_per_org: usize,
    pub connections: usize,
    /// How long a connection may take to send the head of a request, its idle time included.
    pub header: Duration,
    /// How long one statement may take.
    pub statement: Duration,
    /// Requests of one caller.
    pub requests_per_sec: NonZeroU32,
    /// Requests of one address that nobody is known by.
    pub refusals_per_min: NonZeroU32,
}

impl LimitSettings {
    pub(super) fn check(&self, pool: Option<u32>, bad: &mut Complaints) -> Option<ServerLimits> {
        let mut number =
            |name, text: &Option<String>, default: u32, least: u32, most: u32| match text {
                Some(text) if !text.is_empty() => bad.number(name, text, least, most),
                _ => Some(default),
            };
        let of_pool = |share: u32| (pool.unwrap_or(20) / share).max(1);
        let reads = number("PEAL_LIMIT_READS", &self.limit_reads, of_pool(2), 1, 1000);
        let control = number(
            "PEAL_LIMIT_CONTROL",
            &self.limit_control,
            of_pool(4),
            1,
            1000,
        );
        let uploads = number("PEAL_LIMIT_UPLOADS", &self.limit_uploads, 32, 1, 1000);
        let wait = number("PEAL_LIMIT_WAIT_MS", &self.limit_wait_ms, 500, 0, 10_000);
        let streams = number("PEAL_LIMIT_STREAMS", &self.limit_streams, 1000, 1, 100_000);
        let per_org = &self.limit_streams_per_org;
        let per_org = number("PEAL_LIMIT_STREAMS_PER_ORG", per_org, 100, 1, 100_000);
        let connections = &self.limit_connections;
        let connections = number("PEAL_LIMIT_CONNECTIONS", connections, 4096, 1, 1_000_000);
        let header = number(
            "PEAL_LIMIT_HEADER_SECS",
            &self.limit_header_secs,
            65,
            1,
            600,
        );
        let statement = &self.limit_statement_secs;
        let statement = number("PEAL_LIMIT_STATEMENT_SECS", statement, 5, 1, 25);
        let requests = &self.limit_requests_per_sec;
        let requests = number("PEAL_LIMIT_REQUESTS_PER_SEC", requests, 100, 1, 1_000_000);
        let refusals = &self.limit_refusals_per_min;
        let refusals = number("PEAL_LIMIT_REFUSALS_PER_MIN", refusals, 60, 1, 1_000_000);
        let fits = match (reads, control, pool) {
            (Some(reads), Some(control), Some(pool)) if reads.saturating_add(control) > pool => {
                Err(format!(
                    "and PEAL_LIMIT_CONTROL are {reads} and {control}: together they must not exceed PEAL_DATABASE_POOL, {pool}"
                ))
            }
            _ => Ok(()),
        };
        bad.check("PEAL_LIMIT_READS", fits)?;
        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Some(ServerLimits {
            reads: count(reads?),
            control: count(control?),
            uploads: count(uploads?),
            wait: Duration::from_millis(wait?.into()),
            streams: count(streams?),
            streams_per_org: count(per_org?),
            connections: count(connections?),
            header: Duration::from_secs(header?.into()),
            statement: Duration::from_secs(statement?.into()),
            requests_per_sec: NonZeroU32::new(requests?)?,
            refusals_per_min: NonZeroU32::new(refusals?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(settings: &LimitSettings, pool: u32) -> Result<ServerLimits, Vec<String>> {
        let mut bad = Complaints::default();
        let limits = settings.check(Some(pool), &mut bad);
        limits.filter(|_| bad.0.is_empty()).ok_or(bad.0)
    }

    #[test]
    fn what_is_not_set_follows_from_the_pool() {
        for (pool, reads, control) in [(2, 1, 1), (3, 1, 1), (20, 10, 5), (100, 50, 25)] {
            let limits = limits(&LimitSettings::default(), pool).unwrap();
            assert_eq!((limits.reads, limits.control), (reads, control), "{pool}");
        }
    }

    #[test]
    fn classes_that_do_not_fit_into_the_pool_are_refused() {
        let settings = LimitSettings {
            limit_reads: Some("18".into()),
            ..LimitSettings::default()
        };
        let complaints = limits(&settings, 20).unwrap_err();
        assert!(complaints[0].contains("must not exceed PEAL_DATABASE_POOL, 20"));
        assert_eq!(limits(&settings, 40).unwrap().reads, 18);
    }
}
