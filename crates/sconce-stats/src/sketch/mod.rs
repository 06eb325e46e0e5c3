//! Quantiles of values that are too many to keep.

mod log;
mod values;

pub use log::LogSketch;
pub use values::ValueSketch;
