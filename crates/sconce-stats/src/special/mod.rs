//! Special functions and the distributions that every p-value rests on, to a relative error of about 1e-13 also far out in
//! the tails.
//!
//! These are mathematical functions: outside their domain they answer NaN, as those of the standard library do. Tails are
//! computed as such and never as `1 - cdf`. Where statrs is accurate to the last digits it is used; its error function, its
//! incomplete beta function and its inverse are not, or may not end, so those are made here.

mod bessel;
mod beta;
mod gamma;
mod hypergeometric;
mod kolmogorov;
mod normal;
mod student;

pub use bessel::scaled_bessel_k;
pub use beta::{beta_cdf, beta_quantile, beta_sf, ln_beta};
pub use gamma::{chi_square_cdf, chi_square_sf, gamma_p, gamma_q, ln_gamma};
pub use hypergeometric::hypergeometric_ln_pmf;
pub use kolmogorov::{kolmogorov_finite_sf, kolmogorov_sf};
pub use normal::{normal_cdf, normal_pdf, normal_quantile, normal_sf, normal_upper_quantile};
pub use student::{noncentral_t_sf, student_t_quantile, student_t_sf};

/// `ln(sqrt(2 pi))`.
const LN_SQRT_2_PI: f64 = 0.918_938_533_204_672_8;

/// What Stirling's formula leaves out of `ln(Gamma(x + 1))`: `ln(x!) - ln(sqrt(2 pi x) (x/e)^x)`. Above 15 the asymptotic
/// series, below it the difference itself, which has lost nothing there. Loader, "Fast and accurate computation of binomial
/// probabilities", 2000.
fn stirling_error(x: f64) -> f64 {
    if x <= 15.0 {
        return ln_gamma(x + 1.0) - (x + 0.5) * x.ln() + x - LN_SQRT_2_PI;
    }
    let square = x * x;
    let tail = 1.0 / 1680.0 - (1.0 / 1188.0 - (691.0 / 360_360.0 - 1.0 / (156.0 * square)) / square) / square;
    (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - tail / square) / square) / square) / x
}

/// The deviance `x ln(x / mean) + mean - x`, without the cancellation near `x = mean`. `difference` is `x - mean`, given because
/// the caller may know it better than these two say it. Loader, as above.
fn deviance(x: f64, mean: f64, difference: f64) -> f64 {
    if difference.abs() >= 0.1 * (x + mean) {
        let share = difference / x;
        return if share < 0.5 {
            -x * (-share).ln_1p() - difference
        } else {
            x * (x / mean).ln() - difference
        };
    }
    let ratio = difference / (x + mean);
    let mut sum = difference * ratio;
    let mut power = 2.0 * x * ratio;
    for odd in (3..100).step_by(2) {
        power *= ratio * ratio;
        let next = sum + power / f64::from(odd);
        if next == sum {
            break;
        }
        sum = next;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stirling_error_is_continuous_where_its_formula_changes() {
        let (below, above) = (stirling_error(15.0), stirling_error(15.0 + 1e-9));
        assert!((below - above).abs() < 1e-12, "{below} {above}");
        // 1! = 1 = sqrt(2 pi) / e * e^error.
        assert!((stirling_error(1.0) - (1.0 - LN_SQRT_2_PI)).abs() < 1e-15);
    }

    #[test]
    fn deviance_is_continuous_where_its_formula_changes() {
        for x in [1.0_f64, 1e6] {
            for mean in [x * 0.9 / 1.1, x * 0.4, x * 3.0] {
                let direct = x * (x / mean).ln() + mean - x;
                let near = mean * (1.0 + 1e-12);
                assert!((deviance(x, near, x - near) / direct - 1.0).abs() < 1e-9);
            }
        }
        assert_eq!(deviance(3.0, 3.0, 0.0), 0.0);
    }
}
