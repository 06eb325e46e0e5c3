//! What is served: an immutable table of model versions, swapped whole. Requests read it without a lock.

use arc_swap::ArcSwap;
use sconce_candle::{ModelSettings, Package};
use sconce_core::{DeviceId, Error, ErrorCode, ModelName, ModelVersion, Result, Signature, abbreviate};
use sconce_scheduler::{BatchPolicy, Device, Scheduler};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A model version that takes requests. Whoever holds it keeps it loaded.
pub(crate) struct Served {
    pub(crate) name: ModelName,
    /// The version as it stands on the wire.
    pub(crate) version_text: String,
    pub(crate) settings: ModelSettings,
    pub(crate) instances: usize,
    pub(crate) scheduler: Scheduler,
    gone: CancellationToken,
    _gone_on_drop: DropGuard,
}

impl Served {
    pub(crate) fn signature(&self) -> &Signature {
        self.scheduler.model().signature()
    }
}

/// A version's state.
#[derive(Clone)]
pub(crate) enum State {
    Ready(Arc<Served>),
    Loading,
    Unloading,
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
            Self::Unavailable(reason) => ("UNAVAILABLE", reason),
        }
    }
}

/// Why a version that was unloaded on purpose is unavailable.
pub(crate) const UNLOADED: &str = "unloaded";

type Versions = BTreeMap<ModelVersion, State>;
type Table = HashMap<ModelName, Versions>;

/// Where a version's model comes from.
#[derive(Clone)]
enum Source {
    Builtin(&'static str),
    Folder(PathBuf),
}

/// Every model the server knows.
pub(crate) struct Models {
    root: Option<PathBuf>,
    builtin: Vec<&'static str>,
    default_device: DeviceId,
    devices: Mutex<HashMap<DeviceId, Arc<Device>>>,
    table: ArcSwap<Table>,
    /// Held through a load or unload: changes come one at a time.
    changing: tokio::sync::Mutex<()>,
}

const BUILTIN: [&str; 2] = ["identity", "add_sub"];

impl Models {
    pub(crate) fn new(root: Option<PathBuf>, builtin: &[String], default_device: DeviceId) -> Self {
        Self {
            root,
            builtin: BUILTIN.into_iter().filter(|name| builtin.iter().any(|wanted| wanted == name)).collect(),
            default_device,
            devices: Mutex::default(),
            table: ArcSwap::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// The version that answers a request for `version` of `name`; an empty `version` means the highest that is ready.
    ///
    /// # Errors
    /// `NotFound` for an unknown name or version, `Unavailable` for one that is not ready, `InvalidArgument` for a name
    /// or version that cannot be one.
    pub(crate) fn route(&self, name: &str, version: &str) -> Result<Arc<Served>> {
        let table = self.table.load();
        let Some(versions) = table.get(name) else {
            ModelName::new(name)?;
            return Err(Error::new(ErrorCode::NotFound, format!("unknown model `{name}`")));
        };
        if version.is_empty() {
            let ready = versions.values().rev().find_map(|state| match state {
                State::Ready(served) => Some(Arc::clone(served)),
                _ => None,
            });
            return ready.ok_or_else(|| {
                let reason = versions.values().next_back().map_or(("UNAVAILABLE", ""), State::describe);
                not_ready(name, reason)
            });
        }
        let number = ModelVersion::parse(version).ok_or_else(|| {
            Error::invalid(format!(
                "model `{name}`: expected a version number, got {:?}, which is no alias either",
                abbreviate(version)
            ))
        })?;
        match versions.get(&number) {
            Some(State::Ready(served)) => Ok(Arc::clone(served)),
            Some(state) => Err(not_ready(name, state.describe())),
            None => Err(Error::new(
                ErrorCode::NotFound,
                format!("model `{name}` has no version {number}: it has {}", join(versions.keys())),
            )),
        }
    }

    /// Every version of every model with its state, in order.
    pub(crate) fn index(&self) -> Vec<(ModelName, ModelVersion, State)> {
        let table = self.table.load();
        let mut index: Vec<_> = table
            .iter()
            .flat_map(|(name, versions)| versions.iter().map(|(v, state)| (name.clone(), *v, state.clone())))
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
        let versions = table.get(name).into_iter().flatten();
        versions.filter(|(_, state)| matches!(state, State::Ready(_))).map(|(version, _)| *version).collect()
    }

    /// Loads everything there is. What fails is unavailable, with the reason; the rest is served.
    ///
    /// # Errors
    /// The folder of models cannot be read.
    pub(crate) async fn load_all(&self) -> Result<()> {
        let _changing = self.changing.lock().await;
        let (sources, problems) = self.sources().await?;
        for problem in problems {
            tracing::warn!(problem, "the folder of models has an entry that is no model");
        }
        for (name, version, _) in &sources {
            self.set(name, *version, Some(State::Loading));
        }
        for (name, version, source) in sources {
            let state = self.load_one(&name, version, source).await;
            let state = state.map_or_else(|error| State::Unavailable(error.to_string()), State::Ready);
            self.set(&name, version, Some(state));
        }
        Ok(())
    }

    /// Loads, or loads again, every version of `name`. A version that is served stays until its successor is ready, and
    /// answers what it was given; when the successor fails it simply stays.
    ///
    /// # Errors
    /// `NotFound` when there is no such model; what the first failing version failed with.
    pub(crate) async fn load(&self, name: &str) -> Result<()> {
        let name = ModelName::new(name)?;
        let _changing = self.changing.lock().await;
        let (sources, _) = self.sources().await?;
        let sources: Vec<_> = sources.into_iter().filter(|(found, _, _)| *found == name).collect();
        if sources.is_empty() {
            // What is no longer there cannot be loaded, and if it was never served it is not missed either.
            for version in self.unready_versions(&name) {
                self.set(&name, version, None);
            }
            return Err(Error::new(ErrorCode::NotFound, format!("there is no model `{name}` to load")));
        }
        let vanished: Vec<ModelVersion> = {
            let table = self.table.load();
            let known = table.get(&name).into_iter().flat_map(BTreeMap::keys);
            known.filter(|version| sources.iter().all(|(_, found, _)| found != *version)).copied().collect()
        };
        let mut outcome = Ok(());
        for (_, version, source) in sources {
            let was_ready = matches!(self.state(&name, version), Some(State::Ready(_)));
            if !was_ready {
                self.set(&name, version, Some(State::Loading));
            }
            match self.load_one(&name, version, source).await {
                Ok(served) => self.set(&name, version, Some(State::Ready(served))),
                Err(error) => {
                    if !was_ready {
                        self.set(&name, version, Some(State::Unavailable(error.to_string())));
                    }
                    outcome = outcome.and(Err(error));
                }
            }
        }
        for version in vanished {
            self.set(&name, version, None);
        }
        outcome
    }

    /// Unloads every version of `name` and waits until each has answered what it was given.
    ///
    /// # Errors
    /// `NotFound` for an unknown name.
    pub(crate) async fn unload(&self, name: &str) -> Result<()> {
        let name = ModelName::new(name)?;
        let _changing = self.changing.lock().await;
        let versions = self.table.load().get(&name).cloned();
        let versions =
            versions.ok_or_else(|| Error::new(ErrorCode::NotFound, format!("unknown model `{name}`")))?;
        let mut draining = Vec::new();
        for (version, state) in versions {
            if let State::Ready(served) = state {
                self.set(&name, version, Some(State::Unloading));
                draining.push((version, served.gone.clone()));
            }
        }
        // One that could not be loaded is given up.
        for version in self.unready_versions(&name) {
            if !draining.iter().any(|(other, _)| *other == version) {
                self.set(&name, version, Some(State::Unavailable(UNLOADED.to_owned())));
            }
        }
        for (version, gone) in draining {
            gone.cancelled().await;
            self.set(&name, version, Some(State::Unavailable(UNLOADED.to_owned())));
            tracing::info!(model = %name, %version, "unloaded");
        }
        Ok(())
    }

    /// Forgets every model and waits for the workers. Requests must have been answered by now: later ones find nothing.
    pub(crate) async fn close(&self) {
        let table = self.table.swap(Arc::default());
        let served: Vec<Arc<Served>> = table
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(
                |state| if let State::Ready(served) = state { Some(Arc::clone(served)) } else { None },
            )
            .collect();
        drop(table);
        let join =
            tokio::task::spawn_blocking(move || served.iter().for_each(|served| served.scheduler.close()));
        if let Err(error) = join.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the workers could not be joined");
        }
    }

    fn unready_versions(&self, name: &ModelName) -> Vec<ModelVersion> {
        let table = self.table.load();
        let versions = table.get(name).into_iter().flatten();
        versions.filter(|(_, state)| !matches!(state, State::Ready(_))).map(|(version, _)| *version).collect()
    }

    fn state(&self, name: &ModelName, version: ModelVersion) -> Option<State> {
        self.table.load().get(name)?.get(&version).cloned()
    }

    /// Publishes one version's state; `None` removes it. Callers hold `changing`, so no change is lost.
    fn set(&self, name: &ModelName, version: ModelVersion, state: Option<State>) {
        let mut table = Table::clone(&self.table.load());
        let versions = table.entry(name.clone()).or_default();
        let before = match state {
            Some(state) => versions.insert(version, state),
            None => versions.remove(&version),
        };
        if versions.is_empty() {
            table.remove(name);
        }
        self.table.store(Arc::new(table));
        if let Some(State::Ready(served)) = before {
            served.scheduler.hurry();
        }
    }

    /// Lets no request wait for company any more: there will be none.
    pub(crate) fn hurry(&self) {
        self.ready().for_each(|served| served.scheduler.hurry());
    }

    /// What there is to load, and what is in the folder of models but is no model.
    async fn sources(&self) -> Result<(Vec<(ModelName, ModelVersion, Source)>, Vec<String>)> {
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
                sources.push((found.name, found.version, Source::Folder(found.dir)));
            }
        }
        Ok((sources, problems))
    }

    /// Loads one version on a thread of its own: never on one that serves.
    async fn load_one(&self, name: &ModelName, version: ModelVersion, source: Source) -> Result<Arc<Served>> {
        let started = Instant::now();
        let (label, default_device) = (name.to_string(), self.default_device);
        let loaded = blocking(move || {
            let (settings, model) = match source {
                Source::Builtin(name) => {
                    sconce_candle::builtin(name).ok_or_else(|| Error::internal("no such built-in model"))?
                }
                Source::Folder(dir) => open(&dir, default_device)?,
            };
            Ok((settings, model))
        })
        .await
        .inspect_err(|error| tracing::error!(model = %name, %version, "not loaded: {error}"))?;
        let (settings, model) = loaded;
        let device = self.device(settings.device);
        let policy = BatchPolicy {
            max_rows: settings.max_batch_size,
            max_tokens: settings.max_batch_tokens,
            max_delay: settings.max_queue_delay,
            queue_depth: settings.queue_depth,
        };
        let instances =
            settings.instances.unwrap_or_else(|| default_instances(settings.device, settings.threads));
        let memory_bytes = model.memory_bytes();
        let scheduler = blocking(move || Scheduler::start(&label, model, policy, device, instances)).await?;
        let gone = CancellationToken::new();
        let load_time = started.elapsed();
        tracing::info!(
            model = %name, %version, family = %settings.family, device = %settings.device, instances,
            memory_bytes, load_ms = millis(load_time), "loaded"
        );
        Ok(Arc::new(Served {
            name: name.clone(),
            version_text: version.to_string(),
            settings,
            instances,
            scheduler,
            _gone_on_drop: gone.clone().drop_guard(),
            gone,
        }))
    }

    fn device(&self, id: DeviceId) -> Arc<Device> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = match id {
            DeviceId::Cpu => cores(),
            DeviceId::Cuda(_) => 1,
        };
        Arc::clone(devices.entry(id).or_insert_with(|| Arc::new(Device::new(slots))))
    }
}

fn open(dir: &Path, default_device: DeviceId) -> Result<(ModelSettings, Arc<dyn sconce_core::LoadedModel>)> {
    let package = Package::open(dir, default_device).map_err(|e| Error::new(e.code(), e.to_string()))?;
    let settings = package.settings.clone();
    let model = package.load().map_err(|e| Error::new(e.code(), e.to_string()))?;
    Ok((settings, model))
}

/// One single-threaded instance a core, or as many as the threads of each leave room for; one on a GPU.
fn default_instances(device: DeviceId, threads: usize) -> usize {
    match device {
        DeviceId::Cpu => (cores() / threads.max(1)).max(1),
        DeviceId::Cuda(_) => 1,
    }
}

/// Cores this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
