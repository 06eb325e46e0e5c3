use super::pooled::sorted;
use crate::TestResult;
use crate::error::{Result, StatsError, at_least};
use crate::linalg::{Matrix, solve};

/// Samples in one test: the work is their number times that of the distinct values.
const MOST_SAMPLES: usize = 1_000;

/// The levels of Scholz and Stephens' table 2, and the coefficients of the critical values in `1 / sqrt(k - 1)`.
const LEVELS: [f64; 7] = [0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.001];
const B0: [f64; 7] = [0.675, 1.281, 1.645, 1.96, 2.326, 2.573, 3.085];
const B1: [f64; 7] = [-0.245, 0.25, 0.678, 1.149, 1.822, 2.364, 3.615];
const B2: [f64; 7] = [-0.105, -0.305, -0.362, -0.391, -0.396, -0.345, -0.154];

/// Where a distribution function is taken at tied values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TieRule {
    /// In the middle of its jump.
    #[default]
    Midrank,
    /// After its jump.
    Right,
}

/// The Anderson–Darling test of k samples, as standardised by Scholz and Stephens, "K-sample Anderson–Darling tests", 1987.
///
/// The p-value is interpolated in their table and stays within it: no less than 0.001, no more than 0.25.
///
/// # Errors
///
/// Fewer than two samples or more than 1,000, fewer than four values in all, a sample that is empty or not finite, all values
/// equal.
pub fn anderson_darling(samples: &[&[f64]], ties: TieRule) -> Result<TestResult> {
    at_least("samples", samples.len(), 2)?;
    if samples.len() > MOST_SAMPLES {
        return Err(StatsError::TooMany { name: "samples", most: MOST_SAMPLES, got: samples.len() });
    }
    let sorted_samples: Vec<Vec<f64>> =
        samples.iter().map(|sample| sorted("sample", sample, 1)).collect::<Result<_>>()?;
    // Every value with the sample it is from.
    let mut pooled: Vec<(f64, usize)> = sorted_samples
        .iter()
        .enumerate()
        .flat_map(|(index, sample)| sample.iter().map(move |&value| (value, index)))
        .collect();
    pooled.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    at_least("samples", pooled.len(), 4)?;
    if pooled[0].0 == pooled[pooled.len() - 1].0 {
        return Err(StatsError::Undefined { reason: "all values are equal" });
    }
    let a2 = statistic(&pooled, &sorted_samples, ties);
    let (k, sizes): (f64, Vec<f64>) =
        (samples.len() as f64, samples.iter().map(|sample| sample.len() as f64).collect());
    let statistic = (a2 - (k - 1.0)) / variance(k, pooled.len(), &sizes).sqrt();
    Ok(TestResult { statistic, p_value: p_value(statistic, k - 1.0)? })
}

fn statistic(pooled: &[(f64, usize)], samples: &[Vec<f64>], ties: TieRule) -> f64 {
    let total = pooled.len() as f64;
    let k = samples.len();
    let sizes: Vec<f64> = samples.iter().map(|sample| sample.len() as f64).collect();
    // Per sample: how many values so far, how many equal the current one, and the sum over the values before it. Between two
    // of its own values only `below` moves, but the sums are over all distinct values.
    let (mut so_far, mut equal) = (vec![0.0; k], vec![0.0; k]);
    let mut sums = vec![0.0; k];
    let (mut below, mut from) = (0.0, 0);
    while from < pooled.len() {
        let to = from + pooled[from..].iter().take_while(|entry| entry.0 == pooled[from].0).count();
        for &(_, sample) in &pooled[from..to] {
            equal[sample] += 1.0;
        }
        let here = (to - from) as f64;
        let (b, tie_term) = match ties {
            TieRule::Midrank => (below + here / 2.0, total * here / 4.0),
            TieRule::Right => (below + here, 0.0),
        };
        let denominator = b * (total - b) - tie_term;
        if denominator > 0.0 {
            for sample in 0..k {
                let reached = match ties {
                    TieRule::Midrank => so_far[sample] + equal[sample] / 2.0,
                    TieRule::Right => so_far[sample] + equal[sample],
                };
                let difference = total * reached - b * sizes[sample];
                sums[sample] += here / total * difference * difference / denominator;
            }
        }
        for sample in 0..k {
            so_far[sample] += equal[sample];
            equal[sample] = 0.0;
        }
        below += here;
        from = to;
    }
    let sum: f64 = sums.iter().zip(&sizes).map(|(sum, size)| sum / size).sum();
    match ties {
        TieRule::Midrank => sum * (total - 1.0) / total,
        TieRule::Right => sum,
    }
}

/// The variance of A squared under the null hypothesis: equation 4 of Scholz and Stephens.
fn variance(k: f64, total: usize, sizes: &[f64]) -> f64 {
    let capital_h: f64 = sizes.iter().map(|size| 1.0 / size).sum();
    // h = sum of 1/i; g = sum over i < j < N of 1 / ((N - i) j), in one pass from the last i.
    let mut h = 0.0;
    let mut g = 0.0;
    for i in (1..total).rev() {
        g += h / (total - i) as f64;
        h += 1.0 / i as f64;
    }
    let a = (4.0 * g - 6.0) * (k - 1.0) + (10.0 - 6.0 * g) * capital_h;
    let b = (2.0 * g - 4.0) * k * k + 8.0 * h * k + (2.0 * g - 14.0 * h - 4.0) * capital_h - 8.0 * h
        + 4.0 * g
        - 6.0;
    let c = (6.0 * h + 2.0 * g - 2.0) * k * k
        + (4.0 * h - 4.0 * g + 6.0) * k
        + (2.0 * h - 6.0) * capital_h
        + 4.0 * h;
    let d = (2.0 * h + 6.0) * k * k - 4.0 * h * k;
    let n = total as f64;
    (((a * n + b) * n + c) * n + d) / ((n - 1.0) * (n - 2.0) * (n - 3.0))
}

/// A parabola fitted to the logarithms of the levels over their critical values.
fn p_value(statistic: f64, m: f64) -> Result<f64> {
    let critical: Vec<f64> = (0..LEVELS.len()).map(|i| B0[i] + B1[i] / m.sqrt() + B2[i] / m).collect();
    if statistic < critical[0] {
        return Ok(LEVELS[0]);
    }
    if statistic > critical[LEVELS.len() - 1] {
        return Ok(LEVELS[LEVELS.len() - 1]);
    }
    let center = critical.iter().sum::<f64>() / critical.len() as f64;
    let (mut normal, mut right) = (Matrix::zero(3, 3), [0.0; 3]);
    for (value, level) in critical.iter().zip(LEVELS) {
        let x = value - center;
        let powers = [1.0, x, x * x];
        for i in 0..3 {
            for j in 0..3 {
                normal[(i, j)] += powers[i] * powers[j];
            }
            right[i] += powers[i] * level.ln();
        }
    }
    let coefficients = solve(normal, &right)?;
    let x = statistic - center;
    Ok((coefficients[0] + x * (coefficients[1] + x * coefficients[2])).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_and_apart_end_at_the_table() {
        let (x, y): (Vec<f64>, Vec<f64>) = (0..40).map(|i| (f64::from(i), f64::from(i) + 0.5)).unzip();
        let alike = anderson_darling(&[&x, &y], TieRule::Midrank).unwrap();
        assert_eq!(alike.p_value, 0.25);
        let moved: Vec<f64> = y.iter().map(|value| value + 40.0).collect();
        let apart = anderson_darling(&[&x, &moved], TieRule::Right).unwrap();
        assert_eq!(apart.p_value, 0.001);
    }

    #[test]
    fn what_cannot_be_tested_is_refused() {
        let test = |samples: &[&[f64]]| anderson_darling(samples, TieRule::Midrank);
        assert!(matches!(test(&[&[1.0, 1.0], &[1.0, 1.0]]), Err(StatsError::Undefined { .. })));
        assert!(matches!(test(&[&[1.0, 2.0]]), Err(StatsError::TooFew { .. })));
        assert!(matches!(test(&[&[1.0], &[2.0]]), Err(StatsError::TooFew { .. })));
        assert!(matches!(test(&[&[1.0, 2.0, 3.0], &[]]), Err(StatsError::TooFew { .. })));
        assert!(test(&[&[1.0, 2.0, 3.0], &[f64::NAN]]).is_err());
    }
}
