//! Loads that anyone may wait for, and the room they need: one load of a version at a time, however many wait for it.

use super::loader::Source;
use super::memory::Account;
use super::{Models, Route, Served, State, blocking, is_ready, millis};
use dashmap::DashMap;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use sconce_core::{DeviceId, Error, ErrorCode, ModelName, ModelVersion, Result};
use sconce_registry::{Outcome, Registry, VersionState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

type Version = (ModelName, ModelVersion);

/// A load under way, for any number of waiters.
pub(super) type Flight = Shared<BoxFuture<'static, Result<Arc<Served>, Arc<Error>>>>;

/// Loads under way, and loads that failed. Bounded by the versions there are.
#[derive(Default)]
pub(super) struct Flights {
    under_way: DashMap<Version, Flight>,
    failures: DashMap<Version, Failure>,
}

/// A version that could not be loaded is tried again after a pause that doubles each time.
struct Failure {
    count: u32,
    retry_at: Instant,
    error: Arc<Error>,
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl Flights {
    pub(super) fn has(&self, name: &ModelName, version: ModelVersion) -> bool {
        self.under_way.contains_key(&(name.clone(), version))
    }

    /// Whether a load failed that is not tried again yet.
    fn is_paused(&self, name: &ModelName, version: ModelVersion) -> bool {
        self.refusal(&(name.clone(), version)).is_some()
    }

    /// Forgets that a load failed: it may be tried again at once.
    pub(super) fn forgive(&self, name: &ModelName, version: ModelVersion) {
        self.failures.remove(&(name.clone(), version));
    }

    /// Models with a version whose pause is over.
    pub(super) fn overdue(&self) -> Vec<ModelName> {
        let now = Instant::now();
        let due = self.failures.iter().filter(|failure| failure.retry_at <= now);
        let mut names: Vec<ModelName> = due.map(|failure| failure.key().0.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn fail(&self, key: Version, error: &Arc<Error>) {
        let count = self.failures.get(&key).map_or(1, |before| before.count.saturating_add(1));
        let pause = FIRST_PAUSE.saturating_mul(1 << (count - 1).min(16)).min(LONGEST_PAUSE);
        self.failures
            .insert(key, Failure { count, retry_at: Instant::now() + pause, error: Arc::clone(error) });
    }

    /// Why this version is not tried again yet.
    fn refusal(&self, key: &Version) -> Option<Error> {
        let failure = self.failures.get(key)?;
        let left = failure.retry_at.checked_duration_since(Instant::now())?;
        let (name, version) = key;
        Some(Error::new(
            failure.error.code(),
            format!(
                "model `{name}` version {version} could not be loaded ({} times; the next try in {:.0?}): {}",
                failure.count, left, failure.error
            ),
        ))
    }
}

impl Models {
    /// As [`route`](Self::route), but what is not in memory and may be loaded on demand is loaded first: one load, however
    /// many wait for it. Also gives the routing generation this went by.
    ///
    /// # Errors
    /// As for `route`; `ResourceExhausted` when there is no memory for it.
    pub(crate) async fn serving(self: &Arc<Self>, name: &str, version: &str) -> Result<(Arc<Served>, u64)> {
        let generation = self.generation();
        let served = match self.find(name, version)? {
            Route::Ready(served) => served,
            Route::Meanwhile(served, name, higher) => {
                if !self.flights.has(&name, higher) && !self.flights.is_paused(&name, higher) {
                    let models = Arc::clone(self);
                    self.tasks.spawn(async move {
                        if models.flight(&name, higher).await.is_ok() {
                            models.settle(&name).await;
                        }
                    });
                }
                served
            }
            Route::Absent(name, version) => self.flight(&name, version).await.map_err(|error| {
                let code = match error.code() {
                    ErrorCode::ResourceExhausted => ErrorCode::ResourceExhausted,
                    _ => ErrorCode::Unavailable,
                };
                Error::new(code, format!("model `{name}` version {version} could not be loaded: {error}"))
            })?,
        };
        if version.is_empty() {
            // Once another answers in its place, it need not stay in memory.
            served.kept.store(true, Ordering::Relaxed);
        }
        Ok((served, generation))
    }

    /// The load of a version: the one under way, or a new one.
    pub(super) fn flight(self: &Arc<Self>, name: &ModelName, version: ModelVersion) -> Flight {
        let key = (name.clone(), version);
        let start = || {
            let (models, key) = (Arc::clone(self), key.clone());
            let task = self.tasks.spawn(async move {
                let outcome = models.fly(&key).await;
                models.flights.under_way.remove(&key);
                outcome
            });
            let lost = |error| Err(Arc::new(Error::internal("the load was cut off").with_source(error)));
            async move { task.await.unwrap_or_else(lost) }.boxed().shared()
        };
        self.flights.under_way.entry(key.clone()).or_insert_with(start).clone()
    }

    async fn fly(self: &Arc<Self>, key: &Version) -> Result<Arc<Served>, Arc<Error>> {
        let (name, version) = (&key.0, key.1);
        match self.versions(name).get(&version) {
            Some(State::Ready(served)) => return Ok(Arc::clone(served)),
            Some(_) => {}
            None => {
                let message = format!("model `{name}` has no version {version}");
                return Err(Arc::new(Error::new(ErrorCode::NotFound, message)));
            }
        }
        if let Some(refusal) = self.flights.refusal(key) {
            return Err(Arc::new(refusal));
        }
        self.set(name, version, State::Loading);
        let is_loading = |state: &State| matches!(state, State::Loading);
        match self.load_version(name, version).await {
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
            Err(error) => {
                tracing::error!(model = %name, %version, "not loaded: {error}");
                let error = Arc::new(error);
                // That there is no room now says nothing about the version.
                let has_room = error.code() != ErrorCode::ResourceExhausted;
                if has_room {
                    self.flights.fail(key.clone(), &error);
                    self.record(name, version, Outcome::Failed { reason: error.to_string() }).await;
                }
                let _ = self.set_if(name, version, is_loading, State::OnDemand);
                Err(error)
            }
        }
    }

    async fn load_version(self: &Arc<Self>, name: &ModelName, version: ModelVersion) -> Result<Arc<Served>> {
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
        self.load_source(name, version, source).await
    }

    /// Loads what is at `source`, evicting others where memory is short.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(super) async fn load_source(
        &self,
        name: &ModelName,
        version: ModelVersion,
        source: Source,
    ) -> Result<Arc<Served>> {
        let outcome = self.load_uncounted(name, version, source).await;
        self.loads[usize::from(outcome.is_err())].fetch_add(1, Ordering::Relaxed);
        outcome
    }

    async fn load_uncounted(
        &self,
        name: &ModelName,
        version: ModelVersion,
        source: Source,
    ) -> Result<Arc<Served>> {
        let _place = self.loader.place().await?;
        let started = Instant::now();
        let opened = self.loader.open(name, source).await?;
        let (device, mut bytes) = (opened.device, opened.bytes);
        let mut lease = loop {
            match self.memory.lease(device, bytes) {
                Ok(lease) => break lease,
                Err(account) => self.make_room(device, bytes, account).await?,
            }
        };
        let (settings, model) = self.loader.read(name, opened).await?;
        bytes = model.memory_bytes() as u64;
        while let Err(account) = lease.resize(bytes) {
            self.make_room(device, bytes, account).await?;
        }
        let served = self.loader.start(name, version, settings, model, lease).await?;
        tracing::info!(
            model = %name, %version, family = %served.settings.family, %device, instances = served.instances,
            memory_bytes = bytes, load_ms = millis(started.elapsed()), "loaded"
        );
        Ok(Arc::new(served))
    }

    /// Evicts the version of `device` that was used least recently and is not pinned, and waits until its memory is free. It
    /// is loaded again when it is asked for.
    ///
    /// # Errors
    /// `ResourceExhausted` when no eviction could help.
    async fn make_room(&self, device: DeviceId, bytes: u64, account: Account) -> Result<()> {
        let limit = account.limit.unwrap_or(u64::MAX);
        let exhausted = |why: &str| {
            let used = account.used;
            let message =
                format!("{device}: {bytes} bytes of memory wanted, {used} of {limit} in use: {why}");
            Err(Error::new(ErrorCode::ResourceExhausted, message))
        };
        if bytes > limit {
            return exhausted("more than the budget");
        }
        let evictable = |served: &Arc<Served>| {
            served.settings.device == device
                && !served.pinned.load(Ordering::Relaxed)
                && memory_bytes(served) > 0
        };
        let oldest = self.ready().filter(evictable).min_by_key(|served| served.last_used());
        let Some(oldest) = oldest else {
            // What was taken out already gives its memory back soon.
            let leaving = self.draining.iter().next().map(|entry| entry.value().clone());
            let Some(leaving) = leaving else {
                return exhausted("nothing can be evicted, for what is in memory is pinned or being loaded");
            };
            leaving.cancelled().await;
            return Ok(());
        };
        let (name, version, gone) = (oldest.name.clone(), oldest.version, oldest.gone.clone());
        let is_same = |state: &State| matches!(state, State::Ready(served) if Arc::ptr_eq(served, &oldest));
        if self.set_if(&name, version, is_same, State::OnDemand).is_ok() {
            tracing::info!(model = %name, %version, freed_bytes = memory_bytes(&oldest), "evicted");
        }
        drop(oldest);
        gone.cancelled().await;
        Ok(())
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

    /// Takes a version of the registry out of memory: at once for new requests, when the last one is answered for its memory.
    /// Gives the task that waits for that.
    pub(super) fn release(self: &Arc<Self>, name: &ModelName, version: ModelVersion, after: Option<State>) {
        let Some(State::Ready(served)) = self.versions(name).remove(&version) else {
            return self.end(name, version, after);
        };
        let (gone, freed_bytes) = (served.gone.clone(), memory_bytes(&served));
        drop(served);
        let key = (name.clone(), version);
        self.draining.insert(key.clone(), gone.clone());
        self.end(name, version, after);
        let models = Arc::clone(self);
        self.tasks.spawn(async move {
            gone.cancelled().await;
            models.draining.remove(&key);
            tracing::info!(model = %key.0, version = %key.1, freed_bytes, "unloaded");
        });
    }

    /// Waits until the memory of every version of `name` that was taken out is free.
    pub(super) async fn released(&self, name: &ModelName) {
        let draining = self.draining.iter().filter(|entry| entry.key().0 == *name);
        let gone: Vec<_> = draining.map(|entry| entry.value().clone()).collect();
        for gone in gone {
            gone.cancelled().await;
        }
    }

    /// Whether every version that should be in memory is.
    pub(super) fn all_ready(&self, name: &ModelName, wanted: &[ModelVersion]) -> bool {
        let versions = self.versions(name);
        wanted.iter().all(|version| versions.get(version).is_some_and(is_ready))
    }
}

fn memory_bytes(served: &Served) -> u64 {
    served.scheduler.model().memory_bytes() as u64
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
