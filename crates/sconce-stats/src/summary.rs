//! What a sample looks like in a few numbers, with and without trust in its tails.

use crate::bins::quantile_of_sorted;
use crate::error::{Result, StatsError, at_least, finite};
use crate::interval::Interval;
use serde::{Deserialize, Serialize};

/// The median absolute deviation of normal values times this is their standard deviation: `1 / normal_quantile(3/4)`.
const NORMAL_CONSISTENCY: f64 = 1.482_602_218_505_602;

/// A sample in a few numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The standard deviation, over n - 1; NaN for one value.
    pub deviation: f64,
    /// The third standardised moment, over n; NaN without variance.
    pub skewness: f64,
    /// The fourth, less the normal distribution's 3.
    pub excess_kurtosis: f64,
    /// The median.
    pub median: f64,
    /// The median distance from the median, scaled to be the standard deviation of normal values.
    pub scaled_mad: f64,
    /// The quartiles.
    pub quartiles: Interval,
}

impl Summary {
    /// Of at least one value.
    ///
    /// # Errors
    /// No value, values that are not finite or so large that their moments are not.
    pub fn of(values: &[f64]) -> Result<Self> {
        at_least("values", values.len(), 1)?;
        finite("values", values)?;
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let moment = |power: i32| values.iter().map(|value| (value - mean).powi(power)).sum::<f64>() / n;
        let (second, third, fourth) = (moment(2), moment(3), moment(4));
        if !fourth.is_finite() {
            return Err(StatsError::Undefined { reason: "the values are too large for their moments" });
        }
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let median = quantile_of_sorted(&sorted, 0.5);
        let quartiles =
            Interval { low: quantile_of_sorted(&sorted, 0.25), high: quantile_of_sorted(&sorted, 0.75) };
        sorted.iter_mut().for_each(|value| *value = (*value - median).abs());
        sorted.sort_unstable_by(f64::total_cmp);
        Ok(Self {
            mean,
            deviation: (second * n / (n - 1.0)).sqrt(),
            skewness: third / second.powf(1.5),
            excess_kurtosis: fourth / (second * second) - 3.0,
            median,
            scaled_mad: NORMAL_CONSISTENCY * quantile_of_sorted(&sorted, 0.5),
            quartiles,
        })
    }

    /// Tukey's fences: beyond them, 1.5 times the distance of the quartiles outside these, a value is an outlier.
    pub fn fences(&self) -> Interval {
        let Interval { low, high } = self.quartiles;
        Interval { low: low - 1.5 * (high - low), high: high + 1.5 * (high - low) }
    }

    /// How many robust standard deviations `value` lies from the median; infinite if half of the sample is one other value.
    pub fn robust_z(&self, value: f64) -> f64 {
        let off = value - self.median;
        if off == 0.0 { 0.0 } else { off / self.scaled_mad }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_moves_the_mean_and_not_the_median() {
        let summary = Summary::of(&[1.0, 2.0, 3.0, 4.0, 1_000.0]).unwrap();
        assert_eq!((summary.median, summary.quartiles.low, summary.quartiles.high), (3.0, 2.0, 4.0));
        assert_eq!((summary.fences().low, summary.fences().high), (-1.0, 7.0));
        assert!(summary.mean > 200.0 && summary.robust_z(1_000.0) > 600.0 && summary.skewness > 1.0);
    }

    #[test]
    fn one_value_and_constants_have_no_spread() {
        let one = Summary::of(&[2.0]).unwrap();
        assert!(one.deviation.is_nan() && one.skewness.is_nan());
        assert_eq!((one.robust_z(2.0), one.robust_z(3.0)), (0.0, f64::INFINITY));
        assert!(
            Summary::of(&[]).is_err()
                && Summary::of(&[f64::NAN]).is_err()
                && Summary::of(&[1e200, 0.0]).is_err()
        );
    }
}
