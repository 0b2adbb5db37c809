//! Fault tests: real processes are killed, frozen and cut off during a campaign, and the
//! carrier's own log shows whether a row was called twice or never.
//!
//! Every test takes its random choices from a seed and prints it. `PEAL_SEED=7` repeats one seed;
//! `PEAL_FAULT_SEEDS=100` runs each test with that many seeds, starting at `PEAL_SEED` or 1. Tests
//! that are parts of one (`_1_of_4`) share the seeds.

mod carriers;
mod exports;
mod ingests;
mod servers;
mod skew;
mod workers;

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Seeds to run: `usual` of them unless the environment sets another number.
fn seeds(usual: u64) -> Range<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        )
    };
    let first = number("PEAL_SEED");
    let count = number("PEAL_FAULT_SEEDS").unwrap_or(if first.is_some() { 1 } else { usual });
    let first = first.unwrap_or(1);
    first..first + count
}

/// Random choices of one seed.
struct SeededRng(StdRng);

impl SeededRng {
    fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Draws a number from the range.
    fn draw(&mut self, range: Range<u64>) -> u64 {
        self.0.random_range(range)
    }
}
