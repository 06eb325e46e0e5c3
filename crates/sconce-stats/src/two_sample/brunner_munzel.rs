use super::pooled::{sorted, steps, twice_rank};
use crate::TestResult;
use crate::error::{Result, StatsError};
use crate::special::student_t_sf;

/// The Brunner–Munzel test: is a value of `y` as likely above one of `x` as below, whatever their spreads? (Brunner and
/// Munzel, 2000.) A positive statistic is `y` tending to larger values; the two-sided p-value is Student's, with
/// Satterthwaite's degrees of freedom.
///
/// Samples that do not overlap have an infinite statistic and no p-value: NaN, as the variance estimate is 0.
///
/// # Errors
///
/// Fewer than two values in a sample, values that are not finite, all values equal.
pub fn brunner_munzel(x: &[f64], y: &[f64]) -> Result<TestResult> {
    let (x, y) = (sorted("x", x, 2)?, sorted("y", y, 2)?);
    let (n, m) = (x.len() as f64, y.len() as f64);
    if x[0] == x[x.len() - 1] && y[0] == y[y.len() - 1] && x[0] == y[0] {
        return Err(StatsError::Undefined { reason: "all values are equal" });
    }
    let mut sums = [0.0, 0.0];
    for step in steps(&x, &y) {
        for (sum, equal) in sums.iter_mut().zip(step.equal) {
            *sum += twice_rank(&step) as f64 * equal as f64;
        }
    }
    let means = [sums[0] / (2.0 * n), sums[1] / (2.0 * m)];
    // How far each value's rank among all, less that within its own sample, is from the mean of these.
    let mut squares = [0.0, 0.0];
    for step in steps(&x, &y) {
        let rank = twice_rank(&step) as f64 / 2.0;
        for (sample, size) in [n, m].into_iter().enumerate() {
            let equal = step.equal[sample] as f64;
            let own = step.reached[sample] as f64 - (equal - 1.0) / 2.0;
            let off = rank - own - means[sample] + (size + 1.0) / 2.0;
            squares[sample] += equal * off * off;
        }
    }
    let variances = [n * squares[0] / (n - 1.0), m * squares[1] / (m - 1.0)];
    let both = variances[0] + variances[1];
    let statistic = n * m * (means[1] - means[0]) / ((n + m) * both.sqrt());
    let df = both * both / (variances[0].powi(2) / (n - 1.0) + variances[1].powi(2) / (m - 1.0));
    let p_value = 2.0 * student_t_sf(statistic.abs(), df);
    Ok(TestResult { statistic, p_value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_apart_have_no_p_value_and_equal_ones_no_statistic() {
        let apart = brunner_munzel(&[1.0, 2.0], &[3.0, 4.0]).unwrap();
        assert!(apart.statistic == f64::INFINITY && apart.p_value.is_nan());
        assert!(matches!(brunner_munzel(&[1.0; 3], &[1.0; 3]), Err(StatsError::Undefined { .. })));
        assert!(matches!(brunner_munzel(&[1.0], &[1.0, 2.0]), Err(StatsError::TooFew { .. })));
    }

    #[test]
    fn the_sign_says_which_is_larger() {
        let (x, y) = ([1.0, 3.0, 5.0, 7.0], [2.0, 4.0, 6.0, 9.0, 10.0]);
        let (up, down) = (brunner_munzel(&x, &y).unwrap(), brunner_munzel(&y, &x).unwrap());
        assert!(up.statistic > 0.0 && (up.statistic + down.statistic).abs() < 1e-12);
        assert!((up.p_value - down.p_value).abs() < 1e-12);
    }
}
