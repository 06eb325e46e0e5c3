use crate::bins::quantile_of_sorted;
use crate::error::{Result, StatsError, at_least, finite, positive};
use crate::special::chi_square_sf;
use serde::{Deserialize, Serialize};

/// Bins asked for.
const MOST_BINS: usize = 10_000;

/// What [`population_stability`] says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Psi {
    /// The inner edges of the bins, ascending; the first and the last bin are open.
    pub edges: Vec<f64>,
    /// How much of the reference fell into each bin.
    pub reference_counts: Vec<u64>,
    /// How much of the current window did.
    pub current_counts: Vec<u64>,
    /// The index, at least 0.
    pub psi: f64,
    /// How likely an index as large is by chance, given both sizes: what makes it comparable between windows.
    pub p_value: f64,
}

/// The population stability index over bins at quantiles of the reference, `sum (p - q) ln(p / q)`.
///
/// Equal quantiles merge into one edge, and a value on an edge falls to its left. Each share is smoothed by
/// `smoothing` pseudo-counts a bin (0.5 by Jeffreys), spread as both samples together are, so that an empty bin is no infinity
/// and bins that neither sample fills do not count. If nothing has changed, the index over `1/n + 1/m` is chi-square with one
/// degree of freedom less than there are bins (Yurdakul, 2018): the p-value.
///
/// # Errors
///
/// Samples that are empty or not finite, fewer than 2 bins or more than 10,000, a smoothing that is not above 0.
pub fn population_stability(reference: &[f64], current: &[f64], bins: usize, smoothing: f64) -> Result<Psi> {
    for (name, sample) in [("reference", reference), ("current", current)] {
        at_least(name, sample.len(), 1)?;
        finite(name, sample)?;
    }
    at_least("bins", bins, 2)?;
    if bins > MOST_BINS {
        return Err(StatsError::TooMany { name: "bins", most: MOST_BINS, got: bins });
    }
    positive("smoothing", smoothing)?;
    let mut sorted = reference.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let mut edges: Vec<f64> =
        (1..bins).map(|i| quantile_of_sorted(&sorted, i as f64 / bins as f64)).collect();
    edges.dedup();
    let counts = |sample: &[f64]| {
        let mut counts = vec![0_u64; edges.len() + 1];
        for &value in sample {
            counts[edges.partition_point(|&edge| edge < value)] += 1;
        }
        counts
    };
    let (reference_counts, current_counts) = (counts(reference), counts(current));
    let (n, m) = (reference.len() as f64, current.len() as f64);
    let pseudo = smoothing * reference_counts.len() as f64;
    let mut psi = 0.0;
    for (&in_reference, &in_current) in reference_counts.iter().zip(&current_counts) {
        let (in_reference, in_current) = (in_reference as f64, in_current as f64);
        let both = 0.5 * (in_reference / n + in_current / m);
        if both > 0.0 {
            let p = (in_reference + pseudo * both) / (n + pseudo);
            let q = (in_current + pseudo * both) / (m + pseudo);
            psi += (p - q) * (p / q).ln();
        }
    }
    let p_value = chi_square_sf(psi / (1.0 / n + 1.0 / m), (reference_counts.len() - 1) as f64);
    Ok(Psi { edges, reference_counts, current_counts, psi, p_value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_everything_change() {
        let reference: Vec<f64> = (0..500).map(f64::from).collect();
        let same = population_stability(&reference, &reference, 10, 0.5).unwrap();
        assert_eq!((same.psi, same.p_value), (0.0, 1.0));
        let moved = population_stability(&reference, &[1_000.0; 50], 10, 0.5).unwrap();
        assert!(moved.psi > 1.0 && moved.p_value < 1e-20);
        assert_eq!(moved.current_counts.iter().sum::<u64>(), 50);
    }

    #[test]
    fn what_cannot_be_binned_is_refused() {
        assert!(population_stability(&[], &[1.0], 10, 0.5).is_err());
        assert!(population_stability(&[1.0], &[f64::NAN], 10, 0.5).is_err());
        assert!(population_stability(&[1.0], &[1.0], 1, 0.5).is_err());
        assert!(population_stability(&[1.0], &[1.0], usize::MAX, 0.5).is_err());
        assert!(population_stability(&[1.0], &[1.0], 10, 0.0).is_err());
    }
}
