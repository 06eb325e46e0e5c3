use super::pooled::{sorted, steps, twice_rank};
use crate::Interval;
use crate::error::{Result, open_unit};
use crate::special::{normal_sf, normal_upper_quantile};
use serde::{Deserialize, Serialize};

/// What [`area_under_curve`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AreaUnderCurve {
    /// The probability that a positive is scored above a negative, ties counting a half.
    pub auc: f64,
    /// The variance of that, by DeLong; 0 where the scores separate the classes.
    pub variance: f64,
    /// The interval of the area at the confidence that was asked for.
    pub interval: Interval,
    /// How likely an area as large is if it is a half: one-sided.
    pub p_value: f64,
}

/// The area under the ROC curve of scores, with its interval: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two
/// or more correlated receiver operating characteristic curves", 1988, by ranks in `O(n log n)` (Sun and Xu, 2014).
///
/// Where the scores separate the classes their variance says nothing. There the interval is Clopper and Pearson's, of as many
/// pairs as can be made of different values.
///
/// # Errors
///
/// Fewer than two scores of a class, scores that are not finite, a confidence outside (0, 1).
pub fn area_under_curve(positives: &[f64], negatives: &[f64], confidence: f64) -> Result<AreaUnderCurve> {
    let (x, y) = (sorted("positives", positives, 2)?, sorted("negatives", negatives, 2)?);
    open_unit("confidence", confidence)?;
    let (auc, variance) = placements(&x, &y);
    Ok(judge(auc, variance, x.len().min(y.len()), confidence))
}

/// The area and its variance from two sorted samples of at least two.
fn placements(x: &[f64], y: &[f64]) -> (f64, f64) {
    let sizes = [x.len() as f64, y.len() as f64];
    // For each value the share of the other class that it beats, ties counting a half: its rank among all less that within its
    // own class.
    let mut sums = [0.0, 0.0];
    let mut squares = [0.0, 0.0];
    for step in steps(x, y) {
        let rank = twice_rank(&step) as f64 / 2.0;
        for sample in 0..2 {
            let equal = step.equal[sample] as f64;
            let own = step.reached[sample] as f64 - (equal - 1.0) / 2.0;
            let placement = (rank - own) / sizes[1 - sample];
            sums[sample] += equal * placement;
            squares[sample] += equal * placement * placement;
        }
    }
    let spread = |sample: usize| {
        let n = sizes[sample];
        let mean = sums[sample] / n;
        ((squares[sample] - n * mean * mean) / (n - 1.0) / n).max(0.0)
    };
    (sums[0] / sizes[0], spread(0) + spread(1))
}

/// What an area with a variance says; `pairs` is how many pairs of different values there are at least.
pub(crate) fn judge(auc: f64, variance: f64, pairs: usize, confidence: f64) -> AreaUnderCurve {
    let tail = (1.0 - confidence) / 2.0;
    // Sums of squares leave some rounding of nothing.
    if variance > 1e-15 {
        let error = variance.sqrt();
        let radius = normal_upper_quantile(tail) * error;
        let interval = Interval { low: (auc - radius).max(0.0), high: (auc + radius).min(1.0) };
        return AreaUnderCurve { auc, variance, interval, p_value: normal_sf((auc - 0.5) / error) };
    }
    let least = tail.powf(1.0 / pairs as f64);
    let (interval, p_value) = if auc > 0.75 {
        (Interval { low: least.min(auc), high: 1.0 }, 0.5_f64.powf(pairs as f64))
    } else if auc < 0.25 {
        (Interval { low: 0.0, high: (1.0 - least).max(auc) }, 1.0)
    } else {
        // Every score is tied.
        (Interval { low: 0.0, high: 1.0 }, 0.5)
    };
    AreaUnderCurve { auc, variance: 0.0, interval, p_value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_and_its_variance_that_of_the_definition() {
        let (x, y) = ([0.9, 0.4, 0.6, 0.6], [0.1, 0.6, 0.3]);
        let kernel = |a: f64, b: f64| {
            if a > b {
                1.0
            } else if a == b {
                0.5
            } else {
                0.0
            }
        };
        let of_x: Vec<f64> = x.iter().map(|&a| y.iter().map(|&b| kernel(a, b)).sum::<f64>() / 3.0).collect();
        let of_y: Vec<f64> = y.iter().map(|&b| x.iter().map(|&a| kernel(a, b)).sum::<f64>() / 4.0).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let variance = |values: &[f64]| {
            let n = values.len() as f64;
            values.iter().map(|value| (value - mean(values)).powi(2)).sum::<f64>() / (n - 1.0) / n
        };
        let found = area_under_curve(&x, &y, 0.95).unwrap();
        assert!((found.auc - mean(&of_x)).abs() < 1e-15 && (found.auc - mean(&of_y)).abs() < 1e-15);
        assert!((found.variance - variance(&of_x) - variance(&of_y)).abs() < 1e-15);
        assert!(found.interval.contains(found.auc));
    }

    #[test]
    fn separated_and_tied_scores_have_an_honest_interval() {
        let apart = area_under_curve(&[3.0, 4.0, 5.0], &[1.0, 2.0], 0.9).unwrap();
        assert!(apart.auc == 1.0 && (apart.interval.low - 0.05_f64.sqrt()).abs() < 1e-12, "{apart:?}");
        let reversed = area_under_curve(&[1.0, 2.0], &[3.0, 4.0], 0.9).unwrap();
        assert!(reversed.auc == 0.0 && reversed.interval.high < 1.0 && reversed.p_value == 1.0);
        let tied = area_under_curve(&[1.0, 1.0], &[1.0, 1.0], 0.9).unwrap();
        assert_eq!((tied.auc, tied.interval.low, tied.interval.high), (0.5, 0.0, 1.0));
        assert!(area_under_curve(&[1.0], &[1.0, 2.0], 0.9).is_err());
        assert!(area_under_curve(&[1.0, f64::NAN], &[1.0, 2.0], 0.9).is_err());
    }

    #[test]
    fn intervals_cover() {
        // Scores uniform in [0, 1], and the larger of two: the area is 2/3.
        let mut random = fastrand::Rng::with_seed(7);
        let covered = (0..1_000)
            .filter(|_| {
                let x: Vec<f64> = (0..40).map(|_| random.f64().max(random.f64())).collect();
                let y: Vec<f64> = (0..60).map(|_| random.f64()).collect();
                area_under_curve(&x, &y, 0.95).unwrap().interval.contains(2.0 / 3.0)
            })
            .count();
        assert!((925..=970).contains(&covered), "{covered}");
    }
}
