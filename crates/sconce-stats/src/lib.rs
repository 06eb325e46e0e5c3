//! Statistics of Sconce: tests, distances, intervals, sketches, detectors and e-processes.
//!
//! Pure functions and plain states: no I/O, no clock, no random numbers that are not seeded by the caller. Every input is
//! checked, wrong input is a [`StatsError`], and work is bounded by the size of the input. The golden vectors in
//! `tests/golden/` of the repository hold the results against reference implementations.

pub mod bins;
pub mod canary;
pub mod compat;
pub mod correction;
pub mod counts;
pub mod distance;
pub mod domain;
mod error;
pub mod experiment;
mod interval;
mod linalg;
pub mod performance;
pub mod proportion;
pub mod sequential;
pub mod sketch;
pub mod special;
pub mod stream;
pub mod summary;
mod trials;
pub mod two_sample;

pub use error::{Result, StatsError};
pub use interval::Interval;
pub use trials::Trials;

use serde::{Deserialize, Serialize};

/// A test statistic and how likely one at least as extreme is under the null hypothesis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TestResult {
    /// The statistic.
    pub statistic: f64,
    /// The p-value, from 0 to 1.
    pub p_value: f64,
}
