use std::error::Error as StdError;
use tonic::{Code, Status, TimeoutExpired};

/// A failed call. Shown, it is the message alone.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: Code,
    message: String,
}

/// A result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The server answered something that the protocol does not allow.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    pub(crate) fn cannot_connect(addr: &str, error: &tonic::transport::Error) -> Self {
        Self::new(Code::Unavailable, format!("cannot connect to {addr}: {}", root_cause(error)))
    }

    /// What the failure comes to: the server's status, or what a client makes of a broken connection.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What was expected and what came.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let Some(source) = status.source() else {
            return Self::new(status.code(), status.message());
        };
        // tonic calls its own timer's expiry CANCELLED; the protocol's name for a deadline that passed is another.
        if chain(source).any(|cause| cause.is::<TimeoutExpired>()) {
            return Self::new(Code::DeadlineExceeded, "the deadline passed before the server answered");
        }
        // A connection that broke off, or that the server closed before the call was on it, is UNKNOWN or CANCELLED to tonic.
        // What a server says has no local source.
        // The same of a server that says goodbye in good order, which tonic takes for an error of its own.
        let goodbye = chain(source).filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        });
        let code = match status.code() {
            Code::Unknown | Code::Cancelled => Code::Unavailable,
            Code::Internal if goodbye => Code::Unavailable,
            code => code,
        };
        Self::new(code, root_cause(source).to_string())
    }
}

impl From<sconce_core::Error> for Error {
    fn from(error: sconce_core::Error) -> Self {
        Self::new(Code::InvalidArgument, error.to_string())
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&cause| cause.source())
}

/// The last of the chain: `Connection refused` rather than `transport error`.
fn root_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    chain(error).last().unwrap_or(error)
}
