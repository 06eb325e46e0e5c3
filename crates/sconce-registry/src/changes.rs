//! Changes of the catalogue: how one is made, and those that make and delete versions. Each reads and checks what it needs while it is the only one, and is then one batch:
//! records, routing generation and audit entry together.

use crate::audit::{self, Change};
use crate::registry::{Writer, decode, key};
use crate::store::Batch;
use crate::{
    By, Digest, FileRecord, Garbage, Gates, Import, ModelRecord, Names, NewVersion, Registry, RegistryError,
    Result, VersionRecord, VersionState, Wanted, limits,
};
use sconce_core::{ModelName, ModelVersion};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

impl Registry {
    /// Registers a version with the files of `import`, and its model if that does not exist. Returns its record.
    ///
    /// # Errors
    /// `InvalidArgument` when something is out of bounds ([`limits`]); `AlreadyExists` for a number or label that is taken;
    /// `FailedPrecondition` for a number that is not higher than every one before, or a parent that does not exist;
    /// `ResourceExhausted` when there are too many; and what every change may meet: `Unavailable` after a failed write,
    /// `ResourceExhausted` or `Internal` when writing fails.
    pub fn register(&self, new: NewVersion, import: Import, by: &By) -> Result<VersionRecord> {
        limits::check_by(by, false)?;
        limits::check_new(&new)?;
        limits::check_files(import.files())?;
        let mut writer = self.begin()?;
        let now_ms = now_ms();
        let (mut model, created) = self.model_or_new(&new.model, now_ms, &writer)?;
        // A name that was used before has given a number.
        let first = created && model.highest_version == 0;
        let version =
            next_version(&model, new.version, |version| self.has(&key::version(&model.name, version)))?;
        if model.version_count >= limits::VERSIONS {
            let message = format!("model `{}`: expected up to {} versions", model.name, limits::VERSIONS);
            return Err(RegistryError::Exhausted(message));
        }
        if let Some(label) = new.label.as_ref().filter(|_| !created)
            && self.has(&key::label(&model.name, label))?
        {
            let message = format!("model `{}`: label {label} is taken", model.name);
            return Err(RegistryError::AlreadyExists(message));
        }
        if let Some(parent) = new.lineage.parent
            && !self.has(&key::version(&model.name, parent))?
        {
            let message = format!("model `{}`: no version {parent}, which was given as parent", model.name);
            return Err(RegistryError::Precondition(message));
        }
        let record = VersionRecord {
            model: new.model,
            version,
            label: new.label,
            state: VersionState::Registered,
            wanted: new.wanted,
            created_at_ms: now_ms,
            created_by: by.actor.clone(),
            description: new.description,
            tags: new.tags,
            metrics: new.metrics,
            lineage: new.lineage,
            signature: new.signature,
            files: import.files().to_vec(),
            memory_bytes: None,
            monitors: new.monitors,
        };
        model.highest_version = version.get();
        model.version_count += 1;
        let mut batch = Batch::new();
        put(&mut batch, key::model(&model.name), &model)?;
        put(&mut batch, key::version(&model.name, version), &record)?;
        if let Some(label) = &record.label {
            put(&mut batch, key::label(&model.name, label), &version)?;
        }
        if created {
            batch.insert(key::deleted(&model.name), None);
        }
        let mut change = change("register", by, &model.name);
        change.version = Some(version);
        change.after = Some(summary(&record));
        self.commit(&mut writer, batch, Some(change), true)?;
        writer.names += u64::from(first);
        drop(writer);
        // Only now may garbage collection judge the files by the record.
        drop(import);
        Ok(record)
    }

    /// Deletes a version. Its files stay until garbage is collected; its number is not given again.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when an alias means it, or a document names it; and as [`Registry::register`].
    pub fn delete_version(&self, model: &ModelName, version: ModelVersion, by: &By) -> Result<()> {
        limits::check_by(by, false)?;
        let mut writer = self.begin()?;
        let mut record = self.model(model)?;
        let deleted = self.version(model, version)?;
        check_unaliased(&record, version, "deleted")?;
        let what = format!("version {version} cannot be deleted");
        self.check_unnamed(model, &what, |names| names.versions.contains(&version))?;
        for alias in record.aliases.values_mut() {
            alias.previous.retain(|previous| *previous != version);
            alias.previous.dedup();
            // Going back must change something.
            while alias.previous.last() == Some(&alias.version) {
                alias.previous.pop();
            }
        }
        record.version_count = record.version_count.saturating_sub(1);
        let mut batch = Batch::new();
        put(&mut batch, key::model(model), &record)?;
        batch.insert(key::version(model, version), None);
        if let Some(label) = &deleted.label {
            batch.insert(key::label(model, label), None);
        }
        let mut change = change("delete_version", by, model);
        change.version = Some(version);
        change.before = Some(summary(&deleted));
        self.commit(&mut writer, batch, Some(change), true)?;
        Ok(())
    }

    /// Deletes a model with all its versions and documents. Should the name be used again, numbers go on where they ended.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when it has an alias, or a document that names a version; and as [`Registry::register`].
    pub fn delete_model(&self, model: &ModelName, by: &By) -> Result<()> {
        limits::check_by(by, false)?;
        let mut writer = self.begin()?;
        let record = self.model(model)?;
        if let Some((alias, target)) = record.aliases.first_key_value() {
            return Err(RegistryError::Precondition(format!(
                "model `{model}`: cannot be deleted: alias `{alias}` means version {}",
                target.version
            )));
        }
        let named = |names: &Names| !names.versions.is_empty();
        self.check_unnamed(model, "it cannot be deleted with its versions", named)?;
        let mut batch = Batch::new();
        batch.insert(key::model(model), None);
        for document in self.documents(model)? {
            batch.insert(key::document(model, &document.kind), None);
        }
        put(&mut batch, key::deleted(model), &record.highest_version)?;
        let prefix = key::versions(model);
        self.catalogue.scan(&prefix, Bound::Unbounded, |stored_at, stored| {
            let version: VersionRecord = decode("a version", &stored)?;
            batch.insert(stored_at.to_vec(), None);
            if let Some(label) = &version.label {
                batch.insert(key::label(model, label), None);
            }
            Ok(true)
        })?;
        let mut change = change("delete_model", by, model);
        change.before = Some(json!({ "versions": record.version_count, "highest": record.highest_version }));
        self.commit(&mut writer, batch, Some(change), true)?;
        Ok(())
    }

    /// Removes content that no version has, or counts it. Changes wait until it is done. What is being imported or backed up
    /// stays.
    ///
    /// # Errors
    /// `Unavailable` after a failed write; `Internal` when a record or a file cannot be read or removed.
    pub fn collect_garbage(&self, dry_run: bool) -> Result<Garbage> {
        let _writer = self.begin()?;
        let mut live: BTreeSet<Digest> = BTreeSet::new();
        self.each_version(|version| {
            live.extend(version.files.iter().map(|file| file.digest));
            Ok(())
        })?;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.artifacts.collect(&|digest| Ok(live.contains(digest) || held.contains_key(digest)), dry_run)
    }

    /// Why nothing can be written any more, if that is so: after a write that failed, until it is opened again.
    pub fn unwritable(&self) -> Option<String> {
        self.hold_writer().failed.clone()
    }

    /// Becomes the one that changes the catalogue.
    pub(crate) fn begin(&self) -> Result<MutexGuard<'_, Writer>> {
        let writer = self.hold_writer();
        match &writer.failed {
            Some(reason) => Err(RegistryError::Unwritable(reason.clone())),
            None => Ok(writer),
        }
    }

    /// Brings a change to disk, with its audit entries; returns the generation after it.
    pub(crate) fn commit<'a>(
        &self,
        writer: &mut Writer,
        mut batch: Batch,
        changes: impl IntoIterator<Item = Change<'a>>,
        routes: bool,
    ) -> Result<u64> {
        let generation = self.generation() + u64::from(routes);
        let mut head = writer.head;
        for change in changes {
            let (next, entry) = head.append(change, now_ms(), generation)?;
            batch.insert(audit::entry_key(next.seq), Some(entry));
            put(&mut batch, audit::HEAD.to_vec(), &next)?;
            head = next;
        }
        put(&mut batch, key::GENERATION.to_vec(), &generation)?;
        let publish = || self.generation.store(generation, Ordering::Release);
        match self.catalogue.apply(&batch, publish).and_then(|()| self.catalogue.sync()) {
            Ok(()) => {
                writer.head = head;
                writer.witness.write(head);
                Ok(generation)
            }
            // Refused before anything was written.
            Err(error @ RegistryError::Exhausted(_)) => Err(error),
            Err(error) => {
                writer.failed = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// The model, or one to be made, and whether it is that.
    fn model_or_new(&self, name: &ModelName, now_ms: u64, writer: &Writer) -> Result<(ModelRecord, bool)> {
        if let Some(model) = self.find_model(name)? {
            return Ok((model, false));
        }
        let highest_version = match self.catalogue.get(&key::deleted(name))? {
            Some(stored) => decode("a deleted model", &stored)?,
            None if writer.names >= limits::MODELS => {
                return Err(RegistryError::Exhausted(format!("models: expected up to {}", limits::MODELS)));
            }
            None => 0,
        };
        let model = ModelRecord {
            name: name.clone(),
            description: String::new(),
            tags: BTreeMap::new(),
            created_at_ms: now_ms,
            highest_version,
            version_count: 0,
            aliases: BTreeMap::new(),
            gates: Gates::default(),
            unloaded: false,
        };
        Ok((model, true))
    }

    /// Whether a document may name a version.
    pub(crate) fn check_named(&self, model: &ModelName, version: ModelVersion) -> Result<()> {
        let record = self.version(model, version)?;
        match record.state {
            VersionState::Archived => Err(archived(model, version)),
            _ if record.wanted == Wanted::Unloaded => Err(unloaded_on_purpose(model, version)),
            VersionState::Registered | VersionState::Failed { .. } => Ok(()),
        }
    }

    /// Whether an alias of `model` may mean `version`.
    pub(crate) fn check_servable(&self, model: &ModelRecord, version: ModelVersion) -> Result<()> {
        let ModelRecord { name: model, unloaded, .. } = model;
        let record = self.version(model, version)?;
        match record.state {
            VersionState::Registered if *unloaded => {
                Err(RegistryError::Precondition(format!("model `{model}` is unloaded as a whole")))
            }
            VersionState::Registered if record.wanted == Wanted::Unloaded => {
                Err(unloaded_on_purpose(model, version))
            }
            VersionState::Registered => Ok(()),
            VersionState::Archived => Err(archived(model, version)),
            VersionState::Failed { reason } => Err(RegistryError::Precondition(format!(
                "model `{model}`: version {version} could not be loaded: {reason}"
            ))),
        }
    }

    fn has(&self, key: &[u8]) -> Result<bool> {
        Ok(self.catalogue.get(key)?.is_some())
    }
}

/// The number that a new version gets.
fn next_version(
    model: &ModelRecord,
    asked: Option<ModelVersion>,
    exists: impl FnOnce(ModelVersion) -> Result<bool>,
) -> Result<ModelVersion> {
    let name = &model.name;
    match asked {
        None => {
            let next = model.highest_version.checked_add(1).and_then(ModelVersion::new);
            next.ok_or_else(|| RegistryError::Exhausted(format!("model `{name}`: no higher version number")))
        }
        Some(version) if version.get() > model.highest_version => Ok(version),
        Some(version) if exists(version)? => {
            Err(RegistryError::AlreadyExists(format!("model `{name}`: version {version} exists")))
        }
        Some(version) => Err(RegistryError::Precondition(format!(
            "model `{name}`: version {version} is not above {}: a number is given once",
            model.highest_version
        ))),
    }
}

pub(crate) fn check_unaliased(model: &ModelRecord, version: ModelVersion, what: &str) -> Result<()> {
    match model.aliases.iter().find(|(_, alias)| alias.version == version) {
        Some((alias, _)) => Err(RegistryError::Precondition(format!(
            "model `{}`: version {version} cannot be {what}: alias `{alias}` means it",
            model.name
        ))),
        None => Ok(()),
    }
}

pub(crate) fn unloaded_on_purpose(model: &ModelName, version: ModelVersion) -> RegistryError {
    RegistryError::Precondition(format!("model `{model}`: version {version} is unloaded on purpose"))
}

pub(crate) fn archived(model: &ModelName, version: ModelVersion) -> RegistryError {
    RegistryError::Precondition(format!("model `{model}`: version {version} is archived"))
}

/// What the audit trail says of a version: not its files one by one, but a digest of their list.
fn summary(record: &VersionRecord) -> Value {
    let bytes: u64 = record.files.iter().fold(0, |sum, file: &FileRecord| sum.saturating_add(file.bytes));
    let content = serde_json::to_vec(&record.files).map(|list| Digest::of(&list)).ok();
    json!({ "label": record.label, "files": record.files.len(), "bytes": bytes, "content": content })
}

pub(crate) fn change<'a>(action: &'static str, by: &'a By, model: &'a ModelName) -> Change<'a> {
    let (version, alias, document, forced, before, after) = (None, None, None, false, None, None);
    Change { action, by, model, version, alias, document, forced, before, after }
}

pub(crate) fn put(batch: &mut Batch, key: Vec<u8>, record: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(record).map_err(RegistryError::damaged)?;
    batch.insert(key, Some(bytes));
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
