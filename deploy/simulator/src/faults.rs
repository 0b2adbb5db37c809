//! Injected faults.
//!
//! Each fault is a [`FaultChance`]: a probability (drawn from the fault seed, the number and the
//! count of its creates or of the call's callbacks, so never from timing) or a count of next
//! events. Latencies are real milliseconds, not compressed ones.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::seeded_rng::SeededRng;

/// Frequency of a fault. As text `0.05` (probability) or `x3` (the next
/// three), as JSON `0.05` or `{"count": 3}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FaultChance {
    Rate(f64),
    Count { count: u64 },
}

impl FaultChance {
    pub const NEVER: Self = Self::Rate(0.0);
    pub const ALWAYS: Self = Self::Rate(1.0);

    /// Applies to the next `count` events only.
    pub const fn next(count: u64) -> Self {
        Self::Count { count }
    }
}

impl Default for FaultChance {
    fn default() -> Self {
        Self::NEVER
    }
}

impl FromStr for FaultChance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(count) = text.strip_prefix('x') {
            let count = count.parse().map_err(|e| format!("count `{text}`: {e}"))?;
            return Ok(Self::Count { count });
        }
        match text.parse::<f64>() {
            Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(Self::Rate(rate)),
            _ => Err(format!(
                "`{text}` is neither a probability nor a count such as x3"
            )),
        }
    }
}

impl fmt::Display for FaultChance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(rate) => write!(f, "{rate}"),
            Self::Count { count } => write!(f, "x{count}"),
        }
    }
}

/// All faults. The default is a carrier without faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Seed of the draws of all faults.
    #[arg(id = "fault_seed", long = "fault-seed", default_value_t = 0)]
    pub seed: u64,
    /// Delay of every create's response; the call itself is not delayed.
    #[arg(long = "fault-create-latency-ms", default_value_t = 0)]
    pub create_latency_ms: u64,
    /// Most random milliseconds that are added to the delay.
    #[arg(long = "fault-create-jitter-ms", default_value_t = 0)]
    pub create_jitter_ms: u64,
    /// Refused with 429 and code 20429; no call is created.
    #[arg(long = "fault-refuse-429", default_value_t)]
    pub refuse_429: FaultChance,
    /// Answered 503; no call is created.
    #[arg(long = "fault-error-before", default_value_t)]
    pub error_before: FaultChance,
    /// Answered 503 although the call was accepted and rings.
    #[arg(long = "fault-error-after", default_value_t)]
    pub error_after: FaultChance,
    /// The connection is cut without a response; no call is created.
    #[arg(long = "fault-drop-before", default_value_t)]
    pub drop_before: FaultChance,
    /// The connection is cut without a response although the call was accepted.
    #[arg(long = "fault-drop-after", default_value_t)]
    pub drop_after: FaultChance,
    /// The `initiated` callback is delivered before the create is answered.
    #[arg(long = "fault-early-callback", default_value_t)]
    pub early_callback: FaultChance,
    /// The call is missing from lists for `hide_for_ms`; a fetch by sid finds it.
    #[arg(long = "fault-hide-from-list", default_value_t)]
    pub hide_from_list: FaultChance,
    #[arg(long = "fault-hide-for-ms", default_value_t = 0)]
    pub hide_for_ms: u64,
    /// The answer document is not fetched; the callee hears silence and hangs up.
    #[arg(long = "fault-suppress-answer", default_value_t)]
    pub suppress_answer: FaultChance,
    /// A callback is never posted.
    #[arg(long = "fault-callbacks-lost", default_value_t)]
    pub callbacks_lost: FaultChance,
    /// A callback is posted twice.
    #[arg(long = "fault-callbacks-duplicated", default_value_t)]
    pub callbacks_duplicated: FaultChance,
    /// A callback is posted after the one that follows it.
    #[arg(long = "fault-callbacks-reordered", default_value_t)]
    pub callbacks_reordered: FaultChance,
    /// A callback is delayed by `late_by_ms` while later ones are posted.
    #[arg(long = "fault-callbacks-late", default_value_t)]
    pub callbacks_late: FaultChance,
    #[arg(long = "fault-late-by-ms", default_value_t = 0)]
    pub late_by_ms: u64,
}

/// The active faults and the used part of their counts.
#[derive(Debug, Default)]
pub(crate) struct FaultState {
    faults: Faults,
    struck: HashMap<&'static str, u64>,
}

impl FaultState {
    pub(crate) fn new(faults: Faults) -> Self {
        Self {
            faults,
            struck: HashMap::new(),
        }
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// True if the fault applies to the `nth` event of `key`; uses up a count.
    pub(crate) fn strikes(
        &mut self,
        fault: &'static str,
        pick: impl Fn(&Faults) -> FaultChance,
        key: &str,
        nth: u64,
    ) -> bool {
        match pick(&self.faults) {
            FaultChance::Rate(rate) if rate <= 0.0 => false,
            FaultChance::Rate(rate) => {
                SeededRng::new(self.faults.seed, key, fault, nth).unit_interval() < rate
            }
            FaultChance::Count { count } => {
                let struck = self.struck.entry(fault).or_default();
                if *struck >= count {
                    return false;
                }
                *struck += 1;
                true
            }
        }
    }

    /// Delay of the response to a create.
    pub(crate) fn create_latency_ms(&self, key: &str, nth: u64) -> u64 {
        let jitter = self.faults.create_jitter_ms;
        let mut draw = SeededRng::new(self.faults.seed, key, "create_latency", nth);
        let extra = draw.below(jitter.saturating_add(u64::from(jitter > 0)));
        self.faults.create_latency_ms.saturating_add(extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(refuse_429: FaultChance) -> FaultState {
        FaultState::new(Faults {
            refuse_429,
            ..Faults::default()
        })
    }

    #[test]
    fn a_count_applies_exactly_that_many_times() {
        let mut faults = state(FaultChance::next(3));
        let hits = (0..10)
            .filter(|n| faults.strikes("refuse_429", |f| f.refuse_429, "k", *n))
            .count();
        assert_eq!(hits, 3);
    }

    #[test]
    fn a_rate_is_repeatable_and_differs_between_repetitions_of_one_number() {
        let mut faults = state(FaultChance::Rate(0.3));
        let mut run = || -> Vec<bool> {
            (0..2000)
                .map(|n| faults.strikes("refuse_429", |f| f.refuse_429, "+1415", n))
                .collect()
        };
        let first = run();
        assert_eq!(first, run());
        let hits = first.iter().filter(|hit| **hit).count();
        assert!((500..700).contains(&hits), "{hits} of 2000");
    }

    #[test]
    fn chances_read_as_text_and_json() {
        assert_eq!(
            "0.25".parse::<FaultChance>().unwrap(),
            FaultChance::Rate(0.25)
        );
        assert_eq!("x4".parse::<FaultChance>().unwrap(), FaultChance::next(4));
        assert!("1.5".parse::<FaultChance>().is_err());
        let faults: Faults =
            serde_json::from_str(r#"{"drop_after": {"count": 2}, "callbacks_lost": 0.2}"#).unwrap();
        assert_eq!(faults.drop_after, FaultChance::next(2));
        assert_eq!(faults.callbacks_lost, FaultChance::Rate(0.2));
        assert!(serde_json::from_str::<Faults>(r#"{"drop_aftr": 1}"#).is_err());
    }
}
