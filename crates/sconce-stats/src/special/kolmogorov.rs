use std::f64::consts::PI;

/// P(K > x) of the limiting Kolmogorov distribution, the law of `sqrt(n) D` as n grows.
///
/// Kolmogorov's alternating series in the tail; below 1.18 the theta-function form, of which three terms are enough.
pub fn kolmogorov_sf(x: f64) -> f64 {
    if x.is_nan() {
        return f64::NAN;
    }
    if x <= 0.0 {
        return 1.0;
    }
    if x < 1.18 {
        let exponent = -PI * PI / (8.0 * x * x);
        let terms: f64 = [1.0, 9.0, 25.0, 49.0].iter().map(|odd| (exponent * odd).exp()).sum();
        return (1.0 - (2.0 * PI).sqrt() / x * terms).clamp(0.0, 1.0);
    }
    let square = -2.0 * x * x;
    2.0 * ((square).exp() - (4.0 * square).exp() + (9.0 * square).exp() - (16.0 * square).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_agree_where_they_meet() {
        let (below, above) = (kolmogorov_sf(1.18 - 1e-12), kolmogorov_sf(1.18));
        assert!((below - above).abs() < 1e-11, "{below} {above}");
        assert_eq!((kolmogorov_sf(0.0), kolmogorov_sf(1e200)), (1.0, 0.0));
    }
}
