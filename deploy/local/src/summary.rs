//! Checks and summary of the demo: every row is accounted for, nobody was called twice, and the
//! trunk's limit of calls per second was kept. The carrier counts the calls, not Peal.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde_json::Value;

use crate::api_client::{BatchProgress, IngestCounts};
use crate::wallet::WalletBalance;

/// Counts of the carrier simulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierCounts {
    /// Accepted calls.
    pub calls: u64,
    /// Numbers that rang twice, and call ids that were accepted twice.
    pub called_twice: u64,
    /// Most create requests within any one second.
    pub worst_second: u64,
}

impl CarrierCounts {
    /// Reads the oracle of the simulator.
    pub fn read(oracle: &Value) -> Result<Self> {
        let count = |pointer: &str| {
            oracle
                .pointer(pointer)
                .and_then(Value::as_u64)
                .ok_or_else(|| anyhow!("the simulator does not report {pointer}: {oracle}"))
        };
        Ok(Self {
            calls: count("/accepted")?,
            called_twice: count("/rung_twice_count")? + count("/duplicate_count")?,
            worst_second: count("/worst_window/count")?,
        })
    }
}

/// Result of the demo.
#[derive(Clone, Debug)]
pub struct DemoSummary {
    pub ingested: IngestCounts,
    pub progress: BatchProgress,
    pub carrier: CarrierCounts,
    pub cps: u32,
    pub dial_time: Duration,
    /// The wallet that paid, before the first call and after the last.
    pub before: WalletBalance,
    pub after: WalletBalance,
    /// Findings of `peal-api admin ledger verify`.
    pub ledger_errors: Vec<String>,
}

impl DemoSummary {
    /// Messages of all failed checks.
    pub fn problems(&self) -> Vec<String> {
        let Self {
            ingested,
            progress,
            carrier: seen,
            ..
        } = self;
        let mut problems = Vec::new();
        let mut check = |passed: bool, problem: &str| {
            if !passed {
                problems.push(problem.to_owned());
            }
        };

        // Rows.
        let accounted = ingested.accepted + ingested.duplicates + ingested.rejected;
        check(ingested.accepted > 0, "no row was accepted");
        check(
            ingested.read == accounted,
            "rows read are not accepted + duplicates + rejected",
        );
        check(
            progress.done() == ingested.accepted,
            "not every accepted row has an outcome",
        );
        check(
            progress.not_started == 0 && progress.calling == 0,
            "rows are left undialled",
        );

        // Calls.
        check(
            seen.calls == ingested.accepted,
            "the carrier did not see one call for each accepted row",
        );
        check(seen.called_twice == 0, "numbers were called twice");
        check(
            seen.worst_second <= u64::from(self.cps),
            "the trunk's calls per second were exceeded",
        );

        // Money.
        check(
            self.after.held.is_zero(),
            "money is still held for calls that are over",
        );
        check(
            self.after.balance < self.before.balance,
            "the calls cost nothing",
        );
        check(
            self.ledger_errors.is_empty(),
            &format!(
                "the ledger does not add up: {}",
                self.ledger_errors.join("; ")
            ),
        );
        problems
    }

    fn calls_per_second(&self) -> f64 {
        let millis = self.dial_time.as_millis().max(1);
        let calls = u32::try_from(self.carrier.calls).unwrap_or(u32::MAX);
        f64::from(calls) * 1000.0 / f64::from(u32::try_from(millis).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for DemoSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IngestCounts {
            read,
            accepted,
            duplicates,
            rejected,
        } = self.ingested;
        let BatchProgress {
            completed,
            failed,
            no_answer,
            ..
        } = self.progress;

        writeln!(
            f,
            "  rows      {read} read = {accepted} accepted + {duplicates} duplicates + {rejected} rejected"
        )?;
        writeln!(
            f,
            "  outcomes  {completed} completed, {no_answer} not answered, {failed} failed"
        )?;
        writeln!(
            f,
            "  calls     {} in {:.1} s, {:.1} per second",
            self.carrier.calls,
            self.dial_time.as_secs_f64(),
            self.calls_per_second()
        )?;
        writeln!(
            f,
            "  pace      at most {} in any second, the trunk allows {}",
            self.carrier.worst_second, self.cps
        )?;
        writeln!(
            f,
            "  twice     {} numbers called twice",
            self.carrier.called_twice
        )?;
        write!(
            f,
            "  money     {} USD before, {} after: the calls cost {}, {} errors in the ledger",
            self.before.balance,
            self.after.balance,
            self.before.balance - self.after.balance,
            self.ledger_errors.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wallet(balance: &str, held: &str) -> WalletBalance {
        WalletBalance {
            balance: balance.parse().unwrap(),
            held: held.parse().unwrap(),
        }
    }

    fn correct_summary() -> DemoSummary {
        DemoSummary {
            ingested: IngestCounts {
                read: 12,
                accepted: 9,
                duplicates: 2,
                rejected: 1,
            },
            progress: BatchProgress {
                status: "completed".to_owned(),
                completed: 6,
                failed: 1,
                no_answer: 2,
                ..BatchProgress::default()
            },
            carrier: CarrierCounts {
                calls: 9,
                called_twice: 0,
                worst_second: 5,
            },
            cps: 5,
            dial_time: Duration::from_secs(3),
            before: wallet("500.00", "0.00"),
            after: wallet("499.10", "0.00"),
            ledger_errors: Vec::new(),
        }
    }

    #[test]
    fn a_correct_result_has_no_problems() {
        let summary = correct_summary();
        assert_eq!(summary.problems(), Vec::<String>::new());
        let text = summary.to_string();
        assert!(text.contains("12 read = 9 accepted + 2 duplicates + 1 rejected"));
        assert!(text.contains("9 in 3.0 s, 3.0 per second"));
        assert!(text.contains("500.00 USD before, 499.10 after: the calls cost 0.90"));
    }

    #[test]
    fn every_rule_is_checked() {
        type Damage = fn(&mut DemoSummary);
        let damages: [(Damage, &str); 10] = [
            (|s| s.ingested.read += 1, "rows read"),
            (|s| s.progress.completed -= 1, "outcome"),
            (|s| s.progress.calling = 1, "undialled"),
            (|s| s.progress.not_started = 1, "undialled"),
            (|s| s.carrier.calls += 1, "one call for each"),
            (|s| s.carrier.called_twice = 1, "twice"),
            (|s| s.carrier.worst_second = 6, "per second"),
            (|s| s.after.held = 1.into(), "still held"),
            (|s| s.after.balance = s.before.balance, "cost nothing"),
            (|s| s.ledger_errors.push("x".to_owned()), "ledger"),
        ];
        for (damage, expected) in damages {
            let mut summary = correct_summary();
            damage(&mut summary);
            let problems = summary.problems();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(expected), "{problems:?}");
        }
    }

    #[test]
    fn an_incomplete_oracle_is_an_error() {
        let oracle = json!({
            "accepted": 4,
            "rung_twice_count": 1,
            "duplicate_count": 2,
            "worst_window": {"count": 3},
        });
        let seen = CarrierCounts::read(&oracle).unwrap();
        assert_eq!(
            (seen.calls, seen.called_twice, seen.worst_second),
            (4, 3, 3)
        );
        assert!(CarrierCounts::read(&json!({"accepted": 4})).is_err());
    }
}
