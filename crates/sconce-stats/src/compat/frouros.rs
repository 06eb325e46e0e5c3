//! frouros 0.9: its distances between two numerical batches.
//!
//! Known oddities that are reproduced: an empty bin of PSI counts as the smallest positive float, which adds some 700 times the
//! other's share; Jensen–Shannon and Kullback–Leibler compare histograms of different bins, interpolated, in one bin less than
//! asked for, and the latter the current batch's with the reference's. Its Kuiper test, which uses the statistic of another, is
//! not reproduced: [`crate::two_sample::kuiper`] is Kuiper's.

use crate::bins::{BinRule, bin_edges, counts, equal_edges};
use crate::distance;
use crate::error::{Result, at_least, finite};

/// Bins that frouros asks for.
const BINS: usize = 10;

/// The distances of [`distances`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distances {
    /// The population stability index.
    pub psi: f64,
    /// The Hellinger distance.
    pub hellinger: f64,
    /// One less the Bhattacharyya coefficient.
    pub bhattacharyya: f64,
    /// One less the intersection of the histograms.
    pub intersection_complement: f64,
    /// The Jensen–Shannon distance, in nats.
    pub jensen_shannon: f64,
    /// The Kullback–Leibler divergence of the current batch from the reference, in nats; may be infinite.
    pub kullback_leibler: f64,
}

/// All distances by bins, at frouros' default of 10.
///
/// # Errors
///
/// Batches that are empty or not finite, or whose range is not.
pub fn distances(reference: &[f64], current: &[f64]) -> Result<Distances> {
    for (name, sample) in [("reference", reference), ("current", current)] {
        at_least(name, sample.len(), 1)?;
        finite(name, sample)?;
    }
    let low = reference.iter().chain(current).copied().fold(f64::INFINITY, f64::min);
    let high = reference.iter().chain(current).copied().fold(f64::NEG_INFINITY, f64::max);
    finite("range", &[high - low])?;
    let (first, last) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    let edges = equal_edges(first, last, BINS);
    let shares = |sample: &[f64]| -> Vec<f64> {
        counts(sample, &edges).into_iter().map(|count| count as f64 / sample.len() as f64).collect()
    };
    let (p, q) = (shares(reference), shares(current));
    let pairs = || p.iter().copied().zip(q.iter().copied());
    let filled = |share: f64| if share == 0.0 { f64::MIN_POSITIVE } else { share };
    let psi = pairs()
        .map(|(p, q)| {
            let (p, q) = (filled(p), filled(q));
            (q - p) * (q / p).ln()
        })
        .sum();

    let points = equal_edges(low, high, BINS - 1);
    let (p_mass, q_mass) = (masses(reference, &points)?, masses(current, &points)?);
    let kullback_leibler =
        p_mass.iter().zip(&q_mass).map(|(p, q)| if *q > 0.0 { q * (q / p).ln() } else { 0.0 }).sum();
    Ok(Distances {
        psi,
        hellinger: distance::hellinger(&p, &q)?,
        bhattacharyya: 1.0 - pairs().map(|(p, q)| (p * q).sqrt()).sum::<f64>(),
        intersection_complement: 1.0 - pairs().map(|(p, q)| p.min(q)).sum::<f64>(),
        jensen_shannon: distance::jensen_shannon(&p_mass, &q_mass).unwrap_or(f64::NAN),
        kullback_leibler,
    })
}

/// The mass between successive points of a sample's histogram, taken as uniform within each of its own bins.
fn masses(sample: &[f64], points: &[f64]) -> Result<Vec<f64>> {
    let edges = bin_edges(sample, BinRule::Auto)?;
    let total = sample.len() as f64;
    let mut reached = vec![0.0];
    for count in counts(sample, &edges) {
        reached.push(reached[reached.len() - 1] + count as f64 / total);
    }
    let cdf = |point: f64| {
        let bin = edges.partition_point(|&edge| edge <= point);
        if bin == 0 {
            0.0
        } else if bin == edges.len() {
            1.0
        } else {
            let slope = (reached[bin] - reached[bin - 1]) / (edges[bin] - edges[bin - 1]);
            reached[bin - 1] + slope * (point - edges[bin - 1])
        }
    };
    Ok(points.windows(2).map(|pair| (cdf(pair[1]) - cdf(pair[0])).max(0.0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_batches_are_at_distance_zero_and_hostile_ones_refused() {
        let x = [1.0, 2.0, 4.0, 8.0];
        let same = distances(&x, &x).unwrap();
        assert_eq!((same.psi, same.hellinger, same.kullback_leibler), (0.0, 0.0, 0.0));
        assert!(same.intersection_complement.abs() < 1e-15);
        let apart = distances(&x, &[100.0; 3]).unwrap();
        assert!(apart.psi > 100.0 && apart.kullback_leibler == f64::INFINITY);
        assert!(distances(&[], &x).is_err() && distances(&[f64::NAN], &x).is_err());
        assert!(distances(&[f64::MIN], &[f64::MAX]).is_err());
        assert!(distances(&[1.0; 3], &[1.0; 2]).is_ok());
    }
}
