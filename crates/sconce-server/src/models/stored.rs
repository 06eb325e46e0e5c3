//! Models of the registry: the table and what is in memory follow what the registry says.
//!
//! Every change goes the same way. It is made in the registry, and is durable then; it is *published*, that is, the table
//! says what the registry says; and then memory is *settled*: what should be in memory is loaded, what need not be any more
//! is released. An alias moves only to a version that is in memory already, so requests never wait for a change.

use super::lifecycle::not_loaded;
use super::routes::{ARCHIVED, refuse_unservable};
use super::{CHAMPION, Models, Operation, Served, State, UNLOADED, blocking, is_ready, smoke};
use crate::operation::{operation, traced};
use crate::rollout;
use crate::traffic::{self, LiveRoute};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use sconce_core::{Error, ErrorCode, ModelName, ModelVersion, Result};
use sconce_registry::{
    By, Changed, Document, Gates, ModelRecord, Registry, RegistryError, VersionRecord, VersionState, Wanted,
    gates,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::Instrument as _;

pub(crate) use gates::Verdict;

/// An alias that moved, and the gates it passed.
pub(crate) struct Promotion {
    pub(crate) changed: Changed,
    pub(crate) verdicts: Vec<Verdict>,
}

/// How often failed loads are looked through for those to try again.
const RETRY_TICK: Duration = Duration::from_secs(1);
/// Records read at once.
const PAGE: usize = 500;
/// Models settled at once at the start.
const SETTLING: usize = 8;

/// A model of the registry with its versions, all of them kept unloaded where it is as a whole, and its route.
struct Stored {
    model: ModelRecord,
    versions: Vec<VersionRecord>,
    route: Option<Document>,
}

impl Stored {
    fn read(registry: &Registry, name: &ModelName) -> Result<Option<Self>, RegistryError> {
        let model = match registry.model(name) {
            Ok(model) => model,
            Err(RegistryError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let route = registry.document(name, traffic::KIND)?;
        let mut versions: Vec<VersionRecord> = Vec::new();
        loop {
            let after = versions.last().map(|record| record.version);
            let page = registry.versions(name, after, PAGE)?;
            let is_last = page.len() < PAGE;
            versions.extend(page);
            if is_last {
                if model.unloaded {
                    versions.iter_mut().for_each(|record| record.wanted = Wanted::Unloaded);
                }
                return Ok(Some(Self { model, versions, route }));
            }
        }
    }

    /// Versions that may be served.
    fn servable(&self) -> impl DoubleEndedIterator<Item = &VersionRecord> + Clone {
        self.versions.iter().filter(|record| record.state != VersionState::Archived)
    }

    /// Versions that should be in memory: those that are pinned, those an alias points at, those a route names, and without a
    /// champion the highest that `is_ready`.
    fn wanted(&self, is_ready: impl Fn(ModelVersion) -> bool) -> Vec<ModelVersion> {
        let candidates = self.servable().filter(|record| record.wanted != Wanted::Unloaded);
        let has_champion = self.model.aliases.contains_key(CHAMPION);
        let highest =
            candidates.clone().rev().map(|record| record.version).find(|version| is_ready(*version));
        let is_wanted = |record: &&VersionRecord| {
            record.wanted == Wanted::Loaded
                || self.model.aliases.values().any(|alias| alias.version == record.version)
                || self.route.as_ref().is_some_and(|route| route.names.versions.contains(&record.version))
                || (!has_champion && Some(record.version) == highest)
        };
        candidates.filter(is_wanted).map(|record| record.version).collect()
    }
}

impl Models {
    /// The registry.
    ///
    /// # Errors
    /// `FailedPrecondition` on a server without one.
    pub(crate) fn registry(&self) -> Result<&Arc<Registry>> {
        self.registry.as_ref().ok_or_else(|| {
            let message = "this server has no registry: start it with a data folder (--data DIR)";
            Error::new(ErrorCode::FailedPrecondition, message)
        })
    }

    /// Reads the registry, off the async threads.
    ///
    /// # Errors
    /// `FailedPrecondition` on a server without one; what `read` failed with.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Registry) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T> {
        self.operate(Operation::Read, read).await
    }

    /// Does `work` on the registry, off the async threads, and counts it as `operation`. With the time that it waits for a thread.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) async fn operate<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl FnOnce(&Registry) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T> {
        let (registry, operations) = (Arc::clone(self.registry()?), Arc::clone(&self.operations));
        let asked_at = Instant::now();
        blocking(move || {
            let done = work(&registry);
            operations.count(operation, asked_at.elapsed(), &done);
            Ok(done?)
        })
        .await
    }

    /// Changes the registry, which is counted as `operation`, and then what is served accordingly. Runs to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        name: &ModelName,
        operation: Operation,
        change: impl FnOnce(&Registry) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T> {
        let (models, name) = (Arc::clone(self), name.clone());
        let span = operation!("change the registry", name);
        self.run(traced(span, async move {
            let changing = models.changing(&name);
            let locked = changing.lock().await;
            let done = models.operate(operation, change).await;
            // Also where it failed: it may have been more than one change.
            let published = models.publish(&name).await;
            drop(locked);
            drop(changing);
            models.forget_lock(&name);
            let done = done?;
            published?;
            let settling = Arc::clone(&models);
            models.tasks.spawn(async move { settling.settle(&name).await }.in_current_span());
            Ok(done)
        }))
        .await
    }

    /// Told the number of each change of the registry.
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What a version of the registry is doing now.
    pub(crate) fn live_state(&self, name: &ModelName, version: ModelVersion) -> Option<State> {
        let state = self.versions(name).remove(&version);
        let is_leaving = || self.draining().iter().any(|one| one.version == version && one.name == *name);
        match state {
            Some(state) if is_ready(&state) => Some(state),
            _ if is_leaving() => Some(State::Unloading),
            state => state,
        }
    }

    /// Points `alias` at the version that `text` means, once that is in memory and the model's gates are passed.
    ///
    /// # Errors
    /// `FailedPrecondition` when a gate fails (unless `force`, which needs a reason), the version cannot be served, or a rollout is
    /// under way for the alias; `Aborted`
    /// when the alias does not point at `expected`; `NotFound`; what loading failed with.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        name: &ModelName,
        text: &str,
        alias: &str,
        expected: Option<Option<ModelVersion>>,
        force: bool,
        by: By,
    ) -> Result<Promotion> {
        let (models, name, text, alias) = (Arc::clone(self), name.clone(), text.to_owned(), alias.to_owned());
        let span = operation!("promote", name, text);
        self.run(traced(span, async move {
            let (of, alias_of) = (name.clone(), alias.clone());
            let read = move |registry: &Registry| {
                let version = registry.resolve(&of, &text)?;
                rollout::refuse_by_hand(registry, &of, Some(&alias_of))?;
                let model = registry.model(&of)?;
                let candidate = registry.version(&of, version)?;
                refuse_unservable(&model, &candidate)?;
                let target = |alias: &str| model.aliases.get(alias).map(|alias| alias.version);
                let present = target(&alias_of);
                // A new alias is compared with the champion.
                let compared =
                    present.or_else(|| target(CHAMPION)).map(|version| registry.version(&of, version));
                Ok((model.gates, candidate, present, compared.transpose()?))
            };
            let (gates, candidate, present, compared) = models.read(read).await?;
            let expected = expected.unwrap_or(present);
            let version = candidate.version;
            if force && by.reason.trim().is_empty() {
                return Err(Error::invalid("a forced promotion needs a reason"));
            }
            let was_ready = models.versions(&name).get(&version).is_some_and(is_ready);
            let promoted =
                models.promote_checked(&name, &alias, gates, &candidate, compared, expected, force, by);
            let promoted = promoted.await;
            if promoted.is_err() && !was_ready {
                models.release_unwanted(&name, version).await;
            }
            promoted
        }))
        .await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one promotion, named at the one place that calls this"
    )]
    async fn promote_checked(
        self: &Arc<Self>,
        name: &ModelName,
        alias: &str,
        gates: Gates,
        candidate: &VersionRecord,
        compared: Option<VersionRecord>,
        expected: Option<ModelVersion>,
        force: bool,
        by: By,
    ) -> Result<Promotion> {
        let verdicts = self.judge(name, &gates, candidate, compared.as_ref()).await?;
        let failed = refuse_failed(candidate, &verdicts);
        if !force {
            failed.as_ref().map_err(Error::repeat)?;
        }
        let (of, alias, version) = (name.clone(), alias.to_owned(), candidate.version);
        let (forced, metrics) = (force && failed.is_err(), candidate.metrics.clone());
        let change = move |registry: &Registry| {
            rollout::refuse_by_hand(registry, &of, Some(&alias))?;
            check_as_judged(registry, &of, version, &gates, &metrics)?;
            registry.set_alias(&of, &alias, version, Some(expected), forced, &by)
        };
        let changed = self.change_when_ready(name, Operation::Promote, &[version], change).await?;
        Ok(Promotion { changed, verdicts })
    }

    /// What the gates of `name` say of `candidate`, which is loaded for it, beside what it is `compared` with.
    ///
    /// # Errors
    /// What loading failed with.
    async fn judge(
        self: &Arc<Self>,
        name: &ModelName,
        gates: &Gates,
        candidate: &VersionRecord,
        compared: Option<&VersionRecord>,
    ) -> Result<Vec<Verdict>> {
        let mut verdicts = gates::check(gates, candidate, compared);
        self.flights.forgive(name, candidate.version);
        let served = self.load_now(name, candidate.version).await?;
        for (index, sample) in gates.smoke.iter().enumerate() {
            verdicts.push(smoke::smoke(self, &served, index, sample).await);
        }
        Ok(verdicts)
    }

    /// Asks the gates of `name` whether `alias` may move to `version`. What comes back says whether it still may.
    ///
    /// # Errors
    /// `FailedPrecondition` when a gate fails, or the version cannot be served; `NotFound`; what loading failed with.
    pub(crate) async fn passes_gates(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        alias: &str,
    ) -> Result<impl FnOnce(&Registry) -> Result<(), RegistryError> + Send + use<>> {
        let (of, alias) = (name.clone(), alias.to_owned());
        let read = move |registry: &Registry| {
            let model = registry.model(&of)?;
            let compared = model.aliases.get(&alias).map(|alias| registry.version(&of, alias.version));
            let candidate = registry.version(&of, version)?;
            refuse_unservable(&model, &candidate)?;
            Ok((model.gates, candidate, compared.transpose()?))
        };
        let (gates, candidate, compared) = self.read(read).await?;
        let was_ready = self.versions(name).get(&version).is_some_and(is_ready);
        let judged = self.judge(name, &gates, &candidate, compared.as_ref()).await;
        let passed = judged.and_then(|verdicts| refuse_failed(&candidate, &verdicts));
        if passed.is_err() && !was_ready {
            self.release_unwanted(name, version).await;
        }
        passed?;
        let of = name.clone();
        Ok(move |registry: &Registry| check_as_judged(registry, &of, version, &gates, &candidate.metrics))
    }

    /// Points `alias` at what it pointed at `steps` changes before, once that is in memory. No gate is asked.
    ///
    /// # Errors
    /// `FailedPrecondition` when it was not changed so often, that version cannot be served, or a rollout is under way for the
    /// alias; `NotFound`; what loading failed with.
    pub(crate) async fn rollback(
        self: &Arc<Self>,
        name: &ModelName,
        alias: &str,
        steps: usize,
        by: By,
    ) -> Result<Changed> {
        let (models, name, alias) = (Arc::clone(self), name.clone(), alias.to_owned());
        let span = operation!("roll back", name);
        self.run(traced(span, async move {
            let (of, alias_of) = (name.clone(), alias.clone());
            let target = models.read(move |registry| {
                let target = before(registry, &of, &alias_of, steps)?;
                if let Some(version) = target {
                    refuse_unservable(&registry.model(&of)?, &registry.version(&of, version)?)?;
                }
                Ok(target)
            });
            let of = name.clone();
            let Some(version) = target.await? else {
                // The registry says why there is none.
                let change = move |registry: &Registry| registry.rollback(&of, &alias, steps, &by);
                return models.change(&name, Operation::Rollback, change).await;
            };
            let was_ready = models.versions(&name).get(&version).is_some_and(is_ready);
            let change = move |registry: &Registry| {
                rollout::refuse_by_hand(registry, &of, Some(&alias))?;
                if before(registry, &of, &alias, steps)? != Some(version) {
                    let message = format!("model `{of}`: alias `{alias}` moved meanwhile");
                    return Err(RegistryError::Aborted(message));
                }
                registry.rollback(&of, &alias, steps, &by)
            };
            models.flights.forgive(&name, version);
            let moved = models.change_when_ready(&name, Operation::Rollback, &[version], change).await;
            if moved.is_err() && !was_ready {
                models.release_unwanted(&name, version).await;
            }
            moved
        }))
        .await
    }

    /// Says whether a version should be in memory, and waits until it is as said. One that cannot be loaded is not to be.
    ///
    /// # Errors
    /// As [`change`](Self::change), and what loading failed with: then nothing was changed.
    pub(crate) async fn set_wanted(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        wanted: Wanted,
        by: By,
    ) -> Result<()> {
        let of = name.clone();
        self.flights.forgive(name, version);
        if wanted == Wanted::Loaded {
            return self.keep_loaded(name, version, by).await;
        }
        let change = move |registry: &Registry| registry.set_wanted(&of, version, wanted, &by);
        self.change(name, Operation::SetWanted, change).await?;
        if wanted == Wanted::Unloaded {
            self.released(name).await;
        }
        Ok(())
    }

    async fn keep_loaded(self: &Arc<Self>, name: &ModelName, version: ModelVersion, by: By) -> Result<()> {
        let (models, name) = (Arc::clone(self), name.clone());
        self.run(async move {
            let was_ready = models.versions(&name).get(&version).is_some_and(is_ready);
            let of = name.clone();
            let read = move |registry: &Registry| match registry.version(&of, version)?.state {
                VersionState::Archived => {
                    let message = format!("model `{of}` version {version} is {ARCHIVED}");
                    Err(RegistryError::Precondition(message))
                }
                _ => Ok(()),
            };
            models.read(read).await?;
            let of = name.clone();
            let change = move |registry: &Registry| registry.set_wanted(&of, version, Wanted::Loaded, &by);
            let changed = models.change_when_ready(&name, Operation::SetWanted, &[version], change).await;
            if changed.is_err() && !was_ready {
                models.release_unwanted(&name, version).await;
                let changing = models.changing(&name);
                let _changing = changing.lock().await;
                models.publish(&name).await?;
            }
            changed.map(drop)
        })
        .await
    }

    /// Loads what should be in memory of a model, which an unload took out maybe. What is said of single versions stays.
    pub(super) async fn load_stored(self: &Arc<Self>, name: &ModelName, by: By) -> Result<()> {
        self.set_unloaded(name, false, by).await?;
        let of = name.clone();
        let Some(stored) = self.read(move |registry| Stored::read(registry, &of)).await? else {
            return Ok(());
        };
        let mut wanted = stored.wanted(|_| false);
        if wanted.is_empty() {
            let mut candidates = stored.servable().filter(|record| record.wanted != Wanted::Unloaded);
            wanted.extend(candidates.next_back().map(|record| record.version));
        }
        if wanted.is_empty() {
            let message =
                format!("model `{name}` has no version that is not archived, or unloaded on purpose");
            return Err(Error::new(ErrorCode::FailedPrecondition, message));
        }
        for version in wanted {
            self.flights.forgive(name, version);
            self.load_now(name, version).await?;
        }
        Ok(())
    }

    /// Takes a model out of memory until it is loaded again.
    pub(super) async fn unload_stored(self: &Arc<Self>, name: &ModelName, by: By) -> Result<()> {
        self.set_unloaded(name, true, by).await?;
        self.released(name).await;
        Ok(())
    }

    async fn set_unloaded(self: &Arc<Self>, name: &ModelName, unloaded: bool, by: By) -> Result<()> {
        let of = name.clone();
        let change = move |registry: &Registry| {
            if registry.model(&of)?.unloaded != unloaded {
                registry.set_unloaded(&of, unloaded, &by)?;
            }
            Ok(())
        };
        self.change(name, Operation::SetWanted, change).await
    }

    /// Whether `name` is a model of the registry.
    pub(super) async fn is_stored(&self, name: &ModelName) -> Result<bool> {
        if self.registry.is_none() {
            return Ok(false);
        }
        let name = name.clone();
        self.read(move |registry| match registry.model(&name) {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        })
        .await
    }

    /// Names of all models of the registry.
    pub(crate) async fn stored_models(&self) -> Result<BTreeSet<ModelName>> {
        if self.registry.is_none() {
            return Ok(BTreeSet::new());
        }
        self.read(|registry| {
            let mut names = BTreeSet::new();
            loop {
                let page = registry.models(names.last(), PAGE)?;
                let is_last = page.len() < PAGE;
                names.extend(page.into_iter().map(|model| model.name));
                if is_last {
                    return Ok(names);
                }
            }
        })
        .await
    }

    /// Publishes every model.
    pub(super) async fn publish_all(self: &Arc<Self>, names: &BTreeSet<ModelName>) -> Result<()> {
        for name in names {
            let changing = self.changing(name);
            let _changing = changing.lock().await;
            self.publish(name).await?;
        }
        Ok(())
    }

    /// Settles every model, and from then on tries again what failed. Where memory is short, what is pinned comes first, then
    /// champions.
    pub(super) async fn settle_all(self: &Arc<Self>, names: BTreeSet<ModelName>) {
        let is_pinned = |_: &Stored, record: &VersionRecord| record.wanted == Wanted::Loaded;
        let is_champion = |stored: &Stored, record: &VersionRecord| {
            stored.model.aliases.get(CHAMPION).is_some_and(|alias| alias.version == record.version)
        };
        let first: [fn(&Stored, &VersionRecord) -> bool; 2] = [is_pinned, is_champion];
        for is_next in first.into_iter().filter(|_| self.memory.is_bounded()) {
            let load = async |name: &ModelName| {
                let of = name.clone();
                let Ok(Some(stored)) = self.read(move |registry| Stored::read(registry, &of)).await else {
                    return;
                };
                self.load_wanted(name, &stored, |record| is_next(&stored, record)).await;
            };
            stream::iter(&names).for_each_concurrent(SETTLING, load).await;
        }
        stream::iter(&names).for_each_concurrent(SETTLING, |name| self.settle(name)).await;
        let models = Arc::clone(self);
        self.tasks.spawn(async move {
            let stop = models.stop.clone();
            let retry = async {
                let mut tick = tokio::time::interval(RETRY_TICK);
                loop {
                    tick.tick().await;
                    for name in models.flights.overdue() {
                        models.settle(&name).await;
                    }
                }
            };
            stop.run_until_cancelled(retry).await;
        });
    }

    /// Makes the table say what the registry says of `name`. Callers hold the lock of its changes, or are the only ones.
    pub(super) async fn publish(self: &Arc<Self>, name: &ModelName) -> Result<()> {
        let of = name.clone();
        let read = move |registry: &Registry| Ok((registry.generation(), Stored::read(registry, &of)?));
        let (generation, stored) = self.read(read).await?;
        let present = self.versions(name);
        let is_present = |version| present.get(&version).is_some_and(is_ready);
        let wanted = stored.as_ref().map_or_else(Vec::new, |stored| stored.wanted(is_present));
        let servable: BTreeMap<ModelVersion, Wanted> =
            stored.iter().flat_map(Stored::servable).map(|record| (record.version, record.wanted)).collect();
        // What is not to be served any more is released, and leaves the table with that.
        for (version, state) in &present {
            match servable.get(version) {
                None => {
                    self.flights.forgive(name, *version);
                    self.release(name, *version, None);
                }
                Some(Wanted::Unloaded) if matches!(state, State::Ready(_) | State::Loading) => {
                    self.release(name, *version, Some(State::Unavailable(UNLOADED.to_owned())));
                }
                Some(_) => {}
            }
        }
        let route = stored.as_ref().and_then(|stored| stored.route.as_ref());
        let route = self.route_as_of(name, route);
        let aliases = stored.iter().flat_map(|stored| &stored.model.aliases);
        let aliases = aliases.map(|(alias, to)| (alias.clone(), to.version)).collect();
        self.replace_model(name, generation, |known| {
            known.aliases = aliases;
            known.route = route;
            for (version, is_wanted) in &servable {
                let state = known.versions.entry(*version).or_insert(State::OnDemand);
                match (&state, is_wanted) {
                    (State::OnDemand, Wanted::Unloaded) => *state = State::Unavailable(UNLOADED.to_owned()),
                    (State::Unavailable(reason), Wanted::Auto | Wanted::Loaded)
                        if reason == UNLOADED || !wanted.contains(version) =>
                    {
                        *state = State::OnDemand;
                    }
                    (State::Ready(served), _) => {
                        served.pinned.store(*is_wanted == Wanted::Loaded, Ordering::Relaxed);
                        if wanted.contains(version) {
                            served.kept.store(true, Ordering::Relaxed);
                        }
                    }
                    _ => {}
                }
            }
        });
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Loads what should be in memory of `name`, and once that is there releases what was only kept for having been it.
    pub(super) async fn settle(self: &Arc<Self>, name: &ModelName) {
        let of = name.clone();
        let Ok(Some(stored)) = self.read(move |registry| Stored::read(registry, &of)).await else { return };
        self.load_wanted(name, &stored, |_| true).await;
        let changing = self.changing(name);
        let _changing = changing.lock().await;
        let of = name.clone();
        let Ok(Some(stored)) = self.read(move |registry| Stored::read(registry, &of)).await else { return };
        let present = self.versions(name);
        let wanted = stored.wanted(|version| present.get(&version).is_some_and(is_ready));
        for record in stored.servable() {
            let Some(State::Ready(served)) = present.get(&record.version) else { continue };
            served.pinned.store(record.wanted == Wanted::Loaded, Ordering::Relaxed);
            let is_wanted = wanted.contains(&record.version);
            let was_kept = served.kept.swap(is_wanted, Ordering::Relaxed);
            let after = match record.wanted {
                Wanted::Unloaded => State::Unavailable(UNLOADED.to_owned()),
                Wanted::Auto | Wanted::Loaded => State::OnDemand,
            };
            if (was_kept && !is_wanted) || record.wanted == Wanted::Unloaded {
                self.release(name, record.version, Some(after));
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Loads what should be in memory of `name` and is `meant`, into the room there is; what is pinned may evict others.
    async fn load_wanted(
        self: &Arc<Self>,
        name: &ModelName,
        stored: &Stored,
        is_meant: impl Fn(&VersionRecord) -> bool,
    ) {
        let load = async |record: &VersionRecord| {
            let version = record.version;
            match self.flight(name, version, record.wanted == Wanted::Loaded).await {
                // If it need not be in memory any more by now, whoever settles lets it go. Held here it could not even be evicted.
                Ok(served) => served.kept.store(true, Ordering::Relaxed),
                Err(error) => {
                    let has_failed = self.flights.want(name, version);
                    // Where there is only no room, or it was taken away and is wanted again, the first request tries again as
                    // well.
                    if has_failed && error.code() != ErrorCode::ResourceExhausted {
                        let is_absent = |state: &State| matches!(state, State::OnDemand);
                        let _ = self.set_if(name, version, is_absent, State::Unavailable(error.to_string()));
                    }
                }
            }
        };
        let wanted = stored.wanted(|_| false);
        let meant = stored.servable().filter(|record| wanted.contains(&record.version) && is_meant(record));
        join_all(meant.map(load)).await;
    }

    /// Releases a version that was loaded for a promotion that came to nothing.
    async fn release_unwanted(self: &Arc<Self>, name: &ModelName, version: ModelVersion) {
        let changing = self.changing(name);
        let _changing = changing.lock().await;
        let of = name.clone();
        let stored = self.read(move |registry| Stored::read(registry, &of)).await;
        let is_wanted = |stored: Stored| stored.wanted(|_| false).contains(&version);
        let is_wanted = stored.is_ok_and(|stored| stored.is_some_and(is_wanted));
        if !is_wanted && self.versions(name).get(&version).is_some_and(is_ready) {
            self.release(name, version, Some(State::OnDemand));
        }
    }

    pub(super) async fn load_now(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
    ) -> Result<Arc<Served>> {
        let landed = self.landed(name, version, true).await;
        landed.map_err(|error| not_loaded(name, version, error.code(), &error))
    }

    /// The route in `document` for requests: the one there is, unless the document changed.
    fn route_as_of(
        self: &Arc<Self>,
        name: &ModelName,
        document: Option<&Document>,
    ) -> Option<Arc<LiveRoute>> {
        let document = document?;
        let before = self.live_route(name.as_str());
        match before {
            Some(before) if before.revision == document.revision => Some(before),
            before => match LiveRoute::new(self, document, before.as_deref()) {
                Ok(route) => Some(Arc::new(route)),
                Err(error) => {
                    // Who wrote it knew more than this program does.
                    tracing::error!(model = %name, "{error}: requests are answered as without a route");
                    None
                }
            },
        }
    }

    /// Runs `work` to its end even if nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let task = self.tasks.spawn(work.in_current_span());
        task.await.unwrap_or_else(|error| Err(Error::internal("the change was cut off").with_source(error)))
    }
}

/// Refuses a candidate that does not pass its gates.
///
/// # Errors
/// `FailedPrecondition` with each of them.
fn refuse_failed(candidate: &VersionRecord, verdicts: &[Verdict]) -> Result<()> {
    let failed = verdicts.iter().filter(|verdict| !verdict.passed);
    let failed: Vec<String> = failed.map(|verdict| format!("{}: {}", verdict.gate, verdict.detail)).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let VersionRecord { model, version, .. } = candidate;
    let (count, failed) = (failed.len(), failed.join("; "));
    let message = format!("model `{model}` version {version} does not pass {count} gate(s): {failed}");
    Err(Error::new(ErrorCode::FailedPrecondition, message))
}

/// Refuses what was judged by something else than there is now.
fn check_as_judged(
    registry: &Registry,
    name: &ModelName,
    version: ModelVersion,
    gates: &Gates,
    metrics: &BTreeMap<String, f64>,
) -> Result<(), RegistryError> {
    let is_same =
        registry.model(name)?.gates == *gates && registry.version(name, version)?.metrics == *metrics;
    if is_same {
        return Ok(());
    }
    let message = format!("model `{name}`: its gates or version {version}'s metrics changed meanwhile");
    Err(RegistryError::Aborted(message))
}

/// What `alias` pointed at `steps` changes ago; `None` when there is no such alias or time.
fn before(
    registry: &Registry,
    name: &ModelName,
    alias: &str,
    steps: usize,
) -> Result<Option<ModelVersion>, RegistryError> {
    let model = registry.model(name)?;
    let previous = model.aliases.get(alias).map(|alias| &alias.previous);
    let at = previous.and_then(|previous| previous.len().checked_sub(steps));
    Ok(previous.zip(at).and_then(|(previous, at)| previous.get(at).copied()))
}
