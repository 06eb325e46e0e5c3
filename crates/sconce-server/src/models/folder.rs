//! The folder of models, and what is built in: served in place, loaded when asked, never written.

use super::lifecycle::Eviction;
use super::loader::Source;
use super::overrides::{Override, Said};
use super::{Models, State, UNLOADED, blocking, is_ready};
use crate::operation::operation;
use sconce_core::{Error, ErrorCode, ModelName, ModelVersion, Result};
use sconce_registry::By;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use tracing::Instrument as _;

impl Models {
    /// Loads, or loads again, every version of `name`, as the folder says or as was `said` in its place; of a model of the registry, those that should be in memory. A version
    /// that is served stays until its successor is ready, and answers what it was given; when the successor fails it simply
    /// stays.
    ///
    /// # Errors
    /// `NotFound` when there is no such model; what the first failing version failed with.
    pub(crate) async fn load(self: &Arc<Self>, name: &str, said: Option<Said>, by: By) -> Result<()> {
        let name = ModelName::new(name)?;
        if self.is_stored(&name).await? {
            if said.is_some() {
                let message = format!(
                    "model `{name}` is in the registry: register a version instead of overriding one"
                );
                return Err(Error::new(ErrorCode::FailedPrecondition, message));
            }
            return self.load_stored(&name, by).await;
        }
        let said = match said {
            Some(said) => Some(Override::read(&name, said).await?),
            None => None,
        };
        let changing = self.changing(&name);
        let _changing = changing.lock().await;
        let sources = self.sources_of(&name, said.clone()).await?;
        if sources.is_empty() {
            // What is no longer there cannot be loaded, and if it was never served it is not missed either.
            for (version, _) in self.versions(&name).into_iter().filter(|(_, state)| !is_ready(state)) {
                self.remove(&name, version);
            }
            return Err(Error::new(ErrorCode::NotFound, format!("there is no model `{name}` to load")));
        }
        let known = self.versions(&name).into_keys();
        let vanished: Vec<ModelVersion> =
            known.filter(|version| sources.iter().all(|(_, found, _)| found != version)).collect();
        let mut outcome = Ok(());
        for (_, version, source) in sources {
            let was_ready = self.versions(&name).get(&version).is_some_and(is_ready);
            if !was_ready {
                self.set(&name, version, State::Loading);
            }
            match self.load_source(&name, version, source, &Eviction::allowed(true)).await {
                Ok(served) => self.set(&name, version, State::Ready(served)),
                Err(error) => {
                    if !was_ready {
                        self.set(&name, version, State::Unavailable(error.to_string()));
                    }
                    outcome = outcome.and(Err(error));
                }
            }
        }
        for version in vanished {
            self.remove(&name, version);
        }
        if outcome.is_ok() {
            let mut all = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            match said {
                Some(said) => all.insert(name, said),
                None => all.remove(&name),
            };
        }
        outcome
    }

    /// What the last load of `name` said in place of the folder.
    pub(super) fn said(&self, name: &ModelName) -> Option<Arc<Override>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// What there is to load of `name`, where `said` may have the files.
    async fn sources_of(
        &self,
        name: &ModelName,
        said: Option<Arc<Override>>,
    ) -> Result<Vec<(ModelName, ModelVersion, Source)>> {
        if let Some(root) = said.as_ref().and_then(|said| said.root()).map(Path::to_owned) {
            let listed = blocking(move || Ok(sconce_candle::discover(&root))).await?;
            let listed =
                listed.map_err(|error| Error::internal("the files cannot be read").with_source(error))?;
            let source = |found: sconce_candle::Found| {
                (found.name, found.version, Source::Folder(found.dir, said.clone()))
            };
            return Ok(listed.found.into_iter().map(source).collect());
        }
        let (sources, _) = self.sources().await?;
        let of_this = sources.into_iter().filter(|(found, _, _)| found == name);
        let with_said = |source| match source {
            Source::Folder(dir, _) => Source::Folder(dir, said.clone()),
            other => other,
        };
        Ok(of_this.map(|(name, version, source)| (name, version, with_said(source))).collect())
    }

    /// Refuses a name for the registry that something else is served under.
    ///
    /// # Errors
    /// `AlreadyExists` when the folder of models has it, or it is built in.
    pub(crate) async fn refuse_taken(&self, name: &ModelName) -> Result<()> {
        let (sources, _) = self.sources().await?;
        let is_taken = self.said(name).is_some() || sources.iter().any(|(taken, _, _)| taken == name);
        if !is_taken {
            return Ok(());
        }
        let message =
            format!("model `{name}` is in the folder of models, or built in, and cannot be in the registry");
        Err(Error::new(ErrorCode::AlreadyExists, message))
    }

    /// Unloads every version of `name` and waits until each has answered what it was given and gave its memory back.
    ///
    /// # Errors
    /// `NotFound` for an unknown name.
    pub(crate) async fn unload(self: &Arc<Self>, name: &str, by: By) -> Result<()> {
        let name = ModelName::new(name)?;
        if self.is_stored(&name).await? {
            return self.unload_stored(&name, by).await;
        }
        let changing = self.changing(&name);
        let _changing = changing.lock().await;
        let versions = self.versions(&name);
        if versions.is_empty() {
            return Err(Error::new(ErrorCode::NotFound, format!("unknown model `{name}`")));
        }
        // One that could not be loaded is given up.
        let unloaded = || State::Unavailable(UNLOADED.to_owned());
        self.retire(&name, versions.into_keys().map(|version| (version, Some(unloaded()))).collect()).await;
        Ok(())
    }

    /// Takes versions out of service, each to end in its state, or in none at all. Returns when all of them have answered what
    /// they were given and gave their memory back.
    async fn retire(&self, name: &ModelName, versions: Vec<(ModelVersion, Option<State>)>) {
        let mut draining = Vec::new();
        for (version, after) in versions {
            match self.versions(name).remove(&version) {
                Some(State::Ready(served)) => {
                    self.set(name, version, State::Unloading);
                    let freed_bytes = served.memory_bytes();
                    draining.push((version, after, served.gone.clone(), freed_bytes));
                }
                _ => self.end(name, version, after),
            }
        }
        for (version, after, gone, freed_bytes) in draining {
            gone.cancelled().instrument(operation!("unload", name, version)).await;
            self.end(name, version, after);
            tracing::info!(model = %name, %version, freed_bytes, residual_bytes = self.residual_bytes(), "unloaded");
        }
    }

    /// What there is to load beside the registry, and what is in the folder of models but is no model.
    pub(super) async fn sources(&self) -> Result<(Vec<(ModelName, ModelVersion, Source)>, Vec<String>)> {
        let mut sources = Vec::new();
        for name in &self.builtin {
            if let (Ok(model), Some(version)) = (ModelName::new(name), ModelVersion::new(1)) {
                sources.push((model, version, Source::Builtin(name)));
            }
        }
        let Some(root) = self.root.clone() else { return Ok((sources, Vec::new())) };
        let listed = blocking(move || Ok(sconce_candle::discover(&root))).await?;
        let discovery = listed
            .map_err(|error| Error::internal("the folder of models cannot be read").with_source(error))?;
        let mut problems = discovery.problems;
        for found in discovery.found {
            if self.builtin.contains(&found.name.as_str()) {
                problems.push(format!("{}: a built-in model has this name", found.name));
            } else {
                sources.push((found.name, found.version, Source::Folder(found.dir, None)));
            }
        }
        Ok((sources, problems))
    }
}
