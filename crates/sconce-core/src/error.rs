use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// What a failed request comes to. Closed: the front door maps each code to exactly one wire status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request itself is wrong and will be wrong again: shape, datatype, size, name, parameter.
    InvalidArgument,
    /// No such model or version.
    NotFound,
    /// The version exists but is not ready, or the server is draining.
    Unavailable,
    /// A bound was reached: queue, bytes in flight, connections, streams.
    ResourceExhausted,
    /// The deadline passed before an answer existed.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// The call is not allowed where it was made.
    PermissionDenied,
    /// A condition of the call does not hold (a read-only catalogue, say).
    FailedPrecondition,
    /// What is to be made is there already.
    AlreadyExists,
    /// Another change came first: what the call expected to find is no longer so.
    Aborted,
    /// The server does not offer this.
    Unimplemented,
    /// The model or the server failed: a kernel error, a panic, NaN where the signature forbids it.
    Internal,
}

impl ErrorCode {
    /// The name of the wire status it becomes.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::Unavailable => "UNAVAILABLE",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Aborted => "ABORTED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
        }
    }
}

/// A failure on the request path. The message is for the caller: it says what was expected and what came.
/// The source chain is for the log and never leaves the server.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: ErrorCode,
    message: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
    retry_after: Option<Duration>,
}

/// A result whose error carries an [`ErrorCode`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `code` with the caller's `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), source: None, retry_after: None }
    }

    /// [`ErrorCode::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// [`ErrorCode::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// [`ErrorCode::DeadlineExceeded`], one wording wherever it is found out.
    pub fn deadline_exceeded() -> Self {
        Self::new(ErrorCode::DeadlineExceeded, "the deadline passed before the model answered")
    }

    /// Attaches the cause, which goes to the log and never to the caller.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says when the same request may succeed.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// When the same request may succeed, from now.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The same failure, with `place` before its message: which part of a request it happened in.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What the failure comes to.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The same failure for another request of the same batch. The cause stays with the first: the log tells it once.
    #[must_use]
    pub fn repeat(&self) -> Self {
        Self { retry_after: self.retry_after, ..Self::new(self.code, self.message.clone()) }
    }
}
