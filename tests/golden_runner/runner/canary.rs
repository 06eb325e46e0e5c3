//! The canary judge.

use super::Run;
use super::arguments::{Arguments, Fault, number, pair, unexpected};
use sconce_stats::canary::{Class, Direction, Judged, compare, score};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(crate) fn find(test: &str) -> Option<Run> {
    let run: Run = match test {
        "canary_mannwhitney_hl" => mann_whitney,
        "canary_score" => weighted_score,
        _ => return None,
    };
    Some(run)
}

fn mann_whitney(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let direction: Direction = named("direction", arguments.value("direction")?)?;
    let (experiment, control) = (arguments.numbers("experiment")?, arguments.numbers("control")?);
    let (confidence, tolerance) = (arguments.number("conf")?, arguments.number("tol")?);
    let result = compare(&experiment, &control, confidence, tolerance, direction)?;
    Ok(json!({
        "ci": pair(result.interval.low, result.interval.high),
        "hl_estimate": number(result.shift),
        "hl_exact_median_of_differences": number(result.median_difference),
        "mean_ratio": number(result.mean_ratio),
        "cles": number(result.superiority),
        "class": result.class,
    }))
}

fn weighted_score(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let judged = |metric: &Value| {
        let class: Class = named("class", metric.get("class").unwrap_or(&Value::Null))?;
        let group = metric.get("group").and_then(Value::as_str);
        let group = group.ok_or_else(|| unexpected("metrics", "a group", metric))?.to_owned();
        let critical = metric.get("critical").and_then(Value::as_bool).unwrap_or(false);
        Ok(Judged { group, class, critical })
    };
    let metrics: Result<Vec<Judged>, Fault> = arguments.list("metrics")?.iter().map(judged).collect();
    let weights = arguments.value("weights")?;
    let fields: &Map<String, Value> =
        weights.as_object().ok_or_else(|| unexpected("weights", "weights by group", weights))?;
    let weights: Result<BTreeMap<String, f64>, Fault> = fields
        .iter()
        .map(|(group, weight)| {
            let weight = weight.as_f64().ok_or_else(|| unexpected("weights", "a number", weight))?;
            Ok((group.clone(), weight))
        })
        .collect();
    let result = score(&metrics?, &weights?, arguments.number("passing")?, arguments.number("marginal")?)?;
    Ok(json!({ "score": number(result.score), "verdict": result.verdict, "reason": result.reason }))
}

/// A value of a closed set, by its name.
fn named<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T, Fault> {
    T::deserialize(value).map_err(|error| Fault::Malformed(format!("`{name}`: {error}")))
}
