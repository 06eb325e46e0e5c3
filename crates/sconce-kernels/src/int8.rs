//! Bytes: quantisation, and products whose sums are exact integers.
//!
//! A weight is its column's scale times an integer in -127..=127. A row's values are `(q - zero) · scale` for
//! `q` in -128..=127, where scale and zero are of that row alone: they map the row's smallest and largest value
//! (and zero, whichever is beyond) to the ends of the range. So
//!
//! `Σ x·w = row scale · column scale · (Σ q·w - zero · Σ w)`,
//!
//! of which the part in parentheses is computed without rounding, the same with all instructions.

use crate::dense::{Dense, Encode, RowTerms};
use crate::isa::{Isa, Kernel};
use crate::product::{Operands, Product, Stepwise, by_steps};
use crate::simd::{MAX_LANES, Simd};

/// What an integer of a column of weights stands for; NaN if one of them is no finite number.
pub(crate) fn weight_scale(weights: &[f32]) -> f32 {
    if weights.iter().all(|weight| weight.is_finite()) {
        weights.iter().fold(0.0_f32, |most, weight| most.max(weight.abs())) / 127.0
    } else {
        f32::NAN
    }
}

/// The integer nearest to `weight` in units of `scale`.
pub(crate) fn weight(weight: f32, scale: f32) -> i8 {
    if scale > 0.0 { (weight / scale).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 }
}

/// Ranges below this are taken for zero: the inverse of their scale could overflow.
const LEAST_SCALE: f32 = 4e-33;

/// The scale and zero of a row. A row with a value that is no finite number has the scale NaN.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
unsafe fn row_terms<S: Simd>(row: &[f32]) -> RowTerms {
    // SAFETY: `count` values are left; lanes beyond are zero, which is in the range anyway.
    unsafe {
        let zero = S::splat(0.0);
        let (mut least, mut most, mut finite) = (zero, zero, zero);
        for at in (0..row.len()).step_by(S::LANES) {
            let value = S::load_part(row.as_ptr().add(at), S::LANES.min(row.len() - at));
            least = S::min(value, least);
            most = S::max(value, most);
            // Zero times infinity or NaN is NaN.
            finite = S::mul_add(value, zero, finite);
        }
        let (least, most) = (-S::largest(S::sub(zero, least)), S::largest(most));
        if S::sum(finite).is_nan() {
            return RowTerms { scale: f32::NAN, zero: 0, sum: 0 };
        }
        // In two parts, so that the range of two large numbers does not overflow.
        let scale = most / 255.0 - least / 255.0;
        if scale < LEAST_SCALE {
            return RowTerms { scale: 0.0, zero: 0, sum: 0 };
        }
        let zero = (-128.0 - least / scale).round_ties_even().clamp(-128.0, 127.0);
        RowTerms { scale, zero: zero as i32, sum: 0 }
    }
}

/// Writes the integers of `values` one after another, as bytes or as 16 bits if they are to be `WIDE`, filled
/// up with zeros to whole words.
///
/// # Safety
/// That of [`Simd`]; `to` has as many places as `values`, filled up to whole words.
#[inline(always)]
pub(crate) unsafe fn encode<S: Simd, const WIDE: bool>(values: &[f32], terms: &mut RowTerms, to: *mut u8) {
    let size = if WIDE { 2 } else { 1 };
    let whole = values.len() - values.len() % S::LANES;
    // SAFETY: Vectors up to `whole`, and then the words of what is left.
    unsafe {
        let inverse = S::splat(if terms.scale > 0.0 { 1.0 / terms.scale } else { 0.0 });
        let low = S::splat((-128 - terms.zero) as f32);
        let high = S::splat((127 - terms.zero) as f32);
        let mut sum = S::zero_integers();
        let mut integers = [0_i32; MAX_LANES];
        for at in (0..values.len()).step_by(S::LANES) {
            let left = S::LANES.min(values.len() - at);
            let value = S::mul(S::load_part(values.as_ptr().add(at), left), inverse);
            // In this order what is no number becomes one: the row's scale is NaN then, its sums need not be.
            let value = S::round(S::min(S::max(value, low), high), terms.zero);
            if at < whole {
                sum = S::add_integers(sum, value);
                if WIDE {
                    S::store_i16(to.add(at * size).cast(), value);
                } else {
                    S::store_i8(to.add(at).cast(), value);
                }
                continue;
            }
            S::store_integers(integers.as_mut_ptr().cast(), value);
            integers[left..].fill(0);
            terms.sum += integers.iter().sum::<i32>();
            for (lane, integer) in integers.iter().enumerate().take(left.next_multiple_of(4 / size)) {
                if WIDE {
                    to.add((at + lane) * size).cast::<i16>().write(*integer as i16);
                } else {
                    to.add(at + lane).cast::<i8>().write(*integer as i8);
                }
            }
        }
        let mut sums = [0_i32; MAX_LANES];
        S::store_integers(sums.as_mut_ptr().cast(), sum);
        terms.sum += sums.iter().sum::<i32>();
    }
}

/// Pairs of bytes, widened to 16 bits and multiplied as that: sums of pairs cannot overflow.
pub(crate) struct Pairs;

impl<S: Simd> Product<S> for Pairs {
    const WORDS: usize = 1;
    const VALUES: usize = 2;
    const BYTES: usize = 2 * S::LANES;

    #[inline(always)]
    unsafe fn multiply(of: Operands, count: usize, vectors: usize) {
        // SAFETY: The caller's promise.
        unsafe { by_steps::<S, Self>(of, count, vectors) }
    }
}

impl<S: Simd> Stepwise<S> for Pairs {
    type Sum = S::I;
    type Weights = S::I;

    #[inline(always)]
    unsafe fn zero() -> S::I {
        // SAFETY: The caller's promise.
        unsafe { S::zero_integers() }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> S::I {
        // SAFETY: The caller's promise.
        unsafe { S::load_integers(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u32, sum: S::I) {
        // SAFETY: The caller's promise.
        unsafe { S::store_integers(to, sum) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> S::I {
        // SAFETY: The caller's promise.
        unsafe { S::widen_pairs(from) }
    }
    #[inline(always)]
    unsafe fn step(sum: S::I, word: *const u32, weights: S::I) -> S::I {
        // SAFETY: The caller's promise.
        unsafe { S::add_pairs(sum, *word, weights) }
    }
}

impl<S: Simd> Encode<S> for Pairs {
    #[inline(always)]
    unsafe fn begin(row: &[f32]) -> RowTerms {
        // SAFETY: The caller's promise.
        unsafe { row_terms::<S>(row) }
    }
    #[inline(always)]
    unsafe fn encode(values: &[f32], terms: &mut RowTerms, to: *mut u32) {
        // SAFETY: The caller's promise.
        unsafe { encode::<S, true>(values, terms, to.cast()) }
    }
    #[inline(always)]
    unsafe fn finish(sums: *const u32, row: &RowTerms, columns: *const i32, scales: *const f32) -> S::F {
        // SAFETY: The caller's promise.
        unsafe {
            let value = S::corrected(sums, 0, row.zero, columns);
            S::mul(S::mul(value, S::load(scales)), S::splat(row.scale))
        }
    }
}

struct InPairs<'a>(Dense<'a>);

impl Kernel for InPairs<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: The caller's promise.
        unsafe { self.0.run::<S, Pairs>() }
    }
}

/// A product of bytes that are widened when used.
pub(crate) fn run_pairs(isa: Isa, dense: Dense<'_>) {
    isa.run(InPairs(dense));
}

/// A product of bytes with the instructions of AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
pub(crate) fn run_vnni(isa: Isa, dense: Dense<'_>) {
    assert!(isa.vnni(), "the matrix was packed for AVX-512 VNNI");
    // SAFETY: An `Isa` is made only of what was detected.
    unsafe { vnni::run(dense) }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn run_vnni(isa: Isa, dense: Dense<'_>) {
    isa.run(InPairs(dense));
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use super::*;
    use crate::x86::Avx512;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    pub(super) fn run(dense: Dense<'_>) {
        // SAFETY: This function is compiled with the instructions.
        unsafe { dense.run::<Avx512, Fours>() }
    }

    /// Fours of bytes multiplied and added by one instruction. It wants one side without sign: the weights are
    /// 128 too large, for which [`Encode::finish`] makes up.
    struct Fours;

    impl Product<Avx512> for Fours {
        const WORDS: usize = 1;
        const VALUES: usize = 4;
        const BYTES: usize = 64;

        #[inline(always)]
        unsafe fn multiply(of: Operands, count: usize, vectors: usize) {
            // SAFETY: The caller's promise.
            unsafe { by_steps::<Avx512, Self>(of, count, vectors) }
        }
    }

    impl Stepwise<Avx512> for Fours {
        type Sum = __m512i;
        type Weights = __m512i;

        #[inline(always)]
        unsafe fn zero() -> __m512i {
            // SAFETY: The caller's promise.
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512i {
            // SAFETY: The caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u32, sum: __m512i) {
            // SAFETY: The caller's promise.
            unsafe { _mm512_storeu_si512(to.cast(), sum) }
        }
        #[inline(always)]
        unsafe fn weights(from: *const u8, _: usize) -> __m512i {
            // SAFETY: The caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn step(sum: __m512i, word: *const u32, weights: __m512i) -> __m512i {
            // SAFETY: The caller's promise.
            unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32((*word).cast_signed())) }
        }
    }

    impl Encode<Avx512> for Fours {
        #[inline(always)]
        unsafe fn begin(row: &[f32]) -> RowTerms {
            // SAFETY: The caller's promise.
            unsafe { row_terms::<Avx512>(row) }
        }
        #[inline(always)]
        unsafe fn encode(values: &[f32], terms: &mut RowTerms, to: *mut u32) {
            // SAFETY: The caller's promise.
            unsafe { encode::<Avx512, false>(values, terms, to.cast()) }
        }
        #[inline(always)]
        unsafe fn finish(
            sums: *const u32,
            row: &RowTerms,
            columns: *const i32,
            scales: *const f32,
        ) -> __m512 {
            // SAFETY: The caller's promise.
            unsafe {
                let value = Avx512::corrected(sums, 128 * row.sum, row.zero, columns);
                Avx512::mul(Avx512::mul(value, Avx512::load(scales)), Avx512::splat(row.scale))
            }
        }
    }
}
