use super::pooled::{sorted, steps};
use super::{Alternative, Method};
use crate::TestResult;
use crate::error::{Result, StatsError};
use crate::special::kolmogorov_finite_sf;

/// Samples up to this size have an exact p-value: at most 10^8 steps, and far fewer when the samples are alike.
const LARGEST_EXACT: usize = 10_000;

/// The Kolmogorov–Smirnov test: the largest distance between the two empirical distribution functions F and G.
///
/// Exact while both samples have at most 10,000 values (in `O(n m)` time at most, `O(m)` memory; ties are handled), else
/// by the finite-n Kolmogorov distribution at `n m / (n + m)`. One-sided asymptotic p-values follow Hodges, "The significance
/// probability of the Smirnov two-sample test", 1957, equation 5.3. With [`Alternative::Greater`] only F above G counts, that
/// is, `x` tending to smaller values.
///
/// # Errors
///
/// Samples that are empty or not finite; [`Method::Exact`] above 10,000 values.
pub fn kolmogorov_smirnov(
    x: &[f64],
    y: &[f64],
    alternative: Alternative,
    method: Method,
) -> Result<TestResult> {
    let (x, y) = (sorted("x", x, 1)?, sorted("y", y, 1)?);
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
    let gap = gap(&x, &y);
    let statistic = gap.distance(alternative);
    let p_value = if exact {
        gap.exact(alternative)
    } else {
        asymptotic(statistic, n.max(m) as f64, n.min(m) as f64, alternative)
    };
    Ok(TestResult { statistic, p_value })
}

/// The distances between the distribution functions, as whole multiples of `1 / lcm(n, m)`.
struct Gap {
    n: u64,
    m: u64,
    divisor: u64,
    /// The most that F is above G, and below it.
    above: u64,
    below: u64,
}

fn gap(x: &[f64], y: &[f64]) -> Gap {
    let (n, m) = (x.len() as u64, y.len() as u64);
    let divisor = greatest_common_divisor(n, m);
    let (of_x, of_y) = (m / divisor, n / divisor);
    let (mut above, mut below) = (0, 0);
    for step in steps(x, y) {
        let (f, g) = (u128::from(of_x) * step.reached[0] as u128, u128::from(of_y) * step.reached[1] as u128);
        above = above.max(f.saturating_sub(g));
        below = below.max(g.saturating_sub(f));
    }
    // Fits unless both samples have more than 2^32 values.
    let fit = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    Gap { n, m, divisor, above: fit(above), below: fit(below) }
}

impl Gap {
    fn count(&self, alternative: Alternative) -> u64 {
        match alternative {
            Alternative::TwoSided => self.above.max(self.below),
            Alternative::Greater => self.above,
            Alternative::Less => self.below,
        }
    }

    fn distance(&self, alternative: Alternative) -> f64 {
        let multiple = self.n as f64 * (self.m / self.divisor) as f64;
        self.count(alternative) as f64 / multiple
    }

    /// The share of the lattice paths from (0, 0) to (n, m) that come as far from the diagonal. `outside[j]` is the
    /// probability that a path has been outside, given that it is at (i, j): positive terms only, so even the smallest
    /// p-values keep their digits.
    fn exact(&self, alternative: Alternative) -> f64 {
        let limit = i128::from(self.count(alternative));
        if limit == 0 {
            return 1.0;
        }
        let (by_x, by_y) = (i128::from(self.m / self.divisor), i128::from(self.n / self.divisor));
        let m = self.m as usize;
        let mut outside = vec![1.0; m + 1];
        for i in 0..=self.n {
            // Inside are the j with |i by_x - j by_y| < limit; on one side only, if that is asked for.
            let center = i128::from(i) * by_x;
            let lowest =
                if alternative == Alternative::Less { 0 } else { (center - limit).div_euclid(by_y) + 1 };
            let highest = match alternative {
                Alternative::Greater => i128::from(self.m),
                _ => (center + limit + by_y - 1).div_euclid(by_y) - 1,
            };
            let first = usize::try_from(lowest.max(0)).unwrap_or(0).min(m + 1);
            let end = usize::try_from(highest + 1).unwrap_or(0).min(m + 1);
            let i = i as f64;
            // What was inside in the row before may be outside now; to the right of the band everything still is.
            outside[..first].fill(1.0);
            let mut left = if first > 0 { 1.0 } else { 0.0 };
            for (j, cell) in outside[..end].iter_mut().enumerate().skip(first) {
                let j = j as f64;
                let from_left = left * j;
                let from_below = if i > 0.0 { *cell * i } else { 0.0 };
                *cell = if i + j > 0.0 { (from_left + from_below) / (i + j) } else { 0.0 };
                left = *cell;
            }
        }
        outside[m].clamp(0.0, 1.0)
    }
}

fn asymptotic(distance: f64, more: f64, fewer: f64, alternative: Alternative) -> f64 {
    let effective = more * fewer / (more + fewer);
    if alternative == Alternative::TwoSided {
        return kolmogorov_finite_sf(effective.round_ties_even().max(1.0), distance);
    }
    let z = effective.sqrt() * distance;
    let correction = 2.0 * z * (more + 2.0 * fewer) / (3.0 * (more * fewer * (more + fewer)).sqrt());
    (-2.0 * z * z - correction).exp().clamp(0.0, 1.0)
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p_value(x: &[f64], y: &[f64], alternative: Alternative) -> f64 {
        kolmogorov_smirnov(x, y, alternative, Method::Exact).unwrap().p_value
    }

    #[test]
    fn disjoint_samples_are_as_likely_as_their_arrangements() {
        // Of the C(5, 2) arrangements one has all of x first and one last.
        let (x, y) = ([1.0, 2.0], [3.0, 4.0, 5.0]);
        assert!((p_value(&x, &y, Alternative::TwoSided) - 0.2).abs() < 1e-15);
        assert!((p_value(&x, &y, Alternative::Greater) - 0.1).abs() < 1e-15);
        assert_eq!(p_value(&x, &y, Alternative::Less), 1.0);
        assert!((p_value(&y, &x, Alternative::Less) - 0.1).abs() < 1e-15);
    }

    #[test]
    fn what_cannot_be_tested_is_refused() {
        let test = |x: &[f64], method| kolmogorov_smirnov(x, &[5_000.0], Alternative::TwoSided, method);
        assert!(matches!(test(&[], Method::Auto), Err(StatsError::TooFew { name: "x", .. })));
        assert!(matches!(test(&[1.0, f64::NAN], Method::Auto), Err(StatsError::NotFinite { index: 1, .. })));
        let many: Vec<f64> = (0..10_001).map(f64::from).collect();
        assert!(matches!(test(&many, Method::Exact), Err(StatsError::TooMany { got: 10_001, .. })));
        assert!(test(&many, Method::Auto).unwrap().p_value > 0.9);
    }
}
