use crate::error::{Result, StatsError, in_range};
use serde::{Deserialize, Serialize};

/// Between which a metric of a chunk is as it was in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Below it something is wrong; `None` if nothing is too low.
    pub lower: Option<f64>,
    /// Above it something is wrong; `None` if nothing is too high.
    pub upper: Option<f64>,
}

impl Thresholds {
    /// With ends that cannot be passed moved to `low` and `high`, the ends of the metric's range.
    #[must_use]
    pub fn within(self, low: f64, high: f64) -> Self {
        Self { lower: self.lower.map(|end| end.max(low)), upper: self.upper.map(|end| end.min(high)) }
    }

    /// Whether `value` lies outside. NaN does not.
    pub fn alert(&self, value: f64) -> bool {
        self.lower.is_some_and(|end| value < end) || self.upper.is_some_and(|end| value > end)
    }
}

/// The mean of a metric over chunks of the reference, less `lower` and plus `upper` of its standard deviations (over n). NaN values
/// are left out.
///
/// # Errors
/// No value that is not NaN, an infinite one; multipliers that are negative or not finite.
pub fn deviation_thresholds(values: &[f64], lower: Option<f64>, upper: Option<f64>) -> Result<Thresholds> {
    for multiplier in [lower, upper].into_iter().flatten() {
        let fits = multiplier >= 0.0 && multiplier.is_finite();
        in_range("multiplier", multiplier, fits, "a finite number of at least 0")?;
    }
    let known: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    let n = known.len() as f64;
    let mean = known.iter().sum::<f64>() / n;
    let deviation = (known.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / n).sqrt();
    if !(mean.is_finite() && deviation.is_finite()) {
        return Err(StatsError::Undefined { reason: "no value is known, or one is infinite" });
    }
    Ok(Thresholds {
        lower: lower.map(|multiplier| mean - deviation * multiplier),
        upper: upper.map(|multiplier| mean + deviation * multiplier),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_stay_within_the_range_of_the_metric() {
        let wide = deviation_thresholds(&[0.1, 0.9, f64::NAN], Some(3.0), Some(3.0)).unwrap();
        assert_eq!(wide.within(0.0, 1.0), Thresholds { lower: Some(0.0), upper: Some(1.0) });
        let tight = deviation_thresholds(&[0.5, 0.5], Some(3.0), None).unwrap();
        assert!(tight.alert(0.4) && !tight.alert(0.9) && !tight.alert(f64::NAN));
        assert!(deviation_thresholds(&[f64::NAN], None, None).is_err());
        assert!(deviation_thresholds(&[1.0], Some(-1.0), None).is_err());
    }
}
