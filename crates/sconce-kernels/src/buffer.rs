//! Memory that starts at a cache line.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Cache line, in bytes: vectors that straddle two lines load at half speed.
pub(crate) const LINE: usize = 64;

#[repr(align(64))]
struct Line;

/// Zeroed memory that starts at a cache line, for plain numbers.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: The memory is the buffer's own.
unsafe impl Send for Buffer {}
// SAFETY: Shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        if bytes == 0 {
            return Self { start: NonNull::<Line>::dangling().cast(), bytes };
        }
        let layout = Self::layout(bytes);
        // SAFETY: The layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        assert!(bytes <= isize::MAX as usize - LINE, "{bytes} bytes are too many");
        // SAFETY: The alignment is a power of two, and the size does not overflow when rounded up to it.
        unsafe { Layout::from_size_align_unchecked(bytes, LINE) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(crate) fn copy_from(&mut self, from: &[u8]) {
        assert_eq!(self.bytes, from.len());
        // SAFETY: Both are as long, and `from` cannot be this memory, which is borrowed exclusively.
        unsafe { from.as_ptr().copy_to_nonoverlapping(self.start.as_ptr(), from.len()) }
    }

    /// Space for `bytes`, whatever it held: the memory it has if that is enough.
    pub(crate) fn at_least(&mut self, bytes: usize) -> *mut u8 {
        if self.bytes < bytes {
            *self = Self::zeroed(bytes);
        }
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: Allocated by `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes).finish()
    }
}

/// Memory that kernels work in, kept from call to call: after the first calls of a size nothing is allocated.
/// One for each thread.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) rows: Buffer,
    pub(crate) terms: Buffer,
    pub(crate) sums: Buffer,
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
    /// What a convolution's window sees, for one place at a time.
    pub(crate) window: Vec<f32>,
}

impl Scratch {
    /// Empty: grows at the first use.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes held.
    pub fn bytes(&self) -> usize {
        let buffers = [&self.rows, &self.terms, &self.sums, &self.keys, &self.values];
        buffers.iter().map(|b| b.bytes()).sum::<usize>() + self.window.len() * size_of::<f32>()
    }
}
