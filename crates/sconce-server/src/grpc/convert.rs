//! From untrusted messages to valid values, and back. Nothing unchecked passes this line.

use bytes::Bytes;
use sconce_client::contents::{bytes_data, raw_bytes, typed_field};
use sconce_core::{
    DataType, Error, ErrorCode, InferOutput, Result, Signature, Tensor, TensorSpec, abbreviate,
};
use sconce_proto::inference::infer_parameter::ParameterChoice;
use sconce_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use sconce_proto::inference::model_infer_response::InferOutputTensor;
use sconce_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use sconce_scheduler::Priority;
use std::collections::BTreeMap;
use std::time::Duration;

type Parameters = BTreeMap<String, InferParameter>;

/// A request's tensors by name, its parameters, and how it wants its answer.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) tensors: Vec<(String, Tensor)>,
    pub(crate) priority: Priority,
    /// How long the caller gives the request, counted from its arrival.
    pub(crate) timeout: Option<Duration>,
    pub(crate) wanted: Wanted,
}

/// What the answer should look like.
#[derive(Debug)]
pub(crate) struct Wanted {
    outputs: Vec<WantedOutput>,
    typed: bool,
}

#[derive(Debug)]
struct WantedOutput {
    name: String,
    /// The number of best classes to give instead of the scores.
    classes: Option<usize>,
}

/// Checks a message by itself: datatypes, shapes, sizes, parameters. Whether the model takes them is for its signature.
pub(crate) fn request(message: ModelInferRequest) -> Result<Request> {
    let (priority, timeout) = request_parameters(&message.parameters)?;
    let ModelInferRequest { id, inputs, outputs, raw_input_contents: raw, .. } = message;
    let typed = inputs.iter().any(|input| input.contents.is_some());
    if typed && !raw.is_empty() {
        return Err(Error::invalid("give contents either raw or typed for all inputs, not both"));
    }
    if !typed && raw.len() != inputs.len() {
        return Err(Error::invalid(format!(
            "expected one raw_input_contents an input, got {} for {} inputs",
            raw.len(),
            inputs.len()
        )));
    }
    let mut raw = raw.into_iter();
    let tensors = inputs.into_iter().map(|input| tensor(input, raw.next())).collect::<Result<_>>()?;
    let outputs = outputs.into_iter().map(wanted_output).collect::<Result<_>>()?;
    Ok(Request { id, tensors, priority, timeout, wanted: Wanted { outputs, typed } })
}

fn request_parameters(parameters: &Parameters) -> Result<(Priority, Option<Duration>)> {
    let (mut priority, mut timeout) = (Priority::default(), None);
    for (name, value) in parameters {
        match name.as_str() {
            "priority" => priority = Priority::new(unsigned(name, value)?)?,
            "timeout" => {
                timeout = Some(unsigned(name, value)?).filter(|us| *us > 0).map(Duration::from_micros);
            }
            "sequence_id" | "sequence_start" | "sequence_end" if asks_for_a_sequence(value) => {
                return Err(Error::new(ErrorCode::Unimplemented, "sequences are not served"));
            }
            // What a parameter this server does not know means is between the client and another server.
            _ => {}
        }
    }
    Ok((priority, timeout))
}

fn asks_for_a_sequence(value: &InferParameter) -> bool {
    match &value.parameter_choice {
        Some(ParameterChoice::Int64Param(id)) => *id != 0,
        Some(ParameterChoice::Uint64Param(id)) => *id != 0,
        Some(ParameterChoice::StringParam(id)) => !id.is_empty(),
        Some(ParameterChoice::BoolParam(bound)) => *bound,
        _ => false,
    }
}

fn unsigned(name: &str, value: &InferParameter) -> Result<u64> {
    match value.parameter_choice {
        Some(ParameterChoice::Uint64Param(number)) => Some(number),
        Some(ParameterChoice::Int64Param(number)) => u64::try_from(number).ok(),
        _ => None,
    }
    .ok_or_else(|| Error::invalid(format!("parameter `{name}`: expected an integer of at least 0")))
}

fn refuse_shared_memory(parameters: &Parameters) -> Result<()> {
    if parameters.contains_key("shared_memory_region") {
        return Err(Error::new(ErrorCode::Unimplemented, "shared memory is not served: send the contents"));
    }
    Ok(())
}

fn tensor(input: InferInputTensor, raw: Option<Bytes>) -> Result<(String, Tensor)> {
    let InferInputTensor { name, datatype, shape, parameters, contents } = input;
    let named = |error: Error| Error::new(error.code(), format!("input `{}`: {error}", abbreviate(&name)));
    refuse_shared_memory(&parameters).map_err(named)?;
    let datatype = DataType::from_name(&datatype)
        .ok_or_else(|| named(Error::invalid(format!("unknown datatype {:?}", abbreviate(&datatype)))))?;
    let shape = dimensions(&shape).map_err(named)?;
    let data = match (raw, contents) {
        (Some(raw), _) => raw,
        (None, Some(contents)) => raw_bytes(datatype, contents).map_err(named)?,
        (None, None) => return Err(named(Error::invalid("no contents given"))),
    };
    let tensor = Tensor::new(datatype, shape, data).map_err(named)?;
    Ok((name, tensor))
}

/// More dimensions than any tensor has; keeps a hostile shape from costing work.
const MAX_DIMENSIONS: usize = 16;

fn dimensions(shape: &[i64]) -> Result<Vec<usize>> {
    if shape.len() > MAX_DIMENSIONS {
        return Err(Error::invalid(format!(
            "expected at most {MAX_DIMENSIONS} dimensions, got {}",
            shape.len()
        )));
    }
    let dimension = |&dim: &i64| {
        usize::try_from(dim).map_err(|_| Error::invalid(format!("shape {shape:?} has a negative dimension")))
    };
    shape.iter().map(dimension).collect()
}

fn wanted_output(output: InferRequestedOutputTensor) -> Result<WantedOutput> {
    refuse_shared_memory(&output.parameters)?;
    let classes = match output.parameters.get("classification") {
        None => None,
        Some(value) => match unsigned("classification", value)? {
            0 => return Err(Error::invalid("parameter `classification`: expected at least 1 class, got 0")),
            classes => Some(usize::try_from(classes).unwrap_or(usize::MAX)),
        },
    };
    Ok(WantedOutput { name: output.name, classes })
}

impl Wanted {
    /// Checks what is wanted against what the model gives, before any work is done.
    pub(crate) fn check(&self, signature: &Signature) -> Result<()> {
        let mut given = vec![false; signature.outputs.len()];
        for wanted in &self.outputs {
            let (index, spec) = output_spec(signature, &wanted.name)?;
            if std::mem::replace(&mut given[index], true) {
                return Err(Error::invalid(format!("output `{}`: asked for twice", spec.name)));
            }
            if wanted.classes.is_some() && !(spec.datatype == DataType::Fp32 && spec.shape.len() == 2) {
                return Err(Error::invalid(format!(
                    "output `{}`: classification needs one FP32 score a class",
                    spec.name
                )));
            }
        }
        Ok(())
    }

    /// Puts the wanted outputs into `response`.
    pub(crate) fn answer(
        &self,
        signature: &Signature,
        output: InferOutput,
        response: &mut ModelInferResponse,
    ) -> Result<()> {
        let tensors: Vec<(&str, Tensor)> = if self.outputs.is_empty() {
            signature.outputs.iter().map(|spec| spec.name.as_str()).zip(output.tensors).collect()
        } else {
            let select = |wanted: &WantedOutput| {
                let (index, spec) = output_spec(signature, &wanted.name)?;
                let tensor = output
                    .tensors
                    .get(index)
                    .ok_or_else(|| Error::internal("the model gave too few outputs"))?;
                let tensor = match wanted.classes {
                    None => tensor.clone(),
                    Some(classes) => best_classes(tensor, classes, spec.labels.as_deref())?,
                };
                Ok((spec.name.as_str(), tensor))
            };
            self.outputs.iter().map(select).collect::<Result<_>>()?
        };
        // FP16 and BF16 have no typed form; an answer is either all typed or all raw.
        let typed = self.typed && tensors.iter().all(|(_, tensor)| typed_field(tensor.datatype()).is_some());
        response.outputs.reserve_exact(tensors.len());
        if !typed {
            response.raw_output_contents.reserve_exact(tensors.len());
        }
        for (name, tensor) in tensors {
            response.outputs.push(InferOutputTensor {
                name: name.to_owned(),
                datatype: tensor.datatype().name().to_owned(),
                shape: tensor.shape().iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect(),
                parameters: BTreeMap::new(),
                contents: typed.then(|| typed_contents(&tensor)),
            });
            if !typed {
                response.raw_output_contents.push(tensor.into_data());
            }
        }
        Ok(())
    }
}

fn output_spec<'a>(signature: &'a Signature, name: &str) -> Result<(usize, &'a TensorSpec)> {
    signature.outputs.iter().enumerate().find(|(_, spec)| spec.name == name).ok_or_else(|| {
        let known: Vec<&str> = signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
        Error::invalid(format!("unknown output `{}`: expected one of {known:?}", abbreviate(name)))
    })
}

/// The `classes` best scores of each row as BYTES `value:index[:label]`, best first; equal scores in the order of classes.
fn best_classes(scores: &Tensor, classes: usize, labels: Option<&[String]>) -> Result<Tensor> {
    let rows = scores.rows();
    let width = scores.shape().last().copied().unwrap_or(0);
    let classes = classes.min(width);
    let values: Vec<f32> = scores.f32_values().collect();
    let mut elements = Vec::with_capacity(rows * classes);
    for row in values.chunks_exact(width.max(1)) {
        let mut ranked: Vec<usize> = (0..width).collect();
        ranked.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        for &index in &ranked[..classes] {
            elements.push(match labels.and_then(|labels| labels.get(index)) {
                Some(label) => format!("{}:{index}:{label}", row[index]),
                None => format!("{}:{index}", row[index]),
            });
        }
    }
    Tensor::new(DataType::Bytes, vec![rows, classes], bytes_data(elements.iter().map(String::as_bytes)))
}

fn typed_contents(tensor: &Tensor) -> InferTensorContents {
    let data = &tensor.data()[..];
    let mut contents = InferTensorContents::default();
    match tensor.datatype() {
        DataType::Bool => contents.bool_contents = data.iter().map(|byte| *byte != 0).collect(),
        DataType::Int8 => contents.int_contents = widen(data, i8::from_le_bytes),
        DataType::Int16 => contents.int_contents = widen(data, i16::from_le_bytes),
        DataType::Int32 => contents.int_contents = widen(data, i32::from_le_bytes),
        DataType::Int64 => contents.int64_contents = widen(data, i64::from_le_bytes),
        DataType::Uint8 => contents.uint_contents = widen(data, u8::from_le_bytes),
        DataType::Uint16 => contents.uint_contents = widen(data, u16::from_le_bytes),
        DataType::Uint32 => contents.uint_contents = widen(data, u32::from_le_bytes),
        DataType::Uint64 => contents.uint64_contents = widen(data, u64::from_le_bytes),
        DataType::Fp32 => contents.fp32_contents = widen(data, f32::from_le_bytes),
        DataType::Fp64 => contents.fp64_contents = widen(data, f64::from_le_bytes),
        DataType::Bytes => {
            contents.bytes_contents =
                tensor.bytes_elements().map(|element| tensor.data().slice_ref(element)).collect();
        }
        // Never typed: `Wanted::answer` asks `typed_field` first.
        DataType::Fp16 | DataType::Bf16 => {}
    }
    contents
}

fn widen<N, W: From<N>, const SIZE: usize>(data: &[u8], value: fn([u8; SIZE]) -> N) -> Vec<W> {
    data.as_chunks::<SIZE>().0.iter().map(|bytes| W::from(value(*bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(datatype: &str, shape: &[i64]) -> ModelInferRequest {
        let input = InferInputTensor {
            name: "x".into(),
            datatype: datatype.into(),
            shape: shape.to_vec(),
            ..InferInputTensor::default()
        };
        ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() }
    }

    fn raw(datatype: &str, shape: &[i64], data: &[u8]) -> ModelInferRequest {
        ModelInferRequest {
            raw_input_contents: vec![Bytes::copy_from_slice(data)],
            ..message(datatype, shape)
        }
    }

    fn refusal(message: ModelInferRequest) -> String {
        let error = request(message).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
        error.to_string()
    }

    #[test]
    fn raw_bytes_are_not_copied() {
        let message = raw("FP32", &[1, 2], &[0; 8]);
        let before = message.raw_input_contents[0].as_ptr();
        let request = request(message).unwrap();
        assert_eq!(request.tensors[0].1.data().as_ptr(), before);
    }

    #[test]
    fn hostile_tensors_are_refused() {
        assert!(refusal(raw("fp32", &[1], &[0; 4])).contains("unknown datatype"));
        assert!(refusal(raw("FP32", &[-1], &[0; 4])).contains("negative"));
        assert!(refusal(raw("FP32", &[i64::MIN], &[0; 4])).contains("negative"));
        assert!(refusal(raw("FP32", &[1 << 62, 1 << 62], &[0; 4])).contains("more elements"));
        assert!(refusal(raw("FP64", &[1 << 61], &[0; 4])).contains("more elements"));
        assert!(refusal(raw("FP32", &[2], &[0; 7])).contains("expected 8 bytes"));
        assert!(refusal(raw("FP32", &[2], &[0; 9])).contains("got 9"));
        assert!(refusal(raw("FP32", &[1; 17], &[0; 4])).contains("at most 16 dimensions"));
        assert!(refusal(raw("BYTES", &[1], &[200, 0, 0, 0, 1])).contains("length prefix"));
        assert!(refusal(message("FP32", &[1])).contains("one raw_input_contents an input"));
        let mut both = raw("FP32", &[1], &[0; 4]);
        both.inputs[0].contents = Some(InferTensorContents::default());
        assert!(refusal(both).contains("raw or typed"));
        let mut extra = raw("FP32", &[1], &[0; 4]);
        extra.raw_input_contents.push(Bytes::new());
        assert!(refusal(extra).contains("got 2 for 1"));
    }

    #[test]
    fn typed_contents_are_checked_against_the_datatype() {
        let typed = |datatype: &str, shape: &[i64], contents: InferTensorContents| {
            let mut message = message(datatype, shape);
            message.inputs[0].contents = Some(contents);
            message
        };
        let ints =
            |values: &[i32]| InferTensorContents { int_contents: values.to_vec(), ..Default::default() };
        assert!(refusal(typed("INT8", &[1], ints(&[128]))).contains("out of range"));
        assert!(refusal(typed("INT32", &[3], ints(&[1, 2]))).contains("expected 12 bytes"));
        assert!(refusal(typed("FP32", &[1], ints(&[1]))).contains("travels in fp32_contents"));
        assert!(refusal(typed("BF16", &[1], ints(&[]))).contains("send it raw"));
        let good = request(typed("INT8", &[2], ints(&[-128, 127]))).unwrap();
        assert_eq!(good.tensors[0].1.data()[..], [0x80, 0x7f]);
    }

    #[test]
    fn typed_values_survive_the_way_there_and_back() {
        let strings: Vec<Bytes> = [&b"a"[..], b"", b"\xff\x00"].map(Bytes::from_static).to_vec();
        let cases = [
            ("BOOL", InferTensorContents { bool_contents: vec![true, false, true], ..Default::default() }),
            ("INT8", InferTensorContents { int_contents: vec![-128, 0, 127], ..Default::default() }),
            ("INT16", InferTensorContents { int_contents: vec![-32768, 0, 32767], ..Default::default() }),
            (
                "INT32",
                InferTensorContents { int_contents: vec![i32::MIN, 0, i32::MAX], ..Default::default() },
            ),
            (
                "INT64",
                InferTensorContents { int64_contents: vec![i64::MIN, 0, i64::MAX], ..Default::default() },
            ),
            ("UINT8", InferTensorContents { uint_contents: vec![0, 1, 255], ..Default::default() }),
            ("UINT16", InferTensorContents { uint_contents: vec![0, 1, 65535], ..Default::default() }),
            ("UINT32", InferTensorContents { uint_contents: vec![0, 1, u32::MAX], ..Default::default() }),
            ("UINT64", InferTensorContents { uint64_contents: vec![0, 1, u64::MAX], ..Default::default() }),
            ("FP32", InferTensorContents { fp32_contents: vec![-0.5, 0.0, f32::MAX], ..Default::default() }),
            ("FP64", InferTensorContents { fp64_contents: vec![-0.5, 0.0, f64::MAX], ..Default::default() }),
            ("BYTES", InferTensorContents { bytes_contents: strings, ..Default::default() }),
        ];
        for (datatype, contents) in cases {
            let mut message = message(datatype, &[3]);
            message.inputs[0].contents = Some(contents.clone());
            let request = request(message).unwrap();
            assert_eq!(typed_contents(&request.tensors[0].1), contents, "{datatype}");
        }
    }

    #[test]
    fn parameters_are_checked() {
        let with = |name: &str, choice: ParameterChoice| {
            let mut message = raw("FP32", &[1], &[0; 4]);
            message.parameters.insert(name.into(), InferParameter { parameter_choice: Some(choice) });
            message
        };
        assert_eq!(request(with("priority", ParameterChoice::Int64Param(1))).unwrap().priority.level(), 1);
        assert_eq!(request(with("priority", ParameterChoice::Uint64Param(2))).unwrap().priority.level(), 2);
        let timeout = request(with("timeout", ParameterChoice::Int64Param(1500))).unwrap().timeout;
        assert_eq!(timeout, Some(Duration::from_micros(1500)));
        assert!(refusal(with("priority", ParameterChoice::Int64Param(-1))).contains("at least 0"));
        assert!(refusal(with("priority", ParameterChoice::StringParam("1".into()))).contains("integer"));
        assert!(refusal(with("priority", ParameterChoice::Uint64Param(9))).contains("0 (default) to 8"));
        let sequence = request(with("sequence_id", ParameterChoice::Int64Param(7))).unwrap_err();
        assert_eq!(sequence.code(), ErrorCode::Unimplemented);
        assert!(request(with("sequence_id", ParameterChoice::Int64Param(0))).is_ok());
    }

    #[test]
    fn best_classes_are_ranked_and_labelled() {
        let data: Vec<u8> =
            [0.25f32, 0.5, 0.25, 1.0, 0.0, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let scores = Tensor::new(DataType::Fp32, vec![2, 3], data.into()).unwrap();
        let labels = ["a", "b", "c"].map(str::to_owned);
        let best = best_classes(&scores, 2, Some(&labels)).unwrap();
        let text: Vec<_> = best.bytes_elements().map(|e| std::str::from_utf8(e).unwrap()).collect();
        assert_eq!(text, ["0.5:1:b", "0.25:0:a", "1:0:a", "0:1:b"]);
        assert_eq!(best_classes(&scores, 99, None).unwrap().shape(), [2, 3]);
    }
}
