//! From what was observed to spans with explicit times.

use super::keep::Reason;
use super::observed::{Method, Observed, RemoteCall, Stage, Target};
use super::otlp::{Fields, Kind, Span, Spans, Value};
use sconce_core::{ErrorCode, ExecutionRecord};
use std::time::{Duration, Instant, SystemTime};

/// Spans of one answered request at most, its steps apart: itself and its stages.
pub(crate) const SPANS_A_REQUEST: u64 = 6;

/// A span's trace and its own id.
pub(crate) type SpanIds = (u128, u64);

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

    /// Nanoseconds of the Unix epoch.
    pub(crate) fn unix(&self, at: Instant) -> u64 {
        unix(self.system(at))
    }

    pub(crate) fn system(&self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.system + after,
            None => self.system - self.instant.saturating_duration_since(at),
        }
    }
}

/// Nanoseconds of the Unix epoch; 0 before it.
pub(crate) fn unix(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
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

/// A request's own span, its stages, and its steps with theirs. Calls `executed` with each that ran in a batch, and the span of
/// its execution.
pub(crate) fn of_request<'a>(
    observed: &'a Observed,
    reason: Reason,
    clock: &Clock,
    spans: &mut Spans,
    executed: &mut impl FnMut(&'a Observed, SpanIds),
) {
    let trace = &observed.trace;
    let stages = observed.stages();
    let failed = observed.failed_stage();
    let batch = observed.target.as_deref().zip(observed.record.as_ref());
    let end = stages.last().map_or(observed.ended_at, |stage| stage.end);
    let own = Span {
        trace_id: trace.trace_id,
        span_id: trace.span_id,
        parent: trace.parent.unwrap_or(0),
        parent_is_remote: trace.parent.is_some() && observed.method.is_of_a_caller(),
        state: trace.state.as_deref().filter(|state| is_trace_state(state)).unwrap_or(""),
        name: observed.method.span_name(),
        kind: if observed.method.is_of_a_caller() { Kind::Server } else { Kind::Internal },
        start: clock.unix(observed.arrived_at),
        end: clock.unix(end),
    };
    spans.add(&own, |fields| {
        if observed.method.is_of_a_caller() {
            rpc_attributes(observed, reason, fields);
        }
        about(observed, fields);
        if let Some(received_at) = observed.received_at {
            fields.event("received", clock.unix(received_at));
        }
        if let (Method::Shadow, Some(primary)) = (observed.method, trace.parent) {
            fields.link(trace.trace_id, primary);
        }
        if let Some(code) = observed.code.filter(|code| is_server_fault(*code)) {
            fields.error(status(Some(code)).1);
        }
    });
    for Stage { name, start, end } in stages {
        let stage = Span {
            span_id: fastrand::u64(1..),
            parent: own.span_id,
            parent_is_remote: false,
            name,
            kind: Kind::Internal,
            start: clock.unix(start),
            end: clock.unix(end),
            ..own
        };
        spans.add(&stage, |fields| {
            if let (Some((target, record)), "execute") = (batch, name) {
                let (trace_id, span_id) = batch_ids(target.run, record.batch_id);
                fields.count("sconce.batch_id", record.batch_id);
                fields.link(trace_id, span_id);
                executed(observed, (stage.trace_id, stage.span_id));
            }
            if failed == Some(name) {
                fields.error(status(observed.code).1);
            }
        });
        if let (Some(call), "execute") = (&observed.call, name) {
            of_call(call, &stage, end, clock, spans);
        }
    }
    for step in &observed.steps {
        of_request(step, reason, clock, spans, executed);
    }
}

/// The call of another server, as part of the execution that it was. `end` is that of the execution.
fn of_call(call: &RemoteCall, execution: &Span<'_>, end: Instant, clock: &Clock, spans: &mut Spans) {
    let ended_at = call.ended_at.unwrap_or(end).clamp(call.started_at, end.max(call.started_at));
    let span = Span {
        span_id: call.trace.span_id,
        parent: execution.span_id,
        name: Method::Unary.span_name(),
        kind: Kind::Client,
        start: clock.unix(call.started_at),
        end: clock.unix(ended_at),
        ..*execution
    };
    spans.add(&span, |fields| {
        let code = if call.ended_at.is_some() { call.code } else { Some(ErrorCode::Cancelled) };
        fields.text("rpc.system", "grpc");
        fields.text("rpc.service", "inference.GRPCInferenceService");
        fields.text("rpc.method", Method::Unary.name());
        fields.count("rpc.grpc.status_code", u64::from(status(code).0));
        match call.server.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
            Some((host, port)) => {
                fields.text("server.address", host);
                fields.count("server.port", port);
            }
            None => fields.text("server.address", &call.server),
        }
        fields.count("sconce.remote.attempts", call.attempts);
        // Whatever a client is not told OK is an error to it.
        if code.is_some() {
            fields.error(status(code).1);
        }
    });
}

/// OpenTelemetry's conventions for RPCs, and why it is kept.
fn rpc_attributes(observed: &Observed, reason: Reason, fields: &mut Fields<'_>) {
    fields.text("rpc.system", "grpc");
    fields.text("rpc.service", "inference.GRPCInferenceService");
    fields.text("rpc.method", observed.method.name());
    fields.count("rpc.grpc.status_code", u64::from(status(observed.code).0));
    fields.text("sconce.kept_for", reason.name());
    if observed.trace.sampled == Some(false) {
        // Its caller threw its own part away.
        fields.attribute("sconce.partial_trace", Value::Bool(true));
    }
}

/// What it is about.
fn about(observed: &Observed, fields: &mut Fields<'_>) {
    if observed.method == Method::Shadow {
        fields.attribute("sconce.shadow", Value::Bool(true));
    }
    if let Some((model, version)) = observed.named() {
        fields.text("sconce.model", model);
        if !version.is_empty() {
            fields.text("sconce.version", version);
        }
    }
    if let Some(id) = observed.prediction_id {
        fields.text("sconce.prediction_id", &id.to_string());
    }
    if let Some(variant) = &observed.variant {
        fields.text("sconce.variant", variant);
    }
    if let Some(tenant) = &observed.tenant {
        fields.text("sconce.tenant", tenant);
    }
}

/// A batch's span, with a link to each of its requests that is kept. `deadline` is the earliest of theirs.
pub(crate) fn of_batch(
    target: &Target,
    record: &ExecutionRecord,
    deadline: Option<Instant>,
    requests: &[SpanIds],
    clock: &Clock,
    spans: &mut Spans,
) {
    let (trace_id, span_id) = batch_ids(target.run, record.batch_id);
    let span = Span {
        trace_id,
        span_id,
        parent: 0,
        parent_is_remote: false,
        state: "",
        name: "batch",
        kind: Kind::Internal,
        start: clock.unix(record.started_at),
        end: clock.unix(record.finished_at.max(record.started_at)),
    };
    spans.add(&span, |fields| {
        fields.text("sconce.model", &target.model);
        fields.text("sconce.version", &target.version);
        fields.text("sconce.device", &target.device);
        fields.count("sconce.instance", record.instance as u64);
        fields.count("sconce.batch_id", record.batch_id);
        fields.count("sconce.batch.requests", record.batch_requests as u64);
        fields.count("sconce.batch.rows", record.batch_rows as u64);
        fields.count("sconce.batch.tokens", record.batch_tokens as u64);
        fields.count("sconce.batch.padding", record.batch_padding as u64);
        fields.text("sconce.batch.close_reason", record.close_reason.name());
        fields.count("sconce.batch.queue_depth", record.queue_depth as u64);
        if !record.paused.is_zero() {
            let paused = record.paused.as_secs_f64() * 1e3;
            fields.attribute("sconce.batch.paused_ms", Value::Double(paused));
        }
        if let Some(deadline) = deadline {
            let early = deadline.saturating_duration_since(record.finished_at).as_secs_f64();
            let late = record.finished_at.saturating_duration_since(deadline).as_secs_f64();
            fields.attribute("sconce.batch.deadline_slack_ms", Value::Double((early - late) * 1e3));
        }
        for (trace_id, span_id) in requests {
            fields.link(*trace_id, *span_id);
        }
        fields.dropped_links(record.batch_requests.saturating_sub(requests.len()) as u64);
    });
}

/// Whether a `tracestate` is one: it is passed on as it came, all of it or nothing. Its members may have blanks around them, or be
/// missing.
fn is_trace_state(text: &str) -> bool {
    let key = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    let value = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'=';
    let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    members.into_iter().all(|member| {
        member.split_once('=').is_some_and(|(name, text)| {
            name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
                && name.bytes().all(key)
                && !text.is_empty()
                && text.bytes().all(value)
        })
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::observed::tests::observed;
    use crate::traces::otlp::tests::{attribute, read};
    use opentelemetry_proto::tonic::trace::v1::Span as Read;
    use proptest::prelude::*;

    fn spans(observed: &Observed) -> Vec<Read> {
        let mut spans = Spans::default();
        of_request(observed, Reason::Ratio, &Clock::now(), &mut spans, &mut |_, _| {});
        read(&spans)
    }

    fn is_error(span: &Read) -> bool {
        span.status.as_ref().is_some_and(|status| status.code == 2)
    }

    #[test]
    fn children_tile_their_server_span() {
        let mut observed = observed();
        observed.trace.parent = Some(42);
        observed.trace.state = Some("a=1".into());
        let spans = spans(&observed);
        let (server, children) = spans.split_first().unwrap();
        assert_eq!(server.parent_span_id, 42u64.to_be_bytes());
        assert_eq!((server.flags, server.kind), (0x301, Kind::Server as i32));
        assert_eq!((server.trace_state.as_str(), server.events.len()), ("a=1", 1));
        assert_eq!(attribute(server, "rpc.grpc.status_code").as_deref(), Some("0"));
        assert_eq!(attribute(server, "sconce.model").as_deref(), Some("m"));
        let time = |span: &Read| span.end_time_unix_nano - span.start_time_unix_nano;
        assert_eq!(children.iter().map(time).sum::<u64>(), time(server));
        for child in children {
            assert_eq!((&child.parent_span_id, &child.trace_id), (&server.span_id, &server.trace_id));
            assert_eq!((child.flags, child.trace_state.as_str()), (0x101, "a=1"));
        }
        assert_eq!(spans.len() as u64, SPANS_A_REQUEST);
    }

    #[test]
    fn a_batch_and_its_requests_find_each_other() {
        let observed = observed();
        let (mut all, mut executed) = (Spans::default(), Vec::new());
        let clock = Clock::now();
        of_request(&observed, Reason::Ratio, &clock, &mut all, &mut |_, ids| executed.push(ids));
        let (target, record) = (observed.target.as_deref().unwrap(), observed.record.as_ref().unwrap());
        let deadline = record.finished_at - Duration::from_millis(3);
        of_batch(target, record, Some(deadline), &executed, &clock, &mut all);
        let spans = read(&all);
        let (batch, execute) = (&spans[6], spans.iter().find(|span| span.name == "execute").unwrap());
        assert_eq!(
            (&execute.links[0].span_id, &execute.links[0].trace_id),
            (&batch.span_id, &batch.trace_id)
        );
        assert_eq!(
            (&batch.links[0].span_id, &batch.links[0].trace_id),
            (&execute.span_id, &execute.trace_id)
        );
        assert_eq!(batch.dropped_links_count, 1, "one of its two requests was not kept");
        assert_eq!(attribute(batch, "sconce.batch.queue_depth").as_deref(), Some("9"));
        assert_eq!(attribute(batch, "sconce.batch.close_reason").as_deref(), Some("full"));
        let slack: f64 = attribute(batch, "sconce.batch.deadline_slack_ms").unwrap().parse().unwrap();
        assert!((slack + 3.0).abs() < 1e-9, "{slack}");
    }

    #[test]
    fn a_step_and_a_shadow_are_children_of_their_request() {
        let mut primary = observed();
        primary.trace.parent = Some(42);
        primary.record = None;
        let step = Observed { trace: primary.trace.child(), method: Method::Step, ..observed() };
        primary.steps.push(step);
        let spans = spans(&primary);
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        let own = ["inference.GRPCInferenceService/ModelInfer", "route", "execute"];
        let steps = ["step", "route", "prepare", "queue", "execute", "reply"];
        assert_eq!(names, [&own[..], &steps[..]].concat());
        assert_eq!((&spans[3].parent_span_id, spans[3].kind), (&spans[0].span_id, Kind::Internal as i32));
        assert!(spans[4..].iter().all(|stage| stage.parent_span_id == spans[3].span_id));
        assert_eq!((spans[2].links.len(), spans[7].links.len()), (0, 1), "what ran in a batch links to it");

        let shadow = Observed { trace: primary.trace.child(), method: Method::Shadow, ..observed() };
        let shadow = &self::spans(&shadow)[0];
        assert_eq!((&shadow.parent_span_id, &shadow.trace_id), (&spans[0].span_id, &spans[0].trace_id));
        assert_eq!((shadow.name.as_str(), &shadow.links[0].span_id), ("shadow", &spans[0].span_id));
        assert_eq!(attribute(shadow, "sconce.shadow").as_deref(), Some("true"));
        assert_eq!(attribute(shadow, "rpc.system"), None);
    }

    #[test]
    fn failures_stand_where_they_happened() {
        let mut observed = observed();
        (observed.executed, observed.code) = (false, Some(ErrorCode::Internal));
        let spans = spans(&observed);
        let failed: Vec<&str> =
            spans.iter().filter(|span| is_error(span)).map(|span| span.name.as_str()).collect();
        assert_eq!(failed, ["inference.GRPCInferenceService/ModelInfer", "execute"]);
        assert_eq!(attribute(&spans[0], "rpc.grpc.status_code").as_deref(), Some("13"));
        // A wrong request is its caller's failure, and no error of this server.
        observed.code = Some(ErrorCode::InvalidArgument);
        assert!(!is_error(&self::spans(&observed)[0]));
    }

    #[test]
    fn a_state_is_taken_whole() {
        for good in ["a=1, b@v=x y ,,", "", "0k*/_-=~"] {
            assert!(is_trace_state(good), "{good}");
        }
        for bad in ["a", "a=1,b", "A=1", "a=1=2", "=1", "a=", "a=\u{e9}", "-a=1"] {
            assert!(!is_trace_state(bad), "{bad}");
        }
    }

    proptest! {
        /// It comes from a caller, and this thread must live.
        #[test]
        fn any_state_is_taken_up_or_left(state in ".{0,512}") {
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
        assert_eq!(clock.unix(after) - clock.unix(before), 2_000_000_000);
        assert_eq!(unix(SystemTime::UNIX_EPOCH - second), 0);
    }
}
