//! Changes of what aliases mean.

use crate::audit::Change;
use crate::changes::{change, put};
use crate::registry::{Writer, key};
use crate::store::Batch;
use crate::{Alias, AliasMove, By, Changed, ModelRecord, Registry, RegistryError, Result, limits};
use sconce_core::{ModelName, ModelVersion};
use serde_json::json;

impl Registry {
    /// Makes `alias` mean `version`. With `expected`, only if it means that now (`Some(None)`: if it does not exist). The
    /// model's gates are not looked at here: whoever calls has, or sets `forced`, which needs a reason.
    ///
    /// # Errors
    /// `NotFound` for the model or version; `InvalidArgument` for the name; `FailedPrecondition` when the version is archived,
    /// unloaded on purpose or with its model, or failed to load; `Aborted` when `expected` does not hold; `ResourceExhausted` for too many aliases; and as
    /// [`Registry::register`].
    pub fn set_alias(
        &self,
        model: &ModelName,
        alias: &str,
        version: ModelVersion,
        expected: Option<Option<ModelVersion>>,
        forced: bool,
        by: &By,
    ) -> Result<Changed> {
        limits::check_by(by, forced)?;
        let mut writer = self.begin()?;
        let mut record = self.model(model)?;
        let before = record.aliases.get(alias).map(|alias| alias.version);
        let to = AliasMove { alias: alias.to_owned(), version, expected, forced };
        if !self.point(&mut record, &to)? {
            return Ok(Changed { before, after: before, generation: self.generation() });
        }
        let mut change = change("set_alias", by, model);
        change.forced = forced;
        self.commit_alias(&mut writer, record, alias, change, before)
    }

    /// Makes an alias of `record` mean another version. `false`: it means that already.
    pub(crate) fn point(&self, record: &mut ModelRecord, to: &AliasMove) -> Result<bool> {
        let AliasMove { alias, version, expected, .. } = to;
        let (model, version) = (&record.name, *version);
        limits::check_alias(alias)?;
        self.check_servable(record, version)?;
        let before = record.aliases.get(alias).map(|alias| alias.version);
        check_expected(model, alias, before, *expected)?;
        let full = record.aliases.len() >= limits::ALIASES;
        match record.aliases.get_mut(alias) {
            Some(existing) if existing.version == version => return Ok(false),
            Some(existing) => {
                if existing.previous.len() >= limits::HISTORY {
                    existing.previous.remove(0);
                }
                existing.previous.push(existing.version);
                existing.version = version;
            }
            None if full => {
                let message = format!("model `{model}`: expected up to {} aliases", limits::ALIASES);
                return Err(RegistryError::Exhausted(message));
            }
            None => {
                record.aliases.insert(alias.to_owned(), Alias { version, previous: Vec::new() });
            }
        }
        Ok(true)
    }

    /// Takes an alias away, with its history. With `expected`, only if it means that version.
    ///
    /// # Errors
    /// `NotFound`; `Aborted` when `expected` does not hold; `FailedPrecondition` when a document names it; and as
    /// [`Registry::register`].
    pub fn remove_alias(
        &self,
        model: &ModelName,
        alias: &str,
        expected: Option<ModelVersion>,
        by: &By,
    ) -> Result<Changed> {
        limits::check_alias(alias)?;
        limits::check_by(by, false)?;
        let mut writer = self.begin()?;
        let mut record = self.model(model)?;
        let removed = record.aliases.remove(alias).ok_or_else(|| no_alias(model, alias))?;
        check_expected(model, alias, Some(removed.version), expected.map(Some))?;
        let what = format!("alias `{alias}` cannot be removed");
        self.check_unnamed(model, &what, |names| names.aliases.contains(alias))?;
        self.commit_alias(
            &mut writer,
            record,
            alias,
            change("remove_alias", by, model),
            Some(removed.version),
        )
    }

    /// Makes `alias` mean what it meant `steps` changes ago (at least 1). The versions in between leave its history.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for 0 steps; `FailedPrecondition` when the history is shorter, or the version is archived
    /// or failed; and as [`Registry::register`].
    pub fn rollback(&self, model: &ModelName, alias: &str, steps: usize, by: &By) -> Result<Changed> {
        limits::check_alias(alias)?;
        limits::check_by(by, false)?;
        if steps == 0 {
            return Err(RegistryError::invalid("steps: expected at least 1, got 0"));
        }
        let mut writer = self.begin()?;
        let mut record = self.model(model)?;
        let found = record.aliases.get(alias).ok_or_else(|| no_alias(model, alias))?;
        let before = found.version;
        let kept = found.previous.len().checked_sub(steps);
        let Some((kept, target)) = kept.and_then(|kept| Some((kept, *found.previous.get(kept)?))) else {
            return Err(RegistryError::Precondition(format!(
                "model `{model}`: alias `{alias}` has {} steps to go back, expected at least {steps}",
                found.previous.len()
            )));
        };
        self.check_servable(&record, target)?;
        if let Some(alias) = record.aliases.get_mut(alias) {
            alias.previous.truncate(kept);
            alias.version = target;
        }
        self.commit_alias(&mut writer, record, alias, change("rollback", by, model), Some(before))
    }

    fn commit_alias<'a>(
        &self,
        writer: &mut Writer,
        record: ModelRecord,
        alias: &'a str,
        mut change: Change<'a>,
        before: Option<ModelVersion>,
    ) -> Result<Changed> {
        let after = record.aliases.get(alias).map(|alias| alias.version);
        let mut batch = Batch::new();
        put(&mut batch, key::model(&record.name), &record)?;
        change.alias = Some(alias);
        change.version = after.or(before);
        change.before = Some(json!(before));
        change.after = Some(json!(after));
        let generation = self.commit(writer, batch, Some(change), true)?;
        Ok(Changed { before, after, generation })
    }
}

fn check_expected(
    model: &ModelName,
    alias: &str,
    now: Option<ModelVersion>,
    expected: Option<Option<ModelVersion>>,
) -> Result<()> {
    let name =
        |version: Option<ModelVersion>| version.map_or("nothing".to_owned(), |v| format!("version {v}"));
    match expected {
        Some(expected) if expected != now => Err(RegistryError::Aborted(format!(
            "model `{model}`: alias `{alias}`: expected it to mean {}, it means {}",
            name(expected),
            name(now)
        ))),
        _ => Ok(()),
    }
}

fn no_alias(model: &ModelName, alias: &str) -> RegistryError {
    RegistryError::NotFound(format!("model `{model}`: no alias `{alias}`"))
}
