//! What is served: an immutable table of models, swapped whole. Requests read it without a lock.

mod cores;
mod ensembles;
mod folder;
mod lifecycle;
mod loader;
mod memory;
mod operations;
mod overrides;
mod remotes;
mod routes;
mod smoke;
mod stored;

pub(crate) use loader::{Loader, cores};
pub(crate) use memory::Account;
pub(crate) use operations::Operation;
pub(crate) use overrides::Said;
pub(crate) use remotes::RemoteAccess;
pub(crate) use routes::{StoredRoute, route_change};
pub(crate) use smoke::check as check_smoke;
pub(crate) use stored::Verdict;

use crate::cache::ResponseCache;
use crate::dispatch::PreparePool;
use crate::ensemble::Assembly;
use crate::objectives::Ends;
use crate::process;
use crate::remote::RemoteModel;
use crate::shadow::Shadows;
use crate::traffic::{Asks, Decided, LiveRoute};
use arc_swap::ArcSwap;
use dashmap::DashMap;
use ensembles::Assembling;
use lifecycle::{Draining, Eviction, Flights, has_no_room};
use loader::Instances;
use memory::Memory;
use operations::Operations;
use overrides::Override;
use sconce_candle::ModelSettings;
use sconce_core::{
    DeviceId, DurationHistogram, Error, ErrorCode, FailReason, ModelName, ModelStats, ModelVersion, Result,
    Signature, abbreviate,
};
use sconce_registry::Registry;
use sconce_scheduler::Scheduler;
use sconce_telemetry::metrics::{CostSample, RegistrySample, RemoteSample};
use sconce_traffic::route;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What answers a version's requests.
pub(crate) enum Target {
    /// A model in memory, with a queue and workers.
    Model(Scheduler),
    /// Other models.
    Ensemble(Assembly),
    /// Another server.
    Remote(Box<RemoteModel>),
}

/// A model version that takes requests. Whoever holds it keeps it loaded.
pub(crate) struct Served {
    pub(crate) name: ModelName,
    pub(crate) version: ModelVersion,
    /// The version as it stands on the wire.
    pub(crate) version_text: String,
    pub(crate) settings: ModelSettings,
    pub(crate) instances: Instances,
    pub(crate) target: Target,
    /// What its requests are observed under.
    pub(crate) observed_as: Arc<sconce_telemetry::traces::Target>,
    /// Answers that are kept, if they are.
    pub(crate) cache: Option<ResponseCache>,
    /// What is counted beside the scheduler.
    counted: Mutex<ModelStats>,
    /// Cancelled when its memory was given back.
    gone: CancellationToken,
    loaded_at: Instant,
    /// Requests that are prepared, wait or run.
    in_flight: AtomicUsize,
    /// Milliseconds from then to the last request.
    last_used_ms: AtomicU64,
    /// Never evicted.
    pinned: AtomicBool,
    /// In memory because the registry says so, not because a request asked for it.
    kept: AtomicBool,
}

impl Served {
    fn new(
        name: &ModelName,
        version: ModelVersion,
        settings: ModelSettings,
        instances: Instances,
        target: Target,
        cache: Option<ResponseCache>,
        gone: CancellationToken,
    ) -> Self {
        Self {
            name: name.clone(),
            version,
            version_text: version.to_string(),
            observed_as: Arc::new(sconce_telemetry::traces::Target::new(
                name.as_str(),
                &version.to_string(),
                &settings.device.to_string(),
            )),
            settings,
            instances,
            target,
            cache,
            counted: Mutex::default(),
            gone,
            loaded_at: Instant::now(),
            in_flight: AtomicUsize::new(0),
            last_used_ms: AtomicU64::new(0),
            pinned: AtomicBool::new(false),
            kept: AtomicBool::new(false),
        }
    }

    pub(crate) fn signature(&self) -> &Signature {
        match &self.target {
            Target::Model(scheduler) => scheduler.model().signature(),
            Target::Ensemble(assembly) => assembly.signature(),
            Target::Remote(remote) => remote.signature(),
        }
    }

    /// Bytes its weights and tables hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.scheduler().map_or(0, |scheduler| scheduler.model().memory_bytes())
    }

    /// Requests that wait.
    pub(crate) fn queue_depth(&self) -> usize {
        match &self.target {
            Target::Model(scheduler) => scheduler.queue_depth(),
            Target::Ensemble(_) => 0,
            Target::Remote(remote) => remote.queue_depth(),
        }
    }

    /// Requests of shadows that wait.
    pub(crate) fn shadow_depth(&self) -> usize {
        self.scheduler().map_or(0, Scheduler::shadow_depth)
    }

    /// What was learned of the time its batches take, if anything.
    pub(crate) fn cost(&self) -> Option<CostSample> {
        let report = self.scheduler()?.cost();
        (report.batches > 0).then_some(CostSample {
            batch_seconds: report.batch_seconds,
            row_seconds: report.row_seconds,
            token_seconds: report.token_seconds,
            relative_error: report.relative_error,
        })
    }

    /// What is counted of the server that answers it, if another one does.
    pub(crate) fn remote(&self) -> Option<RemoteSample> {
        match &self.target {
            Target::Remote(remote) => Some(remote.sample()),
            Target::Model(_) | Target::Ensemble(_) => None,
        }
    }

    /// The counters so far.
    pub(crate) fn stats(&self) -> ModelStats {
        let mut stats = self.scheduler().map(Scheduler::stats).unwrap_or_default();
        stats.merge(&self.counted());
        stats
    }

    /// Counts a request that failed before it reached the queue.
    pub(crate) fn count_failure(&self, error: &Error, time: Duration) {
        self.counted().add_failure(FailReason::of(error), time);
    }

    /// Counts a request that was answered from the cache: after `looked_up`, and in all.
    pub(crate) fn count_hit(&self, looked_up: Duration, total: Duration) {
        let mut counted = self.counted();
        counted.cache_hit.add(looked_up);
        counted.add_without_batch(total);
        counted.last_inference = Some(SystemTime::now());
    }

    /// Counts a request that other models, or another server, answered.
    pub(crate) fn count_answered_elsewhere(&self, rows: usize, total: Duration) {
        let mut counted = self.counted();
        counted.add_without_batch(total);
        counted.inference_count += rows as u64;
        counted.last_inference = Some(SystemTime::now());
    }

    /// Counts a request that was looked up in the cache for nothing.
    pub(crate) fn count_miss(&self, looked_up: Duration) {
        self.counted().cache_miss.add(looked_up);
    }

    /// Lets no request wait for company any more.
    fn hurry(&self) {
        self.scheduler().into_iter().for_each(Scheduler::hurry);
    }

    /// Answers what waits and ends the workers. Blocks.
    fn close(&self) {
        self.scheduler().into_iter().for_each(Scheduler::close);
    }

    fn scheduler(&self) -> Option<&Scheduler> {
        match &self.target {
            Target::Model(scheduler) => Some(scheduler),
            Target::Ensemble(_) | Target::Remote(_) => None,
        }
    }

    fn counted(&self) -> MutexGuard<'_, ModelStats> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a request came.
    pub(crate) fn used(&self, now: Instant) {
        self.last_used_ms.store(millis(now.saturating_duration_since(self.loaded_at)), Ordering::Relaxed);
    }

    /// Counts a request as being worked on until what comes back is dropped.
    pub(crate) fn working(&self) -> impl Drop + use<'_> {
        struct Working<'a>(&'a AtomicUsize);
        impl Drop for Working<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Working(&self.in_flight)
    }

    /// Requests that are prepared, wait or run.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn last_used(&self) -> Instant {
        self.loaded_at + Duration::from_millis(self.last_used_ms.load(Ordering::Relaxed))
    }
}

/// A version's state.
#[derive(Clone)]
pub(crate) enum State {
    Ready(Arc<Served>),
    Loading,
    Unloading,
    /// Not in memory; the first request for it loads it.
    OnDemand,
    /// Not served, for this reason.
    Unavailable(String),
}

impl State {
    /// The state's name in `RepositoryIndex`, and its reason.
    pub(crate) fn describe(&self) -> (&'static str, &str) {
        match self {
            Self::Ready(_) => ("READY", ""),
            Self::Loading => ("LOADING", ""),
            Self::Unloading => ("UNLOADING", ""),
            Self::OnDemand => ("UNAVAILABLE", ON_DEMAND),
            Self::Unavailable(reason) => ("UNAVAILABLE", reason),
        }
    }
}

/// Why a version that was unloaded on purpose is unavailable.
pub(crate) const UNLOADED: &str = "unloaded";
const ON_DEMAND: &str = "loaded when it is asked for";
/// The alias that answers a request which names no version.
pub(crate) const CHAMPION: &str = "champion";

type Versions = BTreeMap<ModelVersion, State>;

/// A model as requests see it.
#[derive(Clone, Default)]
struct Known {
    versions: Versions,
    aliases: BTreeMap<String, ModelVersion>,
    /// What decides where a request that names no version goes, where somebody said so.
    route: Option<Arc<LiveRoute>>,
    /// How its requests ended.
    ends: Arc<Ends>,
    /// The registry's routing generation that `aliases` and `route` are as of; 0 without a registry.
    generation: u64,
}

#[derive(Clone, Default)]
struct Table {
    models: HashMap<ModelName, Arc<Known>>,
    /// The registry's routing generation this table is at least as new as; 0 without a registry.
    generation: u64,
}

/// Where a request went.
pub(crate) struct Routed {
    /// What answers it.
    pub(crate) served: Arc<Served>,
    /// The routing generation this went by.
    pub(crate) generation: u64,
    /// What the model's route decided; `None` where the model has none, or the request named a version.
    pub(crate) decided: Option<Box<Decided>>,
}

/// Where a request goes.
enum Route {
    Ready(Arc<Served>),
    /// To a version that is not in memory but may be loaded for it.
    Absent(ModelName, ModelVersion),
    /// To one that answers until a higher one is in memory.
    Meanwhile(Arc<Served>, ModelName, ModelVersion),
}

/// Every model the server knows.
pub(crate) struct Models {
    root: Option<PathBuf>,
    builtin: Vec<&'static str>,
    registry: Option<Arc<Registry>>,
    remotes: RemoteAccess,
    loader: Loader,
    memory: Arc<Memory>,
    /// Threads that prepare requests.
    pub(crate) prepare: PreparePool,
    table: ArcSwap<Table>,
    /// Whether the table has every model there is.
    are_listed: AtomicBool,
    /// What load calls said in place of the folder's. At most one a model that was loaded so.
    said: Mutex<HashMap<ModelName, Arc<Override>>>,
    /// What the shadows of all models share.
    pub(crate) shadows: Shadows,
    /// Held while the table is replaced, and never across a wait.
    replacing: Mutex<()>,
    /// One change of a model at a time. As many as there are models, and changes under way.
    changing: DashMap<ModelName, Arc<tokio::sync::Mutex<()>>>,
    /// Loads under way and failures that are not tried again yet.
    flights: Flights,
    /// Ensembles that are being loaded. At most one a load under way.
    assembling: Mutex<Vec<Assembling>>,
    /// Versions that were taken out and still answer what they were given.
    draining: Mutex<Vec<Draining>>,
    /// Loads that succeeded, and loads that failed.
    loads: Mutex<[DurationHistogram; 2]>,
    /// What was asked of the registry.
    operations: Arc<Operations>,
    /// What the process held before the first load, in bytes.
    resident_before: OnceLock<u64>,
    /// Counts changes of the registry.
    changed: watch::Sender<u64>,
    /// Loads, unloads and other changes: they run to their end even if whoever asked for them goes away.
    pub(crate) tasks: TaskTracker,
    /// Cancelled at the end.
    stop: CancellationToken,
}

const BUILTIN: [&str; 2] = ["identity", "add_sub"];

impl Models {
    pub(crate) fn new(
        root: Option<PathBuf>,
        builtin: &[String],
        loader: Loader,
        memory_limits: &BTreeMap<DeviceId, u64>,
        registry: Option<Arc<Registry>>,
        shadows: Shadows,
        remotes: RemoteAccess,
    ) -> Self {
        let memory = Memory::new(memory_limits);
        Self {
            root,
            builtin: BUILTIN.into_iter().filter(|name| builtin.iter().any(|wanted| wanted == name)).collect(),
            registry,
            remotes,
            loader,
            memory,
            prepare: PreparePool::new(cores()),
            table: ArcSwap::default(),
            are_listed: AtomicBool::new(false),
            said: Mutex::default(),
            shadows,
            replacing: Mutex::default(),
            changing: DashMap::new(),
            flights: Flights::default(),
            assembling: Mutex::default(),
            draining: Mutex::default(),
            loads: Mutex::default(),
            operations: Arc::default(),
            resident_before: OnceLock::new(),
            changed: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Where models run that do not say it themselves.
    pub(crate) fn default_device(&self) -> DeviceId {
        self.loader.default_device()
    }

    /// What models hold of each device's memory.
    pub(crate) fn memory(&self) -> Vec<(DeviceId, Account)> {
        self.memory.accounts()
    }

    /// What the process holds beyond what it held before the first load and what models account for: memory that instances
    /// compute in, and what unloads left behind. `None` where the system does not say.
    pub(crate) fn residual_bytes(&self) -> Option<u64> {
        let host =
            |(device, account): (DeviceId, Account)| if device == DeviceId::Cpu { account.used } else { 0 };
        let accounted: u64 = self.memory().into_iter().map(host).sum();
        let before = self.resident_before.get()?.saturating_add(accounted);
        process::resident_bytes().map(|now| now.saturating_sub(before))
    }

    /// What was asked of the registry; nothing without one.
    pub(crate) fn operations(&self) -> Vec<RegistrySample> {
        self.registry.as_ref().map(|_| self.operations.sample()).unwrap_or_default()
    }

    /// Loads that succeeded, and loads that failed.
    pub(crate) fn loads(&self) -> [DurationHistogram; 2] {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The routing generation: with a registry it grows with each change of what answers. 0 without.
    pub(crate) fn generation(&self) -> u64 {
        self.table.load().generation
    }

    /// Where the ends of a model's requests are counted; `None` for a model that is not known.
    pub(crate) fn ends(&self, name: &str) -> Option<Arc<Ends>> {
        self.table.load().models.get(name).map(|known| Arc::clone(&known.ends))
    }

    /// The same, of every model.
    pub(crate) fn all_ends(&self) -> Vec<(ModelName, Arc<Ends>)> {
        let table = self.table.load();
        table.models.iter().map(|(name, known)| (name.clone(), Arc::clone(&known.ends))).collect()
    }

    /// The version that answers a request for `version` of `name`: a number, an alias, or nothing, which means the alias
    /// `champion`, or else the highest version that is ready.
    ///
    /// # Errors
    /// `NotFound` for an unknown name or version, `Unavailable` for one that is not ready, `InvalidArgument` for a name or
    /// version that cannot be one.
    pub(crate) fn route(&self, name: &str, version: &str) -> Result<Arc<Served>> {
        match self.find(name, version, None)?.0 {
            Route::Ready(served) | Route::Meanwhile(served, ..) => Ok(served),
            Route::Absent(name, _) => Err(not_ready(name.as_str(), State::OnDemand.describe())),
        }
    }

    /// Where a request goes, the routing generation that says so, and what a route decided. Without `asks` nobody asks for a
    /// prediction: then what answers most stands for all.
    fn find(
        &self,
        name: &str,
        version: &str,
        asks: Option<&Asks<'_>>,
    ) -> Result<(Route, u64, Option<Box<Decided>>)> {
        let table = self.table.load();
        let Some((name, known)) = table.models.get_key_value(name) else {
            ModelName::new(name)?;
            return Err(if self.are_listed.load(Ordering::Relaxed) {
                Error::new(ErrorCode::NotFound, format!("unknown model `{name}`"))
            } else {
                Error::new(
                    ErrorCode::Unavailable,
                    "the server is starting: which models it has is not known yet",
                )
            });
        };
        let mut decided = None;
        let target = match &known.route {
            Some(route) if version.is_empty() => {
                decided = asks.and_then(|asks| route.decide(asks)).map(Box::new);
                match decided.as_ref().map(|decided| &decided.variant).or_else(|| route.largest()) {
                    Some(variant) => known.meant(name, &variant.target)?,
                    None => known.target(name, "")?,
                }
            }
            _ => known.target(name, version)?,
        };
        let route = match target {
            Some(wanted) => self.find_version(name, known, wanted),
            None => self.find_highest(name, known),
        };
        Ok((route?, known.generation, decided))
    }

    fn find_version(&self, name: &ModelName, known: &Known, wanted: ModelVersion) -> Result<Route> {
        match known.versions.get(&wanted) {
            Some(State::Ready(served)) => Ok(Route::Ready(Arc::clone(served))),
            Some(state) if self.can_be_loaded(name, wanted, state) => Ok(Route::Absent(name.clone(), wanted)),
            Some(state) => Err(not_ready(name.as_str(), state.describe())),
            None => Err(Error::new(
                ErrorCode::NotFound,
                format!("model `{name}` has no version {wanted}: it has {}", join(known.versions.keys())),
            )),
        }
    }

    /// The highest version that can answer. While it is not in memory, the highest that is answers instead.
    fn find_highest(&self, name: &ModelName, known: &Known) -> Result<Route> {
        // The highest that can be loaded now; of those that failed lately, the highest only says why.
        let (mut absent, mut paused) = (None, None);
        for (version, state) in known.versions.iter().rev() {
            match (state, absent) {
                (State::Ready(served), None) => return Ok(Route::Ready(Arc::clone(served))),
                (State::Ready(served), Some(absent)) => {
                    return Ok(Route::Meanwhile(Arc::clone(served), name.clone(), absent));
                }
                (state, None) if self.can_be_loaded(name, *version, state) => {
                    let is_paused = self.flights.is_paused(name, *version);
                    let place = if is_paused { &mut paused } else { &mut absent };
                    place.get_or_insert(*version);
                }
                _ => {}
            }
        }
        let state = known.versions.values().next_back();
        let state = state.map_or(("UNAVAILABLE", "it has no version"), State::describe);
        let absent = absent.or(paused).map(|version| Route::Absent(name.clone(), version));
        absent.ok_or_else(|| not_ready(name.as_str(), state))
    }

    fn can_be_loaded(&self, name: &ModelName, version: ModelVersion, state: &State) -> bool {
        match state {
            State::OnDemand => true,
            State::Loading => self.flights.has(name, version),
            _ => false,
        }
    }

    /// What a route's target means, if that is in memory now.
    ///
    /// # Errors
    /// `NotFound` when it means nothing, `Unavailable` when that is not in memory.
    pub(crate) fn in_memory(&self, name: &ModelName, target: &route::Target) -> Result<Arc<Served>> {
        let table = self.table.load();
        let unknown = || Error::new(ErrorCode::NotFound, format!("unknown model `{name}`"));
        let known = table.models.get(name.as_str()).ok_or_else(unknown)?;
        let route = match known.meant(name, target)? {
            Some(version) => self.find_version(name, known, version)?,
            None => self.find_highest(name, known)?,
        };
        match route {
            Route::Ready(served) | Route::Meanwhile(served, ..) => Ok(served),
            Route::Absent(_, version) => Err(Error::new(
                ErrorCode::Unavailable,
                format!("model `{name}` version {version} is not in memory"),
            )),
        }
    }

    /// Every version of every model with its state, in order.
    pub(crate) fn index(&self) -> Vec<(ModelName, ModelVersion, State)> {
        let table = self.table.load();
        let mut index: Vec<_> = table
            .models
            .iter()
            .flat_map(|(name, known)| {
                known.versions.iter().map(|(v, state)| (name.clone(), *v, state.clone()))
            })
            .collect();
        index.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        index
    }

    /// Every version that is ready, in order.
    pub(crate) fn ready(&self) -> impl Iterator<Item = Arc<Served>> {
        self.index().into_iter().filter_map(|(_, _, state)| match state {
            State::Ready(served) => Some(served),
            _ => None,
        })
    }

    /// Versions of `name` that are ready, ascending.
    pub(crate) fn ready_versions(&self, name: &str) -> Vec<ModelVersion> {
        let table = self.table.load();
        let versions = table.models.get(name).into_iter().flat_map(|known| &known.versions);
        versions.filter(|(_, state)| matches!(state, State::Ready(_))).map(|(version, _)| *version).collect()
    }

    /// Loads what there is: what a folder holds, what is built in, and of the registry what should be in memory. What fails is
    /// unavailable, with the reason; the rest is served.
    ///
    /// # Errors
    /// The folder of models or the registry cannot be read, or both have a model of one name.
    pub(crate) async fn load_all(self: &Arc<Self>) -> Result<()> {
        if let Some(bytes) = process::resident_bytes() {
            let _ = self.resident_before.set(bytes);
        }
        let (sources, problems) = self.sources().await?;
        for problem in problems {
            tracing::warn!(problem, "the folder of models has an entry that is no model");
        }
        let sources = blocking(move || Ok(ensembles::steps_first(sources))).await?;
        let stored = self.stored_models().await?;
        if let Some((name, _, _)) = sources.iter().find(|(name, _, _)| stored.contains(name)) {
            return Err(Error::new(
                ErrorCode::AlreadyExists,
                format!("model `{name}` is in the registry, and in the folder of models or built in as well"),
            ));
        }
        for (name, version, _) in &sources {
            self.set(name, *version, State::Loading);
        }
        self.publish_all(&stored).await?;
        self.are_listed.store(true, Ordering::Relaxed);
        for (name, version, source) in sources {
            let state = match self.load_source(&name, version, source, &Eviction::allowed(false)).await {
                Ok(served) => State::Ready(served),
                // Where the others leave no room for it, it is loaded when it is asked for.
                Err(error) if has_no_room(&error) => State::OnDemand,
                Err(error) => State::Unavailable(error.to_string()),
            };
            self.set(&name, version, state);
        }
        self.settle_all(stored).await;
        Ok(())
    }

    fn end(&self, name: &ModelName, version: ModelVersion, state: Option<State>) {
        match state {
            Some(state) => self.set(name, version, state),
            None => self.remove(name, version),
        }
    }

    /// Forgets every model and waits for the workers. Requests must have been answered by now: later ones find nothing.
    pub(crate) async fn close(&self) {
        let served: Vec<Arc<Served>> = self.ready().collect();
        self.table.store(Arc::default());
        let join = tokio::task::spawn_blocking(move || served.iter().for_each(|served| served.close()));
        if let Err(error) = join.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the workers could not be joined");
        }
    }

    /// Begins no more changes by itself.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    /// Cancelled when the server stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Lets no request wait for company any more: there will be none.
    pub(crate) fn hurry(&self) {
        self.ready().for_each(|served| served.hurry());
    }

    /// Forgets the lock of a name that came to nothing. To be called without it.
    fn forget_lock(&self, name: &ModelName) {
        if !self.table.load().models.contains_key(name) {
            self.changing.remove_if(name, |_, lock| Arc::strong_count(lock) == 1);
        }
    }

    /// The lock of changes of `name`.
    fn changing(&self, name: &ModelName) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.changing.entry(name.clone()).or_default())
    }

    fn versions(&self, name: &ModelName) -> Versions {
        self.table.load().models.get(name).map_or_else(Versions::new, |known| known.versions.clone())
    }

    fn set(&self, name: &ModelName, version: ModelVersion, state: State) {
        self.replace(name, |known| known.versions.insert(version, state));
    }

    fn remove(&self, name: &ModelName, version: ModelVersion) {
        self.replace(name, |known| known.versions.remove(&version));
    }

    /// Puts `state` in place of one that `is_still` there; gives it back where something else is.
    fn set_if(
        &self,
        name: &ModelName,
        version: ModelVersion,
        is_still: impl FnOnce(&State) -> bool,
        state: State,
    ) -> Result<(), State> {
        let mut refused = None;
        self.replace(name, |known| match known.versions.get(&version) {
            Some(present) if is_still(present) => known.versions.insert(version, state),
            _ => {
                refused = Some(state);
                None
            }
        });
        refused.map_or(Ok(()), Err)
    }

    /// Publishes a change of one version. `change` gives the state it replaced.
    fn replace(&self, name: &ModelName, change: impl FnOnce(&mut Known) -> Option<State>) {
        let before = self.replace_model(name, 0, change);
        if let Some(State::Ready(served)) = before {
            served.hurry();
        }
    }

    /// Publishes a change of one model, as of a generation of the registry.
    fn replace_model<T>(&self, name: &ModelName, generation: u64, change: impl FnOnce(&mut Known) -> T) -> T {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        table.generation = table.generation.max(generation);
        let known = Arc::make_mut(table.models.entry(name.clone()).or_default());
        known.generation = known.generation.max(generation);
        let changed = change(known);
        if known.versions.is_empty() {
            table.models.remove(name);
        }
        self.table.store(Arc::new(table));
        changed
    }
}

impl Known {
    /// The version that a route's target means; `None` when it means what answers without a route, and there is no champion.
    fn meant(&self, name: &ModelName, target: &route::Target) -> Result<Option<ModelVersion>> {
        match target {
            route::Target::Version(version) => Ok(Some(*version)),
            route::Target::Alias(alias) => self.target(name, alias),
            route::Target::Default => self.target(name, ""),
        }
    }

    /// The version that `text` names; `None` when it names none and there is no champion.
    fn target(&self, name: &ModelName, text: &str) -> Result<Option<ModelVersion>> {
        if text.is_empty() {
            return Ok(self.aliases.get(CHAMPION).copied());
        }
        let wanted = ModelVersion::parse(text).or_else(|| self.aliases.get(text).copied());
        wanted.map(Some).ok_or_else(|| {
            let aliases: Vec<&str> = self.aliases.keys().map(String::as_str).collect();
            let known = if aliases.is_empty() { "it has none".to_owned() } else { aliases.join(", ") };
            Error::invalid(format!(
                "model `{name}`: expected a version number or an alias ({known}), got {:?}",
                abbreviate(text)
            ))
        })
    }
}

fn is_ready(state: &State) -> bool {
    matches!(state, State::Ready(_))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::internal("the work panicked or was cancelled").with_source(error)))
}

fn not_ready(name: &str, (state, reason): (&str, &str)) -> Error {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Error::new(ErrorCode::Unavailable, format!("model `{name}` is not ready ({state}){reason}"))
}

fn join<'a>(versions: impl Iterator<Item = &'a ModelVersion>) -> String {
    versions.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
