use crate::error::{Result, StatsError, at_least, finite, in_range, same_length};

/// A sample, each value with a weight of its own or all alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted<'a> {
    /// The values.
    pub values: &'a [f64],
    /// A weight of at least 0 for each; they need not add up to 1.
    pub weights: Option<&'a [f64]>,
}

impl<'a> From<&'a [f64]> for Weighted<'a> {
    fn from(values: &'a [f64]) -> Self {
        Self { values, weights: None }
    }
}

/// The Wasserstein-1 (earth mover's) distance, in the unit of the values: the area between the distribution functions.
///
/// # Errors
///
/// Samples that are empty, or not finite, or whose range is not; weights that are fewer, negative or all 0.
pub fn wasserstein<'a>(x: impl Into<Weighted<'a>>, y: impl Into<Weighted<'a>>) -> Result<f64> {
    between(x.into(), y.into(), |difference| difference.abs())
}

/// The energy distance, in the root of the unit of the values: `sqrt(2 integral (F - G)^2)`.
///
/// # Errors
///
/// As [`wasserstein`].
pub fn energy<'a>(x: impl Into<Weighted<'a>>, y: impl Into<Weighted<'a>>) -> Result<f64> {
    Ok((2.0 * between(x.into(), y.into(), |difference| difference * difference)?).sqrt())
}

fn between(x: Weighted<'_>, y: Weighted<'_>, cost: impl Fn(f64) -> f64) -> Result<f64> {
    let ((x, x_total), (y, y_total)) = (masses("x", x)?, masses("y", y)?);
    let integral = sweep(x.into_iter(), y.into_iter(), x_total, y_total, cost);
    if integral.is_finite() {
        Ok(integral)
    } else {
        Err(StatsError::Undefined { reason: "the range of the values is not finite" })
    }
}

/// The values with their weights, ascending, and the sum of the weights.
fn masses(name: &'static str, sample: Weighted<'_>) -> Result<(Vec<(f64, f64)>, f64)> {
    at_least(name, sample.values.len(), 1)?;
    finite(name, sample.values)?;
    let mut masses: Vec<(f64, f64)> = match sample.weights {
        None => sample.values.iter().map(|&value| (value, 1.0)).collect(),
        Some(weights) => {
            same_length((name, sample.values.len()), ("weights", weights.len()))?;
            for &weight in weights {
                in_range("weights", weight, weight >= 0.0, "a weight of at least 0")?;
            }
            sample.values.iter().copied().zip(weights.iter().copied()).collect()
        }
    };
    let total: f64 = masses.iter().map(|mass| mass.1).sum();
    if total == 0.0 || !total.is_finite() {
        return Err(StatsError::Undefined { reason: "the weights add up to 0, or not to a finite sum" });
    }
    masses.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    Ok((masses, total))
}

/// The integral of the cost of the difference between the distribution functions.
fn sweep(
    x: impl Iterator<Item = (f64, f64)>,
    y: impl Iterator<Item = (f64, f64)>,
    x_total: f64,
    y_total: f64,
    cost: impl Fn(f64) -> f64,
) -> f64 {
    let (mut x, mut y) = (x.peekable(), y.peekable());
    let (mut f, mut g, mut sum) = (0.0, 0.0, 0.0);
    let mut at: Option<f64> = None;
    loop {
        let from_x = match (x.peek(), y.peek()) {
            (Some(a), Some(b)) => a.0 <= b.0,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return sum,
        };
        let Some((value, weight)) = (if from_x { x.next() } else { y.next() }) else { return sum };
        if let Some(last) = at {
            sum += cost(f / x_total - g / y_total) * (value - last);
        }
        if from_x {
            f += weight
        } else {
            g += weight
        }
        at = Some(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_is_moved_as_far_as_it_is() {
        let x = [0.0, 1.0, 5.0];
        let y = x.map(|value| value + 2.5);
        assert!((wasserstein(&x[..], &y[..]).unwrap() - 2.5).abs() < 1e-15);
        // A weight is as many equal values.
        let weighted = Weighted { values: &[5.0, 1.0], weights: Some(&[2.0, 1.0]) };
        let repeated = [1.0, 5.0, 5.0];
        assert_eq!(energy(weighted, &y[..]).unwrap(), energy(&repeated[..], &y[..]).unwrap());
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let of = |values, weights| wasserstein(Weighted { values, weights }, &[1.0][..]);
        assert!(of(&[], None).is_err() && of(&[f64::NAN], None).is_err());
        assert!(of(&[1.0], Some(&[])).is_err() && of(&[1.0], Some(&[0.0])).is_err());
        assert!(wasserstein(&[f64::MIN, f64::MAX][..], &[f64::MIN][..]).is_err());
        assert!(of(&[1.0], Some(&[-1.0])).is_err() && of(&[1.0], Some(&[f64::NAN])).is_err());
    }
}
