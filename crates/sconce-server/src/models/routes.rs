//! Routes of models: where they are kept, and how they change. A route is a document of the registry; it is published with the
//! aliases, in the same swap.

use super::{CHAMPION, Models, Operation, is_ready};
use crate::feedback::refuse_route;
use crate::rollout;
use crate::traffic::{self, LiveRoute};
use sconce_core::{Error, ErrorCode, ModelName, ModelVersion, Result};
use sconce_registry::{
    Applied, By, Document, DocumentChange, ModelRecord, Names, Registry, RegistryError, Together,
    VersionRecord, VersionState, Wanted,
};
use sconce_traffic::route::{Route, RouteSpec, Target};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A model's route as it is stored, and what its aliases mean.
pub(crate) struct StoredRoute {
    pub(crate) document: Document,
    pub(crate) model: ModelRecord,
    pub(crate) generation: u64,
}

impl Models {
    /// The route of `name` as requests see it, if it has one.
    pub(crate) fn live_route(&self, name: &str) -> Option<Arc<LiveRoute>> {
        self.table.load().models.get(name)?.route.clone()
    }

    /// Every model's route, by name.
    pub(crate) fn live_routes(&self) -> Vec<(ModelName, Arc<LiveRoute>)> {
        let table = self.table.load();
        let routes =
            table.models.iter().filter_map(|(name, known)| Some((name.clone(), known.route.clone()?)));
        let mut routes: Vec<_> = routes.collect();
        routes.sort_by(|a, b| a.0.cmp(&b.0));
        routes
    }

    /// The route of `name` as it is stored.
    ///
    /// # Errors
    /// `NotFound` when there is no such model or it has no route; `FailedPrecondition` on a server without a registry.
    pub(crate) async fn stored_route(&self, name: &ModelName) -> Result<StoredRoute> {
        let of = name.clone();
        self.read(move |registry| {
            let generation = registry.generation();
            let model = registry.model(&of)?;
            let none = || RegistryError::NotFound(format!("model `{of}` has no route"));
            let document = registry.document(&of, traffic::KIND)?.ok_or_else(none)?;
            Ok(StoredRoute { document, model, generation })
        })
        .await
    }

    /// Replaces the route of `name` by what `spec` says, once every version that is to answer is in memory. With `expected`, only if
    /// the route has that revision; 0: if there is none.
    ///
    /// # Errors
    /// `InvalidArgument` with everything that is wrong with `spec`; `NotFound` for the model, or targets that it does not have;
    /// `FailedPrecondition` for versions that cannot be served, while a rollout is under way or a bandit moves its shares, and on a
    /// server without a registry;
    /// `Aborted` when `expected` does not hold; what loading failed with.
    pub(crate) async fn set_route(
        self: &Arc<Self>,
        name: &ModelName,
        spec: RouteSpec,
        expected: Option<u64>,
        by: By,
    ) -> Result<Applied> {
        let of = name.clone();
        let read = move |registry: &Registry| {
            let model = registry.model(&of)?;
            route_change(registry, &model, Some(spec))
        };
        let (change, answering) = self.read(read).await?;
        self.change_route(name, change, expected, answering, by).await
    }

    /// Takes the route of `name` away. With `expected`, only if it has that revision.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Aborted` when `expected` does not hold; `FailedPrecondition` while a rollout is under way, and
    /// on a server without a registry.
    pub(crate) async fn clear_route(
        self: &Arc<Self>,
        name: &ModelName,
        expected: Option<u64>,
        by: By,
    ) -> Result<Applied> {
        let of = name.clone();
        let read = move |registry: &Registry| {
            let model = registry.model(&of)?;
            route_change(registry, &model, None)
        };
        let (change, answering) = self.read(read).await?;
        if change.is_none() {
            let message = format!("model `{name}` has no route");
            return Err(Error::new(ErrorCode::NotFound, message));
        }
        self.change_route(name, change, expected, answering, by).await
    }

    /// Makes a change of the route of `name` that somebody asked for.
    async fn change_route(
        self: &Arc<Self>,
        name: &ModelName,
        change: Option<DocumentChange>,
        expected: Option<u64>,
        answering: Vec<ModelVersion>,
        by: By,
    ) -> Result<Applied> {
        let documents = change.map(|mut change| {
            if let Some(revision) = expected {
                change.expected = (revision != 0).then_some(revision);
            }
            change
        });
        let together = Together { documents: documents.into_iter().collect(), alias: None };
        let of = name.clone();
        let check = move |registry: &Registry| {
            rollout::refuse_by_hand(registry, &of, None)?;
            refuse_route(registry, &of)
        };
        self.change_together(name, answering, together, by, check).await
    }

    /// Changes documents of `name`, and moves an alias with them, at a moment when the versions that are to answer by them are in
    /// memory, and `check` holds: so no request waits for the change. Runs to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// As [`Registry::change_together`]; what `check` says; what loading failed with.
    pub(crate) async fn change_together(
        self: &Arc<Self>,
        name: &ModelName,
        mut answering: Vec<ModelVersion>,
        together: Together,
        by: By,
        check: impl FnOnce(&Registry) -> Result<(), RegistryError> + Send + 'static,
    ) -> Result<Applied> {
        let (models, name) = (Arc::clone(self), name.clone());
        answering.extend(together.alias.as_ref().map(|alias| alias.version));
        self.run(async move {
            answering.iter().for_each(|version| models.flights.forgive(&name, *version));
            let of = name.clone();
            let change = move |registry: &Registry| {
                check(registry)?;
                registry.change_together(&of, together, &by)
            };
            models.change_when_ready(&name, Operation::SetDocuments, &answering, change).await
        })
        .await
    }

    /// Makes `change`, counted as `operation`, at a moment when `versions` are in memory, and publishes it.
    ///
    /// # Errors
    /// What loading failed with, and what `change` did.
    pub(super) async fn change_when_ready<T: Send + 'static>(
        self: &Arc<Self>,
        name: &ModelName,
        operation: Operation,
        versions: &[ModelVersion],
        change: impl FnOnce(&Registry) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T> {
        let changing = self.changing(name);
        let locked = loop {
            let locked = changing.lock().await;
            let absent = {
                // Not held while others are loaded: what is evicted for them is waited for.
                let present = self.versions(name);
                versions.iter().find(|version| !present.get(version).is_some_and(is_ready))
            };
            let Some(absent) = absent else { break locked };
            // It was never loaded, or was released or evicted in between.
            drop(locked);
            self.load_now(name, *absent).await?;
        };
        let changed = self.operate(operation, change).await?;
        self.publish(name).await?;
        drop(locked);
        let (models, name) = (Arc::clone(self), name.clone());
        self.tasks.spawn(async move { models.settle(&name).await });
        Ok(changed)
    }
}

/// What makes the route of `model` what `spec` says, or takes it away, and the versions that answer then; no change where there is
/// nothing to take away.
///
/// # Errors
/// As [`Models::set_route`].
pub(crate) fn route_change(
    registry: &Registry,
    model: &ModelRecord,
    spec: Option<RouteSpec>,
) -> Result<(Option<DocumentChange>, Vec<ModelVersion>), RegistryError> {
    let present = registry.document(&model.name, traffic::KIND)?;
    let expected = present.as_ref().map(|present| present.revision);
    let change = |value| DocumentChange { kind: traffic::KIND.to_owned(), expected, value };
    let Some(spec) = spec else {
        let champion = model.aliases.get(CHAMPION).map(|alias| alias.version);
        return Ok((expected.map(|_| change(None)), champion.into_iter().collect()));
    };
    let route = next_route(spec, present.as_ref())?;
    let (names, answering) = targets(registry, model, route.spec())?;
    let value = serde_json::to_value(&route).map_err(|error| {
        RegistryError::Damaged(format!("model `{}`: the route cannot be stored: {error}", model.name))
    })?;
    Ok((Some(change(Some((value, names)))), answering))
}

fn next_route(spec: RouteSpec, present: Option<&Document>) -> Result<Route, RegistryError> {
    let previous = present.map(traffic::parse).transpose();
    let previous = previous.map_err(|error| RegistryError::Damaged(error.to_string()))?;
    Route::new(spec, previous.as_ref()).map_err(|problems| RegistryError::Invalid(problems.to_string()))
}

/// What a route names, and the versions that answer by it now.
fn targets(
    registry: &Registry,
    model: &ModelRecord,
    spec: &RouteSpec,
) -> Result<(Names, Vec<ModelVersion>), RegistryError> {
    let (mut names, mut answering) = (Names::default(), BTreeSet::new());
    let (mut unknown, mut unservable) = (BTreeSet::new(), BTreeSet::new());
    let splits = spec.splits.iter().map(|split| (&split.target, true));
    for (target, answers) in splits.chain(spec.shadows.iter().map(|shadow| (&shadow.target, false))) {
        let version = match Target::parse(target) {
            Some(Target::Version(version)) => {
                names.versions.insert(version);
                Some(version)
            }
            Some(Target::Alias(alias)) => match model.aliases.get(&*alias) {
                Some(meant) => {
                    names.aliases.insert(alias.to_string());
                    Some(meant.version)
                }
                None => {
                    unknown.insert(format!("alias `{alias}`"));
                    continue;
                }
            },
            Some(Target::Default) => model.aliases.get(CHAMPION).map(|alias| alias.version),
            // A route's targets were checked.
            None => None,
        };
        let Some(version) = version else { continue };
        match registry.version(&model.name, version) {
            Ok(record) => match why_unservable(model, &record) {
                Some(why) => drop(unservable.insert(format!("version {version} is {why}"))),
                None if answers => drop(answering.insert(version)),
                None => {}
            },
            Err(RegistryError::NotFound(_)) => drop(unknown.insert(format!("version {version}"))),
            Err(error) => return Err(error),
        }
    }
    let list = |problems: BTreeSet<String>| problems.into_iter().collect::<Vec<_>>().join(", ");
    match (unknown.is_empty(), unservable.is_empty()) {
        (false, _) => {
            Err(RegistryError::NotFound(format!("model `{}` has no {}", model.name, list(unknown))))
        }
        (true, false) => {
            Err(RegistryError::Precondition(format!("model `{}`: {}", model.name, list(unservable))))
        }
        (true, true) => Ok((names, answering.into_iter().collect())),
    }
}

pub(super) const ARCHIVED: &str = "archived: `sconce model archive --undo`";

/// Why a version can answer nothing, if it cannot.
fn why_unservable(model: &ModelRecord, record: &VersionRecord) -> Option<&'static str> {
    match (&record.state, record.wanted) {
        (VersionState::Archived, _) => Some(ARCHIVED),
        _ if model.unloaded => {
            Some("unloaded with its model, until RepositoryModelLoad or `sconce model load` of a version")
        }
        (_, Wanted::Unloaded) => Some("unloaded on purpose: `sconce model auto`"),
        _ => None,
    }
}

/// Refuses a version that can answer nothing.
///
/// # Errors
/// `FailedPrecondition`, with the reason.
pub(super) fn refuse_unservable(model: &ModelRecord, record: &VersionRecord) -> Result<(), RegistryError> {
    let (name, version) = (&record.model, record.version);
    match why_unservable(model, record) {
        None => Ok(()),
        Some(why) => Err(RegistryError::Precondition(format!("model `{name}` version {version} is {why}"))),
    }
}
