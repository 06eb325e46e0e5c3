use crate::bins::quantile_of_sorted;
use crate::error::{Result, StatsError, at_least, finite, open_unit, positive, same_length};
use crate::interval::Interval;
use crate::special::{chi_square_sf, normal_upper_quantile};
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
    let psi = smoothed(&reference_counts, &current_counts, smoothing);
    let p_value = chi_square_sf(psi / (1.0 / n + 1.0 / m), (reference_counts.len() - 1) as f64);
    Ok(Psi { edges, reference_counts, current_counts, psi, p_value })
}

/// How unstable a population is, of counts that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stability {
    /// The index less what chance alone adds at these sizes, at least 0.
    pub psi: f64,
    /// Its interval.
    pub interval: Interval,
    /// As in [`Psi`].
    pub p_value: f64,
}

/// The population stability index of counts a bin, as in [`population_stability`], with the bias of its size taken off.
///
/// The index over `s = 1/n + 1/m` is about noncentral chi-square with `d` degrees of freedom, one less than there are bins that either
/// sample fills, and noncentrality `psi / s`: so chance adds `d s`, and the variance is `s (2 d s + 4 psi)`, from which the interval
/// at level `1 - alpha` is made as for a normal estimate.
///
/// # Errors
///
/// Fewer than 2 bins, different numbers of them, an empty sample, a smoothing that is not above 0, `alpha` not between 0 and 1.
pub fn stability_of_counts(
    reference: &[u64],
    current: &[u64],
    smoothing: f64,
    alpha: f64,
) -> Result<Stability> {
    at_least("bins", reference.len(), 2)?;
    same_length(("reference", reference.len()), ("current", current.len()))?;
    positive("smoothing", smoothing)?;
    open_unit("alpha", alpha)?;
    let sum = |counts: &[u64]| counts.iter().map(|count| *count as f64).sum::<f64>();
    let (n, m) = (sum(reference), sum(current));
    positive("reference", n)?;
    positive("current", m)?;
    let filled = reference.iter().zip(current).filter(|(r, c)| **r > 0 || **c > 0).count();
    let (df, size) = (filled.saturating_sub(1) as f64, 1.0 / n + 1.0 / m);
    let raw = smoothed(reference, current, smoothing);
    let psi = (raw - df * size).max(0.0);
    let p_value = if df > 0.0 { chi_square_sf(raw / size, df) } else { 1.0 };
    let reach = normal_upper_quantile(alpha / 2.0);
    // Each end is where the estimate would be that far off, with the variance of that end.
    let end = |sign: f64| {
        let (centre, spread) = (raw - df * size + 2.0 * reach * reach * size, size * reach);
        let root = (centre * centre - (raw - df * size).powi(2) + 2.0 * df * spread * spread).max(0.0).sqrt();
        (centre + sign * root).max(0.0)
    };
    Ok(Stability { psi, interval: Interval { low: end(-1.0).min(psi), high: end(1.0) }, p_value })
}

/// Each share with `smoothing` pseudo-counts a bin, spread as both samples together are.
fn smoothed(reference: &[u64], current: &[u64], smoothing: f64) -> f64 {
    let sum = |counts: &[u64]| counts.iter().map(|count| *count as f64).sum::<f64>();
    let (n, m) = (sum(reference), sum(current));
    let pseudo = smoothing * reference.len() as f64;
    let mut psi = 0.0;
    for (&in_reference, &in_current) in reference.iter().zip(current) {
        let (in_reference, in_current) = (in_reference as f64, in_current as f64);
        let both = 0.5 * (in_reference / n + in_current / m);
        if both > 0.0 {
            let p = (in_reference + pseudo * both) / (n + pseudo);
            let q = (in_current + pseudo * both) / (m + pseudo);
            psi += (p - q) * (p / q).ln();
        }
    }
    psi
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
    fn the_interval_holds_the_index_and_chance_is_taken_off() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut draw = |shares: &[f64; 4], n: u32| {
            let mut counts = [0_u64; 4];
            for _ in 0..n {
                let at = random.f64();
                let mut before = 0.0;
                let cell = shares.iter().position(|share| {
                    before += share;
                    at < before
                });
                counts[cell.unwrap_or(3)] += 1;
            }
            counts
        };
        let even = [0.25_f64; 4];
        for other in [even, [0.35, 0.25, 0.25, 0.15], [0.5, 0.3, 0.15, 0.05]] {
            let truth: f64 = even.iter().zip(other).map(|(p, q)| (p - q) * (p / q).ln()).sum();
            let (mut held, mut sum) = (0, 0.0);
            for _ in 0..1_000 {
                let all = stability_of_counts(&draw(&even, 2_000), &draw(&other, 300), 0.5, 0.05).unwrap();
                held += u32::from(all.interval.contains(truth));
                sum += all.psi;
                assert!(all.interval.contains(all.psi));
            }
            assert!(held >= 910, "{truth}: {held}");
            assert!((sum / 1_000.0 - truth).abs() < 0.1 * truth + 0.01, "{truth}: {}", sum / 1_000.0);
        }
        assert!(stability_of_counts(&[0, 0], &[1, 1], 0.5, 0.05).is_err());
        assert_eq!(stability_of_counts(&[5, 0], &[3, 0], 0.5, 0.05).unwrap().p_value, 1.0);
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
