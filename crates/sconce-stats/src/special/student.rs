use super::{LN_SQRT_2_PI, beta, ln_gamma, normal_cdf, normal_quantile, normal_sf};

/// From here on Student's t is the normal distribution to the last digit of a tail.
const NORMAL_FROM: f64 = 1e15;

/// P(T > t) of Student's t distribution with `df > 0` degrees of freedom.
pub fn student_t_sf(t: f64, df: f64) -> f64 {
    if t.is_nan() || df.is_nan() || df <= 0.0 {
        return f64::NAN;
    }
    if df >= NORMAL_FROM {
        return normal_sf(t);
    }
    if t.is_infinite() {
        return if t > 0.0 { 0.0 } else { 1.0 };
    }
    let square = t * t;
    let half = if square.is_infinite() {
        0.0
    } else {
        0.5 * beta::tails(df / (df + square), square / (df + square), df / 2.0, 0.5).0
    };
    if t >= 0.0 { half } else { 1.0 - half }
}

/// The t with `P(T <= t) = p` of Student's t distribution with `df > 0` degrees of freedom; infinite at 0 and 1.
pub fn student_t_quantile(p: f64, df: f64) -> f64 {
    if !((0.0..=1.0).contains(&p) && df > 0.0) {
        return f64::NAN;
    }
    if df >= NORMAL_FROM {
        return normal_quantile(p);
    }
    if p == 0.5 {
        return 0.0;
    }
    // Both tails together, from the nearer end.
    let both = 2.0 * p.min(1.0 - p);
    if both == 0.0 {
        return f64::INFINITY.copysign(p - 0.5);
    }
    // x = df / (df + t^2); where it is near 1, its complement has the digits.
    let x = beta::invert(df / 2.0, 0.5, |lower, _| lower - both);
    let size = if x < 0.5 {
        (df * (1.0 - x) / x).sqrt()
    } else {
        let y = beta::invert(0.5, df / 2.0, |_, upper| both - upper);
        (df * y / (1.0 - y)).sqrt()
    };
    size.copysign(p - 0.5)
}

/// P(T > t) of the noncentral t distribution with `df > 0` degrees of freedom and noncentrality `delta`.
///
/// The normal tail given the standard deviation, integrated over its chi distribution (Simpson's rule); the absolute error
/// is below 1e-10.
pub fn noncentral_t_sf(t: f64, df: f64, delta: f64) -> f64 {
    const PANELS: u32 = 2_000;
    if !(t.is_finite() && df > 0.0 && delta.is_finite()) {
        return f64::NAN;
    }
    if df > 1e9 {
        return normal_cdf(delta - t);
    }
    // s = sqrt(chi^2 / df) has mean near 1 and a standard deviation of at most 1 / sqrt(2 df).
    let reach = 12.0 / (2.0 * df).sqrt();
    let (low, high) = ((1.0 - reach).max(0.0), 1.0 + reach);
    let width = (high - low) / f64::from(PANELS);
    let ln_scale = 0.5 * df * (df / 2.0).ln() - ln_gamma(df / 2.0) + std::f64::consts::LN_2;
    // Written around s = 1, where ln_scale and -df s^2 / 2 would cancel.
    let at_one = ln_scale - 0.5 * df;
    let integrand = |s: f64| {
        if s <= 0.0 {
            // df = 1 is the half-normal, whose density is not 0 at 0.
            return if df == 1.0 {
                (std::f64::consts::LN_2 - LN_SQRT_2_PI).exp() * normal_cdf(delta)
            } else {
                0.0
            };
        }
        let ln_density = at_one + (df - 1.0) * s.ln() - 0.5 * df * (s - 1.0) * (s + 1.0);
        ln_density.exp() * normal_cdf(delta - t * s)
    };
    let mut sum = integrand(low) + integrand(high);
    for panel in 1..PANELS {
        let weight = if panel % 2 == 1 { 4.0 } else { 2.0 };
        sum += weight * integrand(low + width * f64::from(panel));
    }
    (sum * width / 3.0).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_degree_is_cauchy() {
        for t in [-30.0_f64, -1.0, 0.0, 0.5, 4.0, 1e6] {
            let expected = if t > 1.0 { (1.0 / t).atan() } else { std::f64::consts::FRAC_PI_2 - t.atan() };
            let expected = expected / std::f64::consts::PI;
            assert!((student_t_sf(t, 1.0) / expected - 1.0).abs() < 1e-13, "{t}");
        }
    }

    #[test]
    fn quantiles_invert_the_distribution() {
        for df in [0.5, 1.0, 4.0, 123.4, 1e6, 1e16] {
            for p in [1e-12, 0.025, 0.4999, 0.5, 0.975] {
                let t = student_t_quantile(p, df);
                assert!((student_t_sf(-t, df) / p - 1.0).abs() < 1e-9, "{df} {p}: {t}");
            }
        }
        assert_eq!(student_t_quantile(0.0, 3.0), f64::NEG_INFINITY);
        assert!(student_t_quantile(0.3, 0.0).is_nan() && student_t_sf(f64::NAN, 1.0).is_nan());
    }

    #[test]
    fn without_noncentrality_it_is_students() {
        for df in [1.0, 2.0, 7.5, 40.0, 1e5] {
            for t in [-3.0, 0.0, 0.7, 2.0] {
                let difference = noncentral_t_sf(t, df, 0.0) - student_t_sf(t, df);
                assert!(difference.abs() < 1e-8, "{df} {t}: {difference}");
            }
        }
    }
}
