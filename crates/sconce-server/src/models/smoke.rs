//! Samples that a version must answer before an alias may point at it.

use super::{Models, Served, Verdict};
use crate::dispatch::{self, Job};
use sconce_core::{ByteBudget, Error, ErrorCode, Result, json};
use sconce_registry::SmokeSample;
use sconce_scheduler::{Priority, Tenant};
use sconce_telemetry::traces::{Method, Observed, RequestTrace};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a smoke sample's text says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SmokeText {
    inputs: serde_json::Map<String, serde_json::Value>,
    /// The range of every number of an output.
    #[serde(default)]
    outputs: BTreeMap<String, Range>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    min: f64,
    max: f64,
}

/// What a sample says.
///
/// # Errors
/// `InvalidArgument` when that is no request.
pub(crate) fn check(sample: &SmokeSample) -> Result<()> {
    read(sample).map(drop)
}

fn read(sample: &SmokeSample) -> Result<SmokeText> {
    // Of an object: serde would take a list as well.
    let object: serde_json::Result<serde_json::Map<_, _>> = serde_json::from_str(&sample.request);
    object.and_then(|object| serde_json::from_value(object.into())).map_err(|error| {
        let expected =
            "a smoke sample: expected an object of `inputs`, by name, and maybe the range of `outputs`";
        Error::invalid(format!("{expected}: {error}"))
    })
}

/// Whether `served` answers a sample as it should.
pub(super) async fn smoke(
    models: &Arc<Models>,
    served: &Served,
    index: usize,
    sample: &SmokeSample,
) -> Verdict {
    let outcome = answer(models, served, sample).await;
    let (passed, detail) = match outcome {
        Ok(took) => (true, format!("answered in {took:.1?}")),
        Err(error) => (false, error.to_string()),
    };
    Verdict { gate: format!("smoke[{index}]"), passed, detail }
}

async fn answer(models: &Arc<Models>, served: &Served, sample: &SmokeSample) -> Result<Duration> {
    let text = read(sample)?;
    let tensors = json::to_request(served.signature(), &text.inputs)?;
    let started = Instant::now();
    let limit = Duration::from_millis(sample.max_latency_ms);
    let job = Job {
        tensors,
        priority: Priority::default(),
        arrived_at: started,
        deadline: Some(started + limit),
        // Of no budget of the callers': what the registry has, it may ask.
        reservation: ByteBudget::new(usize::MAX).empty(),
        tenant: Tenant::default(),
        depth: 0,
    };
    let late = || Error::new(ErrorCode::DeadlineExceeded, format!("no answer within {limit:.1?}"));
    let mut observed = Observed::new(RequestTrace::new(None), Method::Unary, started);
    let answered = dispatch::infer(models, served, job, &mut observed).await;
    let (output, _) = answered.map_err(|error| match error.code() {
        ErrorCode::DeadlineExceeded => late(),
        _ => error,
    })?;
    let took = started.elapsed();
    if took > limit {
        return Err(late());
    }
    for (name, range) in &text.outputs {
        let at = served.signature().outputs.iter().position(|spec| spec.name == *name);
        let tensor = at.and_then(|at| output.tensors.get(at));
        let tensor = tensor.ok_or_else(|| Error::invalid(format!("the model has no output `{name}`")))?;
        for value in json::from_tensor(tensor) {
            let within = value.as_f64().is_some_and(|value| (range.min..=range.max).contains(&value));
            if !within {
                let (min, max) = (range.min, range.max);
                return Err(Error::invalid(format!("output `{name}`: expected {min} to {max}, got {value}")));
            }
        }
    }
    Ok(took)
}
