use crate::error::{Result, StatsError, finite, in_range, open_unit};
use crate::interval::Interval;
use crate::special::{student_t_quantile, student_t_sf};
use serde::{Deserialize, Serialize};

/// How much larger the treatment is than the control.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Treatment less control.
    pub difference: f64,
    /// Its confidence interval, at the level that was asked for.
    pub interval: Interval,
    /// t or z.
    pub statistic: f64,
    /// Degrees of freedom of t; infinite for z.
    pub df: f64,
    /// Two-sided.
    pub p_value: f64,
}

/// Count, mean and variance of values that come one at a time (Welford's method); mergeable.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Takes a value.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<()> {
        finite("value", &[value])?;
        self.count += 1;
        let off = value - self.mean;
        self.mean += off / self.count as f64;
        self.squares += off * (value - self.mean);
        Ok(())
    }

    /// Takes all that `other` took.
    pub fn merge(&mut self, other: &Self) {
        let (n, m) = (self.count as f64, other.count as f64);
        if other.count == 0 {
            return;
        }
        let off = other.mean - self.mean;
        self.mean += off * m / (n + m);
        self.squares += other.squares + off * off * n * m / (n + m);
        self.count += other.count;
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 before the first.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Their unbiased variance; NaN for fewer than two.
    pub fn variance(&self) -> f64 {
        if self.count < 2 { f64::NAN } else { self.squares.max(0.0) / (self.count - 1) as f64 }
    }
}

/// Means, variances and covariance of pairs that come one at a time; mergeable. What a pair is, its user says: an outcome and
/// what was known before, or a numerator and its denominator.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PairedMoments {
    first: Moments,
    second: Moments,
    products: f64,
}

impl PairedMoments {
    /// Takes a pair.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, first: f64, second: f64) -> Result<()> {
        finite("pair", &[first, second])?;
        let off = first - self.first.mean;
        self.first.update(first)?;
        self.second.update(second)?;
        self.products += off * (second - self.second.mean);
        Ok(())
    }

    /// Takes all that `other` took.
    pub fn merge(&mut self, other: &Self) {
        let (n, m) = (self.first.count as f64, other.first.count as f64);
        if other.first.count == 0 {
            return;
        }
        let off = (other.first.mean - self.first.mean, other.second.mean - self.second.mean);
        self.products += other.products + off.0 * off.1 * n * m / (n + m);
        self.first.merge(&other.first);
        self.second.merge(&other.second);
    }

    /// Moments of the first of each pair.
    pub fn first(&self) -> &Moments {
        &self.first
    }

    /// Moments of the second of each pair.
    pub fn second(&self) -> &Moments {
        &self.second
    }

    /// Their unbiased covariance; NaN for fewer than two pairs.
    pub fn covariance(&self) -> f64 {
        if self.first.count < 2 { f64::NAN } else { self.products / (self.first.count - 1) as f64 }
    }
}

/// The difference of two means, by Welch's t-test with the degrees of freedom of Satterthwaite.
///
/// # Errors
/// Fewer than two values on a side, no variance on both, `alpha` not strictly between 0 and 1.
pub fn mean_difference(control: &Moments, treatment: &Moments, alpha: f64) -> Result<Effect> {
    open_unit("alpha", alpha)?;
    let side = |moments: &Moments| (moments.count as f64, moments.mean, moments.variance());
    welch(side(control), side(treatment), alpha)
}

/// An experiment adjusted by what was known of its units before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cuped {
    /// How much of the covariate is taken off.
    pub theta: f64,
    /// The adjusted effect.
    pub effect: Effect,
    /// The share of the outcome's variance that is gone.
    pub variance_reduction: f64,
}

/// The difference of means adjusted by a covariate from before the experiment: Welch's test of `y - theta (x - mean(x))`, with
/// theta the covariance over the variance of all units together (Deng, Xu, Kohavi and Walker, "Improving the sensitivity of
/// online controlled experiments", 2013). Pairs are outcome and covariate.
///
/// # Errors
/// As [`mean_difference`], and a covariate or outcome without variance.
pub fn cuped(control: &PairedMoments, treatment: &PairedMoments, alpha: f64) -> Result<Cuped> {
    open_unit("alpha", alpha)?;
    let mut all = *control;
    all.merge(treatment);
    let theta = all.covariance() / all.second.variance();
    if !theta.is_finite() {
        return Err(StatsError::Undefined { reason: "the covariate has no variance" });
    }
    let adjusted = |side: &PairedMoments| {
        let variance =
            side.first.variance() - 2.0 * theta * side.covariance() + theta * theta * side.second.variance();
        let mean = side.first.mean - theta * (side.second.mean - all.second.mean);
        (side.first.count as f64, mean, variance.max(0.0))
    };
    let (of_control, of_treatment) = (adjusted(control), adjusted(treatment));
    let before = control.first.variance() + treatment.first.variance();
    let effect = welch(of_control, of_treatment, alpha)?;
    Ok(Cuped { theta, effect, variance_reduction: 1.0 - (of_control.2 + of_treatment.2) / before })
}

/// The difference of two ratios of sums, such as clicks a view over users.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RatioEffect {
    /// Sum of numerators over sum of denominators, of the control and of the treatment.
    pub ratios: (f64, f64),
    /// The variances of both.
    pub variances: (f64, f64),
    /// Their difference.
    pub effect: Effect,
}

/// The difference of two ratio metrics, whose units are pairs of numerator and denominator, by the delta method (Deng, Knoblich
/// and Lu, "Applying the delta method in metric analytics", 2018).
///
/// # Errors
/// Fewer than two units on a side, a denominator whose mean is not above 0, no variance, `alpha` not strictly between 0 and 1.
pub fn ratio_difference(
    control: &PairedMoments,
    treatment: &PairedMoments,
    alpha: f64,
) -> Result<RatioEffect> {
    open_unit("alpha", alpha)?;
    let ratio = |side: &PairedMoments| -> Result<(f64, f64)> {
        let mean = side.second.mean;
        in_range("denominator", mean, mean > 0.0, "a mean above 0")?;
        let ratio = side.first.mean / mean;
        let spread =
            side.first.variance() - 2.0 * ratio * side.covariance() + ratio * ratio * side.second.variance();
        Ok((ratio, spread.max(0.0) / (side.first.count as f64 * mean * mean)))
    };
    let ((of_control, v), (of_treatment, w)) = (ratio(control)?, ratio(treatment)?);
    let effect = super::normal_effect(of_treatment - of_control, (v + w).sqrt(), alpha)?;
    Ok(RatioEffect { ratios: (of_control, of_treatment), variances: (v, w), effect })
}

/// Each side is count, mean and variance.
fn welch(control: (f64, f64, f64), treatment: (f64, f64, f64), alpha: f64) -> Result<Effect> {
    for (name, count) in [("control", control.0), ("treatment", treatment.0)] {
        in_range(name, count, count >= 2.0, "at least two values")?;
    }
    let (v, w) = (control.2 / control.0, treatment.2 / treatment.0);
    let error = (v + w).sqrt();
    if !(error > 0.0 && error.is_finite()) {
        return Err(StatsError::Undefined { reason: "the data has no variance" });
    }
    let df = (v + w) * (v + w) / (v * v / (control.0 - 1.0) + w * w / (treatment.0 - 1.0));
    let difference = treatment.1 - control.1;
    let statistic = difference / error;
    Ok(Effect {
        difference,
        interval: Interval::around(difference, student_t_quantile(1.0 - alpha / 2.0, df) * error),
        statistic,
        df,
        p_value: 2.0 * student_t_sf(statistic.abs(), df),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_moments_are_those_of_all_values() {
        let pairs: Vec<(f64, f64)> =
            (0..50).map(|i| (f64::from(i * i % 17), f64::from(i * 7 % 13))).collect();
        let all = |pairs: &[(f64, f64)]| {
            let mut moments = PairedMoments::default();
            pairs.iter().for_each(|&(a, b)| moments.update(a, b).unwrap());
            moments
        };
        let (whole, mut left) = (all(&pairs), all(&pairs[..20]));
        left.merge(&all(&pairs[20..]));
        left.merge(&PairedMoments::default());
        assert_eq!(left.first().count(), 50);
        for (a, b) in [
            (left.first().mean(), whole.first().mean()),
            (left.second().variance(), whole.second().variance()),
            (left.covariance(), whole.covariance()),
        ] {
            assert!((a - b).abs() < 1e-12 * b.abs().max(1.0), "{a} {b}");
        }
    }

    #[test]
    fn too_little_data_is_refused() {
        let mut one = Moments::default();
        one.update(1.0).unwrap();
        let mut constant = one;
        constant.update(1.0).unwrap();
        assert!(mean_difference(&one, &constant, 0.05).is_err());
        assert!(mean_difference(&constant, &constant, 0.05).is_err());
        assert!(one.update(f64::NAN).is_err());
        let none = PairedMoments::default();
        assert!(cuped(&none, &none, 0.05).is_err() && ratio_difference(&none, &none, 0.05).is_err());
    }
}
