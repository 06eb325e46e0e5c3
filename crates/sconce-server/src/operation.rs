//! Operations off the requests' way, as spans.

use sconce_core::Result;
use tracing::{Instrument as _, Span};

/// A span of an operation on a model, exported with the traces: `operation!("load", model, version)`. What it is done to may be
/// left out from the end.
macro_rules! operation {
    ($name:literal, $model:expr $(, $version:expr)?) => {
        tracing::info_span!(
            target: sconce_telemetry::traces::OPERATION,
            $name,
            sconce.model = %$model,
            $(sconce.version = %$version,)?
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
        )
    };
}
pub(crate) use operation;

/// Runs `work` in the span of its operation, which says so when it fails.
pub(crate) async fn traced<T>(span: Span, work: impl Future<Output = Result<T>>) -> Result<T> {
    let done = work.instrument(span.clone()).await;
    if let Err(error) = &done {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", error.to_string());
    }
    done
}
