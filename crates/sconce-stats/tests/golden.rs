//! The golden vectors, and what is like them but wrong.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail the test")]

#[path = "../../../tests/golden_runner/runner/mod.rs"]
mod runner;

use std::fs;
use std::path::Path;

/// The text of every vector file.
fn vectors() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        (path.file_stem().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
    };
    files.iter().map(read).collect()
}

#[test]
fn every_vector_passes_at_its_tolerance() {
    let mut failures = Vec::new();
    for (name, text) in vectors() {
        let report = runner::check(&text);
        failures.extend(report.failures.iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
