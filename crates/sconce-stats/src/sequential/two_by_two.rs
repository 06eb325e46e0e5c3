use super::Side;
use crate::error::{Result, positive};
use crate::trials::Trials;
use serde::{Deserialize, Serialize};

/// E-process for two streams of yes and no having the same rate: the safe test of 2x2 tables (Turner, Ly and Grünwald,
/// "Generic E-variables for exact sequential k-sample tests", 2024).
///
/// Data comes in blocks, one group of trials of either stream. Each block is bet on with rates estimated from the blocks
/// before it, under independent beta priors, against their mean weighted by the block's trials.
///
/// One-sided, it bets only while the estimates lie on the side of the alternative. Then it is an e-process also for the
/// larger null hypothesis that the second rate is at most (at least) the first's: the expected factor of a block falls when
/// the rates are moved apart on the null's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SafeTwoByTwo {
    prior: (f64, f64),
    side: Side,
    first: Trials,
    second: Trials,
    log_e: f64,
}

impl SafeTwoByTwo {
    /// The prior of Turner, Ly and Grünwald, close to the best in the worst case.
    pub const PRIOR: (f64, f64) = (0.18, 0.18);

    /// Against any difference ([`Side::Both`]), or the second rate lying above or below the first.
    pub fn new(side: Side) -> Self {
        let none = Trials { events: 0, trials: 0 };
        Self { prior: Self::PRIOR, side, first: none, second: none, log_e: 0.0 }
    }

    /// With another beta prior on both rates: pseudo-counts of events and misses.
    ///
    /// # Errors
    /// A pseudo-count that is not above 0.
    pub fn with_prior(side: Side, events: f64, misses: f64) -> Result<Self> {
        positive("prior events", events)?;
        positive("prior misses", misses)?;
        Ok(Self { prior: (events, misses), ..Self::new(side) })
    }

    /// Takes a block; one without any trials changes nothing.
    ///
    /// # Errors
    /// More events than trials.
    pub fn update(&mut self, first: Trials, second: Trials) -> Result<()> {
        first.check("first")?;
        second.check("second")?;
        let (size_first, size_second) = (first.trials as f64, second.trials as f64);
        if first.trials == 0 && second.trials == 0 {
            return Ok(());
        }
        let (p_first, p_second) = (self.estimate(&self.first), self.estimate(&self.second));
        let bets = match self.side {
            Side::Both => true,
            Side::Above => p_second > p_first,
            Side::Below => p_second < p_first,
        };
        if bets {
            let common = (size_first * p_first + size_second * p_second) / (size_first + size_second);
            let gain = |block: &Trials, p: f64| {
                let (events, misses, _) = block.parts();
                events * (p / common).ln() + misses * ((1.0 - p) / (1.0 - common)).ln()
            };
            self.log_e += gain(&first, p_first) + gain(&second, p_second);
        }
        for (seen, block) in [(&mut self.first, first), (&mut self.second, second)] {
            seen.events = seen.events.saturating_add(block.events);
            seen.trials = seen.trials.saturating_add(block.trials);
        }
        Ok(())
    }

    /// The natural logarithm of the e-process.
    pub fn log_e(&self) -> f64 {
        self.log_e
    }

    /// What was seen of the first stream and of the second.
    pub fn totals(&self) -> (Trials, Trials) {
        (self.first, self.second)
    }

    fn estimate(&self, seen: &Trials) -> f64 {
        (seen.events as f64 + self.prior.0) / (seen.trials as f64 + self.prior.0 + self.prior.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequential::rejects;
    use fastrand::Rng;

    fn block(random: &mut Rng, rate: f64, trials: u64) -> Trials {
        Trials { events: (0..trials).filter(|_| random.f64() < rate).count() as u64, trials }
    }

    /// The share of runs that reject at 5 % at any of their blocks, and the mean number of blocks until then.
    fn rejected(side: Side, rates: (f64, f64), runs: u32, blocks: u32) -> (f64, f64) {
        let mut random = Rng::with_seed(7);
        let (mut rejections, mut waited) = (0, 0);
        for _ in 0..runs {
            let mut test = SafeTwoByTwo::new(side);
            for at in 1..=blocks {
                test.update(block(&mut random, rates.0, 9), block(&mut random, rates.1, 1)).unwrap();
                if rejects(test.log_e(), 0.05) {
                    rejections += 1;
                    waited += at;
                    break;
                }
            }
        }
        (f64::from(rejections) / f64::from(runs), f64::from(waited) / f64::from(rejections.max(1)))
    }

    #[test]
    fn false_alarms_of_two_thousand_null_runs_stay_below_alpha() {
        assert!(rejected(Side::Both, (0.05, 0.05), 2_000, 300).0 <= 0.05);
        assert!(rejected(Side::Above, (0.05, 0.05), 2_000, 300).0 <= 0.05);
        // The one-sided null hypothesis is larger: the second rate may lie below.
        assert!(rejected(Side::Above, (0.05, 0.01), 2_000, 300).0 <= 0.05);
    }

    #[test]
    fn a_worse_second_stream_is_found() {
        let (share, _) = rejected(Side::Above, (0.01, 0.10), 200, 1_500);
        assert!(share > 0.99, "{share}");
    }

    #[test]
    fn impossible_counts_are_refused_and_empty_blocks_change_nothing() {
        let mut test = SafeTwoByTwo::new(Side::Both);
        let (none, wrong) = (Trials { events: 0, trials: 0 }, Trials { events: 2, trials: 1 });
        assert!(test.update(wrong, none).is_err() && test.update(none, wrong).is_err());
        test.update(none, none).unwrap();
        assert_eq!(test.log_e(), 0.0);
        assert!(SafeTwoByTwo::with_prior(Side::Both, 0.0, 1.0).is_err());
    }
}
