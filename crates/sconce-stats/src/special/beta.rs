use super::{deviance, ln_gamma, stirling_error};
use std::f64::consts::PI;

/// The continued fraction needs about `sqrt(max(a, b))` steps: enough for a and b up to 1e10.
const MAX_STEPS: u32 = 200_000;
const MAX_ROOT_STEPS: u32 = 400;

/// `ln(B(a, b))`, `a > 0`, `b > 0`.
pub fn ln_beta(a: f64, b: f64) -> f64 {
    if !(a > 0.0 && b > 0.0) {
        return f64::NAN;
    }
    if a.min(b) < 10.0 {
        return ln_gamma(a) + (ln_gamma(b) - ln_gamma(a + b));
    }
    let sum = a + b;
    let errors = stirling_error(a) + stirling_error(b) - stirling_error(sum);
    errors
        + 0.5 * (2.0 * PI).ln()
        + 0.5 * (sum.ln() - a.ln() - b.ln())
        + a * (a / sum).ln()
        + b * (b / sum).ln()
}

/// P(X <= x) of the beta distribution: the regularized incomplete beta function I_x(a, b).
pub fn beta_cdf(x: f64, a: f64, b: f64) -> f64 {
    tails(x, 1.0 - x, a, b).0
}

/// P(X > x) of the beta distribution.
pub fn beta_sf(x: f64, a: f64, b: f64) -> f64 {
    tails(x, 1.0 - x, a, b).1
}

/// The x with `beta_cdf(x, a, b) = p`.
pub fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    if !((0.0..=1.0).contains(&p) && a > 0.0 && b > 0.0 && (a + b).is_finite()) {
        return f64::NAN;
    }
    if p == 0.0 || p == 1.0 {
        return p;
    }
    invert(a, b, |lower, _| lower - p)
}

/// Both tails at `x`, whose complement to 1 is `y` (given, because `1 - x` may have lost its digits).
pub(super) fn tails(x: f64, y: f64, a: f64, b: f64) -> (f64, f64) {
    let inside = x >= 0.0 && y >= 0.0 && a > 0.0 && b > 0.0;
    if !(inside && (a + b).is_finite()) {
        return (f64::NAN, f64::NAN);
    }
    if x == 0.0 || y == 0.0 {
        return if x == 0.0 { (0.0, 1.0) } else { (1.0, 0.0) };
    }
    // x^a y^b / B(a, b), by the deviances of a and b from what is expected of them, which are opposite: taken where the
    // digits are.
    let sum = a + b;
    let above = if x <= y { a - sum * x } else { sum * y - b };
    let errors = stirling_error(sum) - stirling_error(a) - stirling_error(b);
    let density = (errors - deviance(a, sum * x, above) - deviance(b, sum * y, -above)).exp()
        * (a / sum * b / (2.0 * PI)).sqrt();
    if x <= (a + 1.0) / (sum + 2.0) {
        let lower = (density / fraction(x, a, b, above)).min(1.0);
        (lower, 1.0 - lower)
    } else {
        let upper = (density / fraction(y, b, a, -above)).min(1.0);
        (1.0 - upper, upper)
    }
}

/// The x at which `excess(lower tail, upper tail)`, which grows with x, is 0: Newton's method inside a shrinking bracket.
pub(super) fn invert(a: f64, b: f64, excess: impl Fn(f64, f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    let mut x = a / (a + b);
    for _ in 0..MAX_ROOT_STEPS {
        let (lower, upper) = tails(x, 1.0 - x, a, b);
        let off = excess(lower, upper);
        if off == 0.0 {
            return x;
        }
        if off > 0.0 {
            high = x
        } else {
            low = x
        }
        let ln_density = (a - 1.0) * x.ln() + (b - 1.0) * (-x).ln_1p() - ln_beta(a, b);
        let next = x - off * (-ln_density).exp();
        let next = if next > low && next < high { next } else { middle(low, high) };
        if (next - x).abs() <= f64::EPSILON * x || next <= low || next >= high {
            return next;
        }
        x = next;
    }
    x
}

/// Between the ends; by ratio where they differ by orders of magnitude.
fn middle(low: f64, high: f64) -> f64 {
    if low > 0.0 && high > 4.0 * low {
        low.sqrt() * high.sqrt()
    } else if low == 0.0 && high < 0.1 {
        high * 1e-3
    } else {
        0.5 * (low + high)
    }
}

/// The continued fraction by which `x^a y^b / B(a, b)` is divided to give I_x(a, b): DiDonato and Morris, "Algorithm 708",
/// 1992, equation 9. `above` is `a - (a + b) x`, which near its mean decides and is given for its digits. By Lentz's method.
fn fraction(x: f64, a: f64, b: f64, above: f64) -> f64 {
    let sum = a + b;
    let mut value = away_from_zero(a * (above + 1.0) / (a + 1.0));
    let (mut c, mut d) = (value, 0.0);
    for step in 1..MAX_STEPS {
        let m = f64::from(step);
        let odd = a + 2.0 * m - 1.0;
        let share = m * (b - m) * x / odd;
        let numerator = (a + m - 1.0) * ((sum + m - 1.0) / odd) * x * share;
        let denominator = m + share + (a + m) * ((above + 1.0 + m * (2.0 - x)) / (odd + 2.0));
        d = 1.0 / away_from_zero(denominator + numerator * d);
        c = away_from_zero(denominator + numerator / c);
        let factor = c * d;
        value *= factor;
        if (factor - 1.0).abs() <= f64::EPSILON {
            break;
        }
    }
    value
}

/// Lentz's method divides by this.
fn away_from_zero(value: f64) -> f64 {
    if value.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_parameters_are_binomial_sums() {
        // I_p(k, n - k + 1) = P(at least k of n).
        let p: f64 = 0.3;
        let at_least_two_of_three = 3.0 * p * p * 0.7 + p * p * p;
        assert!((beta_cdf(p, 2.0, 2.0) / at_least_two_of_three - 1.0).abs() < 1e-14);
        assert!((beta_cdf(1e-9, 1.0, 5.0) / 5e-9 - 1.0).abs() < 1e-8);
    }

    #[test]
    fn quantiles_invert_the_distribution() {
        for (a, b) in [(0.5, 0.5), (0.5, 45.5), (1.0, 45.0), (300.0, 7.0), (1e5, 2e6)] {
            for p in [1e-12, 0.025, 0.5, 0.975] {
                let x = beta_quantile(p, a, b);
                assert!((beta_cdf(x, a, b) / p - 1.0).abs() < 1e-10, "{a} {b} {p}: {x}");
            }
        }
        assert_eq!((beta_quantile(0.0, 2.0, 3.0), beta_quantile(1.0, 2.0, 3.0)), (0.0, 1.0));
    }

    #[test]
    fn out_of_domain_is_nan_and_extremes_end() {
        assert!(beta_cdf(-0.1, 1.0, 1.0).is_nan() && beta_cdf(0.5, 0.0, 1.0).is_nan());
        assert!(beta_quantile(f64::NAN, 1.0, 1.0).is_nan() && ln_beta(-1.0, 1.0).is_nan());
        for (a, b) in [(1e-12, 1e-12), (1e-9, 1e12), (1e10, 1e10), (1e300, 1.0)] {
            assert!(beta_quantile(0.3, a, b) >= 0.0, "{a} {b}");
        }
    }
}
