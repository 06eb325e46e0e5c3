//! Records of the registry as messages, and back.

use crate::models::{State, Verdict};
use sconce_core::{Error, ModelVersion, Result, Signature, TensorSpec};
use sconce_proto::sconce as pb;
use sconce_registry as registry;
use sconce_registry::{AuditEntry, ModelRecord, VersionRecord, VersionState, Wanted};

/// How long a smoke sample may take that says nothing of it.
const SMOKE_LATENCY_MS: u64 = 60_000;

pub(super) fn model(record: ModelRecord) -> pb::Model {
    let alias = |(name, alias): (String, registry::Alias)| {
        let previous = alias.previous.into_iter().map(ModelVersion::get).collect();
        (name, pb::Alias { version: alias.version.get(), previous })
    };
    pb::Model {
        name: record.name.to_string(),
        description: record.description,
        tags: record.tags,
        created_at_ms: record.created_at_ms,
        highest_version: record.highest_version,
        aliases: record.aliases.into_iter().map(alias).collect(),
        gates: Some(gates(record.gates)),
        unloaded: record.unloaded,
    }
}

fn gates(gates: registry::Gates) -> pb::Gates {
    let not_worse = |(name, rule): (String, registry::NotWorse)| {
        (name, pb::NotWorse { by_at_most: rule.by_at_most, lower_is_better: rule.lower_is_better })
    };
    let smoke = |sample: registry::SmokeSample| pb::Smoke {
        request_json: sample.request,
        max_latency_ms: sample.max_latency_ms,
    };
    pb::Gates {
        min_metrics: gates.min_metrics,
        max_metrics: gates.max_metrics,
        not_worse: gates.not_worse.into_iter().map(not_worse).collect(),
        any_signature: gates.any_signature,
        smoke: gates.smoke.into_iter().map(smoke).collect(),
    }
}

pub(super) fn to_gates(gates: pb::Gates) -> registry::Gates {
    let not_worse = |(name, rule): (String, pb::NotWorse)| {
        (name, registry::NotWorse { by_at_most: rule.by_at_most, lower_is_better: rule.lower_is_better })
    };
    let latency_ms = |said: u64| if said == 0 { SMOKE_LATENCY_MS } else { said };
    let smoke = |sample: pb::Smoke| registry::SmokeSample {
        request: sample.request_json,
        max_latency_ms: latency_ms(sample.max_latency_ms),
    };
    registry::Gates {
        min_metrics: gates.min_metrics,
        max_metrics: gates.max_metrics,
        not_worse: gates.not_worse.into_iter().map(not_worse).collect(),
        any_signature: gates.any_signature,
        smoke: gates.smoke.into_iter().map(smoke).collect(),
    }
}

/// A version's record, with the state it is in now and the aliases that point at it.
pub(super) fn version(record: VersionRecord, live: Option<State>, aliases: Vec<String>) -> pb::Version {
    let (state, state_reason) = state(&record.state, live);
    let wanted = match record.wanted {
        Wanted::Auto => pb::Wanted::Auto,
        Wanted::Loaded => pb::Wanted::Loaded,
        Wanted::Unloaded => pb::Wanted::Unloaded,
    };
    let file = |file: registry::FileRecord| pb::File {
        path: file.path,
        digest: file.digest.to_string(),
        bytes: file.bytes,
    };
    pb::Version {
        model: record.model.to_string(),
        version: record.version.get(),
        label: record.label.unwrap_or_default(),
        state: state.into(),
        state_reason,
        wanted: wanted.into(),
        aliases,
        created_at_ms: record.created_at_ms,
        created_by: record.created_by,
        description: record.description,
        tags: record.tags,
        metrics: record.metrics,
        lineage: Some(pb::Lineage {
            parent: record.lineage.parent.map_or(0, ModelVersion::get),
            training_data: record.lineage.training_data,
            trained_by: record.lineage.trained_by,
            trained_at: record.lineage.trained_at,
            source: record.lineage.source,
        }),
        signature: Some(signature(record.signature)),
        files: record.files.into_iter().map(file).collect(),
        memory_bytes: record.memory_bytes.unwrap_or(0),
        monitors: record.monitors,
    }
}

pub(super) fn state(stored: &VersionState, live: Option<State>) -> (pb::VersionState, String) {
    match (stored, live) {
        (_, Some(State::Unloading)) => (pb::VersionState::Unloading, String::new()),
        (VersionState::Archived, _) => (pb::VersionState::Archived, String::new()),
        (_, Some(State::Ready(_))) => (pb::VersionState::Ready, String::new()),
        (_, Some(State::Loading)) => (pb::VersionState::Loading, String::new()),
        (VersionState::Failed { reason }, _) => (pb::VersionState::Failed, reason.clone()),
        (VersionState::Registered, _) => (pb::VersionState::Registered, String::new()),
    }
}

fn signature(record: registry::SignatureRecord) -> pb::Signature {
    let spec = |tensor: registry::TensorRecord| pb::TensorSpec {
        name: tensor.name,
        datatype: tensor.datatype,
        shape: tensor.shape,
        optional: tensor.optional,
        form: tensor.form,
    };
    pb::Signature {
        inputs: record.inputs.into_iter().map(spec).collect(),
        outputs: record.outputs.into_iter().map(spec).collect(),
        max_batch_size: record.max_batch_size,
    }
}

/// What the registry keeps of a signature.
pub(super) fn signature_record(signature: &Signature) -> registry::SignatureRecord {
    let tensor = |spec: &TensorSpec| registry::TensorRecord {
        name: spec.name.clone(),
        datatype: spec.datatype.name().to_owned(),
        shape: spec
            .shape
            .iter()
            .map(|dim| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(i64::MAX)))
            .collect(),
        optional: spec.optional,
        form: u32::try_from(spec.form).unwrap_or(u32::MAX),
    };
    registry::SignatureRecord {
        inputs: signature.inputs.iter().map(tensor).collect(),
        outputs: signature.outputs.iter().map(tensor).collect(),
        max_batch_size: signature.max_batch_size as u64,
    }
}

pub(super) fn audit_entry(entry: AuditEntry) -> pb::AuditEntry {
    let json = |value: Option<serde_json::Value>| value.map_or_else(String::new, |value| value.to_string());
    let body = entry.body;
    pb::AuditEntry {
        seq: body.seq,
        at_ms: body.at_ms,
        actor: body.actor,
        reason: body.reason,
        action: body.action,
        model: body.model.to_string(),
        version: body.version.map_or(0, ModelVersion::get),
        alias: body.alias.unwrap_or_default(),
        document: body.document.unwrap_or_default(),
        forced: body.forced,
        before_json: json(body.before),
        after_json: json(body.after),
        generation: body.generation,
        hash: entry.hash.to_string(),
    }
}

pub(super) fn gate_result(verdict: Verdict) -> pb::GateResult {
    pb::GateResult { gate: verdict.gate, passed: verdict.passed, detail: verdict.detail }
}

/// A version number of a message, where 0 says none.
///
/// # Errors
/// `InvalidArgument` beyond what a version can be.
pub(super) fn optional_version(number: u64) -> Result<Option<ModelVersion>> {
    if number == 0 {
        return Ok(None);
    }
    let version = ModelVersion::new(number);
    version
        .map(Some)
        .ok_or_else(|| Error::invalid(format!("version: expected at most {}, got {number}", i64::MAX)))
}
