//! The f32 kernels of the CPU path, in safe Rust: vector instructions are chosen at run time by `pulp`.
//!
//! Every output row is computed by the same operations in the same order whatever other rows it is computed
//! with, so a row's result does not depend on its batch, to the last bit.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// What follows a dense layer's bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Relu,
    /// With the error function, as BERT was trained.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Tanh,
    Sigmoid,
}

/// Rows a thread must have before a second one is worth waking.
const MIN_ROWS_PER_THREAD: usize = 16;
/// The most vectors side by side in a panel of weights. With eight rows of sums (four in AVX2) they fill the
/// registers.
const MAX_WEIGHT_VECTORS: usize = 3;
/// Rows multiplied at once: few enough that they stay in the second-level cache beside a panel.
const BLOCK_ROWS: usize = 64;
/// Cache line, in floats: vectors that straddle two lines load at half speed.
const LINE: usize = 16;

/// A matrix [inner, columns] cut into panels a few vectors wide, each stored row after row: the order in
/// which the product reads it. Packed once, when a model is loaded.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    panels: AlignedVec,
    /// Vectors side by side in a panel.
    vectors: usize,
    inner: usize,
    columns: usize,
}

impl PackedMatrix {
    /// Packs the transpose of `rows`, a matrix [columns, inner]: a dense layer's weights as they are stored.
    pub(crate) fn from_transposed(rows: &[f32], columns: usize, inner: usize) -> Self {
        let mut panels = AlignedVec::default();
        let (vectors, width) = panel_size(columns);
        let packed = panels.sized(columns.div_ceil(width) * width * inner);
        for (column, values) in rows.chunks_exact(inner.max(1)).take(columns).enumerate() {
            let panel = &mut packed[column / width * width * inner..];
            for (target, value) in panel.iter_mut().skip(column % width).step_by(width).zip(values) {
                *target = *value;
            }
        }
        Self { panels, vectors, inner, columns }
    }

    pub(crate) fn inner(&self) -> usize {
        self.inner
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn bytes(&self) -> usize {
        self.panels.data.len() * 4
    }
}

/// Floats whose used part starts at a cache line.
#[derive(Debug, Default)]
struct AlignedVec {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl AlignedVec {
    /// `len` values that the caller overwrites, in the memory it had before if that is enough.
    fn sized(&mut self, len: usize) -> &mut [f32] {
        if self.data.len() < len + LINE {
            self.data.resize(len + LINE, 0.0);
        }
        self.start = self.data.as_ptr().align_offset(LINE * 4).min(LINE);
        self.len = len;
        &mut self.data[self.start..][..len]
    }

    fn get(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }
}

/// Vectors side by side in a panel, and the floats they hold on this machine: the widest that waste the
/// least.
fn panel_size(columns: usize) -> (usize, usize) {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    let lanes = Arch::new().dispatch(Lanes);
    let widths = (1..=MAX_WEIGHT_VECTORS).rev().map(|vectors| (vectors, vectors * lanes));
    widths.min_by_key(|(_, width)| columns.div_ceil(*width) * width).unwrap_or((1, lanes))
}

/// `act(x · weights + bias)` for `x` [rows, inner]; gives [rows, columns].
pub(crate) fn dense(x: &[f32], weights: &PackedMatrix, bias: &[f32], act: Activation) -> Vec<f32> {
    let (inner, columns) = (weights.inner.max(1), weights.columns);
    let rows = x.len() / inner;
    let mut out = vec![0.0; rows * columns];
    let rows_per_thread = rows.div_ceil(rayon::current_num_threads()).max(MIN_ROWS_PER_THREAD);
    let run = |x: &[f32], out: &mut [f32]| {
        Arch::new().dispatch(Dense { x, weights, bias, act, out });
    };
    if rows_per_thread >= rows {
        run(x, &mut out);
    } else {
        let tasks = x.par_chunks(rows_per_thread * inner).zip(out.par_chunks_mut(rows_per_thread * columns));
        tasks.for_each(|(x, out)| run(x, out));
    }
    out
}

struct Dense<'a> {
    x: &'a [f32],
    weights: &'a PackedMatrix,
    bias: &'a [f32],
    act: Activation,
    out: &'a mut [f32],
}

impl WithSimd for Dense<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.weights.vectors {
            1 => self.run::<S, 1>(simd),
            2 => self.run::<S, 2>(simd),
            _ => self.run::<S, MAX_WEIGHT_VECTORS>(simd),
        }
    }
}

impl Dense<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(self, simd: S) {
        let Self { x, weights, bias, act, out } = self;
        let (inner, columns) = (weights.inner, weights.columns);
        for (x, out) in x.chunks(BLOCK_ROWS * inner).zip(out.chunks_mut(BLOCK_ROWS * columns)) {
            let rows = Rows { values: x, stride: inner, count: x.len() / inner, inner };
            let out = Out { values: out, stride: columns, columns };
            multiply::<S, VECTORS>(simd, &rows, weights.panels.get(), bias, act, out);
        }
    }
}

/// `count` rows of `inner` values, `stride` apart.
struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
    count: usize,
    inner: usize,
}

/// The most rows computed at once: as many as leave the accumulators in registers.
#[inline(always)]
fn tile_rows<S: Simd>(left: usize) -> usize {
    let most = if S::REGISTER_COUNT >= 32 { 8 } else { 4 };
    match left {
        8.. => most,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Where a product goes: rows of `columns` values, `stride` apart.
struct Out<'a> {
    values: &'a mut [f32],
    stride: usize,
    columns: usize,
}

/// `out = act(rows · panels + bias)`; an empty `bias` is none.
#[inline(always)]
fn multiply<S: Simd, const VECTORS: usize>(
    simd: S,
    rows: &Rows<'_>,
    panels: &[f32],
    bias: &[f32],
    act: Activation,
    out: Out<'_>,
) {
    let width = VECTORS * S::F32_LANES;
    for (index, panel) in panels.chunks_exact((width * rows.inner).max(1)).enumerate() {
        let first = index * width;
        let columns = first..out.columns.min(first + width);
        let bias = bias.get(columns.clone()).unwrap_or_default();
        let panel = S::as_simd_f32s(panel).0.as_chunks::<VECTORS>().0;
        let mut start = 0;
        while start < rows.count {
            let tile = tile_rows::<S>(rows.count - start);
            let left = &rows.values[start * rows.stride..];
            let out = Out {
                values: &mut out.values[start * out.stride + first..],
                stride: out.stride,
                columns: columns.len(),
            };
            match tile {
                8 => multiply_tile::<S, VECTORS, 8>(simd, left, rows.stride, panel, bias, out),
                4 => multiply_tile::<S, VECTORS, 4>(simd, left, rows.stride, panel, bias, out),
                2 => multiply_tile::<S, VECTORS, 2>(simd, left, rows.stride, panel, bias, out),
                _ => multiply_tile::<S, VECTORS, 1>(simd, left, rows.stride, panel, bias, out),
            }
            start += tile;
        }
        if act != Activation::None {
            for row in out.values.chunks_mut(out.stride) {
                activate::<S>(&mut row[columns.clone()], act);
            }
        }
    }
}

#[inline(always)]
fn multiply_tile<S: Simd, const VECTORS: usize, const ROWS: usize>(
    simd: S,
    left: &[f32],
    stride: usize,
    panel: &[[S::f32s; VECTORS]],
    bias: &[f32],
    out: Out<'_>,
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &left[row * stride..][..panel.len()]);
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (column, vectors) in panel.iter().enumerate() {
        for row in 0..ROWS {
            let value = simd.splat_f32s(rows[row][column]);
            for vector in 0..VECTORS {
                sums[row][vector] = simd.mul_add_f32s(value, vectors[vector], sums[row][vector]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let out = &mut out.values[row * out.stride..][..out.columns];
        if out.len() == VECTORS * S::F32_LANES {
            S::as_mut_simd_f32s(out).0.copy_from_slice(sums);
        } else {
            for (out, sum) in out.chunks_mut(S::F32_LANES).zip(sums) {
                simd.partial_store_f32s(out, *sum);
            }
        }
        for (out, bias) in out.iter_mut().zip(bias) {
            *out += bias;
        }
    }
}

/// Self-attention of packed sequences: `qkv` [tokens, 3 · hidden] holds each token's query, key and value;
/// sequence `i` has the tokens of `sequences[i]`, which follow one another from 0. Gives [tokens, hidden].
pub(crate) fn attention(qkv: &[f32], hidden: usize, heads: usize, sequences: &[Range<usize>]) -> Vec<f32> {
    let mut out = vec![0.0; qkv.len() / 3];
    let mut rest = &mut out[..];
    let mut tasks = Vec::with_capacity(sequences.len());
    for tokens in sequences {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(tokens.len() * hidden);
        tasks.push((&qkv[tokens.start * 3 * hidden..tokens.end * 3 * hidden], own));
        rest = others;
    }
    if rayon::current_num_threads() == 1 {
        let mut scratch = Scratch::default();
        for (qkv, out) in tasks {
            Arch::new().dispatch(Attention { qkv, hidden, heads, out, scratch: &mut scratch });
        }
    } else {
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (qkv, out)| {
            Arch::new().dispatch(Attention { qkv, hidden, heads, out, scratch });
        });
    }
    out
}

#[derive(Default)]
struct Scratch {
    keys: AlignedVec,
    values: AlignedVec,
    scores: AlignedVec,
}

/// The attention of one sequence.
struct Attention<'a> {
    qkv: &'a [f32],
    hidden: usize,
    heads: usize,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

/// Query rows whose scores are held at once: bounds the memory of long sequences.
const QUERY_ROWS: usize = 64;

impl WithSimd for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Narrow panels waste less of a short sequence.
        match (self.out.len() / self.hidden <= S::F32_LANES, self.hidden / self.heads <= S::F32_LANES) {
            (true, true) => self.run::<S, 1, 1>(simd),
            (true, false) => self.run::<S, 1, 2>(simd),
            (false, true) => self.run::<S, 2, 1>(simd),
            (false, false) => self.run::<S, 2, 2>(simd),
        }
    }
}

impl Attention<'_> {
    #[inline(always)]
    fn run<S: Simd, const KEY_VECTORS: usize, const VALUE_VECTORS: usize>(self, simd: S) {
        let Self { qkv, hidden, heads, out, scratch } = self;
        let (tokens, dim, stride) = (out.len() / hidden, hidden / heads, 3 * hidden);
        let scale = 1.0 / (dim as f32).sqrt();
        for head in 0..heads {
            let (query, key, value) = (head * dim, hidden + head * dim, 2 * hidden + head * dim);
            pack_keys::<S, KEY_VECTORS>(&qkv[key..], stride, tokens, dim, &mut scratch.keys);
            pack_values::<S, VALUE_VECTORS>(&qkv[value..], stride, tokens, dim, &mut scratch.values);
            let (keys, values) = (scratch.keys.get(), scratch.values.get());
            for first in (0..tokens).step_by(QUERY_ROWS) {
                let count = QUERY_ROWS.min(tokens - first);
                let rows = Rows { values: &qkv[first * stride + query..], stride, count, inner: dim };
                let scores = scratch.scores.sized(count * tokens);
                let to = Out { values: scores, stride: tokens, columns: tokens };
                multiply::<S, KEY_VECTORS>(simd, &rows, keys, &[], Activation::None, to);
                for row in scores.chunks_exact_mut(tokens) {
                    softmax::<S>(row, scale);
                }
                let rows = Rows { values: scores, stride: tokens, count, inner: tokens };
                let out = &mut out[first * hidden + query..];
                let to = Out { values: out, stride: hidden, columns: dim };
                multiply::<S, VALUE_VECTORS>(simd, &rows, values, &[], Activation::None, to);
            }
        }
    }
}

/// Panels of the transposed keys: [dim, tokens].
#[inline(always)]
fn pack_keys<S: Simd, const VECTORS: usize>(
    keys: &[f32],
    stride: usize,
    tokens: usize,
    dim: usize,
    packed: &mut AlignedVec,
) {
    let width = VECTORS * S::F32_LANES;
    let packed = packed.sized(tokens.div_ceil(width) * width * dim);
    for token in 0..tokens {
        let panel = &mut packed[token / width * width * dim..][..width * dim];
        let source = &keys[token * stride..][..dim];
        for (target, value) in panel[token % width..].iter_mut().step_by(width).zip(source) {
            *target = *value;
        }
    }
}

/// Panels of the values: [tokens, dim].
#[inline(always)]
fn pack_values<S: Simd, const VECTORS: usize>(
    values: &[f32],
    stride: usize,
    tokens: usize,
    dim: usize,
    packed: &mut AlignedVec,
) {
    let width = VECTORS * S::F32_LANES;
    let packed = packed.sized(dim.div_ceil(width) * width * tokens);
    for (index, panel) in packed.chunks_exact_mut(width * tokens).enumerate() {
        let first = index * width;
        let used = width.min(dim - first);
        for (token, target) in panel.chunks_exact_mut(width).enumerate() {
            target[..used].copy_from_slice(&values[token * stride + first..][..used]);
        }
    }
}

/// `x = norm(x + residual)` for rows of `gamma.len()` values: zero mean and unit variance, then `gamma` and
/// `beta`.
pub(crate) fn add_norm(x: &mut [f32], residual: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
    let width = gamma.len();
    let run = |x: &mut [f32], residual: &[f32]| {
        Arch::new().dispatch(AddNorm { x, residual, gamma, beta, epsilon });
    };
    let rows = (x.len() / width).div_ceil(rayon::current_num_threads()).max(MIN_ROWS_PER_THREAD);
    if rows * width >= x.len() {
        run(x, residual);
    } else {
        let tasks = x.par_chunks_mut(rows * width).zip(residual.par_chunks(rows * width));
        tasks.for_each(|(x, residual)| run(x, residual));
    }
}

struct AddNorm<'a> {
    x: &'a mut [f32],
    residual: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
}

impl WithSimd for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.gamma.len();
        for (x, residual) in self.x.chunks_exact_mut(width).zip(self.residual.chunks_exact(width)) {
            for (x, residual) in x.iter_mut().zip(residual) {
                *x += residual;
            }
            let mean = sum(x, |value| value) / width as f32;
            let variance = sum(x, |value| (value - mean) * (value - mean)) / width as f32;
            let scale = 1.0 / (variance + self.epsilon).sqrt();
            for ((x, gamma), beta) in x.iter_mut().zip(self.gamma).zip(self.beta) {
                *x = (*x - mean) * scale * gamma + beta;
            }
        }
    }
}

/// The sum of `of(value)`, in lanes so that it can use vectors.
#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LINE>();
    let mut lanes = [0.0; LINE];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += of(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|value| of(*value)).sum::<f32>()
}

#[inline(always)]
fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LINE>();
    let mut lanes = [f32::MIN; LINE];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    rest.iter().chain(&lanes).fold(f32::MIN, |a, b| larger(a, *b))
}

#[inline(always)]
fn softmax<S: Simd>(row: &mut [f32], scale: f32) {
    let most = max(row) * scale;
    for value in row.iter_mut() {
        *value = exp::<S>(*value * scale - most);
    }
    let inverse = 1.0 / sum(row, |value| value);
    for value in row {
        *value *= inverse;
    }
}

#[inline(always)]
fn activate<S: Simd>(row: &mut [f32], act: Activation) {
    match act {
        Activation::None => {}
        // Written so that NaN stays NaN.
        Activation::Relu => map(row, |x| if x < 0.0 { 0.0 } else { x }),
        Activation::Gelu => map(row, |x| 0.5 * x * (1.0 + erf::<S>(x * std::f32::consts::FRAC_1_SQRT_2))),
        Activation::GeluTanh => map(row, |x| {
            const SQRT_2_OVER_PI: f32 = 0.797_884_6;
            0.5 * x * (1.0 + tanh::<S>(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
        }),
        Activation::Tanh => map(row, tanh::<S>),
        Activation::Sigmoid => map(row, |x| 1.0 / (1.0 + exp::<S>(-x))),
    }
}

#[inline(always)]
fn map(row: &mut [f32], of: impl Fn(f32) -> f32) {
    for value in row {
        *value = of(*value);
    }
}

/// `a · b + c`: fused where the machine has the instruction, for without it a fused sum is a slow call.
#[inline(always)]
fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

#[inline(always)]
fn polynomial<S: Simd, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.into_iter().fold(0.0, |sum, coefficient| mul_add::<S>(sum, x, coefficient))
}

/// e^x, within 2 units in the last place: Cephes' `expf` without branches.
#[inline(always)]
fn exp<S: Simd>(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = mul_add::<S>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<S>(n, 2.121_944_4e-4, mul_add::<S>(n, -0.693_359_4, x));
    let p = polynomial::<S, 6>(
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5],
    );
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    mul_add::<S>(p, r * r, r + 1.0) * power
}

#[inline(always)]
fn tanh<S: Simd>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<S>(2.0 * x) + 1.0)
}

/// The error function, within 4e-7: the rational approximation of Eigen's `generic_fast_erf_float`.
#[inline(always)]
fn erf<S: Simd>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let above = polynomial::<S, 7>(
        square,
        [
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_5e-5,
            -7.349_906e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let below = polynomial::<S, 5>(
        square,
        [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2],
    );
    x * above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in [-1, 1) that depend on `seed` alone.
    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn activated(act: Activation, values: &[f32]) -> Vec<f32> {
        let weights = PackedMatrix::from_transposed(&[1.0], 1, 1);
        dense(values, &weights, &[0.0], act)
    }

    #[test]
    fn activations_match_the_reference_functions() {
        let values: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 100.0).collect();
        let tensor = candle_core::Tensor::new(&values[..], &candle_core::Device::Cpu).unwrap();
        let tensor = tensor.to_dtype(candle_core::DType::F64).unwrap();
        let check = |act, expected: candle_core::Tensor| {
            let expected = expected.to_vec1::<f64>().unwrap();
            for ((x, got), want) in values.iter().zip(activated(act, &values)).zip(expected) {
                assert!(
                    (f64::from(got) - want).abs() < 1e-6 * want.abs().max(1.0),
                    "{act:?}({x}): {got} {want}"
                );
            }
        };
        check(Activation::Relu, tensor.relu().unwrap());
        check(Activation::Gelu, tensor.gelu_erf().unwrap());
        check(Activation::GeluTanh, tensor.gelu().unwrap());
        check(Activation::Tanh, tensor.tanh().unwrap());
        check(Activation::Sigmoid, candle_nn::ops::sigmoid(&tensor).unwrap());
        for act in
            [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh, Activation::Sigmoid]
        {
            assert!(activated(act, &[f32::NAN])[0].is_nan(), "{act:?}");
            assert!(activated(act, &[f32::MAX, f32::MIN]).iter().all(|v| !v.is_nan()), "{act:?}");
        }
    }

    #[test]
    fn dense_matches_a_plain_loop_and_ignores_the_batch() {
        for (rows, inner, columns) in [(1, 1, 1), (7, 5, 3), (15, 33, 70), (16, 64, 32), (40, 20, 31)] {
            let (x, w) = (noise(rows * inner, 1), noise(columns * inner, 2));
            let bias = noise(columns, 3);
            let weights = PackedMatrix::from_transposed(&w, columns, inner);
            let got = dense(&x, &weights, &bias, Activation::None);
            for row in 0..rows {
                let own = &x[row * inner..][..inner];
                for column in 0..columns {
                    let products = own.iter().zip(&w[column * inner..][..inner]).map(|(a, b)| a * b);
                    let want = products.sum::<f32>() + bias[column];
                    assert!((got[row * columns + column] - want).abs() < 1e-5);
                }
                assert_eq!(dense(own, &weights, &bias, Activation::None), got[row * columns..][..columns]);
            }
        }
    }

    #[test]
    fn attention_matches_a_plain_loop_and_ignores_the_batch() {
        let (hidden, heads, sequences) = (24, 2, [0..1, 1..18, 18..18 + 90]);
        let dim = hidden / heads;
        let qkv = noise(108 * 3 * hidden, 5);
        let got = attention(&qkv, hidden, heads, &sequences);
        let at = |token: usize, part: usize, head: usize, i: usize| {
            qkv[token * 72 + part * hidden + head * dim + i]
        };
        for tokens in &sequences {
            let own = attention(
                &qkv[tokens.start * 72..tokens.end * 72],
                hidden,
                heads,
                std::slice::from_ref(&(0..tokens.len())),
            );
            assert_eq!(own, got[tokens.start * hidden..tokens.end * hidden]);
            for (token, head) in tokens.clone().flat_map(|token| (0..heads).map(move |head| (token, head))) {
                let score = |key: usize| {
                    let dot: f32 = (0..dim).map(|i| at(token, 0, head, i) * at(key, 1, head, i)).sum();
                    (dot / (dim as f32).sqrt()).exp()
                };
                let total: f32 = tokens.clone().map(score).sum();
                for i in 0..dim {
                    let want: f32 = tokens.clone().map(|key| score(key) / total * at(key, 2, head, i)).sum();
                    assert!((got[token * hidden + head * dim + i] - want).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn add_norm_gives_zero_mean_and_unit_variance() {
        let width = 37;
        let (mut x, residual) = (noise(3 * width, 7), noise(3 * width, 8));
        add_norm(&mut x, &residual, &vec![2.0; width], &vec![1.0; width], 1e-12);
        for row in x.chunks(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / width as f32;
            assert!((mean - 1.0).abs() < 1e-5 && (variance - 4.0).abs() < 1e-4, "{mean} {variance}");
        }
    }
}
