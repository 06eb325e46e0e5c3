//! Operations on rows of activations: sums of embeddings, norms, softmax and pooling.

use crate::isa::{Isa, Kernel};
use crate::simd::Simd;

/// `x = norm(x + residual) · gamma + beta` for rows of `gamma.len()` values, where norm gives zero mean and
/// unit variance: `(v - mean) / √(variance + epsilon)`. An empty `residual` or `beta` is none.
///
/// # Panics
/// If `x` is not whole rows, or another slice has not the length that the shapes give.
pub fn add_norm(isa: Isa, x: &mut [f32], residual: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
    let width = gamma.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "x is not [rows, width]");
    assert!(residual.is_empty() || residual.len() == x.len(), "residual is not as x");
    assert!(beta.is_empty() || beta.len() == width, "beta is not as gamma");
    isa.run(AddNorm::<true> { x, residual, gamma, beta, epsilon });
}

/// `x = (x + residual) / √(mean((x + residual)²) + epsilon) · gamma` for rows of `gamma.len()` values. An
/// empty `residual` is none.
///
/// # Panics
/// If `x` is not whole rows, or `residual` is not as long.
pub fn rms_norm(isa: Isa, x: &mut [f32], residual: &[f32], gamma: &[f32], epsilon: f32) {
    let width = gamma.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "x is not [rows, width]");
    assert!(residual.is_empty() || residual.len() == x.len(), "residual is not as x");
    isa.run(AddNorm::<false> { x, residual, gamma, beta: &[], epsilon });
}

/// Whether the mean is taken off.
struct AddNorm<'a, const CENTRED: bool> {
    x: &'a mut [f32],
    residual: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
}

impl<const CENTRED: bool> Kernel for AddNorm<'_, CENTRED> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, residual, gamma, beta, epsilon } = self;
        let width = gamma.len();
        let count = |at: usize| S::LANES.min(width.saturating_sub(at));
        for (index, x) in x.chunks_exact_mut(width).enumerate() {
            let x = x.as_mut_ptr();
            let residual = residual.get(index * width..).filter(|rest| !rest.is_empty());
            // SAFETY: All have `width` values, and `count` is how many of them are left.
            unsafe {
                let zero = S::splat(0.0);
                let mut sums = [zero; 2];
                let mut squares = [zero; 2];
                let step = 2 * S::LANES;
                for first in (0..width).step_by(step) {
                    for half in 0..2 {
                        let at = first + half * S::LANES;
                        let mut value = S::load_part(x.wrapping_add(at), count(at));
                        if let Some(residual) = residual {
                            let other = residual.as_ptr().wrapping_add(at);
                            value = S::add(value, S::load_part(other, count(at)));
                            S::store_part(x.wrapping_add(at), value, count(at));
                        }
                        if CENTRED {
                            sums[half] = S::add(sums[half], value);
                        } else {
                            squares[half] = S::mul_add(value, value, squares[half]);
                        }
                    }
                }
                let mean = S::sum(S::add(sums[0], sums[1])) / width as f32;
                if CENTRED {
                    for first in (0..width).step_by(step) {
                        for (half, squares) in squares.iter_mut().enumerate() {
                            let at = first + half * S::LANES;
                            let mean = S::fill(count(at), mean, 0.0);
                            let value = S::sub(S::load_part(x.wrapping_add(at), count(at)), mean);
                            *squares = S::mul_add(value, value, *squares);
                        }
                    }
                }
                let variance = S::sum(S::add(squares[0], squares[1])) / width as f32;
                let (mean, scale) = (S::splat(mean), S::splat(1.0 / (variance + epsilon).sqrt()));
                for at in (0..width).step_by(S::LANES) {
                    let mut value = S::load_part(x.add(at), count(at));
                    if CENTRED {
                        value = S::sub(value, mean);
                    }
                    let gamma = S::load_part(gamma.as_ptr().add(at), count(at));
                    let beta =
                        if beta.is_empty() { zero } else { S::load_part(beta.as_ptr().add(at), count(at)) };
                    S::store_part(x.add(at), S::mul_add(S::mul(value, scale), gamma, beta), count(at));
                }
            }
        }
    }
}
