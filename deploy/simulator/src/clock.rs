//! The simulator's only clock.
//!
//! A moment is whole microseconds since the simulator started, read from the monotonic clock.
//! *Call seconds* (ringing, talking, AMD) run `speed` times faster than real ones; dates, calls
//! per second and injected latencies are real.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use tokio::time::Instant;

/// Microseconds since the simulator started.
pub(crate) type Micros = u64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    started_unix_micros: u64,
    speed: f64,
}

impl Clock {
    pub(crate) fn start(speed: f64) -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let speed = if speed.is_finite() && speed > 0.0 {
            speed
        } else {
            1.0
        };
        Self {
            started: Instant::now(),
            started_unix_micros: micros(unix),
            speed,
        }
    }

    pub(crate) fn now(&self) -> Micros {
        micros(self.started.elapsed())
    }

    /// The moment `ago` before now in real time, not before the start.
    pub(crate) fn ago(&self, ago: Duration) -> Micros {
        self.now().saturating_sub(micros(ago))
    }

    pub(crate) fn unix_micros(&self, at: Micros) -> u64 {
        self.started_unix_micros.saturating_add(at)
    }

    pub(crate) fn instant(&self, at: Micros) -> Instant {
        self.started + Duration::from_micros(at)
    }

    /// Real time of `call_secs` of call time.
    pub(crate) fn real_micros(&self, call_secs: f64) -> Micros {
        let secs = (call_secs / self.speed).min(1e9);
        micros(Duration::try_from_secs_f64(secs).unwrap_or_default())
    }

    /// Seconds of call time in a real interval, rounded up.
    pub(crate) fn call_secs(&self, real: Micros) -> u32 {
        let secs = Duration::from_micros(real).as_secs_f64() * self.speed;
        // Tolerates the rounding error of the multiplication.
        let whole = Duration::try_from_secs_f64((secs - 1e-6).ceil()).unwrap_or_default();
        u32::try_from(whole.as_secs()).unwrap_or(u32::MAX)
    }

    /// The date format of Twilio's API and callbacks.
    pub(crate) fn rfc2822(&self, at: Micros) -> String {
        let unix = i64::try_from(self.unix_micros(at)).unwrap_or(i64::MAX);
        DateTime::from_timestamp_micros(unix)
            .unwrap_or_default()
            .to_rfc2822()
    }

    /// The UTC day, which is the resolution of Twilio's list filters.
    pub(crate) fn day(&self, at: Micros) -> chrono::NaiveDate {
        let unix = i64::try_from(self.unix_micros(at)).unwrap_or(i64::MAX);
        DateTime::from_timestamp_micros(unix)
            .unwrap_or_default()
            .date_naive()
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn call_time_is_compressed_and_rounded_up() {
        let clock = Clock::start(100.0);
        assert_eq!(clock.real_micros(1.0), 10_000);
        assert_eq!(clock.call_secs(10_000), 1);
        assert_eq!(clock.call_secs(10_001), 2);
        assert_eq!(clock.call_secs(0), 0);
    }

    #[tokio::test]
    async fn dates_look_like_twilios() {
        let mut clock = Clock::start(1.0);
        clock.started_unix_micros = 1_700_000_000_000_000;
        assert_eq!(clock.rfc2822(0), "Tue, 14 Nov 2023 22:13:20 +0000");
        assert_eq!(clock.day(0).to_string(), "2023-11-14");
    }
}
