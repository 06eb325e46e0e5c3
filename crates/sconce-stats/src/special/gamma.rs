use super::{deviance, stirling_error};
use std::f64::consts::PI;

/// Series and continued fractions need about `6 sqrt(a)` terms near `x = a`. Up to here they are summed.
const LARGEST_SUMMED: f64 = 1e8;
const MAX_TERMS: u32 = 200_000;

/// `ln(Gamma(x))`, `x > 0`.
pub fn ln_gamma(x: f64) -> f64 {
    if x > 0.0 { libm::lgamma(x) } else { f64::NAN }
}

/// The regularized lower incomplete gamma function P(a, x), `a > 0`, `x >= 0`.
pub fn gamma_p(a: f64, x: f64) -> f64 {
    tails(a, x).0
}

/// The regularized upper incomplete gamma function Q(a, x), `a > 0`, `x >= 0`.
pub fn gamma_q(a: f64, x: f64) -> f64 {
    tails(a, x).1
}

/// P(X <= x) of the chi-square distribution with `df` degrees of freedom.
pub fn chi_square_cdf(x: f64, df: f64) -> f64 {
    gamma_p(df / 2.0, x.max(0.0) / 2.0)
}

/// P(X > x) of the chi-square distribution with `df` degrees of freedom.
pub fn chi_square_sf(x: f64, df: f64) -> f64 {
    gamma_q(df / 2.0, if x.is_nan() { x } else { x.max(0.0) / 2.0 })
}

/// Both tails. The smaller is computed, the other is what it leaves.
fn tails(a: f64, x: f64) -> (f64, f64) {
    if !(a > 0.0 && a.is_finite() && x >= 0.0) {
        return (f64::NAN, f64::NAN);
    }
    if x == 0.0 {
        return (0.0, 1.0);
    }
    if x == f64::INFINITY {
        return (1.0, 0.0);
    }
    if a > LARGEST_SUMMED {
        return uniform(a, x);
    }
    // x^a e^-x / Gamma(a + 1).
    let weight = (-deviance(a, x, a - x) - stirling_error(a)).exp() / (2.0 * PI * a).sqrt();
    if x < a + 1.0 {
        let lower = (weight * series(a, x)).min(1.0);
        (lower, 1.0 - lower)
    } else {
        let upper = (weight * a * fraction(a, x)).min(1.0);
        (1.0 - upper, upper)
    }
}

/// The sum of `x^k / ((a+1) ... (a+k))` over k.
fn series(a: f64, x: f64) -> f64 {
    let mut term = 1.0;
    let mut sum = 1.0;
    for k in 1..MAX_TERMS {
        term *= x / (a + f64::from(k));
        sum += term;
        if term <= sum * (f64::EPSILON / 4.0) {
            break;
        }
    }
    sum
}

/// Legendre's continued fraction of `Gamma(a, x) / (x^a e^-x)`, by Lentz's method.
fn fraction(a: f64, x: f64) -> f64 {
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / f64::MIN_POSITIVE;
    let mut d = 1.0 / b;
    let mut value = d;
    for k in 1..MAX_TERMS {
        let k = f64::from(k);
        let numerator = -k * (k - a);
        b += 2.0;
        d = 1.0 / away_from_zero(numerator * d + b);
        c = away_from_zero(b + numerator / c);
        let factor = d * c;
        value *= factor;
        if (factor - 1.0).abs() <= f64::EPSILON {
            break;
        }
    }
    value
}

/// The first term of Temme's uniform expansion; its relative error is of the order `1 / a`.
fn uniform(a: f64, x: f64) -> (f64, f64) {
    let half_square = deviance(a, x, a - x);
    let eta = (2.0 * half_square / a).sqrt().copysign(x - a);
    let erfc = |sign: f64| 0.5 * libm::erfc(sign * half_square.sqrt().copysign(x - a));
    let ratio = (x - a) / a;
    let coefficient = if ratio.abs() < 1e-6 { -1.0 / 3.0 } else { 1.0 / ratio - 1.0 / eta };
    let correction = (-half_square).exp() / (2.0 * PI * a).sqrt() * coefficient;
    ((erfc(-1.0) - correction).clamp(0.0, 1.0), (erfc(1.0) + correction).clamp(0.0, 1.0))
}

/// Lentz's method divides by this.
fn away_from_zero(value: f64) -> f64 {
    if value.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_normal_are_special_cases() {
        for x in [1e-3, 0.5, 1.0, 3.0, 50.0, 700.0] {
            assert!((gamma_q(1.0, x) / (-x).exp() - 1.0).abs() < 1e-13, "{x}");
            let normal = libm::erfc(x.sqrt());
            assert!((gamma_q(0.5, x) / normal - 1.0).abs() < 1e-12, "{x}");
        }
    }

    #[test]
    fn large_arguments_agree_where_the_method_changes() {
        for step in [-3.0, -0.5, 0.0, 1.0, 4.0] {
            let a = LARGEST_SUMMED;
            let x = a + step * a.sqrt();
            let (lower, upper) = tails(a, x);
            let (also_lower, also_upper) = uniform(a, x);
            assert!((lower / also_lower - 1.0).abs() < 1e-6, "{step}: {lower} {also_lower}");
            assert!((upper / also_upper - 1.0).abs() < 1e-6, "{step}: {upper} {also_upper}");
        }
    }

    #[test]
    fn out_of_domain_is_nan() {
        assert!(gamma_q(0.0, 1.0).is_nan() && gamma_q(1.0, -1.0).is_nan() && gamma_q(f64::NAN, 1.0).is_nan());
        assert!(chi_square_sf(f64::NAN, 3.0).is_nan());
        assert_eq!(chi_square_sf(f64::INFINITY, 3.0), 0.0);
    }
}
