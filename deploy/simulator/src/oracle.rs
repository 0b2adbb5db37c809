//! Report of the carrier, by which tests and rehearsals check a dialer.
//!
//! Counts are updated with every call; the worst window is computed over the whole arrival log
//! on demand. An arrival is the time at which the request was received, whatever its response.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Micros;

/// Result of one create request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreateVerdict {
    Accepted,
    /// Accepted, but answered 503.
    AcceptedThenError,
    /// Accepted, but the connection was cut.
    AcceptedThenDropped,
    /// Refused with this error code.
    Refused(u32),
    /// Answered 503; no call exists.
    Error,
    /// The connection was cut; no call exists.
    Dropped,
}

impl CreateVerdict {
    pub fn is_accepted(self) -> bool {
        matches!(
            self,
            Self::Accepted | Self::AcceptedThenError | Self::AcceptedThenDropped
        )
    }

    /// True if the response proves to the caller that no call exists.
    pub fn proves_nothing_happened(self) -> bool {
        matches!(self, Self::Refused(_))
    }

    fn label(self) -> String {
        match self {
            Self::Accepted => "accepted".to_owned(),
            Self::AcceptedThenError => "accepted_then_error".to_owned(),
            Self::AcceptedThenDropped => "accepted_then_dropped".to_owned(),
            Self::Refused(code) => format!("refused_{code}"),
            Self::Error => "error".to_owned(),
            Self::Dropped => "dropped".to_owned(),
        }
    }
}

/// One entry of the arrival log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRecord {
    /// Position, from 1.
    pub n: u64,
    /// Arrival since the start of the simulator.
    pub at_micros: u64,
    pub unix_micros: u64,
    pub account: String,
    pub to: String,
    pub from: String,
    /// The answer URL, empty for an inline document.
    pub url: String,
    /// Set when a call exists.
    pub sid: Option<String>,
    pub verdict: CreateVerdict,
}

/// Counters of one account, or of all accounts.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccountTally {
    pub(crate) creates: u64,
    pub(crate) accepted: u64,
    pub(crate) live: u64,
    pub(crate) max_live: u64,
    pub(crate) rung: u64,
    pub(crate) answered: u64,
    pub(crate) talk_secs: u64,
    pub(crate) verdicts: BTreeMap<String, u64>,
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
    pub(crate) callbacks: CallbackCounts,
    pub(crate) documents: DocumentCounts,
}

impl AccountTally {
    pub(crate) fn count_create(&mut self, verdict: CreateVerdict) {
        self.creates += 1;
        self.accepted += u64::from(verdict.is_accepted());
        *self.verdicts.entry(verdict.label()).or_default() += 1;
    }

    /// The counted part of a report.
    pub(crate) fn report(&self) -> Oracle {
        Oracle {
            creates: self.creates,
            accepted: self.accepted,
            refused: self.creates - self.accepted,
            verdicts: self.verdicts.clone(),
            live: self.live,
            max_concurrent: self.max_live,
            rung: self.rung,
            answered: self.answered,
            talk_secs: self.talk_secs,
            outcomes: self
                .outcomes
                .iter()
                .map(|(word, count)| ((*word).to_owned(), *count))
                .collect(),
            callbacks: self.callbacks,
            documents: self.documents,
            ..Oracle::default()
        }
    }
}

/// Counts of callbacks (status, detection, recording).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackCounts {
    /// Delivered: the last attempt was answered 2xx. Duplicates count too.
    pub sent: u64,
    /// Given up after the retries that the URL allows.
    pub failed: u64,
    /// Never posted, by fault.
    pub lost: u64,
    /// Posted twice, by fault.
    pub duplicated: u64,
    /// Posted after their successor, by fault.
    pub reordered: u64,
    /// Held back, by fault.
    pub late: u64,
    /// HTTP requests, retries included.
    pub requests: u64,
}

/// Counts of document fetches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentCounts {
    /// First documents of answered calls.
    pub answers: u64,
    /// First documents that were not 2xx or not a valid document.
    pub answers_failed: u64,
    /// First documents not fetched, by fault.
    pub answers_suppressed: u64,
    /// Later documents: gathers, redirects, recordings, fallbacks.
    pub later: u64,
    pub later_failed: u64,
}

/// The second with the most arrivals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorstWindow {
    pub count: u64,
    /// Arrival of its first create, since the simulator started.
    pub start_micros: u64,
    pub start_unix_micros: u64,
}

/// A report over everything since the start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Oracle {
    /// The account of the report; all accounts when absent.
    pub account: Option<String>,
    pub creates: u64,
    pub accepted: u64,
    pub refused: u64,
    pub verdicts: BTreeMap<String, u64>,
    pub worst_window: WorstWindow,
    /// Creates per second between the first and the last arrival.
    pub mean_rate: f64,
    pub live: u64,
    /// Calls between acceptance and end, at the worst moment.
    pub max_concurrent: u64,
    /// Answer URLs for which more than one call was accepted; the first thousand.
    pub duplicates: Vec<String>,
    pub duplicate_count: u64,
    /// Answer URLs that were sent again although the previous response, or its absence, did
    /// not prove that no call exists; the first thousand.
    pub blind_retries: Vec<String>,
    pub blind_retry_count: u64,
    /// Numbers with two live calls at once, over all accounts; the first thousand.
    pub overlaps: Vec<String>,
    pub overlap_count: u64,
    /// Numbers that rang more than once; the first thousand.
    pub rung_twice: Vec<String>,
    pub rung_twice_count: u64,
    pub rung: u64,
    pub answered: u64,
    /// Billed call seconds of all ended calls.
    pub talk_secs: u64,
    /// Ended calls by final status.
    pub outcomes: BTreeMap<String, u64>,
    pub callbacks: CallbackCounts,
    pub documents: DocumentCounts,
}

/// Offences in order of discovery, each with its account.
#[derive(Debug, Default)]
pub(crate) struct OffenceLog(Vec<(std::sync::Arc<str>, usize)>);

impl OffenceLog {
    pub(crate) fn add(&mut self, what: &std::sync::Arc<str>, account: usize) {
        self.0.push((std::sync::Arc::clone(what), account));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The first thousand distinct names, sorted, and the count of all.
    pub(crate) fn report(&self, account: Option<usize>) -> (Vec<String>, u64) {
        let names: std::collections::BTreeSet<&str> = self
            .0
            .iter()
            .filter(|(_, by)| account.is_none_or(|wanted| wanted == *by))
            .map(|(name, _)| &**name)
            .collect();
        let count = u64::try_from(names.len()).unwrap_or(u64::MAX);
        let first = names.into_iter().take(1000).map(str::to_owned).collect();
        (first, count)
    }
}

/// Largest number of arrivals in any half-open second, and the start of that second.
pub(crate) fn worst_window(mut arrivals: Vec<Micros>) -> Option<(u64, Micros)> {
    arrivals.sort_unstable();
    let mut worst: Option<(u64, Micros)> = None;
    let mut ahead = arrivals.iter().peekable();
    let mut inside = 0_u64;
    for start in &arrivals {
        while ahead
            .next_if(|at| **at < start.saturating_add(1_000_000))
            .is_some()
        {
            inside += 1;
        }
        if worst.is_none_or(|(count, _)| inside > count) {
            worst = Some((inside, *start));
        }
        inside = inside.saturating_sub(1);
    }
    worst
}

/// Events per second over the span of the arrivals; 0 for fewer than two.
pub(crate) fn mean_rate(arrivals: &[Micros]) -> f64 {
    let (Some(first), Some(last)) = (arrivals.iter().min(), arrivals.iter().max()) else {
        return 0.0;
    };
    let span = std::time::Duration::from_micros(last - first).as_secs_f64();
    let gaps = u32::try_from(arrivals.len().saturating_sub(1)).unwrap_or(u32::MAX);
    if span > 0.0 {
        f64::from(gaps) / span
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded_rng::SeededRng;

    fn brute_force(arrivals: &[Micros]) -> Option<(u64, Micros)> {
        let mut sorted = arrivals.to_vec();
        sorted.sort_unstable();
        let mut worst = None;
        for start in &sorted {
            let inside = sorted
                .iter()
                .filter(|at| (*start..start + 1_000_000).contains(*at))
                .count();
            let inside = u64::try_from(inside).unwrap();
            if worst.is_none_or(|(count, _)| inside > count) {
                worst = Some((inside, *start));
            }
        }
        worst
    }

    #[test]
    fn the_worst_window_equals_brute_force() {
        for round in 0..200 {
            let mut draw = SeededRng::new(round, "arrivals", "test", 0);
            let span = 1 + draw.below(5_000_000);
            let arrivals: Vec<Micros> = (0..draw.below(120)).map(|_| draw.below(span)).collect();
            let brute = brute_force(&arrivals);
            let fast = worst_window(arrivals.clone());
            assert_eq!(fast.map(|w| w.0), brute.map(|w| w.0), "round {round}");
            if let (Some((count, start)), Some(_)) = (fast, brute) {
                let inside = arrivals
                    .iter()
                    .filter(|at| (start..start + 1_000_000).contains(*at))
                    .count();
                assert_eq!(u64::try_from(inside).unwrap(), count);
            }
        }
    }

    #[test]
    fn a_window_is_half_open() {
        assert_eq!(worst_window(vec![0, 1_000_000]), Some((1, 0)));
        assert_eq!(worst_window(vec![999_999, 0, 1_500_000]), Some((2, 0)));
        assert_eq!(worst_window(Vec::new()), None);
        assert_eq!(worst_window(vec![5, 5, 5]), Some((3, 5)));
    }

    #[test]
    fn the_mean_rate_counts_gaps() {
        assert_eq!(mean_rate(&[0, 500_000, 1_000_000]), 2.0);
        assert_eq!(mean_rate(&[7]), 0.0);
    }

    #[test]
    fn offences_are_named_once_and_filtered_by_account() {
        let mut offences = OffenceLog::default();
        for (name, account) in [("b", 0), ("a", 1), ("b", 0)] {
            offences.add(&name.into(), account);
        }
        assert_eq!(offences.report(None), (vec!["a".into(), "b".into()], 2));
        assert_eq!(offences.report(Some(1)), (vec!["a".into()], 1));
    }
}
