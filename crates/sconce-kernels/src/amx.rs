//! Products in the tiles of Intel's AMX: registers of 16 rows of 64 bytes, multiplied by one instruction.
//!
//! A tile of weights is 16 steps of 16 columns, as the other products hold them: in each step a pair of bf16 or
//! four bytes for each column. A tile of rows is 16 words of 16 rows. The heart is 32 rows times 32 columns: two
//! tiles of each are loaded for four products, whose sums stay in four tiles. On the first processors with AMX a
//! product takes 16 cycles and the next one to the same sums can start after 52, a load from the first-level
//! cache takes 8: with four products for four loads the multiplier is what is busy. With 16 rows or fewer there
//! are two products for three loads, and reading the weights is what takes the time.
//!
//! Products of bf16 count denormals as zero and round to nearest even; those of bytes are exact. Rustc knows the
//! instructions on unstable versions alone, so they are assembly.

use crate::buffer::Scratch;
use crate::dense::{After, Dense, dense};
use crate::isa::Isa;
use crate::pack::{PackedMatrix, Precision};

/// Columns of a panel: two tiles.
pub(crate) const COLUMNS: usize = 32;
/// Steps of a tile.
pub(crate) const STEPS: usize = 16;

/// Whether the tiles of `isa` compute what plain Rust does, to the last bit: for whole numbers so small that bf16
/// and its sums are exact, and with bytes sums always are.
pub(crate) fn is_right(isa: Isa) -> bool {
    let (rows, inner, columns) = (49, 300, 40);
    let values = |len: usize, by: usize| (0..len).map(|at| (at * by % 9) as f32 - 4.0).collect::<Vec<_>>();
    let (x, weights) = (values(rows * inner, 5), values(columns * inner, 7));
    [Precision::Bf16, Precision::Int8].into_iter().all(|precision| {
        let product = |isa: Isa| {
            let weights = PackedMatrix::new(isa, precision, &weights, columns, inner);
            let mut out = vec![0.0; rows * columns];
            dense(&x, &weights, After::NOTHING, &mut out, &mut Scratch::new());
            out
        };
        product(isa) == product(Isa::SCALAR)
    })
}

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use super::*;

    pub(crate) fn is_granted() -> bool {
        false
    }
    /// No matrix is packed for tiles here.
    pub(crate) fn run_bf16(_: Isa, _: Dense<'_>) {}
    /// As above.
    pub(crate) fn run_int8(_: Isa, _: Dense<'_>) {}
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use elsewhere::{is_granted, run_bf16, run_int8};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{is_granted, run_bf16, run_int8};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::bf16;
    use crate::dense::{Encode, RowTerms};
    use crate::int8::{self, Pairs};
    use crate::isa::Kernel;
    use crate::product::{Operands, Product, Single};
    use crate::simd::Simd;
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// Rows of a tile.
    const ROWS: usize = 16;
    /// Bytes from row to row of tiles of weights and sums: there are two side by side.
    const STRIDE: usize = 128;

    /// Whether there is AMX and this process may use it, for which the operating system is asked.
    pub(crate) fn is_granted() -> bool {
        is_there() && is_permitted()
    }

    /// Whether the processor has the instructions and tiles of the size that is used, and the operating system
    /// saves them.
    fn is_there() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        const TILE_STATE: u64 = 1 << 17 | 1 << 18;
        if __cpuid(0).eax < 0x1d
            || __cpuid(1).ecx & OSXSAVE == 0
            || __cpuid_count(7, 0).edx & BF16_TILE_INT8 != BF16_TILE_INT8
            // SAFETY: The instruction is there where the operating system uses XSAVE.
            || unsafe { _xgetbv(0) } & TILE_STATE != TILE_STATE
            || __cpuid_count(0x1d, 0).eax < 1
        {
            return false;
        }
        let palette = __cpuid_count(0x1d, 1);
        let (tile_bytes, row_bytes) = (palette.eax >> 16, palette.ebx & 0xffff);
        let (tiles, rows) = (palette.ebx >> 16, palette.ecx & 0xffff);
        tile_bytes == 1024 && row_bytes == 64 && tiles == 8 && rows == ROWS as u32
    }

    /// Tiles make what is saved of a thread so much larger that Linux gives them only to a process that asks for
    /// them, and not where a stack for signals would be too small.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    fn is_permitted() -> bool {
        const ARCH_PRCTL: isize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: The call reads and writes no memory of this process.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }

    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    fn is_permitted() -> bool {
        false
    }

    /// A product in bf16.
    pub(crate) fn run_bf16(isa: Isa, dense: Dense<'_>) {
        assert!(isa.amx(), "the matrix was packed for AMX");
        isa.run(InBf16(dense));
    }

    /// A product of bytes.
    pub(crate) fn run_int8(isa: Isa, dense: Dense<'_>) {
        assert!(isa.amx(), "the matrix was packed for AMX");
        isa.run(InBytes(dense));
    }

    struct InBf16<'a>(Dense<'a>);

    impl Kernel for InBf16<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: The caller's promise; an `Isa` has AMX only where that works.
            unsafe {
                let _tiles = Tiles::configure();
                self.0.run::<S, Bf16>();
            }
        }
    }

    struct InBytes<'a>(Dense<'a>);

    impl Kernel for InBytes<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: As above.
            unsafe {
                let _tiles = Tiles::configure();
                self.0.run::<S, Bytes>();
            }
        }
    }

    /// This thread's tiles, while they are in use. Released also when unwinding: a thread with tiles in use takes
    /// longer to switch to and from.
    struct Tiles;

    #[repr(align(64))]
    struct Configuration([u8; 64]);

    /// All eight tiles whole. Whatever the number of rows, none is configured again.
    static CONFIGURATION: Configuration = {
        let mut bytes = [0; 64];
        bytes[0] = 1; // The palette.
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64; // Bytes of a row, in 16 bits.
            bytes[48 + tile] = ROWS as u8;
            tile += 1;
        }
        Configuration(bytes)
    };

    impl Tiles {
        /// # Safety
        /// The machine has AMX, and this process may use it.
        #[inline(always)]
        unsafe fn configure() -> Self {
            // SAFETY: The configuration is valid, and none is in use: kernels do not call each other.
            unsafe {
                asm!(
                    "ldtilecfg [{configuration}]",
                    configuration = in(reg) &raw const CONFIGURATION.0,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, preserves_flags),
                );
            }
            Self
        }
    }

    impl Drop for Tiles {
        #[inline(always)]
        fn drop(&mut self) {
            // SAFETY: Made only where the machine has AMX.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    /// A product of up to 32 rows with a panel.
    struct Block {
        rows: *const u32,
        /// The second tile's rows, or null.
        second: *const u32,
        /// In bytes.
        row_stride: usize,
        weights: *const u8,
        /// A multiple of [`STEPS`].
        steps: usize,
        sums: *mut u32,
        resume: bool,
        /// What to bring into the second-level cache meanwhile: at each step the two lines at this address, which
        /// then goes up by `ahead_step` bytes. Need not be valid.
        ahead: *const u8,
        ahead_step: usize,
    }

    /// `block` with one instruction for products. All of it is one piece of assembly, because the compiler does
    /// not carry tiles from one to the next. Sums are in tiles 0 and 1, and 2 and 3 of the second tile of rows.
    macro_rules! multiply_by {
        ($product:literal, $block:expr) => {{
            let block: Block = $block;
            asm!(
                "test {resume}, {resume}",
                "jz 2f",
                "tileloadd tmm0, [{sums} + {stride}*1]",
                "tileloadd tmm1, [{sums} + {stride}*1 + 64]",
                "test {second}, {second}",
                "jz 3f",
                "tileloadd tmm2, [{sums} + {stride}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {stride}*1 + 2112]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "test {steps}, {steps}",
                "jz 6f",
                "4:",
                "tileloadd tmm6, [{weights} + {stride}*1]",
                "tileloadd tmm4, [{rows} + {row_stride}*1]",
                concat!($product, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{weights} + {stride}*1 + 64]",
                concat!($product, " tmm1, tmm4, tmm7"),
                ".rept 16",
                "prefetcht1 byte ptr [{ahead}]",
                "prefetcht1 byte ptr [{ahead} + 64]",
                "add {ahead}, {ahead_step}",
                ".endr",
                "test {second}, {second}",
                "jz 5f",
                "tileloadd tmm5, [{second} + {row_stride}*1]",
                concat!($product, " tmm2, tmm5, tmm6"),
                concat!($product, " tmm3, tmm5, tmm7"),
                "add {second}, 64",
                "5:",
                "add {rows}, 64",
                "add {weights}, 2048",
                "sub {steps}, 16",
                "jnz 4b",
                "6:",
                "tilestored [{sums} + {stride}*1], tmm0",
                "tilestored [{sums} + {stride}*1 + 64], tmm1",
                "test {second}, {second}",
                "jz 7f",
                "tilestored [{sums} + {stride}*1 + 2048], tmm2",
                "tilestored [{sums} + {stride}*1 + 2112], tmm3",
                "7:",
                rows = inout(reg) block.rows => _,
                second = inout(reg) block.second => _,
                row_stride = in(reg) block.row_stride,
                weights = inout(reg) block.weights => _,
                stride = in(reg) STRIDE,
                steps = inout(reg) block.steps => _,
                sums = in(reg) block.sums,
                resume = in(reg) usize::from(block.resume),
                ahead = inout(reg) block.ahead => _,
                ahead_step = in(reg) block.ahead_step,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }};
    }

    /// The blocks of `count` rows: 32 by 32, and a last one of one or two tiles.
    ///
    /// # Safety
    /// That of [`Product::multiply`].
    #[inline(always)]
    unsafe fn blocks(of: Operands, count: usize, mut multiply: impl FnMut(Block)) {
        debug_assert!(
            of.steps.is_multiple_of(STEPS) && of.weight_stride == STRIDE && of.sum_stride == COLUMNS
        );
        let alone = count <= 2 * ROWS;
        for (index, start) in (0..count).step_by(2 * ROWS).enumerate() {
            let rows = of.rows.wrapping_add(start * of.row_stride);
            let pair = count - start > ROWS;
            let far = of.far.wrapping_add(index * of.steps * of.far_step);
            multiply(Block {
                rows,
                second: if pair { rows.wrapping_add(ROWS * of.row_stride) } else { std::ptr::null() },
                row_stride: 4 * of.row_stride,
                weights: of.weights,
                steps: of.steps,
                sums: of.sums.wrapping_add(start * of.sum_stride),
                resume: of.resume,
                ahead: if alone { of.near } else { far },
                ahead_step: if alone { of.near_step } else { of.far_step },
            });
        }
    }

    /// Zeros from the word after `values` to the end of a tile's row.
    ///
    /// # Safety
    /// `to` has whole tiles' rows for `values`, `per_word` of them in a word.
    #[inline(always)]
    unsafe fn fill_up(values: &[f32], per_word: usize, to: *mut u32) {
        let words = values.len().div_ceil(per_word);
        // SAFETY: The caller's promise.
        unsafe { to.add(words).write_bytes(0, words.next_multiple_of(STEPS) - words) }
    }

    /// Pairs of bf16.
    struct Bf16;

    impl<S: Simd> Product<S> for Bf16 {
        const WORDS: usize = 1;
        const VALUES: usize = 2;
        const BYTES: usize = 4 * S::LANES;
        const TILE_ROWS: usize = 2 * ROWS;
        const GROUP_ROWS: usize = ROWS;
        /// 16 KiB of a panel and as many of rows.
        const BLOCK_STEPS: usize = 128;

        #[inline(always)]
        unsafe fn multiply(of: Operands, count: usize, _: usize) {
            // SAFETY: The caller's promise: blocks are of whole tiles.
            unsafe { blocks(of, count, |block| multiply_by!("tdpbf16ps", block)) }
        }
    }

    impl<S: Simd> Encode<S> for Bf16 {
        #[inline(always)]
        unsafe fn begin(_: &[f32]) -> RowTerms {
            RowTerms::default()
        }
        #[inline(always)]
        unsafe fn encode(values: &[f32], _: &mut RowTerms, to: *mut u32) {
            // SAFETY: The caller's promise.
            unsafe {
                bf16::encode_pairs(values, to);
                fill_up(values, 2, to);
            }
        }
        #[inline(always)]
        unsafe fn finish(sums: *const u32, row: &RowTerms, columns: *const i32, scales: *const f32) -> S::F {
            // SAFETY: The caller's promise.
            unsafe { <Single as Encode<S>>::finish(sums, row, columns, scales) }
        }
    }

    /// Fours of bytes, both sides with their sign: nothing has to be made up for, as it has with VNNI.
    struct Bytes;

    impl<S: Simd> Product<S> for Bytes {
        const WORDS: usize = 1;
        const VALUES: usize = 4;
        const BYTES: usize = 4 * S::LANES;
        const TILE_ROWS: usize = 2 * ROWS;
        const GROUP_ROWS: usize = ROWS;
        const BLOCK_STEPS: usize = 128;

        #[inline(always)]
        unsafe fn multiply(of: Operands, count: usize, _: usize) {
            // SAFETY: The caller's promise: blocks are of whole tiles.
            unsafe { blocks(of, count, |block| multiply_by!("tdpbssd", block)) }
        }
    }

    impl<S: Simd> Encode<S> for Bytes {
        #[inline(always)]
        unsafe fn begin(row: &[f32]) -> RowTerms {
            // SAFETY: The caller's promise.
            unsafe { <Pairs as Encode<S>>::begin(row) }
        }
        #[inline(always)]
        unsafe fn encode(values: &[f32], terms: &mut RowTerms, to: *mut u32) {
            // SAFETY: The caller's promise.
            unsafe {
                int8::encode::<S, false>(values, terms, to.cast());
                fill_up(values, 4, to);
            }
        }
        #[inline(always)]
        unsafe fn finish(sums: *const u32, row: &RowTerms, columns: *const i32, scales: *const f32) -> S::F {
            // SAFETY: The caller's promise.
            unsafe { <Pairs as Encode<S>>::finish(sums, row, columns, scales) }
        }
    }
}
