use super::pooled::{sorted, steps, twice_rank};
use super::{Alternative, Method};
use crate::TestResult;
use crate::error::{Result, StatsError};
use crate::special::normal_sf;

/// [`Method::Auto`] is exact up to this size of the smaller sample, unless values are tied.
const SMALL: usize = 8;
/// An exact p-value is found for at most so many values of the statistic, and so many values of the smaller sample.
const LARGEST_PRODUCT: usize = 1_000_000;
const LARGEST_SMALLER: usize = 1_000;

/// Whether the asymptotic p-value moves the statistic by a half towards its mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Continuity {
    /// It does.
    #[default]
    Corrected,
    /// It does not.
    Uncorrected,
}

/// The Mann–Whitney test (Wilcoxon's rank sum): the statistic is U of `x`, the pairs in which the value of `x` is the larger,
/// ties counting a half. With [`Alternative::Greater`], only `x` tending to larger values counts.
///
/// [`Method::Auto`] is exact if no values are tied and the smaller sample has at most 8, else normal with the variance
/// corrected for ties. Exact p-values need `n m <= 1,000,000` and at most 1,000 values in the smaller sample.
///
/// # Errors
///
/// Samples that are empty or not finite; [`Method::Exact`] with ties or beyond the limits above; all values equal without a
/// continuity correction.
pub fn mann_whitney(
    x: &[f64],
    y: &[f64],
    alternative: Alternative,
    method: Method,
    continuity: Continuity,
) -> Result<TestResult> {
    let (x, y) = (sorted("x", x, 1)?, sorted("y", y, 1)?);
    let (n, m) = (x.len(), y.len());
    let (mut twice_rank_sum, mut ties, mut tied) = (0u128, 0.0, false);
    for step in steps(&x, &y) {
        twice_rank_sum += u128::from(twice_rank(&step)) * step.equal[0] as u128;
        let equal = (step.equal[0] + step.equal[1]) as f64;
        ties += equal * equal * equal - equal;
        tied |= equal > 1.0;
    }
    let smallest_sum = n as u128 * (n as u128 + 1);
    let statistic = (twice_rank_sum - smallest_sum) as f64 / 2.0;
    let affordable = n.saturating_mul(m) <= LARGEST_PRODUCT && n.min(m) <= LARGEST_SMALLER;
    let exact = match method {
        Method::Auto => !tied && n.min(m) <= SMALL && affordable,
        Method::Asymptotic => false,
        Method::Exact if tied => {
            return Err(StatsError::Undefined { reason: "an exact p-value with tied values" });
        }
        Method::Exact if !affordable => {
            return Err(StatsError::TooMany {
                name: "n * m",
                most: LARGEST_PRODUCT,
                got: n.saturating_mul(m),
            });
        }
        Method::Exact => true,
    };
    let pairs = n as f64 * m as f64;
    let p_value = if exact {
        exact_p_value(statistic as usize, n, m, alternative)
    } else {
        let total = (n + m) as f64;
        let variance = pairs / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
        let larger = match alternative {
            Alternative::TwoSided => statistic.max(pairs - statistic),
            Alternative::Greater => statistic,
            Alternative::Less => pairs - statistic,
        };
        let correction = if continuity == Continuity::Corrected { 0.5 } else { 0.0 };
        let z = (larger - pairs / 2.0 - correction) / variance.max(0.0).sqrt();
        if z.is_nan() {
            return Err(StatsError::Undefined { reason: "all values are equal" });
        }
        normal_sf(z) * if alternative == Alternative::TwoSided { 2.0 } else { 1.0 }
    };
    Ok(TestResult { statistic, p_value: p_value.min(1.0) })
}

fn exact_p_value(u: usize, n: usize, m: usize, alternative: Alternative) -> f64 {
    let pairs = n * m;
    let lower = lower_half(n.min(m), n.max(m));
    // P(U <= u), from the half that is known.
    let at_most = |u: usize| {
        if u < lower.len() {
            lower[..=u].iter().sum::<f64>()
        } else if u >= pairs {
            1.0
        } else {
            1.0 - lower[..=pairs - u - 1].iter().sum::<f64>()
        }
    };
    match alternative {
        Alternative::TwoSided => 2.0 * at_most(u.min(pairs - u)),
        Alternative::Less => at_most(u),
        Alternative::Greater => at_most(pairs - u),
    }
}

/// The probabilities of U from 0 to the middle: the coefficients of the Gaussian binomial, built up one value of the smaller
/// sample at a time. In the lower half they only grow, so that what is added up keeps its digits.
fn lower_half(fewer: usize, more: usize) -> Vec<f64> {
    let half = fewer * more / 2;
    let mut probabilities = vec![0.0; half + 1];
    probabilities[0] = 1.0;
    for i in 1..=fewer {
        // Times (1 - q^(more + i)) / (1 - q^i), over the number of ways.
        let most = (i * more).min(half);
        for u in ((more + i)..=most).rev() {
            probabilities[u] -= probabilities[u - more - i];
        }
        for u in i..=most {
            probabilities[u] += probabilities[u - i];
        }
        let share = i as f64 / (more + i) as f64;
        probabilities[..=most].iter_mut().for_each(|probability| *probability *= share);
    }
    probabilities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_arrangements() {
        // 2 of 4: U is 0, 1, 2, 2, 3, 4 in the six arrangements.
        let lower = lower_half(2, 2);
        for (probability, ways) in lower.iter().zip([1.0, 1.0, 2.0]) {
            assert!((probability - ways / 6.0).abs() < 1e-15, "{lower:?}");
        }
        for (fewer, more) in [(1, 7), (8, 1_000), (30, 40), (200, 200)] {
            let lower = lower_half(fewer, more);
            let sum: f64 = lower.iter().sum();
            let middle = if (fewer * more) % 2 == 0 { lower[lower.len() - 1] } else { 0.0 };
            assert!((2.0 * sum - middle - 1.0).abs() < 1e-9, "{fewer} {more}: {sum}");
            assert!(lower.iter().all(|&probability| probability >= 0.0));
        }
    }

    #[test]
    fn both_sides_and_all_refusals() {
        let test = |x: &[f64], y: &[f64], alternative, method| {
            mann_whitney(x, y, alternative, method, Continuity::Uncorrected)
        };
        let (x, y) = ([1.0, 2.0], [3.0, 4.0]);
        let p = |alternative| test(&x, &y, alternative, Method::Auto).unwrap().p_value;
        assert!((p(Alternative::Less) - 1.0 / 6.0).abs() < 1e-15);
        assert!((p(Alternative::Greater) - 1.0).abs() < 1e-15);
        assert!((p(Alternative::TwoSided) - 1.0 / 3.0).abs() < 1e-15);
        let same = test(&[1.0; 9], &[1.0; 9], Alternative::TwoSided, Method::Auto);
        assert!(matches!(same, Err(StatsError::Undefined { .. })));
        assert!(test(&[1.0, 1.0], &[2.0], Alternative::TwoSided, Method::Exact).is_err());
        let many: Vec<f64> = (0..1_001).map(f64::from).collect();
        assert!(test(&many, &many, Alternative::TwoSided, Method::Exact).is_err());
    }
}
