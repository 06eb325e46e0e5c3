use crate::error::{Result, StatsError, at_least, finite, in_range, same_length};
use crate::linalg::{Matrix, symmetric_eigen};
use serde::{Deserialize, Serialize};

/// Columns: the work grows with their cube.
const MOST_COLUMNS: usize = 512;

/// Principal components of a reference, to tell when rows no longer hang together as they did: what the leading components cannot
/// reconstruct grows, even where each column alone looks the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reconstruction {
    means: Vec<f64>,
    /// Standard deviations over n; 1 for a constant column.
    scales: Vec<f64>,
    /// Unit vectors in the space of standardised columns.
    components: Vec<Vec<f64>>,
}

/// The mean error of rows, and the standard error of that mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionError {
    /// Mean Euclidean distance of a standardised row from its reconstruction.
    pub mean: f64,
    /// The rows' standard deviation (over n - 1) over the root of their number; NaN for one row.
    pub standard_error: f64,
}

impl Reconstruction {
    /// The fewest components that explain more than `share` of the variance of standardised columns; NannyML takes 0.65.
    ///
    /// # Errors
    /// Fewer than two rows, rows of different width, no column or more than 512, values that are not finite, `share` not strictly
    /// between 0 and 1; columns without any variance.
    pub fn fit(rows: &[Vec<f64>], share: f64) -> Result<Self> {
        at_least("rows", rows.len(), 2)?;
        in_range("share", share, share > 0.0 && share < 1.0, "a number between 0 and 1, neither included")?;
        let width = rows[0].len();
        in_range("columns", width as f64, (1..=MOST_COLUMNS).contains(&width), "a number from 1 to 512")?;
        for row in rows {
            same_length(("first row", width), ("row", row.len()))?;
            finite("rows", row)?;
        }
        let n = rows.len() as f64;
        let means: Vec<f64> = (0..width).map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / n).collect();
        let scale = |j: usize| {
            let variance = rows.iter().map(|row| (row[j] - means[j]).powi(2)).sum::<f64>() / n;
            // A constant column has no scale; a spread that is rounding counts as none.
            if variance.sqrt() <= 10.0 * f64::EPSILON * means[j].abs() { 1.0 } else { variance.sqrt() }
        };
        let scales: Vec<f64> = (0..width).map(scale).collect();
        let mut fitted = Self { means, scales, components: Vec::new() };
        let mut covariance = Matrix::zero(width, width);
        for row in rows {
            let z = fitted.standardised(row);
            for i in 0..width {
                for j in 0..=i {
                    covariance[(i, j)] += z[i] * z[j] / n;
                }
            }
        }
        for i in 0..width {
            for j in 0..i {
                covariance[(j, i)] = covariance[(i, j)];
            }
        }
        let (values, vectors) = symmetric_eigen(covariance);
        let total: f64 = values.iter().sum();
        if !(total > 0.0 && total.is_finite()) {
            return Err(StatsError::Undefined {
                reason: "the columns have no variance, or too much to add up",
            });
        }
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
        let mut explained = 0.0;
        for at in order {
            explained += values[at] / total;
            fitted.components.push(vectors.row(at).to_vec());
            if explained > share {
                break;
            }
        }
        Ok(fitted)
    }

    /// How many components are kept.
    pub fn components(&self) -> usize {
        self.components.len()
    }

    /// The error over `rows`.
    ///
    /// # Errors
    /// No row, a row of another width, values that are not finite.
    pub fn error(&self, rows: &[Vec<f64>]) -> Result<ReconstructionError> {
        at_least("rows", rows.len(), 1)?;
        let mut distances = Vec::with_capacity(rows.len());
        for row in rows {
            same_length(("columns", self.means.len()), ("row", row.len()))?;
            finite("rows", row)?;
            distances.push(self.distance(&self.standardised(row)));
        }
        let n = distances.len() as f64;
        let mean = distances.iter().sum::<f64>() / n;
        let variance = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Ok(ReconstructionError { mean, standard_error: variance.sqrt() / n.sqrt() })
    }

    fn standardised(&self, row: &[f64]) -> Vec<f64> {
        row.iter().zip(&self.means).zip(&self.scales).map(|((x, mean), scale)| (x - mean) / scale).collect()
    }

    fn distance(&self, z: &[f64]) -> f64 {
        let mut rest = z.to_vec();
        for component in &self.components {
            let along: f64 = z.iter().zip(component).map(|(z, c)| z * c).sum();
            rest.iter_mut().zip(component).for_each(|(rest, c)| *rest -= along * c);
        }
        rest.iter().map(|rest| rest * rest).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn rows_that_stop_hanging_together_are_told() {
        let mut random = Rng::with_seed(83);
        let mut rows = |together: f64| -> Vec<Vec<f64>> {
            let row = |_| {
                let common = random.f64();
                (0..4).map(|_| together * common + (1.0 - together) * random.f64()).collect()
            };
            (0..300).map(row).collect()
        };
        let (reference, same, apart) = (rows(0.9), rows(0.9), rows(0.0));
        let fitted = Reconstruction::fit(&reference, 0.65).unwrap();
        assert_eq!(fitted.components(), 1);
        let error = |rows: &[Vec<f64>]| fitted.error(rows).unwrap().mean;
        assert!(error(&same) < 1.3 * error(&reference) && error(&apart) > 3.0 * error(&same));
    }

    #[test]
    fn wrong_input_is_refused() {
        let rows = vec![vec![1.0, 2.0], vec![2.0, 1.0]];
        assert!(Reconstruction::fit(&rows[..1], 0.65).is_err() && Reconstruction::fit(&rows, 1.0).is_err());
        assert!(Reconstruction::fit(&[vec![1.0], vec![1.0]], 0.65).is_err());
        assert!(Reconstruction::fit(&[vec![1.0], vec![1.0, 2.0]], 0.65).is_err());
        let fitted = Reconstruction::fit(&rows, 0.65).unwrap();
        assert!(fitted.error(&[]).is_err() && fitted.error(&[vec![f64::NAN, 1.0]]).is_err());
        assert!(fitted.error(&[vec![1.0]]).is_err());
    }
}
