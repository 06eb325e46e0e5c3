use super::{DECISION_THRESHOLD, check_scores};
use crate::error::{Result, in_range};
use serde::{Deserialize, Serialize};

/// How much metrics of two classes vary by chance from one chunk to the next, learned from a reference with labels. What the reference
/// cannot tell (nothing relevant in it) is NaN.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BinarySamplingError {
    roc_auc: Component,
    f1: Component,
    precision: Component,
    recall: Component,
    specificity: Component,
    accuracy: Component,
}

/// The standard deviation a relevant observation contributes, and the share of observations that are relevant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Component {
    deviation: f64,
    share: f64,
}

/// Standard errors of metrics of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplingErrors {
    /// Of ROC AUC.
    pub roc_auc: f64,
    /// Of F1.
    pub f1: f64,
    /// Of precision.
    pub precision: f64,
    /// Of recall.
    pub recall: f64,
    /// Of specificity.
    pub specificity: f64,
    /// Of accuracy.
    pub accuracy: f64,
}

impl BinarySamplingError {
    /// Learns from a reference; decisions are made at [`DECISION_THRESHOLD`].
    ///
    /// # Errors
    /// No label, different lengths, scores not in 0..=1.
    pub fn fit(labels: &[bool], scores: &[f64]) -> Result<Self> {
        check_scores(labels.len(), scores)?;
        let all = labels.len() as f64;
        let count = |label: bool, decision: bool| {
            let picked = labels.iter().zip(scores);
            picked.filter(|(l, s)| **l == label && (**s >= DECISION_THRESHOLD) == decision).count() as f64
        };
        let (tp, fp, fne, tn) =
            (count(true, true), count(false, true), count(true, false), count(false, false));
        // Of so many ones and zeros.
        let share = |ones: f64, zeros: f64| {
            let p = ones / (ones + zeros);
            Component { deviation: (p * (1.0 - p)).sqrt(), share: (ones + zeros) / all }
        };
        let f1 = share(tp, fp + fne);
        let scale = (tp + fp + fne) / (0.5 * (fp + fne) + tp);
        Ok(Self {
            roc_auc: auc_component(labels, scores),
            f1: Component { deviation: f1.deviation * scale, ..f1 },
            precision: share(tp, fp),
            recall: share(tp, fne),
            specificity: share(tn, fp),
            accuracy: share(tp + tn, fp + fne),
        })
    }

    /// The standard errors in a chunk of so many predictions.
    ///
    /// # Errors
    /// An empty chunk.
    pub fn of_chunk(&self, predictions: u64) -> Result<SamplingErrors> {
        in_range("predictions", predictions as f64, predictions > 0, "at least 1")?;
        let error =
            |component: Component| component.deviation / (predictions as f64 * component.share).sqrt();
        Ok(SamplingErrors {
            roc_auc: error(self.roc_auc),
            f1: error(self.f1),
            precision: error(self.precision),
            recall: error(self.recall),
            specificity: error(self.specificity),
            accuracy: error(self.accuracy),
        })
    }
}

/// Of the rarer class: the spread of the share of the other that each of its members outranks, ties counted half.
fn auc_component(labels: &[bool], scores: &[f64]) -> Component {
    let positives = labels.iter().filter(|label| **label).count();
    let flip = 2 * positives > labels.len();
    let turned = |(&label, &score): (&bool, &f64)| if flip { (1.0 - score, !label) } else { (score, label) };
    let mut pairs: Vec<(f64, bool)> = labels.iter().zip(scores).map(turned).collect();
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let rare = pairs.iter().filter(|pair| pair.1).count() as f64;
    let others = labels.len() as f64 - rare;
    let (mut below, mut outranked) = (0.0, Vec::new());
    for tied in pairs.chunk_by(|a, b| a.0 == b.0) {
        let members = tied.iter().filter(|pair| pair.1).count();
        let beside = (tied.len() - members) as f64;
        outranked.extend(std::iter::repeat_n((below + 0.5 * beside) / others, members));
        below += beside;
    }
    // The reference implementation leaves the very lowest out.
    if pairs.first().is_some_and(|lowest| lowest.1) {
        outranked.remove(0);
    }
    let n = outranked.len() as f64;
    let mean = outranked.iter().sum::<f64>() / n;
    let variance = outranked.iter().map(|share| (share - mean) * (share - mean)).sum::<f64>() / n;
    Component { deviation: variance.sqrt(), share: rare / labels.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn the_stated_error_is_the_spread_of_chunks() {
        let mut random = Rng::with_seed(73);
        let mut draw = |n: usize| -> (Vec<bool>, Vec<f64>) {
            let scores: Vec<f64> = (0..n).map(|_| random.f64()).collect();
            (scores.iter().map(|score| random.f64() < *score).collect(), scores)
        };
        let (labels, scores) = draw(5_000);
        let stated = BinarySamplingError::fit(&labels, &scores).unwrap().of_chunk(100).unwrap().accuracy;
        let chunks = (0..500).map(|_| {
            let (labels, scores) = draw(100);
            super::super::BinaryConfusion::at_threshold(&labels, &scores, 0.5).unwrap().accuracy()
        });
        let seen: Vec<f64> = chunks.collect();
        let mean = seen.iter().sum::<f64>() / 500.0;
        let spread = (seen.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 500.0).sqrt();
        assert!((stated / spread - 1.0).abs() < 0.1, "{stated} {spread}");
    }

    #[test]
    fn a_reference_of_one_class_knows_nothing_of_the_other() {
        let errors = BinarySamplingError::fit(&[true; 5], &[0.9; 5]).unwrap().of_chunk(10).unwrap();
        assert!(errors.roc_auc.is_nan() && errors.specificity.is_nan() && errors.accuracy == 0.0);
        assert!(BinarySamplingError::fit(&[], &[]).is_err());
        assert!(BinarySamplingError::fit(&[true], &[0.5]).unwrap().of_chunk(0).is_err());
    }
}
