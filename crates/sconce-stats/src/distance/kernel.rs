use crate::error::{Result, StatsError, at_least, finite, positive, same_length};
use crate::linalg::{Matrix, solve};
use serde::{Deserialize, Serialize};

/// Pairs of rows that are compared at most, in numbers: rows squared times columns.
const MOST_WORK: usize = 2_000_000_000;
/// Pairs of rows whose distances are kept at once.
const MOST_PAIRS: usize = 20_000_000;
const MOST_CENTERS: usize = 1_000;

/// The unbiased estimate of the squared maximum mean discrepancy under the kernel `exp(-d^2 / (2 bandwidth^2))` (Gretton et
/// al., 2012, equation 3). It may be below 0. Rows are points; the work grows with the square of their number.
///
/// # Errors
///
/// Fewer than two rows in a sample, rows of different length, values that are not finite, a bandwidth that is not above 0, too
/// many rows (about 40,000 of one column).
pub fn mmd_unbiased(x: &[Vec<f64>], y: &[Vec<f64>], bandwidth: f64) -> Result<f64> {
    rows(x, y, 2)?;
    positive("bandwidth", bandwidth)?;
    let (n, m) = (x.len() as f64, y.len() as f64);
    let gamma = 0.5 / (bandwidth * bandwidth);
    // The mean over pairs of different rows follows from that over all.
    let apart =
        |sample: &[Vec<f64>], size: f64| (rbf_mean(sample, sample, gamma) * size - 1.0) / (size - 1.0);
    Ok(apart(x, n) + apart(y, m) - 2.0 * rbf_mean(x, y, gamma))
}

/// The biased estimate, at least 0: the squared distance of the mean embeddings (equation 5).
///
/// # Errors
///
/// As [`mmd_unbiased`], but one row is enough.
pub fn mmd_biased(x: &[Vec<f64>], y: &[Vec<f64>], bandwidth: f64) -> Result<f64> {
    rows(x, y, 1)?;
    positive("bandwidth", bandwidth)?;
    let gamma = 0.5 / (bandwidth * bandwidth);
    Ok(rbf_mean(x, x, gamma) + rbf_mean(y, y, gamma) - 2.0 * rbf_mean(x, y, gamma))
}

/// What [`mmd_linear_time`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinearTimeMmd {
    /// The estimate, normal about the true value.
    pub mmd: f64,
    /// Its variance, estimated.
    pub variance: f64,
}

/// The estimate in linear time: the mean over disjoint pairs of rows of either sample, in their order (section 6).
///
/// # Errors
///
/// As [`mmd_unbiased`], but four rows in each are needed and any number is taken.
pub fn mmd_linear_time(x: &[Vec<f64>], y: &[Vec<f64>], bandwidth: f64) -> Result<LinearTimeMmd> {
    shapes(x, y, 4)?;
    positive("bandwidth", bandwidth)?;
    let gamma = 0.5 / (bandwidth * bandwidth);
    let kernel = |a: &[f64], b: &[f64]| (-gamma * squared_distance(a, b)).exp();
    let terms: Vec<f64> = x
        .chunks_exact(2)
        .zip(y.chunks_exact(2))
        .map(|(a, b)| {
            kernel(&a[0], &a[1]) + kernel(&b[0], &b[1]) - kernel(&a[0], &b[1]) - kernel(&a[1], &b[0])
        })
        .collect();
    let count = terms.len() as f64;
    let mmd = terms.iter().sum::<f64>() / count;
    let squares: f64 = terms.iter().map(|term| (term - mmd).powi(2)).sum();
    Ok(LinearTimeMmd { mmd, variance: squares / (count - 1.0) / count })
}

/// A bandwidth for [`mmd_unbiased`]: the root of half the median of the squared distances between different rows of both
/// samples.
///
/// # Errors
///
/// As [`mmd_unbiased`] with two rows in all, but no more than about 4,400 rows; the median being 0.
pub fn median_bandwidth(x: &[Vec<f64>], y: &[Vec<f64>]) -> Result<f64> {
    rows(x, y, 1)?;
    let pooled: Vec<&Vec<f64>> = x.iter().chain(y).collect();
    let total = pooled.len();
    let pairs = total * total;
    if pairs > MOST_PAIRS {
        return Err(StatsError::TooMany { name: "pairs of rows", most: MOST_PAIRS, got: pairs });
    }
    // Each pair once: the middle of the N (N - 1) / 2 is where the middle of all ordered pairs is.
    let mut distances = Vec::with_capacity(pairs / 2);
    for (at, a) in pooled.iter().enumerate() {
        distances.extend(pooled[..at].iter().map(|b| squared_distance(a, b)));
    }
    // Position N + (N^2 - N) / 2 - 1 of all ordered pairs, the N zeros of each row with itself first.
    let position = (distances.len().max(1) - 1) / 2;
    let (_, median, _) = distances.select_nth_unstable_by(position, f64::total_cmp);
    if *median == 0.0 {
        return Err(StatsError::Undefined { reason: "half of the rows are equal" });
    }
    Ok((0.5 * *median).sqrt())
}

/// The least-squares estimate of the squared L2 distance between two densities (Sugiyama et al., 2013), as a mixture of
/// Gaussians of the given bandwidth about `centers`, with ridge penalty `penalty`.
///
/// # Errors
///
/// Rows as in [`mmd_unbiased`] (one is enough), no centers or more than 1,000, a bandwidth or penalty that is not above 0.
pub fn least_squares_density_difference(
    x: &[Vec<f64>],
    y: &[Vec<f64>],
    centers: &[Vec<f64>],
    bandwidth: f64,
    penalty: f64,
) -> Result<f64> {
    shapes(x, y, 1)?;
    shapes(x, centers, 1)?;
    positive("bandwidth", bandwidth)?;
    positive("penalty", penalty)?;
    let size = centers.len();
    if size > MOST_CENTERS {
        return Err(StatsError::TooMany { name: "centers", most: MOST_CENTERS, got: size });
    }
    let square = bandwidth * bandwidth;
    let scale = (std::f64::consts::PI.sqrt() * bandwidth).powi(x[0].len() as i32);
    let mut overlaps = Matrix::zero(size, size);
    for i in 0..size {
        for j in 0..size {
            overlaps[(i, j)] = scale * (-squared_distance(&centers[i], &centers[j]) / (4.0 * square)).exp();
        }
    }
    let heights: Vec<f64> = centers
        .iter()
        .map(|center| {
            let mean = |sample: &[Vec<f64>]| {
                let sum: f64 =
                    sample.iter().map(|row| (-squared_distance(row, center) / (2.0 * square)).exp()).sum();
                sum / sample.len() as f64
            };
            mean(x) - mean(y)
        })
        .collect();
    let mut ridge = overlaps.clone();
    for i in 0..size {
        ridge[(i, i)] += penalty;
    }
    let weights = solve(ridge, &heights)?;
    let linear: f64 = heights.iter().zip(&weights).map(|(height, weight)| height * weight).sum();
    let quadratic: f64 = (0..size)
        .map(|i| weights[i] * overlaps.row(i).iter().zip(&weights).map(|(a, b)| a * b).sum::<f64>())
        .sum();
    Ok(2.0 * linear - quadratic)
}

/// The mean of `exp(-gamma d^2)` over all pairs of a row of `x` and one of `y`.
fn rbf_mean(x: &[Vec<f64>], y: &[Vec<f64>], gamma: f64) -> f64 {
    let sum: f64 =
        x.iter().map(|a| y.iter().map(|b| (-gamma * squared_distance(a, b)).exp()).sum::<f64>()).sum();
    sum / (x.len() as f64 * y.len() as f64)
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Checks the rows, and that comparing each with each is affordable.
fn rows(x: &[Vec<f64>], y: &[Vec<f64>], least: usize) -> Result<()> {
    shapes(x, y, least)?;
    let total = x.len() + y.len();
    let work = total.saturating_mul(total).saturating_mul(x[0].len());
    if work > MOST_WORK {
        return Err(StatsError::TooMany { name: "rows * rows * columns", most: MOST_WORK, got: work });
    }
    Ok(())
}

/// Checks that all rows are as long as the first and finite.
fn shapes(x: &[Vec<f64>], y: &[Vec<f64>], least: usize) -> Result<()> {
    at_least("x", x.len(), least)?;
    at_least("y", y.len(), least)?;
    at_least("columns", x[0].len(), 1)?;
    for (name, sample) in [("x", x), ("y", y)] {
        for row in sample {
            same_length(("x[0]", x[0].len()), (name, row.len()))?;
            finite(name, row)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: u32, shift: f64) -> Vec<Vec<f64>> {
        (0..count).map(|i| vec![f64::from(i * 7 % 13) + shift, f64::from(i * 5 % 11)]).collect()
    }

    #[test]
    fn shifted_points_are_further_than_alike_ones() {
        let (x, y, z) = (points(30, 0.0), points(25, 0.0), points(25, 9.0));
        let bandwidth = median_bandwidth(&x, &y).unwrap();
        assert!(mmd_unbiased(&x, &z, bandwidth).unwrap() > mmd_unbiased(&x, &y, bandwidth).unwrap() + 0.1);
        assert!(mmd_biased(&x, &x, bandwidth).unwrap().abs() < 1e-15);
        let lsdd = |y: &[Vec<f64>]| least_squares_density_difference(&x, y, &x[..8], 2.0, 0.1).unwrap();
        assert!(lsdd(&z) > lsdd(&y));
        assert!(mmd_linear_time(&x, &z, bandwidth).unwrap().variance > 0.0);
    }

    #[test]
    fn hostile_rows_are_refused() {
        let good = points(5, 0.0);
        let ragged = vec![vec![1.0, 2.0], vec![1.0]];
        let odd = vec![vec![1.0, f64::NAN], vec![1.0, 2.0]];
        let empty = vec![vec![], vec![]];
        for bad in [&ragged, &odd, &empty, &Vec::new()] {
            assert!(mmd_unbiased(bad, &good, 1.0).is_err() && mmd_unbiased(&good, bad, 1.0).is_err());
            assert!(mmd_linear_time(&good, bad, 1.0).is_err() && median_bandwidth(bad, &good).is_err());
            assert!(least_squares_density_difference(&good, &good, bad, 1.0, 0.1).is_err());
        }
        assert!(mmd_unbiased(&good, &good, 0.0).is_err());
        let many = vec![vec![0.0]; 30_000];
        assert!(matches!(mmd_biased(&many, &many, 1.0), Err(StatsError::TooMany { .. })));
        assert!(median_bandwidth(&vec![vec![1.0]; 5], &vec![vec![1.0]; 5]).is_err());
    }
}
