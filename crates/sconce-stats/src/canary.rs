//! The canary judge of Kayenta, as a compatibility mode: rank comparison of a metric's points, and the weighted score of all.
//!
//! It is blind to a change of spread and to sparse errors (points that lie 10 or 100 times higher can pass), and looks once. The
//! gates of rollouts use [`crate::sequential`] instead.

use crate::error::{Result, StatsError, at_least, finite, in_range, open_unit};
use crate::interval::Interval;
use crate::special::normal_upper_quantile;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Pairs of an experiment's point and a control's.
const MOST_PAIRS: usize = 4_000_000;

/// Which way a metric must not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Up, such as an error rate.
    Increase,
    /// Down, such as a success rate.
    Decrease,
    /// Neither.
    Either,
}

/// What a metric of the canary is, beside the control's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Not worse by more than the tolerance.
    Pass,
    /// Too high.
    High,
    /// Too low.
    Low,
    /// There is no data.
    Nodata,
    /// There is no data, and that counts as failing.
    NodataFailMetric,
}

/// How a canary's metric compares with the control's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The shifts of the experiment that the rank test does not reject.
    pub interval: Interval,
    /// The shift at which the rank test is balanced: Hodges and Lehmann's estimate, as Kayenta finds it.
    pub shift: f64,
    /// The median of all differences of a point of the experiment and one of the control.
    pub median_difference: f64,
    /// Mean of the experiment over mean of the control; NaN if one is 0.
    pub mean_ratio: f64,
    /// The chance that a point of the experiment is the larger, ties counted half.
    pub superiority: f64,
    /// The verdict.
    pub class: Class,
}

/// Compares a metric's points: the Mann-Whitney rule of Kayenta's judge, with its root at the exact jump. `confidence` is 0.98 and
/// `tolerance` 0.25 of the shift in Kayenta.
///
/// # Errors
/// An empty sample, values that are not finite, more than 4,000,000 pairs; `confidence` not strictly between 0 and 1, a negative
/// `tolerance`.
pub fn compare(
    experiment: &[f64],
    control: &[f64],
    confidence: f64,
    tolerance: f64,
    direction: Direction,
) -> Result<Comparison> {
    at_least("experiment", experiment.len(), 1)?;
    at_least("control", control.len(), 1)?;
    finite("experiment", experiment)?;
    finite("control", control)?;
    open_unit("confidence", confidence)?;
    in_range(
        "tolerance",
        tolerance,
        tolerance >= 0.0 && tolerance.is_finite(),
        "a finite number of at least 0",
    )?;
    let pairs = experiment.len().saturating_mul(control.len());
    if pairs > MOST_PAIRS {
        return Err(StatsError::TooMany { name: "pairs", most: MOST_PAIRS, got: pairs });
    }
    let mut differences: Vec<f64> =
        experiment.iter().flat_map(|x| control.iter().map(move |y| x - y)).collect();
    finite("differences", &differences)?;
    differences.sort_by(f64::total_cmp);

    let deviation = rank_deviation(experiment, control);
    let z = normal_upper_quantile((1.0 - confidence) / 2.0);
    let root = |z: f64| balance(&differences, deviation, z);
    let (interval, shift) = (Interval { low: root(z), high: root(-z) }, root(0.0));

    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (of_experiment, of_control) = (mean(experiment), mean(control));
    let mean_ratio =
        if of_experiment == 0.0 || of_control == 0.0 { f64::NAN } else { of_experiment / of_control };
    let bound = tolerance * shift.abs();
    // An unknown ratio does not stand in the way.
    let unknown = mean_ratio.is_nan();
    let too_high = direction != Direction::Decrease && interval.low > bound && (unknown || mean_ratio >= 1.0);
    let too_low =
        direction != Direction::Increase && interval.high < -bound && (unknown || mean_ratio <= 1.0);
    let above = differences.iter().filter(|&&d| d > 0.0).count() as f64;
    let level = differences.iter().filter(|&&d| d == 0.0).count() as f64;
    let middle = pairs / 2;
    Ok(Comparison {
        interval,
        shift,
        median_difference: if pairs % 2 == 1 {
            differences[middle]
        } else {
            0.5 * (differences[middle - 1] + differences[middle])
        },
        mean_ratio,
        superiority: (above + 0.5 * level) / pairs as f64,
        class: match (too_high, too_low) {
            (true, _) => Class::High,
            (false, true) => Class::Low,
            (false, false) => Class::Pass,
        },
    })
}

/// The standard deviation of the rank sum, with ties within each sample; between them there are none but at the jumps.
fn rank_deviation(experiment: &[f64], control: &[f64]) -> f64 {
    let (m, n) = (experiment.len() as f64, control.len() as f64);
    let total = m + n;
    let ties: f64 = [experiment, control].iter().map(|sample| tie_sum(sample)).sum();
    (m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)))).sqrt()
}

/// The sum of `t^3 - t` over groups of t equal values.
fn tie_sum(sample: &[f64]) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.chunk_by(|a, b| a == b).map(|group| (group.len() as f64).powi(3) - group.len() as f64).sum()
}

/// The smallest shift, of those where the rank sum jumps, after which its z value is at most `z`.
fn balance(differences: &[f64], deviation: f64, z: f64) -> f64 {
    let half = differences.len() as f64 / 2.0;
    // After the shift has passed `passed` differences.
    let settled = |passed: usize| {
        let off = half - passed as f64;
        let corrected = if off == 0.0 { 0.0 } else { off - 0.5_f64.copysign(off) };
        corrected / deviation - z <= 0.0
    };
    if settled(0) {
        return differences[0];
    }
    let (mut low, mut high) = (0, differences.len() - 1);
    while low < high {
        let middle = low + (high - low) / 2;
        // All that are equal are passed at once.
        let passed = differences.partition_point(|d| *d <= differences[middle]);
        if settled(passed) { high = middle } else { low = middle + 1 }
    }
    differences[low]
}

/// A metric's part in the score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The group whose weight it shares.
    pub group: String,
    /// Its verdict.
    pub class: Class,
    /// Whether anything but a pass of it fails the whole.
    pub critical: bool,
}

/// What the score says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScoreVerdict {
    /// At least the passing score.
    Pass,
    /// At least the marginal score.
    Marginal,
    /// Below it, or failed as a whole.
    Fail,
}

/// Why a canary failed whatever its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailReason {
    /// A critical metric did not pass.
    Critical,
    /// Half of the metrics or more have no data.
    Nodata,
}

/// The score of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// From 0 to 100.
    pub score: f64,
    /// Compared with the thresholds.
    pub verdict: ScoreVerdict,
    /// Set if it failed as a whole.
    pub reason: Option<FailReason>,
}

/// The weighted score of a canary's metrics: the share of each group that passes, times its weight. Groups without a weight share
/// what is left of 100.
///
/// # Errors
/// No metric; weights that are negative, not finite, or sum to more than 100; thresholds that are NaN.
pub fn score(
    metrics: &[Judged],
    weights: &BTreeMap<String, f64>,
    passing: f64,
    marginal: f64,
) -> Result<Score> {
    at_least("metrics", metrics.len(), 1)?;
    in_range("passing", passing, !passing.is_nan(), "a number")?;
    in_range("marginal", marginal, !marginal.is_nan(), "a number")?;
    for &weight in weights.values() {
        in_range("weights", weight, (0.0..=100.0).contains(&weight), "numbers from 0 to 100")?;
    }
    let given: f64 = weights.values().sum();
    in_range("weights", given, given <= 100.0 + 1e-9, "a sum of at most 100")?;
    let failed = |reason| Score { score: 0.0, verdict: ScoreVerdict::Fail, reason: Some(reason) };
    if metrics.iter().any(|metric| metric.critical && metric.class != Class::Pass) {
        return Ok(failed(FailReason::Critical));
    }
    let empty = metrics.iter().filter(|metric| metric.class == Class::Nodata).count();
    if 2 * empty >= metrics.len() {
        return Ok(failed(FailReason::Nodata));
    }
    // Passed and counted, by group.
    let mut groups: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for metric in metrics {
        let (passed, counted) = groups.entry(&metric.group).or_default();
        *passed += u32::from(metric.class == Class::Pass);
        *counted += u32::from(metric.class != Class::Nodata);
    }
    let unweighted = groups.keys().filter(|group| !weights.contains_key(**group)).count();
    let rest = (100.0 - given).max(0.0) / unweighted.max(1) as f64;
    let score: f64 = groups
        .iter()
        .map(|(group, &(passed, counted))| {
            let share = if counted == 0 { 1.0 } else { f64::from(passed) / f64::from(counted) };
            share * weights.get(*group).copied().unwrap_or(rest)
        })
        .sum();
    let score = (score * 100.0).round() / 100.0;
    let verdict = if score >= passing {
        ScoreVerdict::Pass
    } else if score >= marginal {
        ScoreVerdict::Marginal
    } else {
        ScoreVerdict::Fail
    };
    Ok(Score { score, verdict, reason: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_and_constants_have_a_verdict() {
        let one = compare(&[1.0], &[2.0], 0.98, 0.25, Direction::Either).unwrap();
        assert_eq!((one.interval.low, one.interval.high, one.class), (-1.0, -1.0, Class::Low));
        let same = compare(&[2.0; 20], &[2.0; 20], 0.98, 0.25, Direction::Either).unwrap();
        assert_eq!((same.shift, same.superiority, same.class), (0.0, 0.5, Class::Pass));
    }

    #[test]
    fn wrong_input_is_refused() {
        let compare = |x: &[f64], confidence| compare(x, &[1.0], confidence, 0.25, Direction::Either);
        assert!(
            compare(&[], 0.98).is_err()
                && compare(&[f64::NAN], 0.98).is_err()
                && compare(&[1.0], 1.0).is_err()
        );
        assert!(compare(&vec![0.0; MOST_PAIRS + 1], 0.98).is_err());
        assert!(score(&[], &BTreeMap::new(), 75.0, 50.0).is_err());
    }
}
