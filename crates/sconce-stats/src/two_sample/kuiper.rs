use super::pooled::{sorted, steps};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// What [`kuiper`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kuiper {
    /// V, the most that one distribution function is above the other plus the most that it is below.
    pub statistic: f64,
    /// V in units of the limiting distribution.
    pub lambda: f64,
    /// The p-value, asymptotic.
    pub p_value: f64,
}

/// Kuiper's test of two samples: like Kolmogorov–Smirnov, but as sensitive in the tails as near the median, and independent
/// of where a cycle starts. Asymptotic, with Stephens' correction for finite samples (1970).
///
/// # Errors
///
/// Samples that are empty or not finite.
pub fn kuiper(x: &[f64], y: &[f64]) -> Result<Kuiper> {
    let (x, y) = (sorted("x", x, 1)?, sorted("y", y, 1)?);
    let (n, m) = (x.len() as f64, y.len() as f64);
    let (mut above, mut below) = (0.0_f64, 0.0_f64);
    for step in steps(&x, &y) {
        let difference = step.reached[0] as f64 / n - step.reached[1] as f64 / m;
        above = above.max(difference);
        below = below.max(-difference);
    }
    let statistic = above + below;
    let root = (n * m / (n + m)).sqrt();
    let lambda = statistic * (root + 0.155 + 0.24 / root);
    Ok(Kuiper { statistic, lambda, p_value: limit_sf(lambda) })
}

fn limit_sf(lambda: f64) -> f64 {
    // Below, the sum differs from 1 by less than a float can say.
    if lambda < 0.4 {
        return 1.0;
    }
    let mut sum = 0.0;
    for j in 1..200 {
        let square = (f64::from(j) * lambda).powi(2);
        let term = (4.0 * square - 1.0) * (-2.0 * square).exp();
        sum += term;
        if term.abs() < sum.abs() * 1e-17 {
            break;
        }
    }
    (2.0 * sum).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_may_start_anywhere() {
        let x = [0.1, 0.2, 0.5, 0.7];
        let y = [0.15, 0.3, 0.6, 0.65, 0.9];
        let turned =
            |sample: &[f64]| -> Vec<f64> { sample.iter().map(|value| (value + 0.45) % 1.0).collect() };
        let (straight, turned) = (kuiper(&x, &y).unwrap(), kuiper(&turned(&x), &turned(&y)).unwrap());
        assert!((straight.statistic - turned.statistic).abs() < 1e-12, "{straight:?} {turned:?}");
        assert_eq!(kuiper(&x, &x).unwrap().p_value, 1.0);
        assert!(kuiper(&[], &x).is_err());
    }
}
