//! Tensors as JSON, for people and configuration files: nested arrays of numbers, booleans or strings.

use crate::{DataType, Error, Result, Signature, Tensor, abbreviate};
use serde_json::{Map, Value, json};

/// A request of a model, by name of input: datatypes are the signature's.
///
/// # Errors
/// `InvalidArgument` for what is no request of this signature.
pub fn to_request(signature: &Signature, inputs: &Map<String, Value>) -> Result<Vec<(String, Tensor)>> {
    let named = |(name, value): (&String, &Value)| {
        let spec = signature.inputs.iter().find(|spec| spec.name == *name);
        let spec = spec.ok_or_else(|| signature.unknown_input(name))?;
        let tensor = to_tensor(spec.datatype, value)
            .map_err(|error| Error::invalid(format!("input `{name}`: {error}")))?;
        Ok((name.clone(), tensor))
    };
    let tensors: Vec<_> = inputs.iter().map(named).collect::<Result<_>>()?;
    signature.check(tensors.iter().map(|(name, tensor)| (name, tensor.clone())))?;
    Ok(tensors)
}

/// Nested arrays as a tensor. Every array of one depth must have the same length.
///
/// # Errors
/// `InvalidArgument` for crooked arrays, and for a value that is none of `datatype`.
pub fn to_tensor(datatype: DataType, value: &Value) -> Result<Tensor> {
    let mut shape = Vec::new();
    let mut level = value;
    while let Value::Array(items) = level {
        shape.push(items.len());
        let Some(first) = items.first() else { break };
        level = first;
    }
    let mut data = Vec::new();
    write_elements(datatype, value, &shape, &mut data)?;
    Tensor::new(datatype, shape, data.into())
}

fn write_elements(datatype: DataType, value: &Value, shape: &[usize], data: &mut Vec<u8>) -> Result<()> {
    match (value, shape) {
        (Value::Array(items), [len, inner @ ..]) if items.len() == *len => {
            items.iter().try_for_each(|item| write_elements(datatype, item, inner, data))
        }
        (Value::Array(_), _) | (_, [_, ..]) => {
            Err(Error::invalid("expected arrays of equal length at each depth"))
        }
        (value, []) => write_element(datatype, value, data),
    }
}

fn write_element(datatype: DataType, value: &Value, data: &mut Vec<u8>) -> Result<()> {
    let wrong = || Error::invalid(format!("expected {datatype}, got {}", abbreviate(&value.to_string())));
    let signed = || value.as_i64().ok_or_else(wrong);
    let unsigned = || value.as_u64().ok_or_else(wrong);
    #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is what an FP32 input means")]
    let single = || value.as_f64().map(|v| v as f32).ok_or_else(wrong);
    match datatype {
        DataType::Bool => data.push(value.as_bool().ok_or_else(wrong)?.into()),
        DataType::Int8 => data.extend(i8::try_from(signed()?).map_err(|_| wrong())?.to_le_bytes()),
        DataType::Int16 => data.extend(i16::try_from(signed()?).map_err(|_| wrong())?.to_le_bytes()),
        DataType::Int32 => data.extend(i32::try_from(signed()?).map_err(|_| wrong())?.to_le_bytes()),
        DataType::Int64 => data.extend(signed()?.to_le_bytes()),
        DataType::Uint8 => data.extend(u8::try_from(unsigned()?).map_err(|_| wrong())?.to_le_bytes()),
        DataType::Uint16 => data.extend(u16::try_from(unsigned()?).map_err(|_| wrong())?.to_le_bytes()),
        DataType::Uint32 => data.extend(u32::try_from(unsigned()?).map_err(|_| wrong())?.to_le_bytes()),
        DataType::Uint64 => data.extend(unsigned()?.to_le_bytes()),
        DataType::Fp32 => data.extend(single()?.to_le_bytes()),
        DataType::Fp64 => data.extend(value.as_f64().ok_or_else(wrong)?.to_le_bytes()),
        DataType::Fp16 => data.extend(half::f16::from_f32(single()?).to_le_bytes()),
        DataType::Bf16 => data.extend(half::bf16::from_f32(single()?).to_le_bytes()),
        DataType::Bytes => {
            let text = value.as_str().ok_or_else(wrong)?;
            data.extend(u32::try_from(text.len()).map_err(|_| wrong())?.to_le_bytes());
            data.extend(text.as_bytes());
        }
    }
    Ok(())
}

/// A tensor's elements, row-major, as JSON.
pub fn from_tensor(tensor: &Tensor) -> Vec<Value> {
    let data = tensor.data();
    match tensor.datatype() {
        DataType::Bool => data.iter().map(|byte| json!(*byte != 0)).collect(),
        DataType::Int8 => elements(data, i8::from_le_bytes),
        DataType::Int16 => elements(data, i16::from_le_bytes),
        DataType::Int32 => elements(data, i32::from_le_bytes),
        DataType::Int64 => elements(data, i64::from_le_bytes),
        DataType::Uint8 => elements(data, u8::from_le_bytes),
        DataType::Uint16 => elements(data, u16::from_le_bytes),
        DataType::Uint32 => elements(data, u32::from_le_bytes),
        DataType::Uint64 => elements(data, u64::from_le_bytes),
        DataType::Fp32 => elements(data, f32::from_le_bytes),
        DataType::Fp64 => elements(data, f64::from_le_bytes),
        DataType::Fp16 => elements(data, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
        DataType::Bf16 => elements(data, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        DataType::Bytes => tensor.bytes_elements().map(|e| json!(String::from_utf8_lossy(e))).collect(),
    }
}

fn elements<T: Into<Value>, const SIZE: usize>(data: &[u8], value: impl Fn([u8; SIZE]) -> T) -> Vec<Value> {
    data.as_chunks::<SIZE>().0.iter().map(|bytes| value(*bytes).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_goes_there_and_back() {
        for (datatype, text, shape) in [
            (DataType::Fp32, "[[1.5, -2.0], [3.25, 0.0]]", vec![2, 2]),
            (DataType::Bf16, "[[1.5]]", vec![1, 1]),
            (DataType::Int8, "[-128, 127]", vec![2]),
            (DataType::Bytes, r#"["a", "ü"]"#, vec![2]),
            (DataType::Bool, "[[true], [false]]", vec![2, 1]),
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            let tensor = to_tensor(datatype, &value).unwrap();
            assert_eq!(tensor.shape(), shape);
            let mut flat = &value;
            let mut all = Vec::new();
            while flat[0].is_array() && flat[0][0].is_array() {
                flat = &flat[0];
            }
            for item in value.as_array().unwrap() {
                all.extend(item.as_array().cloned().unwrap_or_else(|| vec![item.clone()]));
            }
            assert_eq!(from_tensor(&tensor), all);
        }
    }

    #[test]
    fn crooked_json_is_refused() {
        for (datatype, text) in [
            (DataType::Fp32, "[[1], [1, 2]]"),
            (DataType::Fp32, "[1, [2]]"),
            (DataType::Fp32, "[\"x\"]"),
            (DataType::Int8, "[128]"),
            (DataType::Uint8, "[-1]"),
        ] {
            assert!(to_tensor(datatype, &serde_json::from_str(text).unwrap()).is_err(), "{text}");
        }
    }
}
