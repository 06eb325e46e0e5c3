//! From what was observed to spans with explicit times.

use super::keep::Reason;
use super::observed::{Method, Observed, Stage, Target};
use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use sconce_core::{ErrorCode, ExecutionRecord};
use std::borrow::Cow;
use std::time::{Instant, SystemTime};

/// Spans of one answered request at most: itself and its stages.
pub(crate) const SPANS_A_REQUEST: u64 = 6;

/// Turns times of the process into times of the world: one pair of both, taken together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    instant: Instant,
    system: SystemTime,
}

impl Clock {
    pub(crate) fn now() -> Self {
        Self { instant: Instant::now(), system: SystemTime::now() }
    }

    pub(crate) fn system(&self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.system + after,
            None => self.system - self.instant.saturating_duration_since(at),
        }
    }
}

/// The batch's span and its trace, by the batch alone: whoever links to it needs not wait for it to be made.
///
/// It is the root of a trace of its own. A batch belongs to as many traces as it has requests; as a child of one it would be
/// missing from the others, and which one that is would depend on who is kept.
pub(crate) fn batch_ids(run: u64, batch_id: u64) -> (u128, u64) {
    let first = mix(run ^ mix(batch_id));
    let second = mix(first);
    let third = mix(second);
    ((u128::from(first) << 64 | u128::from(second)).max(1), third.max(1))
}

/// The finalizer of SplitMix64: different inputs give different outputs, spread over all bits.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A request's server span and its stages.
pub(crate) fn of_request(
    observed: &Observed,
    reason: Reason,
    clock: &Clock,
    scope: &InstrumentationScope,
) -> Vec<SpanData> {
    let trace = &observed.trace;
    let state = trace.state.as_deref().and_then(trace_state).unwrap_or(TraceState::NONE);
    let span = |id: u64, parent: u64, name: &'static str, start: Instant, end: Instant| SpanData {
        span_context: context(trace.trace_id, id, state.clone()),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: Cow::Borrowed(name),
        start_time: clock.system(start),
        end_time: clock.system(end),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    };
    let stages = observed.stages();
    let failed = observed.failed_stage();
    let batch = observed.target.as_deref().zip(observed.record.as_ref());

    let (name, method) = match observed.method {
        Method::Unary => ("inference.GRPCInferenceService/ModelInfer", "ModelInfer"),
        Method::Stream => ("inference.GRPCInferenceService/ModelStreamInfer", "ModelStreamInfer"),
    };
    let end = stages.last().map_or(observed.ended_at, |stage| stage.end);
    let mut server = span(trace.span_id, trace.parent.unwrap_or(0), name, observed.arrived_at, end);
    server.span_kind = SpanKind::Server;
    server.parent_span_is_remote = trace.parent.is_some();
    server.attributes = server_attributes(observed, method, reason);
    if let Some(received_at) = observed.received_at {
        server.events.events = vec![Event::new("received", clock.system(received_at), Vec::new(), 0)];
    }
    if let Some(code) = observed.code.filter(|code| is_server_fault(*code)) {
        server.status = Status::error(status(Some(code)).1);
    }

    let mut spans = Vec::with_capacity(1 + stages.len());
    spans.push(server);
    for Stage { name, start, end } in stages {
        let mut child = span(fastrand::u64(1..), trace.span_id, name, start, end);
        if failed == Some(name) {
            child.status = Status::error(status(observed.code).1);
        }
        if let (Some((target, record)), "execute") = (batch, name) {
            let (trace_id, span_id) = batch_ids(target.run, record.batch_id);
            child.links = links(vec![Link::with_context(context(trace_id, span_id, TraceState::NONE))], 0);
            child.attributes.push(KeyValue::new("sconce.batch_id", to_i64(record.batch_id)));
        }
        spans.push(child);
    }
    spans
}

/// OpenTelemetry's conventions for RPCs, and ours.
fn server_attributes(observed: &Observed, method: &'static str, reason: Reason) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", "inference.GRPCInferenceService"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.grpc.status_code", i64::from(status(observed.code).0)),
        KeyValue::new("sconce.kept_for", reason.name()),
    ];
    if observed.trace.sampled == Some(false) {
        // Its caller threw its own part away.
        attributes.push(KeyValue::new("sconce.partial_trace", true));
    }
    if let Some(target) = &observed.target {
        attributes.push(KeyValue::new("sconce.model", StringValue::from(target.model.clone())));
        attributes.push(KeyValue::new("sconce.version", StringValue::from(target.version.clone())));
    }
    if let Some(id) = observed.prediction_id {
        attributes.push(KeyValue::new("sconce.prediction_id", id.to_string()));
    }
    if let Some(variant) = &observed.variant {
        attributes.push(KeyValue::new("sconce.variant", StringValue::from(variant.clone())));
    }
    if let Some(tenant) = &observed.tenant {
        attributes.push(KeyValue::new("sconce.tenant", StringValue::from(tenant.clone())));
    }
    attributes
}

/// A batch's span, with a link to each of its requests that is kept. `deadline` is the earliest of theirs.
pub(crate) fn of_batch(
    target: &Target,
    record: &ExecutionRecord,
    deadline: Option<Instant>,
    requests: Vec<SpanContext>,
    clock: &Clock,
    scope: &InstrumentationScope,
) -> SpanData {
    let (trace_id, span_id) = batch_ids(target.run, record.batch_id);
    let mut attributes = vec![
        KeyValue::new("sconce.model", StringValue::from(target.model.clone())),
        KeyValue::new("sconce.version", StringValue::from(target.version.clone())),
        KeyValue::new("sconce.device", StringValue::from(target.device.clone())),
        KeyValue::new("sconce.instance", to_i64(record.instance as u64)),
        KeyValue::new("sconce.batch_id", to_i64(record.batch_id)),
        KeyValue::new("sconce.batch.requests", to_i64(record.batch_requests as u64)),
        KeyValue::new("sconce.batch.rows", to_i64(record.batch_rows as u64)),
        KeyValue::new("sconce.batch.tokens", to_i64(record.batch_tokens as u64)),
        KeyValue::new("sconce.batch.padding", to_i64(record.batch_padding as u64)),
        KeyValue::new("sconce.batch.close_reason", record.close_reason.name()),
        KeyValue::new("sconce.batch.queue_depth", to_i64(record.queue_depth as u64)),
    ];
    if let Some(deadline) = deadline {
        let early = deadline.saturating_duration_since(record.finished_at).as_secs_f64();
        let late = record.finished_at.saturating_duration_since(deadline).as_secs_f64();
        attributes.push(KeyValue::new("sconce.batch.deadline_slack_ms", (early - late) * 1e3));
    }
    let unknown = record.batch_requests.saturating_sub(requests.len());
    let requests = requests.into_iter().map(Link::with_context).collect();
    SpanData {
        span_context: context(trace_id, span_id, TraceState::NONE),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: Cow::Borrowed("batch"),
        start_time: clock.system(record.started_at),
        end_time: clock.system(record.finished_at.max(record.started_at)),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: links(requests, u32::try_from(unknown).unwrap_or(u32::MAX)),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    }
}

/// The span of a request's execution, for links to it, if it is among `spans`.
pub(crate) fn executed(spans: &[SpanData]) -> Option<SpanContext> {
    spans.iter().find(|span| span.name == "execute").map(|span| span.span_context.clone())
}

/// A `tracestate`, all of it or nothing. Its members may have blanks around them, or be missing.
fn trace_state(text: &str) -> Option<TraceState> {
    let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    let members: Option<Vec<(&str, &str)>> =
        members.map(|member| member.split_once('=').filter(|(key, _)| !key.is_empty())).collect();
    TraceState::from_key_value(members?).ok()
}

fn context(trace_id: u128, span_id: u64, state: TraceState) -> SpanContext {
    SpanContext::new(TraceId::from(trace_id), SpanId::from(span_id), TraceFlags::SAMPLED, false, state)
}

fn links(links: Vec<Link>, dropped: u32) -> SpanLinks {
    let mut all = SpanLinks::default();
    (all.links, all.dropped_count) = (links, dropped);
    all
}

/// The codes that the conventions count as the server's own failures; the others are the caller's.
fn is_server_fault(code: ErrorCode) -> bool {
    use ErrorCode::{DeadlineExceeded, Internal, Unavailable, Unimplemented};
    matches!(code, DeadlineExceeded | Internal | Unavailable | Unimplemented)
}

/// The number and the name of a request's gRPC status.
pub(crate) fn status(code: Option<ErrorCode>) -> (u8, &'static str) {
    match code {
        None => (0, "OK"),
        Some(ErrorCode::Cancelled) => (1, "CANCELLED"),
        Some(ErrorCode::InvalidArgument) => (3, "INVALID_ARGUMENT"),
        Some(ErrorCode::DeadlineExceeded) => (4, "DEADLINE_EXCEEDED"),
        Some(ErrorCode::NotFound) => (5, "NOT_FOUND"),
        Some(ErrorCode::AlreadyExists) => (6, "ALREADY_EXISTS"),
        Some(ErrorCode::PermissionDenied) => (7, "PERMISSION_DENIED"),
        Some(ErrorCode::ResourceExhausted) => (8, "RESOURCE_EXHAUSTED"),
        Some(ErrorCode::FailedPrecondition) => (9, "FAILED_PRECONDITION"),
        Some(ErrorCode::Aborted) => (10, "ABORTED"),
        Some(ErrorCode::Unimplemented) => (12, "UNIMPLEMENTED"),
        Some(ErrorCode::Internal) => (13, "INTERNAL"),
        Some(ErrorCode::Unavailable) => (14, "UNAVAILABLE"),
    }
}

fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::observed::tests::observed;
    use proptest::prelude::*;
    use std::time::Duration;

    fn attribute(span: &SpanData, name: &str) -> Option<String> {
        let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
        found.map(|attribute| attribute.value.to_string())
    }

    fn spans(observed: &Observed) -> Vec<SpanData> {
        of_request(observed, Reason::Ratio, &Clock::now(), &InstrumentationScope::default())
    }

    #[test]
    fn children_tile_their_server_span() {
        let mut observed = observed();
        observed.trace.parent = Some(42);
        observed.trace.state = Some("a=1".into());
        let spans = spans(&observed);
        let (server, children) = spans.split_first().unwrap();
        assert_eq!(server.parent_span_id, SpanId::from(42));
        assert!(server.parent_span_is_remote);
        assert_eq!(server.span_kind, SpanKind::Server);
        assert_eq!(server.span_context.trace_state().header(), "a=1");
        assert_eq!(server.events.len(), 1);
        assert_eq!(attribute(server, "rpc.grpc.status_code").as_deref(), Some("0"));
        assert_eq!(attribute(server, "sconce.model").as_deref(), Some("m"));
        let time = |span: &SpanData| span.end_time.duration_since(span.start_time).unwrap();
        assert_eq!(children.iter().map(time).sum::<Duration>(), time(server));
        for child in children {
            assert_eq!(child.parent_span_id, server.span_context.span_id());
            assert_eq!(child.span_context.trace_id(), server.span_context.trace_id());
        }
        assert_eq!(spans.len() as u64, SPANS_A_REQUEST);
    }

    #[test]
    fn a_batch_and_its_requests_find_each_other() {
        let observed = observed();
        let spans = spans(&observed);
        let execute = executed(&spans).unwrap();
        let (target, record) = (observed.target.as_deref().unwrap(), observed.record.as_ref().unwrap());
        let deadline = record.finished_at - Duration::from_millis(3);
        let batch = of_batch(
            target,
            record,
            Some(deadline),
            vec![execute.clone()],
            &Clock::now(),
            &InstrumentationScope::default(),
        );
        let link = &spans.iter().find(|span| span.name == "execute").unwrap().links[0];
        assert_eq!(link.span_context.span_id(), batch.span_context.span_id());
        assert_eq!(link.span_context.trace_id(), batch.span_context.trace_id());
        assert_eq!(batch.links[0].span_context.span_id(), execute.span_id());
        assert_eq!(batch.links.dropped_count, 1, "one of its two requests was not kept");
        assert_eq!(attribute(&batch, "sconce.batch.queue_depth").as_deref(), Some("9"));
        assert_eq!(attribute(&batch, "sconce.batch.close_reason").as_deref(), Some("full"));
        let slack: f64 = attribute(&batch, "sconce.batch.deadline_slack_ms").unwrap().parse().unwrap();
        assert!((slack + 3.0).abs() < 1e-9, "{slack}");
    }

    #[test]
    fn failures_stand_where_they_happened() {
        let mut observed = observed();
        (observed.executed, observed.code) = (false, Some(ErrorCode::Internal));
        let spans = spans(&observed);
        let failed: Vec<&str> = spans
            .iter()
            .filter(|span| matches!(span.status, Status::Error { .. }))
            .map(|span| span.name.as_ref())
            .collect();
        assert_eq!(failed, ["inference.GRPCInferenceService/ModelInfer", "execute"]);
        assert_eq!(attribute(&spans[0], "rpc.grpc.status_code").as_deref(), Some("13"));
        // A wrong request is its caller's failure, and no error of this server.
        observed.code = Some(ErrorCode::InvalidArgument);
        assert_eq!(self::spans(&observed)[0].status, Status::Unset);
    }

    #[test]
    fn a_state_is_taken_whole() {
        let header = |text| trace_state(text).map(|state| state.header());
        assert_eq!(header("a=1, b@v=x y ,,").as_deref(), Some("a=1,b@v=x y"));
        for bad in ["a", "a=1,b", "A=1", "a=1=2", "=1"] {
            assert_eq!(header(bad), None, "{bad}");
        }
    }

    proptest! {
        /// It comes from a caller, and this thread must live.
        #[test]
        fn any_state_is_taken_up_or_left(state in "[ -~]{0,512}") {
            let mut observed = observed();
            observed.trace.state = Some(state.into());
            prop_assert_eq!(spans(&observed).len() as u64, SPANS_A_REQUEST);
        }
    }

    #[test]
    fn batch_ids_differ() {
        let mut seen = std::collections::HashSet::new();
        for run in 0..50 {
            for batch in 0..50 {
                assert!(seen.insert(batch_ids(run, batch)));
            }
        }
    }

    #[test]
    fn the_clock_goes_both_ways() {
        let clock = Clock::now();
        let second = Duration::from_secs(1);
        let (before, after) = (clock.instant - second, clock.instant + second);
        assert_eq!(clock.system(after).duration_since(clock.system(before)).unwrap(), 2 * second);
    }
}
