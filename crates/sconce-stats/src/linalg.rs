//! The little linear algebra that the statistics need: dense, small, in full precision.

use crate::error::{Result, StatsError};
use std::ops::{Index, IndexMut};

/// Sweeps of Jacobi's method; it converges quadratically, in practice within ten.
const MOST_SWEEPS: u32 = 60;

/// A dense matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    pub(crate) fn zero(rows: usize, columns: usize) -> Self {
        Self { columns, values: vec![0.0; rows * columns] }
    }

    pub(crate) fn rows(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.columns..(row + 1) * self.columns]
    }

    fn swap_rows(&mut self, a: usize, b: usize) {
        for column in 0..self.columns {
            self.values.swap(a * self.columns + column, b * self.columns + column);
        }
    }
}

impl Index<(usize, usize)> for Matrix {
    type Output = f64;

    fn index(&self, (row, column): (usize, usize)) -> &f64 {
        &self.values[row * self.columns + column]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (row, column): (usize, usize)) -> &mut f64 {
        &mut self.values[row * self.columns + column]
    }
}

/// Solves `matrix x = right` by elimination with partial pivoting.
///
/// # Errors
///
/// A matrix that is singular or not finite.
pub(crate) fn solve(mut matrix: Matrix, right: &[f64]) -> Result<Vec<f64>> {
    let size = right.len();
    let mut x = right.to_vec();
    for column in 0..size {
        let size_of = |row: usize| matrix[(row, column)].abs();
        let pivot = (column..size).max_by(|&a, &b| size_of(a).total_cmp(&size_of(b))).unwrap_or(column);
        if size_of(pivot) == 0.0 || !size_of(pivot).is_finite() {
            return Err(StatsError::Undefined { reason: "a system of equations is singular" });
        }
        matrix.swap_rows(column, pivot);
        x.swap(column, pivot);
        for row in column + 1..size {
            let factor = matrix[(row, column)] / matrix[(column, column)];
            if factor != 0.0 {
                for at in column..size {
                    let above = matrix[(column, at)];
                    matrix[(row, at)] -= factor * above;
                }
                x[row] -= factor * x[column];
            }
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|at| matrix[(row, at)] * x[at]).sum();
        x[row] = (x[row] - known) / matrix[(row, row)];
    }
    Ok(x)
}

/// The eigenvalues of a symmetric matrix and their unit eigenvectors, one a row: Jacobi's method, accurate for small
/// eigenvalues of positive definite matrices too.
pub(crate) fn symmetric_eigen(mut matrix: Matrix) -> (Vec<f64>, Matrix) {
    let size = matrix.rows();
    let mut vectors = Matrix::zero(size, size);
    for i in 0..size {
        vectors[(i, i)] = 1.0;
    }
    for _ in 0..MOST_SWEEPS {
        let mut rotated = false;
        for p in 0..size {
            for q in p + 1..size {
                let off = matrix[(p, q)];
                if off.abs() <= f64::EPSILON * 0.5 * (matrix[(p, p)] * matrix[(q, q)]).abs().sqrt()
                    || !off.is_finite()
                {
                    continue;
                }
                rotated = true;
                let theta = (matrix[(q, q)] - matrix[(p, p)]) / (2.0 * off);
                let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = tangent * cosine;
                for i in 0..size {
                    let (a, b) = (matrix[(i, p)], matrix[(i, q)]);
                    matrix[(i, p)] = cosine * a - sine * b;
                    matrix[(i, q)] = sine * a + cosine * b;
                }
                for i in 0..size {
                    let (a, b) = (matrix[(p, i)], matrix[(q, i)]);
                    matrix[(p, i)] = cosine * a - sine * b;
                    matrix[(q, i)] = sine * a + cosine * b;
                    let (a, b) = (vectors[(p, i)], vectors[(q, i)]);
                    vectors[(p, i)] = cosine * a - sine * b;
                    vectors[(q, i)] = sine * a + cosine * b;
                }
                matrix[(p, q)] = 0.0;
                matrix[(q, p)] = 0.0;
            }
        }
        if !rotated {
            break;
        }
    }
    ((0..size).map(|i| matrix[(i, i)]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f64]]) -> Matrix {
        Matrix { columns: rows[0].len(), values: rows.concat() }
    }

    #[test]
    fn solving_needs_a_pivot() {
        let x = solve(matrix(&[&[0.0, 2.0], &[3.0, 1.0]]), &[4.0, 5.0]).unwrap();
        assert_eq!(x, [1.0, 2.0]);
        assert!(solve(matrix(&[&[1.0, 2.0], &[2.0, 4.0]]), &[1.0, 1.0]).is_err());
        assert!(solve(matrix(&[&[f64::NAN]]), &[1.0]).is_err());
    }

    #[test]
    fn eigenvectors_rebuild_the_matrix() {
        let original = matrix(&[&[4.0, 1.0, 0.5], &[1.0, 3.0, -1.0], &[0.5, -1.0, 1e-6]]);
        let (eigenvalues, vectors) = symmetric_eigen(original.clone());
        for i in 0..3 {
            for j in 0..3 {
                let entry: f64 = (0..3).map(|k| eigenvalues[k] * vectors[(k, i)] * vectors[(k, j)]).sum();
                assert!((entry - original[(i, j)]).abs() < 1e-14, "{i} {j}");
            }
        }
    }
}
