//! Packages that must be refused, each with its reasons; and what tabular packages make of their columns.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use sconce_candle::{Family, Package, check_device};
use sconce_core::{Batch, DataType, DeviceId, ErrorCode, Tensor};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn bert() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bert_classification")
}

/// A safetensors file of F32 tensors.
fn safetensors(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = body.len();
        body.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, body.len()]});
        header.insert((*name).to_owned(), info);
    }
    raw_safetensors(&serde_json::to_string(&header).unwrap(), &body)
}

fn raw_safetensors(header: &str, body: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(body);
    file
}

fn layer() -> Vec<u8> {
    safetensors(&[
        ("layers.0.weight", &[2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        ("layers.0.bias", &[2], &[0.5, 0.0]),
    ])
}

fn package(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn problems(dir: &Path) -> Vec<String> {
    let error = Package::open(dir, DeviceId::Cpu).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert_eq!(error.to_string(), error.problems().join("\n"));
    error.problems().to_vec()
}

/// Expects exactly one problem a given start.
fn refused(dir: &Path, starts: &[&str]) {
    let got = problems(dir);
    assert_eq!(got.len(), starts.len(), "{got:#?}");
    for (problem, start) in got.iter().zip(starts) {
        assert!(problem.contains(start), "{problem:?} does not have {start:?}");
    }
}

#[test]
fn hostile_weights_are_refused_by_name() {
    let overlapping = r#"{"layers.0.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
        "layers.0.bias":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let huge_shape =
        r#"{"layers.0.weight":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#;
    let backwards = r#"{"layers.0.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[8,4]}}"#;
    let mut truncated = layer();
    truncated.truncate(truncated.len() - 5);
    let mut claims = layer();
    claims[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    let cases: [(&[u8], &str); 9] = [
        (b"", "model.safetensors: truncated: 0 bytes"),
        (b"\x01\0\0", "model.safetensors: truncated: 3 bytes"),
        (
            &truncated,
            "model.safetensors: truncated or padded: its header describes 32 bytes of tensors, got 27",
        ),
        (&claims, "model.safetensors: its header claims 1152921504606846976 bytes, expected at most"),
        (&raw_safetensors(overlapping, &[0; 8]), "model.safetensors: its header is not valid"),
        (&raw_safetensors(huge_shape, &[]), "model.safetensors: its header is not valid"),
        (&raw_safetensors(backwards, &[0; 8]), "model.safetensors: its header is not valid"),
        (&raw_safetensors("{]", &[]), "model.safetensors: its header is not valid"),
        (&raw_safetensors("{}", &[]), "weights: expected at least one layer, got none"),
    ];
    for (content, reason) in cases {
        refused(package(&[("model.safetensors", content)]).path(), &[reason]);
    }
}

#[test]
fn layers_must_fit_each_other() {
    let weights = safetensors(&[
        ("net.0.weight", &[2, 1], &[1.0, 1.0]),
        ("net.0.bias", &[3], &[1.0, 1.0, 1.0]),
        ("net.2.weight", &[1, 3], &[1.0, 1.0, 1.0]),
        ("net.2.running_mean", &[1], &[1.0]),
    ]);
    let expected = [
        "unexpected tensor `net.2.running_mean`",
        "`net.0.bias`: expected shape [2], got [3]",
        "`net.0.weight` gives 2",
    ];
    let got = problems(package(&[("model.safetensors", &weights)]).path());
    assert_eq!(got.len(), expected.len(), "{got:#?}");
    for expected in expected {
        assert!(got.iter().any(|problem| problem.contains(expected)), "{expected}: {got:#?}");
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let toml = br#"
        family = "tabular"
        task = "clasification"
        max_batch_size = 0
        max_batch_tokens = 8
        queue_depth = "many"
        queue_target_ms = 60001
        default_timeout_ms = 0
        pin_cores = "yes"
        dtype = "f64"
        device = "gpu"
        colour = 1
        labels = ["a"]
        [metrics]
        accuracy = "good"
        [[features]]
        name = "a"
        type = "numeric"
        mean = 0
        std = 0
        [[features]]
        name = "a"
        type = "categorical"
        vocabulary = []
        std = 1
        [[features]]
        name = "b"
        type = "word"
    "#;
    refused(
        package(&[("model.toml", toml), ("model.safetensors", b"x")]).path(),
        &[
            "`max_batch_size`: expected 1 to 65536, got 0",
            "`queue_depth`: invalid type",
            "`default_timeout_ms`: expected more than 0 to 3600000, got 0",
            "`queue_target_ms`: expected 0 to 60000, got 60001",
            "`pin_cores`: invalid type",
            "expected `cpu` or `cuda:N`, got \"gpu\"",
            "`dtype`: expected one of f32, bf16, f16, int8, got \"f64\"",
            "`metrics`: invalid type",
            "`task`: expected one of classification, regression, got \"clasification\"",
            "features[0]: `std`: expected more than 0, got 0",
            "features[1]: `vocabulary`: expected at least one word",
            "features[1]: unknown key `std`: expected name, type, vocabulary, unknown",
            "feature `a`: declared twice",
            "features[2]: `type`: expected one of numeric, categorical, got \"word\"",
            "model.safetensors: truncated: 1 bytes",
            "model.toml: unknown key `colour`: expected family, description",
            "model.toml: unknown key `max_batch_tokens`",
        ],
    );
}

#[test]
fn settings_labels_and_features_must_fit_the_weights() {
    let open = |toml: &str| package(&[("model.toml", toml.as_bytes()), ("model.safetensors", &layer())]);
    refused(open("labels = ['a', 'b', 'c']").path(), &["`labels`: expected 2 labels, got 3"]);
    refused(open("task = 'regression'\nlabels = ['a', 'b']").path(), &["regression has no classes"]);
    let one = "[[features]]\nname = 'a'\ntype = 'numeric'\nmean = nan\nstd = 1";
    refused(
        open(one).path(),
        &["`mean`: expected a finite number, got NaN", "the features encode to 1 columns"],
    );
    let wide = safetensors(&[("0.weight", &[1, 40_000], &[0.0; 40_000])]);
    let wide = package(&[("model.toml", b"dtype = 'int8'"), ("model.safetensors", &wide)]);
    refused(wide.path(), &["int8 expects layers of at most 32768 inputs, got 40000"]);
    refused(open("family = 'identity'\ndatatype = 'FP31'").path(), &["`datatype`: expected one of BOOL"]);
    refused(open("family = 'add_sub'\ntask = 'x'").path(), &["unknown key `task`"]);
    refused(open("family = 'bert'").path(), &["config.json: no such file"]);
    refused(open("a = [").path(), &["model.toml: not valid TOML"]);
    refused(tempfile::tempdir().unwrap().path(), &["no model found"]);
    refused(Path::new("/nonexistent"), &["cannot open the package folder"]);
    if check_device(DeviceId::Cuda(0)).is_err() {
        refused(open("device = 'cuda:0'").path(), &["build with `--features cuda`"]);
    }
}

#[test]
fn links_out_of_a_package_and_special_files_are_refused() {
    let outside = package(&[("model.safetensors", &layer())]);
    let dir = package(&[]);
    std::os::unix::fs::symlink(
        outside.path().join("model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    let link = "model.safetensors: a symbolic link that leads out of the package";
    refused(dir.path(), &[link, link]);
    let dir = package(&[("model.safetensors", &layer())]);
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("notes")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("model.toml")).unwrap();
    let got = problems(dir.path());
    assert!(got.contains(&"notes: a symbolic link that leads out of the package".to_owned()), "{got:#?}");
    assert!(got.contains(&"model.toml: not a regular file".to_owned()), "{got:#?}");
    // A link that stays inside is fine.
    let dir = package(&[("weights.bin", &layer())]);
    std::os::unix::fs::symlink("weights.bin", dir.path().join("model.safetensors")).unwrap();
    assert!(Package::open(dir.path(), DeviceId::Cpu).is_ok());
    let index = br#"{"weight_map": {"a": "../model.safetensors"}}"#;
    let dir = package(&[("model.safetensors.index.json", index), ("model.toml", b"family = 'tabular'")]);
    refused(dir.path(), &["\"../model.safetensors\": not a path inside the package"]);
}

fn bert_with(file: &str, change: impl Fn(&mut Vec<u8>)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let mut content = fs::read(bert().join(name)).unwrap();
        if name == file {
            change(&mut content);
        }
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn config_with(key: &str, value: serde_json::Value) -> TempDir {
    bert_with("config.json", |content| {
        let mut json: serde_json::Value = serde_json::from_slice(content).unwrap();
        json[key] = value.clone();
        *content = serde_json::to_vec(&json).unwrap();
    })
}

#[test]
fn configuration_and_weights_must_agree() {
    refused(
        config_with("vocab_size", 95.into()).path(),
        &[
            "embeddings.word_embeddings.weight`: expected shape [95, 16], got [96, 16]",
            "tokenizer.json: expected token ids below the model's vocabulary of 95, got 95",
        ],
    );
    let got = problems(config_with("num_hidden_layers", 3.into()).path());
    assert_eq!(got.len(), 16, "{got:#?}");
    assert_eq!(got[0], "weights: tensor `encoder.layer.2.attention.self.query.weight` [16, 16] is missing");
    let got = problems(config_with("num_hidden_layers", 1000.into()).path());
    assert!(got.last().unwrap().starts_with("and 1") && got.len() == 51, "{got:#?}");
    refused(
        config_with("num_hidden_layers", 1e9.into()).path(),
        &["`num_hidden_layers`: expected an integer 1 to 1024"],
    );
    refused(config_with("num_attention_heads", 3.into()).path(), &["that 3 heads divide, got 16"]);
    refused(config_with("hidden_act", "silu".into()).path(), &["`hidden_act`: expected gelu"]);
    refused(config_with("model_type", "llama".into()).path(), &["`model_type`: expected bert"]);
    refused(
        config_with("problem_type", "regression".into()).path(),
        &["`problem_type`: expected single_label"],
    );
    let labels = serde_json::json!({"0": "a", "1": "b"});
    refused(config_with("id2label", labels).path(), &["`id2label`: expected 3 labels, got 2"]);
    refused(bert_with("config.json", |content| content.truncate(9)).path(), &["config.json: not valid JSON"]);
    refused(
        bert_with("tokenizer.json", |content| content.truncate(99)).path(),
        &["tokenizer.json: not a tokenizer"],
    );
    let toml = "max_tokens = 25\npooling = 'mean'\nlabels = ['a']";
    let dir = config_with("model_type", "bert".into());
    fs::write(dir.path().join("model.toml"), toml).unwrap();
    refused(
        dir.path(),
        &["expected 3 labels, got 1", "belong to task embedding", "the model has 24 positions, got 25"],
    );
    fs::write(dir.path().join("model.toml"), "max_tokens = 2").unwrap();
    refused(dir.path(), &["adds 2 special tokens: expected fewer than a row's 2 tokens"]);
}

#[test]
fn without_a_tokenizer_only_token_ids_are_taken() {
    let dir = bert_with("", |_| {});
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let package = Package::open(dir.path(), DeviceId::Cpu).unwrap();
    let names: Vec<&str> = package.signature.inputs.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, ["input_ids", "attention_mask", "token_type_ids"]);
    assert!(package.signature.inputs.iter().all(|spec| spec.form == 0));
    assert_eq!((package.settings.family, package.settings.max_batch_tokens), (Family::Bert, Some(16_384)));
    assert_eq!(package.signature.outputs[0].labels.as_ref().unwrap()[..], ["no", "yes", "maybe"]);
}

#[test]
fn weights_that_shrink_after_the_check_are_an_error_that_names_the_file() {
    let dir = package(&[("model.safetensors", &layer())]);
    let package = Package::open(dir.path(), DeviceId::Cpu).unwrap();
    fs::write(dir.path().join("model.safetensors"), b"").unwrap();
    let error = package.load().err().unwrap();
    assert!(
        error.to_string().starts_with("model.safetensors: cannot read tensor `layers.0.weight`"),
        "{error}"
    );
}

#[test]
fn shards_are_found_through_their_index() {
    let first = safetensors(&[("0.weight", &[2, 3], &[1.0; 6])]);
    let second = safetensors(&[("2.weight", &[1, 2], &[1.0; 2]), ("2.bias", &[1], &[0.0])]);
    let index = br#"{"weight_map": {"0.weight": "a.safetensors", "2.weight": "b.safetensors", "2.bias": "b.safetensors"}}"#;
    let mut files: Vec<(&str, &[u8])> = vec![("a.safetensors", &first), ("b.safetensors", &second)];
    assert!(Package::open(package(&files).path(), DeviceId::Cpu).is_ok());
    files.push(("model.safetensors.index.json", index));
    assert!(Package::open(package(&files).path(), DeviceId::Cpu).is_ok());
    refused(package(&files[1..]).path(), &["a.safetensors: no such file"]);
    files[1].1 = &first;
    refused(package(&files).path(), &["b.safetensors: tensor `0.weight` is in another file too"]);
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(DataType::Fp32, shape.to_vec(), bytes.into()).unwrap()
}

fn word(word: &[u8]) -> Tensor {
    let mut bytes = u32::try_from(word.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(word);
    Tensor::new(DataType::Bytes, vec![1], bytes.into()).unwrap()
}

#[test]
fn columns_are_encoded_as_declared() {
    let toml = br#"
        task = "regression"
        [[features]]
        name = "age"
        type = "numeric"
        mean = 10
        std = 2
        missing = 14.0
        [[features]]
        name = "city"
        type = "categorical"
        vocabulary = ["Oslo"]
        unknown = true
    "#;
    let dir = package(&[("model.toml", toml), ("model.safetensors", &layer())]);
    let model = Package::open(dir.path(), DeviceId::Cpu).unwrap().load().unwrap();
    let mut backend = model.instance().unwrap();
    let mut predict = |age: f32, city: &[u8]| {
        let given = [("age", floats(&[1], &[age])), ("city", word(city))];
        let input = model.prepare(model.signature().check(given)?)?;
        backend.submit(Batch { inputs: vec![input] }, &|| {})?;
        let output = backend.collect()?.outputs.remove(0)?;
        Ok::<Vec<f32>, sconce_core::Error>(output.tensors[0].f32_values().collect())
    };
    assert_eq!(predict(12.0, b"Oslo").unwrap(), [1.5, 1.0]);
    assert_eq!(predict(f32::NAN, b"\xff").unwrap(), [2.5, 1.0]);
    assert!(
        predict(f32::INFINITY, b"Oslo")
            .unwrap_err()
            .to_string()
            .contains("column `age`: expected a finite number")
    );
    let strict = String::from_utf8(toml.to_vec())
        .unwrap()
        .replace("unknown = true", "")
        .replace("[\"Oslo\"]", "[\"Oslo\", \"Rome\"]");
    let dir = package(&[("model.toml", strict.as_bytes()), ("model.safetensors", &layer())]);
    let model = Package::open(dir.path(), DeviceId::Cpu).unwrap().load().unwrap();
    let inputs =
        model.signature().check([("age", floats(&[1], &[1.0])), ("city", word(&[b'x'; 5000]))]).unwrap();
    let error = model.prepare(inputs).unwrap_err().to_string();
    assert!(
        error.starts_with("input `city`: expected one of \"Oslo\", \"Rome\", got \"xxx") && error.len() < 200,
        "{error}"
    );
}

#[test]
fn undeclared_columns_pass_uncopied_and_a_bad_row_fails_alone() {
    let dir = package(&[("model.safetensors", &layer()), ("model.toml", b"task = 'classification'")]);
    let model = Package::open(dir.path(), DeviceId::Cpu).unwrap().load().unwrap();
    let mut backend = model.instance().unwrap();
    let request = |values: &[f32]| {
        let tensor = floats(&[1, 3], values);
        let input = model.prepare(model.signature().check([("features", tensor.clone())]).unwrap()).unwrap();
        assert_eq!(input.tensors[0].data().as_ptr(), tensor.data().as_ptr());
        input
    };
    let inputs =
        vec![request(&[1.0; 3]), request(&[f32::INFINITY, f32::NEG_INFINITY, 0.0]), request(&[1.0; 3])];
    backend.submit(Batch { inputs }, &|| {}).unwrap();
    let outputs = backend.collect().unwrap().outputs;
    assert_eq!(outputs[1].as_ref().unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(outputs[0].as_ref().unwrap(), outputs[2].as_ref().unwrap());
    let one_logit = safetensors(&[("0.weight", &[1, 1], &[1.0])]);
    let dir = package(&[("model.safetensors", &one_logit), ("model.toml", b"task = 'classification'")]);
    let model = Package::open(dir.path(), DeviceId::Cpu).unwrap().load().unwrap();
    assert_eq!(model.signature().outputs[0].labels.as_ref().unwrap()[..], ["0", "1"]);
    let input =
        model.prepare(model.signature().check([("features", floats(&[1, 1], &[0.0]))]).unwrap()).unwrap();
    let mut backend = model.instance().unwrap();
    backend.submit(Batch { inputs: vec![input] }, &|| {}).unwrap();
    let output = backend.collect().unwrap().outputs.remove(0).unwrap();
    assert_eq!(output.tensors[0].f32_values().collect::<Vec<_>>(), [0.5, 0.5]);
}
