//! Which vector instructions this machine has, and running a kernel with them.

use crate::amx;
use crate::simd::{Scalar, Simd};
use std::sync::OnceLock;

/// Names the instruction set that [`Isa::current`] picks: `scalar`, `avx2`, `avx512` or, with the tiles of AMX
/// beside it, `amx`. One that the machine lacks means the best below it; a word that is none of these, or an
/// empty one, is as if it were not set.
pub const ISA_VARIABLE: &str = "SCONCE_CPU_ISA";

/// A family of vector instructions, each with all of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust, in arrays that the compiler vectorises with what every machine of its kind has (SSE2, NEON).
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
}

/// Instructions that this machine is known to have: a value exists only for those that were detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa {
    level: Level,
    vnni: bool,
    bf16: bool,
    amx: bool,
}

impl Isa {
    /// Plain Rust: what every machine has.
    pub const SCALAR: Self = Self { level: Level::Scalar, vnni: false, bf16: false, amx: false };

    /// The best of this machine, or what [`ISA_VARIABLE`] asks for; decided at the first call.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| Self::chosen(std::env::var(ISA_VARIABLE).ok().as_deref()))
    }

    /// The best of this machine. The first call asks the operating system for AMX, if the processor has it.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let vectors = detect();
            let tiles = Self { amx: true, ..vectors };
            if vectors.level == Level::Avx512 && amx::is_granted() && tiles.amx_is_right() {
                tiles
            } else {
                vectors
            }
        })
    }

    /// What this machine has of `level` and the levels below: vectors alone, without AMX.
    pub fn at_most(level: Level) -> Self {
        let Self { level: best, vnni, bf16, .. } = detect();
        let wide = level == Level::Avx512;
        Self { level: level.min(best), vnni: vnni && wide, bf16: bf16 && wide, amx: false }
    }

    /// Every choice that gives a kernel of its own on this machine: the plainest first, the best last.
    pub fn available() -> Vec<Self> {
        let mut all = [Level::Scalar, Level::Avx2].map(Self::at_most).to_vec();
        let wide = Self::at_most(Level::Avx512);
        if wide.level == Level::Avx512 {
            all.push(Self { vnni: false, bf16: false, ..wide });
            if has_bf16() {
                all.push(Self { bf16: true, ..wide });
            }
            all.push(wide);
        }
        all.push(Self::best());
        all.dedup();
        all
    }

    /// The family of instructions.
    pub fn level(self) -> Level {
        self.level
    }

    /// Whether sums of products of bytes are one instruction (AVX-512 VNNI).
    pub fn vnni(self) -> bool {
        self.vnni
    }

    /// Whether sums of products of bf16 are one instruction (AVX-512 BF16). [`Isa::best`] leaves it out on
    /// Intel's processors, where it takes four times as long as a multiply-add and so is slower than two.
    pub fn bf16(self) -> bool {
        self.bf16
    }

    /// Whether tiles of bf16 and of bytes are multiplied by one instruction (AMX-BF16 and AMX-INT8): the
    /// processor has them, the operating system grants them, and they were found to compute what plain Rust does.
    pub fn amx(self) -> bool {
        self.amx
    }

    /// These instructions and those of AMX, for tests that emulate them.
    ///
    /// # Safety
    /// AMX-TILE, AMX-BF16 and AMX-INT8 work in every thread, by hardware or by emulation.
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    pub unsafe fn assume_amx(self) -> Self {
        Self { amx: true, ..self }
    }

    /// Whether small products are those of plain Rust: the last condition on which [`Isa::best`] has AMX.
    #[doc(hidden)]
    pub fn amx_is_right(self) -> bool {
        amx::is_right(self)
    }

    /// Floats in a vector.
    pub(crate) fn lanes(self) -> usize {
        match self.level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => crate::x86::Avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => crate::x86::Avx2::LANES,
            _ => Scalar::LANES,
        }
    }

    fn chosen(word: Option<&str>) -> Self {
        match word {
            Some("scalar") => Self::SCALAR,
            Some("avx2") => Self::at_most(Level::Avx2),
            Some("avx512") => Self::at_most(Level::Avx512),
            _ => Self::best(),
        }
    }
}

/// What there is beside AMX, which is not only found but asked for.
#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma");
    let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
    let level = match (avx512, avx2) {
        (true, _) => Level::Avx512,
        (_, true) => Level::Avx2,
        _ => Level::Scalar,
    };
    Isa { level, vnni: avx512 && has!("avx512vnni"), bf16: avx512 && has_bf16() && !is_intel(), amx: false }
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    // Leaf 0 spells the vendor, "GenuineIntel", four letters to a register.
    std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::SCALAR
}

/// Code written once for every vector width.
pub(crate) trait Kernel {
    /// # Safety
    /// The machine has the instructions of `S`, and the caller is compiled with them.
    unsafe fn run<S: Simd>(self);
}

impl Isa {
    /// Runs `kernel` compiled for these instructions.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self.level {
            // SAFETY: Needs no instructions that are not everywhere.
            Level::Scalar => unsafe { kernel.run::<Scalar>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: An `Isa` is made only of what was detected.
            Level::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: As above.
            Level::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: As the first.
            _ => unsafe { kernel.run::<Scalar>() },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: This function is compiled with the instructions.
    unsafe { kernel.run::<crate::x86::Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")]
fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: This function is compiled with the instructions.
    unsafe { kernel.run::<crate::x86::Avx512>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_only_lowers() {
        assert_eq!(Isa::chosen(None), Isa::best());
        assert_eq!(Isa::chosen(Some("amx")), Isa::best());
        assert_eq!(Isa::chosen(Some("avx512")), Isa { amx: false, ..Isa::best() });
        assert_eq!(Isa::chosen(Some("quantum")), Isa::best());
        assert_eq!(Isa::chosen(Some("")), Isa::best());
        assert_eq!(Isa::chosen(Some("scalar")), Isa::SCALAR);
        assert!(Isa::chosen(Some("avx2")).level() <= Level::Avx2);
        assert!(!Isa::chosen(Some("avx2")).vnni() && !Isa::chosen(Some("avx2")).amx());
        assert_eq!(Isa::available()[0], Isa::SCALAR);
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
    }
}
