//! CPU kernels of transformer encoders and convolutional networks, with vector instructions chosen at run time.
//!
//! All functions work on the rows they are given, in the calling thread: callers split rows over threads.
//! Every output row is computed by the same operations in the same order whatever rows it is computed with, so
//! a row's result does not depend on its batch, to the last bit. It does depend on the instructions.
//!
//! For speed, take a model's layers for a hundred or two rows at a time rather than for all: what one kernel
//! writes is then still in the second-level cache when the next reads it.
//!
//! This is the only crate with `unsafe`. Public functions are safe: they check lengths, and an [`Isa`] exists
//! only for instructions that the machine has. Inside, kernels are written once over a trait of vector
//! operations, and compiled for each set of instructions. Instructions for products alone are implementations
//! of a trait in `product.rs`: `Stepwise` where sums are vectors, `Product` itself where they are not, as in
//! the tiles of `amx.rs`.

mod amx;
mod attention;
mod bf16;
mod buffer;
mod conv;
mod dense;
mod gather;
mod int8;
mod isa;
mod math;
mod pack;
mod peak;
mod product;
mod rows;
mod simd;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::attention;
pub use buffer::Scratch;
pub use conv::{Convolution, Images, Window, convolve, max_pool};
pub use dense::{Activation, After, dense};
pub use gather::{Table, embed, l2_normalize, mean_pool, softmax};
pub use isa::{ISA_VARIABLE, Isa, Level};
pub use pack::{MAX_INT8_INNER, PackedMatrix, Precision};
pub use peak::peak;
pub use rows::{add_norm, rms_norm};
