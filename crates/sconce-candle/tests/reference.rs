//! The BERT family against what Hugging Face transformers computed (see `data/make_reference.py`), the demo
//! models against scikit-learn, and both against themselves: a batch gives what its requests give alone.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use sconce_candle::{Package, Precision};
use sconce_core::{
    Backend, Batch, DataType, DeviceId, Error, ErrorCode, LoadedModel, ModelInput, Preparation, Tensor,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const MODELS: [&str; 8] = [
    "bert_embedding",
    "bert_legacy",
    "bert_classification",
    "distilbert_embedding",
    "distilbert_classification",
    "roberta_embedding",
    "roberta_classification",
    "xlm_roberta_embedding",
];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn load(dir: &Path) -> Arc<dyn LoadedModel> {
    Package::open(dir, DeviceId::Cpu).unwrap().load().unwrap()
}

fn texts(texts: &[&str]) -> Tensor {
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    Tensor::new(DataType::Bytes, vec![texts.len(), 1], bytes.into()).unwrap()
}

fn integers(rows: &[Vec<i64>]) -> Tensor {
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(DataType::Int64, vec![rows.len(), rows[0].len()], bytes.into()).unwrap()
}

fn floats(shape: Vec<usize>, values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(DataType::Fp32, shape, bytes.into()).unwrap()
}

fn prepare(model: &dyn LoadedModel, given: Vec<(&str, Tensor)>) -> Result<ModelInput, Error> {
    model.prepare(model.signature().check(given)?)
}

#[test]
fn tokenizing_is_real_work_and_a_few_ids_are_none() {
    let model = load(&data(MODELS[0]));
    let preparation =
        |given: Vec<(&str, Tensor)>| model.preparation(&model.signature().check(given).unwrap());
    assert!(preparation(vec![("text", texts(&["one two three"]))]).is_heavy);
    let ids = |columns| vec![("input_ids", integers(&[vec![1; columns]]))];
    assert_eq!(preparation(ids(10)), Preparation { bytes: 480, is_heavy: false });
    assert!(preparation(ids(20_000)).is_heavy);
}

#[test]
fn a_batch_comes_to_checkpoints_within_each_layer_whatever_happens_there() {
    let model = load(&data(MODELS[0]));
    let given = [("input_ids", integers(&[vec![1, 2, 3]]))];
    let input = model.prepare(model.signature().check(given).unwrap()).unwrap();
    let mut backend = model.instance().unwrap();
    let expected = run(&mut *backend, vec![input.clone()]);
    let met = AtomicUsize::new(0);
    let checkpoint = || {
        met.fetch_add(1, Ordering::Relaxed);
        assert_eq!(run(&mut *model.instance().unwrap(), vec![input.clone()]), expected);
    };
    backend.submit(Batch { inputs: vec![input.clone()] }, &checkpoint).unwrap();
    let output = backend.collect().unwrap().outputs.remove(0).unwrap();
    assert_eq!(output.tensors[0].f32_values().collect::<Vec<_>>(), expected[0]);
    assert_eq!(met.into_inner(), 1 + 2 * 3, "before all, and in each of two layers");
}

/// The first output of each request.
fn run(backend: &mut dyn Backend, inputs: Vec<ModelInput>) -> Vec<Vec<f32>> {
    backend.submit(Batch { inputs }, &|| {}).unwrap();
    let batch = backend.collect().unwrap();
    assert_eq!(batch.padding, 0);
    batch.outputs.into_iter().map(|output| output.unwrap().tensors[0].f32_values().collect()).collect()
}

fn close(got: &[f32], want: &[f32], tolerance: f32, of: &str) {
    assert_eq!(got.len(), want.len(), "{of}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance, "{of}: {got} {want}");
    }
}

fn rows<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<Vec<T>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(name).join("expected.json")).unwrap()).unwrap()
}

#[test]
fn the_bert_family_gives_what_transformers_gives() {
    for name in MODELS {
        let (model, expected) = (load(&data(name)), expected(name));
        let mut backend = model.instance().unwrap();
        for case in expected["texts"].as_array().unwrap() {
            let (text, ids) = (case["text"].as_str().unwrap(), case["ids"].clone());
            let want: Vec<f32> = serde_json::from_value(case["output"].clone()).unwrap();
            let input = prepare(&*model, vec![("text", texts(&[text]))]).unwrap();
            let by_ids =
                prepare(&*model, vec![("input_ids", integers(&rows(&serde_json::json!([ids]))))]).unwrap();
            assert_eq!(input, by_ids, "{name}: {text}");
            close(&run(&mut *backend, vec![input])[0], &want, 1e-5, name);
        }
        for batch in expected["batches"].as_array().unwrap() {
            let given = vec![
                ("input_ids", integers(&rows(&batch["ids"]))),
                ("attention_mask", integers(&rows(&batch["mask"]))),
            ];
            let want = rows::<f32>(&batch["output"]).concat();
            close(&run(&mut *backend, vec![prepare(&*model, given).unwrap()])[0], &want, 1e-5, name);
        }
    }
}

#[test]
fn a_batch_gives_what_its_requests_give_alone_to_the_last_bit() {
    for name in MODELS {
        let (model, expected) = (load(&data(name)), expected(name));
        let words: Vec<&str> =
            expected["texts"].as_array().unwrap().iter().map(|case| case["text"].as_str().unwrap()).collect();
        let mut backend = model.instance().unwrap();
        let mut requests: Vec<Vec<&str>> = words.iter().map(|text| vec![*text]).collect();
        requests.push(words.iter().rev().copied().collect());
        requests.push(vec![words[0], words[0], words[2]]);
        let inputs: Vec<ModelInput> = requests
            .iter()
            .map(|request| prepare(&*model, vec![("text", texts(request))]).unwrap())
            .collect();
        let together = run(&mut *backend, inputs.clone());
        for (input, together) in inputs.into_iter().zip(together) {
            assert_eq!(run(&mut *backend, vec![input])[0], together, "{name}");
        }
    }
}

/// Token ids of a request: rows of one length.
fn request() -> impl Strategy<Value = Vec<Vec<i64>>> {
    (1usize..=4, 1usize..=12)
        .prop_flat_map(|(rows, tokens)| prop::collection::vec(prop::collection::vec(5i64..40, tokens), rows))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn requests_of_any_rows_and_lengths_in_any_order_give_what_they_give_alone(
        requests in prop::collection::vec(request(), 1..12),
        family in prop::sample::select(&["bert_embedding", "roberta_embedding", "distilbert_classification"][..]),
    ) {
        let model = load(&data(family));
        let mut backend = model.instance().unwrap();
        let prepared: Vec<ModelInput> =
            requests.iter().map(|rows| prepare(&*model, vec![("input_ids", integers(rows))]).unwrap()).collect();
        let together = run(&mut *backend, prepared.clone());
        for (input, together) in prepared.into_iter().zip(together) {
            prop_assert_eq!(&run(&mut *backend, vec![input])[0], &together);
        }
    }
}

#[test]
fn lower_precision_stays_near_and_answers_in_f32() {
    for (precision, tolerance) in [("f16", 0.02), ("bf16", 0.12), ("int8", 0.2)] {
        for name in ["bert_embedding", "roberta_classification"] {
            let dir = copy(&data(name));
            std::fs::write(dir.path().join("model.toml"), format!("dtype = \"{precision}\"")).unwrap();
            let package = Package::open(dir.path(), DeviceId::Cpu).unwrap();
            assert_ne!(package.settings.precision, Precision::F32);
            let (model, expected) = (package.load().unwrap(), expected(name));
            let mut backend = model.instance().unwrap();
            let cases = expected["texts"].as_array().unwrap();
            let inputs = cases.iter().map(|case| {
                prepare(&*model, vec![("text", texts(&[case["text"].as_str().unwrap()]))]).unwrap()
            });
            for (got, case) in run(&mut *backend, inputs.collect()).iter().zip(cases) {
                let want: Vec<f32> = serde_json::from_value(case["output"].clone()).unwrap();
                close(got, &want, tolerance, name);
            }
        }
    }
}

fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"]
    {
        let target = dir.path().join(name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        if from.join(name).exists() {
            std::fs::copy(from.join(name), target).unwrap();
        }
    }
    dir
}

#[test]
fn wrong_tokens_and_texts_are_refused_with_reasons() {
    let mean = load(&data("bert_embedding"));
    let cls = load(&data("bert_legacy"));
    let roberta = load(&data("roberta_embedding"));
    let ids = |row: &[i64]| ("input_ids", integers(&[row.to_vec()]));
    let mask = |row: &[i64]| ("attention_mask", integers(&[row.to_vec()]));
    let types = |row: &[i64]| ("token_type_ids", integers(&[row.to_vec()]));
    let refuse = |model: &Arc<dyn LoadedModel>, given: Vec<(&str, Tensor)>, reason: &str| {
        let error = prepare(&**model, given).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.to_string().contains(reason), "{error}");
    };
    refuse(&mean, vec![ids(&[2, 96, 3])], "column 1: expected 0 to 95, got 96");
    refuse(&mean, vec![ids(&[2, -1, 3])], "got -1");
    refuse(&mean, vec![ids(&[2; 25])], "expected at most 24 tokens, got 25");
    refuse(&roberta, vec![ids(&[2; 25])], "expected at most 24 tokens, got 25");
    refuse(&mean, vec![ids(&[2, 3]), mask(&[0, 0])], "got zeros only");
    refuse(&mean, vec![ids(&[2, 3]), mask(&[1, 2])], "expected 0 to 1, got 2");
    refuse(&mean, vec![ids(&[2, 3]), mask(&[1, 1, 1])], "expected shape [1, 2] like `input_ids`, got [1, 3]");
    refuse(&mean, vec![ids(&[2, 3]), types(&[0, 2])], "expected 0 to 1, got 2");
    refuse(&cls, vec![ids(&[2, 3]), mask(&[0, 1])], "first token that is not masked");
    assert!(prepare(&*roberta, vec![ids(&[0, 5, 2])]).is_ok());
    refuse(
        &mean,
        vec![("input_ids", Tensor::new(DataType::Int64, vec![1, 0], Default::default()).unwrap())],
        "got 0",
    );
    let invalid = Tensor::new(DataType::Bytes, vec![1, 1], vec![1, 0, 0, 0, 0xff].into()).unwrap();
    refuse(&mean, vec![("text", invalid)], "expected UTF-8, got other bytes at 0");
    refuse(&mean, vec![("text", texts(&[&"a".repeat(262_145)]))], "at most 262144 bytes");
    refuse(&mean, vec![("text", texts(&["a"])), ids(&[2])], "different forms");
    // Long text is truncated, not refused; empty text still has its special tokens.
    let input = prepare(&*mean, vec![("text", texts(&[&"wall ".repeat(1000), ""]))]).unwrap();
    assert_eq!(input.row_tokens, [24, 2]);
}

fn demo(version: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../sconce/demo/breast_cancer/{version}"))
}

fn csv(name: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sconce/demo").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    (lines.next().unwrap(), lines.collect())
}

#[test]
fn the_demo_models_give_what_scikit_learn_gives() {
    let ((names, holdout), (_, expected)) = (csv("holdout.csv"), csv("expected.csv"));
    let rows: Vec<Vec<f32>> =
        holdout.iter().map(|row| row[..30].iter().map(|value| value.parse().unwrap()).collect()).collect();
    for version in [1, 2] {
        let package = Package::open(&demo(version), DeviceId::Cpu).unwrap();
        assert!(package.settings.metrics["accuracy"] > 0.9);
        let labels = package.signature.outputs[0].labels.clone().unwrap();
        assert_eq!(labels[..], ["malignant", "benign"]);
        let model = package.load().unwrap();
        let mut backend = model.instance().unwrap();
        let inputs: Vec<ModelInput> = rows
            .iter()
            .map(|row| prepare(&*model, vec![("features", floats(vec![1, 30], row))]).unwrap())
            .collect();
        let together = run(&mut *backend, inputs.clone());
        for (index, (got, want)) in together.iter().zip(&expected).enumerate() {
            let want: f32 = want[version as usize - 1].parse().unwrap();
            close(got, &[1.0 - want, want], 1e-5, "demo");
            assert_eq!(run(&mut *backend, vec![inputs[index].clone()])[0], *got);
        }
        let columns: Vec<(&str, Tensor)> = names[..30]
            .iter()
            .enumerate()
            .map(|(i, name)| (name.as_str(), floats(vec![2], &[rows[0][i], rows[1][i]])))
            .collect();
        let by_column = run(&mut *backend, vec![prepare(&*model, columns).unwrap()]);
        assert_eq!(by_column[0], together[..2].concat());
    }
}

#[test]
fn instances_may_use_several_threads_and_be_made_again() {
    let dir = copy(&data("bert_embedding"));
    std::fs::write(dir.path().join("model.toml"), "threads = 3\n").unwrap();
    let several = load(dir.path());
    let one = load(&data("bert_embedding"));
    let request = |model: &Arc<dyn LoadedModel>| {
        prepare(&**model, vec![("text", texts(&["the candle burns on the wall of light and wax"; 9]))])
            .unwrap()
    };
    let alone = run(&mut *one.instance().unwrap(), vec![request(&one)]);
    let worker = std::thread::spawn(move || {
        let _first = several.instance().unwrap();
        let mut again = several.instance().unwrap();
        assert_eq!(rayon::current_num_threads(), 3);
        run(&mut *again, vec![request(&several)])
    });
    assert_eq!(worker.join().unwrap(), alone);
}
