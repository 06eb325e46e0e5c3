//! deepchecks 0.19: its drift scores of a column.
//!
//! Known oddities that are reproduced: before Cramér's V the larger sample is scaled down to the smaller and rounded; shares of
//! PSI are at least 0.01 and then no longer add up to 1; the earth mover's distance is relative to the pooled range, so that one
//! outlier shrinks it.

use crate::bins::quantile_of_sorted;
use crate::counts::{Divergence, contingency};
use crate::distance;
use crate::error::{Result, at_least, finite, in_range};
use crate::two_sample::{Alternative, Method, kolmogorov_smirnov};
use std::collections::BTreeMap;

const LEAST_SHARE: f64 = 0.01;
/// Under this share of the reference, a category is among the others.
const SMALL_CATEGORY: f64 = 0.01;

/// Cramér's V of two samples of categories, corrected for bias, in [0, 1]; `balanced` weighs the reference's categories alike,
/// and otherwise those under 1 % are taken together.
///
/// # Errors
///
/// No values in a sample.
pub fn cramers_v(reference: &[&str], current: &[&str], balanced: bool) -> Result<f64> {
    let (mut x, mut y) = category_counts(reference, current, if balanced { 0.0 } else { SMALL_CATEGORY })?;
    if x.len() == 1 {
        return Ok(0.0);
    }
    scale_down(&mut x, &mut y);
    if balanced {
        balance(&mut x, &mut y);
    } else {
        x.iter_mut().chain(&mut y).for_each(|count| *count = count.round_ties_even());
    }
    let (x, y): (Vec<f64>, Vec<f64>) = x.into_iter().zip(y).filter(|(x, y)| x + y > 0.0).unzip();
    let n: f64 = x.iter().chain(&y).sum();
    let columns = x.len() as f64;
    let chi_square = contingency(&[x, y], Divergence::Pearson, true)?.statistic;
    // With two rows, the other side of each correction is 1.
    let excess = (chi_square / n - (columns - 1.0) / (n - 1.0)).max(0.0);
    let rows_corrected = 1.0 - 1.0 / (n - 1.0);
    let columns_corrected = columns - 1.0 - (columns - 1.0).powi(2) / (n - 1.0);
    Ok((excess / columns_corrected.min(rows_corrected)).sqrt())
}

/// The population stability index of two samples of categories, those under 1 % of the reference taken together.
///
/// # Errors
///
/// No values in a sample.
pub fn psi(reference: &[&str], current: &[&str]) -> Result<f64> {
    let (x, y) = category_counts(reference, current, SMALL_CATEGORY)?;
    let (n, m): (f64, f64) = (x.iter().sum(), y.iter().sum());
    let term = |(x, y): (f64, f64)| {
        let (p, q) = ((x / n).max(LEAST_SHARE), (y / m).max(LEAST_SHARE));
        (p - q) * (p / q).ln()
    };
    Ok(x.into_iter().zip(y).map(term).sum())
}

/// The Kolmogorov–Smirnov statistic.
///
/// # Errors
///
/// Samples that are empty or not finite.
pub fn kolmogorov_smirnov_statistic(reference: &[f64], current: &[f64]) -> Result<f64> {
    Ok(kolmogorov_smirnov(reference, current, Alternative::TwoSided, Method::Asymptotic)?.statistic)
}

/// The earth mover's distance in units of the pooled range, without the values outside the quantiles at `margin` and `1 - margin`
/// of each sample.
///
/// # Errors
///
/// Samples that are empty or not finite, a margin outside [0, 0.5), a range that is not finite.
pub fn earth_movers_distance(reference: &[f64], current: &[f64], margin: f64) -> Result<f64> {
    in_range("margin", margin, (0.0..0.5).contains(&margin), "a number in [0, 0.5)")?;
    let inner = |name, sample: &[f64]| -> Result<Vec<f64>> {
        at_least(name, sample.len(), 1)?;
        finite(name, sample)?;
        let mut sorted = sample.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        if margin > 0.0 {
            let (low, high) =
                (quantile_of_sorted(&sorted, margin), quantile_of_sorted(&sorted, 1.0 - margin));
            sorted.retain(|&value| low <= value && value <= high);
        }
        at_least(name, sorted.len(), 1)?;
        Ok(sorted)
    };
    let (x, y) = (inner("reference", reference)?, inner("current", current)?);
    let (low, high) = (x[0].min(y[0]), x[x.len() - 1].max(y[y.len() - 1]));
    finite("range", &[high - low])?;
    if low == high {
        return Ok(0.0);
    }
    let scaled = |sample: Vec<f64>| -> Vec<f64> {
        sample.into_iter().map(|value| (value - low) / (high - low)).collect()
    };
    distance::wasserstein(scaled(x).as_slice(), scaled(y).as_slice())
}

/// How often each category occurs in either sample; those under a share of the reference are the last, together, if that is
/// more than the share.
fn category_counts(reference: &[&str], current: &[&str], least: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    at_least("reference", reference.len(), 1)?;
    at_least("current", current.len(), 1)?;
    let mut counts: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for (sample, values) in [reference, current].into_iter().enumerate() {
        for value in values {
            counts.entry(value).or_default()[sample] += 1.0;
        }
    }
    let (n, m) = (reference.len() as f64, current.len() as f64);
    let (large, small): (Vec<[f64; 2]>, Vec<[f64; 2]>) =
        counts.into_values().partition(|counts| counts[0] >= n * least);
    let others = small.iter().fold([0.0, 0.0], |sum, counts| [sum[0] + counts[0], sum[1] + counts[1]]);
    let others = (others[0] > least * n || others[1] > least * m).then_some(others);
    Ok(large.into_iter().chain(others).map(|[x, y]| (x, y)).unzip())
}

/// Scales the larger sample down to the sum of the other.
fn scale_down(x: &mut [f64], y: &mut [f64]) {
    let (n, m): (f64, f64) = (x.iter().sum(), y.iter().sum());
    let (larger, share) = if n > m { (x, m / n) } else { (y, n / m) };
    larger.iter_mut().for_each(|count| *count *= share);
}

/// Makes the reference uniform, and moves the current window from that by the factors by which it was off.
fn balance(x: &mut [f64], y: &mut [f64]) {
    let categories = y.len() as f64;
    let each = (y.iter().map(|count| count + 1.0).sum::<f64>() / categories).trunc();
    for (x, y) in x.iter_mut().zip(y.iter_mut()) {
        *y = (each * ((*y + 1.0) / (*x + 1.0))).round_ties_even();
        *x = each;
    }
    let scale = each * categories / y.iter().sum::<f64>();
    y.iter_mut().for_each(|count| *count = (*count * scale).round_ties_even());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_categories_are_taken_together() {
        let mut reference = vec!["a"; 500];
        reference.extend(["x", "y", "z"]);
        let mut current = vec!["a"; 100];
        current.extend(["new", "new"]);
        let (x, y) = category_counts(&reference, &current, 0.01).unwrap();
        assert_eq!((x, y), (vec![500.0, 3.0], vec![100.0, 2.0]));
    }

    #[test]
    fn hostile_samples_are_refused() {
        assert!(cramers_v(&[], &["a"], false).is_err() && psi(&["a"], &[]).is_err());
        assert!(earth_movers_distance(&[1.0], &[f64::NAN], 0.0).is_err());
        assert!(earth_movers_distance(&[1.0], &[2.0], 0.5).is_err());
        assert!(earth_movers_distance(&[f64::MIN], &[f64::MAX], 0.0).is_err());
        assert_eq!(earth_movers_distance(&[1.0], &[2.0], 0.2).unwrap(), 1.0);
        assert!(cramers_v(&["a"], &["b"], true).is_ok());
    }
}
