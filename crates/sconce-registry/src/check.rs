//! Whether a registry is in order.

use crate::registry::{decode, key};
use crate::{
    AuditReport, Digest, Document, FileRecord, Garbage, ModelRecord, Registry, RegistryError, Result,
    VersionRecord, limits,
};
use sconce_core::ModelVersion;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Most problems that a report names.
const PROBLEMS: usize = 1_000;
/// Most versions named beside a content that is damaged.
const NAMED: usize = 5;

/// What [`Registry::check`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Models.
    pub models: u64,
    /// Versions.
    pub versions: u64,
    /// Aliases.
    pub aliases: u64,
    /// Documents.
    pub documents: u64,
    /// Contents that versions have, each counted once.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What garbage collection would remove.
    pub garbage: Garbage,
    /// The audit trail.
    pub audit: AuditReport,
    /// What is wrong, at most 1,000 things.
    pub problems: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty() && self.audit.is_intact()
    }

    fn problem(&mut self, what: impl FnOnce() -> String) {
        if self.problems.len() < PROBLEMS {
            self.problems.push(what());
        }
    }
}

/// What is known of a model while its versions are counted.
struct Counted {
    record: ModelRecord,
    versions: BTreeSet<ModelVersion>,
    labels: u64,
}

impl Registry {
    /// Reads every record, every file and the whole audit trail, and says what is wrong. Changes wait while records are read;
    /// files are read beside them.
    ///
    /// # Errors
    /// `Internal` when the store itself cannot be read; what is wrong with what is read stands in the report.
    pub fn check(&self) -> Result<CheckReport> {
        let writer = self.hold_writer();
        let audit = self.audit_report(&writer)?;
        let (models, versions, aliases, documents, blobs, bytes) = (0, 0, 0, 0, 0, 0);
        let (garbage, problems) = (Garbage::default(), Vec::new());
        let mut report =
            CheckReport { models, versions, aliases, documents, blobs, bytes, garbage, audit, problems };
        let mut models = self.read_models(&mut report)?;
        let files = self.read_versions(&mut report, &mut models)?;
        self.read_labels(&mut report, &mut models)?;
        self.read_documents(&mut report, &models)?;
        for counted in models.into_values() {
            counted.judge(&mut report);
        }
        report.garbage = self.artifacts.collect(&|digest| Ok(files.contains_key(digest)), true)?;
        let _held = self.hold(files.keys().copied().collect());
        drop(writer);
        let mut damaged = BTreeMap::new();
        for file in files.values() {
            report.blobs += 1;
            report.bytes = report.bytes.saturating_add(file.bytes);
            if let Err(error) = self.artifacts.verify(file)
                && damaged.len() < PROBLEMS
            {
                let detail = match error {
                    RegistryError::Corrupt { detail, .. } => detail,
                    other => other.to_string(),
                };
                damaged.insert(file.digest, detail);
            }
        }
        for problem in self.tell_damage(&damaged)? {
            report.problem(|| problem);
        }
        Ok(report)
    }

    /// What is wrong with contents, told with the versions that have them and how each is repaired.
    pub(crate) fn tell_damage(&self, damaged: &BTreeMap<Digest, String>) -> Result<Vec<String>> {
        let mut users = BTreeMap::<Digest, (Vec<String>, u64)>::new();
        if !damaged.is_empty() {
            self.catalogue.scan(key::VERSIONS, Bound::Unbounded, |_, stored| {
                // A record that cannot be read is told of by itself.
                let Ok(record) = decode::<VersionRecord>("a version", &stored) else { return Ok(true) };
                for file in record.files.iter().filter(|file| damaged.contains_key(&file.digest)) {
                    let (model, version, path) = (&record.model, record.version, &file.path);
                    let (named, more) = users.entry(file.digest).or_default();
                    if named.len() < NAMED {
                        named.push(format!("model `{model}` version {version}: file `{path}`"));
                    } else {
                        *more += 1;
                    }
                }
                Ok(true)
            })?;
        }
        let tell = |(digest, detail): (&Digest, &String)| {
            let (mut named, more) = users.remove(digest).unwrap_or_default();
            if more > 0 {
                named.push(format!("{more} more"));
            }
            format!("{}: {detail}; pushing the same content again repairs it", named.join(", "))
        };
        Ok(damaged.iter().map(tell).collect())
    }

    fn read_models(&self, report: &mut CheckReport) -> Result<BTreeMap<String, Counted>> {
        let mut models = BTreeMap::new();
        self.catalogue.scan(key::MODELS, Bound::Unbounded, |at, stored| {
            match decode::<ModelRecord>("its record", &stored) {
                Ok(record) if key::model(&record.name) == at => {
                    report.models += 1;
                    report.aliases += record.aliases.len() as u64;
                    let name = record.name.as_str().to_owned();
                    models.insert(name, Counted { record, versions: BTreeSet::new(), labels: 0 });
                }
                Ok(record) => report.problem(|| format!("{}: has the record of {}", show(at), record.name)),
                Err(error) => report.problem(|| format!("{}: {error}", show(at))),
            }
            Ok(true)
        })?;
        Ok(models)
    }

    /// Returns every content that a version has, as one of the files that have it.
    fn read_versions(
        &self,
        report: &mut CheckReport,
        models: &mut BTreeMap<String, Counted>,
    ) -> Result<BTreeMap<Digest, FileRecord>> {
        let mut files = BTreeMap::<Digest, FileRecord>::new();
        self.catalogue.scan(key::VERSIONS, Bound::Unbounded, |at, stored| {
            let record = match decode::<VersionRecord>("its record", &stored) {
                Ok(record) if key::version(&record.model, record.version) == at => record,
                Ok(record) => {
                    let VersionRecord { model, version, .. } = record;
                    report.problem(|| format!("{}: has the record of {model} version {version}", show(at)));
                    return Ok(true);
                }
                Err(error) => {
                    report.problem(|| format!("{}: {error}", show(at)));
                    return Ok(true);
                }
            };
            report.versions += 1;
            let name = format!("model `{}` version {}", record.model, record.version);
            if let Err(error) = limits::check_files(&record.files) {
                report.problem(|| format!("{name}: {error}"));
            }
            match models.get_mut(record.model.as_str()) {
                Some(counted) => {
                    counted.versions.insert(record.version);
                    counted.labels += u64::from(record.label.is_some());
                }
                None => report.problem(|| format!("{name}: its model does not exist")),
            }
            for file in record.files {
                let known = files.entry(file.digest).or_insert_with(|| file.clone());
                if known.bytes != file.bytes {
                    report.problem(|| {
                        format!("{name}: {}: says another length than {}", file.path, known.path)
                    });
                }
            }
            Ok(true)
        })?;
        Ok(files)
    }

    fn read_labels(&self, report: &mut CheckReport, models: &mut BTreeMap<String, Counted>) -> Result<()> {
        self.catalogue.scan(key::LABELS, Bound::Unbounded, |at, stored| {
            let rest = at.strip_prefix(key::LABELS).unwrap_or_default();
            let found = std::str::from_utf8(rest).ok().and_then(|text| text.split_once('/'));
            let version = decode::<ModelVersion>("a label", &stored).ok();
            let meant = found.zip(version).and_then(|((model, label), version)| {
                let counted = models.get_mut(model)?;
                let record = self.version(&counted.record.name, version).ok()?;
                (record.label.as_deref() == Some(label)).then_some(counted)
            });
            match meant {
                Some(counted) => counted.labels = counted.labels.wrapping_sub(1),
                None => report.problem(|| format!("{}: no version has this label", show(at))),
            }
            Ok(true)
        })
    }
}

impl Registry {
    fn read_documents(&self, report: &mut CheckReport, models: &BTreeMap<String, Counted>) -> Result<()> {
        let mut counts = BTreeMap::<String, usize>::new();
        self.catalogue.scan(key::DOCUMENTS, Bound::Unbounded, |at, stored| {
            let document = match decode::<Document>("a document", &stored) {
                Ok(document) if key::document(&document.model, &document.kind) == at => document,
                Ok(document) => {
                    let Document { model, kind, .. } = document;
                    report.problem(|| format!("{}: has document `{kind}` of {model}", show(at)));
                    return Ok(true);
                }
                Err(error) => {
                    report.problem(|| format!("{}: {error}", show(at)));
                    return Ok(true);
                }
            };
            report.documents += 1;
            let name = format!("model `{}`: document `{}`", document.model, document.kind);
            *counts.entry(document.model.to_string()).or_default() += 1;
            let entries = 1..=report.audit.entries;
            if report.audit.is_intact() && !entries.contains(&document.revision) {
                let revision = document.revision;
                report.problem(|| format!("{name}: revision {revision} is no audit entry"));
            }
            let Some(counted) = models.get(document.model.as_str()) else {
                report.problem(|| format!("{name}: its model does not exist"));
                return Ok(true);
            };
            for version in document.names.versions.difference(&counted.versions) {
                report.problem(|| format!("{name}: names version {version}: no such version"));
            }
            for alias in document.names.aliases {
                if !counted.record.aliases.contains_key(&alias) {
                    report.problem(|| format!("{name}: names alias `{alias}`: no such alias"));
                }
            }
            Ok(true)
        })?;
        for (model, count) in counts.into_iter().filter(|(_, count)| *count > limits::DOCUMENTS) {
            report.problem(|| format!("model `{model}`: has {count} documents, more than it may"));
        }
        Ok(())
    }
}

impl Counted {
    fn judge(self, report: &mut CheckReport) {
        let Self { record, versions, labels } = self;
        let name = format!("model `{}`", record.name);
        if record.version_count != versions.len() as u64 {
            let counted = record.version_count;
            report.problem(|| format!("{name}: has {} versions, its record says {counted}", versions.len()));
        }
        let highest = versions.last().map_or(0, |version| version.get());
        if highest > record.highest_version {
            report.problem(|| {
                format!("{name}: has version {highest}, its highest is {}", record.highest_version)
            });
        }
        if labels != 0 {
            report.problem(|| format!("{name}: a label of its versions cannot be looked up"));
        }
        for (alias, meant) in &record.aliases {
            for version in meant.previous.iter().chain([&meant.version]) {
                if !versions.contains(version) {
                    report.problem(|| {
                        format!("{name}: alias `{alias}` means version {version}: no such version")
                    });
                }
            }
        }
    }
}

fn show(key: &[u8]) -> String {
    format!("record {:?}", String::from_utf8_lossy(key))
}
