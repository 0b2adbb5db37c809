//! What a campaign survives: real processes are killed, frozen and cut off while it runs, and
//! the carrier's own log says whether anybody was rung twice or forgotten.
//!
//! Every test draws what it does from a seed and prints it. `PEAL_SEED=7` repeats one;
//! `PEAL_FAULT_SEEDS=100` runs each test with so many, from `PEAL_SEED` (or 1) on. Tests that are
//! parts of one (`_1_of_4`) share the seeds.

mod carriers;
mod exports;
mod ingests;
mod servers;
mod skew;
mod workers;

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The seeds to run, `usual` of them unless the environment says otherwise.
fn seeds(usual: u64) -> Range<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        )
    };
    let first = number("PEAL_SEED");
    let count = number("PEAL_FAULT_SEEDS").unwrap_or(if first.is_some() { 1 } else { usual });
    let first = first.unwrap_or(1);
    first..first + count
}

/// What a seed decides.
struct Dice(StdRng);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A number of the range.
    fn draw(&mut self, range: Range<u64>) -> u64 {
        self.0.random_range(range)
    }
}
