use crate::TestResult;
use crate::bins::quantile_of_sorted;
use crate::error::{Result, StatsError, at_least, finite};
use crate::linalg::{Matrix, symmetric_eigen};
use crate::special::chi_square_sf;

/// Where the characteristic functions are compared, in units of half the interquartile range.
const POINTS: [f64; 2] = [0.4, 0.8];
/// Two points, a cosine and a sine each.
const FEATURES: usize = 2 * POINTS.len();
/// Below this size the statistic is corrected for small samples.
const SMALL: usize = 25;

/// The Epps–Singleton test: the distance of the empirical characteristic functions at two points, in their common covariance
/// (Epps and Singleton, 1986; the correction for small samples and the scaling by Goerg and Kaiser, 2009). Sensitive to
/// differences of any kind, discrete data included; `O((n + m) log(n + m))`.
///
/// Where the covariance is singular, only its range counts; samples that differ without any spread are infinitely far apart.
///
/// # Errors
///
/// Fewer than five values in a sample, values that are not finite, an interquartile range of 0.
pub fn epps_singleton(x: &[f64], y: &[f64]) -> Result<TestResult> {
    for (name, sample) in [("x", x), ("y", y)] {
        at_least(name, sample.len(), 5)?;
        finite(name, sample)?;
    }
    let (n, m) = (x.len() as f64, y.len() as f64);
    let total = n + m;
    let mut pooled = [x, y].concat();
    pooled.sort_unstable_by(f64::total_cmp);
    let half_range = (quantile_of_sorted(&pooled, 0.75) - quantile_of_sorted(&pooled, 0.25)) / 2.0;
    if half_range == 0.0 || !half_range.is_finite() {
        return Err(StatsError::Undefined { reason: "the interquartile range is 0" });
    }
    let points = POINTS.map(|point| point / half_range);
    let (x_mean, x_covariance) = moments(x, points);
    let (y_mean, y_covariance) = moments(y, points);
    let mut covariance = Matrix::zero(FEATURES, FEATURES);
    for i in 0..FEATURES {
        for j in 0..FEATURES {
            covariance[(i, j)] = total / n * x_covariance[i][j] + total / m * y_covariance[i][j];
        }
    }
    let difference: [f64; FEATURES] = std::array::from_fn(|i| x_mean[i] - y_mean[i]);
    let (eigenvalues, vectors) = symmetric_eigen(covariance);
    let largest = eigenvalues.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    // A spread of this size is what rounding leaves of none.
    if largest < 1e-28 {
        let apart = difference.iter().any(|value| value.abs() > 1e-14);
        let (statistic, p_value) = if apart { (f64::INFINITY, 0.0) } else { (0.0, 1.0) };
        return Ok(TestResult { statistic, p_value });
    }
    let (mut form, mut rank) = (0.0, 0.0);
    for (index, &eigenvalue) in eigenvalues.iter().enumerate() {
        if eigenvalue > largest * 1e-15 {
            let along: f64 = vectors.row(index).iter().zip(difference).map(|(a, b)| a * b).sum();
            form += along * along / eigenvalue;
            rank += 1.0;
        }
    }
    let correction = if x.len().max(y.len()) < SMALL {
        1.0 / (1.0 + total.powf(-0.45) + 10.1 * (n.powf(-1.7) + m.powf(-1.7)))
    } else {
        1.0
    };
    let statistic = total * form * correction;
    Ok(TestResult { statistic, p_value: chi_square_sf(statistic, rank) })
}

/// The mean and the covariance (divided by n) of the cosines and the sines of a sample at the points.
fn moments(sample: &[f64], points: [f64; 2]) -> ([f64; FEATURES], [[f64; FEATURES]; FEATURES]) {
    let features = |value: f64| {
        let [(s0, c0), (s1, c1)] = points.map(|point| (point * value).sin_cos());
        [c0, c1, s0, s1]
    };
    let n = sample.len() as f64;
    let mut mean = [0.0; FEATURES];
    for &value in sample {
        for (sum, feature) in mean.iter_mut().zip(features(value)) {
            *sum += feature;
        }
    }
    mean.iter_mut().for_each(|sum| *sum /= n);
    let mut covariance = [[0.0; FEATURES]; FEATURES];
    for &value in sample {
        let features = features(value);
        let off: [f64; FEATURES] = std::array::from_fn(|i| features[i] - mean[i]);
        for (row, a) in covariance.iter_mut().zip(off) {
            for (sum, b) in row.iter_mut().zip(off) {
                *sum += a * b;
            }
        }
    }
    covariance.iter_mut().flatten().for_each(|sum| *sum /= n);
    (mean, covariance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_apart_are_certain_and_alike_refused() {
        let apart = epps_singleton(&[1.0; 30], &[2.0; 20]).unwrap();
        assert_eq!((apart.statistic, apart.p_value), (f64::INFINITY, 0.0));
        assert!(matches!(epps_singleton(&[1.0; 30], &[1.0; 20]), Err(StatsError::Undefined { .. })));
        assert!(matches!(epps_singleton(&[1.0; 4], &[1.0; 5]), Err(StatsError::TooFew { least: 5, .. })));
        assert!(epps_singleton(&[1.0, 2.0, 3.0, 4.0, f64::NAN], &[1.0; 5]).is_err());
    }

    #[test]
    fn equal_samples_are_at_distance_zero() {
        let x: Vec<f64> = (0..50).map(|i| f64::from(i * i % 17)).collect();
        let result = epps_singleton(&x, &x).unwrap();
        assert_eq!((result.statistic, result.p_value), (0.0, 1.0));
    }
}
