//! Bounds of everything that is stored, and the checks that hold to them.

use crate::{
    By, DocumentChange, FileRecord, Gates, Lineage, NewVersion, RegistryError, Result, SignatureRecord,
    TensorRecord, artifacts,
};
use sconce_core::{ModelVersion, abbreviate};
use std::collections::{BTreeMap, BTreeSet};

/// Model names ever used, deleted ones included.
pub const MODELS: u64 = 100_000;
/// Versions of a model.
pub const VERSIONS: u64 = 10_000;
/// Aliases of a model.
pub const ALIASES: usize = 64;
/// Bytes of an alias.
pub const ALIAS_BYTES: usize = 64;
/// Versions an alias remembers.
pub const HISTORY: usize = 256;
/// Files of a version.
pub const FILES: usize = 1_024;
/// Bytes of a file's path.
pub const PATH_BYTES: usize = artifacts::MAX_PATH_BYTES;
/// Bytes of a description, and of each text of a lineage.
pub const DESCRIPTION_BYTES: usize = 4_096;
/// Tags of a model or a version, monitors of a version, each kind of gate of a model.
pub const TAGS: usize = 64;
/// Bytes of the name of a tag, a metric, a monitor.
pub const KEY_BYTES: usize = 64;
/// Bytes of a tag's value and of what a monitor refers to.
pub const VALUE_BYTES: usize = 256;
/// Metrics of a version.
pub const METRICS: usize = 256;
/// Bytes of a label.
pub const LABEL_BYTES: usize = 64;
/// Inputs, and outputs, of a signature.
pub const TENSORS: usize = 1_024;
/// Dimensions of a tensor.
pub const DIMENSIONS: usize = 16;
/// Bytes of an actor.
pub const ACTOR_BYTES: usize = 256;
/// Bytes of a reason.
pub const REASON_BYTES: usize = 1_024;
/// Smoke samples of a model.
pub const SMOKE_SAMPLES: usize = 16;
/// Bytes of a smoke sample.
pub const SMOKE_BYTES: usize = 8 * 1024;
/// Documents of a model.
pub const DOCUMENTS: usize = 16;
/// Bytes of what a document says, as JSON.
pub const DOCUMENT_BYTES: usize = 512 * 1024;
/// Bytes of a document's kind.
pub const KIND_BYTES: usize = 32;
/// Versions, and aliases, that a document names.
pub const NAMED: usize = 64;
/// Bytes of what a document says that the audit trail keeps; of a longer one it keeps the digest.
pub const AUDITED_BYTES: usize = 16 * 1024;
/// Records of one page of a list.
pub const PAGE: usize = 1_000;
/// Bytes of a stored record.
pub const RECORD_BYTES: usize = 1024 * 1024;

/// Checks what to make an alias mean. It means a version, never an alias: so no alias can lead back to itself.
///
/// # Errors
/// `InvalidArgument` when `alias` is no alias's name or `target` no version.
pub fn alias_target(alias: &str, target: &str) -> Result<ModelVersion> {
    check_alias(alias)?;
    let explain = || {
        let what =
            if target == alias { "it cannot mean itself" } else { "it means a version, never an alias" };
        RegistryError::invalid(format!(
            "alias `{alias}`: {what}: expected a number, got `{}`",
            abbreviate(target)
        ))
    };
    ModelVersion::parse(target).ok_or_else(explain)
}

pub(crate) fn check_alias(alias: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    let starts = alias.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
    if starts && alias.len() <= ALIAS_BYTES && alias.bytes().all(allowed) {
        return Ok(());
    }
    Err(RegistryError::invalid(format!(
        "alias: expected 1 to {ALIAS_BYTES} characters of A-Z a-z 0-9 _ - starting with a letter, got {:?}",
        abbreviate(alias)
    )))
}

pub(crate) fn check_kind(kind: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    let starts = kind.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if starts && kind.len() <= KIND_BYTES && kind.bytes().all(allowed) {
        return Ok(());
    }
    Err(RegistryError::invalid(format!(
        "document: expected 1 to {KIND_BYTES} characters of a-z 0-9 _ - starting with a letter, got {:?}",
        abbreviate(kind)
    )))
}

pub(crate) fn check_changes(changes: &[DocumentChange]) -> Result<()> {
    count("documents", changes.len(), DOCUMENTS)?;
    let mut kinds = BTreeSet::new();
    for DocumentChange { kind, value, .. } in changes {
        check_kind(kind)?;
        if !kinds.insert(kind) {
            return Err(RegistryError::invalid(format!("document `{kind}`: changed twice at once")));
        }
        let Some((value, names)) = value else { continue };
        let bytes = serde_json::to_vec(value).map_err(RegistryError::damaged)?.len();
        if bytes > DOCUMENT_BYTES {
            let message = format!("document `{kind}`: expected up to {DOCUMENT_BYTES} bytes, got {bytes}");
            return Err(RegistryError::invalid(message));
        }
        count(&format!("document `{kind}`: versions"), names.versions.len(), NAMED)?;
        count(&format!("document `{kind}`: aliases"), names.aliases.len(), NAMED)?;
    }
    Ok(())
}

pub(crate) fn check_label(label: &str) -> Result<()> {
    let parsed = if label.len() <= LABEL_BYTES { semver::Version::parse(label).ok() } else { None };
    match parsed {
        Some(_) => Ok(()),
        None => Err(RegistryError::invalid(format!(
            "label: expected a semantic version of up to {LABEL_BYTES} bytes, such as 1.2.0, got {:?}",
            abbreviate(label)
        ))),
    }
}

pub(crate) fn check_by(by: &By, reason_needed: bool) -> Result<()> {
    line("actor", &by.actor, ACTOR_BYTES)?;
    text("reason", &by.reason, REASON_BYTES)?;
    if by.actor.trim().is_empty() {
        return Err(RegistryError::invalid("actor: expected who makes the change, got nothing"));
    }
    if reason_needed && by.reason.trim().is_empty() {
        return Err(RegistryError::invalid("reason: expected one for what is forced, got nothing"));
    }
    Ok(())
}

pub(crate) fn check_new(new: &NewVersion) -> Result<()> {
    if let Some(label) = &new.label {
        check_label(label)?;
    }
    text("description", &new.description, DESCRIPTION_BYTES)?;
    check_pairs("tag", &new.tags)?;
    check_metrics(&new.metrics)?;
    check_lineage(&new.lineage)?;
    check_signature(&new.signature)?;
    check_pairs("monitor", &new.monitors)
}

pub(crate) fn check_pairs(what: &str, pairs: &BTreeMap<String, String>) -> Result<()> {
    count(&format!("{what}s"), pairs.len(), TAGS)?;
    for (key, value) in pairs {
        check_key(what, key)?;
        text(&format!("{what} `{key}`"), value, VALUE_BYTES)?;
    }
    Ok(())
}

pub(crate) fn check_metrics(metrics: &BTreeMap<String, f64>) -> Result<()> {
    count("metrics", metrics.len(), METRICS)?;
    metrics.iter().try_for_each(|(name, value)| check_number("metric", name, *value))
}

/// Files as a record may hold them: paths that stay below a folder, and no path twice or below another.
pub(crate) fn check_files(files: &[FileRecord]) -> Result<()> {
    if files.is_empty() {
        return Err(RegistryError::invalid("files: expected at least one, got none"));
    }
    count("files", files.len(), FILES)?;
    let mut paths = BTreeSet::new();
    for file in files {
        artifacts::check_path(&file.path)?;
        if !paths.insert(file.path.as_str()) {
            return Err(RegistryError::invalid(format!("file {:?}: given twice", abbreviate(&file.path))));
        }
    }
    let above = |path: &str| path.match_indices('/').find(|(at, _)| paths.contains(&path[..*at])).is_some();
    match paths.iter().find(|path| above(path)) {
        Some(path) => Err(RegistryError::invalid(format!("file {:?}: lies below a file", abbreviate(path)))),
        None => Ok(()),
    }
}

pub(crate) fn check_gates(gates: &Gates) -> Result<()> {
    for (kind, metrics) in [("min_metrics", &gates.min_metrics), ("max_metrics", &gates.max_metrics)] {
        count(kind, metrics.len(), TAGS)?;
        metrics.iter().try_for_each(|(name, value)| check_number(kind, name, *value))?;
    }
    count("not_worse", gates.not_worse.len(), TAGS)?;
    for (name, rule) in &gates.not_worse {
        check_number("not_worse", name, rule.by_at_most)?;
        if rule.by_at_most < 0.0 {
            let got = rule.by_at_most;
            return Err(RegistryError::invalid(format!("not_worse `{name}`: expected 0 or more, got {got}")));
        }
    }
    count("smoke samples", gates.smoke.len(), SMOKE_SAMPLES)?;
    for sample in &gates.smoke {
        text("smoke sample", &sample.request, SMOKE_BYTES)?;
        if serde_json::from_str::<serde::de::IgnoredAny>(&sample.request).is_err() {
            return Err(RegistryError::invalid("smoke sample: expected JSON"));
        }
        if sample.max_latency_ms == 0 {
            return Err(RegistryError::invalid("smoke sample: expected a latency of at least 1 ms, got 0"));
        }
    }
    Ok(())
}

pub(crate) fn check_description(description: &str) -> Result<()> {
    text("description", description, DESCRIPTION_BYTES)
}

/// `reason` cut to what may be stored, for a reason that nobody chose.
pub(crate) fn cut_reason(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES));
    reason
}

pub(crate) fn page(limit: usize) -> Result<usize> {
    if (1..=PAGE).contains(&limit) {
        return Ok(limit);
    }
    Err(RegistryError::invalid(format!("page: expected 1 to {PAGE} records, got {limit}")))
}

fn check_lineage(lineage: &Lineage) -> Result<()> {
    let Lineage { parent: _, training_data, trained_by, trained_at, source } = lineage;
    for (what, value) in [
        ("lineage.training_data", training_data),
        ("lineage.trained_by", trained_by),
        ("lineage.trained_at", trained_at),
        ("lineage.source", source),
    ] {
        text(what, value, DESCRIPTION_BYTES)?;
    }
    Ok(())
}

fn check_signature(signature: &SignatureRecord) -> Result<()> {
    for (what, tensors) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        count(&format!("{what}s"), tensors.len(), TENSORS)?;
        tensors.iter().try_for_each(|tensor| check_tensor(what, tensor))?;
    }
    Ok(())
}

fn check_tensor(what: &str, tensor: &TensorRecord) -> Result<()> {
    line(&format!("{what}'s name"), &tensor.name, VALUE_BYTES)?;
    let what = format!("{what} `{}`", tensor.name);
    count(&format!("{what}: dimensions"), tensor.shape.len(), DIMENSIONS)?;
    if sconce_core::DataType::from_name(&tensor.datatype).is_none() {
        let got = abbreviate(&tensor.datatype);
        return Err(RegistryError::invalid(format!("{what}: expected a datatype such as FP32, got {got:?}")));
    }
    match tensor.shape.iter().find(|size| **size < -1) {
        Some(size) => {
            Err(RegistryError::invalid(format!("{what}: expected sizes of -1 or more, got {size}")))
        }
        None => Ok(()),
    }
}

fn check_key(what: &str, key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(RegistryError::invalid(format!("{what}: expected a name, got nothing")));
    }
    line(&format!("name of a {what}"), key, KEY_BYTES)
}

fn check_number(what: &str, name: &str, value: f64) -> Result<()> {
    check_key(what, name)?;
    if value.is_finite() {
        return Ok(());
    }
    Err(RegistryError::invalid(format!("{what} `{name}`: expected a finite number, got {value}")))
}

/// One line: no control characters.
fn line(what: &str, value: &str, most: usize) -> Result<()> {
    text(what, value, most)?;
    if value.chars().any(char::is_control) {
        return Err(RegistryError::invalid(format!("{what}: control characters in {:?}", abbreviate(value))));
    }
    Ok(())
}

fn text(what: &str, value: &str, most: usize) -> Result<()> {
    if value.len() <= most {
        return Ok(());
    }
    Err(RegistryError::invalid(format!("{what}: expected up to {most} bytes, got {}", value.len())))
}

fn count(what: &str, number: usize, most: usize) -> Result<()> {
    if number <= most {
        return Ok(());
    }
    Err(RegistryError::invalid(format!("{what}: expected up to {most}, got {number}")))
}
