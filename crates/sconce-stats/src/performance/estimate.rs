use super::{check_probabilities, ratio};
use crate::error::{Result, at_least, finite, same_length};
use serde::{Deserialize, Serialize};

/// Performance of a model of two classes that is expected of its own calibrated probabilities, without a label: confidence-based
/// performance estimation.
///
/// It holds as long as the probabilities stay calibrated. Where the scores leave the region that calibration saw, or the concept changes,
/// it does not, and cannot know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EstimatedPerformance {
    /// Expected true positives.
    pub true_positives: f64,
    /// Expected false positives.
    pub false_positives: f64,
    /// Expected false negatives.
    pub false_negatives: f64,
    /// Expected true negatives.
    pub true_negatives: f64,
    /// Area under the ROC curve; NaN if one class is not expected at all.
    pub roc_auc: f64,
    /// Average precision; NaN if no positive is expected.
    pub average_precision: f64,
}

/// What decisions are worth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BusinessValue {
    /// Of a negative that was called so.
    pub true_negative: f64,
    /// Of a negative that was called positive.
    pub false_positive: f64,
    /// Of a positive that was called negative.
    pub false_negative: f64,
    /// Of a positive that was called so.
    pub true_positive: f64,
}

/// Estimates performance from calibrated `probabilities` of the positive class and the raw `scores` that decisions (`score >=
/// threshold`) and ranking are made by.
///
/// Predictions of equal score share their mean probability, so the order of rows does not matter. Cumulative counts are rounded to
/// five decimals, as the reference implementation does.
///
/// # Errors
/// No prediction, different lengths, probabilities not in 0..=1, scores that are not finite.
pub fn estimate_performance(
    probabilities: &[f64],
    scores: &[f64],
    threshold: f64,
) -> Result<EstimatedPerformance> {
    at_least("probabilities", probabilities.len(), 1)?;
    same_length(("probabilities", probabilities.len()), ("scores", scores.len()))?;
    check_probabilities("probabilities", probabilities)?;
    finite("scores", scores)?;
    let (mut tp, mut fp, mut fne, mut tn) = (0.0, 0.0, 0.0, 0.0);
    for (&p, &score) in probabilities.iter().zip(scores) {
        if score >= threshold {
            tp += p;
            fp += 1.0 - p;
        } else {
            fne += p;
            tn += 1.0 - p;
        }
    }
    let (roc_auc, average_precision) = curves(probabilities, scores);
    Ok(EstimatedPerformance {
        true_positives: tp,
        false_positives: fp,
        false_negatives: fne,
        true_negatives: tn,
        roc_auc,
        average_precision,
    })
}

impl EstimatedPerformance {
    /// The expected share of decisions that are right.
    pub fn accuracy(&self) -> f64 {
        let all = self.true_positives + self.false_positives + self.false_negatives + self.true_negatives;
        ratio(self.true_positives + self.true_negatives, all)
    }

    /// The expected precision, the ratio of expected counts.
    pub fn precision(&self) -> f64 {
        ratio(self.true_positives, self.true_positives + self.false_positives)
    }

    /// The expected recall.
    pub fn recall(&self) -> f64 {
        ratio(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// The expected specificity.
    pub fn specificity(&self) -> f64 {
        ratio(self.true_negatives, self.true_negatives + self.false_positives)
    }

    /// The expected F1.
    pub fn f1(&self) -> f64 {
        ratio(self.true_positives, self.true_positives + 0.5 * (self.false_positives + self.false_negatives))
    }

    /// What all decisions together are worth.
    pub fn business_value(&self, value: &BusinessValue) -> f64 {
        value.true_negative * self.true_negatives
            + value.false_positive * self.false_positives
            + value.false_negative * self.false_negatives
            + value.true_positive * self.true_positives
    }

    /// What a negative decision is worth on average plus what a positive one is.
    pub fn business_value_per_prediction(&self, value: &BusinessValue) -> f64 {
        let negative = self.true_negatives + self.false_negatives;
        let positive = self.true_positives + self.false_positives;
        let of_negative =
            value.true_negative * self.true_negatives + value.false_negative * self.false_negatives;
        let of_positive =
            value.false_positive * self.false_positives + value.true_positive * self.true_positives;
        ratio(of_negative, negative) + ratio(of_positive, positive)
    }
}

/// ROC AUC and average precision of the expected curves.
fn curves(probabilities: &[f64], scores: &[f64]) -> (f64, f64) {
    let mut pairs: Vec<(f64, f64)> = scores.iter().copied().zip(probabilities.iter().copied()).collect();
    pairs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    for tied in pairs.chunk_by_mut(|a, b| a.0 == b.0) {
        if tied.iter().any(|pair| pair.1 != tied[0].1) {
            let mean = tied.iter().map(|pair| pair.1).sum::<f64>() / tied.len() as f64;
            tied.iter_mut().for_each(|pair| pair.1 = mean);
        }
    }
    let rounded = |value: f64| (value * 1e5).round_ties_even() / 1e5;
    let (mut area, mut precision) = (0.0, 0.0);
    let (mut exact, mut positives, mut negatives) = (0.0, 0.0, 0.0);
    for (at, (_, p)) in pairs.iter().enumerate() {
        exact += p;
        let seen = (at + 1) as f64;
        let (next_positives, next_negatives) = (rounded(exact), rounded(seen - exact));
        area += (next_negatives - negatives) * (next_positives + positives) / 2.0;
        precision += (next_positives - positives) * (next_positives / seen);
        (positives, negatives) = (next_positives, next_negatives);
    }
    (area / (positives * negatives), precision / positives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_rows_does_not_matter() {
        let (p, s) = ([0.1, 0.9, 0.4, 0.6], [0.5, 0.5, 0.5, 0.7]);
        let forward = estimate_performance(&p, &s, 0.5).unwrap();
        let backward = estimate_performance(&[0.6, 0.4, 0.9, 0.1], &[0.7, 0.5, 0.5, 0.5], 0.5).unwrap();
        assert!((forward.roc_auc - backward.roc_auc).abs() < 1e-12);
        assert!((forward.average_precision - backward.average_precision).abs() < 1e-12);
    }

    #[test]
    fn certain_probabilities_are_labels() {
        let estimate = estimate_performance(&[0.0, 1.0, 1.0], &[0.2, 0.4, 0.9], 0.5).unwrap();
        assert_eq!((estimate.roc_auc, estimate.recall(), estimate.precision()), (1.0, 0.5, 1.0));
        assert!(estimate_performance(&[0.0], &[0.2], 0.5).unwrap().average_precision.is_nan());
        assert!(
            estimate_performance(&[1.1], &[0.2], 0.5).is_err()
                && estimate_performance(&[], &[], 0.5).is_err()
        );
    }
}
