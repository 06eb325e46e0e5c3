//! The trace a call belongs to: W3C trace context and B3, read from its headers.
//!
//! Both are read strictly: what is malformed is treated as absent, as their specifications ask. A caller gets no error for it.

use std::sync::Arc;

/// The longest `tracestate` that is taken up, in bytes: what the specification asks everybody to be able to pass on.
const MAX_STATE_BYTES: usize = 512;

/// A request's place in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestTrace {
    /// The trace's id, the caller's or our own. Never 0.
    pub trace_id: u128,
    /// The id of the request's own span here. Never 0.
    pub span_id: u64,
    /// The caller's span, if it named one. Never 0.
    pub parent: Option<u64>,
    /// Whether the caller keeps the trace; `None` leaves it to this server.
    pub sampled: Option<bool>,
    /// Whether this server keeps it, whatever becomes of the request.
    pub kept: bool,
    /// Whether the caller spoke B3.
    pub b3: bool,
    /// The caller's `tracestate`, as it came.
    pub state: Option<Arc<str>>,
}

/// What a caller says of the trace its call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TraceParent {
    /// The trace and the caller's span in it, neither of them 0.
    ids: Option<(u128, u64)>,
    sampled: Option<bool>,
}

impl RequestTrace {
    /// A request's place, by the headers of its call: `header` gives the one value of a name in lower case, or nothing when
    /// there is none, or more than one. Allocates only for a `tracestate`.
    pub fn of_call<'a>(header: impl Fn(&'static str) -> Option<&'a [u8]>) -> Self {
        let w3c = header("traceparent").and_then(w3c);
        let state = w3c.and_then(|_| header("tracestate")).and_then(state);
        let b3 = if w3c.is_some() { None } else { b3(&header) };
        let said = w3c.or(b3).unwrap_or_default();
        let mut trace = Self { b3: b3.is_some(), ..Self::new(said.sampled) };
        if let Some((trace_id, parent)) = said.ids {
            (trace.trace_id, trace.parent) = (trace_id, Some(parent));
        }
        Self { state, ..trace }
    }

    /// A trace of its own.
    pub fn new(sampled: Option<bool>) -> Self {
        // Ids need to be different, not secret.
        Self {
            trace_id: fastrand::u128(1..),
            span_id: fastrand::u64(1..),
            parent: None,
            sampled,
            kept: false,
            b3: false,
            state: None,
        }
    }

    /// Another request of the same call, such as the next message of a stream.
    #[must_use]
    pub fn sibling(&self) -> Self {
        let trace_id = if self.parent.is_some() { self.trace_id } else { fastrand::u128(1..) };
        Self { trace_id, span_id: fastrand::u64(1..), ..self.clone() }
    }

    /// A part of this request: its span is the parent.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: fastrand::u64(1..), parent: Some(self.span_id), ..self.clone() }
    }

    /// The headers of a call made on this request's behalf: `traceparent`, with `tracestate` if there is one, and `b3` for those who
    /// spoke that. They say that the trace is kept if the caller or this server keeps it.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let keep = u8::from(self.kept || self.sampled == Some(true));
        let (trace_id, span_id) = (self.trace_id, self.span_id);
        let parent = ("traceparent", format!("00-{trace_id:032x}-{span_id:016x}-{keep:02x}"));
        let state = self.state.as_ref().map(|state| ("tracestate", state.to_string()));
        let b3 = self.b3.then(|| ("b3", format!("{trace_id:032x}-{span_id:016x}-{keep}")));
        [parent].into_iter().chain(state).chain(b3)
    }
}

/// `00-TRACE-SPAN-FLAGS`. Of a later version the same part is read, and what follows it is not.
fn w3c(value: &[u8]) -> Option<TraceParent> {
    let (head, rest) = value.split_at_checked(55)?;
    let [v0, v1, b'-', ids @ .., b'-', f0, f1] = head else { return None };
    let version = hex(&[*v0, *v1])?;
    let fits = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    let (trace, span) = (ids.get(..32)?, ids.get(33..)?);
    if !fits || ids.get(32) != Some(&b'-') {
        return None;
    }
    let flags = hex(&[*f0, *f1])?;
    Some(TraceParent { ids: Some(pair(trace, span)?), sampled: Some(flags & 1 == 1) })
}

/// The single header `b3`, or else the `x-b3-` ones.
fn b3<'a>(header: &impl Fn(&'static str) -> Option<&'a [u8]>) -> Option<TraceParent> {
    if let Some(value) = header("b3") {
        return b3_single(value);
    }
    let ids = match (header("x-b3-traceid"), header("x-b3-spanid")) {
        (Some(trace), Some(span)) => Some(pair(trace, span)?),
        (None, None) => None,
        _ => return None,
    };
    let sampled = match (header("x-b3-flags"), header("x-b3-sampled")) {
        (Some(b"1"), _) => Some(true),
        // Early writers spelled the decision out.
        (_, Some(b"1" | b"true")) => Some(true),
        (_, Some(b"0" | b"false")) => Some(false),
        (_, Some(_)) => return None,
        (_, None) => None,
    };
    (ids.is_some() || sampled.is_some()).then_some(TraceParent { ids, sampled })
}

/// `TRACE-SPAN`, `TRACE-SPAN-DECISION`, `TRACE-SPAN-DECISION-PARENT`, or a decision alone.
fn b3_single(value: &[u8]) -> Option<TraceParent> {
    let decision = |text: &[u8]| match text {
        b"0" => Some(false),
        b"1" | b"d" => Some(true),
        _ => None,
    };
    let mut parts = value.split(|byte| *byte == b'-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        return Some(TraceParent { ids: None, sampled: Some(decision(first)?) });
    };
    let sampled = parts.next().map(|text| decision(text).ok_or(())).transpose().ok()?;
    if let Some(parent) = parts.next() {
        id::<16>(parent)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(TraceParent { ids: Some(pair(first, span)?), sampled })
}

/// A trace id of 16 or 32 digits and a span id of 16, neither of them 0.
fn pair(trace: &[u8], span: &[u8]) -> Option<(u128, u64)> {
    let trace = id::<32>(trace).or_else(|| id::<16>(trace))?;
    let span = u64::try_from(id::<16>(span)?).ok()?;
    Some((trace, span))
}

fn id<const DIGITS: usize>(text: &[u8]) -> Option<u128> {
    hex(<&[u8; DIGITS]>::try_from(text).ok()?).filter(|id| *id != 0)
}

/// Lower-case digits only, as both specifications say. At most 32.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn state(value: &[u8]) -> Option<Arc<str>> {
    let text = std::str::from_utf8(value).ok()?;
    let fits = !text.is_empty() && text.len() <= MAX_STATE_BYTES;
    (fits && text.bytes().all(|b| (b' '..=b'~').contains(&b))).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
    const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const B3: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

    fn of(headers: &[(&str, &str)]) -> RequestTrace {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        RequestTrace::of_call(|name| {
            let mut values = headers.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_bytes());
            values.next().filter(|_| values.next().is_none())
        })
    }

    fn taken(trace: &RequestTrace) -> Option<(u128, u64)> {
        trace.parent.map(|parent| (trace.trace_id, parent))
    }

    #[test]
    fn each_form_is_taken_up() {
        let flagged = |sampled| (Some((TRACE, SPAN)), sampled);
        let said = |headers: &[(&str, &str)]| {
            let trace = of(headers);
            (taken(&trace), trace.sampled)
        };
        assert_eq!(said(&[("traceparent", W3C)]), flagged(Some(true)));
        assert_eq!(said(&[("traceparent", &W3C.replace("-01", "-00"))]), flagged(Some(false)));
        assert_eq!(
            said(&[("traceparent", &W3C.replace("00-4", "cc-4").replace("-01", "-ff-more"))]),
            flagged(Some(true))
        );
        assert_eq!(said(&[("b3", B3)]), flagged(None));
        assert_eq!(said(&[("b3", &format!("{B3}-1"))]), flagged(Some(true)));
        assert_eq!(said(&[("b3", &format!("{B3}-d-00f067aa0ba902b7"))]), flagged(Some(true)));
        assert_eq!(said(&[("b3", &format!("{B3}-0"))]), flagged(Some(false)));
        assert_eq!(said(&[("b3", "0")]), (None, Some(false)));
        assert_eq!(
            said(&[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7")]),
            (Some((0xa3ce_929d_0e0e_4736, SPAN)), None)
        );
        let (trace, span) = B3.split_once('-').unwrap();
        let multi = [("x-b3-traceid", trace), ("x-b3-spanid", span)];
        assert_eq!(said(&multi), flagged(None));
        assert_eq!(said(&[&multi[..], &[("x-b3-sampled", "0")]].concat()), flagged(Some(false)));
        assert_eq!(said(&[&multi[..], &[("x-b3-flags", "1")]].concat()), flagged(Some(true)));
        // The specification's own form goes first.
        assert_eq!(
            said(&[("b3", "0"), ("traceparent", W3C)]),
            flagged(Some(true)),
            "W3C and B3 disagree, and the former counts"
        );
    }

    #[test]
    fn what_is_malformed_is_absent() {
        let zeros = W3C.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        for bad in [
            "",
            "00",
            &W3C[..54],
            &format!("{W3C}0"),
            &format!("{W3C}-00"),
            &W3C.to_uppercase(),
            &W3C.replacen("00", "ff", 1),
            &W3C.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &W3C.replace('-', "_"),
            &W3C.replace("4bf9", "4bg9"),
            &zeros,
        ] {
            assert_eq!(taken(&of(&[("traceparent", bad)])), None, "{bad:?}");
        }
        for bad in ["", "2", "dd", "-", "--", "-1", "1-", &B3[1..], &format!("{B3}-"), &format!("{B3}-1-0-0")]
        {
            let trace = of(&[("b3", bad)]);
            assert_eq!((taken(&trace), trace.sampled), (None, None), "{bad:?}");
        }
        let (trace, span) = B3.split_once('-').unwrap();
        assert_eq!(taken(&of(&[("x-b3-traceid", trace)])), None, "a trace without a span");
        assert_eq!(of(&[("x-b3-spanid", span), ("x-b3-sampled", "1")]).sampled, None);
        assert_eq!(taken(&of(&[("traceparent", W3C), ("traceparent", W3C)])), None, "said twice");
    }

    #[test]
    fn a_state_comes_with_its_parent_alone_and_within_bounds() {
        let state = |headers: &[(&str, &str)]| of(headers).state;
        assert_eq!(state(&[("traceparent", W3C), ("tracestate", "a=1,b=2")]).as_deref(), Some("a=1,b=2"));
        assert_eq!(state(&[("tracestate", "a=1")]), None);
        assert_eq!(state(&[("traceparent", W3C), ("tracestate", &"a".repeat(513))]), None);
        assert_eq!(state(&[("traceparent", W3C), ("tracestate", "a=\u{e9}")]), None);
    }

    #[test]
    fn messages_of_a_stream_share_their_callers_trace_and_no_other() {
        let called = of(&[("traceparent", W3C)]);
        let next = called.sibling();
        assert_eq!((next.trace_id, next.parent), (TRACE, Some(SPAN)));
        assert_ne!(next.span_id, called.span_id);
        let own = RequestTrace::new(None);
        assert_ne!(own.sibling().trace_id, own.trace_id);
    }

    proptest! {
        #[test]
        fn what_goes_out_comes_back(trace_id in 1u128.., span_id in 1u64.., keep: bool) {
            let trace = RequestTrace { trace_id, span_id, kept: keep, b3: true, ..RequestTrace::new(None) };
            for (name, value) in trace.headers() {
                let back = of(&[(name, &value)]);
                prop_assert_eq!(taken(&back), Some((trace_id, span_id)));
                prop_assert_eq!((back.sampled, back.b3), (Some(keep), name == "b3"));
            }
        }

        #[test]
        fn no_header_breaks_it(name in 0usize..6, value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let names = ["traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"];
            let trace = RequestTrace::of_call(|wanted| (wanted == names[name]).then_some(&value[..]));
            prop_assert!(trace.trace_id != 0 && trace.span_id != 0);
        }

        /// Near misses: one byte of a good header is another.
        #[test]
        fn a_header_is_taken_whole_or_not_at_all(at in 0usize..55, byte: u8) {
            let mut value = W3C.as_bytes().to_vec();
            value[at] = byte;
            let trace = RequestTrace::of_call(|wanted| (wanted == "traceparent").then_some(&value[..]));
            let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            let still_good = match at {
                2 | 35 | 52 => byte == b'-',
                0 | 1 => lower_hex(byte) && &value[..2] != b"ff",
                _ => lower_hex(byte),
            };
            prop_assert_eq!(taken(&trace).is_some(), still_good);
        }
    }
}
