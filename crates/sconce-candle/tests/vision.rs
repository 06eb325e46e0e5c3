//! Image classifiers against what Hugging Face transformers computed (see `data/make_vision.py`), and against themselves;
//! and images and packages that must be refused, each with its reasons.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use sconce_candle::{Family, Package};
use sconce_core::{Backend, Batch, DataType, DeviceId, Error, ErrorCode, LoadedModel, ModelInput, Tensor};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

const MODELS: [&str; 5] = ["vit", "vit_no_bias", "resnet_basic", "resnet_bottleneck", "resnet_downsample"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vision").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(data("images").join(name)).unwrap()
}

fn load(dir: &Path) -> Arc<dyn LoadedModel> {
    Package::open(dir, DeviceId::Cpu).unwrap().load().unwrap()
}

fn images(images: &[Vec<u8>]) -> Vec<(&'static str, Tensor)> {
    let mut bytes = Vec::new();
    for image in images {
        bytes.extend_from_slice(&u32::try_from(image.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(image);
    }
    vec![("image", Tensor::new(DataType::Bytes, vec![images.len(), 1], bytes.into()).unwrap())]
}

/// As the script makes them.
fn fixed(rows: usize, (height, width): (usize, usize)) -> Vec<(&'static str, Tensor)> {
    let values = (0..rows * 3 * height * width).map(|i| (i as f64 * 0.37).sin() as f32);
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    vec![("pixel_values", Tensor::new(DataType::Fp32, vec![rows, 3, height, width], bytes.into()).unwrap())]
}

fn prepare(model: &dyn LoadedModel, given: Vec<(&str, Tensor)>) -> Result<ModelInput, Error> {
    model.prepare(model.signature().check(given)?)
}

fn run(backend: &mut dyn Backend, inputs: Vec<ModelInput>) -> Vec<Vec<f32>> {
    backend.submit(Batch { inputs }, &|| {}).unwrap();
    let outputs = backend.collect().unwrap().outputs.into_iter();
    outputs.map(|output| output.unwrap().tensors[0].f32_values().collect()).collect()
}

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max)
}

struct Expected {
    sides: (usize, usize),
    names: Vec<String>,
    of_images: Vec<Vec<f32>>,
    of_fixed: Vec<Vec<f32>>,
}

fn expected(name: &str) -> Expected {
    let json: Value = serde_json::from_slice(&fs::read(data(name).join("expected.json")).unwrap()).unwrap();
    fn field<T: serde::de::DeserializeOwned>(json: &Value, key: &str) -> T {
        serde_json::from_value(json[key].clone()).unwrap()
    }
    Expected {
        sides: field(&json, "size"),
        names: field(&json, "images"),
        of_images: field(&json, "image_probabilities"),
        of_fixed: field(&json, "fixed_probabilities"),
    }
}

#[test]
fn pixel_values_give_what_transformers_gives() {
    for (dtype, tolerance) in [("f32", 1e-5), ("bf16", 0.05), ("int8", 0.1)] {
        for name in MODELS {
            let dir = copy(name, "", |_| {});
            fs::write(dir.path().join("model.toml"), format!("dtype = '{dtype}'")).unwrap();
            let (model, expected) = (load(dir.path()), expected(name));
            let labels = model.signature().outputs[0].labels.clone().unwrap();
            assert_eq!(labels[..], ["candle", "sconce", "wall", "wick"]);
            let input = prepare(&*model, fixed(3, expected.sides)).unwrap();
            let got = run(&mut *model.instance().unwrap(), vec![input]);
            let error = worst(&got[0], &expected.of_fixed.concat());
            assert!(error < tolerance, "{name} in {dtype}: {error}");
        }
    }
}

#[test]
fn images_become_what_the_reference_processor_makes_of_them() {
    for name in MODELS {
        let (model, expected) = (load(&data(name)), expected(name));
        let config = fs::read(data(name).join("preprocessor_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let normalizes = config["do_normalize"].as_bool().unwrap();
        let places = expected.sides.0 * expected.sides.1;
        let pixels = fs::read(data(name).join("pixels.bin")).unwrap();
        let mut backend = model.instance().unwrap();
        for (index, image) in expected.names.iter().enumerate() {
            let input = prepare(&*model, images(&[read(image)])).unwrap();
            // Two decoders of a JPEG may differ in the last bits, and two orders of resizing by one.
            let most = if image.ends_with("jpg") { 4 } else { 1 };
            let want = pixels[index * 3 * places..][..3 * places].iter();
            for (at, (got, want)) in input.tensors[0].f32_values().zip(want).enumerate() {
                let (mean, std) = match normalizes {
                    true => (config["image_mean"][at / places].as_f64().unwrap() as f32, 0.5),
                    false => (0.0, 1.0),
                };
                let got = ((got * std + mean) * 255.0).round() as i32;
                assert!((got - i32::from(*want)).abs() <= most, "{name} {image} {at}: {got} {want}");
            }
            let error = worst(&run(&mut *backend, vec![input])[0], &expected.of_images[index]);
            assert!(error < if most > 1 { 0.02 } else { 5e-3 }, "{name} {image}: {error}");
        }
    }
}

#[test]
fn a_batch_gives_what_its_requests_give_alone_to_the_last_bit() {
    for name in MODELS {
        let dir = copy(name, "", |_| {});
        fs::write(dir.path().join("model.toml"), "threads = 2").unwrap();
        let (model, expected) = (load(&data(name)), expected(name));
        let mut requests: Vec<_> = expected.names.iter().map(|image| images(&[read(image)])).collect();
        requests.push(images(&[read("grey.png"), read("alpha.png"), read("grey.png")]));
        requests.push(fixed(7, expected.sides));
        let inputs: Vec<_> = requests.into_iter().map(|r| prepare(&*model, r).unwrap()).collect();
        let mut backend = model.instance().unwrap();
        let together = run(&mut *backend, inputs.clone());
        let alone = |input: &ModelInput| run(&mut *backend, vec![input.clone()]).remove(0);
        assert_eq!(inputs.iter().map(alone).collect::<Vec<_>>(), together, "{name}");
        let several = load(dir.path());
        let worker = std::thread::spawn(move || run(&mut *several.instance().unwrap(), inputs));
        assert_eq!(worker.join().unwrap(), together, "{name}");
    }
}

/// A PNG's first chunk, as far as its size.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let start: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
    [start, &width.to_be_bytes(), &height.to_be_bytes(), b"\x08\x02\0\0\0"].concat()
}

#[test]
fn hostile_images_are_refused_with_reasons() {
    let model = load(&data("resnet_bottleneck"));
    let refuse = |image: Vec<u8>, reason: &str| {
        let error = prepare(&*model, images(&[read("grey.png"), image])).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        let text = error.to_string();
        assert!(text.starts_with("input `image`: row 1: ") && text.contains(reason), "{text}");
    };
    refuse(Vec::new(), "expected a PNG or JPEG image, got nothing");
    refuse(b"GIF89a".to_vec(), "expected a PNG or JPEG image, got 6 bytes that begin with \"GIF89a\"");
    refuse(png_header(50_000, 50_000), "at most 67108864 in all, got 50000 by 50000");
    refuse(png_header(16_384, 16_384), "got 16384 by 16384");
    refuse(png_header(64, 64), "expected a whole, valid PNG image");
    refuse(read("cmyk.jpg"), "expected grey, RGB or YCbCr colours, got");
    for name in ["alpha.png", "colour.jpg", "progressive.jpg", "grey.jpg", "palette.png"] {
        let whole = read(name);
        for end in [9, whole.len() / 3, whole.len() / 2, whole.len() * 3 / 4] {
            refuse(whole[..end].to_vec(), if name.ends_with("png") { "PNG image" } else { "JPEG image" });
        }
        // Whatever else is broken is an error or another image, and never more.
        for at in (0..whole.len()).step_by(whole.len() / 97 + 1) {
            let mut broken = whole.clone();
            broken[at] ^= 0x55;
            if let Err(error) = prepare(&*model, images(&[broken])) {
                assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
            }
        }
    }
    let large = copy("resnet_bottleneck", "preprocessor_config.json", |json| json["size"] = 224.into());
    let narrow = prepare(&*load(large.path()), images(&[png_header(1, 16_384)])).unwrap_err();
    assert!(
        narrow.to_string().contains("pixels once resized, got 256 by 4194304 from 1 by 16384"),
        "{narrow}"
    );
    let wrong =
        vec![("pixel_values", Tensor::new(DataType::Fp32, vec![1, 3, 1, 1], vec![0; 12].into()).unwrap())];
    assert!(prepare(&*model, wrong).unwrap_err().to_string().contains("expected shape [-1, 3, 32, 32]"));
}

#[test]
fn decoding_is_real_work_and_is_weighed_before_it_is_done() {
    let model = load(&data("vit"));
    let preparation = |given| model.preparation(&model.signature().check(given).unwrap());
    let row = 3 * 32 * 32 * 4;
    let weighed = preparation(images(&[png_header(1000, 800), read("grey.png")]));
    assert!(weighed.is_heavy && weighed.bytes >= 2 * row + 1000 * 800 * 3);
    assert!(preparation(images(&[png_header(50_000, 50_000)])).bytes <= row);
    assert_eq!(preparation(fixed(2, (32, 32))), Default::default());
}

fn copy(name: &str, file: &str, change: impl Fn(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for own in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        let mut content = fs::read(data(name).join(own)).unwrap();
        if own == file {
            let mut json = serde_json::from_slice(&content).unwrap();
            change(&mut json);
            content = serde_json::to_vec(&json).unwrap();
        }
        fs::write(dir.path().join(own), content).unwrap();
    }
    dir
}

fn refused(dir: &Path, parts: &[&str]) {
    let error = Package::open(dir, DeviceId::Cpu).unwrap_err();
    assert_eq!(error.problems().len(), parts.len(), "{error}");
    for (problem, part) in error.problems().iter().zip(parts) {
        assert!(problem.contains(part), "{problem:?} does not have {part:?}");
    }
}

#[test]
fn the_family_is_inferred_and_its_problems_come_at_once() {
    let package = Package::open(&data("vit"), DeviceId::Cpu).unwrap();
    assert_eq!((package.settings.family, package.settings.max_batch_size), (Family::Vision, 16));
    let dir = copy("vit", "config.json", |json| {
        json["patch_size"] = 16.into();
        json["hidden_act"] = "silu".into();
        json["num_channels"] = 1.into();
    });
    fs::write(dir.path().join("model.toml"), "dtype = 'f16'\nlabels = ['a']").unwrap();
    fs::write(
        dir.path().join("preprocessor_config.json"),
        r#"{"size": 9, "resample": 0, "image_mean": [1]}"#,
    )
    .unwrap();
    refused(
        dir.path(),
        &[
            "the vision family runs in f32, bf16 or int8 so far, got f16",
            "config.json: `hidden_act`: expected gelu",
            "config.json: `num_channels`: expected 3, got 1",
            "preprocessor_config.json: `image_mean`: expected numbers: one, or three",
            "preprocessor_config.json: `image_std`: expected numbers above 0",
            "preprocessor_config.json: `resample`: expected 1 (Lanczos)",
        ],
    );
    let dir = copy("vit", "config.json", |json| json["patch_size"] = 16.into());
    fs::write(dir.path().join("model.toml"), "labels = ['a']").unwrap();
    refused(
        dir.path(),
        &[
            "`vit.embeddings.position_embeddings`: expected shape [1, 5, 16], got [1, 17, 16]",
            "projection.weight`: expected shape [16, 3, 16, 16], got [16, 3, 8, 8]",
            "model.toml: `labels`: expected 4 labels, got 1",
        ],
    );
    let depths = copy("resnet_basic", "config.json", |json| json["depths"] = json!([2, 1, 2]));
    let error = Package::open(depths.path(), DeviceId::Cpu).unwrap_err();
    assert_eq!(error.problems().len(), 10, "{error}");
    assert!(
        error.to_string().contains("stages.2.layers.1.layer.0.convolution.weight` [16, 16, 3, 3] is missing")
    );
    let wide = copy("resnet_basic", "config.json", |json| json["hidden_sizes"] = json!([8, 12, 4096]));
    fs::write(wide.path().join("model.toml"), "dtype = 'int8'").unwrap();
    let error = Package::open(wide.path(), DeviceId::Cpu).unwrap_err();
    let reason = "`dtype`: int8 expects layers of at most 32768 inputs, got 36864";
    assert!(error.to_string().contains(reason), "{error}");
    let depths = copy("resnet_basic", "config.json", |json| json["depths"] = json!([2]));
    refused(depths.path(), &["`depths`: expected as many as `hidden_sizes`, 3, got [2]"]);
}

#[test]
fn preprocessors_must_fit() {
    let with = |name: &str, key: &str, value: Value| {
        copy(name, "preprocessor_config.json", |json| json[key] = value.clone())
    };
    refused(with("vit", "size", json!(40)).path(), &["expected images of 32 by 32 as config.json has them"]);
    refused(with("vit", "size", json!({"shortest_edge": 32})).path(), &["a model takes images of one size"]);
    refused(
        with("vit", "size", json!({"height": 0, "width": 32})).path(),
        &["`size`: expected height and width"],
    );
    refused(
        with("vit", "image_processor_type", json!("SamImageProcessor")).path(),
        &["expected one of ViTImage"],
    );
    refused(with("vit", "image_std", json!([1, 0, 1])).path(), &["`image_std`: expected numbers above 0"]);
    refused(with("resnet_basic", "crop_pct", json!(2)).path(), &["`crop_pct`: expected 0.1 to 1, got 2"]);
    refused(with("resnet_basic", "do_resize", json!(false)).path(), &["a model takes images of one size"]);
    // The oldest files have one number, and the processor under another name.
    let old = copy("resnet_basic", "preprocessor_config.json", |json| {
        json["size"] = 24.into();
        json["image_processor_type"] = Value::Null;
        json["feature_extractor_type"] = "ConvNextFeatureExtractor".into();
    });
    let input = |dir: &Path| prepare(&*load(dir), images(&[read("colour.jpg")])).unwrap();
    assert_eq!(input(old.path()), input(&data("resnet_basic")));
    let none = copy("vit", "", |_| {});
    fs::remove_file(none.path().join("preprocessor_config.json")).unwrap();
    refused(none.path(), &["preprocessor_config.json: no such file: the vision family needs it"]);
}

/// Models of several hundred megabytes: where `SCONCE_VISION=FOLDER` names a folder that `data/make_vision.py FOLDER` wrote. Prints
/// times and differences.
#[test]
fn published_sizes_give_what_transformers_gives() {
    let Some(root) = std::env::var_os("SCONCE_VISION").map(PathBuf::from) else { return };
    for name in ["resnet_50", "vit_b_16"] {
        let json = fs::read(root.join(name).join("expected.json")).unwrap();
        let want: Vec<Vec<f32>> = serde_json::from_slice(&json).unwrap();
        for dtype in ["f32", "bf16", "int8"] {
            fs::write(root.join(name).join("model.toml"), format!("dtype = '{dtype}'")).unwrap();
            let model = load(&root.join(name));
            let mut backend = model.instance().unwrap();
            for rows in [1, want.len()] {
                let input = prepare(&*model, fixed(rows, (224, 224))).unwrap();
                let error = worst(&run(&mut *backend, vec![input.clone()])[0], &want[..rows].concat());
                let least = (0..3).map(|_| {
                    let start = std::time::Instant::now();
                    run(&mut *backend, vec![input.clone()]);
                    start.elapsed()
                });
                println!("{name} {dtype}: {rows} images {:?}, off by {error:e}", least.min().unwrap());
                assert!(error < if dtype == "f32" { 1e-5 } else { 0.05 });
            }
        }
    }
}
