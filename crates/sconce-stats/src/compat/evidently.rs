//! Evidently 0.7: its drift tests by name, its choice of a test, and its verdict over a dataset.
//!
//! Known defects that are reproduced: Mann–Whitney looks one way only; chi-square takes the reference for exact and has no
//! answer for constants; G and chi-square refuse what does not add up; bins come from the pooled data and their number from
//! Sturges whatever was asked for; empty bins are filled without taking anything from the others; the tail of z is cut at
//! 1e-16; nothing is corrected for the number of columns. Tests whose p-value depends on NumPy's random numbers (TVD, MMD,
//! text) have their statistic here, or their name alone.

use crate::TestResult;
use crate::bins::{BinRule, bin_edges, counts};
use crate::counts::{Divergence, fisher_exact, goodness_of_fit};
use crate::distance::{self, Metric, centroid_distance};
use crate::error::{Result, StatsError, at_least, finite, same_length};
use crate::special::normal_cdf;
use crate::two_sample::{
    Alternative, Continuity, Method, TieRule, Variances, anderson_darling, cramer_von_mises, epps_singleton,
    kolmogorov_smirnov, mann_whitney, t_test,
};
use std::collections::BTreeMap;

/// References of more rows than this are judged by distances, smaller ones by p-values.
const LARGE: usize = 1_000;
/// Numerical columns with so few distinct values are judged as categories.
const FEW_VALUES: usize = 5;
/// Numerical references with so few distinct values are not binned.
const FEW_BINS: usize = 20;
/// A dataset has drifted if this share of its columns has.
pub const DRIFT_SHARE: f64 = 0.5;

const KINDS_DIFFER: StatsError =
    StatsError::Undefined { reason: "the test does not take columns of this kind, or of different kinds" };

/// What a column holds, as Evidently declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Numbers.
    Numerical,
    /// Categories, numbers or not.
    Categorical,
    /// Free text.
    Text,
}

/// One column of a dataset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Column<'a> {
    /// Numbers; NaN is a missing one.
    Numerical(&'a [f64]),
    /// Categories; `None` is a missing one.
    Categorical(&'a [Option<&'a str>]),
}

/// A drift test, by Evidently's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is the test of that name")]
pub enum Test {
    AndersonDarling,
    ChiSquare,
    CramerVonMises,
    EnergyDistance,
    EppsSingleton,
    FisherExact,
    GTest,
    Hellinger,
    JensenShannon,
    KolmogorovSmirnov,
    KullbackLeibler,
    MannWhitney,
    Psi,
    StudentT,
    /// Of text, by a classifier against a threshold. Only its name is here.
    TextAbsolute,
    /// Of text, by a classifier against chance. Only its name is here.
    TextPercentile,
    Wasserstein,
    Z,
}

impl Test {
    /// The name in Evidently's options.
    pub fn name(self) -> &'static str {
        match self {
            Self::AndersonDarling => "anderson",
            Self::ChiSquare => "chisquare",
            Self::CramerVonMises => "cramer_von_mises",
            Self::EnergyDistance => "ed",
            Self::EppsSingleton => "es",
            Self::FisherExact => "fisher_exact",
            Self::GTest => "g_test",
            Self::Hellinger => "hellinger",
            Self::JensenShannon => "jensenshannon",
            Self::KolmogorovSmirnov => "ks",
            Self::KullbackLeibler => "kl_div",
            Self::MannWhitney => "mannw",
            Self::Psi => "psi",
            Self::StudentT => "t_test",
            Self::TextAbsolute => "abs_text_content_drift",
            Self::TextPercentile => "perc_text_content_drift",
            Self::Wasserstein => "wasserstein",
            Self::Z => "z",
        }
    }

    /// The name in Evidently's reports.
    pub fn display_name(self) -> &'static str {
        match self {
            Self::AndersonDarling => "Anderson-Darling",
            Self::ChiSquare => "chi-square p_value",
            Self::CramerVonMises => "Cramer-von Mises",
            Self::EnergyDistance => "Energy-distance",
            Self::EppsSingleton => "Epps-Singleton",
            Self::FisherExact => "Fisher's Exact test",
            Self::GTest => "g_test",
            Self::Hellinger => "Hellinger distance",
            Self::JensenShannon => "Jensen-Shannon distance",
            Self::KolmogorovSmirnov => "K-S p_value",
            Self::KullbackLeibler => "Kullback-Leibler divergence",
            Self::MannWhitney => "Mann-Whitney U-rank test",
            Self::Psi => "PSI",
            Self::StudentT => "t_test",
            Self::TextAbsolute => "Absolute text content drift",
            Self::TextPercentile => "Percentile text content drift",
            Self::Wasserstein => "Wasserstein distance (normed)",
            Self::Z => "Z-test p_value",
        }
    }

    /// The threshold of the score unless another is set: above it distances have drifted, below it p-values.
    pub fn threshold(self) -> f64 {
        match self {
            Self::ChiSquare | Self::KolmogorovSmirnov | Self::Z => 0.05,
            Self::EppsSingleton | Self::MannWhitney | Self::StudentT => 0.05,
            Self::TextAbsolute => 0.55,
            Self::TextPercentile => 0.95,
            _ => 0.1,
        }
    }
}

/// What a test says of a column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// A distance or a p-value; NaN where Evidently's is.
    pub score: f64,
    /// Whether that is drift.
    pub drifted: bool,
}

/// The test that Evidently chooses, given the rows of the reference and the distinct values of both samples together.
pub fn default_test(kind: Kind, reference_rows: usize, distinct: usize) -> Test {
    let large = reference_rows > LARGE;
    match kind {
        Kind::Text if large => Test::TextAbsolute,
        Kind::Text => Test::TextPercentile,
        Kind::Numerical if distinct > FEW_VALUES => {
            if large {
                Test::Wasserstein
            } else {
                Test::KolmogorovSmirnov
            }
        }
        _ if large => Test::JensenShannon,
        _ if distinct > 2 => Test::ChiSquare,
        _ => Test::Z,
    }
}

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

/// What Evidently's preset says of one column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColumnDrift {
    /// The test it chose.
    pub test: Test,
    /// What that said, at its own threshold.
    pub score: Score,
}

/// What Evidently's preset says of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetDrift {
    /// One for each column, in order.
    pub columns: Vec<ColumnDrift>,
    /// How many have drifted.
    pub drifted_columns: usize,
    /// Their share.
    pub share: f64,
    /// Whether that is at least [`DRIFT_SHARE`].
    pub drifted: bool,
}

/// The data drift preset: missing and infinite values dropped, a test chosen for each column, the share of those that drifted.
///
/// # Errors
///
/// No columns, and what [`score`] refuses of any.
pub fn dataset_drift(columns: &[(Column<'_>, Column<'_>)]) -> Result<DatasetDrift> {
    at_least("columns", columns.len(), 1)?;
    let columns: Vec<ColumnDrift> = columns
        .iter()
        .map(|&(reference, current)| column_drift(reference, current))
        .collect::<Result<_>>()?;
    let drifted_columns = columns.iter().filter(|column| column.score.drifted).count();
    let share = drifted_columns as f64 / columns.len() as f64;
    Ok(DatasetDrift { columns, drifted_columns, share, drifted: share >= DRIFT_SHARE })
}

fn column_drift(reference: Column<'_>, current: Column<'_>) -> Result<ColumnDrift> {
    let judge = |kind, reference: Column<'_>, current: Column<'_>| {
        let test = default_test(kind, rows(reference), category_counts(reference, current)?.0.len());
        Ok(ColumnDrift { test, score: score(test, reference, current, test.threshold())? })
    };
    match (reference, current) {
        (Column::Numerical(reference), Column::Numerical(current)) => {
            let present = |sample: &[f64]| -> Vec<f64> {
                sample.iter().copied().filter(|value| value.is_finite()).collect()
            };
            let (reference, current) = (present(reference), present(current));
            judge(Kind::Numerical, Column::Numerical(&reference), Column::Numerical(&current))
        }
        (Column::Categorical(reference), Column::Categorical(current)) => {
            let present = |sample: &[Option<&'_ str>]| sample.iter().any(Option::is_none);
            if !present(reference) && !present(current) {
                return judge(
                    Kind::Categorical,
                    Column::Categorical(reference),
                    Column::Categorical(current),
                );
            }
            let kept: Vec<Option<&str>> = reference.iter().copied().filter(Option::is_some).collect();
            let also_kept: Vec<Option<&str>> = current.iter().copied().filter(Option::is_some).collect();
            judge(Kind::Categorical, Column::Categorical(&kept), Column::Categorical(&also_kept))
        }
        _ => Err(KINDS_DIFFER),
    }
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

/// How embeddings are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingMethod {
    /// The euclidean distance between the means, drift above 0.2.
    Euclidean,
    /// One less the cosine of the angle between them, drift above 0.2.
    Cosine,
    /// The sum of the differences between them, drift above 0.2.
    CityBlock,
    /// The largest of the differences between them, drift above 0.2.
    Chebyshev,
    /// The share of components that drifted by [`Test::Wasserstein`], drift above 0.2.
    Ratio,
    /// The maximum mean discrepancy, not below 0, drift above 0.015. All rows set the bandwidth; Evidently draws 1,000.
    Mmd,
}

/// Compares embeddings, one a row.
///
/// # Errors
///
/// No rows (two for MMD), rows without or of different length, values that are not finite, too many rows for MMD.
pub fn embedding_drift(
    method: EmbeddingMethod,
    reference: &[Vec<f64>],
    current: &[Vec<f64>],
) -> Result<Score> {
    at_least("reference", reference.len(), 1)?;
    at_least("current", current.len(), 1)?;
    at_least("columns", reference[0].len(), 1)?;
    for row in reference.iter().chain(current) {
        same_length(("first row", reference[0].len()), ("row", row.len()))?;
        finite("row", row)?;
    }
    let column = |sample: &[Vec<f64>], at: usize| -> Vec<f64> { sample.iter().map(|row| row[at]).collect() };
    let columns = 0..reference[0].len();
    let score = match method {
        EmbeddingMethod::Ratio => {
            let mut drifted = 0.0;
            for at in columns.clone() {
                let (reference, current) = (column(reference, at), column(current, at));
                let test = Test::Wasserstein;
                let score = score(
                    test,
                    Column::Numerical(&reference),
                    Column::Numerical(&current),
                    test.threshold(),
                )?;
                drifted += f64::from(u8::from(score.drifted));
            }
            drifted / columns.len() as f64
        }
        EmbeddingMethod::Mmd => {
            let bandwidth = median_distance(reference, current)? * 0.5_f64.sqrt();
            distance::mmd_unbiased(reference, current, bandwidth)?
        }
        EmbeddingMethod::Euclidean => centroid_distance(Metric::Euclidean, reference, current)?,
        EmbeddingMethod::Cosine => centroid_distance(Metric::Cosine, reference, current)?,
        EmbeddingMethod::CityBlock => centroid_distance(Metric::CityBlock, reference, current)?,
        EmbeddingMethod::Chebyshev => centroid_distance(Metric::Chebyshev, reference, current)?,
    };
    let threshold = if method == EmbeddingMethod::Mmd { 0.015 } else { 0.2 };
    let shown = if method == EmbeddingMethod::Mmd { score.max(0.0) } else { score };
    Ok(Score { score: shown, drifted: score > threshold })
}

/// The median distance of a row of the reference from one of the current window.
fn median_distance(reference: &[Vec<f64>], current: &[Vec<f64>]) -> Result<f64> {
    const MOST_PAIRS: usize = 20_000_000;
    let pairs = reference.len().saturating_mul(current.len());
    if pairs > MOST_PAIRS {
        return Err(StatsError::TooMany { name: "pairs of rows", most: MOST_PAIRS, got: pairs });
    }
    let mut distances: Vec<f64> = reference
        .iter()
        .flat_map(|a| {
            current.iter().map(move |b| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt())
        })
        .collect();
    distances.sort_unstable_by(f64::total_cmp);
    Ok(crate::bins::quantile_of_sorted(&distances, 0.5))
}

fn rows(column: Column<'_>) -> usize {
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
fn category_counts(reference: Column<'_>, current: Column<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
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
    fn the_dataset_verdict_drops_what_is_missing() {
        let x: Vec<f64> = (0..50).map(f64::from).collect();
        let holed: Vec<f64> = x.iter().copied().chain([f64::NAN, f64::INFINITY]).collect();
        let categories = [Some("a"), Some("b"), None, Some("a")];
        let columns = [
            (Column::Numerical(&x), Column::Numerical(&holed)),
            (Column::Categorical(&categories), Column::Categorical(&categories)),
        ];
        let drift = dataset_drift(&columns).unwrap();
        assert_eq!(drift.columns[0].score.score, 1.0);
        assert_eq!(drift.columns[1].test, Test::Z);
        assert!(!drift.drifted && drift.drifted_columns == 0);
        assert!(dataset_drift(&[]).is_err());
        assert!(dataset_drift(&[(Column::Numerical(&x), Column::Categorical(&categories))]).is_err());
    }

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
