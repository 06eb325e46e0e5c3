//! What the machine can do at most.

use crate::isa::{Isa, Kernel};
use crate::simd::Simd;
use std::hint::black_box;

/// Does `rounds` of independent multiply-adds in registers, and gives the number of floating-point operations:
/// the most that the instructions can do, for products to be measured against.
#[doc(hidden)]
pub fn peak(isa: Isa, rounds: usize) -> f64 {
    isa.run(Peak { rounds });
    (2 * SUMS * isa.lanes() * rounds) as f64
}

struct Peak {
    rounds: usize,
}

/// Enough sums to hide the latency of an addition in both units.
const SUMS: usize = 12;

impl Kernel for Peak {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: The caller's promise.
        unsafe {
            let factor = S::splat(black_box(1.0));
            let mut sums = [factor; SUMS];
            for _ in 0..self.rounds {
                for sum in &mut sums {
                    *sum = S::mul_add(factor, factor, *sum);
                }
            }
            for sum in sums {
                black_box(S::sum(sum));
            }
        }
    }
}
