use super::{Column, KINDS_DIFFER, Score, Test};
use crate::TestResult;
use crate::bins::{BinRule, bin_edges, counts};
use crate::counts::{Divergence, fisher_exact, goodness_of_fit};
use crate::distance;
use crate::error::{Result, StatsError, at_least, finite, same_length};
use crate::special::normal_cdf;
use crate::two_sample::{
    Alternative, Continuity, Method, TieRule, Variances, anderson_darling, cramer_von_mises, epps_singleton,
    kolmogorov_smirnov, mann_whitney, t_test,
};
use std::collections::BTreeMap;

/// Numerical references with so few distinct values are not binned.
const FEW_BINS: usize = 20;

/// Applies a test to the columns as they are, missing values included where the test takes them.
///
/// # Errors
///
/// Columns of different kinds or of one that the test does not take, and what Evidently refuses: for most tests empty, missing
/// or constant values, for Fisher unequal lengths.
pub fn score(test: Test, reference: Column<'_>, current: Column<'_>, threshold: f64) -> Result<Score> {
    let score = match test {
        Test::Psi => {
            let (p, q) = filled_shares(reference, current)?;
            p.iter().zip(&q).map(|(p, q)| (p - q) * (p / q).ln()).sum()
        }
        Test::KullbackLeibler => {
            let (p, q) = filled_shares(reference, current)?;
            distance::kullback_leibler(&p, &q)?
        }
        Test::JensenShannon => {
            let (p, q) = shares(reference, current)?;
            distance::jensen_shannon(&p, &q)?
        }
        Test::Hellinger => hellinger(reference, current)?,
        Test::ChiSquare | Test::GTest => {
            let (expected, observed) = category_counts(reference, current)?;
            let scale = match test {
                Test::ChiSquare => rows(current) as f64 / rows(reference) as f64,
                _ => 1.0,
            };
            let divergence =
                if test == Test::GTest { Divergence::LikelihoodRatio } else { Divergence::Pearson };
            let expected: Vec<f64> = expected.iter().map(|count| count * scale).collect();
            let result = goodness_of_fit(&observed, Some(&expected), divergence)?;
            // Without any degree of freedom SciPy has no p-value.
            if observed.len() == 1 { f64::NAN } else { result.p_value }
        }
        Test::Z => z(reference, current)?,
        Test::FisherExact => fisher(reference, current)?,
        Test::TextAbsolute | Test::TextPercentile => {
            return Err(StatsError::Undefined { reason: "the test of text is not reproduced" });
        }
        _ => numerical(test, reference, current)?,
    };
    let drifted = match test {
        Test::Psi | Test::KullbackLeibler | Test::JensenShannon | Test::Hellinger | Test::Wasserstein => {
            score >= threshold
        }
        Test::EnergyDistance => score > threshold,
        Test::KolmogorovSmirnov | Test::CramerVonMises => score <= threshold,
        _ => score < threshold,
    };
    Ok(Score { score, drifted })
}

/// The statistic of the MMD test of one numerical column: unbiased, its bandwidth from the distances within the reference.
///
/// # Errors
///
/// Fewer than two values in a sample or more than about 10,000, values that are not finite.
pub fn mmd_statistic(reference: &[f64], current: &[f64]) -> Result<f64> {
    const MOST: usize = 10_000;
    for (name, sample) in [("reference", reference), ("current", current)] {
        at_least(name, sample.len(), 2)?;
        finite(name, sample)?;
        if sample.len() > MOST {
            return Err(StatsError::TooMany { name, most: MOST, got: sample.len() });
        }
    }
    let mut distances: Vec<f64> =
        reference.iter().flat_map(|x| reference.iter().map(move |y| y * y - 2.0 * (x * y) + x * x)).collect();
    // The median of an even number is its nearest even position.
    let position = ((distances.len() - 1) as f64 * 0.5).round_ties_even() as usize;
    let (_, median, _) = distances.select_nth_unstable_by(position, f64::total_cmp);
    let square = 0.5 * *median;
    let bandwidth = if square > 0.0 { square.sqrt() } else { 0.5_f64.sqrt() };
    let rows = |sample: &[f64]| -> Vec<Vec<f64>> { sample.iter().map(|&value| vec![value]).collect() };
    distance::mmd_unbiased(&rows(reference), &rows(current), bandwidth)
}

/// The statistic of the TVD test.
///
/// # Errors
///
/// Columns of different kinds or without a value.
pub fn total_variation_statistic(reference: Column<'_>, current: Column<'_>) -> Result<f64> {
    let (p, q) = category_counts(reference, current)?;
    distance::total_variation(&p, &q)
}

pub(super) fn rows(column: Column<'_>) -> usize {
    match column {
        Column::Numerical(values) => values.len(),
        Column::Categorical(values) => values.len(),
    }
}

fn numerical(test: Test, reference: Column<'_>, current: Column<'_>) -> Result<f64> {
    let (Column::Numerical(x), Column::Numerical(y)) = (reference, current) else {
        return Err(KINDS_DIFFER);
    };
    let p_value = |result: Result<TestResult>| result.map(|result| result.p_value);
    match test {
        Test::AndersonDarling => p_value(anderson_darling(&[x, y], TieRule::Midrank)),
        Test::CramerVonMises => p_value(cramer_von_mises(x, y, Method::Auto)),
        Test::EnergyDistance => distance::energy(x, y),
        Test::EppsSingleton => p_value(epps_singleton(x, y)),
        Test::KolmogorovSmirnov => p_value(kolmogorov_smirnov(x, y, Alternative::TwoSided, Method::Auto)),
        Test::MannWhitney => {
            p_value(mann_whitney(x, y, Alternative::Less, Method::Auto, Continuity::Corrected))
        }
        Test::StudentT => match t_test(x, y, Variances::Equal, 0.95) {
            Err(StatsError::Undefined { .. } | StatsError::TooFew { .. }) => Ok(f64::NAN),
            outcome => outcome.map(|difference| difference.p_value),
        },
        Test::Wasserstein => {
            let distance = distance::wasserstein(x, y)?;
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
            Ok(distance / variance.sqrt().max(0.001))
        }
        _ => Err(KINDS_DIFFER),
    }
}

/// How often each value that is not missing occurs in either sample, in the order of the values.
pub(super) fn category_counts(reference: Column<'_>, current: Column<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
    fn count<K: Ord>(x: impl Iterator<Item = K>, y: impl Iterator<Item = K>) -> (Vec<f64>, Vec<f64>) {
        let mut counts: BTreeMap<K, [f64; 2]> = BTreeMap::new();
        for key in x {
            counts.entry(key).or_default()[0] += 1.0;
        }
        for key in y {
            counts.entry(key).or_default()[1] += 1.0;
        }
        counts.into_values().map(|[x, y]| (x, y)).unzip()
    }
    let counts = match (reference, current) {
        (Column::Numerical(x), Column::Numerical(y)) => count(ordered(x), ordered(y)),
        (Column::Categorical(x), Column::Categorical(y)) => {
            count(x.iter().copied().flatten(), y.iter().copied().flatten())
        }
        _ => return Err(KINDS_DIFFER),
    };
    at_least("categories", counts.0.len(), 1)?;
    Ok(counts)
}

/// The bits of the numbers that are not missing, in an order that is theirs.
fn ordered(sample: &[f64]) -> impl Iterator<Item = i64> + '_ {
    sample.iter().filter(|value| !value.is_nan()).map(|&value| {
        // Both zeros are one value.
        let bits = (value + 0.0).to_bits() as i64;
        bits ^ (((bits >> 63) as u64) >> 1) as i64
    })
}

/// The shares in each bin: of equal width over the pooled range for numbers with many values, else one for each value. They are
/// of all rows, missing ones included.
fn shares(reference: Column<'_>, current: Column<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
    let binned = match (reference, current) {
        (Column::Numerical(x), Column::Numerical(y)) if distinct(x) > FEW_BINS => {
            let edges = bin_edges(&[x, y].concat(), BinRule::Sturges)?;
            let in_bins =
                |sample: &[f64]| counts(sample, &edges).into_iter().map(|count| count as f64).collect();
            (in_bins(x), in_bins(y))
        }
        _ => category_counts(reference, current)?,
    };
    let of_rows = |counts: Vec<f64>, column| -> Vec<f64> {
        let rows = rows(column) as f64;
        counts.into_iter().map(|count| count / rows).collect()
    };
    Ok((of_rows(binned.0, reference), of_rows(binned.1, current)))
}

fn distinct(sample: &[f64]) -> usize {
    let mut values: Vec<i64> = ordered(sample).collect();
    values.sort_unstable();
    values.dedup();
    values.len()
}

/// [`shares`] with something small for 0.
fn filled_shares(reference: Column<'_>, current: Column<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut p, mut q) = shares(reference, current)?;
    for shares in [&mut p, &mut q] {
        let least = shares.iter().copied().filter(|&share| share > 0.0).fold(f64::INFINITY, f64::min);
        if least.is_infinite() {
            return Err(StatsError::Undefined { reason: "a sample has no values" });
        }
        let filling = if least <= 1e-4 { least / 1e6 } else { 1e-4 };
        for share in shares.iter_mut().filter(|share| **share == 0.0) {
            *share = filling;
        }
    }
    Ok((p, q))
}

/// The Hellinger distance of the values that are not missing: numbers in bins of which the number goes by that of the distinct
/// values. The root of a difference from 1: below 1e-8 it is noise, and the operations are in Evidently's order for that.
fn hellinger(reference: Column<'_>, current: Column<'_>) -> Result<f64> {
    let mut overlap = 0.0;
    if let (Column::Numerical(x), Column::Numerical(y)) = (reference, current) {
        let present =
            |sample: &[f64]| -> Vec<f64> { sample.iter().copied().filter(|v| !v.is_nan()).collect() };
        let (x, y) = (present(x), present(y));
        at_least("reference", x.len(), 1)?;
        at_least("current", y.len(), 1)?;
        let mut keys = [x.as_slice(), y.as_slice()].concat();
        keys.sort_unstable_by(f64::total_cmp);
        keys.dedup();
        let edges = bin_edges(&keys, BinRule::Sturges)?;
        let width = (edges[edges.len() - 1] - edges[0]) / (edges.len() - 1) as f64;
        let densities = |sample: &[f64]| -> Vec<f64> {
            let total = sample.len() as f64;
            let widths = edges.windows(2).map(|pair| pair[1] - pair[0]);
            counts(sample, &edges)
                .into_iter()
                .zip(widths)
                .map(|(count, width)| count as f64 / width / total)
                .collect()
        };
        for (p, q) in densities(&x).into_iter().zip(densities(&y)) {
            overlap += (p * q).sqrt() * width;
        }
    } else {
        let (x, y) = category_counts(reference, current)?;
        let (x_total, y_total): (f64, f64) = (x.iter().sum(), y.iter().sum());
        at_least("reference", x_total as usize, 1)?;
        at_least("current", y_total as usize, 1)?;
        for (x, y) in x.iter().zip(&y) {
            overlap += ((x / x_total) * (y / y_total)).sqrt();
        }
    }
    Ok((1.0 - overlap.clamp(0.0, 1.0)).sqrt())
}

/// The z-test of the share of rows that are not of the smallest value; missing ones are not.
fn z(reference: Column<'_>, current: Column<'_>) -> Result<f64> {
    let (x, y) = category_counts(reference, current)?;
    let (n, m) = (rows(reference) as f64, rows(current) as f64);
    at_least("reference", rows(reference), 1)?;
    at_least("current", rows(current), 1)?;
    if x.len() == 1 && x[0] > 0.0 && y[0] > 0.0 {
        return Ok(1.0);
    }
    let (p, q) = ((n - x[0]) / n, (m - y[0]) / m);
    let pooled = (p * n + q * m) / (n + m);
    let z = (p - q) / (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    Ok(2.0 * (1.0 - normal_cdf(z.abs())))
}

fn fisher(reference: Column<'_>, current: Column<'_>) -> Result<f64> {
    let (n, m) = (rows(reference), rows(current));
    same_length(("reference", n), ("current", m))?;
    let (x, y) = category_counts(reference, current)?;
    let missing = x.iter().chain(&y).sum::<f64>() < (n + m) as f64;
    let infinite = |column: Column<'_>| match column {
        Column::Numerical(values) => values.iter().any(|value| value.is_infinite()),
        Column::Categorical(_) => false,
    };
    if missing || infinite(reference) || infinite(current) {
        return Err(StatsError::Undefined { reason: "values are missing or infinite" });
    }
    if x.len() > 2 {
        return Err(StatsError::TooMany { name: "categories", most: 2, got: x.len() });
    }
    let second = |counts: &[f64]| counts.get(1).map_or(0, |&count| count as u64);
    let table = [[second(&y), y[0] as u64], [second(&x), x[0] as u64]];
    Ok(fisher_exact(table, Alternative::TwoSided)?.p_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_categories_in_their_own_order() {
        let (x, _) = category_counts(
            Column::Numerical(&[2.0, -1.0, 0.0, -0.0, -7.0, f64::NAN, 2.0]),
            Column::Numerical(&[]),
        )
        .unwrap();
        assert_eq!(x, [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn empty_columns_are_refused() {
        let (none, some): ([f64; 0], _) = ([], [1.0, 2.0, 3.0]);
        let tests = [
            Test::AndersonDarling,
            Test::ChiSquare,
            Test::CramerVonMises,
            Test::EnergyDistance,
            Test::EppsSingleton,
            Test::FisherExact,
            Test::GTest,
            Test::Hellinger,
            Test::JensenShannon,
            Test::KolmogorovSmirnov,
            Test::KullbackLeibler,
            Test::MannWhitney,
            Test::Psi,
            Test::Wasserstein,
            Test::Z,
            Test::TextAbsolute,
        ];
        for test in tests {
            let outcome = score(test, Column::Numerical(&none), Column::Numerical(&some), 0.1);
            assert!(outcome.is_err(), "{test:?}: {outcome:?}");
        }
    }
}
