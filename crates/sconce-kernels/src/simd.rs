//! The vector operations that kernels are written in, once for every width.

/// Vectors of f32. Methods are inlined into functions compiled with the instructions they need.
///
/// # Safety of the methods
/// The machine has the instructions of the implementor. Pointers are valid for the lanes that are read or
/// written; they need no alignment.
pub(crate) trait Simd: Copy {
    /// A vector.
    type F: Copy;
    /// A vector of as many i32.
    type I: Copy;
    /// Values in a vector, at most [`MAX_LANES`].
    const LANES: usize;
    /// The tallest tile of a product whose sums stay in registers beside two vectors of weights.
    const TILE_ROWS: usize;

    unsafe fn splat(value: f32) -> Self::F;
    /// `first` in the first `count` lanes, `rest` in the others.
    unsafe fn fill(count: usize, first: f32, rest: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    /// The first `count` lanes, the others zero.
    unsafe fn load_part(from: *const f32, count: usize) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    /// The first `count` lanes.
    unsafe fn store_part(to: *mut f32, value: Self::F, count: usize);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the machine does so at full speed.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger, lane by lane; `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller, lane by lane; `b` where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// 2^n for `n + 1.5 · 2^23`, where n is whole and in -126..=127.
    unsafe fn power_of_two(shifted: Self::F) -> Self::F;
    /// The nearest integers, ties to even, of values that fit an i32; and to those adds `offset`.
    unsafe fn round(value: Self::F, offset: i32) -> Self::I;
    unsafe fn add_integers(a: Self::I, b: Self::I) -> Self::I;
    /// The low half of each lane, of values that fit it.
    unsafe fn store_i16(to: *mut i16, value: Self::I);
    /// The low byte of each lane, of values that fit it.
    unsafe fn store_i8(to: *mut i8, value: Self::I);
    /// The nearest bf16 of each, ties to even, as floats; NaN stays NaN.
    unsafe fn to_bf16(value: Self::F) -> Self::F;
    /// The first of each of `LANES` pairs of bf16.
    unsafe fn load_first_bf16(from: *const u32) -> Self::F;
    /// The second of each of `LANES` pairs of bf16.
    unsafe fn load_second_bf16(from: *const u32) -> Self::F;
    unsafe fn zero_integers() -> Self::I;
    unsafe fn load_integers(from: *const u32) -> Self::I;
    unsafe fn store_integers(to: *mut u32, value: Self::I);
    /// `LANES` pairs of i8 as pairs of i16.
    unsafe fn widen_pairs(from: *const u8) -> Self::I;
    /// Adds to each lane the sum of two products: its pair of i16 with the pair in `word`.
    unsafe fn add_pairs(sum: Self::I, word: u32, pairs: Self::I) -> Self::I;
    /// `LANES` integers less `offset` and less `factor` times those of `columns`, as floats.
    unsafe fn corrected(sums: *const u32, offset: i32, factor: i32, columns: *const i32) -> Self::F;
    /// Writes to `to` the `LANES` columns of `LANES` values that are `rows` rows of `from`, missing rows as
    /// zeros. Row strides are in floats.
    unsafe fn transpose(from: *const f32, stride: usize, rows: usize, to: *mut f32, to_stride: usize);
    /// The sum of the lanes, in an order that is always the same.
    #[inline(always)]
    unsafe fn sum(value: Self::F) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: `lanes` is long enough.
        unsafe { Self::store(lanes.as_mut_ptr(), value) };
        let mut width = Self::LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
    /// The largest lane; NaN lanes count for nothing or everything.
    #[inline(always)]
    unsafe fn largest(value: Self::F) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: `lanes` is long enough.
        unsafe { Self::store(lanes.as_mut_ptr(), value) };
        lanes[..Self::LANES].iter().fold(f32::NEG_INFINITY, |a, b| if a > *b { a } else { *b })
    }
    /// Writes `values` to `to`: faster than a call where they are few.
    #[inline(always)]
    unsafe fn copy(values: &[f32], to: *mut f32) {
        let whole = values.len() - values.len() % Self::LANES;
        // SAFETY: Vectors up to `whole`, and then what is left.
        unsafe {
            for at in (0..whole).step_by(Self::LANES) {
                Self::store(to.add(at), Self::load(values.as_ptr().add(at)));
            }
            if whole < values.len() {
                let (from, left) = (values.as_ptr().add(whole), values.len() - whole);
                Self::store_part(to.add(whole), Self::load_part(from, left), left);
            }
        }
    }
    /// Asks for the cache line at `at`, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    /// Likewise, into the second-level cache alone.
    #[inline(always)]
    unsafe fn prefetch_far(_at: *const u8) {}
}

/// The most values in a vector.
pub(crate) const MAX_LANES: usize = 16;

/// Four floats in an array, for the compiler to vectorise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

const LANES: usize = 4;

macro_rules! lanes {
    ($i:ident, $value:expr) => {{
        let mut out = [0.0; LANES];
        let mut $i = 0;
        while $i < LANES {
            out[$i] = $value;
            $i += 1;
        }
        out
    }};
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const LANES: usize = LANES;
    // As many registers as there are: 32 of NEON, 16 of SSE2.
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn fill(count: usize, first: f32, rest: f32) -> Self::F {
        lanes!(i, if i < count { first } else { rest })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: The caller's promise.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self::F {
        if count >= LANES {
            // SAFETY: The caller's promise.
            return unsafe { Self::load(from) };
        }
        // SAFETY: The caller's promise: only the first `count` are read.
        unsafe { lanes!(i, if i < count { *from.add(i) } else { 0.0 }) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::F) {
        // SAFETY: The caller's promise.
        unsafe { to.cast::<Self::F>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, value: Self::F, count: usize) {
        if count >= LANES {
            // SAFETY: The caller's promise.
            return unsafe { Self::store(to, value) };
        }
        for (i, value) in value.iter().enumerate().take(count) {
            // SAFETY: The caller's promise.
            unsafe { *to.add(i) = *value }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i, a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i, a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i, a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i, a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Where the instruction is not sure to be there, a fused sum is a slow call.
        if cfg!(target_arch = "aarch64") {
            lanes!(i, a[i].mul_add(b[i], c[i]))
        } else {
            lanes!(i, a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i, if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i, if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn power_of_two(shifted: Self::F) -> Self::F {
        lanes!(i, f32::from_bits((shifted[i].to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
    #[inline(always)]
    unsafe fn round(value: Self::F, offset: i32) -> Self::I {
        value.map(|value| value.round_ties_even() as i32 + offset)
    }
    #[inline(always)]
    unsafe fn add_integers(mut a: Self::I, b: Self::I) -> Self::I {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, value: Self::I) {
        // SAFETY: The caller's promise.
        unsafe { to.cast::<[i16; LANES]>().write_unaligned(value.map(|value| value as i16)) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, value: Self::I) {
        // SAFETY: The caller's promise.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(value.map(|value| value as i8)) }
    }
    #[inline(always)]
    unsafe fn to_bf16(value: Self::F) -> Self::F {
        lanes!(i, f32::from_bits(u32::from(crate::bf16::round(value[i])) << 16))
    }
    #[inline(always)]
    unsafe fn load_first_bf16(from: *const u32) -> Self::F {
        // SAFETY: The caller's promise.
        let pairs = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        lanes!(i, f32::from_bits(pairs[i] << 16))
    }
    #[inline(always)]
    unsafe fn load_second_bf16(from: *const u32) -> Self::F {
        // SAFETY: The caller's promise.
        let pairs = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        lanes!(i, f32::from_bits(pairs[i] & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn zero_integers() -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn load_integers(from: *const u32) -> Self::I {
        // SAFETY: The caller's promise.
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_integers(to: *mut u32, value: Self::I) {
        // SAFETY: The caller's promise.
        unsafe { to.cast::<Self::I>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn widen_pairs(from: *const u8) -> Self::I {
        // SAFETY: The caller's promise.
        let pairs = unsafe { from.cast::<[[i8; 2]; LANES]>().read_unaligned() };
        pairs.map(|[first, second]| i32::from(second) << 16 | i32::from(first) & 0xffff)
    }
    #[inline(always)]
    unsafe fn add_pairs(mut sum: Self::I, word: u32, pairs: Self::I) -> Self::I {
        let (first, second) = (i32::from(word as i16), word.cast_signed() >> 16);
        for (sum, pair) in sum.iter_mut().zip(pairs) {
            *sum += first * i32::from(pair as i16) + second * (pair >> 16);
        }
        sum
    }
    #[inline(always)]
    unsafe fn corrected(sums: *const u32, offset: i32, factor: i32, columns: *const i32) -> Self::F {
        // SAFETY: The caller's promise.
        let (sums, columns) = unsafe { (Self::load_integers(sums), Self::load_integers(columns.cast())) };
        lanes!(i, (sums[i] - offset - factor * columns[i]) as f32)
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, rows: usize, to: *mut f32, to_stride: usize) {
        for row in 0..LANES {
            for column in 0..LANES {
                // SAFETY: The caller's promise.
                unsafe {
                    let value = if row < rows { *from.add(row * stride + column) } else { 0.0 };
                    *to.add(column * to_stride + row) = value;
                }
            }
        }
    }
}
