//! What time it is at the database, by this machine's monotonic clock: slots are instants of
//! the former, and requests are sent by the latter.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// The database's time is read again when reading it took longer than this, so often at most.
const SHARP: Duration = Duration::from_millis(3);
const READ_AGAIN: usize = 3;

/// The database's time, and when it was read by this machine's monotonic clock.
pub(super) struct Reading {
    pub now: DateTime<Utc>,
    /// That moment or a little later.
    pub read_at: Instant,
    /// How long reading took.
    pub within: Duration,
}

impl Reading {
    /// What was asked for at `asked` and has come.
    pub(super) fn new(now: DateTime<Utc>, asked: Instant) -> Self {
        let read_at = Instant::now();
        Self {
            now,
            read_at,
            within: read_at - asked,
        }
    }

    /// Reads again while the answer took long, and keeps what took the least: on a busy machine
    /// the statement that moves the clock is not fast enough to say where the slots are.
    pub(super) async fn sharpened(mut self, db: &mut PgConnection) -> Self {
        for _ in 0..READ_AGAIN {
            if self.within <= SHARP {
                break;
            }
            let asked = Instant::now();
            let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#)
                .fetch_one(&mut *db)
                .await;
            // Without another answer the first one has to do.
            let Ok(now) = now else { break };
            let again = Self::new(now, asked);
            if again.within < self.within {
                self = again;
            }
        }
        self
    }
}
