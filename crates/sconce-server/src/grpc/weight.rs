//! What a message will take once it is decoded, found out before it is: two bytes on the wire can become hundreds in memory,
//! and the bound on bytes in flight must hold for those.

use bytes::Buf;
use sconce_core::{Error, Result};

/// Bytes of a decoded submessage of any kind, with the vector that holds it while it grows.
const SUBMESSAGE_BYTES: usize = 640;
/// The same for an element of a list of byte strings.
const STRING_BYTES: usize = 64;
/// How far packed integers and map entries swell, at most: a one-byte integer becomes eight, in a vector that doubles; an
/// entry of five bytes becomes a string, a value and their share of a tree.
const INTEGERS_SWELL: usize = 16;
const ENTRIES_SWELL: usize = 32;

/// Inputs, their contents and wanted outputs of a message, all together: each is cheap to send and costs work until it is
/// refused, and no model has as many.
const MAX_TENSORS: usize = 8192;

/// Bytes that decoding a `ModelInferRequest` takes beside the message itself, never less than it really does. A message that
/// is broken weighs what was read of it: decoding stops there as well.
///
/// # Errors
/// `InvalidArgument` for more inputs and outputs than any model has.
pub(crate) fn decoded_bytes(message: &[u8]) -> Result<usize> {
    let mut tensors = 0;
    let bytes = sum(message, |field, payload| {
        tensors += usize::from(matches!(field, 5..=7));
        match field {
            // Refused in the end: no need to look at them all.
            5..=7 if tensors > MAX_TENSORS => 0,
            // inputs
            5 => SUBMESSAGE_BYTES + sum(payload, input_field),
            // outputs: a name, parameters
            6 => SUBMESSAGE_BYTES + payload.len() * ENTRIES_SWELL,
            // raw contents stay where they are
            7 => STRING_BYTES,
            // parameters
            4 => payload.len() * ENTRIES_SWELL,
            _ => payload.len(),
        }
    });
    if tensors > MAX_TENSORS {
        return Err(Error::invalid(format!(
            "expected at most {MAX_TENSORS} inputs, contents and outputs all together, got {tensors}"
        )));
    }
    Ok(bytes)
}

fn input_field(field: u64, payload: &[u8]) -> usize {
    match field {
        // shape
        3 => payload.len() * INTEGERS_SWELL,
        4 => payload.len() * ENTRIES_SWELL,
        // contents
        5 => SUBMESSAGE_BYTES + sum(payload, contents_field),
        _ => payload.len(),
    }
}

fn contents_field(field: u64, payload: &[u8]) -> usize {
    match field {
        // floats are as wide on the wire as in memory
        6 | 7 => payload.len() * 2,
        8 => STRING_BYTES,
        _ => payload.len() * INTEGERS_SWELL,
    }
}

/// The sum of `weigh(field number, payload)` over the fields of a message. A field that is no length-delimited one has its
/// eight bytes, at most, for payload.
fn sum(mut message: &[u8], mut weigh: impl FnMut(u64, &[u8]) -> usize) -> usize {
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
            // Groups are not of this protocol.
            _ => break,
        };
        total = total.saturating_add(weigh(field, payload));
    }
    total
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
    fn broken_messages_end_the_count() {
        for broken in [
            &b"\x2a"[..],
            b"\x2a\xff",
            b"\x2a\x05abc",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0b",
        ] {
            assert_eq!(decoded_bytes(broken).unwrap(), 0, "{broken:?}");
        }
    }
}
