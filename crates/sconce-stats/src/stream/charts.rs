use crate::error::{Result, finite, in_range, positive};
use serde::{Deserialize, Serialize};

/// EWMA control chart: an exponentially weighted mean within limits around a known one (Roberts, "Control chart tests based on
/// geometric moving averages", 1959).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EwmaChart {
    mean: f64,
    deviation: f64,
    lambda: f64,
    limit: f64,
    count: u64,
    average: f64,
}

/// A point of an EWMA chart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EwmaPoint {
    /// The weighted mean.
    pub average: f64,
    /// Whether it lies outside the limits.
    pub alarm: bool,
}

impl EwmaChart {
    /// Nothing seen yet of values with known `mean` and standard `deviation`. `lambda` is the weight of the newest, `limit` the reach of
    /// the limits in standard deviations of the weighted mean; 0.2 and 2.7 are usual.
    ///
    /// # Errors
    /// A mean that is not finite, a deviation or limit that is not above 0, `lambda` not in 0..=1 or 0.
    pub fn new(mean: f64, deviation: f64, lambda: f64, limit: f64) -> Result<Self> {
        finite("mean", &[mean])?;
        positive("deviation", deviation)?;
        in_range("lambda", lambda, lambda > 0.0 && lambda <= 1.0, "a number above 0, up to 1")?;
        positive("limit", limit)?;
        Ok(Self { mean, deviation, lambda, limit, count: 0, average: mean })
    }

    /// Takes a value. The chart does not start anew after an alarm.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<EwmaPoint> {
        finite("value", &[value])?;
        self.count += 1;
        let lambda = self.lambda;
        self.average = lambda * value + (1.0 - lambda) * self.average;
        let fading = (1.0 - lambda).powf(2.0 * self.count as f64);
        let deviation = self.deviation * (lambda / (2.0 - lambda) * (1.0 - fading)).sqrt();
        let alarm = (self.average - self.mean).abs() > self.limit * deviation;
        Ok(EwmaPoint { average: self.average, alarm })
    }
}

/// Tabular CUSUM chart: standardised deviations to either side, less an allowance, added up (Page 1954; Montgomery, "Introduction to
/// statistical quality control").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CusumChart {
    mean: f64,
    deviation: f64,
    allowance: f64,
    threshold: f64,
    above: f64,
    below: f64,
}

/// A point of a CUSUM chart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CusumPoint {
    /// What has added up above the mean, in standard deviations.
    pub above: f64,
    /// What has added up below it.
    pub below: f64,
    /// Whether either is over the threshold.
    pub alarm: bool,
}

impl CusumChart {
    /// Nothing seen yet of values with known `mean` and standard `deviation`. An `allowance` of half the shift that matters and a
    /// `threshold` of 4 to 5 are usual, both in standard deviations.
    ///
    /// # Errors
    /// A mean that is not finite, a deviation or threshold that is not above 0, an allowance that is negative.
    pub fn new(mean: f64, deviation: f64, allowance: f64, threshold: f64) -> Result<Self> {
        finite("mean", &[mean, allowance])?;
        positive("deviation", deviation)?;
        in_range("allowance", allowance, allowance >= 0.0, "a number of at least 0")?;
        positive("threshold", threshold)?;
        Ok(Self { mean, deviation, allowance, threshold, above: 0.0, below: 0.0 })
    }

    /// Takes a value. The chart does not start anew after an alarm.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<CusumPoint> {
        finite("value", &[value])?;
        let off = (value - self.mean) / self.deviation;
        self.above = (self.above + off - self.allowance).max(0.0);
        self.below = (self.below - off - self.allowance).max(0.0);
        let alarm = self.above > self.threshold || self.below > self.threshold;
        Ok(CusumPoint { above: self.above, below: self.below, alarm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_of_one_deviation_alarms_within_about_ten_values() {
        let mut ewma = EwmaChart::new(0.0, 1.0, 0.2, 2.7).unwrap();
        let mut cusum = CusumChart::new(0.0, 1.0, 0.5, 5.0).unwrap();
        assert!((0..20).all(|_| !ewma.update(0.0).unwrap().alarm && !cusum.update(0.0).unwrap().alarm));
        assert_eq!((0..20).find(|_| ewma.update(-1.0).unwrap().alarm), Some(10));
        assert_eq!((0..20).find(|_| cusum.update(-1.0).unwrap().alarm), Some(10));
    }

    #[test]
    fn wrong_input_is_refused() {
        assert!(EwmaChart::new(0.0, 0.0, 0.2, 2.7).is_err() && EwmaChart::new(0.0, 1.0, 0.0, 2.7).is_err());
        assert!(
            CusumChart::new(f64::NAN, 1.0, 0.5, 5.0).is_err()
                && CusumChart::new(0.0, 1.0, -0.5, 5.0).is_err()
        );
        assert!(EwmaChart::new(0.0, 1.0, 0.2, 2.7).unwrap().update(f64::INFINITY).is_err());
    }
}
