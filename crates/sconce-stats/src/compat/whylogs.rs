//! whylogs 1.6: its drift algorithms, on samples small enough for its sketches to be exact (about 1,000 values).
//!
//! Known oddities that are reproduced: the Kolmogorov–Smirnov distance is taken at 100 quantiles only, of values strictly below;
//! chi-square takes the reference for exact, cuts expected counts to whole numbers, and is infinite where one of these is 0.

use crate::TestResult;
use crate::distance;
use crate::error::{Result, at_least, finite};
use crate::special::{chi_square_sf, kolmogorov_finite_sf};
use std::collections::BTreeMap;

const QUANTILES: u32 = 100;
const MOST_BUCKETS: usize = 30;
const VALUES_PER_BUCKET: usize = 4;
/// Bins are no narrower than what a float of 32 bits can tell apart.
const FLOAT_BITS: i32 = 23;

/// How whylogs calls what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// Nothing.
    NoDrift,
    /// Perhaps something.
    PossibleDrift,
    /// Drift.
    Drift,
}

impl Category {
    /// The name that whylogs gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoDrift => "NO_DRIFT",
            Self::PossibleDrift => "POSSIBLE_DRIFT",
            Self::Drift => "DRIFT",
        }
    }

    /// Of a p-value.
    pub fn of_p_value(p_value: f64) -> Self {
        if p_value <= 0.05 {
            Self::Drift
        } else if p_value <= 0.15 {
            Self::PossibleDrift
        } else {
            Self::NoDrift
        }
    }

    /// Of a Hellinger distance.
    pub fn of_hellinger(distance: f64) -> Self {
        if distance >= 0.4 {
            Self::Drift
        } else if distance >= 0.15 {
            Self::PossibleDrift
        } else {
            Self::NoDrift
        }
    }
}

/// The Kolmogorov–Smirnov test.
///
/// # Errors
///
/// Samples that are empty or not finite.
pub fn kolmogorov_smirnov(reference: &[f64], target: &[f64]) -> Result<TestResult> {
    let (reference, target) = (sorted("reference", reference)?, sorted("target", target)?);
    let below = |sample: &[f64], value: f64| {
        sample.partition_point(|&other| other < value) as f64 / sample.len() as f64
    };
    let mut statistic = 0.0_f64;
    for sample in [&reference, &target] {
        for step in 0..QUANTILES {
            let value = quantile(sample, f64::from(step) / f64::from(QUANTILES - 1));
            statistic = statistic.max((below(&target, value) - below(&reference, value)).abs());
        }
    }
    let (n, m) = (reference.len() as f64, target.len() as f64);
    let p_value = kolmogorov_finite_sf((n * m / (n + m)).round_ties_even().max(1.0), statistic);
    Ok(TestResult { statistic, p_value })
}

/// The Hellinger distance, over up to 30 buckets of the common range.
///
/// # Errors
///
/// Samples that are empty or not finite, or whose range is not.
pub fn hellinger(reference: &[f64], target: &[f64]) -> Result<f64> {
    let (reference, target) = (sorted("reference", reference)?, sorted("target", target)?);
    let start = reference[0].min(target[0]);
    let end = reference[reference.len() - 1].max(target[target.len() - 1]);
    let end = end + if end == 0.0 { 1e-7 } else { end.abs() * 1e-7 };
    finite("range", &[end - start])?;
    let values = reference.len() + target.len();
    let mut buckets = values.div_ceil(VALUES_PER_BUCKET).clamp(2, MOST_BUCKETS);
    let least_width = 2f64.powi(start.abs().max(end.abs()).log2().floor() as i32 - FLOAT_BITS);
    if (end - start) / (buckets as f64) < least_width {
        buckets = (((end - start) / least_width).floor() as usize).max(1);
    }
    let width = (end - start) / buckets as f64;
    let edges: Vec<f64> = (0..=buckets).map(|i| start + i as f64 * width).collect();
    // What lies below each edge; what is below the first and beyond the last counts too.
    let masses = |sample: &[f64]| -> Vec<f64> {
        let total = sample.len() as f64;
        let below: Vec<f64> = edges
            .iter()
            .map(|&edge| sample.partition_point(|&value| value < edge) as f64 / total)
            .chain([1.0])
            .collect();
        std::iter::once(below[0]).chain(below.windows(2).map(|pair| pair[1] - pair[0])).collect()
    };
    distance::hellinger(&masses(&reference), &masses(&target))
}

/// The chi-square test of categories.
///
/// # Errors
///
/// No values in a sample.
pub fn chi_square(reference: &[&str], target: &[&str]) -> Result<TestResult> {
    at_least("reference", reference.len(), 1)?;
    at_least("target", target.len(), 1)?;
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for (sample, values) in [reference, target].into_iter().enumerate() {
        for value in values {
            counts.entry(value).or_default()[sample] += 1;
        }
    }
    let (n, m) = (reference.len() as f64, target.len() as f64);
    let mut statistic = 0.0;
    for [in_reference, in_target] in counts.values() {
        let expected = (*in_reference as f64 / n * m).trunc();
        if expected == 0.0 {
            statistic = f64::INFINITY;
            break;
        }
        statistic += (*in_target as f64 - expected).powi(2) / expected;
    }
    let unique = counts.values().filter(|counts| counts[1] > 0).count();
    let p_value = chi_square_sf(statistic, unique.saturating_sub(1).max(1) as f64);
    Ok(TestResult { statistic, p_value })
}

/// The quantile of an exact sketch: the value at that rank, rounded down.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = (q * sorted.len() as f64).floor() as usize;
    sorted[at.min(sorted.len() - 1)]
}

fn sorted(name: &'static str, sample: &[f64]) -> Result<Vec<f64>> {
    at_least(name, sample.len(), 1)?;
    finite(name, sample)?;
    let mut sample = sample.to_vec();
    sample.sort_unstable_by(f64::total_cmp);
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_decided_or_refused() {
        assert_eq!(hellinger(&[1.0], &[1.0]).unwrap(), 0.0);
        assert_eq!(hellinger(&[0.0], &[0.0]).unwrap(), 0.0);
        assert_eq!(kolmogorov_smirnov(&[1.0], &[1.0]).unwrap().p_value, 1.0);
        assert_eq!(chi_square(&["a"], &["b"]).unwrap().p_value, 0.0);
        assert!(hellinger(&[], &[1.0]).is_err() && hellinger(&[f64::MIN], &[f64::MAX]).is_err());
        assert!(kolmogorov_smirnov(&[1.0], &[f64::NAN]).is_err() && chi_square(&[], &["a"]).is_err());
        assert_eq!(Category::of_p_value(0.05).name(), "DRIFT");
        assert_eq!(Category::of_hellinger(0.15).name(), "POSSIBLE_DRIFT");
    }
}
