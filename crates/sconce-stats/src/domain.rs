//! A domain classifier (adversarial validation): can reference and current rows be told apart? It sees what changes between
//! columns jointly move, where tests of single columns see nothing or too much.

use crate::Interval;
use crate::error::{Result, StatsError, at_least, finite, in_range, open_unit, positive, same_length};
use crate::linalg::{Matrix, solve};
use crate::two_sample::{AreaUnderCurve, area_under_curve, judge_area};
use serde::{Deserialize, Serialize};

/// Rows times the square of the features: what one step of the fit costs.
const MOST_WORK: usize = 100_000_000;
/// Standardised values are cut off here, lest an outlier decides.
const LARGEST: f64 = 4.0;
/// Newton's method on a strictly convex loss: in practice fewer than ten.
const MOST_STEPS: u32 = 50;

/// How the classifier is fitted and judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DomainOptions {
    /// Every row is scored by a classifier that was fitted to the other folds, 2 to 20.
    pub folds: usize,
    /// The ridge penalty on each weight, against a loss that sums over the rows.
    pub penalty: f64,
    /// The confidence of the interval.
    pub confidence: f64,
    /// Decides which rows are in which fold.
    pub seed: u64,
}

impl Default for DomainOptions {
    fn default() -> Self {
        Self { folds: 5, penalty: 1.0, confidence: 0.95, seed: 0 }
    }
}

/// What [`domain_classifier`] says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainDrift {
    /// The area under the ROC curve of the scores out of fold: 0.5 if the rows cannot be told apart, 1 if always.
    pub auc: f64,
    /// Its interval.
    pub interval: Interval,
    /// How likely an area as large is if nothing differs: one-sided.
    pub p_value: f64,
    /// The share of each column in the weights, adding up to 1 (or all 0): where to look first.
    pub importance: Vec<f64>,
}

/// Fits logistic regressions that tell current from reference rows, and scores every row by one that has not seen it.
///
/// Columns are standardised by both samples together and enter as they are and squared, so that a change of spread is seen like
/// one of the mean; both samples weigh alike whatever their sizes. The area is the mean over the folds, whose classifiers differ
/// and whose scores must not be mixed; its variance is DeLong's of each fold, corrected for the rows that their classifiers
/// share (Nadeau and Bengio, "Inference for the generalization error", 2003), which keeps false alarms below the level.
///
/// # Errors
///
/// Fewer than two rows a fold in a sample, rows without or of different length, values that are not finite, options outside
/// their range, more than 10^8 rows times squared features (a feature being a column or its square).
pub fn domain_classifier(
    reference: &[Vec<f64>],
    current: &[Vec<f64>],
    options: &DomainOptions,
) -> Result<DomainDrift> {
    let DomainOptions { folds, penalty, confidence, seed } = *options;
    in_range("folds", folds as f64, (2..=20).contains(&folds), "2 to 20")?;
    positive("penalty", penalty)?;
    open_unit("confidence", confidence)?;
    at_least("reference", reference.len(), 2 * folds)?;
    at_least("current", current.len(), 2 * folds)?;
    let columns = reference[0].len();
    at_least("columns", columns, 1)?;
    for row in reference.iter().chain(current) {
        same_length(("first row", columns), ("row", row.len()))?;
        finite("row", row)?;
    }
    let features = 2 * columns + 1;
    let work = (reference.len() + current.len()).saturating_mul(features).saturating_mul(features);
    if work > MOST_WORK {
        return Err(StatsError::TooMany { name: "rows * features * features", most: MOST_WORK, got: work });
    }

    let (reference, current) = standardised(reference, current);
    let mut random = SplitMix64(seed);
    let (in_reference, in_current) =
        (assign(reference.len(), folds, &mut random), assign(current.len(), folds, &mut random));
    let (mut auc, mut variance, mut pairs) = (0.0, 0.0, 0);
    let mut importance = vec![0.0; columns];
    let count = folds as f64;
    for fold in 0..folds {
        let others = |rows: &'_ [Vec<f64>], folds: &[usize]| -> Vec<usize> {
            (0..rows.len()).filter(|&row| folds[row] != fold).collect()
        };
        let weights = fit(
            (&reference, &others(&reference, &in_reference)),
            (&current, &others(&current, &in_current)),
            penalty,
        )?;
        let scores = |rows: &[Vec<f64>], folds: &[usize]| -> Vec<f64> {
            rows.iter().zip(folds).filter(|(_, of)| **of == fold).map(|(row, _)| dot(&weights, row)).collect()
        };
        let area: AreaUnderCurve =
            area_under_curve(&scores(&current, &in_current), &scores(&reference, &in_reference), confidence)?;
        auc += area.auc / count;
        variance += area.variance / count;
        pairs += (reference.len() / folds).min(current.len() / folds);
        for (column, share) in importance.iter_mut().enumerate() {
            *share += weights[1 + column].hypot(weights[1 + columns + column]);
        }
    }
    let total: f64 = importance.iter().sum();
    if total > 0.0 {
        importance.iter_mut().for_each(|share| *share /= total);
    }
    // The classifiers share most of their rows, and so the folds' areas vary together.
    variance *= 1.0 / count + 1.0 / (count - 1.0);
    let AreaUnderCurve { interval, p_value, .. } = judge_area(auc, variance, pairs, confidence);
    Ok(DomainDrift { auc, interval, p_value, importance })
}

/// The rows as features: 1, the standardised columns, and their squares less 1.
fn standardised(reference: &[Vec<f64>], current: &[Vec<f64>]) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let columns = reference[0].len();
    let total = (reference.len() + current.len()) as f64;
    let scales: Vec<(f64, f64)> = (0..columns)
        .map(|column| {
            let values = || reference.iter().chain(current).map(|row| row[column]);
            let mean = values().sum::<f64>() / total;
            let deviation = (values().map(|value| (value - mean).powi(2)).sum::<f64>() / total).sqrt();
            (mean, deviation)
        })
        .collect();
    let features = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
        rows.iter()
            .map(|row| {
                let z = |column: usize| {
                    let (mean, deviation) = scales[column];
                    let z = (row[column] - mean) / deviation;
                    // Constant columns, and those too large for a variance, say nothing.
                    if z.is_finite() { z.clamp(-LARGEST, LARGEST) } else { 0.0 }
                };
                let mut features = vec![1.0];
                features.extend((0..columns).map(z));
                features.extend((0..columns).map(|column| z(column).powi(2) - 1.0));
                features
            })
            .collect()
    };
    (features(reference), features(current))
}

/// Which fold each row is in: all as large as possible, shuffled.
fn assign(rows: usize, folds: usize, random: &mut SplitMix64) -> Vec<usize> {
    let mut assigned: Vec<usize> = (0..rows).map(|row| row % folds).collect();
    for row in (1..rows).rev() {
        assigned.swap(row, random.below(row + 1));
    }
    assigned
}

/// The weights of a logistic regression of current (1) against reference (0) rows, ridge-penalised but for the first: Newton's
/// method, halving steps that do not lower the loss.
fn fit(
    reference: (&[Vec<f64>], &[usize]),
    current: (&[Vec<f64>], &[usize]),
    penalty: f64,
) -> Result<Vec<f64>> {
    let (n, m) = (reference.1.len() as f64, current.1.len() as f64);
    let half = (n + m) / 2.0;
    // Each row with its label and a weight by which both labels sum to the same.
    let rows: Vec<(&[f64], f64, f64)> = reference
        .1
        .iter()
        .map(|&row| (reference.0[row].as_slice(), 0.0, half / n))
        .chain(current.1.iter().map(|&row| (current.0[row].as_slice(), 1.0, half / m)))
        .collect();
    let size = rows[0].0.len();
    let loss = |weights: &[f64]| -> f64 {
        let ridge: f64 = weights[1..].iter().map(|weight| weight * weight).sum();
        let misfit: f64 = rows
            .iter()
            .map(|&(row, label, weight)| {
                let score = dot(weights, row);
                weight * (softplus(score) - label * score)
            })
            .sum();
        misfit + 0.5 * penalty * ridge
    };
    let mut weights = vec![0.0; size];
    let mut current_loss = loss(&weights);
    for _ in 0..MOST_STEPS {
        let mut gradient = vec![0.0; size];
        let mut curvature = Matrix::zero(size, size);
        for &(row, label, weight) in &rows {
            let probability = 1.0 / (1.0 + (-dot(&weights, row)).exp());
            let pull = weight * (label - probability);
            let spread = weight * probability * (1.0 - probability);
            for (i, &value) in row.iter().enumerate() {
                gradient[i] += pull * value;
                let scaled = spread * value;
                for (entry, other) in curvature.row_mut(i)[..=i].iter_mut().zip(row) {
                    *entry += scaled * other;
                }
            }
        }
        for i in 0..size {
            if i > 0 {
                gradient[i] -= penalty * weights[i];
                curvature[(i, i)] += penalty;
            }
            for j in 0..i {
                curvature[(j, i)] = curvature[(i, j)];
            }
        }
        // The intercept has no penalty; where all probabilities are certain it needs something.
        curvature[(0, 0)] += 1e-9;
        let step = solve(curvature, &gradient)?;
        let mut share = 1.0;
        let (next, next_loss) = loop {
            let next: Vec<f64> =
                weights.iter().zip(&step).map(|(weight, step)| weight + share * step).collect();
            let next_loss = loss(&next);
            if next_loss <= current_loss || share < 1e-6 {
                break (next, next_loss);
            }
            share *= 0.5;
        };
        let gained = current_loss - next_loss;
        if gained >= 0.0 {
            weights = next;
            current_loss = next_loss;
        }
        if gained <= 1e-10 * current_loss.abs() {
            break;
        }
    }
    Ok(weights)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// A small generator whose numbers will never change with a library's version, and so the folds neither.
struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((u128::from(z) * limit as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn rows(random: &mut Rng, count: usize, mut make: impl FnMut(&mut Rng) -> Vec<f64>) -> Vec<Vec<f64>> {
        (0..count).map(|_| make(random)).collect()
    }

    fn normal(random: &mut Rng) -> f64 {
        (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
    }

    #[test]
    fn nothing_a_shift_and_a_spread_are_told_apart() {
        let mut random = Rng::with_seed(3);
        let options = DomainOptions::default();
        let plain = |random: &mut Rng| vec![normal(random), normal(random), normal(random)];
        let reference = rows(&mut random, 400, plain);
        let same = domain_classifier(&reference, &rows(&mut random, 300, plain), &options).unwrap();
        assert!(same.interval.contains(0.5) && same.p_value > 0.01, "{same:?}");
        let moved =
            rows(&mut random, 300, |random| vec![normal(random), normal(random) + 1.0, normal(random)]);
        let moved = domain_classifier(&reference, &moved, &options).unwrap();
        assert!(moved.auc > 0.7 && moved.p_value < 1e-9 && moved.importance[1] > 0.7, "{moved:?}");
        let wider =
            rows(&mut random, 300, |random| vec![normal(random), normal(random), 2.0 * normal(random)]);
        let wider = domain_classifier(&reference, &wider, &options).unwrap();
        assert!(wider.auc > 0.6 && wider.importance[2] > 0.7, "{wider:?}");
    }

    #[test]
    fn false_alarms_are_as_rare_as_the_level() {
        let mut random = Rng::with_seed(11);
        let options = DomainOptions::default();
        let plain = |random: &mut Rng| vec![normal(random), random.f64()];
        let alarms = (0..200)
            .filter(|_| {
                let (x, y) = (rows(&mut random, 120, plain), rows(&mut random, 60, plain));
                domain_classifier(&x, &y, &options).unwrap().p_value < 0.05
            })
            .count();
        // 10 at the level; the standard deviation is 3. The plain variance of five folds has 23.
        assert!(alarms <= 14, "{alarms}");
    }

    #[test]
    fn the_seed_decides_and_separation_is_no_trouble() {
        let mut random = Rng::with_seed(5);
        let (x, y) = (
            rows(&mut random, 40, |random| vec![random.f64()]),
            rows(&mut random, 30, |random| vec![random.f64() + 100.0]),
        );
        let options = DomainOptions::default();
        let apart = domain_classifier(&x, &y, &options).unwrap();
        assert!(apart.auc == 1.0 && apart.interval.low > 0.8 && apart.p_value < 1e-6, "{apart:?}");
        assert_eq!(apart, domain_classifier(&x, &y, &options).unwrap());
        let constant = vec![vec![2.0, 2.0]; 30];
        let blind = domain_classifier(&constant, &constant, &options).unwrap();
        assert_eq!((blind.auc, blind.importance), (0.5, vec![0.0, 0.0]));
    }

    #[test]
    fn hostile_rows_are_refused() {
        let options = DomainOptions::default();
        let good = vec![vec![1.0, 2.0]; 10];
        let few = vec![vec![1.0, 2.0]; 9];
        let ragged = vec![vec![1.0]; 10];
        let odd = vec![vec![1.0, f64::NAN]; 10];
        for bad in [&few, &ragged, &odd, &Vec::new()] {
            assert!(domain_classifier(&good, bad, &options).is_err());
            assert!(domain_classifier(bad, &good, &options).is_err());
        }
        let wide = vec![vec![0.0; 5_000]; 10];
        assert!(matches!(domain_classifier(&wide, &wide, &options), Err(StatsError::TooMany { .. })));
        for options in [
            DomainOptions { folds: 1, ..options },
            DomainOptions { penalty: 0.0, ..options },
            DomainOptions { confidence: 1.0, ..options },
        ] {
            assert!(domain_classifier(&good, &good, &options).is_err());
        }
        let huge = vec![vec![f64::MAX, -f64::MAX]; 10];
        assert!(domain_classifier(&good, &huge, &options).is_ok());
    }
}
