//! Recorded requests as data of load generators.

use super::recording::Recorded;
use super::run::{Plan, request};
use super::{Selection, Survey};
use crate::progress::{self, Bar};
use crate::{Failure, Outcome, text};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sconce_client::Parameter;
use sconce_client::proto::ModelInferRequest;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::ExitCode;

/// Writes an array of messages, as `ghz --data-file` takes them: it sends them in turn, at a rate of its own.
pub(super) fn ghz(selection: &Selection, plan: &Plan, survey: &Survey, path: &Path) -> Outcome {
    write(selection, survey, path, |recorded| message(request(plan, recorded).into_message()))
}

/// Writes an array of messages with their times, deadlines and metadata, as `loadtest/k6_replay.js` takes them.
pub(super) fn k6(selection: &Selection, plan: &Plan, survey: &Survey, path: &Path) -> Outcome {
    write(selection, survey, path, |recorded| {
        let after_us = recorded.at_us.saturating_sub(survey.first_us).max(0);
        let from_metadata = recorded.keys.iter().filter(|key| key.from == "metadata");
        let metadata = from_metadata.map(|key| (key.name.as_str(), key.value.as_str()));
        let metadata =
            metadata.chain(plan.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        json!({
            "after_ms": after_us as f64 / 1e3,
            "timeout_ms": recorded.timeout.unwrap_or(plan.deadline).as_millis() as u64,
            "metadata": metadata.collect::<std::collections::BTreeMap<_, _>>(),
            "message": message(request(plan, recorded).into_message()),
        })
    })
}

fn write(selection: &Selection, survey: &Survey, path: &Path, item: impl Fn(&Recorded) -> Value) -> Outcome {
    let cannot = |error: &dyn std::fmt::Display| -> Failure {
        format!("cannot write {}: {error}", path.display()).into()
    };
    let mut file = BufWriter::new(File::create(path).map_err(|error| cannot(&error))?);
    let (mut bar, mut written) = (Bar::default(), 0);
    selection.each(
        |recorded, share| {
            file.write_all(if written == 0 { b"[\n" } else { b",\n" }).map_err(|error| cannot(&error))?;
            serde_json::to_writer(&mut file, &item(&recorded)).map_err(|error| cannot(&error))?;
            written += 1;
            bar.show_share("recording written", share);
            Ok(true)
        },
        |_| {},
    )?;
    progress::clear_line();
    file.write_all(b"\n]\n").and_then(|()| file.flush()).map_err(|error| cannot(&error))?;
    let lacking: u64 = survey.lacking.values().sum();
    let lacking =
        if lacking == 0 { String::new() } else { format!("; {}", super::page::reasons(&survey.lacking)) };
    say!("wrote {} to {}{lacking}", text::count(written, "request"), path.display())?;
    Ok(ExitCode::SUCCESS)
}

/// A message in protobuf's JSON: bytes are base64.
fn message(message: ModelInferRequest) -> Value {
    let inputs = message.inputs.iter();
    let inputs =
        inputs.map(|input| json!({ "name": input.name, "datatype": input.datatype, "shape": input.shape }));
    let outputs = message.outputs.iter().map(|output| json!({ "name": output.name }));
    let raw = message.raw_input_contents.iter().map(|data| STANDARD.encode(data));
    let mut parameters = Map::new();
    for (name, value) in &message.parameters {
        let value = match &value.parameter_choice {
            Some(Parameter::StringParam(text)) => json!({ "string_param": text }),
            Some(Parameter::Uint64Param(number)) => json!({ "uint64_param": number }),
            _ => continue,
        };
        parameters.insert(name.clone(), value);
    }
    json!({
        "model_name": message.model_name,
        "model_version": message.model_version,
        "id": message.id,
        "parameters": parameters,
        "inputs": inputs.collect::<Vec<_>>(),
        "outputs": outputs.collect::<Vec<_>>(),
        "raw_input_contents": raw.collect::<Vec<_>>(),
    })
}
