use sconce_core::ErrorCode;
use sconce_stats::StatsError;

/// What a monitor does not take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MonitorError {
    /// A row, a specification or a level that does not fit.
    #[error("{what}: expected {expected}, got {got}")]
    Unfit {
        /// What it is about.
        what: &'static str,
        /// What would have been taken.
        expected: String,
        /// What came.
        got: String,
    },
    /// A reference in a form that is not known here.
    #[error("this reference has format {got}, and formats up to {known} are known here")]
    Format {
        /// Its format.
        got: u32,
        /// The newest that is known.
        known: u32,
    },
    /// A statistic has no answer.
    #[error(transparent)]
    Stats(#[from] StatsError),
}

/// Of everything here.
pub type Result<T, E = MonitorError> = std::result::Result<T, E>;

impl MonitorError {
    /// What it comes to: [`ErrorCode::InvalidArgument`].
    pub fn code(&self) -> ErrorCode {
        ErrorCode::InvalidArgument
    }

    pub(crate) fn unfit(what: &'static str, expected: impl Into<String>, got: impl ToString) -> Self {
        Self::Unfit { what, expected: expected.into(), got: got.to_string() }
    }
}

impl From<MonitorError> for sconce_core::Error {
    fn from(error: MonitorError) -> Self {
        Self::invalid(error.to_string())
    }
}
