use super::{BetaBinomial, BoundedMean, Side};
use crate::error::Result;
use crate::interval::Interval;
use serde::{Deserialize, Serialize};

/// Decisions of two models on the same requests, right or wrong each: the sequential counterpart of McNemar's test.
///
/// Only *discordant* pairs, where one is right and the other is not, say which is better. If neither is, each of them is a
/// fair coin, and the beta-binomial e-process against 1/2 over them is one for "equally often right". The difference of the
/// shares that are right has a confidence sequence of its own, over all pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairedDecisions {
    discordant: BetaBinomial,
    pairs: u64,
    difference: BoundedMean,
}

impl PairedDecisions {
    /// Nothing seen yet. `alpha` is the level of [`difference`](Self::difference).
    ///
    /// # Errors
    /// `alpha` not strictly between 0 and 1.
    pub fn new(alpha: f64) -> Result<Self> {
        let discordant = BetaBinomial::new(1.0, 1.0)?;
        Ok(Self { discordant, pairs: 0, difference: BoundedMean::new(-1.0, 1.0, alpha)? })
    }

    /// Takes a pair: whether the first model was right, and whether the second was.
    pub fn update(&mut self, first: bool, second: bool) {
        self.pairs = self.pairs.saturating_add(1);
        if first != second {
            self.discordant.update(u64::from(second), u64::from(first));
        }
        self.difference.add(f64::from(i8::from(second) - i8::from(first)));
    }

    /// Pairs where only the first was right, and where only the second was.
    pub fn discordant(&self) -> (u64, u64) {
        let (second, first) = self.discordant.counts();
        (first, second)
    }

    /// All pairs.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// The natural logarithm of the e-process for both being right equally often; with [`Side::Above`] for the second being right at
    /// most as often, with [`Side::Below`] at least as often.
    ///
    /// # Errors
    /// None: 1/2 is a rate.
    pub fn log_e(&self, side: Side) -> Result<f64> {
        self.discordant.log_e(0.5, side)
    }

    /// How much more often the second is right than the first, as a share of all pairs, from -1 to 1: a confidence sequence.
    pub fn difference(&self) -> Interval {
        self.difference.interval()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequential::rejects;
    use fastrand::Rng;

    /// The shares of 2,000 runs that ever reject, and that ever miss the true difference.
    fn alarms(first_only: f64, second_only: f64) -> (f64, f64) {
        let mut random = Rng::with_seed(13);
        let (mut rejected, mut missed) = (0, 0);
        for _ in 0..2_000 {
            let mut state = PairedDecisions::new(0.05).unwrap();
            let (mut rejects_here, mut misses_here) = (false, false);
            for _ in 0..500 {
                let u = random.f64();
                state.update(u < first_only, u > 1.0 - second_only);
                rejects_here |= rejects(state.log_e(Side::Above).unwrap(), 0.05);
                misses_here |= !state.difference().contains(second_only - first_only);
            }
            rejected += u32::from(rejects_here);
            missed += u32::from(misses_here);
        }
        (f64::from(rejected) / 2_000.0, f64::from(missed) / 2_000.0)
    }

    #[test]
    fn null_runs_peeked_at_every_step_stay_below_alpha() {
        for (first, second) in [(0.1, 0.1), (0.2, 0.05)] {
            let (rejected, missed) = alarms(first, second);
            assert!(rejected <= 0.05 && missed <= 0.05, "{first} {second}: {rejected} {missed}");
        }
    }

    #[test]
    fn a_better_second_model_is_found() {
        let (rejected, missed) = alarms(0.02, 0.12);
        assert!(rejected > 0.99 && missed <= 0.05, "{rejected} {missed}");
    }
}
