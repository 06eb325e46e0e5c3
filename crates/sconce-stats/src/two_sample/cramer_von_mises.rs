use super::Method;
use super::pooled::{sorted, steps, twice_rank};
use crate::TestResult;
use crate::error::{Result, StatsError};
use crate::special::{ln_gamma, scaled_bessel_k};
use std::f64::consts::PI;

/// Up to this size of both samples the p-value is exact: their joint paths have at most some million sums.
const LARGEST_EXACT: usize = 20;
/// The series of the limiting distribution ends at a term below this, and the p-value has an absolute error of the same size.
const SMALLEST_TERM: f64 = 1e-7;

/// The two-sample Cramér–von Mises test: the mean squared distance between the empirical distribution functions.
///
/// Exact while both samples have at most 20 values (Xiao, Gordon and Yakovlev, 2006; with ties approximately), else by the
/// limiting distribution (Anderson, "On the distribution of the two-sample Cramér–von Mises criterion", 1962) to an absolute
/// error of about 1e-7: p-values below that say no more than that.
///
/// # Errors
///
/// Fewer than two values in a sample, values that are not finite; [`Method::Exact`] above 20 values.
pub fn cramer_von_mises(x: &[f64], y: &[f64], method: Method) -> Result<TestResult> {
    let (x, y) = (sorted("x", x, 2)?, sorted("y", y, 2)?);
    let (n, m) = (x.len(), y.len());
    let exact = match method {
        Method::Auto => n.max(m) <= LARGEST_EXACT,
        Method::Asymptotic => false,
        Method::Exact if n.max(m) <= LARGEST_EXACT => true,
        Method::Exact => {
            let name = if n > m { "x" } else { "y" };
            return Err(StatsError::TooMany { name, most: LARGEST_EXACT, got: n.max(m) });
        }
    };
    let four_u = four_u(&x, &y);
    let (n_f, m_f) = (n as f64, m as f64);
    let (pairs, total) = (n_f * m_f, n_f + m_f);
    let statistic = four_u / 4.0 / (pairs * total) - (4.0 * pairs - 1.0) / (6.0 * total);
    let p_value = if exact {
        exact_p_value(four_u as i128, n, m)
    } else {
        let mean = (1.0 + 1.0 / total) / 6.0;
        let spread = 4.0 * pairs * total - 3.0 * (n_f * n_f + m_f * m_f) - 2.0 * pairs;
        let variance = (total + 1.0) * spread / (45.0 * total * total * 4.0 * pairs);
        let limit = 1.0 / 6.0 + (statistic - mean) / (45.0 * variance).sqrt();
        if limit < 0.003 { 1.0 } else { (1.0 - limit_cdf(limit)).max(0.0) }
    };
    Ok(TestResult { statistic, p_value })
}

/// Four times `n sum((rank of x_i - i)^2) + m sum((rank of y_j - j)^2)`: ranks may be halves.
fn four_u(x: &[f64], y: &[f64]) -> f64 {
    let mut sums = [0.0, 0.0];
    for step in steps(x, y) {
        let rank = twice_rank(&step) as f64;
        for ((sum, reached), equal) in sums.iter_mut().zip(step.reached).zip(step.equal) {
            for position in reached - equal + 1..=reached {
                let difference = rank - 2.0 * position as f64;
                *sum += difference * difference;
            }
        }
    }
    x.len() as f64 * sums[0] + y.len() as f64 * sums[1]
}

/// The share of the orders of both samples whose sum is at least this one's. The sums over all paths to (u, v), each with the
/// number of paths that have it, follow from those to (u, v - 1) and (u - 1, v).
fn exact_p_value(four_u: i128, n: usize, m: usize) -> f64 {
    let (n_i, m_i) = (n as i128, m as i128);
    let mut divisor = (n_i, m_i);
    while divisor.1 != 0 {
        divisor = (divisor.1, divisor.0 % divisor.1);
    }
    let multiple = n_i * m_i / divisor.0;
    let (by_x, by_y) = (multiple / n_i, multiple / m_i);
    let pairs = n_i * m_i;
    // 6 U - n m (4 n m - 1), in quarters.
    let quarters = 6 * four_u - 4 * pairs * (4 * pairs - 1);
    let least = (multiple * multiple * (n_i + m_i) * quarters).div_euclid(4 * 6 * pairs * pairs);
    let mut row: Vec<Vec<(u32, u64)>> = vec![Vec::new(); m + 1];
    for u in 0..=n {
        for v in 0..=m {
            let difference = by_x * u as i128 - by_y * v as i128;
            let square = (difference * difference) as u32;
            let mut sums = if u == 0 && v == 0 {
                vec![(0, 1)]
            } else if u == 0 {
                row[v - 1].clone()
            } else if v == 0 {
                std::mem::take(&mut row[0])
            } else {
                merge(&row[v - 1], &row[v])
            };
            sums.iter_mut().for_each(|(sum, _)| *sum += square);
            row[v] = sums;
        }
    }
    let (mut all, mut extreme) = (0.0, 0.0);
    for &(sum, paths) in &row[m] {
        all += paths as f64;
        if i128::from(sum) >= least {
            extreme += paths as f64;
        }
    }
    extreme / all
}

/// The union of two ascending lists of sums; paths with the same sum add up.
fn merge(left: &[(u32, u64)], right: &[(u32, u64)]) -> Vec<(u32, u64)> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut i, mut j) = (0, 0);
    while let (Some(&a), Some(&b)) = (left.get(i), right.get(j)) {
        merged.push(match a.0.cmp(&b.0) {
            std::cmp::Ordering::Less => a,
            std::cmp::Ordering::Greater => b,
            std::cmp::Ordering::Equal => (a.0, a.1 + b.1),
        });
        i += usize::from(a.0 <= b.0);
        j += usize::from(b.0 <= a.0);
    }
    merged.extend_from_slice(&left[i..]);
    merged.extend_from_slice(&right[j..]);
    merged
}

/// The limiting distribution function at `x > 0`: Anderson and Darling, 1952, equation 4.35.
fn limit_cdf(x: f64) -> f64 {
    let mut sum = 0.0;
    let mut k = 0.0;
    loop {
        let y: f64 = 4.0 * k + 1.0;
        let q = y * y / (16.0 * x);
        let gammas = (ln_gamma(k + 0.5) - ln_gamma(k + 1.0)).exp() / (PI.powf(1.5) * x.sqrt());
        let term = gammas * y.sqrt() * (-2.0 * q).exp() * scaled_bessel_k(0.25, q);
        sum += term;
        // Terms fall once q grows; the bound is for a NaN, which never falls.
        if term.abs() < SMALLEST_TERM || term.is_nan() || k > 1e6 {
            return sum;
        }
        k += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_has_its_tabulated_quantiles() {
        // Anderson and Darling, table 1.
        for (x, p) in [(0.34730, 0.90), (0.46136, 0.95), (0.74346, 0.99)] {
            assert!((limit_cdf(x) - p).abs() < 1e-5, "{x}: {}", limit_cdf(x));
        }
    }

    #[test]
    fn exact_p_values_count_orders() {
        // Of the six orders of 2 and 2, two separate the samples.
        let result = cramer_von_mises(&[1.0, 2.0], &[3.0, 4.0], Method::Exact).unwrap();
        assert!((result.p_value - 1.0 / 3.0).abs() < 1e-15, "{result:?}");
        let largest: Vec<f64> = (0..20).map(f64::from).collect();
        let shifted: Vec<f64> = (0..19).map(|i| f64::from(i) + 0.4).collect();
        let (exact, limit) = (Method::Exact, Method::Asymptotic);
        let p = |method| cramer_von_mises(&largest, &shifted, method).unwrap().p_value;
        assert!((p(exact) - p(limit)).abs() < 0.01, "{} {}", p(exact), p(limit));
    }

    #[test]
    fn what_cannot_be_tested_is_refused() {
        assert!(cramer_von_mises(&[1.0], &[1.0, 2.0], Method::Auto).is_err());
        assert!(cramer_von_mises(&[1.0, f64::INFINITY], &[1.0, 2.0], Method::Auto).is_err());
        assert!(cramer_von_mises(&[1.0; 21], &[1.0, 2.0], Method::Exact).is_err());
    }
}
