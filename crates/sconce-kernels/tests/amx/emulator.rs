//! AMX in software, on machines without it: instructions that the processor refuses (SIGILL) are done here, as
//! Intel's manual describes them, and the program goes on behind them.

use libc::{c_int, c_void, greg_t, siginfo_t, ucontext_t};
use std::cell::{Cell, RefCell};
use std::sync::Once;

thread_local! {
    // Made without code and never dropped: a signal handler may use them.
    static TILES: RefCell<Tiles> = const { RefCell::new(Tiles::RELEASED) };
    static DONE: Cell<usize> = const { Cell::new(0) };
}

/// Has the AMX instructions of all threads emulated where the processor or the kernel refuses them.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: Zeros are an empty mask and no flags; the handler calls only what a handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_refused;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

/// How many instructions of this thread were emulated so far.
pub(crate) fn emulated() -> usize {
    DONE.get()
}

extern "C" fn on_refused(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: The kernel gives the handler the thread's registers; the instruction and what it names is the
    // program's own. Nothing borrows the tiles where a signal is raised.
    unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        if TILES.with(|tiles| tiles.borrow_mut().execute(registers)).is_some() {
            DONE.set(DONE.get() + 1);
            return;
        }
        let message = b"refused, and not to be emulated: no AMX instruction, or one used wrongly\n";
        libc::write(2, message.as_ptr().cast(), message.len());
        // The instruction is tried again, and ends the process.
        libc::signal(libc::SIGILL, libc::SIG_DFL);
    }
}

type Registers = [greg_t; 23];

/// By their numbers in instructions.
const GENERAL: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const ROWS: usize = 16;
const BYTES: usize = 64;
type Tile = [[u8; BYTES]; ROWS];
type Word = [u8; 4];

struct Tiles {
    configured: bool,
    rows: [usize; 8],
    /// Bytes of a row.
    bytes: [usize; 8],
    tiles: [Tile; 8],
}

/// What an instruction's ModRM byte and those behind it name.
enum Place {
    Tile(usize),
    /// The address, and what is added to it from row to row if there is a SIB byte.
    Memory(usize, Option<usize>),
}

impl Tiles {
    const RELEASED: Self =
        Self { configured: false, rows: [0; 8], bytes: [0; 8], tiles: [[[0; BYTES]; ROWS]; 8] };

    /// Does the instruction at RIP and moves RIP behind it, or does nothing and gives none.
    ///
    /// # Safety
    /// RIP and what the instruction names are of this process.
    unsafe fn execute(&mut self, registers: &mut Registers) -> Option<()> {
        let code = registers[libc::REG_RIP as usize] as *const u8;
        // SAFETY: The caller's promise.
        let byte = |at: usize| unsafe { code.add(at).read() };
        // Three bytes of VEX, with map 0F38, W 0 and L 0; registers' numbers are inverted in it.
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
            return None;
        }
        let (extension, prefix, third) = (!byte(1), byte(2) & 3, usize::from(!byte(2) >> 3 & 15));
        let (opcode, mod_rm) = (byte(3), byte(4));
        let tile = usize::from(mod_rm >> 3 & 7);
        if extension & 0x80 != 0 {
            return None;
        }
        let mut length = 5;
        let place = if mod_rm >> 6 == 3 {
            if extension & 0x60 != 0 {
                return None;
            }
            Place::Tile(usize::from(mod_rm & 7))
        } else {
            let register = |number: u8, extended: u8| {
                let number = usize::from(number & 7) + if extension & extended != 0 { 8 } else { 0 };
                (number, registers[GENERAL[number] as usize] as usize)
            };
            let (mut base, mut stride) = (mod_rm, None);
            if mod_rm & 7 == 4 {
                let sib = byte(5);
                length += 1;
                let (number, index) = register(sib >> 3, 0x40);
                stride = Some(if number == 4 { 0 } else { index << (sib >> 6) });
                base = sib;
            }
            if mod_rm >> 6 == 0 && base & 7 == 5 {
                return None;
            }
            let offset = match mod_rm >> 6 {
                0 => 0,
                1 => byte(length).cast_signed() as isize,
                _ => {
                    let four = [0, 1, 2, 3].map(|at| byte(length + at));
                    i32::from_le_bytes(four) as isize
                }
            };
            length += [0, 1, 4][usize::from(mod_rm >> 6)];
            Place::Memory(register(base, 0x20).1.wrapping_add_signed(offset), stride)
        };
        let one = third == 0;
        match (opcode, prefix, place) {
            (0x49, 0, Place::Memory(at, _)) if tile == 0 && one => {
                // SAFETY: The caller's promise.
                self.configure(unsafe { (at as *const [u8; 64]).read_unaligned() })?;
            }
            (0x49, 0, Place::Tile(0)) if tile == 0 && one => *self = Self::RELEASED,
            (0x49, 3, Place::Tile(0)) if self.has(tile)? && one => self.tiles[tile] = [[0; BYTES]; ROWS],
            (0x4b, 3, Place::Memory(at, Some(stride))) if self.has(tile)? && one => {
                let mut loaded = [[0; BYTES]; ROWS];
                for (row, to) in loaded.iter_mut().enumerate().take(self.rows[tile]) {
                    let from = at.wrapping_add(row.wrapping_mul(stride)) as *const u8;
                    // SAFETY: The caller's promise.
                    unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), self.bytes[tile]) }
                }
                self.tiles[tile] = loaded;
            }
            (0x4b, 2, Place::Memory(at, Some(stride))) if self.has(tile)? && one => {
                for (row, from) in self.tiles[tile].iter().enumerate().take(self.rows[tile]) {
                    let to = at.wrapping_add(row.wrapping_mul(stride)) as *mut u8;
                    // SAFETY: The caller's promise.
                    unsafe { from.as_ptr().copy_to_nonoverlapping(to, self.bytes[tile]) }
                }
            }
            (0x5c, 2, Place::Tile(first)) => self.multiply(tile, first, third, add_bf16)?,
            (0x5e, 3, Place::Tile(first)) => self.multiply(tile, first, third, add_bytes)?,
            _ => return None,
        }
        registers[libc::REG_RIP as usize] += length as greg_t;
        Some(())
    }

    /// LDTILECFG.
    fn configure(&mut self, bytes: [u8; 64]) -> Option<()> {
        *self = Self::RELEASED;
        let reserved = bytes[1..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]);
        if bytes[0] != 1 || reserved.copied().any(|byte| byte != 0) {
            return None;
        }
        for tile in 0..8 {
            self.rows[tile] = usize::from(bytes[48 + tile]);
            self.bytes[tile] = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
            let (rows, bytes) = (self.rows[tile], self.bytes[tile]);
            if rows > ROWS || bytes > BYTES || (rows == 0) != (bytes == 0) {
                return None;
            }
        }
        self.configured = true;
        Some(())
    }

    /// None unless the tile is configured.
    fn has(&self, tile: usize) -> Option<bool> {
        (self.configured && self.rows.get(tile)? > &0).then_some(true)
    }

    /// A product of tiles whose sums are 32 bits wide: `add` takes a sum's row and those of both sides.
    fn multiply(
        &mut self,
        to: usize,
        first: usize,
        second: usize,
        add: fn(&mut [Word], &[Word], &Tile),
    ) -> Option<()> {
        let known = self.has(to)? && self.has(first)? && self.has(second)?;
        let apart = to != first && first != second && to != second;
        let whole = [to, first, second].iter().all(|tile| self.bytes[*tile].is_multiple_of(4));
        let fitting = self.rows[to] == self.rows[first]
            && self.bytes[to] == self.bytes[second]
            && self.bytes[first] / 4 == self.rows[second];
        if !(known && apart && whole && fitting) {
            return None;
        }
        let (words, columns) = (self.bytes[first] / 4, self.bytes[to] / 4);
        for row in 0..self.rows[to] {
            let values = self.tiles[first][row];
            let mut sums = self.tiles[to][row];
            add(&mut sums.as_chunks_mut().0[..columns], &values.as_chunks().0[..words], &self.tiles[second]);
            self.tiles[to][row] = sums;
        }
        Some(())
    }
}

/// TDPBSSD: all integers, without saturation.
fn add_bytes(sums: &mut [Word], values: &[Word], weights: &Tile) {
    for (value, weights) in values.iter().zip(weights) {
        for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
            let mut total = i32::from_le_bytes(*sum);
            for (value, weight) in value.iter().zip(weights) {
                let product = i32::from(value.cast_signed()) * i32::from(weight.cast_signed());
                total = total.wrapping_add(product);
            }
            *sum = total.to_le_bytes();
        }
    }
}

/// TDPBF16PS: the first values of all pairs are summed from zero, so are the second ones, and then both are
/// added to the sum. All of it rounds to nearest even, takes denormals for zero and makes zero of them.
fn add_bf16(sums: &mut [Word], values: &[Word], weights: &Tile) {
    let parts = |word: &Word| {
        let word = u32::from_le_bytes(*word);
        [word << 16, word & 0xffff_0000].map(|bits| flushed(f32::from_bits(bits)))
    };
    let mut totals = [[0.0_f32; 2]; BYTES / 4];
    for (value, weights) in values.iter().zip(weights) {
        for (total, weights) in totals.iter_mut().zip(weights.as_chunks::<4>().0) {
            for ((total, value), weight) in total.iter_mut().zip(parts(value)).zip(parts(weights)) {
                // A product of two bf16 is exact as long as its exponent is one: then the sum is what is rounded.
                let product = value * weight;
                let exact = product.is_normal() || value == 0.0 || weight == 0.0;
                *total = flushed(if exact { *total + product } else { value.mul_add(weight, *total) });
            }
        }
    }
    for (sum, [first, second]) in sums.iter_mut().zip(totals) {
        let total = flushed(first + second);
        *sum = flushed(flushed(f32::from_le_bytes(*sum)) + total).to_le_bytes();
    }
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}
