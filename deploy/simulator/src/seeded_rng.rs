//! Seeded random numbers: the same seed, key, purpose and count always give the same number,
//! independent of order and time, so a rehearsal is repeatable although its timing differs.

/// A stream of random numbers for one purpose and one key.
#[derive(Clone, Debug)]
pub(crate) struct SeededRng(u64);

impl SeededRng {
    /// Creates the stream; `nth` distinguishes repetitions, such as the second call to a number.
    pub(crate) fn new(seed: u64, key: &str, purpose: &str, nth: u64) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ mix(seed);
        for byte in key.bytes().chain([0xff]).chain(purpose.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(mix(hash ^ mix(nth.wrapping_add(1))))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn unit_interval(&mut self) -> f64 {
        let high = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        f64::from(high) / 4_294_967_296.0
    }

    pub(crate) fn between(&mut self, min: f64, max: f64) -> f64 {
        min + (max - min) * self.unit_interval()
    }

    /// Uniform in `0..bound`; 0 when the bound is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}

/// The finaliser of splitmix64.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_every_part_of_its_key() {
        let base = SeededRng::new(1, "+14155550100", "ring", 0).next();
        assert_eq!(base, SeededRng::new(1, "+14155550100", "ring", 0).next());
        assert_ne!(base, SeededRng::new(2, "+14155550100", "ring", 0).next());
        assert_ne!(base, SeededRng::new(1, "+14155550101", "ring", 0).next());
        assert_ne!(base, SeededRng::new(1, "+14155550100", "talk", 0).next());
        assert_ne!(base, SeededRng::new(1, "+14155550100", "ring", 1).next());
    }

    #[test]
    fn draws_spread_evenly() {
        let mut buckets = [0_u32; 10];
        for number in 0..10_000_u64 {
            let key = format!("+1415555{number:04}");
            let bucket = (SeededRng::new(7, &key, "kind", 0).unit_interval() * 10.0).floor();
            for (i, count) in buckets.iter_mut().enumerate() {
                if bucket == f64::from(u32::try_from(i).unwrap()) {
                    *count += 1;
                }
            }
        }
        assert_eq!(buckets.iter().sum::<u32>(), 10_000);
        assert!(buckets.iter().all(|count| (850..1150).contains(count)));
    }
}
