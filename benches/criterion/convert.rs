//! What a request costs between the wire and the scheduler, and its answer on the way back.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use prost::Message as _;
use sconce_core::{DataType, InferOutput, Signature, Tensor, TensorSpec};
use sconce_proto::inference::model_infer_request::InferInputTensor;
use sconce_proto::inference::{InferTensorContents, ModelInferRequest};
use std::hint::black_box;

const COLUMNS: usize = 16;

fn signature() -> Signature {
    Signature {
        inputs: vec![TensorSpec::new("features", DataType::Fp32, &[None, Some(COLUMNS)])],
        outputs: vec![TensorSpec::new("probabilities", DataType::Fp32, &[None, Some(2)])],
        max_batch_size: 64,
    }
}

fn message(rows: usize, typed: bool) -> ModelInferRequest {
    let values = vec![0.5f32; rows * COLUMNS];
    let raw = Bytes::from(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    let contents = typed.then(|| InferTensorContents { fp32_contents: values, ..Default::default() });
    ModelInferRequest {
        model_name: "tiny".to_owned(),
        inputs: vec![InferInputTensor {
            name: "features".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![rows as i64, COLUMNS as i64],
            contents,
            ..InferInputTensor::default()
        }],
        raw_input_contents: if typed { Vec::new() } else { vec![raw] },
        ..ModelInferRequest::default()
    }
}

fn output(rows: usize) -> InferOutput {
    let data = Bytes::from(vec![0; rows * 8]);
    InferOutput { tensors: Tensor::new(DataType::Fp32, vec![rows, 2], data).into_iter().collect() }
}

fn conversion(criterion: &mut Criterion) {
    let signature = signature();
    let mut group = criterion.benchmark_group("convert");
    for (name, rows, typed) in
        [("raw, 1 row", 1, false), ("raw, 64 rows", 64, false), ("typed, 64 rows", 64, true)]
    {
        let (message, output) = (message(rows, typed), output(rows));
        group.bench_function(format!("request and answer, {name}"), |bencher| {
            bencher.iter_batched(
                || (message.clone(), output.clone()),
                |(message, output)| black_box(sconce_server::bench::convert(&signature, message, output)),
                BatchSize::SmallInput,
            );
        });
        let wire = Bytes::from(message.encode_to_vec());
        group.bench_function(format!("decode, {name}"), |bencher| {
            bencher.iter(|| black_box(ModelInferRequest::decode(wire.clone())));
        });
    }
    group.finish();
}

criterion_group!(benches, conversion);
criterion_main!(benches);
