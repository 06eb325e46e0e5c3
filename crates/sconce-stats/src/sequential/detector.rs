use crate::error::{Result, StatsError, finite, in_range, open_unit};
use serde::{Deserialize, Serialize};

/// How an e-detector forgets the time before the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accumulation {
    /// Shiryaev-Roberts: `M = L (M + 1)`, the sum of the evidence since every possible time of change.
    ShiryaevRoberts,
    /// CUSUM: `M = L max(M, 1)`, the largest of it.
    Cusum,
}

/// E-detector: finds when the mean of values in 0..=1 leaves a known one, without a model of them (Shin, Ramdas and Rinaldo,
/// "E-detectors: a nonparametric framework for sequential change detection", 2024).
///
/// Each of a few bets `b` multiplies its own detector by `L = 1 + b (x - mean)`, and the detector is their average. While the
/// mean stays at most (for positive bets; at least for negative ones) what it was, an alarm at `1 / alpha` comes on average
/// after no fewer than `1 / alpha` values: "false alarms a month" is the knob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EDetector {
    mean: f64,
    accumulation: Accumulation,
    bets: Vec<f64>,
    values: Vec<f64>,
}

/// Bets of the default mixture to either side, each a fraction of the largest that is allowed: from small changes to large.
const FRACTIONS: [f64; 4] = [0.02, 0.06, 0.18, 0.54];
/// Bets of the mixture to one side alone.
const FRACTIONS_ABOVE: [f64; 2] = [0.08, 0.35];
/// A value of a detector is held here: alarms come long before.
pub(super) const LARGEST: f64 = 1e300;
/// More bets than this make an update slow and nothing better.
const MOST_BETS: usize = 64;

impl EDetector {
    /// With bets of the caller's: between `-1 / (1 - mean)` and `1 / mean`, where `L` cannot become negative.
    ///
    /// # Errors
    /// `mean` not strictly between 0 and 1; no bet, more than 64, or one out of range.
    pub fn new(mean: f64, bets: &[f64], accumulation: Accumulation) -> Result<Self> {
        open_unit("mean", mean)?;
        if bets.is_empty() || bets.len() > MOST_BETS {
            let (name, got) = ("bets", bets.len());
            return Err(if bets.is_empty() {
                StatsError::TooFew { name, least: 1, got }
            } else {
                StatsError::TooMany { name, most: MOST_BETS, got }
            });
        }
        finite("bets", bets)?;
        for &bet in bets {
            // The largest may have been computed as 1 / mean, and be off by the last digit.
            let allowed = bet * mean <= 1.0 + f64::EPSILON && -bet * (1.0 - mean) <= 1.0 + f64::EPSILON;
            in_range("bet", bet, allowed, "a number between -1 / (1 - mean) and 1 / mean")?;
        }
        Ok(Self { mean, accumulation, bets: bets.to_vec(), values: vec![0.0; bets.len()] })
    }

    /// The default: Shiryaev-Roberts with four bets on a higher mean, four on a lower.
    ///
    /// # Errors
    /// `mean` not strictly between 0 and 1.
    pub fn mixture(mean: f64) -> Result<Self> {
        open_unit("mean", mean)?;
        let up = FRACTIONS.iter().map(|fraction| fraction / mean);
        let down = FRACTIONS.iter().map(|fraction| -fraction / (1.0 - mean));
        Self::new(mean, &up.chain(down).collect::<Vec<_>>(), Accumulation::ShiryaevRoberts)
    }

    /// For a mean that may only rise, such as that of errors: Shiryaev-Roberts with two bets on a higher one, which find a rise
    /// sooner than [`mixture`](Self::mixture).
    ///
    /// # Errors
    /// `mean` not strictly between 0 and 1.
    pub fn above(mean: f64) -> Result<Self> {
        open_unit("mean", mean)?;
        let bets = FRACTIONS_ABOVE.map(|fraction| fraction / mean);
        Self::new(mean, &bets, Accumulation::ShiryaevRoberts)
    }

    /// Takes a value.
    ///
    /// # Errors
    /// A value outside 0..=1.
    pub fn update(&mut self, value: f64) -> Result<()> {
        in_range("value", value, (0.0..=1.0).contains(&value), "a number between 0 and 1")?;
        let off = value - self.mean;
        for (bet, m) in self.bets.iter().zip(&mut self.values) {
            let before = match self.accumulation {
                Accumulation::ShiryaevRoberts => *m + 1.0,
                Accumulation::Cusum => m.max(1.0),
            };
            *m = ((1.0 + bet * off) * before).clamp(0.0, LARGEST);
        }
        Ok(())
    }

    /// The natural logarithm of the detector: alarm at `ln(1 / alpha)`.
    pub fn log_e(&self) -> f64 {
        self.value().ln()
    }

    /// Whether it stands at an alarm of level `alpha`. What follows (usually [`reset`](Self::reset)) is the caller's.
    pub fn alarms(&self, alpha: f64) -> bool {
        self.value() >= 1.0 / alpha
    }

    /// Forgets all values.
    pub fn reset(&mut self) {
        self.values.fill(0.0);
    }

    fn value(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// The number of values until the alarm, at most `most`.
    fn run_length(random: &mut Rng, rate: f64, most: u32) -> u32 {
        let mut detector = EDetector::mixture(0.2).unwrap();
        for at in 1..=most {
            detector.update(f64::from(u8::from(random.f64() < rate))).unwrap();
            if detector.alarms(1e-3) {
                return at;
            }
        }
        most
    }

    #[test]
    fn without_a_change_alarms_are_as_far_apart_as_configured() {
        let mut random = Rng::with_seed(23);
        // Cut off at 20,000, so the mean is at most too small.
        let total: u32 = (0..400).map(|_| run_length(&mut random, 0.2, 20_000)).sum();
        assert!(f64::from(total) / 400.0 >= 1_000.0, "{total}");
    }

    #[test]
    fn a_change_is_found_soon() {
        let mut random = Rng::with_seed(29);
        let mut mean = |rate: f64| {
            f64::from((0..200).map(|_| run_length(&mut random, rate, 20_000)).sum::<u32>()) / 200.0
        };
        let (large, small) = (mean(0.4), mean(0.25));
        assert!(large < 80.0 && small < 700.0, "{large} {small}");
    }

    #[test]
    fn a_rise_after_a_long_time_without_one_is_found_soonest_by_bets_on_a_rise() {
        let mut random = Rng::with_seed(31);
        for (rate, most) in [(0.25, 714), (0.3, 240), (0.4, 75)] {
            let mut delays: Vec<u32> = (0..300)
                .map(|_| {
                    let mut detector = EDetector::above(0.2).unwrap();
                    let mut at = 0;
                    while at <= 2_500 || !detector.alarms(1.0 / 50_000.0) {
                        if detector.alarms(1.0 / 50_000.0) {
                            detector.reset();
                        }
                        let rate = if at < 2_500 { 0.2 } else { rate };
                        detector.update(f64::from(u8::from(random.f64() < rate))).unwrap();
                        at += 1;
                    }
                    at - 2_500
                })
                .collect();
            delays.sort_unstable();
            println!("0.2 to {rate}: median {}", delays[150]);
            assert!(delays[150] <= most, "{rate}: {}", delays[150]);
        }
    }

    #[test]
    fn wrong_input_is_refused_and_large_evidence_stays_finite() {
        assert!(EDetector::new(0.0, &[1.0], Accumulation::Cusum).is_err());
        assert!(EDetector::new(0.5, &[], Accumulation::Cusum).is_err());
        assert!(EDetector::new(0.5, &[2.1], Accumulation::Cusum).is_err());
        let mut detector = EDetector::new(0.1, &[10.0], Accumulation::ShiryaevRoberts).unwrap();
        assert!(detector.update(1.5).is_err() && detector.update(f64::NAN).is_err());
        for _ in 0..10_000 {
            detector.update(1.0).unwrap();
        }
        assert!(detector.log_e().is_finite() && detector.alarms(1e-9));
        detector.reset();
        assert_eq!(detector.log_e(), f64::NEG_INFINITY);
    }
}
