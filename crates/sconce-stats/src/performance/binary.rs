use super::{check_scores, ratio};
use crate::error::{Result, in_range};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Counts of decisions between two classes, and what follows from them; takes one decision at a time and merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BinaryConfusion {
    /// Negatives that were called so.
    pub true_negatives: u64,
    /// Negatives that were called positive.
    pub false_positives: u64,
    /// Positives that were called negative.
    pub false_negatives: u64,
    /// Positives that were called so.
    pub true_positives: u64,
}

impl BinaryConfusion {
    /// The counts of scores that are positive from `threshold` on.
    ///
    /// # Errors
    /// No label, different lengths, scores not in 0..=1.
    pub fn at_threshold(labels: &[bool], scores: &[f64], threshold: f64) -> Result<Self> {
        check_scores(labels.len(), scores)?;
        let mut counts = Self::default();
        labels.iter().zip(scores).for_each(|(&label, &score)| counts.update(label, score >= threshold));
        Ok(counts)
    }

    /// Takes a decision.
    pub fn update(&mut self, label: bool, decision: bool) {
        *match (label, decision) {
            (false, false) => &mut self.true_negatives,
            (false, true) => &mut self.false_positives,
            (true, false) => &mut self.false_negatives,
            (true, true) => &mut self.true_positives,
        } += 1;
    }

    /// Takes all that `other` took.
    pub fn merge(&mut self, other: &Self) {
        self.true_negatives += other.true_negatives;
        self.false_positives += other.false_positives;
        self.false_negatives += other.false_negatives;
        self.true_positives += other.true_positives;
    }

    /// All decisions.
    pub fn count(&self) -> u64 {
        self.true_negatives + self.false_positives + self.false_negatives + self.true_positives
    }

    /// The share of decisions that were right.
    pub fn accuracy(&self) -> f64 {
        let (tn, fp, fne, tp) = self.parts();
        ratio(tn + tp, tn + fp + fne + tp)
    }

    /// The mean of the recalls of both classes; of the one that occurs, if only one does.
    pub fn balanced_accuracy(&self) -> f64 {
        let (tn, fp, fne, tp) = self.parts();
        match (tn + fp > 0.0, fne + tp > 0.0) {
            (true, true) => 0.5 * (self.recall() + self.specificity()),
            (true, false) => self.specificity(),
            _ => self.recall(),
        }
    }

    /// The share of positive decisions that were right.
    pub fn precision(&self) -> f64 {
        let (_, fp, _, tp) = self.parts();
        ratio(tp, tp + fp)
    }

    /// The share of positives that were found.
    pub fn recall(&self) -> f64 {
        let (_, _, fne, tp) = self.parts();
        ratio(tp, tp + fne)
    }

    /// The share of negatives that were called so.
    pub fn specificity(&self) -> f64 {
        let (tn, fp, _, _) = self.parts();
        ratio(tn, tn + fp)
    }

    /// The weighted harmonic mean of precision and recall, recall counting `beta` times as much.
    pub fn f_score(&self, beta: f64) -> f64 {
        let (_, fp, fne, tp) = self.parts();
        let square = beta * beta;
        ratio((1.0 + square) * tp, (1.0 + square) * tp + square * fne + fp)
    }

    /// Matthews' correlation coefficient, from -1 to 1.
    pub fn matthews(&self) -> f64 {
        let (tn, fp, fne, tp) = self.parts();
        ratio(tp * tn - fp * fne, ((tp + fp) * (tp + fne) * (tn + fp) * (tn + fne)).sqrt())
    }

    /// Cohen's kappa, up to 1; NaN if chance would agree always.
    pub fn kappa(&self) -> f64 {
        let (tn, fp, fne, tp) = self.parts();
        let total = tn + fp + fne + tp;
        // Disagreement over that of independent decisions.
        let expected = ((tp + fne) * (tn + fne) + (tn + fp) * (tp + fp)) / total;
        if expected == 0.0 { f64::NAN } else { 1.0 - (fp + fne) / expected }
    }

    fn parts(&self) -> (f64, f64, f64, f64) {
        let part = |count: u64| count as f64;
        (
            part(self.true_negatives),
            part(self.false_positives),
            part(self.false_negatives),
            part(self.true_positives),
        )
    }
}

/// Mean negative log likelihood; probabilities are kept 2^-52 away from 0 and 1.
///
/// # Errors
/// No label, different lengths, scores not in 0..=1.
pub fn log_loss(labels: &[bool], scores: &[f64]) -> Result<f64> {
    check_scores(labels.len(), scores)?;
    let loss = |(&label, &score): (&bool, &f64)| {
        let kept = score.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
        -if label { kept.ln() } else { (-kept).ln_1p() }
    };
    Ok(labels.iter().zip(scores).map(loss).sum::<f64>() / labels.len() as f64)
}

/// Mean squared difference of score and label, from 0 to 1.
///
/// # Errors
/// No label, different lengths, scores not in 0..=1.
pub fn brier_score(labels: &[bool], scores: &[f64]) -> Result<f64> {
    check_scores(labels.len(), scores)?;
    let loss = |(&label, &score): (&bool, &f64)| (score - f64::from(u8::from(label))).powi(2);
    Ok(labels.iter().zip(scores).map(loss).sum::<f64>() / labels.len() as f64)
}

/// The area under the ROC curve: the chance that a positive scores above a negative, ties counted half. NaN with one class only.
///
/// # Errors
/// No label, different lengths, scores not in 0..=1.
pub fn roc_auc(labels: &[bool], scores: &[f64]) -> Result<f64> {
    check_scores(labels.len(), scores)?;
    Ok(auc_of(labels.iter().copied().zip(scores.iter().copied()).collect()))
}

/// As [`roc_auc`], of any scores but NaN.
pub(super) fn auc_of(mut pairs: Vec<(bool, f64)>) -> f64 {
    pairs.sort_unstable_by(|a, b| a.1.total_cmp(&b.1));
    let (mut negatives, mut positives, mut concordant) = (0.0, 0.0, 0.0);
    for tied in pairs.chunk_by(|a, b| a.1 == b.1) {
        let positive = tied.iter().filter(|(label, _)| *label).count() as f64;
        let negative = tied.len() as f64 - positive;
        concordant += positive * (negatives + 0.5 * negative);
        negatives += negative;
        positives += positive;
    }
    concordant / (positives * negatives)
}

/// The mean of the precisions at each distinct score, weighted by the recall that is won there. NaN without a positive.
///
/// # Errors
/// No label, different lengths, scores not in 0..=1.
pub fn average_precision(labels: &[bool], scores: &[f64]) -> Result<f64> {
    check_scores(labels.len(), scores)?;
    let mut pairs: Vec<(bool, f64)> = labels.iter().copied().zip(scores.iter().copied()).collect();
    pairs.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    let (mut seen, mut found, mut sum) = (0.0, 0.0, 0.0);
    for tied in pairs.chunk_by(|a, b| a.1 == b.1) {
        let positive = tied.iter().filter(|(label, _)| *label).count() as f64;
        seen += tied.len() as f64;
        found += positive;
        sum += positive * (found / seen);
    }
    Ok(sum / found)
}

/// Expected calibration error over `bins` of equal width, the last one closed: the mean distance of score and share of positives.
///
/// # Errors
/// No label, different lengths, scores not in 0..=1, no bin or more than 10,000.
pub fn calibration_error(labels: &[bool], scores: &[f64], bins: usize) -> Result<f64> {
    check_scores(labels.len(), scores)?;
    in_range("bins", bins as f64, (1..=10_000).contains(&bins), "a number from 1 to 10,000")?;
    let edge = |bin: usize| bin as f64 / bins as f64;
    // Scores, positives and count of each bin.
    let mut sums = vec![(0.0, 0.0, 0.0); bins];
    for (&label, &score) in labels.iter().zip(scores) {
        let mut bin = ((score * bins as f64) as usize).min(bins - 1);
        // The product may have been rounded over an edge.
        if score < edge(bin) {
            bin -= 1;
        } else if bin + 1 < bins && score >= edge(bin + 1) {
            bin += 1;
        }
        sums[bin].0 += score;
        sums[bin].1 += f64::from(u8::from(label));
        sums[bin].2 += 1.0;
    }
    let total = labels.len() as f64;
    let filled = sums.iter().filter(|sum| sum.2 > 0.0);
    Ok(filled.map(|(score, positive, count)| count / total * (score / count - positive / count).abs()).sum())
}

/// ROC AUC over a window of the newest predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollingAuc {
    window: usize,
    recent: VecDeque<(bool, f64)>,
}

impl RollingAuc {
    /// Empty.
    ///
    /// # Errors
    /// A window of 0 or above 1,000,000.
    pub fn new(window: usize) -> Result<Self> {
        in_range("window", window as f64, (1..=1_000_000).contains(&window), "a number from 1 to 1,000,000")?;
        Ok(Self { window, recent: VecDeque::new() })
    }

    /// Takes a prediction.
    ///
    /// # Errors
    /// A score not in 0..=1.
    pub fn update(&mut self, label: bool, score: f64) -> Result<()> {
        in_range("score", score, (0.0..=1.0).contains(&score), "a number between 0 and 1")?;
        if self.recent.len() == self.window {
            self.recent.pop_front();
        }
        self.recent.push_back((label, score));
        Ok(())
    }

    /// The AUC of the window, computed when asked for; NaN with one class only.
    pub fn auc(&self) -> f64 {
        auc_of(self.recent.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfect_and_reversed_scores_are_at_the_ends() {
        let labels = [false, false, true, true];
        let (good, bad) = ([0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1]);
        assert_eq!((roc_auc(&labels, &good).unwrap(), roc_auc(&labels, &bad).unwrap()), (1.0, 0.0));
        assert_eq!(average_precision(&labels, &good).unwrap(), 1.0);
        let counts = BinaryConfusion::at_threshold(&labels, &good, 0.5).unwrap();
        assert_eq!(
            (counts.accuracy(), counts.matthews(), counts.kappa(), counts.f_score(1.0)),
            (1.0, 1.0, 1.0, 1.0)
        );
        let counts = BinaryConfusion::at_threshold(&labels, &bad, 0.5).unwrap();
        assert_eq!((counts.accuracy(), counts.matthews(), counts.kappa()), (0.0, -1.0, -1.0));
    }

    #[test]
    fn what_has_no_answer_is_nan_or_refused() {
        assert!(roc_auc(&[true, true], &[0.1, 0.2]).unwrap().is_nan());
        assert!(average_precision(&[false], &[0.1]).unwrap().is_nan());
        assert!(
            roc_auc(&[], &[]).is_err() && roc_auc(&[true], &[1.5]).is_err() && roc_auc(&[true], &[]).is_err()
        );
        assert!(log_loss(&[true], &[f64::NAN]).is_err() && calibration_error(&[true], &[0.5], 0).is_err());
    }

    #[test]
    fn a_rolling_window_forgets() {
        let mut rolling = RollingAuc::new(2).unwrap();
        for (label, score) in [(true, 0.1), (false, 0.2), (true, 0.9)] {
            rolling.update(label, score).unwrap();
        }
        assert_eq!(rolling.auc(), 1.0);
        assert!(rolling.update(true, 2.0).is_err() && RollingAuc::new(0).is_err());
    }
}
