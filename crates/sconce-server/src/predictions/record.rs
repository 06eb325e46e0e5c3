use crate::content::Kept;
use crate::traffic::RouteKey;
use sconce_core::{DataType, PredictionId, Tensor};
use sconce_telemetry::traces::RequestTrace;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One prediction as it is logged.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: PredictionId,
    /// The request's place in its trace.
    pub(crate) trace: RequestTrace,
    /// When the request came.
    pub(crate) at: SystemTime,
    pub(crate) model: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) variant: Option<Arc<str>>,
    pub(crate) tenant: Option<Arc<str>>,
    /// The status' name, `OK` for an answer.
    pub(crate) status: &'static str,
    pub(crate) latency: Duration,
    pub(crate) inputs: Vec<Kept>,
    pub(crate) outputs: Vec<Kept>,
    /// `deferred` or `suggested`, where people decide.
    pub(crate) review: Option<&'static str>,
    pub(crate) request: Request,
}

/// What was asked beside the tensors: with them, what the same request takes to be made again.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// The version as it was asked for: a number, an alias, or nothing.
    pub(crate) version: String,
    /// The priority, if it is not the default.
    pub(crate) priority: Option<u8>,
    /// How long its caller gave it.
    pub(crate) timeout: Option<Duration>,
    /// How many inputs it had, kept or not.
    pub(crate) inputs: usize,
    /// What it said where its route looks, as far as that may be kept.
    pub(crate) keys: Vec<RouteKey>,
}

/// A tensor's elements in the widest type of their kind, which holds each of them exactly.
#[derive(Debug, PartialEq)]
pub(crate) enum Values<'a> {
    Floats(Vec<f64>),
    Ints(Vec<i64>),
    /// Booleans among them: 0 and 1.
    Uints(Vec<u64>),
    Bytes(Vec<&'a [u8]>),
}

/// What a record holds beside its tensors, about.
const RECORD_BYTES: usize = 256;

impl Record {
    /// Bytes it holds in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let keys =
            self.request.keys.iter().map(|key| size_of::<RouteKey>() + key.name.len() + key.value.len());
        let tensors = self.inputs.iter().chain(&self.outputs).map(Kept::bytes);
        RECORD_BYTES + tensors.chain(keys).sum::<usize>()
    }

    /// Microseconds since 1970.
    pub(super) fn at_us(&self) -> i64 {
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    /// Its time on the server.
    pub(super) fn latency_us(&self) -> i64 {
        i64::try_from(self.latency.as_micros()).unwrap_or(i64::MAX)
    }

    /// One document. Numbers that JSON has not are the strings `NaN`, `Infinity` and `-Infinity`; BYTES are text, or, where an
    /// element of the tensor is no UTF-8, hexadecimal digits, and then `encoding` says so.
    pub(super) fn to_json(&self) -> Value {
        let tensors = |kept: &[Kept]| kept.iter().map(tensor).collect::<Vec<_>>();
        let Request { version, priority, inputs, keys, .. } = &self.request;
        let key = |key: &RouteKey| json!({ "from": key.from, "name": key.name, "value": key.value });
        json!({
            "prediction_id": self.id.to_string(),
            "time": utc(self.at),
            "model": &*self.model,
            "version": self.version.parse::<u64>().ok(),
            "variant": self.variant.as_deref(),
            "tenant": self.tenant.as_deref(),
            "status": self.status,
            "latency_us": self.latency_us(),
            "inputs": tensors(&self.inputs),
            "outputs": tensors(&self.outputs),
            "review": self.review,
            "request": {
                "version": version,
                "priority": priority,
                "timeout_us": self.request.timeout_us(),
                "inputs": inputs,
                "keys": keys.iter().map(key).collect::<Vec<_>>(),
            },
        })
    }
}

impl Request {
    /// How long its caller gave it, in microseconds.
    pub(super) fn timeout_us(&self) -> Option<i64> {
        self.timeout.map(|timeout| i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX))
    }
}

fn tensor(kept: &Kept) -> Value {
    let mut document =
        json!({ "name": kept.name(), "datatype": kept.datatype().name(), "shape": kept.shape() });
    let values: Option<Vec<Value>> = kept.tensor().map(|tensor| match Values::of(tensor) {
        Values::Floats(values) => values.into_iter().map(float).collect(),
        Values::Ints(values) => values.into_iter().map(Value::from).collect(),
        Values::Uints(values) if tensor.datatype() == DataType::Bool => {
            values.into_iter().map(|value| Value::from(value != 0)).collect()
        }
        Values::Uints(values) => values.into_iter().map(Value::from).collect(),
        Values::Bytes(values) => {
            let texts: Option<Vec<Value>> =
                values.iter().map(|bytes| std::str::from_utf8(bytes).ok().map(Value::from)).collect();
            texts.unwrap_or_else(|| {
                document["encoding"] = Value::from("hex");
                values.into_iter().map(|bytes| Value::from(hex(bytes))).collect()
            })
        }
    });
    document["values"] = Value::from(values);
    document
}

fn float(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(
        || {
            let name = if value.is_nan() {
                "NaN"
            } else if value > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            };
            Value::from(name)
        },
        Value::Number,
    )
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

impl<'a> Values<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Self {
        fn each<T, const SIZE: usize>(tensor: &Tensor, value: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
            tensor.data().as_chunks::<SIZE>().0.iter().map(|bytes| value(*bytes)).collect()
        }
        match tensor.datatype() {
            DataType::Bool | DataType::Uint8 => Self::Uints(each(tensor, |b: [u8; 1]| b[0].into())),
            DataType::Uint16 => Self::Uints(each(tensor, |b| u16::from_le_bytes(b).into())),
            DataType::Uint32 => Self::Uints(each(tensor, |b| u32::from_le_bytes(b).into())),
            DataType::Uint64 => Self::Uints(each(tensor, u64::from_le_bytes)),
            DataType::Int8 => Self::Ints(each(tensor, |b| i8::from_le_bytes(b).into())),
            DataType::Int16 => Self::Ints(each(tensor, |b| i16::from_le_bytes(b).into())),
            DataType::Int32 => Self::Ints(each(tensor, |b| i32::from_le_bytes(b).into())),
            DataType::Int64 => Self::Ints(each(tensor, i64::from_le_bytes)),
            DataType::Fp16 => Self::Floats(each(tensor, |b| half::f16::from_le_bytes(b).into())),
            DataType::Bf16 => Self::Floats(each(tensor, |b| half::bf16::from_le_bytes(b).into())),
            DataType::Fp32 => Self::Floats(each(tensor, |b| f32::from_le_bytes(b).into())),
            DataType::Fp64 => Self::Floats(each(tensor, f64::from_le_bytes)),
            DataType::Bytes => Self::Bytes(tensor.bytes_elements().collect()),
        }
    }
}

/// `time` as RFC 3339 has it, in UTC, to the microsecond. Days to a date as in Howard Hinnant's `civil_from_days`.
pub(crate) fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        let of = |micros| utc(UNIX_EPOCH + Duration::from_micros(micros));
        assert_eq!(of(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(of(951_782_399_999_999), "2000-02-28T23:59:59.999999Z");
        assert_eq!(of(951_868_799_000_001), "2000-02-29T23:59:59.000001Z");
        assert_eq!(of(1_796_083_200_000_000), "2026-12-01T00:00:00.000000Z");
    }

    #[test]
    fn what_json_has_no_number_for_is_text() {
        assert_eq!([f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(float), ["NaN", "Infinity", "-Infinity"]);
        assert_eq!(float(0.25), 0.25);
        assert_eq!(hex(&[0, 0xff, 0x1a]), "00ff1a");
    }
}
