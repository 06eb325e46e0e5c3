//! Elementary functions of vectors.

use crate::simd::Simd;

/// A function of each value. NaN gives NaN.
pub(crate) trait Function {
    /// # Safety
    /// That of [`Simd`].
    unsafe fn of<S: Simd>(x: S::F) -> S::F;
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident<$simd:ident>($x:ident) $body:block)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl Function for $name {
            #[inline(always)]
            unsafe fn of<$simd: Simd>($x: $simd::F) -> $simd::F {
                #[allow(unused_unsafe)]
                // SAFETY: The caller's promise.
                unsafe { $body }
            }
        }
    )*};
}

functions! {
    /// The value itself.
    Same<S>(x) { x }

    Relu<S>(x) { S::max(S::splat(0.0), x) }

    /// `x · Φ(x)`, where Φ is the normal distribution's function, within 1e-6 of `max(1, |y|)`.
    ///
    /// Φ(x) = ½ + x · q(x²) up to |x| = [`GELU_BOUND`], beyond which less than 1e-6 is lost. The polynomial q
    /// is the minimax one (by the Remez exchange) for the error of x² · q, in a variable that runs from -1 to
    /// 1, where high powers do not cancel.
    Gelu<S>(x) {
        let lower = S::max(S::splat(-GELU_BOUND), x);
        let inside = S::min(S::splat(GELU_BOUND), lower);
        let scale = S::splat(2.0 / (GELU_BOUND * GELU_BOUND));
        let t = S::mul_add(S::mul(inside, scale), inside, S::splat(-1.0));
        let q = polynomial::<S, 14>(
            t,
            [
                -0.000_524_343_36,
                0.001_560_401_7,
                -0.001_774_706_8,
                0.002_203_348_5,
                -0.005_120_297,
                0.009_334_873,
                -0.013_556_54,
                0.018_788_865,
                -0.025_207_976,
                0.032_096_397,
                -0.039_598_174,
                0.049_263_43,
                -0.066_518_25,
                0.133_392_56,
            ],
        );
        S::mul(lower, S::mul_add(inside, q, S::splat(0.5)))
    }

    /// `½ · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`, which is `x · sigmoid(2 · √(2/π) · (…))`.
    GeluTanh<S>(x) {
        const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
        let cubic = S::splat(0.044_715 * TWICE_SQRT_2_OVER_PI);
        let factor = S::mul_add(S::mul(x, x), cubic, S::splat(TWICE_SQRT_2_OVER_PI));
        weighted::<S>(x, S::mul(x, factor))
    }

    /// `1 - 2 / (e^2x + 1)`.
    Tanh<S>(x) {
        let one = S::splat(1.0);
        let above = S::add(exp::<S>(S::add(x, x)), one);
        S::sub(one, S::div(S::splat(2.0), above))
    }

    /// `1 / (1 + e^-x)`.
    Sigmoid<S>(x) {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }

    /// `x · sigmoid(x)`.
    Silu<S>(x) { weighted::<S>(x, x) }
}

/// Where Φ is 1 - 6e-8.
const GELU_BOUND: f32 = 5.3;

/// `x · sigmoid(of)`, zero for an `x` so small that the sigmoid's exponential would overflow.
#[inline(always)]
unsafe fn weighted<S: Simd>(x: S::F, of: S::F) -> S::F {
    // SAFETY: The caller's promise.
    unsafe {
        let one = S::splat(1.0);
        // Beyond, the product is zero to any precision, but e^88 times a large x is not.
        let lower = S::max(S::splat(-100.0), x);
        S::div(lower, S::add(one, exp::<S>(S::sub(S::splat(0.0), of))))
    }
}

#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::F, coefficients: [f32; N]) -> S::F {
    // SAFETY: The caller's promise.
    unsafe {
        let mut sum = S::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            sum = S::mul_add(sum, x, S::splat(*coefficient));
        }
        sum
    }
}

/// e^x, within 2 units in the last place: Cephes' `expf` without branches. Held to e^-87 and e^88.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    /// 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: The caller's promise.
    unsafe {
        let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
        let shifted = S::mul_add(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(shifted, S::splat(ROUND));
        let r = S::mul_add(n, S::splat(-0.693_359_4), x);
        let r = S::mul_add(n, S::splat(2.121_944_4e-4), r);
        let p = polynomial::<S, 6>(
            r,
            [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5],
        );
        let above_one = S::mul_add(p, S::mul(r, r), r);
        S::mul(S::add(above_one, S::splat(1.0)), S::power_of_two(shifted))
    }
}
