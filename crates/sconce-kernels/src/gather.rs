//! From tokens to rows and back: sums of embeddings, softmax, pooling and unit length.

use crate::isa::{Isa, Kernel};
use crate::math::exp;
use crate::simd::Simd;

/// One embedding for each row: row `ids[i]` of `values` [entries, width] for output row `i`.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// The embeddings, one after another.
    pub values: &'a [f32],
    /// The embedding of each output row.
    pub ids: &'a [u32],
}

/// The sum of each row's embeddings, added in the order of `tables`: `out` [rows, width].
///
/// # Panics
/// If a table has not as many ids as `out` has rows, or an id has no embedding.
pub fn embed(isa: Isa, tables: &[Table<'_>], width: usize, out: &mut [f32]) {
    assert!(width > 0 && out.len().is_multiple_of(width), "out is not [rows, width]");
    for table in tables {
        assert_eq!(table.ids.len(), out.len() / width, "not one id for each row");
        let entries = table.values.len() / width;
        assert!(table.ids.iter().all(|id| (*id as usize) < entries), "an id is not below {entries}");
    }
    isa.run(Embed { tables, width, out });
}

struct Embed<'a> {
    tables: &'a [Table<'a>],
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Embed<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tables, width, out } = self;
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            for at in (0..width).step_by(S::LANES) {
                let count = S::LANES.min(width - at);
                // SAFETY: Ids were checked against the tables, and `count` values are left of each row.
                unsafe {
                    let mut sum = S::splat(0.0);
                    for table in tables {
                        let from = *table.ids.get_unchecked(row) as usize * width + at;
                        sum = S::add(sum, S::load_part(table.values.as_ptr().add(from), count));
                    }
                    S::store_part(out.as_mut_ptr().add(at), sum, count);
                }
            }
        }
    }
}

/// `e^v / Σ e^v` in place, for rows of `width` values. A row with a NaN or an infinity above all becomes NaN.
///
/// # Panics
/// If `x` is not whole rows.
pub fn softmax(isa: Isa, x: &mut [f32], width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width), "x is not [rows, width]");
    isa.run(Softmax { x, width });
}

struct Softmax<'a> {
    x: &'a mut [f32],
    width: usize,
}

impl Kernel for Softmax<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, width } = self;
        for row in x.chunks_exact_mut(width) {
            let row = row.as_mut_ptr();
            // SAFETY: `count` values are left of the row.
            unsafe {
                let mut largest = S::splat(f32::NEG_INFINITY);
                for at in (0..width).step_by(S::LANES) {
                    let count = S::LANES.min(width - at);
                    let value = S::load_part(row.add(at), count);
                    // Lanes that are no values count as minus infinity.
                    let bound = S::fill(count, f32::INFINITY, f32::NEG_INFINITY);
                    largest = S::max(S::min(bound, value), largest);
                }
                let largest = S::splat(S::largest(largest));
                let mut sum = S::splat(0.0);
                for at in (0..width).step_by(S::LANES) {
                    let count = S::LANES.min(width - at);
                    let value = exp::<S>(S::sub(S::load_part(row.add(at), count), largest));
                    S::store_part(row.add(at), value, count);
                    sum = S::add(sum, S::load_part(row.add(at), count));
                }
                scale::<S>(row, width, 1.0 / S::sum(sum));
            }
        }
    }
}

/// # Safety
/// That of [`Simd`]; `row` has `width` values.
#[inline(always)]
unsafe fn scale<S: Simd>(row: *mut f32, width: usize, factor: f32) {
    for at in (0..width).step_by(S::LANES) {
        let count = S::LANES.min(width - at);
        // SAFETY: `count` values are left.
        unsafe {
            let value = S::mul(S::load_part(row.add(at), count), S::splat(factor));
            S::store_part(row.add(at), value, count);
        }
    }
}

/// The mean of the rows of `x` [rows, width], added in their order. Zeros if there are none.
///
/// # Panics
/// If `x` is not whole rows.
pub fn mean_pool(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert!(x.is_empty() || (!out.is_empty() && x.len().is_multiple_of(out.len())), "x is not [rows, width]");
    isa.run(MeanPool { x, out });
}

struct MeanPool<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for MeanPool<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, out } = self;
        let width = out.len();
        let rows = x.len() / width.max(1);
        let factor = 1.0 / rows.max(1) as f32;
        for at in (0..width).step_by(S::LANES) {
            let count = S::LANES.min(width - at);
            // SAFETY: `count` values are left of each row.
            unsafe {
                let mut sum = S::splat(0.0);
                for row in 0..rows {
                    sum = S::add(sum, S::load_part(x.as_ptr().add(row * width + at), count));
                }
                S::store_part(out.as_mut_ptr().add(at), S::mul(sum, S::splat(factor)), count);
            }
        }
    }
}

/// Shorter rows than this are divided by this instead of their length.
const LEAST_LENGTH: f32 = 1e-12;

/// Brings rows of `width` values to unit length, in place; zeros stay zeros, and so becomes a row whose squares
/// overflow (values above 1e19).
///
/// # Panics
/// If `x` is not whole rows.
pub fn l2_normalize(isa: Isa, x: &mut [f32], width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width), "x is not [rows, width]");
    isa.run(Normalize { x, width });
}

struct Normalize<'a> {
    x: &'a mut [f32],
    width: usize,
}

impl Kernel for Normalize<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, width } = self;
        for row in x.chunks_exact_mut(width) {
            let row = row.as_mut_ptr();
            // SAFETY: `count` values are left of the row.
            unsafe {
                let mut sum = S::splat(0.0);
                for at in (0..width).step_by(S::LANES) {
                    let count = S::LANES.min(width - at);
                    let value = S::load_part(row.add(at), count);
                    sum = S::mul_add(value, value, sum);
                }
                let length = S::sum(sum).sqrt();
                scale::<S>(row, width, 1.0 / if length < LEAST_LENGTH { LEAST_LENGTH } else { length });
            }
        }
    }
}
