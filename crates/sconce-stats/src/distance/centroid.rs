use crate::error::{Result, StatsError, at_least, finite, same_length};

/// How far apart two points are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// The length of the straight line between them.
    Euclidean,
    /// One less the cosine of the angle between them, in [0, 2].
    Cosine,
    /// The sum of the differences of their coordinates.
    CityBlock,
    /// The largest difference of a coordinate.
    Chebyshev,
}

/// The distance between the means of two sets of rows, such as embeddings: quick, and blind to all that leaves the mean where
/// it is.
///
/// # Errors
///
/// No rows, rows without or of different length, values or a distance that are not finite; the cosine of a mean of 0.
pub fn centroid_distance(metric: Metric, x: &[Vec<f64>], y: &[Vec<f64>]) -> Result<f64> {
    let columns = x.first().map_or(0, Vec::len);
    at_least("columns", columns, 1)?;
    let (x, y) = (centroid("x", x, columns)?, centroid("y", y, columns)?);
    let differences = x.iter().zip(&y).map(|(a, b)| (a - b).abs());
    let distance = match metric {
        Metric::Euclidean => differences.map(|difference| difference * difference).sum::<f64>().sqrt(),
        Metric::CityBlock => differences.sum(),
        Metric::Chebyshev => differences.fold(0.0, f64::max),
        Metric::Cosine => {
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let lengths = (product(&x, &x) * product(&y, &y)).sqrt();
            if lengths == 0.0 {
                return Err(StatsError::Undefined { reason: "a mean of 0 has no direction" });
            }
            1.0 - product(&x, &y) / lengths
        }
    };
    finite("distance", &[distance])?;
    Ok(distance)
}

fn centroid(name: &'static str, rows: &[Vec<f64>], columns: usize) -> Result<Vec<f64>> {
    at_least(name, rows.len(), 1)?;
    let mut sums = vec![0.0; columns];
    for row in rows {
        same_length(("x[0]", columns), (name, row.len()))?;
        finite(name, row)?;
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    let count = rows.len() as f64;
    sums.iter_mut().for_each(|sum| *sum /= count);
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_compared() {
        let x = [vec![0.0, 2.0], vec![2.0, 0.0]];
        let y = [vec![4.0, 5.0]];
        let distance = |metric| centroid_distance(metric, &x, &y).unwrap();
        assert_eq!(distance(Metric::Euclidean), 5.0);
        assert_eq!(distance(Metric::CityBlock), 7.0);
        assert_eq!(distance(Metric::Chebyshev), 4.0);
        assert!((distance(Metric::Cosine) - (1.0 - 9.0 / 82.0_f64.sqrt())).abs() < 1e-15);
    }

    #[test]
    fn hostile_rows_are_refused() {
        let of = |x: &[Vec<f64>], y: &[Vec<f64>]| centroid_distance(Metric::Cosine, x, y);
        let good = [vec![1.0, 1.0]];
        assert!(of(&[], &good).is_err() && of(&good, &[]).is_err() && of(&[vec![]], &[vec![]]).is_err());
        assert!(of(&good, &[vec![1.0]]).is_err() && of(&good, &[vec![1.0, f64::NAN]]).is_err());
        assert!(of(&good, &[vec![1.0, 0.0], vec![-1.0, 0.0]]).is_err());
        assert!(of(&[vec![f64::MAX; 2]], &[vec![f64::MIN; 2]]).is_err());
    }
}
