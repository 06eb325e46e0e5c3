//! Evidently 0.7: its drift tests by name, its choice of a test, and its verdict over a dataset.
//!
//! Known defects that are reproduced: Mann–Whitney looks one way only; chi-square takes the reference for exact and has no
//! answer for constants; G and chi-square refuse what does not add up; bins come from the pooled data and their number from
//! Sturges whatever was asked for; empty bins are filled without taking anything from the others; the tail of z is cut at
//! 1e-16; nothing is corrected for the number of columns. Tests whose p-value depends on NumPy's random numbers (TVD, MMD,
//! text) have their statistic here, or their name alone.

mod embedding;
mod score;

pub use embedding::{EmbeddingMethod, embedding_drift};
pub use score::{mmd_statistic, score, total_variation_statistic};

use crate::error::{Result, StatsError, at_least};
use score::{category_counts, rows};

/// References of more rows than this are judged by distances, smaller ones by p-values.
const LARGE: usize = 1_000;
/// Numerical columns with so few distinct values are judged as categories.
const FEW_VALUES: usize = 5;
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
}
