//! Inputs that the files describe instead of listing: generators, repetitions, and streams of segments.

use serde_json::{Map, Value};

/// More values than this in one case are taken for a mistake in the file.
const MAX_VALUES: u64 = 5_000_000;

/// Expands what `input` describes: `{"gen": …}` and `{"repeat": [[value, times], …]}` become lists, and so does what is named
/// as a stream, whose segments are joined.
pub(crate) fn materialise(input: &Value) -> Result<Value, String> {
    let mut left = MAX_VALUES;
    expand(input, &mut left)
}

fn expand(value: &Value, left: &mut u64) -> Result<Value, String> {
    match value {
        Value::Array(items) => {
            let items: Result<Vec<Value>, String> = items.iter().map(|item| expand(item, left)).collect();
            items.map(Value::Array)
        }
        Value::Object(fields) if fields.contains_key("gen") => generate(fields, left).map(Value::Array),
        Value::Object(fields) if fields.contains_key("repeat") => repeat(fields, left).map(Value::Array),
        Value::Object(fields) => {
            let mut expanded = Map::new();
            for (name, field) in fields {
                let field =
                    if name.starts_with("stream") { join(field, left)? } else { expand(field, left)? };
                expanded.insert(name.clone(), field);
            }
            Ok(Value::Object(expanded))
        }
        other => Ok(other.clone()),
    }
}

/// The segments of a stream, one after the other.
fn join(segments: &Value, left: &mut u64) -> Result<Value, String> {
    let segments = segments.as_array().ok_or("`stream`: expected a list of segments")?;
    let mut values = Vec::new();
    for segment in segments {
        match segment {
            Value::Object(fields) => values.extend(generate(fields, left)?),
            value => values.push(value.clone()),
        }
    }
    Ok(Value::Array(values))
}

fn generate(fields: &Map<String, Value>, left: &mut u64) -> Result<Vec<Value>, String> {
    let field = |name: &str| fields.get(name).ok_or_else(|| format!("a generator without `{name}`"));
    let number =
        |name: &str| field(name)?.as_f64().ok_or_else(|| format!("a generator's `{name}` is no number"));
    let whole =
        |name: &str| field(name)?.as_u64().ok_or_else(|| format!("a generator's `{name}` is no count"));
    let mut source = SplitMix64(whole("seed")?);
    let count = whole("n")?;
    reserve(count, left)?;
    let mut values =
        |make: &mut dyn FnMut(&mut SplitMix64) -> Value| Ok((0..count).map(|_| make(&mut source)).collect());
    match field("gen")?.as_str() {
        Some("normal") => {
            let (loc, scale) = (number("loc")?, number("scale")?);
            values(&mut |source| Value::from(loc + scale * source.irwin_hall()))
        }
        Some("uniform") => {
            let (lo, hi) = (number("lo")?, number("hi")?);
            values(&mut |source| Value::from(lo + (hi - lo) * source.unit()))
        }
        Some("bernoulli") => {
            let p = number("p")?;
            values(&mut |source| Value::from(u64::from(source.unit() < p)))
        }
        _ => Err(format!("no generator is called {}", field("gen")?)),
    }
}

fn repeat(fields: &Map<String, Value>, left: &mut u64) -> Result<Vec<Value>, String> {
    let runs = fields.get("repeat").and_then(Value::as_array).ok_or("`repeat`: expected a list of runs")?;
    let mut values = Vec::new();
    for run in runs {
        let pair =
            run.as_array().filter(|pair| pair.len() == 2).ok_or("`repeat`: expected [value, times]")?;
        let times = pair[1].as_u64().ok_or("`repeat`: expected a count of times")?;
        reserve(times, left)?;
        values.extend((0..times).map(|_| pair[0].clone()));
    }
    Ok(values)
}

/// Takes `count` values from those that a case may have.
fn reserve(count: u64, left: &mut u64) -> Result<(), String> {
    *left =
        left.checked_sub(count).ok_or_else(|| format!("expected at most {MAX_VALUES} values in a case"))?;
    Ok(())
}

/// The generator that the files' inputs come from: integer arithmetic and exact floats only, so every language agrees.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1): the upper 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Nearly normal, with mean 0 and variance 1: the sum of twelve uniform values, less 6.
    fn irwin_hall(&mut self) -> f64 {
        let mut sum = 0.0;
        for _ in 0..12 {
            sum += self.unit();
        }
        sum - 6.0
    }
}
