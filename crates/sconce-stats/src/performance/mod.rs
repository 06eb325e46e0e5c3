//! How good predictions are: with labels, and without them.
//!
//! Labels of two classes are `true` for the positive one, scores are its probability. Metrics that are 0/0 are 0 where the
//! field has settled on that (precision, recall, F, MCC), and NaN where there is no answer (ROC AUC of one class).

mod binary;
mod calibration;
mod estimate;
mod isotonic;
mod multiclass;
mod ranking;
mod reconstruction;
mod regression;
mod sampling_error;
mod shuffle;
mod thresholds;

pub use binary::{
    BinaryConfusion, RollingAuc, average_precision, brier_score, calibration_error, log_loss, roc_auc,
};
pub use calibration::{CalibrationGain, calibration_gain, equal_count_bins, quantile_calibration_error};
pub use estimate::{BusinessValue, EstimatedPerformance, estimate_performance};
pub use isotonic::Isotonic;
pub use multiclass::{Average, Confusion, MulticlassAuc, multiclass_auc, multiclass_log_loss};
pub use ranking::{Ranking, ranking};
pub use reconstruction::{Reconstruction, ReconstructionError};
pub use regression::{Regression, regression};
pub use sampling_error::{BinarySamplingError, SamplingErrors};
pub use thresholds::{Thresholds, deviation_thresholds};

use crate::error::{Result, at_least, in_range, same_length};

/// Scores from which on the positive class is predicted, everywhere where nobody says otherwise.
pub const DECISION_THRESHOLD: f64 = 0.5;

/// Labels and probabilities that belong together, at least one.
fn check_scores(labels: usize, scores: &[f64]) -> Result<()> {
    at_least("labels", labels, 1)?;
    same_length(("labels", labels), ("scores", scores.len()))?;
    check_probabilities("scores", scores)
}

fn check_probabilities(name: &'static str, values: &[f64]) -> Result<()> {
    match values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
        Some(&value) => in_range(name, value, false, "numbers between 0 and 1"),
        None => Ok(()),
    }
}

/// 0 where both are.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}
