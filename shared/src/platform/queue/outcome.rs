//! Outcome of a run, and the state of the job that follows from it.

use std::time::Duration;

use apalis_core::error::BoxDynError;
use apalis_core::task::into_response::IntoResponse;

use crate::platform::error::Error;

/// Ceiling of the pause after the first failure; it doubles with each further one.
const BACKOFF_BASE: Duration = Duration::from_secs(2);
/// No pause is longer, unless the handler asked for one.
const BACKOFF_CAP: Duration = Duration::from_secs(15 * 60);

/// Result of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// The work is done, or no longer needed.
    Done,
    /// The run failed and may succeed later: after a back-off, or after the given time.
    Retry {
        after: Option<Duration>,
        why: String,
    },
    /// The job cannot succeed without a change of data or settings.
    Fail { why: String },
}

impl From<Error> for JobOutcome {
    fn from(error: Error) -> Self {
        let why = match &error {
            Error::Unexpected(cause) => format!("{cause:#}"),
            _ => error.to_string(),
        };
        if error.is_retryable() {
            Self::Retry { after: None, why }
        } else {
            Self::Fail { why }
        }
    }
}

impl From<Result<(), Error>> for JobOutcome {
    fn from(result: Result<(), Error>) -> Self {
        result.map_or_else(Self::from, |()| Self::Done)
    }
}

impl IntoResponse for JobOutcome {
    type Output = Self;

    fn into_response(self) -> Result<Self, BoxDynError> {
        Ok(self)
    }
}

/// Change of the job's row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RunEnding {
    Done,
    /// Ready again after `floor` plus a random part of `spread`.
    Retry {
        floor: Duration,
        spread: Duration,
        why: String,
    },
    Dead {
        why: String,
    },
    /// Returned before its start; the claim does not count.
    GivenBack,
}

impl RunEnding {
    /// Decides the ending of the `attempt`th run, counted from one.
    pub(super) fn from_outcome(outcome: JobOutcome, attempt: i32, max_attempts: i32) -> Self {
        match outcome {
            JobOutcome::Done => Self::Done,
            JobOutcome::Fail { why } => Self::Dead { why },
            JobOutcome::Retry { why, .. } if attempt >= max_attempts => Self::Dead {
                why: format!("gave up after {attempt} attempt(s): {why}"),
            },
            JobOutcome::Retry {
                after: Some(floor),
                why,
            } => Self::Retry {
                floor,
                spread: Duration::ZERO,
                why,
            },
            JobOutcome::Retry { after: None, why } => Self::Retry {
                floor: Duration::ZERO,
                spread: backoff_ceiling(attempt),
                why,
            },
        }
    }
}

/// Longest pause after the `attempt`th failure. The pause is uniform between zero and this
/// (full jitter), so that jobs that failed together do not return together.
pub(super) fn backoff_ceiling(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(0);
    2_u32
        .checked_pow(doublings)
        .and_then(|factor| BACKOFF_BASE.checked_mul(factor))
        .map_or(BACKOFF_CAP, |ceiling| ceiling.min(BACKOFF_CAP))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retry(after: Option<Duration>) -> JobOutcome {
        JobOutcome::Retry {
            after,
            why: "w".into(),
        }
    }

    #[test]
    fn the_ceiling_doubles_up_to_its_cap() {
        let secs: Vec<u64> = (1..=11).map(|n| backoff_ceiling(n).as_secs()).collect();
        assert_eq!(secs, [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
    }

    proptest! {
        #[test]
        fn the_ceiling_stays_between_its_bounds_and_never_shrinks(attempt in any::<i32>()) {
            let ceiling = backoff_ceiling(attempt);
            prop_assert!(ceiling >= BACKOFF_BASE && ceiling <= BACKOFF_CAP);
            prop_assert!(backoff_ceiling(attempt.saturating_add(1)) >= ceiling);
        }

        #[test]
        fn a_retry_is_dead_exactly_when_its_attempts_are_used_up(
            attempt in 1..200_i32,
            max in 1..200_i32,
            after in proptest::option::of(0..10_000_u64),
        ) {
            let ending = RunEnding::from_outcome(retry(after.map(Duration::from_secs)), attempt, max);
            prop_assert_eq!(matches!(ending, RunEnding::Dead { .. }), attempt >= max);
        }
    }

    #[test]
    fn an_asked_for_delay_is_kept_exactly() {
        let hour = Duration::from_secs(3600);
        let ending = RunEnding::from_outcome(retry(Some(hour)), 1, 3);
        assert_eq!(
            ending,
            RunEnding::Retry {
                floor: hour,
                spread: Duration::ZERO,
                why: "w".into()
            }
        );
    }

    #[test]
    fn done_and_fail_do_not_look_at_attempts() {
        assert_eq!(
            RunEnding::from_outcome(JobOutcome::Done, 9, 3),
            RunEnding::Done
        );
        let fail = JobOutcome::Fail { why: "no".into() };
        assert_eq!(
            RunEnding::from_outcome(fail, 1, 3),
            RunEnding::Dead { why: "no".into() }
        );
    }

    #[test]
    fn an_error_is_retried_only_when_time_can_heal_it() {
        let outside = |retryable| Error::Outside {
            service: "smtp",
            retryable,
            detail: "451".into(),
        };
        let table = [
            (outside(true), true),
            (outside(false), false),
            (Error::Busy("later".into()), true),
            (anyhow::anyhow!("bug").into(), true),
            (Error::NotFound("Batch"), false),
            (Error::rejected("empty", "nothing to do"), false),
            (Error::conflict("state", "stopped"), false),
        ];

        for (error, retried) in table {
            let outcome = JobOutcome::from(error);
            assert_eq!(
                matches!(outcome, JobOutcome::Retry { after: None, .. }),
                retried,
                "{outcome:?}"
            );
        }

        assert_eq!(JobOutcome::from(Ok::<(), Error>(())), JobOutcome::Done);
    }
}
