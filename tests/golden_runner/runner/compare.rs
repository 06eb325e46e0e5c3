//! Compares a result with what a file expects, at the file's tolerance.

use super::arguments::to_number;
use serde_json::Value;

/// Where a file says only how close relatively, a zero may come out as this much.
const ZERO: f64 = 1e-15;
/// Mismatches that are listed of one case.
const MOST_LISTED: usize = 3;

/// How close numbers must come.
#[derive(Debug, Clone, Copy)]
struct Closeness {
    abs: Option<f64>,
    rel: f64,
}

/// How close the numbers of a file must come, by what they are.
#[derive(Debug)]
pub(crate) struct Tolerance {
    /// P-values, where the file sets them apart.
    p_value: Closeness,
    /// Traces of a detector's state.
    every100: Closeness,
    /// All other numbers.
    other: Closeness,
}

impl Tolerance {
    /// Reads a file's `tolerance`.
    pub(crate) fn read(tolerance: &Value) -> Result<Self, String> {
        let fields = tolerance.as_object().ok_or("`tolerance`: expected an object")?;
        for (name, value) in fields {
            let known =
                value.as_f64().is_some_and(|number| number >= 0.0) || *value == "exact" || value.is_boolean();
            if !known {
                return Err(format!("`tolerance.{name}`: expected a number or \"exact\", got {value}"));
            }
        }
        let number = |name: &str| fields.get(name).and_then(Value::as_f64);
        let closeness = |kind: &str| {
            let of_kind = |what: &str| number(&format!("{kind}_{what}")).or_else(|| number(what));
            Closeness { abs: of_kind("abs"), rel: of_kind("rel").unwrap_or(0.0) }
        };
        Ok(Self {
            p_value: closeness("pvalue"),
            every100: closeness("every100"),
            other: closeness("statistic"),
        })
    }

    fn of(&self, path: &[String]) -> Closeness {
        let named = |start: &str| path.iter().any(|part| part.starts_with(start));
        if named("every100") {
            self.every100
        } else if named("pvalue") || named("pvals") {
            self.p_value
        } else {
            self.other
        }
    }
}

/// Says where `actual` differs from `expected`, if it does. An expected error wants an error, whatever its words; where a result
/// offers several values as `any_of`, because the reference leaves its choice open, one must match.
pub(crate) fn compare(expected: &Value, actual: &Value, tolerance: &Tolerance) -> Result<(), String> {
    let mut differences = Vec::new();
    walk(expected, actual, tolerance, &mut Vec::new(), &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(MOST_LISTED);
    differences.truncate(MOST_LISTED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(format!("{}{more}", differences.join("; ")))
}

fn walk(
    expected: &Value,
    actual: &Value,
    tolerance: &Tolerance,
    path: &mut Vec<String>,
    differences: &mut Vec<String>,
) {
    let mut differ = |path: &[String], expected: &str, actual: &str| {
        let place = if path.is_empty() { "the result".to_owned() } else { path.join(".") };
        differences.push(format!("{place}: expected {expected}, got {actual}"));
    };
    match (expected, actual) {
        (_, Value::Object(offer)) if offer.contains_key("any_of") => {
            let values = offer["any_of"].as_array().map_or(&[][..], Vec::as_slice);
            if !values.iter().any(|value| compare_at(expected, value, tolerance, path)) {
                let (expected, count) = (abbreviated(expected), values.len());
                differ(
                    path,
                    &expected,
                    &format!("{count} others, the first of them {}", abbreviated(&values[0])),
                );
            }
        }
        (Value::Object(fields), _) if fields.contains_key("error") => {
            if actual.get("error").is_none() {
                differ(path, "an error", &actual.to_string());
            }
        }
        (Value::Object(_), Value::Object(got)) if got.contains_key("error") => {
            differ(path, "a result", &format!("the error: {}", got["error"]));
        }
        (Value::Object(fields), Value::Object(_)) => {
            for (name, field) in fields {
                path.push(name.clone());
                match actual.get(name) {
                    Some(got) => walk(field, got, tolerance, path, differences),
                    None => differences.push(format!("{}: expected {field}, got nothing", path.join("."))),
                }
                path.pop();
            }
        }
        (Value::Array(items), Value::Array(got)) => {
            if items.len() != got.len() {
                return differ(path, &format!("{} items", items.len()), &got.len().to_string());
            }
            for (index, (item, got)) in items.iter().zip(got).enumerate() {
                path.push(index.to_string());
                walk(item, got, tolerance, path, differences);
                path.pop();
            }
        }
        (Value::Bool(_), _) | (_, Value::Bool(_)) if expected == actual => {}
        _ => match (to_number(expected), to_number(actual)) {
            (Some(wanted), Some(got)) if !expected.is_boolean() && !actual.is_boolean() => {
                let Closeness { abs, rel } = tolerance.of(path);
                if !close(wanted, got, Closeness { abs, rel }) {
                    let allowed = format!("{expected} within {} or relatively {rel}", abs.unwrap_or(0.0));
                    differ(path, &allowed, &actual.to_string());
                }
            }
            _ if expected == actual => {}
            _ => differ(path, &expected.to_string(), &actual.to_string()),
        },
    }
}

/// As much of a value as fits a line.
fn abbreviated(value: &Value) -> String {
    value.to_string().chars().take(120).collect()
}

/// Whether a value matches at a place.
fn compare_at(expected: &Value, actual: &Value, tolerance: &Tolerance, path: &[String]) -> bool {
    let mut differences = Vec::new();
    walk(expected, actual, tolerance, &mut path.to_vec(), &mut differences);
    differences.is_empty()
}

fn close(expected: f64, actual: f64, within: Closeness) -> bool {
    if expected == actual || (expected.is_nan() && actual.is_nan()) {
        return true;
    }
    let abs = within.abs.unwrap_or(if expected == 0.0 && within.rel > 0.0 { ZERO } else { 0.0 });
    (expected - actual).abs() <= abs.max(within.rel * expected.abs())
}
