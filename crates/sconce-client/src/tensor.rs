//! Tensors from plain values.

use crate::Result;
use bytes::BufMut as _;
use sconce_core::{DataType, Tensor};

/// An FP32 tensor.
///
/// # Errors
/// `InvalidArgument` when `shape` does not hold as many elements as there are `values`.
pub fn fp32(shape: &[usize], values: &[f32]) -> Result<Tensor> {
    make(DataType::Fp32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// An INT64 tensor.
///
/// # Errors
/// As [`fp32`].
pub fn int64(shape: &[usize], values: &[i64]) -> Result<Tensor> {
    make(DataType::Int64, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// A BYTES tensor.
///
/// # Errors
/// As [`fp32`]; also when an element is longer than a `u32` can say.
pub fn bytes<T: AsRef<[u8]>>(shape: &[usize], values: &[T]) -> Result<Tensor> {
    let mut data = Vec::new();
    for value in values.iter().map(AsRef::as_ref) {
        let length = u32::try_from(value.len()).map_err(|_| {
            sconce_core::Error::invalid(format!("BYTES element of {} bytes is too long", value.len()))
        })?;
        data.put_u32_le(length);
        data.put_slice(value);
    }
    make(DataType::Bytes, shape, data)
}

fn make(datatype: DataType, shape: &[usize], data: Vec<u8>) -> Result<Tensor> {
    Ok(Tensor::new(datatype, shape.to_vec(), data.into())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let text = bytes(&[2], &["one", ""]).unwrap();
        assert_eq!(text.bytes_elements().collect::<Vec<_>>(), [&b"one"[..], b""]);
        assert_eq!(fp32(&[1, 2], &[1.5, -2.0]).unwrap().f32_values().collect::<Vec<_>>(), [1.5, -2.0]);
        assert_eq!(int64(&[2], &[-1, 7]).unwrap().i64_values().collect::<Vec<_>>(), [-1, 7]);
        assert!(fp32(&[3], &[1.0]).is_err());
    }
}
