use super::{deviance, stirling_error};
use std::f64::consts::PI;

/// The logarithm of the probability that `row` draws without replacement from `total`, of which `column` are marked, have
/// `count` marked; minus infinity where that cannot be.
///
/// As a quotient of three binomial probabilities at the common share `row / total`, each in Loader's form.
pub fn hypergeometric_ln_pmf(count: f64, row: f64, column: f64, total: f64) -> f64 {
    let rest = total - column;
    if !(count >= 0.0 && row >= 0.0 && column >= 0.0 && rest >= 0.0 && row <= total) {
        return if count.is_nan() || row.is_nan() || column.is_nan() || total.is_nan() {
            f64::NAN
        } else {
            f64::NEG_INFINITY
        };
    }
    if count > row || count > column || row - count > rest {
        return f64::NEG_INFINITY;
    }
    if row == 0.0 || row == total {
        return 0.0;
    }
    let binomial = |count: f64, size: f64| binomial_ln_pmf(count, size, row, total);
    binomial(count, column) + binomial(row - count, rest) - binomial(row, total)
}

/// The logarithm of the probability of `count` successes in `size`, each with probability `part / whole`.
fn binomial_ln_pmf(count: f64, size: f64, part: f64, whole: f64) -> f64 {
    let other = whole - part;
    let failures = size - count;
    if count == 0.0 {
        return size * (-part / whole).ln_1p();
    }
    if failures == 0.0 {
        return size * (part / whole).ln();
    }
    let (mean, other_mean) = (size * (part / whole), size * (other / whole));
    let difference = count - mean;
    stirling_error(size)
        - stirling_error(count)
        - stirling_error(failures)
        - deviance(count, mean, difference)
        - deviance(failures, other_mean, -difference)
        + 0.5 * (size / (2.0 * PI * count * failures)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_impossible_ones_are_none() {
        for (row, column, total) in
            [(4.0, 4.0, 8.0), (13.0, 26.0, 52.0), (900.0, 150.0, 1_000.0), (3.0, 5.0, 5.0)]
        {
            let sum: f64 =
                (0..=1_000).map(|k| hypergeometric_ln_pmf(f64::from(k), row, column, total).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{row} {column} {total}: {sum}");
        }
        assert_eq!(hypergeometric_ln_pmf(5.0, 4.0, 4.0, 8.0), f64::NEG_INFINITY);
        assert!(hypergeometric_ln_pmf(f64::NAN, 4.0, 4.0, 8.0).is_nan());
    }
}
