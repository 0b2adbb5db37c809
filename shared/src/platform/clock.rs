//! The only wall clock. Rules that depend on the time of day read it through [`Clock`], so
//! tests can choose any date. Pacing and leases use the database server's clock instead, and
//! durations inside a process use the monotonic one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};

/// Wall-clock time, shiftable.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    shift_micros: Arc<AtomicI64>,
}

impl Clock {
    /// Current time, with the shift.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    pub fn now(&self) -> DateTime<Utc> {
        Utc::now() + TimeDelta::microseconds(self.shift_micros.load(Ordering::Relaxed))
    }

    /// Moves this clock, and every clone of it, by `step`.
    pub fn shift(&self, step: TimeDelta) {
        let micros = step.num_microseconds().unwrap_or_default();
        self.shift_micros.fetch_add(micros, Ordering::Relaxed);
    }
}
