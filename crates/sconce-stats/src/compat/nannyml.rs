//! NannyML 0.13: univariate drift of a chunk against a reference, with a threshold from the reference's own chunks.
//!
//! Known oddities that are reproduced: values outside the reference's bins become one bin more, and rounding alone can make
//! it; from 10,000 reference values on, Kolmogorov–Smirnov and Wasserstein are read off 10,000 bins, the latter with tails
//! that count one value too many; what the reference's few chunks scatter is all that the threshold knows of chance; chi-square
//! alerts at 0.05 whatever the number of columns.

use crate::bins::{BinRule, bin_edges, counts, equal_edges};
use crate::counts::{Divergence, contingency};
use crate::distance;
use crate::error::{Result, StatsError, at_least, finite};
use crate::performance::{Thresholds, deviation_thresholds};
use crate::two_sample::{Alternative, Method, kolmogorov_smirnov};
use std::collections::BTreeMap;

/// References of this size are binned.
const LARGE: usize = 10_000;
/// Into so many bins.
const BINS: usize = 10_000;
/// The threshold lies this many standard deviations above the mean of the reference's chunks.
const DEVIATIONS: f64 = 3.0;
/// Chi-square alerts below this p-value.
const LEVEL: f64 = 0.05;

/// No threshold yet, or for chi-square ever.
const NONE: Thresholds = Thresholds { lower: None, upper: None };

/// How a numerical column is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumericalMethod {
    /// The Jensen–Shannon distance in base 2, over Doane's bins of the reference.
    JensenShannon,
    /// The Hellinger distance over the same bins.
    Hellinger,
    /// The Kolmogorov–Smirnov statistic.
    KolmogorovSmirnov,
    /// The Wasserstein-1 distance.
    Wasserstein,
}

/// How a column of categories is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CategoricalMethod {
    /// The Jensen–Shannon distance in base 2.
    JensenShannon,
    /// The Hellinger distance.
    Hellinger,
    /// The largest difference of a share.
    LInfinity,
    /// The chi-square statistic of the contingency table.
    ChiSquare,
}

/// What is said of a chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// The distance; NaN for a chunk without values.
    pub value: f64,
    /// The p-value, of chi-square alone.
    pub p_value: Option<f64>,
    /// Whether that is drift.
    pub alert: bool,
}

/// A numerical reference.
#[derive(Debug, Clone)]
pub struct Numerical {
    method: NumericalMethod,
    fitted: Fitted,
    thresholds: Thresholds,
}

#[derive(Debug, Clone)]
enum Fitted {
    /// The values themselves.
    Values(Vec<f64>),
    /// Edges, and the share in each bin.
    Bins(Vec<f64>, Vec<f64>),
}

impl Numerical {
    /// Takes a reference; NaN is a missing value. Its chunks of `chunk_size` rows, the rest being one too, set the threshold.
    ///
    /// # Errors
    ///
    /// No values, infinite values, a chunk size of 0.
    pub fn fit(method: NumericalMethod, reference: &[f64], chunk_size: usize) -> Result<Self> {
        at_least("chunk_size", chunk_size, 1)?;
        let values = present("reference", reference)?;
        at_least("reference", values.len(), 1)?;
        let large = values.len() >= LARGE;
        let edges = match method {
            NumericalMethod::JensenShannon | NumericalMethod::Hellinger => {
                Some(bin_edges(&values, BinRule::Doane)?)
            }
            _ if large => Some(wide_edges(&values)?),
            _ => None,
        };
        let fitted = match edges {
            Some(edges) => {
                let shares = shares(&values, &edges);
                Fitted::Bins(edges, shares)
            }
            None => Fitted::Values(values),
        };
        let mut fitted = Self { method, fitted, thresholds: NONE };
        let of_chunks: Vec<f64> =
            reference.chunks(chunk_size).map(|chunk| fitted.value(chunk)).collect::<Result<_>>()?;
        let most = if method == NumericalMethod::KolmogorovSmirnov { 1.0 } else { f64::INFINITY };
        fitted.thresholds = deviation_thresholds(&of_chunks, None, Some(DEVIATIONS))?.within(0.0, most);
        Ok(fitted)
    }

    /// Above this, a chunk has drifted.
    pub fn upper_threshold(&self) -> Option<f64> {
        self.thresholds.upper
    }

    /// Compares a chunk with the reference; NaN is a missing value.
    ///
    /// # Errors
    ///
    /// Infinite values.
    pub fn drift(&self, chunk: &[f64]) -> Result<Drift> {
        let value = self.value(chunk)?;
        Ok(Drift { value, p_value: None, alert: self.thresholds.alert(value) })
    }

    fn value(&self, chunk: &[f64]) -> Result<f64> {
        let chunk = present("chunk", chunk)?;
        if chunk.is_empty() {
            return Ok(f64::NAN);
        }
        match (&self.fitted, self.method) {
            (Fitted::Values(reference), NumericalMethod::Wasserstein) => {
                distance::wasserstein(reference.as_slice(), chunk.as_slice())
            }
            (Fitted::Values(reference), _) => {
                kolmogorov_smirnov(reference, &chunk, Alternative::TwoSided, Method::Asymptotic)
                    .map(|result| result.statistic)
            }
            (Fitted::Bins(edges, reference), NumericalMethod::KolmogorovSmirnov) => {
                Ok(binned_kolmogorov_smirnov(edges, reference, &chunk))
            }
            (Fitted::Bins(edges, reference), NumericalMethod::Wasserstein) => {
                Ok(binned_wasserstein(edges, reference, &chunk))
            }
            (Fitted::Bins(edges, reference), method) => {
                let in_bins = shares(&chunk, edges);
                between_shares(method == NumericalMethod::Hellinger, reference.clone(), in_bins)
            }
        }
    }
}

/// A reference of categories.
#[derive(Debug, Clone)]
pub struct Categorical {
    method: CategoricalMethod,
    counts: BTreeMap<String, u64>,
    thresholds: Thresholds,
}

impl Categorical {
    /// Takes a reference; `None` is a missing value. Its chunks of `chunk_size` rows, the rest being one too, set the threshold.
    ///
    /// # Errors
    ///
    /// No values, a chunk size of 0.
    pub fn fit(method: CategoricalMethod, reference: &[Option<&str>], chunk_size: usize) -> Result<Self> {
        at_least("chunk_size", chunk_size, 1)?;
        let counts: BTreeMap<String, u64> =
            count(reference).into_iter().map(|(category, count)| (category.to_owned(), count)).collect();
        at_least("reference", counts.len(), 1)?;
        let mut fitted = Self { method, counts, thresholds: NONE };
        let of_chunks: Vec<f64> =
            reference.chunks(chunk_size).map(|chunk| Ok(fitted.value(chunk)?.0)).collect::<Result<_>>()?;
        if method != CategoricalMethod::ChiSquare {
            fitted.thresholds = deviation_thresholds(&of_chunks, None, Some(DEVIATIONS))?;
        }
        Ok(fitted)
    }

    /// Above this, a chunk has drifted; chi-square goes by its p-value instead.
    pub fn upper_threshold(&self) -> Option<f64> {
        self.thresholds.upper
    }

    /// Compares a chunk with the reference; `None` is a missing value.
    ///
    /// # Errors
    ///
    /// A table that chi-square refuses.
    pub fn drift(&self, chunk: &[Option<&str>]) -> Result<Drift> {
        let (value, p_value) = self.value(chunk)?;
        let alert = p_value.map_or(self.thresholds.alert(value), |p_value| p_value < LEVEL);
        Ok(Drift { value, p_value, alert })
    }

    fn value(&self, chunk: &[Option<&str>]) -> Result<(f64, Option<f64>)> {
        let mut found = count(chunk);
        let total: u64 = found.values().sum();
        if total == 0 {
            return Ok((f64::NAN, None));
        }
        let reference_total: u64 = self.counts.values().sum();
        let mut now: Vec<u64> =
            self.counts.keys().map(|category| found.remove(category.as_str()).unwrap_or(0)).collect();
        let mut then: Vec<u64> = self.counts.values().copied().collect();
        let share = |counts: &[u64], total: u64| -> Vec<f64> {
            counts.iter().map(|&count| count as f64 / total as f64).collect()
        };
        match self.method {
            CategoricalMethod::JensenShannon | CategoricalMethod::Hellinger => {
                let hellinger = self.method == CategoricalMethod::Hellinger;
                let value = between_shares(hellinger, share(&then, reference_total), share(&now, total))?;
                Ok((value, None))
            }
            CategoricalMethod::LInfinity => {
                now.extend(found.values());
                then.resize(now.len(), 0);
                let value =
                    distance::largest_difference(&share(&then, reference_total), &share(&now, total))?;
                Ok((value, None))
            }
            CategoricalMethod::ChiSquare => {
                now.extend(found.values());
                then.resize(now.len(), 0);
                let row = |counts: &[u64]| -> Vec<f64> { counts.iter().map(|&count| count as f64).collect() };
                let test = contingency(&[row(&then), row(&now)], Divergence::Pearson, true)?;
                Ok((test.statistic, Some(test.p_value)))
            }
        }
    }
}

/// The values that are not missing.
fn present(name: &'static str, values: &[f64]) -> Result<Vec<f64>> {
    let values: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    finite(name, &values)?;
    Ok(values)
}

fn count<'a>(values: &[Option<&'a str>]) -> BTreeMap<&'a str, u64> {
    let mut counts = BTreeMap::new();
    for category in values.iter().flatten() {
        *counts.entry(*category).or_default() += 1;
    }
    counts
}

/// 10,000 bins over the range.
fn wide_edges(values: &[f64]) -> Result<Vec<f64>> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !(high - low).is_finite() {
        return Err(StatsError::Undefined { reason: "the range is not finite" });
    }
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    Ok(equal_edges(low, high, BINS))
}

/// The share of all values in each bin.
fn shares(values: &[f64], edges: &[f64]) -> Vec<f64> {
    let total = values.len() as f64;
    counts(values, edges).into_iter().map(|count| count as f64 / total).collect()
}

/// Jensen–Shannon in base 2 or Hellinger; what the chunk's shares leave of 1 is in a bin that the reference does not fill.
fn between_shares(hellinger: bool, mut reference: Vec<f64>, mut chunk: Vec<f64>) -> Result<f64> {
    let left = 1.0 - chunk.iter().sum::<f64>();
    if left > 0.0 {
        chunk.push(left);
        reference.push(0.0);
    }
    if hellinger {
        distance::hellinger(&reference, &chunk)
    } else {
        Ok(distance::jensen_shannon(&reference, &chunk)? / std::f64::consts::LN_2.sqrt())
    }
}

fn binned_kolmogorov_smirnov(edges: &[f64], reference: &[f64], chunk: &[f64]) -> f64 {
    let below = chunk.iter().filter(|&&value| value < edges[0]).count() as f64 / chunk.len() as f64;
    let (mut f, mut g, mut largest) = (0.0, 0.0, 0.0_f64);
    for (in_reference, in_chunk) in reference.iter().zip(shares(chunk, edges)) {
        f += in_reference;
        g += in_chunk;
        largest = largest.max((f - (below + g)).abs());
    }
    largest
}

fn binned_wasserstein(edges: &[f64], reference: &[f64], chunk: &[f64]) -> f64 {
    let (low, high) = (edges[0], edges[edges.len() - 1]);
    let total = chunk.len() as f64;
    // What lies outside is carried to the end of the range; the end itself is counted with it.
    let outside = |mut values: Vec<f64>, end: f64| {
        if values.is_empty() {
            return (0.0, 0.0);
        }
        values.push(end);
        let weight = values.len() as f64 / total;
        let mean = values.iter().map(|value| (value - end).abs()).sum::<f64>() / values.len() as f64;
        (mean * weight, weight)
    };
    let (below, weight_below) = outside(chunk.iter().copied().filter(|&value| value < low).collect(), low);
    let (above, _) = outside(chunk.iter().copied().filter(|&value| value > high).collect(), high);
    let width = edges[1] - edges[0];
    let (mut f, mut g, mut within) = (0.0, 0.0, 0.0);
    for (in_reference, in_chunk) in reference.iter().zip(shares(chunk, edges)) {
        f += in_reference;
        g += in_chunk;
        within += (f - (g + weight_below)).abs() * width;
    }
    within + below + above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_chunks_have_no_value_and_no_alert() {
        let reference: Vec<f64> = (0..100).map(f64::from).collect();
        let fitted = Numerical::fit(NumericalMethod::KolmogorovSmirnov, &reference, 20).unwrap();
        let drift = fitted.drift(&[f64::NAN; 3]).unwrap();
        assert!(drift.value.is_nan() && !drift.alert);
        assert!(fitted.drift(&[f64::INFINITY]).is_err());
        let fitted = Categorical::fit(CategoricalMethod::ChiSquare, &[Some("a"), Some("b")], 1).unwrap();
        let drift = fitted.drift(&[None]).unwrap();
        assert!(drift.value.is_nan() && !drift.alert);
    }

    #[test]
    fn what_cannot_be_a_reference_is_refused() {
        assert!(Numerical::fit(NumericalMethod::Wasserstein, &[], 10).is_err());
        assert!(Numerical::fit(NumericalMethod::Wasserstein, &[1.0], 0).is_err());
        assert!(Numerical::fit(NumericalMethod::Wasserstein, &[f64::INFINITY], 1).is_err());
        assert!(Categorical::fit(CategoricalMethod::Hellinger, &[None], 1).is_err());
    }

    #[test]
    fn bins_are_near_the_values() {
        let reference: Vec<f64> = (0..12_000).map(|i| f64::from(i * 7_919 % 12_000) / 12_000.0).collect();
        let chunk: Vec<f64> = (0..500).map(|i| 0.2 + f64::from(i) / 450.0).collect();
        for method in [NumericalMethod::Wasserstein, NumericalMethod::KolmogorovSmirnov] {
            let whole = Numerical::fit(method, &reference, 2_400).unwrap().drift(&chunk).unwrap().value;
            let part =
                Numerical::fit(method, &reference[..9_999], 2_400).unwrap().drift(&chunk).unwrap().value;
            assert!((whole - part).abs() < 0.01, "{whole} {part}");
        }
    }
}
