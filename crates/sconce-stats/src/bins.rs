//! Histograms and quantiles: how many bins, where their edges lie, what falls into each.

use crate::error::{Result, StatsError, at_least, finite, in_range};

/// A rule may ask for very many bins (outliers do that to those that go by spread): more than this is refused.
const MOST_BINS: usize = 1_000_000;

/// How the number of bins of equal width follows from the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinRule {
    /// The finer of Freedman–Diaconis, at most twice as many bins as the square root of the size, and Sturges.
    Auto,
    /// Sturges, corrected for skewness (Doane, 1976).
    Doane,
    /// By the interquartile range (Freedman and Diaconis, 1981).
    FreedmanDiaconis,
    /// Twice the cube root of the size.
    Rice,
    /// By the standard deviation (Scott, 1979).
    Scott,
    /// The square root of the size.
    SquareRoot,
    /// The logarithm of the size, plus one (Sturges, 1926).
    Sturges,
}

/// How a quantile lies between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QuantileRule {
    /// Linearly between the ends (Hyndman and Fan's type 7).
    #[default]
    Linear,
    /// With the median unbiased whatever the distribution (type 8).
    MedianUnbiased,
}

/// The edges of bins of equal width over the range of the values, ascending, one more than there are bins. Constant data has
/// one bin of width 1 about it.
///
/// # Errors
///
/// No values, values that are not finite, more than a million bins.
pub fn bin_edges(values: &[f64], rule: BinRule) -> Result<Vec<f64>> {
    at_least("values", values.len(), 1)?;
    finite("values", values)?;
    let (low, high) = range(values);
    let width = match rule {
        BinRule::Auto => {
            let (fine, plain) = (width(values, BinRule::FreedmanDiaconis), width(values, BinRule::Sturges));
            // Long tails would ask for many more bins than there are values.
            let fine = fine.max(width(values, BinRule::SquareRoot) / 2.0);
            if fine > 0.0 { fine.min(plain) } else { plain }
        }
        rule => width(values, rule),
    };
    let count = if width > 0.0 { ((high - low) / width).ceil() } else { 1.0 };
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    if count > MOST_BINS as f64 || !(high - low).is_finite() {
        return Err(StatsError::TooMany { name: "bins", most: MOST_BINS, got: count as usize });
    }
    Ok(equal_edges(low, high, (count as usize).max(1)))
}

/// `count` bins of equal width from `low` to `high`.
pub(crate) fn equal_edges(low: f64, high: f64, count: usize) -> Vec<f64> {
    let step = (high - low) / count as f64;
    let mut edges: Vec<f64> = (0..count).map(|i| low + step * i as f64).collect();
    edges.push(high);
    edges
}

/// How many values fall into each bin. A bin holds its lower edge and not its upper one, the last holds both; what lies outside
/// all, NaN included, is not counted.
///
/// # Errors
///
/// Fewer than two edges, edges that are not finite or not ascending.
pub fn histogram(values: &[f64], edges: &[f64]) -> Result<Vec<u64>> {
    at_least("edges", edges.len(), 2)?;
    finite("edges", edges)?;
    if edges.windows(2).any(|pair| pair[0] > pair[1]) {
        return Err(StatsError::Undefined { reason: "edges must ascend" });
    }
    Ok(counts(values, edges))
}

pub(crate) fn counts(values: &[f64], edges: &[f64]) -> Vec<u64> {
    let bins = edges.len() - 1;
    let (low, high) = (edges[0], edges[bins]);
    let mut counts = vec![0; bins];
    for &value in values {
        if value >= low && value <= high {
            let bin = edges.partition_point(|&edge| edge <= value).saturating_sub(1).min(bins - 1);
            counts[bin] += 1;
        }
    }
    counts
}

/// The quantile of the values at `q`, in [0, 1].
///
/// # Errors
///
/// No values, values that are not finite, `q` outside its range.
pub fn quantile(values: &[f64], q: f64, rule: QuantileRule) -> Result<f64> {
    at_least("values", values.len(), 1)?;
    finite("values", values)?;
    in_range("q", q, (0.0..=1.0).contains(&q), "a number in [0, 1]")?;
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Ok(match rule {
        QuantileRule::Linear => quantile_of_sorted(&sorted, q),
        QuantileRule::MedianUnbiased => {
            let n = sorted.len() as f64;
            between(&sorted, (n * q + (1.0 + q) / 3.0 - 1.0).clamp(0.0, n - 1.0))
        }
    })
}

/// The linear quantile of sorted values that are not empty, `q` in [0, 1].
pub(crate) fn quantile_of_sorted(sorted: &[f64], q: f64) -> f64 {
    between(sorted, (sorted.len() - 1) as f64 * q)
}

/// The value at a position between two, taken from the nearer.
fn between(sorted: &[f64], position: f64) -> f64 {
    let below = (position.floor() as usize).min(sorted.len() - 1);
    let above = (below + 1).min(sorted.len() - 1);
    let share = position - below as f64;
    let step = sorted[above] - sorted[below];
    if !step.is_finite() {
        sorted[below] * (1.0 - share) + sorted[above] * share
    } else if share >= 0.5 {
        sorted[above] - step * (1.0 - share)
    } else {
        sorted[below] + step * share
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
}

fn width(values: &[f64], rule: BinRule) -> f64 {
    let n = values.len() as f64;
    let (low, high) = range(values);
    let spread = high - low;
    match rule {
        BinRule::Auto | BinRule::Sturges => spread / (n.log2() + 1.0),
        BinRule::Rice => spread / (2.0 * n.cbrt()),
        BinRule::SquareRoot => spread / n.sqrt(),
        BinRule::Scott => {
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
            (24.0 * std::f64::consts::PI.sqrt() / n).cbrt() * variance.sqrt()
        }
        BinRule::FreedmanDiaconis => {
            let mut sorted = values.to_vec();
            sorted.sort_unstable_by(f64::total_cmp);
            2.0 * (quantile_of_sorted(&sorted, 0.75) - quantile_of_sorted(&sorted, 0.25)) / n.cbrt()
        }
        BinRule::Doane => {
            let mean = values.iter().sum::<f64>() / n;
            let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
            if n <= 2.0 || deviation <= 0.0 {
                return 0.0;
            }
            let skewness = values.iter().map(|value| ((value - mean) / deviation).powi(3)).sum::<f64>() / n;
            let error = (6.0 * (n - 2.0) / ((n + 1.0) * (n + 3.0))).sqrt();
            spread / (1.0 + n.log2() + (1.0 + skewness.abs() / error).log2())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_their_lower_edge_and_the_last_both() {
        let edges = [0.0, 1.0, 2.0];
        let counts = histogram(&[-0.1, 0.0, 0.9, 1.0, 2.0, 2.1, f64::NAN], &edges).unwrap();
        assert_eq!(counts, [2, 2]);
        assert!(histogram(&[1.0], &[1.0]).is_err() && histogram(&[1.0], &[2.0, 1.0]).is_err());
        assert_eq!(histogram(&[1.0, 1.0], &[1.0, 1.0]).unwrap(), [2]);
    }

    #[test]
    fn hostile_ranges_end() {
        let outlier: Vec<f64> = (0..1_000).map(f64::from).chain([1e18]).collect();
        assert!(matches!(
            bin_edges(&outlier, BinRule::FreedmanDiaconis),
            Err(StatsError::TooMany { name: "bins", .. })
        ));
        assert!(bin_edges(&[f64::MIN, f64::MAX], BinRule::Sturges).is_err());
        assert!(bin_edges(&[], BinRule::Sturges).is_err());
        let ends = [f64::MIN, f64::MAX];
        assert_eq!(quantile(&ends, 0.0, QuantileRule::Linear).unwrap(), f64::MIN);
        assert_eq!(quantile(&ends, 0.5, QuantileRule::Linear).unwrap(), 0.0);
        assert!(quantile(&[1.0], 1.5, QuantileRule::Linear).is_err());
        assert!(quantile(&[1.0], f64::NAN, QuantileRule::Linear).is_err());
    }
}
