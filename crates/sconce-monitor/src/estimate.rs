use crate::cells::Cells;
use crate::error::{MonitorError, Result};
use crate::reference::{ColumnKind, ColumnSpec, Profile, Reference};
use crate::value::Value;
use crate::verdict::{State, Verdict};
use crate::window::Pane;
use sconce_stats::Interval;
use sconce_stats::performance::{
    BinaryConfusion, BinarySamplingError, CalibrationGain, DECISION_THRESHOLD, Isotonic, brier_score,
    calibration_error, calibration_gain, estimate_performance, log_loss, roc_auc,
};
use serde::{Deserialize, Serialize};

/// Standard errors that a band reaches to either side.
const REACH: f64 = 3.0;
/// Rows without a counterpart in the reference beyond which an estimate says nothing.
const MOST_UNKNOWN: f64 = 0.25;
/// Bins of the expected calibration error.
const CALIBRATION_BINS: usize = 10;

/// What a model of two classes was worth where labels were known, and how its scores were calibrated there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Where scores are no probabilities: what they must become.
    calibration: Option<Isotonic>,
    sampling: BinarySamplingError,
    scores: Reference,
    /// What labels said.
    pub metrics: BinaryMetrics,
}

/// What is stored of the data that a model was fitted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// What it looked like.
    pub reference: Reference,
    /// What the model was worth there, if labels and scores were known.
    pub baseline: Option<Baseline>,
}

/// Metrics of two classes; NaN where a class is missing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BinaryMetrics {
    /// Predictions they are about.
    pub count: u64,
    /// The share of decisions that are right.
    pub accuracy: f64,
    /// Of positive decisions, the share that is right.
    pub precision: f64,
    /// Of positives, the share that is found.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// The area under the ROC curve.
    pub roc_auc: f64,
    /// The correlation of decisions and labels.
    pub matthews: f64,
    /// Mean logarithmic loss.
    pub log_loss: f64,
    /// Mean squared difference of score and label.
    pub brier: f64,
    /// Expected calibration error over ten bins.
    pub calibration_error: f64,
}

/// Whether an estimate can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Rows and scores are such as calibration has seen.
    Holds,
    /// Some are not: the bands are wider by their share.
    Widened,
    /// Too many are not: the figures mean nothing.
    Broken,
}

/// Performance that is expected without a label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Scores it is made from.
    pub count: u64,
    /// Of decisions that are right.
    pub accuracy: Estimated,
    /// F1.
    pub f1: Estimated,
    /// The area under the ROC curve; NaN if one class is not expected at all.
    pub roc_auc: Estimated,
    /// Whether to believe it.
    pub trust: Trust,
    /// The share of rows that have no counterpart in the reference: of the feature, or the score, that has most of them.
    pub unknown: f64,
    /// Which that is.
    pub most_unknown: String,
}

/// A figure and its band: three standard errors of sampling, and the share of rows that nothing is known of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimated {
    /// The figure.
    pub value: f64,
    /// Its band, within 0 and 1.
    pub band: Interval,
}

impl BinaryMetrics {
    /// Of labels and scores, with decisions at 0.5.
    ///
    /// # Errors
    /// No label, different lengths, scores not in 0..=1.
    pub fn of(labels: &[bool], scores: &[f64]) -> Result<Self> {
        let counts = BinaryConfusion::at_threshold(labels, scores, DECISION_THRESHOLD)?;
        Ok(Self {
            count: counts.count(),
            accuracy: counts.accuracy(),
            precision: counts.precision(),
            recall: counts.recall(),
            f1: counts.f_score(1.0),
            roc_auc: roc_auc(labels, scores)?,
            matthews: counts.matthews(),
            log_loss: log_loss(labels, scores)?,
            brier: brier_score(labels, scores)?,
            calibration_error: calibration_error(labels, scores, CALIBRATION_BINS)?,
        })
    }
}

impl Baseline {
    /// From rows with labels. Scores are calibrated if that brings them nearer to the labels on rows that calibration has not seen.
    ///
    /// # Errors
    /// No label, different lengths, scores not in 0..=1.
    pub fn fit(labels: &[bool], scores: &[f64]) -> Result<Self> {
        let metrics = BinaryMetrics::of(labels, scores)?;
        // So few labels that no part of them can be held back are not calibrated.
        let gain = calibration_gain(labels, scores).unwrap_or(None);
        let calibration = if gain.as_ref().is_some_and(CalibrationGain::helps) {
            let targets: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
            Some(Isotonic::fit(scores, &targets)?)
        } else {
            None
        };
        let sampling = BinarySamplingError::fit(labels, scores)?;
        let mut known =
            Reference::new(&[ColumnSpec { name: "score".to_owned(), kind: ColumnKind::Numeric }])?;
        scores.iter().try_for_each(|score| known.update(&[Value::Number(*score)]))?;
        Ok(Self { calibration, sampling, scores: known, metrics })
    }

    /// What the model is worth on rows with these scores, by their own calibrated probabilities; ties are grouped, so order does not
    /// matter.
    ///
    /// That holds while probabilities stay calibrated, which no score can show. What can be shown is where rows are ones that
    /// calibration never saw: `inputs`, the verdict on the same rows, and the scores themselves tell how many of them have no counterpart
    /// in the reference. These may be right or wrong, so the bands are wider by their share; beyond a quarter the estimate is
    /// broken.
    ///
    /// # Errors
    /// No score, scores not in 0..=1.
    pub fn estimate(&self, scores: &[f64], inputs: Option<&Verdict>) -> Result<Estimate> {
        let calibrated: Vec<f64> = match &self.calibration {
            Some(calibration) => {
                scores.iter().map(|score| calibration.predict(*score).clamp(0.0, 1.0)).collect()
            }
            None => scores.to_vec(),
        };
        let expected = estimate_performance(&calibrated, scores, DECISION_THRESHOLD)?;
        let errors = self.sampling.of_chunk(scores.len() as u64)?;
        let (unknown, most_unknown) = self.unknown(scores, inputs)?;
        let estimated = |value: f64, error: f64| {
            let error = if error.is_finite() { error } else { 1.0 };
            let band = Interval::around(value, REACH * error + unknown);
            Estimated { value, band: band.intersection(&Interval { low: 0.0, high: 1.0 }) }
        };
        let trust = match unknown {
            0.0 => Trust::Holds,
            share if share <= MOST_UNKNOWN => Trust::Widened,
            _ => Trust::Broken,
        };
        Ok(Estimate {
            count: scores.len() as u64,
            accuracy: estimated(expected.accuracy(), errors.accuracy),
            f1: estimated(expected.f1(), errors.f1),
            roc_auc: estimated(expected.roc_auc, errors.roc_auc),
            trust,
            unknown,
            most_unknown,
        })
    }

    /// The share of rows without a counterpart, of what has most, and what that is. What has not drifted has none.
    fn unknown(&self, scores: &[f64], inputs: Option<&Verdict>) -> Result<(f64, String)> {
        let column = &self.scores.columns()[0];
        let Profile::Numeric(numbers) = &column.profile else {
            return Err(MonitorError::unfit("baseline", "scores that are numbers", "others"));
        };
        let cells = [Cells::numeric(numbers, column.missing)?];
        let mut pane = Pane::new(&cells, 0);
        scores.iter().for_each(|score| {
            pane.features[0].update(&cells[0], Value::Number(*score));
        });
        let excess = |pairs: &mut dyn Iterator<Item = (f64, f64)>| {
            pairs.map(|(then, now)| (now - then).max(0.0)).sum::<f64>()
        };
        let shares = |counts: &[u64]| -> Vec<f64> {
            let total = counts.iter().sum::<u64>().max(1) as f64;
            counts.iter().map(|count| *count as f64 / total).collect()
        };
        let counts = &pane.features[0].counts;
        let is_moved = cells[0].same.log_e(counts)? >= SURE;
        let of_scores = excess(&mut shares(&cells[0].counts).into_iter().zip(shares(counts)));
        let mut most = if is_moved { (of_scores, column.name.clone()) } else { (0.0, column.name.clone()) };
        for feature in inputs.iter().flat_map(|verdict| &verdict.features) {
            if feature.state == State::Drifted {
                let share = excess(&mut feature.cells.iter().map(|cell| (cell.reference, cell.current)));
                if share > most.0 {
                    most = (share, feature.feature.clone());
                }
            }
        }
        Ok(most)
    }
}

/// Evidence, as a logarithm, from which scores count as moved: of a hundred thousand.
const SURE: f64 = 11.5;

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// Scores of a model that says `p` for a true probability of `p` to the power of `bend`.
    fn drawn(random: &mut Rng, count: usize, bend: f64, from: f64) -> (Vec<bool>, Vec<f64>) {
        let scores: Vec<f64> = (0..count).map(|_| from + (1.0 - from) * random.f64()).collect();
        (scores.iter().map(|score| random.f64() < score.powf(bend)).collect(), scores)
    }

    #[test]
    fn what_labels_would_say_is_estimated_without_them() {
        let mut random = Rng::with_seed(61);
        for bend in [1.0, 2.5] {
            let (labels, scores) = drawn(&mut random, 20_000, bend, 0.0);
            let baseline = Baseline::fit(&labels, &scores).unwrap();
            let mut inside = 0;
            for _ in 0..50 {
                let (labels, scores) = drawn(&mut random, 1_000, bend, 0.0);
                let estimate = baseline.estimate(&scores, None).unwrap();
                let realised = BinaryMetrics::of(&labels, &scores).unwrap();
                assert_eq!(estimate.trust, Trust::Holds);
                inside += u32::from(estimate.accuracy.band.contains(realised.accuracy));
                assert!((estimate.roc_auc.value - realised.roc_auc).abs() < 0.06);
            }
            assert!(inside >= 48, "{bend}: {inside}");
        }
    }

    #[test]
    fn where_scores_leave_what_was_calibrated_the_band_widens_and_breaks() {
        let mut random = Rng::with_seed(62);
        let (labels, scores) = drawn(&mut random, 20_000, 1.0, 0.0);
        let baseline = Baseline::fit(&labels, &scores).unwrap();
        let estimate =
            |from| baseline.estimate(&drawn(&mut Rng::with_seed(63), 2_000, 1.0, from).1, None).unwrap();
        let (some, many) = (estimate(0.15), estimate(0.5));
        assert_eq!((some.trust, many.trust), (Trust::Widened, Trust::Broken));
        assert!(
            (0.1..0.25).contains(&some.unknown) && many.unknown > 0.4,
            "{} {}",
            some.unknown,
            many.unknown
        );
        assert!(some.accuracy.band.low <= some.accuracy.value - some.unknown);
    }

    #[test]
    fn it_is_stored_and_wrong_input_is_refused() {
        let mut random = Rng::with_seed(64);
        let (labels, scores) = drawn(&mut random, 3_000, 2.0, 0.0);
        let baseline = Baseline::fit(&labels, &scores).unwrap();
        let text = serde_json::to_string(&baseline).unwrap();
        assert!(text.len() < 20_000, "{}", text.len());
        assert!(serde_json::from_str::<Baseline>(&text).unwrap() == baseline);
        assert!(Baseline::fit(&[], &[]).is_err() && Baseline::fit(&[true], &[1.5]).is_err());
        assert!(baseline.estimate(&[], None).is_err() && baseline.estimate(&[f64::NAN], None).is_err());
        let one = Baseline::fit(&[true; 5], &[0.9; 5]).unwrap();
        assert!(one.estimate(&[0.9], None).unwrap().roc_auc.band.high <= 1.0);
    }
}
