//! The vector operations of x86-64: AVX2 with FMA, and AVX-512.

use crate::simd::Simd;
use std::arch::x86_64::*;

/// Eight floats in a vector, sixteen registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

/// Sixteen floats in a vector, thirty-two registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512;

/// Methods that are one instruction: the caller promises that the machine has it and that pointers are valid.
macro_rules! instructions {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $kind),*) -> $out {
            // SAFETY: The caller's promise.
            unsafe { $body }
        }
    )*};
}

/// Ones for the first `count` lanes.
#[inline(always)]
unsafe fn mask8(count: usize) -> __m256i {
    // SAFETY: The caller has AVX2.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes)
    }
}

impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    instructions! {
        splat(value: f32) -> __m256 = _mm256_set1_ps(value);
        fill(count: usize, first: f32, rest: f32) -> __m256 = {
            let mask = _mm256_castsi256_ps(mask8(count));
            _mm256_blendv_ps(_mm256_set1_ps(rest), _mm256_set1_ps(first), mask)
        };
        load(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
        load_part(from: *const f32, count: usize) -> __m256 = _mm256_maskload_ps(from, mask8(count));
        store(to: *mut f32, value: __m256) -> () = _mm256_storeu_ps(to, value);
        store_part(to: *mut f32, value: __m256, count: usize) -> () =
            _mm256_maskstore_ps(to, mask8(count), value);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        power_of_two(shifted: __m256) -> __m256 = {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f80_0000)))
        };
        round(value: __m256, offset: i32) -> __m256i =
            _mm256_add_epi32(_mm256_cvtps_epi32(value), _mm256_set1_epi32(offset));
        add_integers(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        store_i16(to: *mut i16, value: __m256i) -> () = {
            let (low, high) = (_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value));
            _mm_storeu_si128(to.cast(), _mm_packs_epi32(low, high));
        };
        store_i8(to: *mut i8, value: __m256i) -> () = {
            let (low, high) = (_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value));
            let words = _mm_packs_epi32(low, high);
            _mm_storel_epi64(to.cast(), _mm_packs_epi16(words, words));
        };
        to_bf16(value: __m256) -> __m256 = {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let rounded = _mm256_blendv_ps(_mm256_castsi256_ps(nearest), _mm256_castsi256_ps(quiet), nan);
            _mm256_and_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)))
        };
        load_first_bf16(from: *const u32) -> __m256 =
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast())));
        load_second_bf16(from: *const u32) -> __m256 = {
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(from.cast()), upper))
        };
        zero_integers() -> __m256i = _mm256_setzero_si256();
        load_integers(from: *const u32) -> __m256i = _mm256_loadu_si256(from.cast());
        store_integers(to: *mut u32, value: __m256i) -> () = _mm256_storeu_si256(to.cast(), value);
        widen_pairs(from: *const u8) -> __m256i = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()));
        add_pairs(sum: __m256i, word: u32, pairs: __m256i) -> __m256i =
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi32(word.cast_signed())));
        corrected(sums: *const u32, offset: i32, factor: i32, columns: *const i32) -> __m256 = {
            let columns = _mm256_loadu_si256(columns.cast());
            let less = _mm256_mullo_epi32(columns, _mm256_set1_epi32(factor));
            let sums = _mm256_sub_epi32(_mm256_loadu_si256(sums.cast()), _mm256_set1_epi32(offset));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, less))
        };
        prefetch(at: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(at.cast());
        prefetch_far(at: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(at.cast());
        sum(value: __m256) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        };
        largest(value: __m256) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        };
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, rows: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: The caller's promise; rows from `rows` on are not read.
        unsafe {
            let mut r = [_mm256_setzero_ps(); 8];
            for (row, value) in r.iter_mut().enumerate() {
                if row < rows {
                    *value = _mm256_loadu_ps(from.add(row * stride));
                }
            }
            let mut pairs = r;
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // Column `i` of the first and of the second four values, for rows 0 to 3 and 4 to 7.
            let mut fours = pairs;
            for half in [0, 4] {
                for i in 0..2 {
                    let (a, b) = (pairs[half + i], pairs[half + 2 + i]);
                    fours[half + 2 * i] = _mm256_shuffle_ps::<0x44>(a, b);
                    fours[half + 2 * i + 1] = _mm256_shuffle_ps::<0xee>(a, b);
                }
            }
            for i in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
                let high = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
                _mm256_storeu_ps(to.add(i * to_stride), low);
                _mm256_storeu_ps(to.add((i + 4) * to_stride), high);
            }
        }
    }
}

/// Ones for the first `count` lanes.
#[inline(always)]
fn mask16(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 14;

    instructions! {
        splat(value: f32) -> __m512 = _mm512_set1_ps(value);
        fill(count: usize, first: f32, rest: f32) -> __m512 =
            _mm512_mask_mov_ps(_mm512_set1_ps(rest), mask16(count), _mm512_set1_ps(first));
        load(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
        load_part(from: *const f32, count: usize) -> __m512 = _mm512_maskz_loadu_ps(mask16(count), from);
        store(to: *mut f32, value: __m512) -> () = _mm512_storeu_ps(to, value);
        store_part(to: *mut f32, value: __m512, count: usize) -> () =
            _mm512_mask_storeu_ps(to, mask16(count), value);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        power_of_two(shifted: __m512) -> __m512 = {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f80_0000)))
        };
        round(value: __m512, offset: i32) -> __m512i =
            _mm512_add_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(offset));
        add_integers(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        store_i16(to: *mut i16, value: __m512i) -> () =
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(value));
        store_i8(to: *mut i8, value: __m512i) -> () = _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(value));
        to_bf16(value: __m512) -> __m512 = {
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let rounded = _mm512_mask_mov_epi32(nearest, nan, quiet);
            _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        };
        load_first_bf16(from: *const u32) -> __m512 =
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast())));
        load_second_bf16(from: *const u32) -> __m512 = {
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from.cast()), upper))
        };
        zero_integers() -> __m512i = _mm512_setzero_si512();
        load_integers(from: *const u32) -> __m512i = _mm512_loadu_si512(from.cast());
        store_integers(to: *mut u32, value: __m512i) -> () = _mm512_storeu_si512(to.cast(), value);
        widen_pairs(from: *const u8) -> __m512i = _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast()));
        add_pairs(sum: __m512i, word: u32, pairs: __m512i) -> __m512i =
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi32(word.cast_signed())));
        corrected(sums: *const u32, offset: i32, factor: i32, columns: *const i32) -> __m512 = {
            let columns = _mm512_loadu_si512(columns.cast());
            let less = _mm512_mullo_epi32(columns, _mm512_set1_epi32(factor));
            let sums = _mm512_sub_epi32(_mm512_loadu_si512(sums.cast()), _mm512_set1_epi32(offset));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, less))
        };
        prefetch(at: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(at.cast());
        prefetch_far(at: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(at.cast());
        sum(value: __m512) -> f32 = {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            <Avx2 as Simd>::sum(eight)
        };
        largest(value: __m512) -> f32 = {
            let eight = _mm256_max_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            <Avx2 as Simd>::largest(eight)
        };
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, rows: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: The caller's promise; rows from `rows` on are not read.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (row, value) in r.iter_mut().enumerate() {
                if row < rows {
                    *value = _mm512_loadu_ps(from.add(row * stride));
                }
            }
            // Within each quarter of 128 bits: four by four.
            let mut fours = r;
            for i in (0..16).step_by(4) {
                let (a, b) = (_mm512_unpacklo_ps(r[i], r[i + 1]), _mm512_unpackhi_ps(r[i], r[i + 1]));
                let (c, d) = (_mm512_unpacklo_ps(r[i + 2], r[i + 3]), _mm512_unpackhi_ps(r[i + 2], r[i + 3]));
                fours[i] = _mm512_shuffle_ps::<0x44>(a, c);
                fours[i + 1] = _mm512_shuffle_ps::<0xee>(a, c);
                fours[i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                fours[i + 3] = _mm512_shuffle_ps::<0xee>(b, d);
            }
            // `fours[4 · j + i]` holds columns i, 4 + i, 8 + i and 12 + i of rows 4 · j to 4 · j + 3.
            for i in 0..4 {
                let (a, b) = (fours[i], fours[4 + i]);
                let (c, d) = (fours[8 + i], fours[12 + i]);
                let (low, high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                let (low2, high2) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
                _mm512_storeu_ps(to.add(i * to_stride), _mm512_shuffle_f32x4::<0x88>(low, low2));
                _mm512_storeu_ps(to.add((4 + i) * to_stride), _mm512_shuffle_f32x4::<0xdd>(low, low2));
                _mm512_storeu_ps(to.add((8 + i) * to_stride), _mm512_shuffle_f32x4::<0x88>(high, high2));
                _mm512_storeu_ps(to.add((12 + i) * to_stride), _mm512_shuffle_f32x4::<0xdd>(high, high2));
            }
        }
    }
}
