//! What can be wrong with the input of a statistic, and the checks that say so.

/// A result whose error is a [`StatsError`].
pub type Result<T, E = StatsError> = std::result::Result<T, E>;

/// Why a statistic cannot be computed from what came. Each says which input, what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StatsError {
    /// A parameter lies outside its range.
    #[error("`{name}`: expected {expected}, got {got}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// The range, in words.
        expected: &'static str,
        /// What came.
        got: f64,
    },
    /// A sample has too few values.
    #[error("`{name}`: expected at least {least} values, got {got}")]
    TooFew {
        /// The sample.
        name: &'static str,
        /// How many the statistic needs.
        least: usize,
        /// How many came.
        got: usize,
    },
    /// A sample has more values than the statistic's bounded work allows.
    #[error("`{name}`: expected at most {most} values, got {got}")]
    TooMany {
        /// The sample.
        name: &'static str,
        /// How many are taken.
        most: usize,
        /// How many came.
        got: usize,
    },
    /// A value that must be finite is not.
    #[error("`{name}`[{index}]: expected a finite number, got {got}")]
    NotFinite {
        /// The sample.
        name: &'static str,
        /// Where in it.
        index: usize,
        /// What came.
        got: f64,
    },
    /// Samples that belong together differ in length.
    #[error("expected `{left}` and `{right}` to be equally long, got {left_len} and {right_len}")]
    Lengths {
        /// One sample.
        left: &'static str,
        /// Its length.
        left_len: usize,
        /// The other.
        right: &'static str,
        /// Its length.
        right_len: usize,
    },
    /// The data has no spread, or in another way leaves the statistic undefined.
    #[error("undefined for this data: {reason}")]
    Undefined {
        /// What is missing.
        reason: &'static str,
    },
}

/// Refuses `values` with fewer than `least` entries.
pub(crate) fn at_least(name: &'static str, values: usize, least: usize) -> Result<()> {
    if values < least { Err(StatsError::TooFew { name, least, got: values }) } else { Ok(()) }
}

/// Refuses NaN and infinities.
pub(crate) fn finite(name: &'static str, values: &[f64]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(StatsError::NotFinite { name, index, got: values[index] }),
        None => Ok(()),
    }
}

/// Refuses two samples of different length.
pub(crate) fn same_length(left: (&'static str, usize), right: (&'static str, usize)) -> Result<()> {
    if left.1 == right.1 {
        return Ok(());
    }
    Err(StatsError::Lengths { left: left.0, left_len: left.1, right: right.0, right_len: right.1 })
}

/// Refuses what `holds` is false for; `expected` says the range.
pub(crate) fn in_range(name: &'static str, got: f64, holds: bool, expected: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(StatsError::OutOfRange { name, expected, got }) }
}

/// Refuses what is not strictly between 0 and 1, NaN included.
pub(crate) fn open_unit(name: &'static str, got: f64) -> Result<()> {
    in_range(name, got, got > 0.0 && got < 1.0, "a number between 0 and 1, neither included")
}

/// Refuses what is not finite and above 0.
pub(crate) fn positive(name: &'static str, got: f64) -> Result<()> {
    in_range(name, got, got > 0.0 && got.is_finite(), "a finite number above 0")
}
