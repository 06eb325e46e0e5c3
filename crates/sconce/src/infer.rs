use crate::{Failure, Outcome, block_on};
use sconce_client::proto::ModelConfig;
use sconce_client::{Client, DataType, InferRequest, Options, Tensor, tensor};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model's name
    model: String,
    /// An input as NAME=JSON, nested arrays giving the shape: `x=[[1,2],[3,4]]`; NAME=@FILE reads the JSON from a file
    #[arg(long, short, value_name = "NAME=JSON", required_unless_present = "text")]
    input: Vec<String>,
    /// Text for a model that takes `text`; may be given several times
    #[arg(long, short, value_name = "TEXT")]
    text: Vec<String>,
    /// The version; the highest when not given
    #[arg(long, default_value = "")]
    version: String,
    /// Give the N best classes of each output instead of its scores
    #[arg(long, value_name = "N")]
    classes: Option<u32>,
    /// Give up after this many milliseconds
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// 1 is served first, 8 last, 0 is the default
    #[arg(long, default_value_t = 0)]
    priority: u64,
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDRESS")]
    server: String,
}

pub(crate) fn run(args: Args) -> Outcome {
    block_on(async {
        let client = Client::connect(&args.server, Options::default()).await?;
        let config = client.model_config(&args.model, &args.version).await?;
        let mut request = InferRequest::new(&args.model).version(&args.version).priority(args.priority);
        if let Some(ms) = args.deadline_ms {
            request = request.deadline(Duration::from_millis(ms));
        }
        for input in &args.input {
            let (name, text) =
                input.split_once('=').ok_or_else(|| format!("expected NAME=JSON, got {input:?}"))?;
            let datatype = input_datatype(&config, name)?;
            let text = match text.strip_prefix('@') {
                None => text.to_owned(),
                Some(file) => {
                    std::fs::read_to_string(file).map_err(|e| format!("cannot read {file}: {e}"))?
                }
            };
            let value = serde_json::from_str(&text).map_err(|e| format!("input {name}: not JSON: {e}"))?;
            let tensor = to_tensor(datatype, &value).map_err(|e| format!("input {name}: {e}"))?;
            request = request.input(name, tensor);
        }
        if !args.text.is_empty() {
            request = request.input("text", tensor::bytes(&[args.text.len(), 1], &args.text)?);
        }
        if let Some(classes) = args.classes {
            request = config.output.iter().fold(request, |r, output| r.classification(&output.name, classes));
        }
        let answer = client.infer(request).await?;
        let outputs: serde_json::Map<_, _> = answer
            .outputs
            .iter()
            .map(|(name, tensor)| {
                let value = json!({ "datatype": tensor.datatype().name(), "shape": tensor.shape(), "data": to_json(tensor) });
                (name.clone(), value)
            })
            .collect();
        let shown = json!({
            "model": args.model, "version": answer.model_version, "prediction_id": answer.prediction_id(), "outputs": outputs,
        });
        say!("{}", serde_json::to_string_pretty(&shown)?)?;
        Ok(ExitCode::SUCCESS)
    })?
}

/// The datatype of an input, of whatever form.
fn input_datatype(config: &ModelConfig, name: &str) -> Result<DataType, Failure> {
    let first = config.input.iter().find(|input| input.name == name);
    let first = first
        .map(|input| input.data_type().as_str_name().trim_start_matches("TYPE_").replace("STRING", "BYTES"));
    let other = config.parameters.get(&format!("input.{name}"));
    let other = other.and_then(|text| text.string_value.split(' ').next()).map(str::to_owned);
    first.or(other).and_then(|datatype| DataType::from_name(&datatype)).ok_or_else(|| {
        let others = config.parameters.keys().filter_map(|key| key.strip_prefix("input."));
        let known: Vec<_> = config.input.iter().map(|input| input.name.as_str()).chain(others).collect();
        format!("the model has no input {name:?}: expected one of {known:?}").into()
    })
}

/// Nested arrays as a tensor. Every array of one depth must have the same length.
fn to_tensor(datatype: DataType, value: &Value) -> Result<Tensor, Failure> {
    let mut shape = Vec::new();
    let mut level = value;
    while let Value::Array(items) = level {
        shape.push(items.len());
        let Some(first) = items.first() else { break };
        level = first;
    }
    let mut data = Vec::new();
    write_elements(datatype, value, &shape, &mut data)?;
    Ok(Tensor::new(datatype, shape, data.into())?)
}

fn write_elements(
    datatype: DataType,
    value: &Value,
    shape: &[usize],
    data: &mut Vec<u8>,
) -> Result<(), Failure> {
    match (value, shape) {
        (Value::Array(items), [len, inner @ ..]) if items.len() == *len => {
            items.iter().try_for_each(|item| write_elements(datatype, item, inner, data))
        }
        (Value::Array(_), _) | (_, [_, ..]) => Err("expected arrays of equal length at each depth".into()),
        (value, []) => write_element(datatype, value, data),
    }
}

fn write_element(datatype: DataType, value: &Value, data: &mut Vec<u8>) -> Result<(), Failure> {
    let wrong = || format!("expected {datatype}, got {value}");
    let signed = || value.as_i64().ok_or_else(wrong);
    let unsigned = || value.as_u64().ok_or_else(wrong);
    #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is what an FP32 input means")]
    let single = || value.as_f64().map(|v| v as f32).ok_or_else(wrong);
    match datatype {
        DataType::Bool => data.push(value.as_bool().ok_or_else(wrong)?.into()),
        DataType::Int8 => data.extend(i8::try_from(signed()?)?.to_le_bytes()),
        DataType::Int16 => data.extend(i16::try_from(signed()?)?.to_le_bytes()),
        DataType::Int32 => data.extend(i32::try_from(signed()?)?.to_le_bytes()),
        DataType::Int64 => data.extend(signed()?.to_le_bytes()),
        DataType::Uint8 => data.extend(u8::try_from(unsigned()?)?.to_le_bytes()),
        DataType::Uint16 => data.extend(u16::try_from(unsigned()?)?.to_le_bytes()),
        DataType::Uint32 => data.extend(u32::try_from(unsigned()?)?.to_le_bytes()),
        DataType::Uint64 => data.extend(unsigned()?.to_le_bytes()),
        DataType::Fp32 => data.extend(single()?.to_le_bytes()),
        DataType::Fp64 => data.extend(value.as_f64().ok_or_else(wrong)?.to_le_bytes()),
        DataType::Fp16 => data.extend(half::f16::from_f32(single()?).to_le_bytes()),
        DataType::Bf16 => data.extend(half::bf16::from_f32(single()?).to_le_bytes()),
        DataType::Bytes => {
            let text = value.as_str().ok_or_else(wrong)?;
            data.extend(u32::try_from(text.len())?.to_le_bytes());
            data.extend(text.as_bytes());
        }
    }
    Ok(())
}

/// A tensor's elements, row-major, as JSON.
fn to_json(tensor: &Tensor) -> Vec<Value> {
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
            assert_eq!(to_json(&tensor), all);
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
