use crate::Interval;
use crate::error::{Result, StatsError, at_least, finite, open_unit};
use crate::special::{student_t_quantile, student_t_sf};
use serde::{Deserialize, Serialize};

/// What a t-test assumes of the variances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variances {
    /// That they are equal: Student's test, pooled.
    Equal,
    /// Nothing: Welch's test, with Satterthwaite's degrees of freedom.
    Any,
}

/// What [`t_test`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanDifference {
    /// The mean of `x` less that of `y`, in units of its standard error; infinite without any spread.
    pub statistic: f64,
    /// The two-sided p-value.
    pub p_value: f64,
    /// Degrees of freedom.
    pub df: f64,
    /// The interval of the difference of the means.
    pub interval: Interval,
}

/// The t-test of two means, and an interval of their difference at the given confidence, such as 0.95.
///
/// # Errors
///
/// Too few values (Student: one each and three in all; Welch: two each), values that are not finite, a confidence outside
/// (0, 1), all values equal.
pub fn t_test(x: &[f64], y: &[f64], variances: Variances, confidence: f64) -> Result<MeanDifference> {
    let least = if variances == Variances::Any { 2 } else { 1 };
    for (name, sample) in [("x", x), ("y", y)] {
        at_least(name, sample.len(), least)?;
        finite(name, sample)?;
    }
    at_least("x and y", x.len() + y.len(), 3)?;
    open_unit("confidence", confidence)?;
    let (n, m) = (x.len() as f64, y.len() as f64);
    let ((x_mean, x_squares), (y_mean, y_squares)) = (mean_and_squares(x), mean_and_squares(y));
    let difference = x_mean - y_mean;
    let (df, standard_error) = match variances {
        Variances::Equal => {
            let df = n + m - 2.0;
            let variance = (x_squares + y_squares) / df;
            (df, (variance * (1.0 / n + 1.0 / m)).sqrt())
        }
        Variances::Any => {
            let (a, b) = (x_squares / (n - 1.0) / n, y_squares / (m - 1.0) / m);
            let df = (a + b).powi(2) / (a * a / (n - 1.0) + b * b / (m - 1.0));
            // Without any spread nothing is estimated.
            (if df.is_nan() { 1.0 } else { df }, (a + b).sqrt())
        }
    };
    let statistic = difference / standard_error;
    if statistic.is_nan() {
        return Err(StatsError::Undefined { reason: "all values are equal, or too large" });
    }
    let p_value = 2.0 * student_t_sf(statistic.abs(), df);
    let half_width = if standard_error > 0.0 {
        student_t_quantile(0.5 + confidence / 2.0, df) * standard_error
    } else {
        0.0
    };
    Ok(MeanDifference { statistic, p_value, df, interval: Interval::around(difference, half_width) })
}

/// The mean, and the sum of squared differences from it.
fn mean_and_squares(sample: &[f64]) -> (f64, f64) {
    let n = sample.len() as f64;
    let mean = sample.iter().sum::<f64>() / n;
    // The mean of equal values is that value, whatever rounding makes of their sum.
    let mean = if sample.iter().all(|&value| value == sample[0]) { sample[0] } else { mean };
    (mean, sample.iter().map(|value| (value - mean).powi(2)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_decided_or_refused() {
        let test = |x: &[f64], y: &[f64], variances| t_test(x, y, variances, 0.95);
        let apart = test(&[0.1; 9], &[0.3; 8], Variances::Any).unwrap();
        assert_eq!((apart.statistic, apart.p_value, apart.df), (f64::NEG_INFINITY, 0.0, 1.0));
        assert_eq!(apart.interval.low, apart.interval.high);
        assert!(matches!(test(&[0.1; 9], &[0.1; 8], Variances::Equal), Err(StatsError::Undefined { .. })));
        assert!(matches!(test(&[0.1], &[0.1, 0.2], Variances::Any), Err(StatsError::TooFew { .. })));
        assert!(test(&[0.1], &[0.1, 0.2], Variances::Equal).is_ok());
        assert!(matches!(test(&[0.1], &[0.1], Variances::Equal), Err(StatsError::TooFew { .. })));
        assert!(t_test(&[0.1, 0.2], &[0.1, 0.2], Variances::Any, 1.0).is_err());
    }

    #[test]
    fn more_confidence_is_a_wider_interval() {
        let (x, y) = ([1.0, 2.0, 4.0], [2.0, 5.0, 6.0, 7.0]);
        let width = |confidence| {
            let interval = t_test(&x, &y, Variances::Any, confidence).unwrap().interval;
            interval.high - interval.low
        };
        assert!(width(0.99) > width(0.95) && width(0.95) > width(0.5));
    }
}
