//! A case's arguments, by name and type. What is missing or of another type makes the case malformed.

use sconce_stats::StatsError;
use serde_json::Value;

/// Why a case has no result.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The statistic refuses the input, as it should or not.
    Refused(StatsError),
    /// The case itself is wrong.
    Malformed(String),
}

impl From<StatsError> for Fault {
    fn from(error: StatsError) -> Self {
        Self::Refused(error)
    }
}

/// The input and the parameters of one case. Names are looked up in the input first.
pub(crate) struct Arguments<'a> {
    input: &'a Value,
    params: &'a Value,
}

impl<'a> Arguments<'a> {
    /// The arguments of a case, generators expanded.
    pub(crate) fn new(input: &'a Value, params: &'a Value) -> Self {
        Self { input, params }
    }

    /// The value of that name, `null` and absence alike `None`.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        let value = self.input.get(name).or_else(|| self.params.get(name));
        value.filter(|value| !value.is_null())
    }

    /// The value of that name.
    pub(crate) fn value(&self, name: &str) -> Result<&'a Value, Fault> {
        self.get(name).ok_or_else(|| Fault::Malformed(format!("expected `{name}`, found none")))
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> Result<f64, Fault> {
        as_number(name, self.value(name)?)
    }

    /// A number, or `default` where it is absent.
    pub(crate) fn number_or(&self, name: &str, default: f64) -> Result<f64, Fault> {
        self.get(name).map_or(Ok(default), |value| as_number(name, value))
    }

    /// A whole number.
    pub(crate) fn count(&self, name: &str) -> Result<u64, Fault> {
        as_count(name, self.value(name)?)
    }

    /// A whole number, or `default` where it is absent.
    pub(crate) fn count_or(&self, name: &str, default: u64) -> Result<u64, Fault> {
        self.get(name).map_or(Ok(default), |value| as_count(name, value))
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Result<&'a str, Fault> {
        let value = self.value(name)?;
        value.as_str().ok_or_else(|| unexpected(name, "a text", value))
    }

    /// A text, or `default` where it is absent.
    pub(crate) fn text_or(&self, name: &str, default: &'a str) -> Result<&'a str, Fault> {
        if self.get(name).is_some() { self.text(name) } else { Ok(default) }
    }

    /// Yes or no, or `default` where it is absent.
    pub(crate) fn flag_or(&self, name: &str, default: bool) -> Result<bool, Fault> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| unexpected(name, "true or false", value))
    }

    /// A list of anything.
    pub(crate) fn list(&self, name: &str) -> Result<&'a [Value], Fault> {
        as_list(name, self.value(name)?)
    }

    /// A list of numbers.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f64>, Fault> {
        as_numbers(name, self.value(name)?)
    }

    /// A list of whole numbers.
    pub(crate) fn counts(&self, name: &str) -> Result<Vec<u64>, Fault> {
        self.list(name)?.iter().map(|value| as_count(name, value)).collect()
    }

    /// A list of lists of numbers.
    pub(crate) fn rows(&self, name: &str) -> Result<Vec<Vec<f64>>, Fault> {
        self.list(name)?.iter().map(|row| as_numbers(name, row)).collect()
    }
}

/// A number as the files have it: NaN and infinities are texts.
pub(crate) fn number(value: f64) -> Value {
    if value.is_nan() {
        Value::from("NaN")
    } else if value.is_infinite() {
        Value::from(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        Value::from(value)
    }
}

/// Numbers as the files have them.
pub(crate) fn numbers(values: impl IntoIterator<Item = f64>) -> Value {
    Value::Array(values.into_iter().map(number).collect())
}

/// Two numbers, such as the ends of an interval.
pub(crate) fn pair(first: f64, second: f64) -> Value {
    numbers([first, second])
}

/// The number that a value of a file stands for.
pub(crate) fn to_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        // Labels of two classes are numbers to the statistics.
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// The fault of `value` being something else than `expected`.
pub(crate) fn unexpected(name: &str, expected: &str, value: &Value) -> Fault {
    let mut got = value.to_string();
    if got.len() > 60 {
        let end = (0..=60).rev().find(|&at| got.is_char_boundary(at)).unwrap_or(0);
        got.truncate(end);
        got.push('…');
    }
    Fault::Malformed(format!("`{name}`: expected {expected}, got {got}"))
}

fn as_number(name: &str, value: &Value) -> Result<f64, Fault> {
    to_number(value).ok_or_else(|| unexpected(name, "a number", value))
}

/// The largest count that a float holds exactly.
const LARGEST_COUNT: f64 = 9_007_199_254_740_992.0;

/// The count that a value of a file stands for.
pub(crate) fn as_count(name: &str, value: &Value) -> Result<u64, Fault> {
    let number = as_number(name, value)?;
    if number.fract() != 0.0 || !(0.0..=LARGEST_COUNT).contains(&number) {
        return Err(unexpected(name, "a count", value));
    }
    Ok(number as u64)
}

fn as_list<'a>(name: &str, value: &'a Value) -> Result<&'a [Value], Fault> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| unexpected(name, "a list", value))
}

fn as_numbers(name: &str, value: &Value) -> Result<Vec<f64>, Fault> {
    as_list(name, value)?.iter().map(|value| as_number(name, value)).collect()
}
