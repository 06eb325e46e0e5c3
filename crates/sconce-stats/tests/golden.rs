//! The golden vectors, and what is like them but wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers of a test fail the test")]

#[path = "../../../tests/golden_runner/runner/mod.rs"]
mod runner;

use fastrand::Rng;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Mutations of each case.
const MUTATIONS: usize = 12;

/// Name and text of every vector file.
fn vectors() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
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

#[test]
fn no_mutation_of_an_input_panics() {
    for (name, text) in vectors() {
        let Some(run) = runner::find(&name) else { continue };
        let file: Value = serde_json::from_str(&text).unwrap();
        let mut random = Rng::with_seed(name.bytes().map(u64::from).sum());
        for case in file["cases"].as_array().unwrap() {
            for _ in 0..MUTATIONS {
                let mut arguments = json!([case["input"], runner::parameters(case)]);
                for _ in 0..random.usize(1..=3) {
                    // The input matters most.
                    let part = usize::from(random.u8(0..6) == 0);
                    mutate(&mut arguments[part], &mut random);
                }
                if let Err(reason) = runner::compute(run, &arguments[0], &arguments[1]) {
                    assert_ne!(reason, "panicked", "{name}: case {}: {arguments}", case["id"]);
                }
            }
        }
    }
}

/// Changes one thing somewhere in `value`.
fn mutate(value: &mut Value, random: &mut Rng) {
    match value {
        Value::Object(fields) => {
            if let Some(field) = random.choice(fields.values_mut().collect::<Vec<_>>()) {
                mutate(field, random);
            }
        }
        Value::Array(items) => match random.u8(0..8) {
            0 => items.truncate(random.usize(0..=items.len().min(3))),
            1 => items.truncate(items.len() / 2),
            2 => items.extend_from_within(..),
            3 => random.shuffle(items),
            4 => {
                let first = items.first().cloned().unwrap_or(json!(0));
                items.fill(first);
            }
            5 => items.iter_mut().for_each(|item| {
                if let Some(number) = item.as_f64() {
                    *item = json!(number * -1e9);
                }
            }),
            _ => {
                if let Some(item) = random.choice(items.iter_mut().collect::<Vec<_>>()) {
                    mutate(item, random);
                }
            }
        },
        leaf => {
            let values = [
                json!("NaN"),
                json!("Infinity"),
                json!("-Infinity"),
                json!(0),
                json!(-1),
                json!(1),
                json!(2),
                json!(0.5),
                json!(1e308),
                json!(-1e308),
                json!(5e-324),
                json!(9_007_199_254_740_991_u64),
                Value::Null,
                json!("?"),
                json!([]),
            ];
            *leaf = values[random.usize(0..values.len())].clone();
        }
    }
}

#[test]
fn the_runner_says_what_is_wrong() {
    let check = |text: &str, expected: &str| {
        let report = runner::check(text);
        let said = report.failures.join("; ");
        assert!(said.contains(expected), "{said}");
    };
    let file = |cases: &str| {
        let head = r#""format":1,"test":"ab_srm","tolerance":{"rel":1e-9,"abs":1e-12}"#;
        format!("{{{head},\"cases\":[{cases}]}}")
    };
    check("{", "is not JSON");
    check(r#"{"format":2}"#, "expected format 1, got 2");
    check(r#"{"format":1,"test":"ab_srm","cases":[],"tolerance":{"rel":"close"}}"#, "`tolerance.rel`");
    check(&file(r#"{"id":"a"}"#), "case a: expected `input` and `expect`");
    let case = |counts: &str, expect: &str| {
        file(&format!(r#"{{"id":"a","input":{{"counts":{counts},"weights":[1,1]}},"expect":{expect}}}"#))
    };
    check(&case("[1,\"x\"]", "{}"), "`counts`: expected a number, got \"x\"");
    check(
        &case(r#"{"gen":"normal","seed":1,"n":1000000000,"loc":0,"scale":1}"#, "{}"),
        "at most 5000000 values",
    );
    check(
        &case("[50,50]", r#"{"pvalue":0.9}"#),
        "pvalue: expected 0.9 within 0.000000000001 or relatively 0.000000001, got 1.0",
    );
    check(&case("[50,50]", r#"{"other":1}"#), "other: expected 1, got nothing");
    check(&case("[50,50]", r#"{"error":"no"}"#), "the result: expected an error");
    check(&case("[-1,50]", r#"{"pvalue":1.0}"#), "the result: expected a result, got the error");
    check(&case("[50,50]", r#"{"srm":0}"#), "srm: expected 0, got false");
    assert_eq!(runner::check(&case("[50,50]", r#"{"pvalue":1.0,"statistic":0.0,"srm":false}"#)).passed, 1);
    let unknown = r#"{"format":1,"test":"unheard","tolerance":{},"cases":[{}]}"#;
    assert_eq!(runner::check(unknown).not_yet, 1);
}
