//! Loading ensembles: their steps' models first.

use super::lifecycle::Eviction;
use super::loader::{Instances, Source};

use super::{Models, Routed, Served, Target};
use crate::ensemble::Assembly;
use sconce_candle::ModelSettings;
use sconce_core::{Ensemble, Error, ErrorCode, ModelName, ModelVersion, Result, Signature};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use tokio_util::sync::CancellationToken;

/// An ensemble that is being loaded, and the models of its steps.
pub(super) type Assembling = (ModelName, BTreeSet<ModelName>);

/// Takes an ensemble off the list when it is loaded, or not to be.
struct Listed<'a>(&'a Models, Assembling);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut list = self.0.assembling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = list.iter().position(|one| *one == self.1) {
            list.swap_remove(at);
        }
    }
}

impl Models {
    /// An ensemble, once the models of its steps are ready and fit. Those that may be loaded on demand are loaded.
    ///
    /// # Errors
    /// `FailedPrecondition` naming each step whose model is not ready or does not fit, and for an ensemble that is a step of itself
    /// or of too many others; `ResourceExhausted` when there is no memory for a step.
    pub(super) async fn assemble(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        settings: ModelSettings,
        ensemble: Ensemble,
        eviction: &Eviction,
    ) -> Result<Served> {
        let refuse = |problem: String| Error::new(ErrorCode::FailedPrecondition, problem);
        let own = ensemble.steps().iter().map(|step| step.spec.model.clone()).collect();
        let _listed = self.list(name, own).map_err(refuse)?;
        let mut reaches = BTreeSet::new();
        let (mut depth, mut signatures): (usize, Vec<Signature>) = (1, Vec::new());
        let mut problems: Vec<Error> = Vec::new();
        for step in ensemble.steps() {
            let model = &step.spec.model;
            match self.loaded(model.as_str(), &step.spec.version, None, eviction.is_allowed()).await {
                // It is not held: it may have to make room for the next step's.
                Ok(Routed { served, .. }) => {
                    signatures.push(served.signature().clone());
                    reaches.insert(model.clone());
                    if let Target::Ensemble(inner) = &served.target {
                        reaches.extend(inner.reaches().iter().cloned());
                        depth = depth.max(inner.depth() + 1);
                    }
                }
                Err(error) => problems.push(error.at(format_args!("step `{model}`"))),
            }
        }
        if !problems.is_empty() {
            let is_memory = |error: &Error| error.code() == ErrorCode::ResourceExhausted;
            let code = match problems.iter().any(is_memory) {
                true => ErrorCode::ResourceExhausted,
                false => ErrorCode::FailedPrecondition,
            };
            let refused = Error::new(code, lines(problems.iter().map(ToString::to_string)));
            return Err(match problems.iter().filter_map(Error::retry_after).max() {
                Some(after) if code == ErrorCode::ResourceExhausted => refused.with_retry_after(after),
                _ => refused,
            });
        }
        if reaches.contains(name) {
            return Err(refuse(format!("ensemble `{name}` is a step of its own steps")));
        }
        if depth > Ensemble::MAX_DEPTH {
            let most = Ensemble::MAX_DEPTH;
            return Err(refuse(format!(
                "ensembles are steps of one another {depth} deep, expected at most {most}"
            )));
        }
        let known: Vec<Option<&Signature>> = signatures.iter().map(Some).collect();
        let mut signature = ensemble.check(&known).map_err(|problems| refuse(lines(problems.into_iter())))?;
        // A load call may have said another.
        signature.max_batch_size = settings.max_batch_size;
        let gone = CancellationToken::new();
        let assembly = Assembly::new(ensemble, signature, reaches, depth, gone.clone().drop_guard());
        tracing::info!(model = %name, %version, steps = assembly.steps().len(), "loaded an ensemble");
        Ok(Served::new(name, version, settings, Instances::default(), Target::Ensemble(assembly), None, gone))
    }

    /// Notes that `name` is being loaded with these models as steps.
    ///
    /// # Errors
    /// One of them waits for `name` itself, or is it: each would wait for the other for ever.
    fn list(&self, name: &ModelName, steps: BTreeSet<ModelName>) -> Result<Listed<'_>, String> {
        let mut list = self.assembling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = steps.clone();
        let mut left: Vec<ModelName> = steps.iter().cloned().collect();
        while let Some(step) = left.pop() {
            if step == *name {
                return Err(format!("ensemble `{name}` is a step of itself, or of its own steps"));
            }
            let inner = list.iter().filter(|(ensemble, _)| *ensemble == step);
            let inner: Vec<ModelName> = inner.flat_map(|(_, steps)| steps).cloned().collect();
            left.extend(inner.into_iter().filter(|step| reached.insert(step.clone())));
        }
        list.push((name.clone(), steps.clone()));
        drop(list);
        Ok(Listed(self, (name.clone(), steps)))
    }
}

/// Sources in an order in which ensembles come after the models of their steps. Reads their `model.toml`: off the async threads.
pub(super) fn steps_first(
    sources: Vec<(ModelName, ModelVersion, Source)>,
) -> Vec<(ModelName, ModelVersion, Source)> {
    let steps = |source: &Source| match source {
        Source::Folder(dir, _) => sconce_candle::steps_of(dir),
        _ => Vec::new(),
    };
    let (mut ordered, mut ensembles) = (Vec::with_capacity(sources.len()), Vec::new());
    for source in sources {
        match steps(&source.2) {
            none if none.is_empty() => ordered.push(source),
            steps => ensembles.push((source, steps)),
        }
    }
    while !ensembles.is_empty() {
        let left: BTreeSet<ModelName> = ensembles.iter().map(|((name, ..), _)| name.clone()).collect();
        let waits = |steps: &[ModelName]| steps.iter().any(|step| left.contains(step));
        let (next, rest): (Vec<_>, Vec<_>) = ensembles.into_iter().partition(|(_, steps)| !waits(steps));
        // What waits for itself is refused when it is loaded.
        let is_stuck = next.is_empty();
        ordered.extend(next.into_iter().map(|(source, _)| source));
        ensembles = rest;
        if is_stuck {
            ordered.extend(ensembles.drain(..).map(|(source, _)| source));
        }
    }
    ordered
}

fn lines(problems: impl Iterator<Item = String>) -> String {
    problems.collect::<Vec<_>>().join("\n")
}
