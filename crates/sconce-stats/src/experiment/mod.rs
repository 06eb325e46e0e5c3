//! Experiments with a control and a treatment: is the split as planned, how large is the effect, how many units does it take,
//! and when may one look.

mod group_sequential;
mod means;
mod power;

pub use group_sequential::group_sequential_bounds;
pub use means::{
    Cuped, Effect, Moments, PairedMoments, RatioEffect, cuped, mean_difference, ratio_difference,
};
pub use power::{PowerTest, power, proportions_sample_size, sample_size};

use crate::TestResult;
use crate::error::{Result, StatsError, at_least, finite, open_unit, same_length};
use crate::interval::Interval;
use crate::special::{chi_square_sf, normal_sf, normal_upper_quantile};
use crate::trials::Trials;

/// A p-value below this says that units were not split as planned, and nothing else in the experiment is to be believed.
pub const SAMPLE_RATIO_ALARM: f64 = 1e-3;

/// Whether units were split by the planned `weights`: the chi-square test of `counts` a variant (Fabijan and others, "Diagnosing
/// sample ratio mismatch", 2019). Compare its p-value with [`SAMPLE_RATIO_ALARM`].
///
/// # Errors
/// Fewer than two variants, different lengths, a count that is negative, a weight that is not above 0, no unit at all.
pub fn sample_ratio(counts: &[f64], weights: &[f64]) -> Result<TestResult> {
    at_least("counts", counts.len(), 2)?;
    same_length(("counts", counts.len()), ("weights", weights.len()))?;
    finite("counts", counts)?;
    finite("weights", weights)?;
    let out_of_range = |name, expected, got| StatsError::OutOfRange { name, expected, got };
    if let Some(&count) = counts.iter().find(|&&count| count < 0.0) {
        return Err(out_of_range("counts", "numbers of at least 0", count));
    }
    if let Some(&weight) = weights.iter().find(|&&weight| weight <= 0.0) {
        return Err(out_of_range("weights", "numbers above 0", weight));
    }
    let (total, weight): (f64, f64) = (counts.iter().sum(), weights.iter().sum());
    if !(total > 0.0 && total.is_finite() && weight.is_finite()) {
        return Err(StatsError::Undefined { reason: "no units, or too many to add up" });
    }
    let expected = weights.iter().map(|w| total * w / weight);
    let statistic: f64 = counts.iter().zip(expected).map(|(o, e)| (o - e) * (o - e) / e).sum();
    Ok(TestResult { statistic, p_value: chi_square_sf(statistic, (counts.len() - 1) as f64) })
}

/// The treatment's rate less the control's, with the variances of both, and its two-sided z-test.
///
/// # Errors
/// No trials, more events than trials, `alpha` not strictly between 0 and 1; rates without any variance.
pub fn rate_difference(control: Trials, treatment: Trials, alpha: f64) -> Result<Effect> {
    control.check_some("control")?;
    treatment.check_some("treatment")?;
    open_unit("alpha", alpha)?;
    let variance = |trials: Trials| trials.rate() * (1.0 - trials.rate()) / trials.trials as f64;
    let error = (variance(control) + variance(treatment)).sqrt();
    normal_effect(treatment.rate() - control.rate(), error, alpha)
}

/// The relative lift of a rate, `treatment / control - 1`, with its interval.
///
/// # Errors
/// As [`crate::proportion::ratio_interval`].
pub fn relative_lift(control: Trials, treatment: Trials, alpha: f64) -> Result<(f64, Interval)> {
    let ratio = crate::proportion::ratio_interval(treatment, control, alpha)?;
    let lift = treatment.rate() / control.rate() - 1.0;
    Ok((lift, Interval { low: ratio.low - 1.0, high: ratio.high - 1.0 }))
}

/// An effect whose estimate is normal with standard deviation `error`.
fn normal_effect(difference: f64, error: f64, alpha: f64) -> Result<Effect> {
    if !(error > 0.0 && error.is_finite()) {
        return Err(StatsError::Undefined { reason: "the data has no variance" });
    }
    let statistic = difference / error;
    Ok(Effect {
        difference,
        interval: Interval::around(difference, normal_upper_quantile(alpha / 2.0) * error),
        statistic,
        df: f64::INFINITY,
        p_value: 2.0 * normal_sf(statistic.abs()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_off_by_one_percent_is_found_among_many_units() {
        let even = sample_ratio(&[500_100.0, 499_900.0], &[1.0, 1.0]).unwrap();
        let off = sample_ratio(&[505_000.0, 495_000.0], &[1.0, 1.0]).unwrap();
        assert!(even.p_value > 0.1 && off.p_value < SAMPLE_RATIO_ALARM);
        assert!(
            sample_ratio(&[0.0, 0.0], &[1.0, 1.0]).is_err() && sample_ratio(&[1.0, 2.0], &[1.0]).is_err()
        );
        assert!(
            sample_ratio(&[-1.0, 2.0], &[1.0, 1.0]).is_err()
                && sample_ratio(&[1.0, 2.0], &[0.0, 1.0]).is_err()
        );
    }

    #[test]
    fn lift_is_relative_to_the_control() {
        let (control, treatment) =
            (Trials { events: 100, trials: 1_000 }, Trials { events: 120, trials: 1_000 });
        let (lift, interval) = relative_lift(control, treatment, 0.05).unwrap();
        assert!((lift - 0.2).abs() < 1e-12 && interval.contains(lift) && interval.low < 0.0);
        assert!((rate_difference(control, treatment, 0.05).unwrap().difference - 0.02).abs() < 1e-15);
    }
}
