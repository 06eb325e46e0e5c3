//! The one place where a failure becomes a gRPC status.

use sconce_core::{Error, ErrorCode};
use std::error::Error as _;
use std::time::Duration;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// A message travels in a header: clients refuse all headers of an answer together from 8 KiB on, and see another failure.
const MAX_MESSAGE_BYTES: usize = 2048;
/// When to try again: for gRPC clients with a retry policy, in milliseconds; for proxies and people, in seconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const RETRY_AFTER: &str = "retry-after";

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
    let mut metadata = MetadataMap::new();
    if let (ErrorCode::ResourceExhausted, Some(after)) = (error.code(), error.retry_after()) {
        metadata.insert(PUSHBACK, MetadataValue::from(pushback_ms(after)));
        metadata.insert(RETRY_AFTER, MetadataValue::from(whole(after, Duration::from_secs(1))));
    }
    Status::with_metadata(code(error.code()), message, metadata)
}

/// `after` as clients read it: whole milliseconds, at least 1. Some read 32 bits.
pub(crate) fn pushback_ms(after: Duration) -> i64 {
    i32::try_from(whole(after, Duration::from_millis(1))).unwrap_or(i32::MAX).into()
}

/// `time` in whole `unit`s, rounded up, at least 1: whoever comes back is not early.
fn whole(time: Duration, unit: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(unit.as_nanos().max(1))).unwrap_or(u64::MAX).max(1)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(error: &Error) -> Option<(String, String)> {
        let status = of(error);
        let text = |name| Some(status.metadata().get(name)?.to_str().unwrap().to_owned());
        Some((text(PUSHBACK)?, text(RETRY_AFTER)?))
    }

    #[test]
    fn an_overload_says_when_to_come_back_in_whole_units() {
        let short = |after| Error::new(ErrorCode::ResourceExhausted, "full").with_retry_after(after);
        for (after, pushback, seconds) in [
            (Duration::ZERO, "1", "1"),
            (Duration::from_micros(1001), "2", "1"),
            (Duration::from_millis(1000), "1000", "1"),
            (Duration::from_millis(1001), "1001", "2"),
            (Duration::MAX, "2147483647", "18446744073709551615"),
        ] {
            let error = short(after);
            assert_eq!(hints(&error), Some((pushback.to_owned(), seconds.to_owned())), "{after:?}");
            assert_eq!(hints(&error.repeat()), hints(&error));
        }
        assert_eq!(hints(&Error::new(ErrorCode::ResourceExhausted, "too large")), None);
        assert_eq!(hints(&Error::invalid("wrong").with_retry_after(Duration::ZERO)), None);
    }
}
