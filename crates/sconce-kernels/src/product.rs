//! The heart of every matrix product: a tile of rows times a panel of columns, with the sums in registers.

use crate::buffer::LINE;
use crate::simd::Simd;

/// How values are multiplied: their format, and the product of rows with a panel of weights.
///
/// A step along the inner dimension takes `WORDS` 32-bit words of each row, which hold `VALUES` values, and as
/// many weights of each column.
pub(crate) trait Product<S: Simd> {
    /// Words of a row in a step.
    const WORDS: usize;
    /// Values of a row in a step.
    const VALUES: usize;
    /// Bytes of the weights of a vector of columns in a step.
    const BYTES: usize;
    /// The most rows of a tile.
    const TILE_ROWS: usize = S::TILE_ROWS;
    /// Rows taken at once. Those that a last group lacks are what the memory behind the rows happens to hold,
    /// and have sums that nobody reads.
    const GROUP_ROWS: usize = 1;
    /// Steps multiplied at once: so few that as much of a panel stays in the first-level cache, beside the rows
    /// of a tile. Sums go on from block to block as if there were none.
    const BLOCK_STEPS: usize = 192;

    /// `count` rows times a panel of `vectors` vectors of columns, 1 or 2 of them if its sums are vectors.
    ///
    /// Each sum adds its products in the order of the inner dimension, whatever the tile it is in.
    ///
    /// # Safety
    /// As for [`Simd`], with the instructions of the implementor. Rows, weights and sums are valid for `steps`
    /// steps, rows and sums for `count` rows filled up to whole groups.
    unsafe fn multiply(of: Operands, count: usize, vectors: usize);
}

/// A product whose sums are vectors: the instructions of one step, which takes one word of a row after the
/// other, with the part of the weights that belongs to it.
///
/// # Safety of the methods
/// As for [`Simd`], with the instructions of the implementor.
pub(crate) trait Stepwise<S: Simd>: Product<S> {
    /// A vector of sums, of `S::LANES` 32-bit lanes.
    type Sum: Copy;
    /// A vector of weights: those of `S::LANES` columns for one word.
    type Weights: Copy;

    unsafe fn zero() -> Self::Sum;
    unsafe fn load(from: *const u32) -> Self::Sum;
    unsafe fn store(to: *mut u32, sum: Self::Sum);
    unsafe fn weights(from: *const u8, word: usize) -> Self::Weights;
    unsafe fn step(sum: Self::Sum, word: *const u32, weights: Self::Weights) -> Self::Sum;
}

/// [`Product::multiply`] of a product whose sums are vectors.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn by_steps<S: Simd, P: Stepwise<S>>(of: Operands, count: usize, vectors: usize) {
    // SAFETY: The caller's promise.
    unsafe {
        if vectors == 2 {
            multiply::<S, P, 2>(of, count);
        } else {
            multiply::<S, P, 1>(of, count);
        }
    }
}

/// Single precision.
pub(crate) struct Single;

impl<S: Simd> Product<S> for Single {
    const WORDS: usize = 1;
    const VALUES: usize = 1;
    const BYTES: usize = 4 * S::LANES;

    #[inline(always)]
    unsafe fn multiply(of: Operands, count: usize, vectors: usize) {
        // SAFETY: The caller's promise.
        unsafe { by_steps::<S, Self>(of, count, vectors) }
    }
}

impl<S: Simd> Stepwise<S> for Single {
    type Sum = S::F;
    type Weights = S::F;

    #[inline(always)]
    unsafe fn zero() -> S::F {
        // SAFETY: The caller's promise.
        unsafe { S::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> S::F {
        // SAFETY: The caller's promise.
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u32, sum: S::F) {
        // SAFETY: The caller's promise.
        unsafe { S::store(to.cast(), sum) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> S::F {
        // SAFETY: The caller's promise.
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn step(sum: S::F, word: *const u32, weights: S::F) -> S::F {
        // SAFETY: The caller's promise.
        unsafe { S::mul_add(S::splat(*word.cast()), weights, sum) }
    }
}

/// Operands of a product. Strides are in words for rows and sums, in bytes for weights.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) rows: *const u32,
    pub(crate) row_stride: usize,
    pub(crate) weights: *const u8,
    pub(crate) weight_stride: usize,
    pub(crate) steps: usize,
    pub(crate) sums: *mut u32,
    pub(crate) sum_stride: usize,
    /// Whether to go on from the sums in memory rather than from zero.
    pub(crate) resume: bool,
    /// What to bring into the first-level cache meanwhile: at each step the two lines at this address, which
    /// then goes up by `near_step` bytes. With several tiles, each asks for the rows of the next instead.
    pub(crate) near: *const u8,
    pub(crate) near_step: usize,
    /// Likewise into the second-level cache, a line at each step. Neither need be valid.
    pub(crate) far: *const u8,
    pub(crate) far_step: usize,
}

/// Cuts `total` into the fewest parts of at most `most`, as even as can be: gives the end of the part that
/// starts at `start`.
#[inline(always)]
pub(crate) fn part_end(start: usize, total: usize, most: usize) -> usize {
    let left = total - start;
    start + left.div_ceil(left.div_ceil(most))
}

/// `count` rows times a panel of `VECTORS` vectors of columns.
///
/// Each sum adds its products one by one in the order of the inner dimension, whatever the tile it is in.
///
/// # Safety
/// That of [`Stepwise`]; rows, weights and sums are valid for `count` rows and `steps` steps.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, P: Stepwise<S>, const VECTORS: usize>(of: Operands, count: usize) {
    let (mut start, mut tile_index) = (0, 0);
    while start < count {
        let end = part_end(start, count, S::TILE_ROWS);
        // SAFETY: Within `count` rows.
        unsafe {
            let mut of = Operands {
                // Without steps there are no words, and nothing is read.
                rows: of.rows.wrapping_add(start * of.row_stride),
                sums: of.sums.add(start * of.sum_stride),
                far: of.far.wrapping_add(tile_index * of.steps * of.far_step),
                ..of
            };
            if count > S::TILE_ROWS && of.steps > 0 {
                let bytes = (end - start) * of.row_stride * 4;
                of.near = of.rows.cast::<u8>().wrapping_add(bytes);
                of.near_step = bytes / of.steps;
            }
            macro_rules! tiles {
                ($($rows:literal)*) => {
                    match end - start {
                        $($rows if $rows <= S::TILE_ROWS => tile::<S, P, VECTORS, $rows>(of),)*
                        _ => {}
                    }
                };
            }
            tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
        }
        start = end;
        tile_index += 1;
    }
}

/// # Safety
/// As for [`multiply`] with `ROWS` rows.
#[inline(always)]
unsafe fn tile<S: Simd, P: Stepwise<S>, const VECTORS: usize, const ROWS: usize>(of: Operands) {
    // SAFETY: The caller's promise; what is asked for ahead need not be valid.
    unsafe {
        let mut sums = [[P::zero(); VECTORS]; ROWS];
        if of.resume {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    *sum = P::load(of.sums.add(row * of.sum_stride + vector * S::LANES));
                }
            }
        }
        let (mut panel, mut near, mut far) = (of.weights, of.near, of.far);
        for step in 0..of.steps {
            S::prefetch(near);
            S::prefetch(near.wrapping_add(LINE));
            S::prefetch_far(far);
            for part in 0..P::WORDS {
                let mut weights = [P::weights(panel, part); VECTORS];
                for (vector, weights) in weights.iter_mut().enumerate().skip(1) {
                    *weights = P::weights(panel.add(vector * P::BYTES), part);
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let word = of.rows.add(row * of.row_stride + step * P::WORDS + part);
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = P::step(*sum, word, weights);
                    }
                }
            }
            panel = panel.wrapping_add(of.weight_stride);
            near = near.wrapping_add(of.near_step);
            far = far.wrapping_add(of.far_step);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                P::store(of.sums.add(row * of.sum_stride + vector * S::LANES), *sum);
            }
        }
    }
}
