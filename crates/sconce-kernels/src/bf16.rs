//! bf16, the upper half of an f32: rounding, and products of pairs.

use crate::dense::{Dense, Encode, RowTerms};
use crate::isa::{Isa, Kernel};
use crate::product::{Operands, Product, Single, Stepwise, by_steps};
use crate::simd::Simd;

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    // A NaN whose upper half had no mantissa would become infinite: it is made a quiet one.
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let rounded = if value.is_nan() { bits | 0x40_0000 } else { nearest };
    (rounded >> 16) as u16
}

/// Rounds and packs `values` two to a word, the first in the low half.
///
/// # Safety
/// `to` has a word for every two values.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn encode_pairs(values: &[f32], to: *mut u32) {
    let (pairs, rest) = values.as_chunks::<2>();
    for (at, [first, second]) in pairs.iter().enumerate() {
        let word = u32::from(round(*first)) | u32::from(round(*second)) << 16;
        // SAFETY: The caller's promise.
        unsafe { *to.add(at) = word }
    }
    if let [last] = rest {
        // SAFETY: The caller's promise.
        unsafe { *to.add(pairs.len()) = u32::from(round(*last)) }
    }
}

/// bf16 widened to f32 and multiplied as that. Rows are widened once, weights when they are used.
pub(crate) struct Widened;

impl<S: Simd> Product<S> for Widened {
    const WORDS: usize = 2;
    const VALUES: usize = 2;
    const BYTES: usize = 4 * S::LANES;

    #[inline(always)]
    unsafe fn multiply(of: Operands, count: usize, vectors: usize) {
        // SAFETY: The caller's promise.
        unsafe { by_steps::<S, Self>(of, count, vectors) }
    }
}

impl<S: Simd> Stepwise<S> for Widened {
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
    unsafe fn weights(from: *const u8, word: usize) -> S::F {
        // SAFETY: The caller's promise.
        unsafe { if word == 0 { S::load_first_bf16(from.cast()) } else { S::load_second_bf16(from.cast()) } }
    }
    #[inline(always)]
    unsafe fn step(sum: S::F, word: *const u32, weights: S::F) -> S::F {
        // SAFETY: The caller's promise.
        unsafe { S::mul_add(S::splat(*word.cast()), weights, sum) }
    }
}

impl<S: Simd> Encode<S> for Widened {
    #[inline(always)]
    unsafe fn begin(_: &[f32]) -> RowTerms {
        RowTerms::default()
    }
    #[inline(always)]
    unsafe fn encode(values: &[f32], _: &mut RowTerms, to: *mut u32) {
        // SAFETY: A word for each value, and for one more if they are odd.
        unsafe {
            for at in (0..values.len()).step_by(S::LANES) {
                let left = S::LANES.min(values.len() - at);
                let value = S::to_bf16(S::load_part(values.as_ptr().add(at), left));
                S::store_part(to.add(at).cast(), value, left);
            }
            if values.len() % 2 == 1 {
                *to.add(values.len()) = 0;
            }
        }
    }
    #[inline(always)]
    unsafe fn finish(sums: *const u32, row: &RowTerms, columns: *const i32, scales: *const f32) -> S::F {
        // SAFETY: The caller's promise.
        unsafe { <Single as Encode<S>>::finish(sums, row, columns, scales) }
    }
}

/// A product in bf16 without instructions for it.
pub(crate) struct InBf16<'a>(pub(crate) Dense<'a>);

impl Kernel for InBf16<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: The caller's promise.
        unsafe { self.0.run::<S, Widened>() }
    }
}

/// A product in bf16 with the instructions of AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn run_native(isa: Isa, dense: Dense<'_>) {
    assert!(isa.bf16(), "the matrix was packed for AVX-512 BF16");
    // SAFETY: An `Isa` is made only of what was detected.
    unsafe { native::run(dense) }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn run_native(isa: Isa, dense: Dense<'_>) {
    isa.run(InBf16(dense));
}

#[cfg(target_arch = "x86_64")]
mod native {
    use super::*;
    use crate::x86::Avx512;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) fn run(dense: Dense<'_>) {
        // SAFETY: This function is compiled with the instructions.
        unsafe { dense.run::<Avx512, Native>() }
    }

    /// Pairs multiplied and added by one instruction, which counts denormals as zero.
    struct Native;

    impl Product<Avx512> for Native {
        const WORDS: usize = 1;
        const VALUES: usize = 2;
        const BYTES: usize = 64;

        #[inline(always)]
        unsafe fn multiply(of: Operands, count: usize, vectors: usize) {
            // SAFETY: The caller's promise.
            unsafe { by_steps::<Avx512, Self>(of, count, vectors) }
        }
    }

    impl Stepwise<Avx512> for Native {
        type Sum = __m512;
        type Weights = __m512i;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: The caller's promise.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512 {
            // SAFETY: The caller's promise.
            unsafe { _mm512_loadu_ps(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u32, sum: __m512) {
            // SAFETY: The caller's promise.
            unsafe { _mm512_storeu_ps(to.cast(), sum) }
        }
        #[inline(always)]
        unsafe fn weights(from: *const u8, _: usize) -> __m512i {
            // SAFETY: The caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn step(sum: __m512, word: *const u32, weights: __m512i) -> __m512 {
            // SAFETY: The caller's promise; the types differ only in what the bits stand for.
            unsafe {
                let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32((*word).cast_signed()));
                _mm512_dpbf16_ps(sum, pair, std::mem::transmute::<__m512i, __m512bh>(weights))
            }
        }
    }

    impl Encode<Avx512> for Native {
        #[inline(always)]
        unsafe fn begin(_: &[f32]) -> RowTerms {
            RowTerms::default()
        }
        #[inline(always)]
        unsafe fn encode(values: &[f32], _: &mut RowTerms, to: *mut u32) {
            // SAFETY: The caller's promise.
            unsafe { encode_pairs(values, to) }
        }
        #[inline(always)]
        unsafe fn finish(sums: *const u32, _: &RowTerms, _: *const i32, _: *const f32) -> __m512 {
            // SAFETY: The caller's promise.
            unsafe { _mm512_loadu_ps(sums.cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::round;

    #[test]
    fn rounds_to_the_nearest_even() {
        for (bits, want) in [
            (0x3f80_0000, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0xbf81_7fff, 0xbf81),
            (0x7f80_0000, 0x7f80),
            (0xff80_0000, 0xff80),
            (0x7f7f_ffff, 0x7f80),
            (0x0000_8000, 0x0000),
            (0x0000_8001, 0x0001),
        ] {
            assert_eq!(round(f32::from_bits(bits)), want, "{bits:x}");
        }
        for bits in [0x7f80_0001, 0x7fc0_0000, 0xffff_ffff] {
            let rounded = f32::from_bits(u32::from(round(f32::from_bits(bits))) << 16);
            assert!(rounded.is_nan(), "{bits:x}");
        }
    }
}
