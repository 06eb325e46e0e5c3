//! Changes of one record: what is said of a model or a version, and what state it is in.

use crate::changes::{archived, change, check_unaliased, put};
use crate::registry::key;
use crate::store::Batch;
use crate::{
    By, Description, Gates, ModelRecord, Outcome, Registry, RegistryError, Result, VersionRecord,
    VersionState, Wanted, limits,
};
use sconce_core::{ModelName, ModelVersion};
use serde_json::{Value, json};
use std::collections::BTreeMap;

impl Registry {
    /// Keeps a version from being loaded and aliased.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when an alias means it, or it is archived; and as [`Registry::register`].
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

    /// Says something else of a model.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when something is out of bounds; and as [`Registry::register`].
    pub fn describe_model(&self, model: &ModelName, say: Description, by: &By) -> Result<ModelRecord> {
        let edit = |record: &mut ModelRecord| {
            let before = describe(&mut record.description, &mut record.tags, say)?;
            Ok((before, json!({ "description": record.description, "tags": record.tags })))
        };
        self.edit_model("describe_model", model, by, edit)
    }

    /// Sets what versions must meet to take an alias.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when something is out of bounds; and as [`Registry::register`].
    pub fn set_gates(&self, model: &ModelName, gates: Gates, by: &By) -> Result<ModelRecord> {
        limits::check_gates(&gates)?;
        let edit = |record: &mut ModelRecord| {
            let before = std::mem::replace(&mut record.gates, gates);
            Ok((json!(before), json!(record.gates)))
        };
        self.edit_model("set_gates", model, by, edit)
    }

    /// Says something else of a version.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when something is out of bounds; and as [`Registry::register`].
    pub fn describe_version(
        &self,
        model: &ModelName,
        version: ModelVersion,
        say: Description,
        by: &By,
    ) -> Result<VersionRecord> {
        let edit = |record: &mut VersionRecord| {
            let before = describe(&mut record.description, &mut record.tags, say)?;
            Ok((before, json!({ "description": record.description, "tags": record.tags })))
        };
        self.edit_version("describe_version", (model, version), by, false, edit)
    }

    /// Adds metrics to a version; those of the same name are replaced.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when one is not finite or they are too many; and as [`Registry::register`].
    pub fn set_metrics(
        &self,
        model: &ModelName,
        version: ModelVersion,
        metrics: BTreeMap<String, f64>,
        by: &By,
    ) -> Result<VersionRecord> {
        limits::check_metrics(&metrics)?;
        let edit = |record: &mut VersionRecord| {
            let before = record.metrics.clone();
            record.metrics.extend(metrics);
            limits::check_metrics(&record.metrics)?;
            Ok((json!(before), json!(record.metrics)))
        };
        self.edit_version("set_metrics", (model, version), by, false, edit)
    }

    /// Sets all monitors of a version: name and what each refers to.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when something is out of bounds; and as [`Registry::register`].
    pub fn set_monitors(
        &self,
        model: &ModelName,
        version: ModelVersion,
        monitors: BTreeMap<String, String>,
        by: &By,
    ) -> Result<VersionRecord> {
        limits::check_pairs("monitor", &monitors)?;
        let edit = |record: &mut VersionRecord| {
            let before = std::mem::replace(&mut record.monitors, monitors);
            Ok((json!(before), json!(record.monitors)))
        };
        self.edit_version("set_monitors", (model, version), by, false, edit)
    }

    /// Sets whether a version should run.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when an archived one is to be loaded; and as [`Registry::register`].
    pub fn set_wanted(
        &self,
        model: &ModelName,
        version: ModelVersion,
        wanted: Wanted,
        by: &By,
    ) -> Result<VersionRecord> {
        let edit = |record: &mut VersionRecord| {
            if wanted == Wanted::Loaded && record.state == VersionState::Archived {
                return Err(archived(model, version));
            }
            let before = std::mem::replace(&mut record.wanted, wanted);
            Ok((json!(before), json!(wanted)))
        };
        self.edit_version("set_wanted", (model, version), by, true, edit)
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
        self.commit(&mut writer, batch, None, false)?;
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
        self.commit(&mut writer, batch, Some(change), false)?;
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
fn describe(
    description: &mut String,
    tags: &mut BTreeMap<String, String>,
    say: Description,
) -> Result<Value> {
    let before = json!({ "description": description, "tags": tags });
    if let Some(new) = say.description {
        limits::check_description(&new)?;
        *description = new;
    }
    if let Some(new) = say.tags {
        limits::check_pairs("tag", &new)?;
        *tags = new;
    }
    Ok(before)
}
