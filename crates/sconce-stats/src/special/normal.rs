use statrs::function::erf::erfc_inv;
use std::f64::consts::{PI, SQRT_2};

/// The density of the standard normal distribution at `z`.
pub fn normal_pdf(z: f64) -> f64 {
    (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}

/// P(Z <= z) of the standard normal distribution.
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z / SQRT_2)
}

/// P(Z > z) of the standard normal distribution.
pub fn normal_sf(z: f64) -> f64 {
    0.5 * libm::erfc(z / SQRT_2)
}

/// The z with `normal_cdf(z) = p`; infinite at 0 and 1.
pub fn normal_quantile(p: f64) -> f64 {
    // From the nearer end: 1 - p is exact there.
    if p <= 0.5 { -normal_upper_quantile(p) } else { normal_upper_quantile(1.0 - p) }
}

/// The z with `normal_sf(z) = p`; infinite at 0 and 1.
pub fn normal_upper_quantile(p: f64) -> f64 {
    if !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    SQRT_2 * erfc_inv(2.0 * p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_invert_the_distribution() {
        for p in [1e-300, 1e-16, 0.001, 0.3, 0.5] {
            assert!((normal_cdf(normal_quantile(p)) / p - 1.0).abs() < 1e-11, "{p}");
            assert!((normal_sf(normal_upper_quantile(p)) / p - 1.0).abs() < 1e-11, "{p}");
        }
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert_eq!(normal_quantile(1.0), f64::INFINITY);
        assert!(normal_quantile(f64::NAN).is_nan() && normal_quantile(1.5).is_nan());
    }
}
