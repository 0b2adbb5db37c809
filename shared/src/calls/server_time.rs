//! The database's time on this machine's clock. Slots are instants of the database, and are met
//! by a monotonic clock here, so whoever leases slots has to know how the two lie.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// The database's time is read again when reading it took longer than this, so often at most.
const SHARP: Duration = Duration::from_millis(3);
const READ_AGAIN: usize = 3;

/// The database's time, and when it was read by this machine's monotonic clock.
pub(super) struct Reading {
    pub now: DateTime<Utc>,
    /// A little later, if anything.
    pub read_at: Instant,
    /// How long the reading took: `now` may be older by this.
    pub within: Duration,
}

impl Reading {
    /// What a statement that was sent at `asked` said.
    pub fn new(now: DateTime<Utc>, asked: Instant) -> Self {
        let read_at = Instant::now();
        Self {
            now,
            read_at,
            within: read_at - asked,
        }
    }

    /// Reads again while the answer took long, and keeps what took the least: on a busy machine
    /// the statement that moves the clock is not fast enough to say where the slots are. Time
    /// knows no tenant.
    pub async fn sharpened_unscoped(mut self, db: &mut PgConnection) -> Self {
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
