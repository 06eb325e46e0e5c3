//! Reads a vector file, computes each of its cases with `sconce-stats`, and compares.
//!
//! A file names its test; the groups below map names to functions. Each function takes the case's arguments and answers in
//! the shape of the file's `expect`, as JSON, with NaN and infinities as strings, as the files have them.

mod arguments;
mod canary;
mod compare;
mod compat;
mod divergence;
mod experiment;
mod materialise;
mod performance;
mod sequential;
mod special;
mod streams;
mod two_sample;

use arguments::{Arguments, Fault};
use compare::{Tolerance, compare};
use serde_json::{Value, json};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Computes one case.
pub(crate) type Run = fn(&Arguments<'_>) -> Result<Value, Fault>;

/// The function that computes the cases of the named test, if there is one.
pub(crate) fn find(test: &str) -> Option<Run> {
    let groups = [
        canary::find,
        compat::find,
        divergence::find,
        experiment::find,
        performance::find,
        sequential::find,
        special::find,
        streams::find,
        two_sample::find,
    ];
    groups.iter().find_map(|group| group(test))
}

/// What came of a file's cases.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Cases that came out as expected.
    pub(crate) passed: usize,
    /// Cases of tests without an implementation.
    pub(crate) not_yet: usize,
    /// What is wrong with the others, one entry a case, or with the file as a whole.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// The report of a file that could not be used at all.
    pub(crate) fn broken(reason: String) -> Self {
        Self { failures: vec![reason], ..Self::default() }
    }

    /// Counts another file's cases in.
    #[allow(dead_code, reason = "the command adds files up; the test does not")]
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.not_yet += other.not_yet;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} not yet", self.passed, self.failures.len(), self.not_yet)
    }
}

/// Checks the text of a vector file. Whatever is wrong with it is a failure in the report.
pub(crate) fn check(text: &str) -> Report {
    let file: Value = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(error) => return Report::broken(format!("is not JSON: {error}")),
    };
    if file["format"] != json!(1) {
        return Report::broken(format!("expected format 1, got {}", file["format"]));
    }
    let (Some(test), Some(cases)) = (file["test"].as_str(), file["cases"].as_array()) else {
        return Report::broken("expected a name in `test` and a list in `cases`".to_owned());
    };
    let tolerance = match Tolerance::read(&file["tolerance"]) {
        Ok(tolerance) => tolerance,
        Err(reason) => return Report::broken(reason),
    };
    let Some(run) = find(test) else {
        return Report { not_yet: cases.len(), ..Report::default() };
    };
    let mut report = Report::default();
    for case in cases {
        match check_case(run, case, &tolerance) {
            Ok(()) => report.passed += 1,
            Err(reason) => {
                let id = case["id"].as_str().unwrap_or("without an id");
                report.failures.push(format!("case {id}: {reason}"));
            }
        }
    }
    report
}

/// What came of the input: a result, or the error that refuses it. `Err` is a case that cannot be computed at all.
pub(crate) fn compute(run: Run, input: &Value, params: &Value) -> Result<Value, String> {
    let input = materialise::materialise(input)?;
    // The statistics must not panic. Should one, the other cases are still worth knowing.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&Arguments::new(&input, params))));
    match outcome {
        Ok(Ok(actual)) => Ok(actual),
        Ok(Err(Fault::Refused(error))) => Ok(refusal(&error)),
        Ok(Err(Fault::Malformed(reason))) => Err(reason),
        Err(_) => Err("panicked".to_owned()),
    }
}

/// The parameters of a case; its id is one, as some files say with it what is to be computed.
pub(crate) fn parameters(case: &Value) -> Value {
    let mut parameters = case.get("params").and_then(Value::as_object).cloned().unwrap_or_default();
    parameters.insert("id".to_owned(), case["id"].clone());
    Value::Object(parameters)
}

fn check_case(run: Run, case: &Value, tolerance: &Tolerance) -> Result<(), String> {
    let (Some(input), Some(expected)) = (case.get("input"), case.get("expect")) else {
        return Err("expected `input` and `expect`".to_owned());
    };
    let actual = compute(run, input, &parameters(case))?;
    compare(expected, &actual, tolerance)
}

/// A typed error, in the shape that the files have for errors.
pub(crate) fn refusal(error: &sconce_stats::StatsError) -> Value {
    json!({ "error": error.to_string() })
}
