use super::shuffle::{MersenneTwister, stratified_tests};
use super::{Isotonic, check_scores, roc_auc};
use crate::error::{Result, StatsError, in_range};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Splits `count` sorted values into about `bins` bins of equal count, the last one taking the rest: fewer bins where there would be
/// fewer than two values in one.
///
/// # Errors
/// No bin, or so few values that there would be one bin.
pub fn equal_count_bins(count: usize, bins: usize) -> Result<Vec<Range<usize>>> {
    in_range("bins", bins as f64, bins > 0, "at least 1")?;
    let bins = if count <= bins.saturating_mul(2) { count / 2 } else { bins };
    if bins < 2 {
        return Err(StatsError::TooFew { name: "values", least: 4, got: count });
    }
    let width = count / bins;
    // Edges at whole widths up to the count, of which the last is moved to it.
    let last = count / width;
    let edge = |at: usize| if at == last { count } else { at * width };
    Ok((0..last).map(|at| edge(at)..edge(at + 1)).collect())
}

/// Expected calibration error over [`equal_count_bins`]: the mean distance of score and share of positives. Equal scores share their
/// mean label, so it does not matter which of them falls on which side of an edge.
///
/// # Errors
/// Different lengths, scores not in 0..=1, and as [`equal_count_bins`].
pub fn quantile_calibration_error(labels: &[bool], scores: &[f64], bins: usize) -> Result<f64> {
    check_scores(labels.len(), scores)?;
    let label = |label: &bool| f64::from(u8::from(*label));
    let mut pairs: Vec<(f64, f64)> = scores.iter().copied().zip(labels.iter().map(label)).collect();
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    for tied in pairs.chunk_by_mut(|a, b| a.0 == b.0) {
        let mean = tied.iter().map(|pair| pair.1).sum::<f64>() / tied.len() as f64;
        tied.iter_mut().for_each(|pair| pair.1 = mean);
    }
    let term = |bin: Range<usize>| {
        let (count, bin) = (bin.len() as f64, &pairs[bin]);
        let score: f64 = bin.iter().map(|pair| pair.0).sum();
        let positives: f64 = bin.iter().map(|pair| pair.1).sum();
        count / pairs.len() as f64 * (score / count - positives / count).abs()
    };
    Ok(equal_count_bins(pairs.len(), bins)?.into_iter().map(term).sum())
}

/// The calibration error of scores that a calibrator was not fitted on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CalibrationGain {
    /// Of the scores as they are.
    pub before: f64,
    /// Of the calibrated ones.
    pub after: f64,
}

impl CalibrationGain {
    /// Whether calibration brings scores nearer to the share of positives.
    pub fn helps(&self) -> bool {
        self.before > self.after
    }
}

/// What isotonic calibration gains, on a tenth of the data that it was not fitted on, over ten stratified splits. `None` where there is
/// nothing to calibrate: for one class, or scores that separate the classes (ROC AUC above 0.999).
///
/// The splits are those of scikit-learn's `StratifiedShuffleSplit(10, test_size=0.1, random_state=42)`, so the decision is NannyML's,
/// unless the errors are so close that the order of equal scores decides there.
///
/// # Errors
/// Different lengths, scores not in 0..=1, fewer than two labels of a class, so few that a split has no test or no bins.
pub fn calibration_gain(labels: &[bool], scores: &[f64]) -> Result<Option<CalibrationGain>> {
    const SPLITS: usize = 10;
    const BINS: usize = 10;
    check_scores(labels.len(), scores)?;
    let auc = roc_auc(labels, scores)?;
    if auc.is_nan() || auc > 0.999 {
        return Ok(None);
    }
    let mut random = MersenneTwister::new(42);
    let (mut tested, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SPLITS {
        let (train, test) = stratified_tests(labels, &mut random)?;
        let pick = |rows: &[usize]| -> (Vec<f64>, Vec<f64>) {
            rows.iter().map(|&row| (scores[row], f64::from(u8::from(labels[row])))).unzip()
        };
        let (x, y) = pick(&train);
        let calibrator = Isotonic::fit(&x, &y)?;
        for row in test {
            tested.push(labels[row]);
            before.push(scores[row]);
            after.push(calibrator.predict(scores[row]).clamp(0.0, 1.0));
        }
    }
    let error = |scores: &[f64]| quantile_calibration_error(&tested, scores, BINS);
    Ok(Some(CalibrationGain { before: error(&before)?, after: error(&after)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn bins_cover_all_values() {
        for (count, bins) in [(59, 10), (18, 10), (100, 7), (4, 2), (5, 100), (1_001, 10)] {
            let ranges = equal_count_bins(count, bins).unwrap();
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, count), "{count} {bins}");
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
        assert!(equal_count_bins(3, 10).is_err() && equal_count_bins(10, 0).is_err());
    }

    #[test]
    fn overconfident_scores_need_calibration_and_one_class_cannot_have_it() {
        let mut random = Rng::with_seed(79);
        let scores: Vec<f64> = (0..1_000).map(|_| random.f64()).collect();
        let labels: Vec<bool> = scores.iter().map(|score| random.f64() < 0.5 + 0.4 * (score - 0.5)).collect();
        assert!(calibration_gain(&labels, &scores).unwrap().unwrap().helps());
        assert_eq!(calibration_gain(&[true; 50], &[0.5; 50]).unwrap(), None);
        assert!(calibration_gain(&[true, false], &[0.8, 0.9]).is_err());
    }
}
