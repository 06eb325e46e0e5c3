//! alibi-detect 0.13: its feature-wise detectors.
//!
//! Known oddities that are reproduced: p-values and distances are rounded to 32 bits before they are compared; the
//! Kolmogorov–Smirnov p-value is asymptotic however small the samples; Benjamini and Hochberg's rule is strict.

use crate::counts::{Divergence, contingency};
use crate::error::{Result, at_least, finite, in_range, open_unit, same_length};
use crate::two_sample::{Alternative, Method, cramer_von_mises, kolmogorov_smirnov};
use std::collections::BTreeMap;

/// Which test each feature is put to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detector {
    /// Kolmogorov–Smirnov.
    KolmogorovSmirnov,
    /// Cramér–von Mises.
    CramerVonMises,
    /// Chi-square of the contingency table; the numbers are labels of categories.
    ChiSquare,
}

/// How the p-values of several features make one verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    /// Any below the level over their number.
    Bonferroni,
    /// Benjamini and Hochberg's.
    FalseDiscovery,
}

/// What a detector says of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchDrift {
    /// Whether any feature has drifted.
    pub drifted: bool,
    /// A p-value for each feature.
    pub p_values: Vec<f64>,
    /// A statistic for each feature.
    pub distances: Vec<f64>,
    /// Below this, or for want of any such below each in its place, a p-value would be drift.
    pub threshold: Threshold,
}

/// Where p-values become drift.
#[derive(Debug, Clone, PartialEq)]
pub enum Threshold {
    /// One for all.
    One(f64),
    /// One for each rank: what false discovery leaves where nothing is significant.
    Ladder(Vec<f64>),
}

/// Compares a batch with the reference, both one instance a row, at a level such as 0.05.
///
/// # Errors
///
/// No rows or columns, rows of different length, values that are not finite, too few rows for the test (two for Cramér–von
/// Mises), a level outside (0, 1).
pub fn batch_drift(
    detector: Detector,
    reference: &[Vec<f64>],
    batch: &[Vec<f64>],
    level: f64,
    correction: Correction,
) -> Result<BatchDrift> {
    at_least("reference", reference.len(), 1)?;
    at_least("batch", batch.len(), 1)?;
    let features = reference[0].len();
    at_least("features", features, 1)?;
    open_unit("level", level)?;
    for row in reference.iter().chain(batch) {
        same_length(("first row", features), ("row", row.len()))?;
        finite("row", row)?;
    }
    let (mut p_values, mut distances) = (Vec::new(), Vec::new());
    for feature in 0..features {
        let column = |rows: &[Vec<f64>]| -> Vec<f64> { rows.iter().map(|row| row[feature]).collect() };
        let (x, y) = (column(reference), column(batch));
        let (distance, p_value) = match detector {
            Detector::KolmogorovSmirnov => {
                let result = kolmogorov_smirnov(&x, &y, Alternative::TwoSided, Method::Asymptotic)?;
                (result.statistic, result.p_value)
            }
            Detector::CramerVonMises => {
                let result = cramer_von_mises(&x, &y, Method::Auto)?;
                (result.statistic, result.p_value)
            }
            Detector::ChiSquare => {
                let result = contingency(&table(&x, &y), Divergence::Pearson, true)?;
                (result.statistic, result.p_value)
            }
        };
        distances.push(f64::from(distance as f32));
        p_values.push(f64::from(p_value as f32));
    }
    let (drifted, threshold) = match correction {
        Correction::Bonferroni => {
            let threshold = level / features as f64;
            (p_values.iter().any(|&p_value| p_value < threshold), Threshold::One(threshold))
        }
        Correction::FalseDiscovery => false_discovery(&p_values, level)?,
    };
    Ok(BatchDrift { drifted, p_values, distances, threshold })
}

/// Whether any p-value is significant at a false discovery rate, and from where on.
///
/// # Errors
///
/// No p-values, p-values outside [0, 1], a rate outside (0, 1).
pub fn false_discovery(p_values: &[f64], rate: f64) -> Result<(bool, Threshold)> {
    at_least("p_values", p_values.len(), 1)?;
    open_unit("rate", rate)?;
    for &p_value in p_values {
        in_range("p_values", p_value, (0.0..=1.0).contains(&p_value), "a p-value in [0, 1]")?;
    }
    let mut sorted = p_values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let ladder: Vec<f64> = (1..=sorted.len()).map(|rank| rate * rank as f64 / sorted.len() as f64).collect();
    let last = sorted.iter().zip(&ladder).rposition(|(p_value, step)| p_value < step);
    Ok(match last {
        Some(rank) => (true, Threshold::One(ladder[rank])),
        None => (false, Threshold::Ladder(ladder)),
    })
}

fn table(x: &[f64], y: &[f64]) -> Vec<Vec<f64>> {
    let mut counts: BTreeMap<u64, [f64; 2]> = BTreeMap::new();
    for (sample, values) in [x, y].into_iter().enumerate() {
        for value in values {
            counts.entry((value + 0.0).to_bits()).or_default()[sample] += 1.0;
        }
    }
    [0, 1].map(|sample| counts.values().map(|counts| counts[sample]).collect()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_strict_and_steps_up() {
        assert!(!false_discovery(&[0.05], 0.05).unwrap().0);
        // The second is above its own step, but the third is below its: all three are found.
        let (found, threshold) = false_discovery(&[0.035, 0.01, 0.036, 0.9], 0.05).unwrap();
        assert!(found && threshold == Threshold::One(0.05 * 3.0 / 4.0));
        assert!(false_discovery(&[], 0.05).is_err() && false_discovery(&[f64::NAN], 0.05).is_err());
    }

    #[test]
    fn hostile_batches_are_refused() {
        let good = vec![vec![1.0, 2.0], vec![2.0, 1.0]];
        let test = |batch: &[Vec<f64>]| {
            batch_drift(Detector::CramerVonMises, &good, batch, 0.05, Correction::Bonferroni)
        };
        assert!(test(&good).is_ok());
        assert!(
            test(&[]).is_err() && test(&[vec![1.0]]).is_err() && test(&vec![vec![1.0, f64::NAN]; 2]).is_err()
        );
    }
}
