//! Spans as OTLP has them, written straight into the bytes of a message: the tree of messages that generated code would build
//! costs several times what a request's spans may cost.

/// What a span is to its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
    Producer = 4,
    Consumer = 5,
}

/// What every span has. Times are nanoseconds of the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    pub(crate) trace_id: u128,
    pub(crate) span_id: u64,
    /// 0: none.
    pub(crate) parent: u64,
    /// Whether another process made the parent.
    pub(crate) parent_is_remote: bool,
    pub(crate) state: &'a str,
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Spans that wait to be sent, as the repeated field of their scope. Its memory is used again after [`Spans::clear`].
#[derive(Debug, Default)]
pub(crate) struct Spans {
    bytes: Vec<u8>,
    count: usize,
    /// The span that is being written: its length goes before it.
    one: Vec<u8>,
}

/// A span being written: what it has beside the fields of [`Span`].
pub(crate) struct Fields<'a>(&'a mut Vec<u8>);

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Int(i64),
    Double(f64),
    Bool(bool),
}

impl Spans {
    pub(crate) fn add(&mut self, span: &Span<'_>, more: impl FnOnce(&mut Fields<'_>)) {
        let out = &mut self.one;
        out.clear();
        bytes(out, 1, &span.trace_id.to_be_bytes());
        bytes(out, 2, &span.span_id.to_be_bytes());
        if !span.state.is_empty() {
            bytes(out, 3, span.state.as_bytes());
        }
        if span.parent != 0 {
            bytes(out, 4, &span.parent.to_be_bytes());
        }
        bytes(out, 5, span.name.as_bytes());
        number(out, 6, span.kind as u64);
        fixed(out, 7, span.start);
        fixed(out, 8, span.end);
        more(&mut Fields(out));
        flags(out, 16, span.parent_is_remote);
        bytes(&mut self.bytes, 2, out);
        self.count += 1;
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// What they take in a message.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// An `ExportTraceServiceRequest` with all of them, after `room` bytes of 0.
    pub(crate) fn message(&self, head: &Head, room: usize) -> Vec<u8> {
        let scoped = head.scope.len() + self.bytes.len();
        let inner = head.resource.len() + 1 + varint_len(scoped as u64) + scoped;
        let mut out = Vec::with_capacity(room + 1 + varint_len(inner as u64) + inner);
        out.resize(room, 0);
        key(&mut out, 1, LENGTH);
        varint(&mut out, inner as u64);
        out.extend_from_slice(&head.resource);
        key(&mut out, 2, LENGTH);
        varint(&mut out, scoped as u64);
        out.extend_from_slice(&head.scope);
        out.extend_from_slice(&self.bytes);
        out
    }
}

/// What is the same in every message: who made its spans.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Head {
    /// For spans of a service with these attributes.
    pub(crate) fn new(attributes: &[(&str, &str)]) -> Self {
        let mut about = Vec::new();
        for (name, value) in attributes {
            attribute(&mut about, 1, name, Value::Text(value));
        }
        let (mut resource, mut scope, mut named) = (Vec::new(), Vec::new(), Vec::new());
        bytes(&mut resource, 1, &about);
        bytes(&mut named, 1, b"sconce");
        bytes(&mut scope, 1, &named);
        Self { resource, scope }
    }
}

impl Fields<'_> {
    pub(crate) fn attribute(&mut self, name: &str, value: Value<'_>) {
        attribute(self.0, 9, name, value);
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.attribute(name, Value::Text(value));
    }

    /// A count. What is more than the format can say becomes the most it can.
    pub(crate) fn count(&mut self, name: &str, value: u64) {
        self.attribute(name, Value::Int(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    pub(crate) fn event(&mut self, name: &str, at: u64) {
        self.nested(11, |out| {
            fixed(out, 1, at);
            bytes(out, 2, name.as_bytes());
        });
    }

    pub(crate) fn link(&mut self, trace_id: u128, span_id: u64) {
        self.nested(13, |out| {
            bytes(out, 1, &trace_id.to_be_bytes());
            bytes(out, 2, &span_id.to_be_bytes());
            flags(out, 6, false);
        });
    }

    /// How many links there would be beside those that are there.
    pub(crate) fn dropped_links(&mut self, count: u64) {
        if count > 0 {
            number(self.0, 14, count);
        }
    }

    /// The span is one of a failure.
    pub(crate) fn error(&mut self, message: &str) {
        self.nested(15, |out| {
            bytes(out, 2, message.as_bytes());
            number(out, 3, 2);
        });
    }

    /// A message of any length; most are of less than 128 bytes, whose length takes one.
    fn nested(&mut self, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
        key(self.0, field, LENGTH);
        let at = self.0.len();
        self.0.push(0);
        write(self.0);
        let length = self.0.len() - at - 1;
        if length < 0x80 {
            self.0[at] = length as u8;
        } else {
            let mut prefix = Vec::new();
            varint(&mut prefix, length as u64);
            self.0.splice(at..=at, prefix);
        }
    }
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

fn attribute(out: &mut Vec<u8>, field: u32, name: &str, value: Value<'_>) {
    let inner = match value {
        Value::Text(text) => 1 + varint_len(text.len() as u64) + text.len(),
        // A negative number takes ten bytes, as any other of 64 bits without a zero at its front.
        Value::Int(number) => 1 + varint_len(number as u64),
        Value::Double(_) => 9,
        Value::Bool(_) => 2,
    };
    let whole = 1 + varint_len(name.len() as u64) + name.len() + 1 + varint_len(inner as u64) + inner;
    key(out, field, LENGTH);
    varint(out, whole as u64);
    bytes(out, 1, name.as_bytes());
    key(out, 2, LENGTH);
    varint(out, inner as u64);
    match value {
        Value::Text(text) => bytes(out, 1, text.as_bytes()),
        Value::Bool(truth) => number(out, 2, u64::from(truth)),
        Value::Int(value) => number(out, 3, value as u64),
        Value::Double(value) => fixed(out, 4, value.to_bits()),
    }
}

/// The flags of a span or a link: sampled, and whether what it refers to is of another process.
fn flags(out: &mut Vec<u8>, field: u32, is_remote: bool) {
    let flags: u32 = 0x001 | 0x100 | if is_remote { 0x200 } else { 0 };
    key(out, field, FIXED32);
    out.extend_from_slice(&flags.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(out, field, LENGTH);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    key(out, field, VARINT);
    varint(out, value);
}

fn fixed(out: &mut Vec<u8>, field: u32, value: u64) {
    key(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

fn key(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    varint(out, u64::from(field << 3 | wire_type));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value;
    use opentelemetry_proto::tonic::trace::v1 as otlp;
    use proptest::prelude::*;
    use prost::Message as _;

    /// What a collector makes of a message.
    pub(crate) fn decode(message: &[u8]) -> Vec<otlp::Span> {
        let request = ExportTraceServiceRequest::decode(message).unwrap();
        let [resource] = &request.resource_spans[..] else { panic!("{request:?}") };
        let about = resource.resource.as_ref().unwrap();
        assert_eq!(about.attributes[0].key, "service.name");
        let [scope] = &resource.scope_spans[..] else { panic!("{resource:?}") };
        assert_eq!(scope.scope.as_ref().unwrap().name, "sconce");
        scope.spans.clone()
    }

    /// What a collector makes of spans.
    pub(crate) fn read(spans: &Spans) -> Vec<otlp::Span> {
        decode(&spans.message(&Head::new(&[("service.name", "test")]), 0))
    }

    /// An attribute as text.
    pub(crate) fn attribute(span: &otlp::Span, name: &str) -> Option<String> {
        let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
        Some(match found.value.as_ref()?.value.as_ref()? {
            any_value::Value::StringValue(text) => text.clone(),
            any_value::Value::IntValue(number) => number.to_string(),
            any_value::Value::DoubleValue(number) => number.to_string(),
            any_value::Value::BoolValue(truth) => truth.to_string(),
            other => panic!("{other:?}"),
        })
    }

    fn span<'a>(name: &'a str, state: &'a str) -> Span<'a> {
        Span {
            trace_id: 1 << 100,
            span_id: 7,
            parent: 9,
            parent_is_remote: true,
            state,
            name,
            kind: Kind::Server,
            start: 5,
            end: u64::MAX,
        }
    }

    proptest! {
        /// The encoder of the reference is generated from the protocol: it is the judge.
        #[test]
        fn what_is_written_is_read_back(
            name in ".{0,200}",
            state in "[a-z=]{0,512}",
            (key, text) in (".{0,40}", ".{0,300}"),
            number in any::<i64>(),
            double in any::<f64>(),
            (links, dropped) in (0u64..200, any::<u32>()),
        ) {
            let mut spans = Spans::default();
            for _ in 0..2 {
                spans.clear();
                spans.add(&Span { parent: 0, parent_is_remote: false, ..span("other", "") }, |_| {});
                spans.add(&span(&name, &state), |fields| {
                    fields.text(&key, &text);
                    fields.attribute("number", Value::Int(number));
                    fields.attribute("double", Value::Double(double));
                    fields.attribute("truth", Value::Bool(true));
                    fields.event(&text, 3);
                    (1..=links).for_each(|id| fields.link(u128::from(id) << 64, id));
                    fields.dropped_links(u64::from(dropped));
                    fields.error(&text);
                });
            }
            prop_assert_eq!(spans.count(), 2);
            let read = read(&spans);
            let [plain, full] = &read[..] else { panic!("{read:?}") };
            prop_assert!(plain.parent_span_id.is_empty() && plain.links.is_empty() && plain.status.is_none());
            prop_assert_eq!((plain.flags, full.flags), (0x101, 0x301));
            prop_assert_eq!((&full.name, &full.trace_state), (&name, &state));
            prop_assert_eq!(&full.trace_id, &(1u128 << 100).to_be_bytes());
            prop_assert_eq!((&full.span_id[7], &full.parent_span_id[7]), (&7, &9));
            prop_assert_eq!((full.kind, full.start_time_unix_nano, full.end_time_unix_nano), (2, 5, u64::MAX));
            prop_assert_eq!(attribute(full, "number"), Some(number.to_string()));
            prop_assert_eq!(attribute(full, "double"), Some(double.to_string()));
            prop_assert_eq!(attribute(full, "truth"), Some("true".to_owned()));
            prop_assert_eq!(&full.attributes[0].key, &key);
            prop_assert_eq!((&full.events[0].name, full.events[0].time_unix_nano), (&text, 3));
            prop_assert_eq!((full.links.len() as u64, full.dropped_links_count), (links, dropped));
            prop_assert!(full.links.iter().zip(1..).all(|(link, id)| link.span_id == u64::to_be_bytes(id)));
            let status = full.status.as_ref().unwrap();
            prop_assert_eq!((&status.message, status.code), (&text, 2));
        }
    }
}
