//! Limits of the API: concurrency, time and rate.
//!
//! Defaults follow from the size of the database pool: reads may use half of its connections,
//! changes a quarter, and the rest is left to uploads and event streams.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use super::ConfigErrors;

/// Limits, as typed.
#[derive(Args, Clone, Debug, Default)]
pub struct LimitSettings {
    /// Reads served at the same time [default: half of PEAL_DATABASE_POOL].
    #[arg(long, env = "PEAL_LIMIT_READS", global = true)]
    pub limit_reads: Option<String>,
    /// Changes served at the same time [default: a quarter of PEAL_DATABASE_POOL].
    #[arg(long, env = "PEAL_LIMIT_CONTROL", global = true)]
    pub limit_control: Option<String>,
    /// Uploads received at the same time [default: 32].
    #[arg(long, env = "PEAL_LIMIT_UPLOADS", global = true)]
    pub limit_uploads: Option<String>,
    /// Milliseconds a request may queue before it gets 503 [default: 500].
    #[arg(long, env = "PEAL_LIMIT_WAIT_MS", global = true)]
    pub limit_wait_ms: Option<String>,
    /// Event streams of one process [default: 1000].
    #[arg(long, env = "PEAL_LIMIT_STREAMS", global = true)]
    pub limit_streams: Option<String>,
    /// Event streams of one organisation in one process [default: 100].
    #[arg(long, env = "PEAL_LIMIT_STREAMS_PER_ORG", global = true)]
    pub limit_streams_per_org: Option<String>,
    /// Open connections; further ones wait to be accepted [default: 4096].
    #[arg(long, env = "PEAL_LIMIT_CONNECTIONS", global = true)]
    pub limit_connections: Option<String>,
    /// Seconds a connection has to send the head of its next request [default: 65].
    #[arg(long, env = "PEAL_LIMIT_HEADER_SECS", global = true)]
    pub limit_header_secs: Option<String>,
    /// Seconds one SQL statement of the API may take [default: 5].
    #[arg(long, env = "PEAL_LIMIT_STATEMENT_SECS", global = true)]
    pub limit_statement_secs: Option<String>,
    /// Requests per second of one API key or signed-in user [default: 100].
    #[arg(long, env = "PEAL_LIMIT_REQUESTS_PER_SEC", global = true)]
    pub limit_requests_per_sec: Option<String>,
    /// Requests per minute of one IP address with an invalid key or token [default: 60].
    #[arg(long, env = "PEAL_LIMIT_REFUSALS_PER_MIN", global = true)]
    pub limit_refusals_per_min: Option<String>,
}

/// Validated limits of the API.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    pub reads: usize,
    pub changes: usize,
    pub uploads: usize,
    /// Longest time a request waits in the queue.
    pub queue_timeout: Duration,
    pub streams: usize,
    pub streams_per_org: usize,
    pub connections: usize,
    /// Time to send the head of a request, idle time included.
    pub header_timeout: Duration,
    /// Longest time of one statement.
    pub statement_timeout: Duration,
    /// Requests of one caller.
    pub requests_per_sec: NonZeroU32,
    /// Unauthenticated requests of one IP address.
    pub denied_per_min: NonZeroU32,
}

impl LimitSettings {
    pub(super) fn validate(
        &self,
        pool: Option<u32>,
        errors: &mut ConfigErrors,
    ) -> Option<ServerLimits> {
        let mut number =
            |name, text: &Option<String>, default: u32, least: u32, most: u32| match text {
                Some(text) if !text.is_empty() => errors.parse_number(name, text, least, most),
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
        let denials = &self.limit_refusals_per_min;
        let denials = number("PEAL_LIMIT_REFUSALS_PER_MIN", denials, 60, 1, 1_000_000);

        // Reads and changes together must leave connections for the rest.
        let fits = match (reads, control, pool) {
            (Some(reads), Some(control), Some(pool)) if reads.saturating_add(control) > pool => {
                Err(format!(
                    "and PEAL_LIMIT_CONTROL are {reads} and {control}: together they must not exceed PEAL_DATABASE_POOL, {pool}"
                ))
            }
            _ => Ok(()),
        };
        errors.record("PEAL_LIMIT_READS", fits)?;

        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Some(ServerLimits {
            reads: count(reads?),
            changes: count(control?),
            uploads: count(uploads?),
            queue_timeout: Duration::from_millis(wait?.into()),
            streams: count(streams?),
            streams_per_org: count(per_org?),
            connections: count(connections?),
            header_timeout: Duration::from_secs(header?.into()),
            statement_timeout: Duration::from_secs(statement?.into()),
            requests_per_sec: NonZeroU32::new(requests?)?,
            denied_per_min: NonZeroU32::new(denials?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(settings: &LimitSettings, pool: u32) -> Result<ServerLimits, Vec<String>> {
        let mut errors = ConfigErrors::default();
        let limits = settings.validate(Some(pool), &mut errors);
        limits.filter(|_| errors.0.is_empty()).ok_or(errors.0)
    }

    #[test]
    fn defaults_follow_from_the_pool() {
        for (pool, reads, control) in [(2, 1, 1), (3, 1, 1), (20, 10, 5), (100, 50, 25)] {
            let limits = limits(&LimitSettings::default(), pool).unwrap();
            assert_eq!((limits.reads, limits.changes), (reads, control), "{pool}");
        }
    }

    #[test]
    fn classes_that_do_not_fit_into_the_pool_are_refused() {
        let settings = LimitSettings {
            limit_reads: Some("18".into()),
            ..LimitSettings::default()
        };
        let messages = limits(&settings, 20).unwrap_err();
        assert!(messages[0].contains("must not exceed PEAL_DATABASE_POOL, 20"));
        assert_eq!(limits(&settings, 40).unwrap().reads, 18);
    }
}
