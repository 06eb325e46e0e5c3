//! What several tests need. None needs all of it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test needs some of it; the helpers of a test fail the test"
)]

use sconce_core::{ModelName, ModelVersion};
use sconce_registry::{
    By, Import, Limits, NewVersion, Registry, SignatureRecord, TensorRecord, VersionRecord,
};
use std::io::Write;

pub(crate) fn by() -> By {
    By::new("tester", "a test")
}

pub(crate) fn name(text: &str) -> ModelName {
    ModelName::new(text).unwrap()
}

pub(crate) fn number(number: u64) -> ModelVersion {
    ModelVersion::new(number).unwrap()
}

/// Imports files: path and content.
pub(crate) fn import(registry: &Registry, files: &[(&str, &[u8])]) -> Import {
    let mut importer = registry.artifacts().importer(Limits::default());
    for (path, content) in files {
        let mut writer = importer.file(path, content.len() as u64).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
    }
    importer.finish().unwrap()
}

/// Registers the next version of `model`, with one file.
pub(crate) fn register(registry: &Registry, model: &str, content: &[u8]) -> VersionRecord {
    let import = import(registry, &[("weights", content)]);
    registry.register(NewVersion::new(name(model)), import, &by()).unwrap()
}

pub(crate) fn signature() -> SignatureRecord {
    let tensor = |name: &str, shape: &[i64]| TensorRecord {
        name: name.to_owned(),
        datatype: "FP32".to_owned(),
        shape: shape.to_vec(),
        optional: false,
        form: 0,
    };
    SignatureRecord {
        inputs: vec![tensor("x", &[-1, 4])],
        outputs: vec![tensor("y", &[-1, 1])],
        max_batch_size: 8,
    }
}

/// Everything that the catalogue says.
pub(crate) fn export(registry: &Registry) -> String {
    let mut bytes = Vec::new();
    registry.export_json(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}
