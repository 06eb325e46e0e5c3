//! The one place where a failure becomes a gRPC status.

use sconce_core::{Error, ErrorCode};
use std::error::Error as _;
use tonic::{Code, Status};

/// A message travels in a header: clients refuse all headers of an answer together from 8 KiB on, and see another failure.
const MAX_MESSAGE_BYTES: usize = 2048;

/// The wire status of `error`. Its source chain, if it has one, is logged here and does not leave the server; what fails in
/// a model is logged by its worker, once a batch.
pub(crate) fn of(error: &Error) -> Status {
    if error.source().is_some() {
        let chain = std::iter::successors(error.source(), |&cause| cause.source());
        let causes: Vec<String> = chain.map(ToString::to_string).collect();
        tracing::warn!(code = ?error.code(), causes = causes.join(": "), "{error}");
    }
    let mut message = error.to_string();
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    Status::new(code(error.code()), message)
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
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::Aborted => Code::Aborted,
        ErrorCode::Unimplemented => Code::Unimplemented,
        ErrorCode::Internal => Code::Internal,
    }
}
