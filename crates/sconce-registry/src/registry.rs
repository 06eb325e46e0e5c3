use crate::audit::{self, Head};
use crate::folder::Folder;
use crate::store::Store;
use crate::witness::Witness;
use crate::{
    Artifacts, AuditEntry, AuditReport, Digest, Journal, ModelRecord, RegistryError, Result, VersionRecord,
    limits,
};
use sconce_core::{ModelName, ModelVersion, abbreviate};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// What sled may keep of the catalogue in memory. A record is some kilobytes and reads are rare (the server routes by what it
/// holds itself), so a small cache does; sled's default is 1 GiB.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// Models, versions and aliases on disk, with their files, an audit trail and a journal.
///
/// Everything blocks. A change returns once it is on disk, and one change is made at a time; reads run beside it. A read may
/// show a change that is being written and not yet acknowledged. If a change cannot be brought to disk, further ones are
/// refused until the registry is opened again, for what the disk holds is unknown until then; reads may be refused as well,
/// where they need what could not be written.
pub struct Registry {
    pub(crate) catalogue: Store,
    pub(crate) journal: Journal,
    pub(crate) artifacts: Artifacts,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) generation: AtomicU64,
    /// What backups that are being written still need, and how many of them.
    pub(crate) held: Mutex<BTreeMap<Digest, u64>>,
    /// Last, so that the folder is given up when all in it is closed.
    pub(crate) folder: Folder,
}

/// What only the one that changes the catalogue needs.
pub(crate) struct Writer {
    pub(crate) head: Head,
    pub(crate) witness: Witness,
    /// Model names ever used.
    pub(crate) names: u64,
    /// Why nothing more is written.
    pub(crate) failed: Option<String>,
}

impl Registry {
    /// Opens the registry in `dir`, or makes one in a folder that is missing or empty.
    ///
    /// # Errors
    /// `FailedPrecondition` when another process has it open, when a newer program wrote it (nothing is touched then), when
    /// the folder has something else in it or may not be written; `Internal` when what lies there is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, Witness::open)
    }

    /// As [`open`](Self::open), but leaves `HEAD` as it is: that it is missing would be a trace of whoever removed it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inspect(dir: &Path) -> Result<Self> {
        Self::open_with(dir, Witness::read)
    }

    fn open_with(dir: &Path, witness: fn(&Path, &Store) -> Result<Witness>) -> Result<Self> {
        let folder = Folder::open(dir)?;
        // No thread of sled's: what moves pages in its log runs between our barriers only, and a background flush would
        // sync where nobody asked. The price: sled reuses a segment of its log when nothing in it is current any more, but
        // does not empty one. A backup and restore packs the log.
        let catalogue = Store::open(&folder.catalogue(), CACHE_BYTES, None)?;
        let witness = witness(&folder.head(), &catalogue)?;
        let artifacts = Artifacts::open(&folder.artifacts())?;
        let journal = Journal::open(&folder.journal())?;
        let head = audit::read_head(&catalogue)?;
        let generation = match catalogue.get(key::GENERATION)? {
            Some(stored) => decode("the generation", &stored)?,
            None => 0,
        };
        let mut names = 0;
        for prefix in [key::MODELS, key::DELETED] {
            catalogue.scan(prefix, Bound::Unbounded, |_, _| {
                names += 1;
                Ok(true)
            })?;
        }
        let writer = Mutex::new(Writer { head, witness, names, failed: None });
        let generation = AtomicU64::new(generation);
        Ok(Self { catalogue, journal, artifacts, writer, generation, held: Mutex::default(), folder })
    }

    /// The content of versions' files.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// What is written often and may age: exposures, feedback, reviews, monitors.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The routing generation: one more with each change of what aliases mean, of which versions exist or are archived, and
    /// of what should run, and of documents. Whoever reads several records and finds the same generation before and after has read one state
    /// of those.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Bytes that the catalogue takes on disk, artifacts and journal not counted.
    ///
    /// # Errors
    /// `Internal` when it cannot be measured.
    pub fn catalogue_bytes(&self) -> Result<u64> {
        self.catalogue.disk_bytes()
    }

    /// A model.
    ///
    /// # Errors
    /// `NotFound`; `Internal` when its record cannot be read.
    pub fn model(&self, name: &ModelName) -> Result<ModelRecord> {
        let missing = || RegistryError::NotFound(format!("model `{name}`: no such model"));
        self.find_model(name)?.ok_or_else(missing)
    }

    /// Models behind `after`, by name, at most `limit` (1 to [`limits::PAGE`]).
    ///
    /// # Errors
    /// `InvalidArgument` for another limit; `Internal` when a record cannot be read.
    pub fn models(&self, after: Option<&ModelName>, limit: usize) -> Result<Vec<ModelRecord>> {
        let limit = limits::page(limit)?;
        self.page(key::MODELS, after.map(key::model), limit)
    }

    /// A version.
    ///
    /// # Errors
    /// `NotFound` when the model or the version does not exist; `Internal` when the record cannot be read.
    pub fn version(&self, model: &ModelName, version: ModelVersion) -> Result<VersionRecord> {
        match self.catalogue.get(&key::version(model, version))? {
            Some(stored) => decode("a version", &stored),
            None => {
                self.model(model)?;
                Err(RegistryError::NotFound(format!("model `{model}`: no version {version}")))
            }
        }
    }

    /// Versions of `model` behind `after`, by number, at most `limit` (1 to [`limits::PAGE`]).
    ///
    /// # Errors
    /// `NotFound` when the model does not exist; `InvalidArgument` for another limit; `Internal` when a record cannot be read.
    pub fn versions(
        &self,
        model: &ModelName,
        after: Option<ModelVersion>,
        limit: usize,
    ) -> Result<Vec<VersionRecord>> {
        let limit = limits::page(limit)?;
        self.model(model)?;
        self.page(&key::versions(model), after.map(|version| key::version(model, version)), limit)
    }

    /// The version of `model` with this label.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when it can be no label; `Internal` when the record cannot be read.
    pub fn version_by_label(&self, model: &ModelName, label: &str) -> Result<VersionRecord> {
        limits::check_label(label)?;
        let Some(stored) = self.catalogue.get(&key::label(model, label))? else {
            self.model(model)?;
            return Err(RegistryError::NotFound(format!("model `{model}`: no version is labelled {label}")));
        };
        self.version(model, decode("a label", &stored)?)
    }

    /// What `text` means: a number, an alias or a label of `model`.
    ///
    /// # Errors
    /// `NotFound` when it means nothing; `InvalidArgument` when it can mean nothing.
    pub fn resolve(&self, model: &ModelName, text: &str) -> Result<ModelVersion> {
        if let Some(version) = ModelVersion::parse(text) {
            return Ok(self.version(model, version)?.version);
        }
        if limits::check_alias(text).is_ok() {
            let aliases = self.model(model)?.aliases;
            let unknown = || RegistryError::NotFound(format!("model `{model}`: no alias `{text}`"));
            return aliases.get(text).map(|alias| alias.version).ok_or_else(unknown);
        }
        if limits::check_label(text).is_ok() {
            return Ok(self.version_by_label(model, text)?.version);
        }
        let got = abbreviate(text);
        Err(RegistryError::invalid(format!("version: expected a number, an alias or a label, got {got:?}")))
    }

    /// Audit entries behind number `after_seq`, at most `limit` (1 to [`limits::PAGE`]). They are not judged.
    ///
    /// # Errors
    /// `InvalidArgument` for another limit; `Internal` when an entry cannot be read.
    pub fn audit(&self, after_seq: u64, limit: usize) -> Result<Vec<AuditEntry>> {
        let limit = limits::page(limit)?;
        let mut entries = Vec::new();
        let after = audit::entry_key(after_seq);
        self.catalogue.scan(audit::ENTRIES, Bound::Excluded(&after), |_, stored| {
            entries.push(audit::parse(&stored)?);
            Ok(entries.len() < limit)
        })?;
        Ok(entries)
    }

    /// The number of the latest audit entry; 0: there is none.
    pub fn last_entry(&self) -> u64 {
        self.hold_writer().head.seq
    }

    /// Walks along the whole audit trail. Changes wait.
    ///
    /// # Errors
    /// `Internal` when it cannot be read; a chain that is broken is no error but in the report.
    pub fn verify_audit(&self) -> Result<AuditReport> {
        // Entries and head are two reads: no change may come between them.
        let writer = self.hold_writer();
        self.audit_report(&writer)
    }

    /// What [`verify_audit`](Self::verify_audit) will say for as long as this is open, if `HEAD` was missing when it was
    /// opened although there were changes; whoever serves should say so in a log.
    pub fn lost_head(&self) -> Option<String> {
        self.hold_writer().witness.lost.clone()
    }

    pub(crate) fn audit_report(&self, writer: &Writer) -> Result<AuditReport> {
        let mut report = audit::verify(&self.catalogue)?;
        report.problem = report.problem.or_else(|| writer.witness.lost.clone());
        Ok(report)
    }

    pub(crate) fn find_model(&self, name: &ModelName) -> Result<Option<ModelRecord>> {
        let stored = self.catalogue.get(&key::model(name))?;
        stored.map(|stored| decode("a model", &stored)).transpose()
    }

    /// Keeps changes out, also where they are refused anyway.
    pub(crate) fn hold_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(|poisoned| {
            let mut writer = poisoned.into_inner();
            writer.failed.get_or_insert_with(|| "a change was cut short by a panic".to_owned());
            writer
        })
    }

    /// Calls `visit` with every version of every model, by name and number.
    pub(crate) fn each_version(&self, mut visit: impl FnMut(VersionRecord) -> Result<()>) -> Result<()> {
        self.catalogue.scan(key::VERSIONS, Bound::Unbounded, |_, stored| {
            visit(decode("a version", &stored)?)?;
            Ok(true)
        })
    }

    fn page<T: DeserializeOwned>(
        &self,
        prefix: &[u8],
        after: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<T>> {
        let mut records = Vec::new();
        let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.catalogue.scan(prefix, start, |key, stored| {
            records.push(decode(&String::from_utf8_lossy(key), &stored)?);
            Ok(records.len() < limit)
        })?;
        Ok(records)
    }
}

pub(crate) fn decode<T: DeserializeOwned>(what: &str, stored: &[u8]) -> Result<T> {
    serde_json::from_slice(stored).map_err(|error| RegistryError::damaged(format!("{what}: {error}")))
}

/// Where what is stored. Names have no `/`, so no key can be read in two ways.
pub(crate) mod key {
    use sconce_core::{ModelName, ModelVersion};

    pub(crate) const GENERATION: &[u8] = b"generation";
    pub(crate) const MODELS: &[u8] = b"m/";
    pub(crate) const VERSIONS: &[u8] = b"v/";
    pub(crate) const LABELS: &[u8] = b"l/";
    pub(crate) const DOCUMENTS: &[u8] = b"doc/";
    /// Names of deleted models, with the highest version number they ever gave.
    pub(crate) const DELETED: &[u8] = b"d/";

    pub(crate) fn model(name: &ModelName) -> Vec<u8> {
        [MODELS, name.as_str().as_bytes()].concat()
    }

    pub(crate) fn deleted(name: &ModelName) -> Vec<u8> {
        [DELETED, name.as_str().as_bytes()].concat()
    }

    pub(crate) fn versions(model: &ModelName) -> Vec<u8> {
        [VERSIONS, model.as_str().as_bytes(), b"/"].concat()
    }

    pub(crate) fn version(model: &ModelName, version: ModelVersion) -> Vec<u8> {
        [&versions(model), &version.get().to_be_bytes()[..]].concat()
    }

    pub(crate) fn label(model: &ModelName, label: &str) -> Vec<u8> {
        [LABELS, model.as_str().as_bytes(), b"/", label.as_bytes()].concat()
    }

    pub(crate) fn documents(model: &ModelName) -> Vec<u8> {
        [DOCUMENTS, model.as_str().as_bytes(), b"/"].concat()
    }

    pub(crate) fn document(model: &ModelName, kind: &str) -> Vec<u8> {
        [&documents(model), kind.as_bytes()].concat()
    }
}
