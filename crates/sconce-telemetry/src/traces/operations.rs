//! Operations off the requests' way, such as loads and promotions: `tracing` spans, exported with those of requests.
//!
//! Whoever writes `tracing::info_span!(target: OPERATION, ...)` makes one. There is one subscriber in a process, so their spans go to
//! the recorder that was started last with a collector.

use super::otlp::{Kind, Span, Spans, Value};
use super::recorder::Recorder;
use super::spans::unix;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanProcessor};
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

/// The target of spans that are exported.
pub const OPERATION: &str = "sconce::operation";

static RECORDER: Mutex<Weak<Recorder>> = Mutex::new(Weak::new());

/// Lets `recorder` have the spans of operations that end from now on.
pub(crate) fn send_to(recorder: Weak<Recorder>) {
    *RECORDER.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
}

/// The `traceparent` of the operation under way here; `None` where there is none, or there is no collector for its spans.
pub fn traceparent() -> Option<String> {
    let has_recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0;
    if has_recorder { of_current() } else { None }
}

fn of_current() -> Option<String> {
    let context = tracing::Span::current().context();
    let span = context.span();
    let of = span.span_context();
    let flags = of.trace_flags().to_u8();
    of.is_valid().then(|| format!("00-{}-{}-{flags:02x}", of.trace_id(), of.span_id()))
}

/// What makes spans of OpenTelemetry of those with the target [`OPERATION`].
pub(crate) fn layer<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let wanted = filter_fn(|about| about.is_span() && about.target() == OPERATION);
    // Few and telling: each is kept, whatever became of it.
    let provider =
        SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOn).with_span_processor(Offering).build();
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("sconce"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        // Else all that is finer would be looked at, wherever it is.
        .with_filter(wanted.with_max_level_hint(LevelFilter::INFO))
}

/// Offers each span that ends.
#[derive(Debug)]
struct Offering;

impl SpanProcessor for Offering {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(recorder) = recorder {
            recorder.offer_operation(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Writes what the layer made.
pub(crate) fn write(data: &SpanData, spans: &mut Spans) {
    let kind = match data.span_kind {
        SpanKind::Server => Kind::Server,
        SpanKind::Client => Kind::Client,
        SpanKind::Producer => Kind::Producer,
        SpanKind::Consumer => Kind::Consumer,
        SpanKind::Internal => Kind::Internal,
    };
    let span = Span {
        trace_id: u128::from_be_bytes(data.span_context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(data.span_context.span_id().to_bytes()),
        parent: u64::from_be_bytes(data.parent_span_id.to_bytes()),
        parent_is_remote: data.parent_span_is_remote,
        state: "",
        name: &data.name,
        kind,
        start: unix(data.start_time),
        end: unix(data.end_time),
    };
    spans.add(&span, |fields| {
        for KeyValue { key, value, .. } in &data.attributes {
            let text;
            let value = match value {
                opentelemetry::Value::Bool(truth) => Value::Bool(*truth),
                opentelemetry::Value::I64(number) => Value::Int(*number),
                opentelemetry::Value::F64(number) => Value::Double(*number),
                other => {
                    text = other.as_str();
                    Value::Text(&text)
                }
            };
            fields.attribute(key.as_str(), value);
        }
        for link in data.links.iter() {
            let (trace_id, span_id) = (link.span_context.trace_id(), link.span_context.span_id());
            fields.link(u128::from_be_bytes(trace_id.to_bytes()), u64::from_be_bytes(span_id.to_bytes()));
        }
        if let Status::Error { description } = &data.status {
            fields.error(description);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::otlp::tests::{attribute, read};
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt as _;

    /// Keeps what ends, instead of offering it.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn an_operation_holds_what_it_caused() {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_span_processor(kept.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("sconce"));
        let mut parent = String::new();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let promotion =
                tracing::info_span!(target: OPERATION, "promote", sconce.model = "m", sconce.version = 2);
            assert_eq!(of_current(), None);
            promotion.in_scope(|| {
                let said = of_current().unwrap();
                let load = tracing::info_span!(target: OPERATION, "load", otel.status_description = tracing::field::Empty);
                load.record("otel.status_description", "no memory");
                assert_ne!(load.in_scope(of_current).unwrap(), said, "its own span is the parent");
                parent = said;
            });
        });
        let mut spans = Spans::default();
        kept.0.lock().unwrap().iter().for_each(|span| write(span, &mut spans));
        let read = read(&spans);
        let [load, promotion] = &read[..] else { panic!("{read:?}") };
        assert_eq!((load.name.as_str(), promotion.name.as_str()), ("load", "promote"));
        assert_eq!((&load.parent_span_id, &load.trace_id), (&promotion.span_id, &promotion.trace_id));
        assert!(promotion.parent_span_id.is_empty());
        let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(parent, format!("00-{}-{}-01", hex(&promotion.trace_id), hex(&promotion.span_id)));
        assert_eq!(attribute(promotion, "sconce.model").as_deref(), Some("m"));
        assert_eq!(attribute(promotion, "sconce.version").as_deref(), Some("2"));
        assert_eq!(load.status.as_ref().map(|status| status.message.as_str()), Some("no memory"));
    }
}
