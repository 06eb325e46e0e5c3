//! Self-attention of one sequence.

use crate::buffer::Scratch;
use crate::isa::{Isa, Kernel};
use crate::math::exp;
use crate::product::{Operands, Single, multiply, part_end};
use crate::simd::Simd;

/// Self-attention of one sequence: `qkv` [tokens, 3 · hidden] holds each token's query, key and value, each
/// the heads' parts one after another; `out` is [tokens, hidden]. Scores are scaled by 1 / √(hidden / heads).
///
/// A head with a NaN among a token's scores gives NaN for that token. Beside keys and values of one head, the
/// scores of a few queries are held at a time, so memory grows with the tokens, not with their square.
///
/// # Panics
/// If `hidden` is not a multiple of `heads`, or a slice has not the length that the shapes give.
pub fn attention(isa: Isa, qkv: &[f32], hidden: usize, heads: usize, out: &mut [f32], scratch: &mut Scratch) {
    assert!(heads > 0 && hidden.is_multiple_of(heads), "{hidden} is not a multiple of {heads} heads");
    assert_eq!(Some(qkv.len()), out.len().checked_mul(3), "qkv is not three times out");
    if out.is_empty() {
        return;
    }
    assert!(hidden > 0 && out.len().is_multiple_of(hidden), "out is not [tokens, hidden]");
    isa.run(Attention { qkv, hidden, dim: hidden / heads, tokens: out.len() / hidden, out, scratch });
}

struct Attention<'a> {
    qkv: &'a [f32],
    hidden: usize,
    /// Values of a token in a head.
    dim: usize,
    tokens: usize,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

/// Scores held at once, but for those of a tile of very long sequences.
const BLOCK_SCORES: usize = 8 * 1024;
/// The most queries whose scores are held at once.
const BLOCK_QUERIES: usize = 112;
/// Tokens whose weighted values are added at once: so few that their values stay in the first-level cache.
const BLOCK_TOKENS: usize = 256;
/// More tokens than these have their values copied side by side: where they are, they are far apart.
const MANY_TOKENS: usize = 64;

/// Where a head's keys, values and scores are.
#[derive(Clone, Copy)]
struct Head {
    /// Its first column in queries, keys, values and output.
    first: usize,
    /// Transposed keys, in panels of two vectors (the last perhaps of one) of tokens.
    keys: *mut f32,
    values: *const f32,
    value_stride: usize,
    scores: *mut f32,
    /// Tokens, filled up to whole vectors.
    padded: usize,
    inverses: *mut f32,
    /// For heads that are not whole vectors: where the output is before it is copied.
    sums: *mut f32,
    /// `dim`, filled up to whole vectors.
    width: usize,
}

impl Kernel for Attention<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { qkv, hidden, dim, tokens, out, scratch } = self;
        let padded = tokens.next_multiple_of(S::LANES);
        let width = dim.next_multiple_of(S::LANES);
        let copied = tokens > MANY_TOKENS || width != dim;
        let most = (BLOCK_SCORES / padded).clamp(S::TILE_ROWS, BLOCK_QUERIES);
        let most = (most - most % S::TILE_ROWS).min(tokens);
        let mut head = Head {
            first: 0,
            keys: scratch.keys.at_least(padded * dim * 4).cast(),
            values: scratch.values.at_least(if copied { tokens * width * 4 } else { 0 }).cast(),
            value_stride: if copied { width } else { 3 * hidden },
            scores: scratch.rows.at_least(most * padded * 4).cast(),
            padded,
            inverses: scratch.terms.at_least(most * 4).cast(),
            sums: scratch.sums.at_least(most * width * 4).cast(),
            width,
        };
        let shape = Shape { hidden, dim, tokens };
        for first in (0..hidden).step_by(dim) {
            head.first = first;
            // SAFETY: The scratch memory is as long as its uses: keys [dim, padded], values [tokens, width],
            // scores [most, padded] and sums [most, width]. Lengths of `qkv` and `out` were checked.
            unsafe {
                pack_keys::<S>(qkv.as_ptr().add(hidden + first), shape, head);
                let values = qkv.as_ptr().add(2 * hidden + first);
                if copied {
                    for token in 0..tokens {
                        let to = head.values.cast_mut().add(token * width);
                        values.add(token * 3 * hidden).copy_to_nonoverlapping(to, dim);
                    }
                } else {
                    head.values = values;
                }
                let mut start = 0;
                while start < tokens {
                    let end = part_end(start, tokens, most);
                    let queries = qkv.as_ptr().add(start * 3 * hidden + first);
                    let out = out.as_mut_ptr().add(start * hidden + first);
                    attend::<S>(queries, end - start, shape, head, out);
                    start = end;
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    dim: usize,
    tokens: usize,
}

/// Transposes a head's keys into panels.
///
/// # Safety
/// `keys` has `dim` values for each token, `3 · hidden` apart; `head.keys` holds [dim, padded].
#[inline(always)]
unsafe fn pack_keys<S: Simd>(keys: *const f32, shape: Shape, head: Head) {
    let Shape { hidden, dim, tokens } = shape;
    let whole = dim - dim % S::LANES;
    for first in (0..tokens).step_by(S::LANES) {
        let (panel, width) = panel::<S>(first, head.padded);
        // SAFETY: Within the panel: `dim` rows of `width` tokens. Only whole vectors of dimensions are read.
        unsafe {
            let from = keys.add(first * 3 * hidden);
            let to = head.keys.add(panel * dim + (first - panel));
            let rows = S::LANES.min(tokens - first);
            for column in (0..whole).step_by(S::LANES) {
                S::transpose(from.add(column), 3 * hidden, rows, to.add(column * width), width);
            }
            for column in whole..dim {
                for token in 0..S::LANES {
                    let value = if token < rows { *from.add(token * 3 * hidden + column) } else { 0.0 };
                    *to.add(column * width + token) = value;
                }
            }
        }
    }
}

/// The first token and the width of the panel that a token is in.
#[inline(always)]
fn panel<S: Simd>(token: usize, padded: usize) -> (usize, usize) {
    let first = token - token % (2 * S::LANES);
    (first, (padded - first).min(2 * S::LANES))
}

/// The attention of `count` queries in a head.
///
/// # Safety
/// Queries are `3 · hidden` apart and outputs `hidden`; `head`'s memory suffices for `count` queries.
#[inline(always)]
unsafe fn attend<S: Simd>(queries: *const f32, count: usize, shape: Shape, head: Head, out: *mut f32) {
    let Shape { hidden, dim, tokens } = shape;
    // SAFETY: The caller's promise; panels are of whole vectors.
    unsafe {
        for first in (0..head.padded).step_by(2 * S::LANES) {
            let (_, width) = panel::<S>(first, head.padded);
            let of = Operands {
                rows: queries.cast(),
                row_stride: 3 * hidden,
                weights: head.keys.add(first * dim).cast(),
                weight_stride: width * 4,
                steps: dim,
                sums: head.scores.add(first).cast(),
                sum_stride: head.padded,
                resume: false,
                near: head.keys.cast(),
                near_step: 0,
                far: head.keys.cast(),
                far_step: 0,
            };
            if width == 2 * S::LANES {
                multiply::<S, Single, 2>(of, count);
            } else {
                multiply::<S, Single, 1>(of, count);
            }
        }
        let scale = 1.0 / (dim as f32).sqrt();
        for row in 0..count {
            let sum = exponentials::<S>(head.scores.add(row * head.padded), tokens, scale);
            *head.inverses.add(row) = 1.0 / sum;
        }
        let whole = head.width == dim;
        let (sums, sum_stride) = if whole { (out, hidden) } else { (head.sums, head.width) };
        for first in (0..head.width).step_by(2 * S::LANES) {
            for token in (0..tokens).step_by(BLOCK_TOKENS) {
                let of = Operands {
                    rows: head.scores.add(token).cast(),
                    row_stride: head.padded,
                    weights: head.values.add(token * head.value_stride + first).cast(),
                    weight_stride: head.value_stride * 4,
                    steps: BLOCK_TOKENS.min(tokens - token),
                    sums: sums.add(first).cast(),
                    sum_stride,
                    resume: token > 0,
                    near: head.values.cast(),
                    near_step: 0,
                    far: head.values.cast(),
                    far_step: 0,
                };
                if head.width - first >= 2 * S::LANES {
                    multiply::<S, Single, 2>(of, count);
                } else {
                    multiply::<S, Single, 1>(of, count);
                }
            }
        }
        for row in 0..count {
            let inverse = S::splat(*head.inverses.add(row));
            for first in (0..dim).step_by(S::LANES) {
                let value = S::mul(S::load(sums.add(row * sum_stride + first)), inverse);
                let to = out.add(row * hidden + first);
                if whole {
                    S::store(to, value);
                } else {
                    S::store_part(to, value, S::LANES.min(dim - first));
                }
            }
        }
    }
}

/// Turns `len` scores into `e^((score - largest) · scale)`, and gives their sum. The scores are in whole
/// vectors, whose rest is overwritten.
///
/// # Safety
/// That of [`Simd`]; `row` has `len` values, filled up to whole vectors.
#[inline(always)]
unsafe fn exponentials<S: Simd>(row: *mut f32, len: usize, scale: f32) -> f32 {
    // SAFETY: The caller's promise.
    unsafe {
        let last = (len - 1) / S::LANES * S::LANES;
        let low = S::splat(f32::NEG_INFINITY);
        // Lanes that are no tokens count as minus infinity.
        let tail = S::min(S::load(row.add(last)), S::fill(len - last, f32::INFINITY, f32::NEG_INFINITY));
        S::store(row.add(last), tail);
        let (mut even, mut odd) = (tail, low);
        let mut at = 0;
        while at + S::LANES < last {
            even = S::max(S::load(row.add(at)), even);
            odd = S::max(S::load(row.add(at + S::LANES)), odd);
            at += 2 * S::LANES;
        }
        if at < last {
            odd = S::max(S::load(row.add(at)), odd);
        }
        let largest = S::largest(S::max(odd, even));
        // The largest first: its own exponent is exactly zero then, however large it is.
        let (scale, largest) = (S::splat(scale), S::splat(largest));
        let share = |score| exp::<S>(S::mul(S::sub(score, largest), scale));
        let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
        let mut at = 0;
        while at < last {
            let one = share(S::load(row.add(at)));
            let two = share(S::load(row.add(at + S::LANES)));
            S::store(row.add(at), one);
            S::store(row.add(at + S::LANES), two);
            (even, odd) = (S::add(even, one), S::add(odd, two));
            at += 2 * S::LANES;
        }
        if at == last {
            let one = share(tail);
            S::store(row.add(at), one);
            even = S::add(even, one);
        }
        S::sum(S::add(even, odd))
    }
}
