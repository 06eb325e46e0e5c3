//! Statistics of Sconce: tests, distances, intervals, sketches, detectors and e-processes.
//!
//! Pure functions and plain states: no I/O, no clock, no random numbers that are not seeded by the caller. Every input is
//! checked, wrong input is a [`StatsError`], and work is bounded by the size of the input. The golden vectors in
//! `tests/golden/` of the repository hold the results against reference implementations.

#[allow(dead_code, reason = "the first statistics are still to come")]
mod error;
pub mod special;

pub use error::{Result, StatsError};
