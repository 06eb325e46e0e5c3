//! The one place where a failure becomes a gRPC status.

use sconce_core::{Error, ErrorCode};
use std::error::Error as _;
use tonic::{Code, Status};

/// The wire status of `error`. Its source chain, if it has one, is logged here and does not leave the server; what fails in
/// a model is logged by its worker, once a batch.
pub(crate) fn of(error: &Error) -> Status {
    if error.source().is_some() {
        let chain = std::iter::successors(error.source(), |&cause| cause.source());
        let causes: Vec<String> = chain.map(ToString::to_string).collect();
        tracing::warn!(code = ?error.code(), causes = causes.join(": "), "{error}");
    }
    Status::new(code(error.code()), error.to_string())
}

fn code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::ResourceExhausted => Code::ResourceExhausted,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::FailedPrecondition => Code::FailedPrecondition,
        ErrorCode::Unimplemented => Code::Unimplemented,
        ErrorCode::Internal => Code::Internal,
    }
}
