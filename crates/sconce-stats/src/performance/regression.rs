use crate::error::{Result, at_least, finite, in_range, same_length};
use serde::{Deserialize, Serialize};

/// How far predictions of numbers are off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Regression {
    /// Mean absolute error.
    pub mean_absolute_error: f64,
    /// Mean squared error.
    pub mean_squared_error: f64,
    /// Its root.
    pub root_mean_squared_error: f64,
    /// Median absolute error.
    pub median_absolute_error: f64,
    /// The largest absolute error.
    pub max_error: f64,
    /// Prediction less target, on average: above 0 if predictions are too high.
    pub bias: f64,
    /// Mean of the error over the target, which is taken for at least 2^-52.
    pub mean_absolute_percentage_error: f64,
    /// Mean of twice the error over the sum of both sizes, 0/0 being 0; from 0 to 2.
    pub symmetric_percentage_error: f64,
    /// Mean squared difference of `ln(1 + x)`; NaN with a negative value.
    pub mean_squared_log_error: f64,
    /// Share of the target's variance that is explained; NaN for one value. For a constant target 1 if perfect, else 0.
    pub r_squared: f64,
    /// The same without the bias.
    pub explained_variance: f64,
}

/// All of [`Regression`] at once.
///
/// # Errors
/// No value, different lengths, values that are not finite or so large that squares are not.
pub fn regression(targets: &[f64], predictions: &[f64]) -> Result<Regression> {
    check(targets, predictions)?;
    let n = targets.len() as f64;
    let mean = |of: &dyn Fn(f64, f64) -> f64| {
        targets.iter().zip(predictions).map(|(&y, &p)| of(y, p)).sum::<f64>() / n
    };
    let mut sizes: Vec<f64> = targets.iter().zip(predictions).map(|(y, p)| (y - p).abs()).collect();
    sizes.sort_unstable_by(f64::total_cmp);
    let middle = sizes.len() / 2;
    let median = if sizes.len() % 2 == 1 { sizes[middle] } else { 0.5 * (sizes[middle - 1] + sizes[middle]) };

    let squared = mean(&|y, p| (y - p) * (y - p));
    let (target, error) = (mean(&|y, _| y), mean(&|y, p| y - p));
    let target_variance = mean(&|y, _| (y - target) * (y - target));
    let error_variance = mean(&|y, p| (y - p - error) * (y - p - error));
    let explained = |unexplained: f64| match (unexplained == 0.0, target_variance == 0.0) {
        (true, _) => 1.0,
        (false, true) => 0.0,
        (false, false) => 1.0 - unexplained / target_variance,
    };
    let negative = targets.iter().chain(predictions).any(|&value| value < 0.0);
    let symmetric = |y: f64, p: f64| {
        let size = y.abs() + p.abs();
        if size == 0.0 { 0.0 } else { 2.0 * (y - p).abs() / size }
    };
    Ok(Regression {
        mean_absolute_error: mean(&|y, p| (y - p).abs()),
        mean_squared_error: squared,
        root_mean_squared_error: squared.sqrt(),
        median_absolute_error: median,
        max_error: sizes[sizes.len() - 1],
        bias: mean(&|y, p| p - y),
        mean_absolute_percentage_error: mean(&|y, p| (y - p).abs() / y.abs().max(f64::EPSILON)),
        symmetric_percentage_error: mean(&symmetric),
        mean_squared_log_error: if negative {
            f64::NAN
        } else {
            mean(&|y, p| (y.ln_1p() - p.ln_1p()).powi(2))
        },
        r_squared: if targets.len() < 2 { f64::NAN } else { explained(squared) },
        explained_variance: explained(error_variance),
    })
}

impl Regression {
    /// Mean pinball loss of predictions of the quantile `level`.
    ///
    /// # Errors
    /// As [`regression`]; `level` not in 0..=1.
    pub fn pinball_loss(targets: &[f64], predictions: &[f64], level: f64) -> Result<f64> {
        check(targets, predictions)?;
        in_range("level", level, (0.0..=1.0).contains(&level), "a number between 0 and 1")?;
        let loss = |(y, p): (&f64, &f64)| (level * (y - p)).max((level - 1.0) * (y - p));
        Ok(targets.iter().zip(predictions).map(loss).sum::<f64>() / targets.len() as f64)
    }
}

fn check(targets: &[f64], predictions: &[f64]) -> Result<()> {
    /// Squares of such, and their sums, are finite.
    const LARGEST: f64 = 1e150;
    at_least("targets", targets.len(), 1)?;
    same_length(("targets", targets.len()), ("predictions", predictions.len()))?;
    for (name, values) in [("targets", targets), ("predictions", predictions)] {
        finite(name, values)?;
        if let Some(&value) = values.iter().find(|value| value.abs() > LARGEST) {
            in_range(name, value, false, "numbers of at most 1e150")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_offset_is_bias_and_nothing_else() {
        let result = regression(&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0]).unwrap();
        assert_eq!((result.bias, result.mean_absolute_error, result.explained_variance), (1.0, 1.0, 1.0));
        assert_eq!(result.r_squared, -0.5);
    }

    #[test]
    fn wrong_input_is_refused() {
        assert!(regression(&[], &[]).is_err() && regression(&[1.0], &[f64::NAN]).is_err());
        assert!(
            regression(&[1e200], &[0.0]).is_err() && Regression::pinball_loss(&[1.0], &[1.0], 2.0).is_err()
        );
    }
}
