//! Loads that anyone may wait for, and the room they need: one load of a version at a time, however many wait for it.

use super::loader::Source;
use super::memory::Account;
use super::{Models, Route, Routed, Served, State, blocking, is_ready, millis};
use crate::operation::{operation, traced};
use crate::review;
use crate::traffic::Asks;
use dashmap::DashMap;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use sconce_core::{DeviceId, Error, ErrorCode, ModelName, ModelVersion, Result};
use sconce_registry::{Outcome, Registry, VersionState};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

type Version = (ModelName, ModelVersion);

/// A load under way, for any number of waiters.
pub(super) type Flight = Shared<BoxFuture<'static, Result<Arc<Served>, Arc<Error>>>>;

/// Loads under way, and loads that failed. Bounded by the versions there are.
#[derive(Default)]
pub(super) struct Flights {
    under_way: DashMap<Version, (Flight, Eviction)>,
    failures: DashMap<Version, Failure>,
}

/// Whether a load may put others out of memory: one that somebody asked for may, what the server loads by itself takes the room
/// there is. A load under way is allowed to by the first who asks for it.
#[derive(Clone)]
pub(super) struct Eviction(Arc<AtomicBool>);

impl Eviction {
    pub(super) fn allowed(is_allowed: bool) -> Self {
        Self(Arc::new(AtomicBool::new(is_allowed)))
    }

    fn allow(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_allowed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A version that could not be loaded is tried again after a pause that doubles each time.
struct Failure {
    count: u32,
    retry_at: Instant,
    /// Whether it should be in memory, so that nobody need ask for the next try.
    is_wanted: bool,
    error: Arc<Error>,
}

/// Models that a refusal for want of memory names.
const MAX_HOLDERS: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long reading the weights may take.
const READ_LIMIT: Duration = Duration::from_secs(900);
/// How long warming up may take: what a package declares for it keeps other loads waiting.
const WARM_UP_LIMIT: Duration = Duration::from_secs(120);

impl Flights {
    pub(super) fn has(&self, name: &ModelName, version: ModelVersion) -> bool {
        self.under_way.contains_key(&(name.clone(), version))
    }

    /// Whether a load failed that is not tried again yet.
    pub(super) fn is_paused(&self, name: &ModelName, version: ModelVersion) -> bool {
        let failure = self.failures.get(&(name.clone(), version));
        failure.is_some_and(|failure| failure.retry_at > Instant::now())
    }

    /// Forgets that a load failed: it may be tried again at once.
    pub(super) fn forgive(&self, name: &ModelName, version: ModelVersion) {
        self.failures.remove(&(name.clone(), version));
    }

    /// Has a failed load tried again when its pause is over. `false`: none failed.
    pub(super) fn want(&self, name: &ModelName, version: ModelVersion) -> bool {
        let failure = self.failures.get_mut(&(name.clone(), version));
        failure.map(|mut failure| failure.is_wanted = true).is_some()
    }

    /// Models with a version that is to be tried again now.
    pub(super) fn overdue(&self) -> BTreeSet<ModelName> {
        let now = Instant::now();
        let mut names = BTreeSet::new();
        for mut failure in self.failures.iter_mut() {
            if failure.is_wanted && failure.retry_at <= now {
                // Whoever tries says whether it still is.
                failure.is_wanted = false;
                names.insert(failure.key().0.clone());
            }
        }
        names
    }

    /// Forgets that there was no room: some came free.
    fn forgive_exhausted(&self) {
        self.failures.retain(|_, failure| failure.error.code() != ErrorCode::ResourceExhausted);
    }

    fn fail(&self, key: Version, error: &Arc<Error>) {
        let count = self.failures.get(&key).map_or(1, |before| before.count.saturating_add(1));
        // That there is no room now says nothing about the version.
        let doublings = if error.code() == ErrorCode::ResourceExhausted { 0 } else { (count - 1).min(16) };
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
        let (retry_at, error) = (Instant::now() + pause, Arc::clone(error));
        self.failures.insert(key, Failure { count, retry_at, is_wanted: false, error });
    }

    /// Why this version is not tried again yet.
    fn refusal(&self, key: &Version) -> Option<Error> {
        let failure = self.failures.get(key)?;
        let left = failure.retry_at.checked_duration_since(Instant::now())?;
        let Failure { count, error, .. } = &*failure;
        let (tries, left_s) = (if *count == 1 { "once" } else { "each time" }, left.as_secs() + 1);
        let refusal = Error::new(
            error.code(),
            format!("tried {count}, failed {tries}, next try in {left_s} s: {error}"),
        );
        Some(match failure.error.retry_after() {
            Some(_) => refusal.with_retry_after(left),
            None => refusal,
        })
    }
}

impl Models {
    /// As [`route`](Self::route), but what is not in memory and may be loaded on demand is loaded first: one load, however
    /// many wait for it. `asks` is what a route may look at; `None` where nobody asks for a prediction.
    ///
    /// # Errors
    /// As for `route`; `ResourceExhausted` when there is no memory for it.
    pub(crate) async fn serving(
        self: &Arc<Self>,
        name: &str,
        version: &str,
        asks: Option<&Asks<'_>>,
    ) -> Result<Routed> {
        self.loaded(name, version, asks, true).await
    }

    /// As [`serving`](Self::serving); `may_evict`: others, where there is no room for it.
    pub(super) async fn loaded(
        self: &Arc<Self>,
        name: &str,
        version: &str,
        asks: Option<&Asks<'_>>,
        may_evict: bool,
    ) -> Result<Routed> {
        let (route, generation, decided) = self.find(name, version, asks)?;
        let served = match route {
            Route::Ready(served) => served,
            Route::Meanwhile(served, name, higher) => {
                if !self.flights.has(&name, higher) {
                    let (models, flight) = (Arc::clone(self), self.flight(&name, higher, may_evict));
                    self.tasks.spawn(async move {
                        if flight.await.is_ok() {
                            models.settle(&name).await;
                        }
                    });
                }
                served
            }
            Route::Absent(name, version) => {
                self.landed(&name, version, may_evict).await.map_err(|error| {
                    let code = match error.code() {
                        ErrorCode::ResourceExhausted => ErrorCode::ResourceExhausted,
                        _ => ErrorCode::Unavailable,
                    };
                    not_loaded(&name, version, code, &error)
                })?
            }
        };
        // Nearly always it is set already, and requests on other cores read beside it.
        if version.is_empty() && decided.is_none() && !served.kept.load(Ordering::Relaxed) {
            // Once another answers in its place, it need not stay in memory.
            served.kept.store(true, Ordering::Relaxed);
        }
        Ok(Routed { served, generation, decided })
    }

    /// A version that is loaded now, by the load under way or a new one. `may_evict`: others, where there is no room for it.
    pub(super) async fn landed(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        may_evict: bool,
    ) -> Result<Arc<Served>, Arc<Error>> {
        match self.flight(name, version, may_evict).await {
            // Whoever began that load did not want it so much as to evict others, or no more at all.
            Err(_) if may_evict && !self.flights.is_paused(name, version) => {
                self.flight(name, version, may_evict).await
            }
            landed => landed,
        }
    }

    /// The load of a version: the one under way, or a new one. `may_evict`: others, where there is no room for it.
    pub(super) fn flight(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        may_evict: bool,
    ) -> Flight {
        let key = (name.clone(), version);
        let start = || {
            let eviction = Eviction::allowed(may_evict);
            let (models, key, evicts) = (Arc::clone(self), key.clone(), eviction.clone());
            let task = self.tasks.spawn(
                async move {
                    // However it ends, a panic included.
                    let _landed = Landing { flights: &models.flights, key: &key };
                    models.fly(&key, &evicts).await
                }
                .in_current_span(),
            );
            let lost = |error| Err(Arc::new(Error::internal("the load was cut off").with_source(error)));
            (async move { task.await.unwrap_or_else(lost) }.boxed().shared(), eviction)
        };
        let (flight, eviction) = self.flights.under_way.entry(key.clone()).or_insert_with(start).clone();
        if may_evict {
            eviction.allow();
        }
        flight
    }

    async fn fly(self: &Arc<Self>, key: &Version, eviction: &Eviction) -> Result<Arc<Served>, Arc<Error>> {
        let (name, version) = (&key.0, key.1);
        if let Some(State::Ready(served)) = self.versions(name).get(&version) {
            return Ok(Arc::clone(served));
        }
        if let Some(refusal) = self.flights.refusal(key) {
            return Err(Arc::new(refusal));
        }
        if self.set_if(name, version, |state| !is_ready(state), State::Loading).is_err() {
            let message = format!("model `{name}` has no version {version} to load");
            return Err(Arc::new(Error::new(ErrorCode::NotFound, message)));
        }
        // While it is loaded it may be unloaded on purpose, and that be taken back.
        let is_loading = |state: &State| matches!(state, State::Loading | State::OnDemand);
        let could_evict = eviction.is_allowed();
        match self.load_version(name, version, eviction).await {
            Ok(served) => {
                self.flights.forgive(name, version);
                self.record(name, version, Outcome::Loaded { memory_bytes: memory_bytes(&served) }).await;
                let ready = State::Ready(Arc::clone(&served));
                // It may have been archived or deleted meanwhile.
                self.set_if(name, version, is_loading, ready).map_err(|_| {
                    let message =
                        format!("model `{name}` version {version} was taken away while it was loaded");
                    Arc::new(Error::new(ErrorCode::Unavailable, message))
                })?;
                Ok(served)
            }
            // There is no room that nobody uses: it is loaded when it is asked for, and has not failed.
            Err(error) if !could_evict && has_no_room(&error) => {
                tracing::info!(model = %name, %version, "not loaded before it is asked for: {error}");
                let _ = self.set_if(name, version, is_loading, State::OnDemand);
                Err(Arc::new(error))
            }
            Err(error) => {
                tracing::error!(
                    model = %name, %version, error = &error as &dyn std::error::Error, "not loaded"
                );
                let error = Arc::new(error);
                if self.set_if(name, version, is_loading, State::OnDemand).is_ok() {
                    self.flights.fail(key.clone(), &error);
                }
                if error.code() != ErrorCode::ResourceExhausted {
                    self.record(name, version, Outcome::Failed { reason: error.to_string() }).await;
                }
                Err(error)
            }
        }
    }

    async fn load_version(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        eviction: &Eviction,
    ) -> Result<Arc<Served>> {
        let source = match &self.registry {
            Some(registry) if self.is_stored(name).await? => registered(registry, name, version).await?,
            _ => match self.builtin.iter().find(|builtin| **builtin == name.as_str()) {
                Some(builtin) => Source::Builtin(builtin),
                None => {
                    let said = self.said(name);
                    let root = said.as_ref().and_then(|said| said.root()).or(self.root.as_deref());
                    let missing = || Error::new(ErrorCode::NotFound, format!("there is no model `{name}`"));
                    let root = root.ok_or_else(missing)?;
                    Source::Folder(root.join(name.as_str()).join(version.to_string()), said.clone())
                }
            },
        };
        self.load_source(name, version, source, eviction).await
    }

    /// Loads what is at `source`, evicting others where memory is short and that is allowed.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(super) async fn load_source(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        source: Source,
        eviction: &Eviction,
    ) -> Result<Arc<Served>> {
        let started = Instant::now();
        let span = operation!("load", name, version);
        let outcome = traced(span, self.load_uncounted(name, version, source, eviction)).await;
        let outcome = outcome.and_then(|served| {
            review::check(&served, self.registry.is_some())?;
            Ok(served)
        });
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads[usize::from(outcome.is_err())].add(started.elapsed());
        drop(loads);
        outcome
    }

    async fn load_uncounted(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        source: Source,
        eviction: &Eviction,
    ) -> Result<Arc<Served>> {
        let place = self.loader.place().await?;
        let started = Instant::now();
        let opened = self.loader.open(name, source).await?;
        if let Some((settings, ensemble)) = opened.ensemble() {
            // The models of its steps may have to be loaded, and need the place.
            drop((place, opened));
            return self.assemble(name, version, settings, ensemble, eviction).await.map(Arc::new);
        }
        if let Some((settings, remote)) = opened.remote() {
            drop((place, opened));
            return self.attach(name, version, settings, remote).await.map(Arc::new);
        }
        let (device, mut bytes) = (opened.device, opened.bytes);
        let mut lease = loop {
            match self.memory.lease(device, bytes) {
                Ok(lease) => break lease,
                Err(account) => self.make_room(device, bytes, account, eviction).await?,
            }
        };
        let late = |what, limit| move |_| Error::internal(format!("{what} took longer than {limit:?}"));
        let read = tokio::time::timeout(READ_LIMIT, self.loader.read(name, opened));
        let cold = read.await.map_err(late("reading the weights", READ_LIMIT))??;
        let estimated = bytes;
        bytes = cold.model.memory_bytes() as u64;
        while let Err(account) = lease.resize(bytes) {
            self.make_room(device, bytes - estimated, account, eviction).await?;
        }
        let warm_up = tokio::time::timeout(WARM_UP_LIMIT, self.loader.warm_up(name, cold));
        let loaded = warm_up.await.map_err(late("warming up", WARM_UP_LIMIT))??;
        let served = self.loader.start(name, version, loaded, lease).await?;
        let instances = &served.instances;
        tracing::info!(
            model = %name, %version, family = %served.settings.family, %device, instances = instances.count,
            threads = served.settings.threads, cores = instances.cores, why = instances.why,
            memory_bytes = bytes, load_ms = millis(started.elapsed()), "loaded"
        );
        Ok(Arc::new(served))
    }

    /// Evicts the version of `device` that was used least recently and is not pinned, and waits until its memory is free. It
    /// is loaded again when it is asked for.
    ///
    /// # Errors
    /// `ResourceExhausted` when the evictions that are allowed cannot make room for `missing` bytes more: then there are none.
    async fn make_room(
        self: &Arc<Self>,
        device: DeviceId,
        missing: u64,
        account: Account,
        eviction: &Eviction,
    ) -> Result<()> {
        let limit = account.limit.unwrap_or(u64::MAX);
        let may_evict = eviction.is_allowed();
        let is_evictable = |served: &Arc<Served>| {
            may_evict
                && served.settings.device == device
                && !served.pinned.load(Ordering::Relaxed)
                && memory_bytes(served) > 0
        };
        let evictable: Vec<Arc<Served>> = self.ready().filter(is_evictable).collect();
        let leaving: Vec<Draining> =
            self.draining().iter().filter(|one| one.device == device).cloned().collect();
        let free = evictable.iter().map(memory_bytes).chain(leaving.iter().map(|one| one.bytes));
        let free = free.fold(0, u64::saturating_add);
        if account.used.saturating_sub(free).saturating_add(missing) > limit {
            let rest = match may_evict {
                true => format!("of which {} can be given up", readable(free)),
                false => "and nothing is evicted before somebody asks for it".to_owned(),
            };
            let [wanted, used, most] = [missing, account.used, limit].map(readable);
            let message = format!(
                "{wanted} of memory wanted on {device}, {used} in use of {most} \
                 (`model_memory_bytes`), {rest}{}",
                self.holders(device, may_evict)
            );
            let full = Error::new(ErrorCode::ResourceExhausted, message);
            // What is larger than all there is will not fit later either.
            return Err(if missing > limit { full } else { full.with_retry_after(FIRST_PAUSE) });
        }
        let oldest = evictable.into_iter().min_by_key(|served| served.last_used());
        let gone = match (leaving.first(), oldest) {
            // What was taken out already gives its memory back soon.
            (Some(leaving), _) => leaving.gone.clone(),
            (None, Some(oldest)) => {
                let is_same =
                    |state: &State| matches!(state, State::Ready(served) if Arc::ptr_eq(served, &oldest));
                if self.set_if(&oldest.name, oldest.version, is_same, State::OnDemand).is_ok() {
                    tracing::info!(model = %oldest.name, version = %oldest.version, "evicted");
                }
                self.drain(&oldest)
            }
            // It came free in between.
            (None, None) => return Ok(()),
        };
        gone.cancelled().await;
        // Whoever notes that it is gone may share this thread.
        tokio::task::yield_now().await;
        Ok(())
    }

    /// What cannot be evicted of a device, the largest first, for people.
    fn holders(&self, device: DeviceId, may_evict: bool) -> String {
        let stays = |served: &Arc<Served>| {
            served.settings.device == device && (!may_evict || served.pinned.load(Ordering::Relaxed))
        };
        let mut holders: Vec<Arc<Served>> = self.ready().filter(stays).collect();
        holders.sort_by_key(|served| std::cmp::Reverse(memory_bytes(served)));
        let (more, mut text) = (holders.len().saturating_sub(MAX_HOLDERS), String::new());
        for served in holders.iter().take(MAX_HOLDERS) {
            let Served { name, version, .. } = &**served;
            let pinned = if may_evict { ", kept loaded" } else { "" };
            let _ = write!(text, "; `{name}` version {version}: {}{pinned}", readable(memory_bytes(served)));
        }
        if more > 0 {
            let _ = write!(text, "; and {more} more");
        }
        text
    }

    /// Writes down how a load of a version of the registry ended, if that is news.
    async fn record(&self, name: &ModelName, version: ModelVersion, outcome: Outcome) {
        let Some(registry) = self.registry.clone() else { return };
        let owned = name.clone();
        let recorded = blocking(move || {
            let Ok(record) = registry.version(&owned, version) else { return Ok(()) };
            let is_news = match &outcome {
                Outcome::Loaded { memory_bytes } => {
                    record.memory_bytes != Some(*memory_bytes) || record.state != VersionState::Registered
                }
                Outcome::Failed { .. } => record.state == VersionState::Registered,
            };
            if is_news {
                registry.record_outcome(&owned, version, outcome).map_err(Into::into)
            } else {
                Ok(())
            }
        });
        if let Err(error) = recorded.await {
            tracing::warn!(model = %name, %version, "the outcome of a load was not recorded: {error}");
        }
    }

    /// Takes a version of the registry out of memory: at once for new requests, and for its memory when the last one is
    /// answered.
    pub(super) fn release(self: &Arc<Self>, name: &ModelName, version: ModelVersion, after: Option<State>) {
        if let Some(State::Ready(served)) = self.versions(name).remove(&version) {
            self.drain(&served);
        }
        self.end(name, version, after);
    }

    /// Notes that `served` is on its way out, until it is. Gives what is cancelled then.
    fn drain(self: &Arc<Self>, served: &Arc<Served>) -> CancellationToken {
        let gone = served.gone.clone();
        let (name, version, bytes) = (served.name.clone(), served.version, memory_bytes(served));
        let device = served.settings.device;
        self.draining().push(Draining { name: name.clone(), version, device, bytes, gone: gone.clone() });
        let (models, left) = (Arc::clone(self), gone.clone());
        let span = operation!("unload", name, version);
        self.tasks.spawn(async move {
            left.cancelled().instrument(span).await;
            models.draining().retain(|one| !one.gone.is_cancelled());
            models.flights.forgive_exhausted();
            let residual_bytes = models.residual_bytes();
            tracing::info!(model = %name, %version, freed_bytes = bytes, residual_bytes, "unloaded");
        });
        gone
    }

    pub(super) fn draining(&self) -> MutexGuard<'_, Vec<Draining>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the memory of every version of `name` that was taken out is free.
    pub(super) async fn released(&self, name: &ModelName) {
        let leaving: Vec<_> =
            self.draining().iter().filter(|one| one.name == *name).map(|one| one.gone.clone()).collect();
        for gone in leaving {
            gone.cancelled().await;
        }
        self.flights.forgive_exhausted();
    }
}

/// A version that was taken out and still answers what it was given.
#[derive(Clone)]
pub(super) struct Draining {
    pub(super) name: ModelName,
    pub(super) version: ModelVersion,
    device: DeviceId,
    bytes: u64,
    gone: CancellationToken,
}

/// Ends a flight when dropped.
struct Landing<'a> {
    flights: &'a Flights,
    key: &'a Version,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.under_way.remove(self.key);
    }
}

/// A load that somebody waited for came to nothing.
pub(super) fn not_loaded(name: &ModelName, version: ModelVersion, code: ErrorCode, error: &Error) -> Error {
    let message = format!("model `{name}` version {version} could not be loaded: {error}");
    let refused = Error::new(code, message);
    match error.retry_after() {
        Some(after) => refused.with_retry_after(after),
        None => refused,
    }
}

fn readable(bytes: u64) -> String {
    if bytes < 1_000_000 {
        format!("{:.1} kB", bytes as f64 / 1e3)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}

/// Whether a load failed for want of memory that it may have later.
pub(super) fn has_no_room(error: &Error) -> bool {
    error.code() == ErrorCode::ResourceExhausted && error.retry_after().is_some()
}

fn memory_bytes(served: &Arc<Served>) -> u64 {
    served.memory_bytes() as u64
}

async fn registered(registry: &Arc<Registry>, name: &ModelName, version: ModelVersion) -> Result<Source> {
    let (registry, name) = (Arc::clone(registry), name.clone());
    blocking(move || {
        let record = registry.version(&name, version)?;
        let (files, memory_bytes) = (record.files.into(), record.memory_bytes);
        Ok(Source::Registered { registry, files, memory_bytes })
    })
    .await
}
