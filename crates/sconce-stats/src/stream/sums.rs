use super::Signal;
use crate::error::{Result, finite, in_range};
use serde::{Deserialize, Serialize};

/// How [`PageHinkley`] looks for changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PageHinkleyConfig {
    /// Values before the first alarm.
    pub min_instances: u64,
    /// The change that is tolerated.
    pub delta: f64,
    /// The alarm's threshold.
    pub threshold: f64,
    /// What is kept of a sum with each value, from 0 to 1.
    pub alpha: f64,
    /// Whether a rise of the mean is looked for.
    pub up: bool,
    /// Whether a fall of it is.
    pub down: bool,
}

impl Default for PageHinkleyConfig {
    fn default() -> Self {
        Self { min_instances: 30, delta: 0.005, threshold: 50.0, alpha: 0.9999, up: true, down: true }
    }
}

/// The Page-Hinkley test: cumulative deviations from the running mean, against their extremes (Page, "Continuous inspection
/// schemes", 1954).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PageHinkley {
    config: PageHinkleyConfig,
    count: u64,
    mean: f64,
    rise: f64,
    fall: f64,
    lowest_rise: f64,
    highest_fall: f64,
    drifted: bool,
}

impl PageHinkley {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// A setting that is not finite, `alpha` not in 0..=1.
    pub fn new(config: PageHinkleyConfig) -> Result<Self> {
        finite("settings", &[config.delta, config.threshold])?;
        in_range("alpha", config.alpha, (0.0..=1.0).contains(&config.alpha), "a number between 0 and 1")?;
        Ok(Self {
            config,
            count: 0,
            mean: 0.0,
            rise: 0.0,
            fall: 0.0,
            lowest_rise: f64::INFINITY,
            // As the reference has it: a fall is counted from at least here.
            highest_fall: -1.0,
            drifted: false,
        })
    }

    /// Takes a value, and says whether the mean has changed.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<bool> {
        finite("value", &[value])?;
        if self.drifted {
            *self = Self::new(self.config.clone())?;
        }
        let PageHinkleyConfig { delta, threshold, alpha, .. } = self.config;
        self.count += 1;
        self.mean += (value - self.mean) / self.count as f64;
        let off = value - self.mean;
        self.rise = alpha * self.rise + off - delta;
        self.fall = alpha * self.fall + off + delta;
        self.lowest_rise = self.lowest_rise.min(self.rise);
        self.highest_fall = self.highest_fall.max(self.fall);
        let rose = self.config.up && self.rise - self.lowest_rise > threshold;
        let fell = self.config.down && self.highest_fall - self.fall > threshold;
        self.drifted = self.count >= self.config.min_instances && (rose || fell);
        Ok(self.drifted)
    }
}

/// Which sum of deviations from the running mean [`DriftingSum`] follows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sums {
    /// `max(0, sum + x - mean - delta)`.
    Cusum {
        /// The change that is tolerated.
        delta: f64,
    },
    /// `alpha sum + (1 - alpha) (x - mean)`.
    GeometricMovingAverage {
        /// What is kept of the sum with each value, from 0 to 1.
        alpha: f64,
    },
    /// `alpha sum + x - mean - delta`, against the threshold itself and not the lowest sum so far.
    PageHinkley {
        /// The change that is tolerated.
        delta: f64,
        /// What is kept of the sum with each value, from 0 to 1.
        alpha: f64,
    },
}

/// A sum of deviations from the running mean with an alarm above a threshold: the rises of the mean that frouros looks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftingSum {
    kind: Sums,
    threshold: f64,
    min_instances: u64,
    count: u64,
    mean: f64,
    sum: f64,
    drifted: bool,
}

impl DriftingSum {
    /// Nothing seen yet; alarms above `threshold`, from the value number `min_instances` on.
    ///
    /// # Errors
    /// A setting that is not finite, an alpha not in 0..=1.
    pub fn new(kind: Sums, threshold: f64, min_instances: u64) -> Result<Self> {
        let (delta, alpha) = match kind {
            Sums::Cusum { delta } => (delta, 1.0),
            Sums::GeometricMovingAverage { alpha } => (0.0, alpha),
            Sums::PageHinkley { delta, alpha } => (delta, alpha),
        };
        finite("settings", &[threshold, delta])?;
        in_range("alpha", alpha, (0.0..=1.0).contains(&alpha), "a number between 0 and 1")?;
        Ok(Self { kind, threshold, min_instances, count: 0, mean: 0.0, sum: 0.0, drifted: false })
    }

    /// Takes a value. There are no warnings.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<Signal> {
        finite("value", &[value])?;
        if self.drifted {
            (self.count, self.mean, self.sum) = (0, 0.0, 0.0);
        }
        self.count += 1;
        self.mean += (value - self.mean) / self.count as f64;
        let off = value - self.mean;
        self.sum = match self.kind {
            Sums::Cusum { delta } => (self.sum + value - self.mean - delta).max(0.0),
            Sums::GeometricMovingAverage { alpha } => alpha * self.sum + (1.0 - alpha) * off,
            Sums::PageHinkley { delta, alpha } => alpha * self.sum + (off - delta),
        };
        self.drifted = self.count >= self.min_instances && self.sum > self.threshold;
        Ok(Signal { drift: self.drifted, warning: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fall_is_found_only_where_it_is_looked_for() {
        let found = |up, down| {
            let config = PageHinkleyConfig { threshold: 5.0, up, down, ..PageHinkleyConfig::default() };
            let mut test = PageHinkley::new(config).unwrap();
            (0..200).any(|at| test.update(if at < 100 { 1.0 } else { 0.0 }).unwrap())
        };
        assert!(found(true, true) && found(false, true) && !found(true, false));
        let wrong = PageHinkleyConfig { alpha: 1.5, ..PageHinkleyConfig::default() };
        assert!(PageHinkley::new(wrong).is_err());
    }

    #[test]
    fn a_sum_starts_anew_after_its_alarm() {
        let mut sum = DriftingSum::new(Sums::Cusum { delta: 0.0 }, 3.0, 1).unwrap();
        let alarms = (0..200).filter(|at| sum.update(if *at < 50 { 0.0 } else { 1.0 }).unwrap().drift);
        assert_eq!(alarms.collect::<Vec<_>>(), [53]);
        assert!(DriftingSum::new(Sums::Cusum { delta: f64::NAN }, 3.0, 1).is_err());
        assert!(sum.update(f64::NAN).is_err());
    }
}
