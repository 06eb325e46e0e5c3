//! Dense layers: rows times packed weights, then bias, activation and residual while the product is in cache.

use crate::buffer::{LINE, Scratch};
use crate::conv::Windows;
use crate::isa::Kernel;
use crate::math::{self, Function, Relu};
use crate::pack::{Form, PackedMatrix};
use crate::product::{Operands, Product, Single, part_end};
use crate::simd::Simd;
use crate::{amx, bf16, int8};

/// What follows a dense layer's bias. NaN stays NaN in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// The value or zero, whichever is larger.
    Relu,
    /// With the error function, as BERT was trained.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// Hyperbolic tangent.
    Tanh,
    /// The logistic function.
    Sigmoid,
    /// The value times its logistic function, also called swish.
    Silu,
}

/// What follows a product: `act(product + bias) + residual`.
#[derive(Debug, Clone, Copy)]
pub struct After<'a> {
    /// One value for each column, or empty.
    pub bias: &'a [f32],
    /// Applied to each value.
    pub activation: Activation,
    /// Added last: as many values as the output, or empty.
    pub residual: &'a [f32],
}

impl After<'_> {
    /// Nothing follows.
    pub const NOTHING: Self = Self { bias: &[], activation: Activation::None, residual: &[] };
}

/// `out = act(x · weightsᵀ + bias) + residual` for `x` [rows, inner]; `out` is [rows, columns].
///
/// Each row of `out` depends on its own row of `x` alone, to the last bit: not on the number of rows nor on
/// where among them it is.
///
/// # Panics
/// If a slice has not the length that the shapes give.
pub fn dense(x: &[f32], weights: &PackedMatrix, after: After<'_>, out: &mut [f32], scratch: &mut Scratch) {
    let (inner, columns) = (weights.inner(), weights.columns());
    // Without an inner dimension only the output tells the rows.
    let rows = x.len().checked_div(inner).unwrap_or(out.len() / columns.max(1));
    assert_eq!(x.len(), rows * inner, "x is not [rows, inner]");
    assert_eq!(Some(out.len()), rows.checked_mul(columns), "out is not [rows, columns]");
    assert!(after.bias.is_empty() || after.bias.len() == columns, "bias is not [columns]");
    assert!(after.residual.is_empty() || after.residual.len() == out.len(), "residual is not as out");
    if out.is_empty() {
        return;
    }
    Dense { x: Rows::Slice(x), rows, weights, after, relu_last: false, out, scratch }.dispatch();
}

struct InSingle<'a>(Dense<'a>);

impl Kernel for InSingle<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: The caller's promise.
        unsafe { self.0.run::<S, Single>() }
    }
}

/// Where the rows of a product come from.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// They lie one after another.
    Slice(&'a [f32]),
    /// They are what a convolution's window sees of images.
    Windows(Windows<'a>),
}

/// A product whose lengths were checked.
pub(crate) struct Dense<'a> {
    pub(crate) x: Rows<'a>,
    pub(crate) rows: usize,
    pub(crate) weights: &'a PackedMatrix,
    pub(crate) after: After<'a>,
    /// Whether negative values become zero once the residual was added.
    pub(crate) relu_last: bool,
    pub(crate) out: &'a mut [f32],
    pub(crate) scratch: &'a mut Scratch,
}

/// What else a row is, when its words are integers: it stands for `(integers - zero) · scale`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowTerms {
    pub(crate) scale: f32,
    pub(crate) zero: i32,
    /// The sum of the row's integers.
    pub(crate) sum: i32,
}

/// How rows of a format are made, and sums turned into values.
///
/// # Safety of the methods
/// As for [`Simd`].
pub(crate) trait Encode<S: Simd>: Product<S> {
    /// Looks at a row as a whole.
    unsafe fn begin(row: &[f32]) -> RowTerms;
    /// Writes `values` as words, and adds to the sum of `terms`; a last word is filled up with zeros,
    /// and so is a tile's row of words, where there are tiles.
    unsafe fn encode(values: &[f32], terms: &mut RowTerms, to: *mut u32);
    /// The values that `S::LANES` sums stand for. The columns' sums and scales are read in int8 alone.
    unsafe fn finish(sums: *const u32, row: &RowTerms, columns: *const i32, scales: *const f32) -> S::F;
}

impl<S: Simd> Encode<S> for Single {
    #[inline(always)]
    unsafe fn begin(_: &[f32]) -> RowTerms {
        RowTerms::default()
    }
    #[inline(always)]
    unsafe fn encode(values: &[f32], _: &mut RowTerms, to: *mut u32) {
        // SAFETY: A word for each value.
        unsafe { S::copy(values, to.cast()) }
    }
    #[inline(always)]
    unsafe fn finish(sums: *const u32, _: &RowTerms, _: *const i32, _: *const f32) -> S::F {
        // SAFETY: The caller's promise.
        unsafe { S::load(sums.cast()) }
    }
}

/// Words of rows multiplied at once: so few that they stay in the second-level cache, beside a panel; and so
/// many that the weights of ResNet's last convolutions, which take 4608 values of 49 places, are read once for
/// an image.
const BLOCK_WORDS: usize = 256 * 1024;
/// The most rows multiplied at once: so few that their sums stay in cache until they are finished.
const BLOCK_ROWS: usize = 168;

/// Single-precision weights of at most as many bytes stay in the second-level cache whoever reads beside them.
/// With those, rows are multiplied two tiles at a time: then what is written of a row, a panel at a time, is
/// still near when its next panel is.
const SMALL_WEIGHTS: usize = 512 * 1024;

/// How far ahead of their use weights are asked for, in bytes, when there is but one tile.
const AHEAD: usize = 4096;

impl Dense<'_> {
    /// Computes it as the weights are packed.
    pub(crate) fn dispatch(self) {
        let isa = self.weights.isa;
        match self.weights.form {
            Form::Single => isa.run(InSingle(self)),
            Form::Bf16 => isa.run(bf16::InBf16(self)),
            Form::Bf16Native => bf16::run_native(isa, self),
            Form::Bf16Tiles => amx::run_bf16(isa, self),
            Form::Int8Pairs => int8::run_pairs(isa, self),
            Form::Int8Vnni => int8::run_vnni(isa, self),
            Form::Int8Tiles => amx::run_int8(isa, self),
        }
    }

    /// # Safety
    /// That of [`Product`].
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd, P: Encode<S>>(mut self) {
        let most = (BLOCK_WORDS / (self.weights.steps * P::WORDS).max(1)).clamp(P::TILE_ROWS, BLOCK_ROWS);
        let is_small = self.weights.form == Form::Single && self.weights.data.bytes() <= SMALL_WEIGHTS;
        let most = if is_small { most.min(2 * P::TILE_ROWS) } else { most };
        let most = most - most % P::TILE_ROWS;
        let mut first = 0;
        while first < self.rows {
            // Whole groups but for the last: `most` is a multiple of them.
            let end = part_end(first, self.rows, most).next_multiple_of(P::GROUP_ROWS).min(self.rows);
            // SAFETY: The caller's promise; `first..end` are rows of the matrices.
            unsafe {
                let block = self.encode::<S, P>(first, end);
                self.block::<S, P>(block);
            }
            first = end;
        }
    }

    /// Encodes rows into scratch memory: block of steps after block of steps, in each row after row.
    #[inline(always)]
    unsafe fn encode<S: Simd, P: Encode<S>>(&mut self, first: usize, end: usize) -> Block {
        let count = end - first;
        let (inner, weights) = (self.weights.inner(), self.weights);
        let blocks = weights.steps.div_ceil(P::BLOCK_STEPS);
        let scratch = &mut *self.scratch;
        let stride = P::BLOCK_STEPS * P::WORDS;
        let places = blocks * count + P::GROUP_ROWS - 1;
        let words = scratch.rows.at_least(places * stride * 4).cast::<u32>();
        let terms = scratch.terms.at_least(count * size_of::<RowTerms>()).cast::<RowTerms>();
        let places = count.next_multiple_of(P::GROUP_ROWS);
        let sums = scratch.sums.at_least(places * weights.vectors * S::LANES * 4).cast::<u32>();
        for row in 0..count {
            let x = match &self.x {
                Rows::Slice(x) => &x[(first + row) * inner..][..inner],
                Rows::Windows(windows) => windows.row(first + row, &mut scratch.window),
            };
            // SAFETY: The buffers hold `count` rows of all blocks.
            unsafe {
                let mut own = P::begin(x);
                for (block, values) in x.chunks(P::BLOCK_STEPS * P::VALUES).enumerate() {
                    P::encode(values, &mut own, words.add((block * count + row) * stride));
                }
                *terms.add(row) = own;
            }
        }
        Block { first, count, words, terms, sums }
    }

    /// # Safety
    /// That of [`Product`]; `block` holds rows of these matrices.
    #[inline(always)]
    unsafe fn block<S: Simd, P: Encode<S>>(&mut self, block: Block) {
        let weights = self.weights;
        let (width, step_bytes) = (weights.vectors * S::LANES, weights.vectors * P::BYTES);
        let tiles = block.count.div_ceil(P::TILE_ROWS);
        for (index, start) in (0..weights.columns()).step_by(width).enumerate() {
            // SAFETY: Pointers stay within the panel, the rows' words and the sums of the block.
            unsafe {
                let panel = weights.data.as_ptr().add(index * weights.panel_bytes());
                let out = self.out.as_ptr().add(block.first * weights.columns() + start);
                for row in 0..block.count {
                    let out = out.wrapping_add(row * weights.columns());
                    S::prefetch_far(out.cast());
                    S::prefetch_far(out.wrapping_add(LINE / 4).cast());
                }
                for (part, step) in (0..weights.steps.max(1)).step_by(P::BLOCK_STEPS).enumerate() {
                    let steps = P::BLOCK_STEPS.min(weights.steps - step);
                    let bytes = steps * step_bytes;
                    let from = panel.add(step * step_bytes);
                    // What follows is read next: a little of it during each tile. With one, near suffices.
                    let far = if tiles > 1 { bytes } else { AHEAD };
                    let far_step = if tiles > 1 { bytes.div_ceil(tiles * steps.max(1)) } else { 0 };
                    let of = Operands {
                        rows: block.words.add(part * block.count * P::BLOCK_STEPS * P::WORDS),
                        row_stride: P::BLOCK_STEPS * P::WORDS,
                        weights: from,
                        weight_stride: step_bytes,
                        steps,
                        sums: block.sums,
                        sum_stride: width,
                        resume: part > 0,
                        near: from.wrapping_add(AHEAD),
                        near_step: step_bytes,
                        far: from.wrapping_add(far),
                        far_step,
                    };
                    P::multiply(of, block.count, weights.vectors);
                }
                match self.after.activation {
                    Activation::None => self.finish::<S, P, math::Same>(block, start, width),
                    Activation::Relu => self.finish::<S, P, math::Relu>(block, start, width),
                    Activation::Gelu => self.finish::<S, P, math::Gelu>(block, start, width),
                    Activation::GeluTanh => self.finish::<S, P, math::GeluTanh>(block, start, width),
                    Activation::Tanh => self.finish::<S, P, math::Tanh>(block, start, width),
                    Activation::Sigmoid => self.finish::<S, P, math::Sigmoid>(block, start, width),
                    Activation::Silu => self.finish::<S, P, math::Silu>(block, start, width),
                }
            }
        }
    }

    /// Turns the sums of a panel that starts at column `start` into output.
    ///
    /// # Safety
    /// As for [`Self::block`].
    #[inline(always)]
    unsafe fn finish<S: Simd, P: Encode<S>, A: Function>(
        &mut self,
        block: Block,
        start: usize,
        width: usize,
    ) {
        let (weights, after, columns) = (self.weights, self.after, self.weights.columns());
        let (out, relu_last) = (self.out.as_mut_ptr(), self.relu_last);
        for first in (0..width).step_by(S::LANES) {
            let column = start + first;
            let count = S::LANES.min(columns.saturating_sub(column));
            // SAFETY: `count` values are left of each row from `column` on, and none are touched if that is
            // none; scales and sums are there for whole panels where they are read.
            unsafe {
                let bias = match after.bias.get(column..) {
                    Some(bias) => S::load_part(bias.as_ptr(), count.min(bias.len())),
                    None => S::splat(0.0),
                };
                let (of, scales) = (
                    weights.column_sums.as_ptr().wrapping_add(column),
                    weights.scales.as_ptr().wrapping_add(column),
                );
                for row in 0..block.count {
                    let sums = block.sums.add(row * width + first);
                    let value = S::add(P::finish(sums, &*block.terms.add(row), of, scales), bias);
                    let mut value = A::of::<S>(value);
                    let at = (block.first + row) * columns + column;
                    if count == S::LANES {
                        if !after.residual.is_empty() {
                            value = S::add(value, S::load(after.residual.as_ptr().add(at)));
                        }
                        if relu_last {
                            value = Relu::of::<S>(value);
                        }
                        S::store(out.add(at), value);
                    } else if count > 0 {
                        if !after.residual.is_empty() {
                            value = S::add(value, S::load_part(after.residual.as_ptr().add(at), count));
                        }
                        if relu_last {
                            value = Relu::of::<S>(value);
                        }
                        S::store_part(out.add(at), value, count);
                    }
                }
            }
        }
    }
}

/// Rows of a product in scratch memory.
#[derive(Clone, Copy)]
struct Block {
    /// The first of them in `x` and `out`.
    first: usize,
    count: usize,
    words: *const u32,
    terms: *const RowTerms,
    sums: *mut u32,
}
