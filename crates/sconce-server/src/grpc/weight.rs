//! What a message will take once it is decoded, found out before it is: two bytes on the wire can become hundreds in memory,
//! and the bound on bytes in flight must hold for those.

use bytes::Buf;
use sconce_core::{Error, Result};

/// Bytes of a decoded submessage of any kind, with the vector that holds it while it grows.
const SUBMESSAGE_BYTES: usize = 640;
/// The same for an element of a list of byte strings.
const STRING_BYTES: usize = 64;
/// How far map entries and shapes swell, at most: an entry of five bytes becomes a string, a value and their share of a tree; a
/// one-byte integer of a shape eight bytes, in a vector that doubles.
const ENTRIES_SWELL: usize = 32;
const SHAPE_SWELL: usize = 16;
/// How far a one-byte value of typed contents swells: to its own width, in a vector that doubles, and once more in the raw
/// layout.
const BOOLS_SWELL: usize = 4;
const INTEGERS_SWELL: usize = 12;
const LONG_INTEGERS_SWELL: usize = 24;
/// Floats are as wide on the wire.
const FLOATS_SWELL: usize = 3;

/// Inputs, their contents and wanted outputs of a message, all together: each is cheap to send and costs work until it is
/// refused, and no model has as many.
const MAX_TENSORS: usize = 8192;

/// Bytes that decoding and converting a `ModelInferRequest` takes beside the message itself, never less than it really does. A
/// message that breaks off weighs what was read of it: decoding stops there as well.
///
/// # Errors
/// `InvalidArgument` for more inputs and outputs than any model has, and for groups: this protocol has none, but a decoder
/// would read on behind one.
pub(crate) fn decoded_bytes(message: &[u8]) -> Result<usize> {
    let mut tensors = 0;
    let bytes = sum(message, |field, payload| {
        tensors += usize::from(matches!(field, 5..=7));
        Ok(match field {
            // Refused in the end: no need to look at them all.
            5..=7 if tensors > MAX_TENSORS => 0,
            // inputs
            5 => SUBMESSAGE_BYTES + sum(payload, input_field)?,
            // outputs: a name, parameters
            6 => SUBMESSAGE_BYTES + payload.len() * ENTRIES_SWELL,
            // raw contents stay where they are
            7 => STRING_BYTES,
            // parameters
            4 => payload.len() * ENTRIES_SWELL,
            _ => payload.len(),
        })
    })?;
    if tensors > MAX_TENSORS {
        return Err(Error::invalid(format!(
            "expected at most {MAX_TENSORS} inputs, contents and outputs all together, got {tensors}"
        )));
    }
    Ok(bytes)
}

fn input_field(field: u64, payload: &[u8]) -> Result<usize> {
    Ok(match field {
        // shape
        3 => payload.len() * SHAPE_SWELL,
        4 => payload.len() * ENTRIES_SWELL,
        // contents
        5 => SUBMESSAGE_BYTES + sum(payload, contents_field)?,
        _ => payload.len(),
    })
}

fn contents_field(field: u64, payload: &[u8]) -> Result<usize> {
    Ok(match field {
        1 => payload.len() * BOOLS_SWELL,
        2 | 4 => payload.len() * INTEGERS_SWELL,
        6 | 7 => payload.len() * FLOATS_SWELL,
        8 => STRING_BYTES + payload.len(),
        _ => payload.len() * LONG_INTEGERS_SWELL,
    })
}

/// The sum of `weigh(field number, payload)` over the fields of a message. A field that is no length-delimited one has its
/// eight bytes, at most, for payload.
fn sum(mut message: &[u8], mut weigh: impl FnMut(u64, &[u8]) -> Result<usize>) -> Result<usize> {
    let mut total = 0usize;
    while let Some(tag) = varint(&mut message) {
        let (field, payload) = match tag & 7 {
            0 => {
                if varint(&mut message).is_none() {
                    break;
                }
                (tag >> 3, &[0; 8][..])
            }
            1 | 5 => {
                let width = if tag & 7 == 1 { 8 } else { 4 };
                let Some((payload, rest)) = message.split_at_checked(width) else { break };
                message = rest;
                (tag >> 3, payload)
            }
            2 => {
                let len = varint(&mut message).and_then(|len| usize::try_from(len).ok());
                let Some((payload, rest)) = len.and_then(|len| message.split_at_checked(len)) else { break };
                message = rest;
                (tag >> 3, payload)
            }
            other => {
                let message =
                    format!("the message is no ModelInferRequest: a field has the wire type {other}");
                return Err(Error::invalid(message));
            }
        };
        total = total.saturating_add(weigh(field, payload)?);
    }
    Ok(total)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = message.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use sconce_proto::inference::model_infer_request::InferInputTensor;
    use sconce_proto::inference::{InferTensorContents, ModelInferRequest};

    #[test]
    fn an_ordinary_request_weighs_little() {
        let input = InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1, 16],
            ..InferInputTensor::default()
        };
        let raw = ModelInferRequest {
            inputs: vec![input],
            raw_input_contents: vec![vec![0; 1 << 20].into()],
            ..ModelInferRequest::default()
        };
        assert!(decoded_bytes(&raw.encode_to_vec()).unwrap() < 2048);
    }

    #[test]
    fn what_swells_is_weighed_before_it_does() {
        let mut swollen = ModelInferRequest::default();
        swollen.inputs.resize(1000, InferInputTensor::default());
        assert!(decoded_bytes(&swollen.encode_to_vec()).unwrap() >= 1000 * size_of::<InferInputTensor>() * 2);
        let strings = InferTensorContents {
            bytes_contents: vec![bytes::Bytes::new(); 1000],
            int64_contents: vec![1; 1000],
            ..Default::default()
        };
        let input = InferInputTensor { contents: Some(strings), ..InferInputTensor::default() };
        let typed = ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() };
        let held = 1000 * (size_of::<bytes::Bytes>() + size_of::<i64>());
        assert!(decoded_bytes(&typed.encode_to_vec()).unwrap() >= 2 * held);
    }

    #[test]
    fn more_tensors_than_any_model_has_are_refused() {
        let message = |tensors| b"\x2a\x00".repeat(tensors);
        assert!(decoded_bytes(&message(MAX_TENSORS)).is_ok());
        let error = decoded_bytes(&message(MAX_TENSORS + 1)).unwrap_err();
        assert_eq!(error.code(), sconce_core::ErrorCode::InvalidArgument);
    }

    #[test]
    fn nothing_hides_behind_a_group() {
        // Start and end of a group in field 15, which a decoder skips; then an empty input.
        let hidden = b"\x7b\x7c\x2a\x00";
        assert_eq!(ModelInferRequest::decode(&hidden[..]).unwrap().inputs.len(), 1);
        let in_input = [&[0x2a, 4][..], b"\x7b\x7c\x18\x01"].concat();
        let in_contents = [&[0x2a, 6, 0x2a, 4][..], b"\x7b\x7c\x10\x01"].concat();
        for message in [&hidden[..], &in_input, &in_contents, b"\x0b", b"\x0c", b"\x0e", b"\x0f"] {
            let error = decoded_bytes(message).unwrap_err();
            assert_eq!(error.code(), sconce_core::ErrorCode::InvalidArgument, "{message:?}");
        }
    }

    #[test]
    fn broken_messages_end_the_count() {
        for broken in
            [&b"\x2a"[..], b"\x2a\xff", b"\x2a\x05abc", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert_eq!(decoded_bytes(broken).unwrap(), 0, "{broken:?}");
        }
    }
}
