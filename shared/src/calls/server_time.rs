//! The database's time on this machine's clock. Slots are times of the database's clock, and a
//! worker meets them by its monotonic clock, so a lease carries the offset between the two.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// The time is read again when the reading took longer than this.
const MAX_READ_TIME: Duration = Duration::from_millis(3);
/// Most readings after the first.
const MAX_REREADS: usize = 3;

/// The database's time, and when it was read by this machine's monotonic clock.
pub(super) struct ClockReading {
    pub now: DateTime<Utc>,
    /// The same moment or a little later.
    pub read_at: Instant,
    /// Duration of the reading: `now` may be older by this much.
    pub uncertainty: Duration,
}

impl ClockReading {
    /// A reading by a statement that was sent at `sent_at`.
    pub fn new(now: DateTime<Utc>, sent_at: Instant) -> Self {
        let read_at = Instant::now();
        Self {
            now,
            read_at,
            uncertainty: read_at - sent_at,
        }
    }

    /// Reads again while the reading took long, and keeps the fastest one: on a busy machine the
    /// statement that moves the pacer is too slow to place the slots. Time has no tenant.
    pub async fn refined_unscoped(mut self, db: &mut PgConnection) -> Self {
        for _ in 0..MAX_REREADS {
            if self.uncertainty <= MAX_READ_TIME {
                break;
            }
            let sent_at = Instant::now();
            let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#)
                .fetch_one(&mut *db)
                .await;
            // The first reading stays when a later one fails.
            let Ok(now) = now else { break };
            let again = Self::new(now, sent_at);
            if again.uncertainty < self.uncertainty {
                self = again;
            }
        }
        self
    }
}
