//! The registry's messages as JSON.

use sconce_client::control_proto as pb;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(crate) fn model(model: &pb::Model) -> Value {
    let alias = |alias: &pb::Alias| json!({ "version": alias.version, "previous": alias.previous });
    let aliases: Map<_, _> = model.aliases.iter().map(|(name, one)| (name.clone(), alias(one))).collect();
    json!({
        "name": model.name,
        "description": model.description,
        "tags": model.tags,
        "created_at_ms": model.created_at_ms,
        "highest_version": model.highest_version,
        "aliases": aliases,
        "gates": GatesFile::from(model.gates.clone().unwrap_or_default()),
        "unloaded": model.unloaded,
    })
}

pub(crate) fn version(version: &pb::Version) -> Value {
    let lineage = version.lineage.clone().unwrap_or_default();
    let signature = version.signature.clone().unwrap_or_default();
    let tensors = |specs: &[pb::TensorSpec]| -> Vec<Value> { specs.iter().map(tensor).collect() };
    let file = |file: &pb::File| json!({ "path": file.path, "digest": file.digest, "bytes": file.bytes });
    json!({
        "model": version.model,
        "version": version.version,
        "label": version.label,
        "state": state(version),
        "state_reason": version.state_reason,
        "wanted": wanted(version),
        "aliases": version.aliases,
        "created_at_ms": version.created_at_ms,
        "created_by": version.created_by,
        "description": version.description,
        "tags": version.tags,
        "metrics": version.metrics,
        "lineage": {
            "parent": (lineage.parent != 0).then_some(lineage.parent),
            "training_data": lineage.training_data,
            "trained_by": lineage.trained_by,
            "trained_at": lineage.trained_at,
            "source": lineage.source,
        },
        "signature": {
            "inputs": tensors(&signature.inputs),
            "outputs": tensors(&signature.outputs),
            "max_batch_size": signature.max_batch_size,
        },
        "files": version.files.iter().map(file).collect::<Vec<_>>(),
        "memory_bytes": (version.memory_bytes != 0).then_some(version.memory_bytes),
        "monitors": version.monitors,
    })
}

pub(crate) fn tensor(spec: &pb::TensorSpec) -> Value {
    json!({
        "name": spec.name, "datatype": spec.datatype, "shape": spec.shape, "optional": spec.optional, "form": spec.form,
    })
}

pub(crate) fn entry(entry: &pb::AuditEntry) -> Value {
    // What is no JSON is passed on as the text it is.
    let value = |text: &str| match text {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    };
    json!({
        "seq": entry.seq,
        "at_ms": entry.at_ms,
        "actor": entry.actor,
        "reason": entry.reason,
        "action": entry.action,
        "model": entry.model,
        "version": (entry.version != 0).then_some(entry.version),
        "alias": (!entry.alias.is_empty()).then_some(&entry.alias),
        "document": (!entry.document.is_empty()).then_some(&entry.document),
        "forced": entry.forced,
        "before": value(&entry.before_json),
        "after": value(&entry.after_json),
        "generation": entry.generation,
        "hash": entry.hash,
    })
}

pub(crate) fn gate(gate: &pb::GateResult) -> Value {
    json!({ "gate": gate.gate, "passed": gate.passed, "detail": gate.detail })
}

/// `ready`, `failed`, …
pub(crate) fn state(version: &pb::Version) -> String {
    version.state().as_str_name().trim_start_matches("VERSION_STATE_").to_ascii_lowercase()
}

/// `auto`, `loaded` or `unloaded`.
pub(crate) fn wanted(version: &pb::Version) -> String {
    version.wanted().as_str_name().trim_start_matches("WANTED_").to_ascii_lowercase()
}

/// A model's gates in a file, which is what `sconce model gates --json` prints.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GatesFile {
    min_metrics: BTreeMap<String, f64>,
    max_metrics: BTreeMap<String, f64>,
    not_worse: BTreeMap<String, NotWorse>,
    any_signature: bool,
    smoke: Vec<Smoke>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotWorse {
    by_at_most: f64,
    #[serde(default)]
    lower_is_better: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Smoke {
    /// What is asked, and the range of what must be answered.
    request: Value,
    #[serde(default)]
    max_latency_ms: u64,
}

impl From<pb::Gates> for GatesFile {
    fn from(gates: pb::Gates) -> Self {
        let not_worse = |(name, rule): (String, pb::NotWorse)| {
            (name, NotWorse { by_at_most: rule.by_at_most, lower_is_better: rule.lower_is_better })
        };
        let smoke = |sample: pb::Smoke| Smoke {
            request: serde_json::from_str(&sample.request_json)
                .unwrap_or_else(|_| sample.request_json.into()),
            max_latency_ms: sample.max_latency_ms,
        };
        Self {
            min_metrics: gates.min_metrics,
            max_metrics: gates.max_metrics,
            not_worse: gates.not_worse.into_iter().map(not_worse).collect(),
            any_signature: gates.any_signature,
            smoke: gates.smoke.into_iter().map(smoke).collect(),
        }
    }
}

impl From<GatesFile> for pb::Gates {
    fn from(gates: GatesFile) -> Self {
        let not_worse = |(name, rule): (String, NotWorse)| {
            (name, pb::NotWorse { by_at_most: rule.by_at_most, lower_is_better: rule.lower_is_better })
        };
        let smoke = |sample: Smoke| pb::Smoke {
            // An export has it as the text that is stored.
            request_json: match sample.request {
                Value::String(text) => text,
                request => request.to_string(),
            },
            max_latency_ms: sample.max_latency_ms,
        };
        Self {
            min_metrics: gates.min_metrics,
            max_metrics: gates.max_metrics,
            not_worse: gates.not_worse.into_iter().map(not_worse).collect(),
            any_signature: gates.any_signature,
            smoke: gates.smoke.into_iter().map(smoke).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_printed_as_they_are_read() {
        let text = r#"{"min_metrics": {"auc": 0.9}, "not_worse": {"loss": {"by_at_most": 0.01, "lower_is_better": true}},
            "smoke": [{"request": {"inputs": {"x": [[1]]}}, "max_latency_ms": 50}]}"#;
        let file: GatesFile = serde_json::from_str(text).unwrap();
        let printed = serde_json::to_string(&GatesFile::from(pb::Gates::from(file))).unwrap();
        let again: GatesFile = serde_json::from_str(&printed).unwrap();
        assert_eq!(again, serde_json::from_str(text).unwrap());
        for bad in [r#"{"min_metric": {}}"#, r#"{"min_metrics": {"a": "high"}}"#, "5", "null"] {
            assert!(serde_json::from_str::<GatesFile>(bad).is_err(), "{bad}");
        }
    }
}
