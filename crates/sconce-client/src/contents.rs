//! Typed contents of tensors: what a message carries in place of raw bytes.

use crate::proto::InferTensorContents;
use bytes::{BufMut as _, Bytes, BytesMut};
use sconce_core::{DataType, Error, Result};

/// Typed contents as raw bytes.
///
/// # Errors
/// `InvalidArgument` where another field than that of `datatype` is filled, it has none, or a value is out of its range.
pub fn raw_bytes(datatype: DataType, contents: InferTensorContents) -> Result<Bytes> {
    let InferTensorContents {
        bool_contents: bools,
        int_contents: ints,
        int64_contents: int64s,
        uint_contents: uints,
        uint64_contents: uint64s,
        fp32_contents: fp32s,
        fp64_contents: fp64s,
        bytes_contents: strings,
    } = contents;
    let fields = [
        ("bool_contents", bools.len()),
        ("int_contents", ints.len()),
        ("int64_contents", int64s.len()),
        ("uint_contents", uints.len()),
        ("uint64_contents", uint64s.len()),
        ("fp32_contents", fp32s.len()),
        ("fp64_contents", fp64s.len()),
        ("bytes_contents", strings.len()),
    ];
    let expected = typed_field(datatype)
        .ok_or_else(|| Error::invalid(format!("{datatype} has no typed contents: send it raw")))?;
    if let Some((other, _)) = fields.iter().find(|(field, len)| *len > 0 && *field != expected) {
        return Err(Error::invalid(format!("{datatype} travels in {expected}, got {other}")));
    }
    let out_of_range = || Error::invalid(format!("a value is out of range for {datatype}"));
    Ok(match datatype {
        DataType::Bool => bools.into_iter().map(u8::from).collect::<Vec<_>>().into(),
        DataType::Int8 => narrow::<i8, _, 1>(&ints, i8::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Int16 => narrow::<i16, _, 2>(&ints, i16::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Int32 => narrow::<i32, _, 4>(&ints, i32::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Uint8 => narrow::<u8, _, 1>(&uints, u8::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Uint16 => narrow::<u16, _, 2>(&uints, u16::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Uint32 => narrow::<u32, _, 4>(&uints, u32::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Int64 => narrow::<i64, _, 8>(&int64s, i64::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Uint64 => narrow::<u64, _, 8>(&uint64s, u64::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Fp32 => narrow::<f32, _, 4>(&fp32s, f32::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Fp64 => narrow::<f64, _, 8>(&fp64s, f64::to_le_bytes).ok_or_else(out_of_range)?,
        DataType::Bytes => bytes_data(strings.iter().map(|string| &string[..])),
        DataType::Fp16 | DataType::Bf16 => Bytes::new(),
    })
}

/// The field of [`InferTensorContents`] that holds this datatype, if one does.
pub fn typed_field(datatype: DataType) -> Option<&'static str> {
    Some(match datatype {
        DataType::Bool => "bool_contents",
        DataType::Int8 | DataType::Int16 | DataType::Int32 => "int_contents",
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => "uint_contents",
        DataType::Int64 => "int64_contents",
        DataType::Uint64 => "uint64_contents",
        DataType::Fp32 => "fp32_contents",
        DataType::Fp64 => "fp64_contents",
        DataType::Bytes => "bytes_contents",
        DataType::Fp16 | DataType::Bf16 => return None,
    })
}

/// Values as little-endian bytes, or `None` when one does not fit.
fn narrow<N, W: Copy, const SIZE: usize>(values: &[W], bytes: fn(N) -> [u8; SIZE]) -> Option<Bytes>
where
    N: TryFrom<W>,
{
    let mut data = Vec::with_capacity(values.len() * SIZE);
    for &value in values {
        data.extend_from_slice(&bytes(N::try_from(value).ok()?));
    }
    Some(data.into())
}

/// Elements in the layout of a BYTES tensor. Each came in, or goes out, in one message: its length fits in 32 bits.
pub fn bytes_data<'a>(elements: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    let len = elements.clone().map(|element| 4 + element.len()).sum();
    let mut data = BytesMut::with_capacity(len);
    for element in elements {
        data.put_u32_le(u32::try_from(element.len()).unwrap_or(u32::MAX));
        data.extend_from_slice(element);
    }
    data.freeze()
}
