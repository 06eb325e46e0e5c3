//! Changes of one record: what is said of a model or a version, and what state it is in.

use crate::audit::Change;
use crate::changes::{archived, change, check_unaliased, put};
use crate::registry::key;
use crate::store::Batch;
use crate::{
    By, ModelRecord, ModelUpdate, Outcome, Registry, RegistryError, Result, VersionRecord, VersionState,
    VersionUpdate, Wanted, limits,
};
use sconce_core::{ModelName, ModelVersion, abbreviate};
use serde::Serialize;
use serde_json::{Map, Value, json};

impl Registry {
    /// Keeps a version from being loaded and aliased.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when an alias means it, a document names it, or it is archived; and as [`Registry::register`].
    pub fn archive(&self, model: &ModelName, version: ModelVersion, by: &By) -> Result<VersionRecord> {
        self.change_state("archive", model, version, by)
    }

    /// Makes an archived version available again.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when it is not archived; and as [`Registry::register`].
    pub fn unarchive(&self, model: &ModelName, version: ModelVersion, by: &By) -> Result<VersionRecord> {
        self.change_state("unarchive", model, version, by)
    }

    /// Says something else of a model: all of it or nothing.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when something is out of bounds; and as [`Registry::register`].
    pub fn update_model(&self, model: &ModelName, say: ModelUpdate, by: &By) -> Result<ModelRecord> {
        let edit = |record: &mut ModelRecord| {
            let (mut before, mut after) = (Map::new(), Map::new());
            set(&mut record.description, say.description, "description", &mut before, &mut after);
            set(&mut record.tags, say.tags, "tags", &mut before, &mut after);
            set(&mut record.gates, say.gates, "gates", &mut before, &mut after);
            limits::check_description(&record.description)?;
            limits::check_pairs("tag", &record.tags)?;
            limits::check_gates(&record.gates)?;
            Ok((Value::Object(before), Value::Object(after)))
        };
        self.edit_model("update_model", model, by, false, edit)
    }

    /// Sets whether a model is out of memory as a whole. What is said of its versions stays as it is, and holds again afterwards.
    ///
    /// # Errors
    /// `NotFound`; and as [`Registry::register`].
    pub fn set_unloaded(&self, model: &ModelName, unloaded: bool, by: &By) -> Result<ModelRecord> {
        let edit = |record: &mut ModelRecord| {
            let before = std::mem::replace(&mut record.unloaded, unloaded);
            Ok((json!({ "unloaded": before }), json!({ "unloaded": unloaded })))
        };
        self.edit_model(if unloaded { "unload_model" } else { "load_model" }, model, by, true, edit)
    }

    /// Says something else of a version: all of it or nothing.
    ///
    /// # Errors
    /// `NotFound`, also for a metric that is to be removed; `InvalidArgument` when something is out of bounds; and as [`Registry::register`].
    pub fn update_version(
        &self,
        model: &ModelName,
        version: ModelVersion,
        say: VersionUpdate,
        by: &By,
    ) -> Result<VersionRecord> {
        let edit = |record: &mut VersionRecord| {
            let (mut before, mut after) = (Map::new(), Map::new());
            let mut metrics = record.metrics.clone();
            for name in &say.remove_metrics {
                metrics.remove(name).ok_or_else(|| {
                    let name = abbreviate(name);
                    RegistryError::NotFound(format!("model `{model}` version {version}: no metric {name:?}"))
                })?;
            }
            let changes_metrics = !(say.metrics.is_empty() && say.remove_metrics.is_empty());
            metrics.extend(say.metrics);
            let metrics = changes_metrics.then_some(metrics);
            set(&mut record.description, say.description, "description", &mut before, &mut after);
            set(&mut record.tags, say.tags, "tags", &mut before, &mut after);
            set(&mut record.metrics, metrics, "metrics", &mut before, &mut after);
            set(&mut record.monitors, say.monitors, "monitors", &mut before, &mut after);
            limits::check_description(&record.description)?;
            limits::check_pairs("tag", &record.tags)?;
            limits::check_metrics(&record.metrics)?;
            limits::check_pairs("monitor", &record.monitors)?;
            Ok((Value::Object(before), Value::Object(after)))
        };
        self.edit_version("update_version", (model, version), by, false, edit)
    }

    /// Sets whether a version should run. One that should makes an end of its model's being unloaded as a whole, in the same step.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when an archived one is to be loaded, or one unloaded that an alias means or a document names;
    /// and as [`Registry::register`].
    pub fn set_wanted(
        &self,
        model: &ModelName,
        version: ModelVersion,
        wanted: Wanted,
        by: &By,
    ) -> Result<VersionRecord> {
        limits::check_by(by, false)?;
        let mut writer = self.begin()?;
        let mut of = self.model(model)?;
        let mut record = self.version(model, version)?;
        if wanted == Wanted::Loaded && record.state == VersionState::Archived {
            return Err(archived(model, version));
        }
        if wanted == Wanted::Unloaded {
            check_unaliased(&of, version, "unloaded")?;
            let what = format!("version {version} cannot be unloaded");
            self.check_unnamed(model, &what, |names| names.versions.contains(&version))?;
        }
        let (mut batch, mut entries) = (Batch::new(), Vec::new());
        if wanted == Wanted::Loaded && std::mem::take(&mut of.unloaded) {
            put(&mut batch, key::model(model), &of)?;
            let mut entry = change("load_model", by, model);
            entry.before = Some(json!({ "unloaded": true }));
            entry.after = Some(json!({ "unloaded": false }));
            entries.push(entry);
        }
        let mut entry = change("set_wanted", by, model);
        entry.version = Some(version);
        entry.before = Some(json!(std::mem::replace(&mut record.wanted, wanted)));
        entry.after = Some(json!(wanted));
        entries.push(entry);
        put(&mut batch, key::version(model, version), &record)?;
        self.commit(&mut writer, batch, entries, true)?;
        Ok(record)
    }

    /// Records how a load ended: nothing that anyone decided, so not audited, and no new generation. An archived version stays
    /// archived.
    ///
    /// # Errors
    /// `NotFound`; and as [`Registry::register`].
    pub fn record_outcome(&self, model: &ModelName, version: ModelVersion, outcome: Outcome) -> Result<()> {
        let mut writer = self.begin()?;
        let old = self.version(model, version)?;
        let mut record = old.clone();
        let state = match outcome {
            Outcome::Loaded { memory_bytes } => {
                record.memory_bytes = Some(memory_bytes);
                VersionState::Registered
            }
            Outcome::Failed { reason } => VersionState::Failed { reason: limits::cut_reason(reason) },
        };
        if record.state != VersionState::Archived {
            record.state = state;
        }
        if record == old {
            return Ok(());
        }
        let mut batch = Batch::new();
        put(&mut batch, key::version(model, version), &record)?;
        self.commit(&mut writer, batch, None::<Change<'_>>, false)?;
        Ok(())
    }

    fn change_state(
        &self,
        action: &'static str,
        model: &ModelName,
        version: ModelVersion,
        by: &By,
    ) -> Result<VersionRecord> {
        let edit = |record: &mut VersionRecord| {
            let is_archived = record.state == VersionState::Archived;
            let after = if action == "archive" { VersionState::Archived } else { VersionState::Registered };
            if is_archived == (after == VersionState::Archived) {
                let state = if is_archived { "archived" } else { "not archived" };
                let message = format!("model `{model}`: version {version} is {state}");
                return Err(RegistryError::Precondition(message));
            }
            check_unaliased(&self.model(model)?, version, "archived")?;
            let what = format!("version {version} cannot be archived");
            self.check_unnamed(model, &what, |names| names.versions.contains(&version))?;
            let before = std::mem::replace(&mut record.state, after);
            Ok((json!(before), json!(record.state)))
        };
        self.edit_version(action, (model, version), by, true, edit)
    }

    /// Changes a model's record; `edit` returns what to write in the audit trail, before and after.
    fn edit_model(
        &self,
        action: &'static str,
        model: &ModelName,
        by: &By,
        routes: bool,
        edit: impl FnOnce(&mut ModelRecord) -> Result<(Value, Value)>,
    ) -> Result<ModelRecord> {
        limits::check_by(by, false)?;
        let mut writer = self.begin()?;
        let mut record = self.model(model)?;
        let (before, after) = edit(&mut record)?;
        let mut change = change(action, by, model);
        (change.before, change.after) = (Some(before), Some(after));
        let mut batch = Batch::new();
        put(&mut batch, key::model(model), &record)?;
        self.commit(&mut writer, batch, Some(change), routes)?;
        Ok(record)
    }

    /// Changes a version's record, likewise.
    fn edit_version(
        &self,
        action: &'static str,
        (model, version): (&ModelName, ModelVersion),
        by: &By,
        routes: bool,
        edit: impl FnOnce(&mut VersionRecord) -> Result<(Value, Value)>,
    ) -> Result<VersionRecord> {
        limits::check_by(by, false)?;
        let mut writer = self.begin()?;
        let mut record = self.version(model, version)?;
        let (before, after) = edit(&mut record)?;
        let mut change = change(action, by, model);
        change.version = Some(version);
        (change.before, change.after) = (Some(before), Some(after));
        let mut batch = Batch::new();
        put(&mut batch, key::version(model, version), &record)?;
        self.commit(&mut writer, batch, Some(change), routes)?;
        Ok(record)
    }
}

/// Applies `say`; returns what was there.
/// Puts `new` in the place of `field`, and notes both. A value that cannot be JSON is refused by the checks that follow.
fn set<T: Serialize>(
    field: &mut T,
    new: Option<T>,
    name: &str,
    before: &mut Map<String, Value>,
    after: &mut Map<String, Value>,
) {
    if let Some(new) = new {
        before.insert(name.to_owned(), json!(field));
        after.insert(name.to_owned(), json!(new));
        *field = new;
    }
}
