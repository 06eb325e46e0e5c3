//! From a source to a version that takes requests: on threads of its own, which yield to those that serve.

use super::memory::{Lease, Leased};
use super::overrides::Override;
use super::{Served, blocking};
use sconce_candle::{ModelSettings, Package};
use sconce_core::{Batch, DeviceId, Error, ErrorCode, LoadedModel, ModelName, ModelVersion, Result, Tensor};
use sconce_registry::{Checkout, FileRecord, Registry};
use sconce_scheduler::{BatchPolicy, Device, Scheduler};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

/// Where a version's model comes from.
#[derive(Clone)]
pub(crate) enum Source {
    Builtin(&'static str),
    /// A package, and what a load call said in its place.
    Folder(PathBuf, Option<Arc<Override>>),
    /// Its files in the registry, and what it took when it was last loaded.
    Registered {
        registry: Arc<Registry>,
        files: Arc<[FileRecord]>,
        memory_bytes: Option<u64>,
    },
}

/// Loads models, in steps: [`open`](Self::open), [`read`](Self::read), [`start`](Self::start).
pub(crate) struct Loader {
    default_device: DeviceId,
    devices: Mutex<HashMap<DeviceId, Arc<Device>>>,
    /// A place for each load at once.
    places: Semaphore,
}

/// How much less of a core a loading thread gets than one that serves, where both want it: about a tenth.
const NICE: i32 = 10;

/// A source that was checked, before its weights are read.
pub(crate) struct Opened {
    kind: Kind,
    pub(crate) device: DeviceId,
    /// What its weights will take.
    pub(crate) bytes: u64,
    /// The folder a package of the registry lies in meanwhile.
    _checkout: Option<Checkout>,
}

enum Kind {
    Builtin(ModelSettings, Arc<dyn LoadedModel>),
    Package(Box<Package>),
}

impl Loader {
    pub(crate) fn new(default_device: DeviceId) -> Self {
        Self { default_device, devices: Mutex::default(), places: Semaphore::new((cores() / 2).max(1)) }
    }

    /// Waits for a place among the loads at once.
    ///
    /// # Errors
    /// Never, as long as the server runs.
    pub(crate) async fn place(&self) -> Result<SemaphorePermit<'_>> {
        let closed = |_| Error::new(ErrorCode::Unavailable, "the server is shutting down");
        self.places.acquire().await.map_err(closed)
    }

    /// Checks all of a source but its weights' values.
    ///
    /// # Errors
    /// What keeps it from being loaded.
    pub(crate) async fn open(&self, name: &ModelName, source: Source) -> Result<Opened> {
        let default_device = self.default_device;
        on_thread(name, move || open(source, default_device)).await
    }

    /// Reads the weights, and has the model answer once.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(crate) async fn read(
        &self,
        name: &ModelName,
        opened: Opened,
    ) -> Result<(ModelSettings, Arc<dyn LoadedModel>)> {
        on_thread(name, move || opened.load()).await
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// `Internal` when there is no thread for them.
    pub(crate) async fn start(
        &self,
        name: &ModelName,
        version: ModelVersion,
        settings: ModelSettings,
        model: Arc<dyn LoadedModel>,
        lease: Lease,
    ) -> Result<Served> {
        let gone = CancellationToken::new();
        let model = Arc::new(Leased::new(model, lease, gone.clone().drop_guard()));
        let policy = BatchPolicy {
            max_rows: settings.max_batch_size,
            max_tokens: settings.max_batch_tokens,
            max_delay: settings.max_queue_delay,
            queue_depth: settings.queue_depth,
            ..BatchPolicy::default()
        };
        let instances =
            settings.instances.unwrap_or_else(|| default_instances(settings.device, settings.threads));
        let (label, slots) = (name.to_string(), self.device(settings.device));
        // Not on a thread that yields: workers inherit that.
        let scheduler = blocking(move || Scheduler::start(&label, model, policy, slots, instances)).await?;
        Ok(Served::new(name, version, settings, instances, scheduler, gone))
    }

    /// Where models run that do not say it themselves.
    pub(crate) fn default_device(&self) -> DeviceId {
        self.default_device
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

fn open(source: Source, default_device: DeviceId) -> Result<Opened> {
    let package = |dir: &std::path::Path| {
        Package::open(dir, default_device).map_err(|error| Error::new(error.code(), error.to_string()))
    };
    match source {
        Source::Builtin(name) => {
            let (settings, model) =
                sconce_candle::builtin(name).ok_or_else(|| Error::internal("no such built-in model"))?;
            let device = settings.device;
            Ok(Opened { kind: Kind::Builtin(settings, model), device, bytes: 0, _checkout: None })
        }
        Source::Folder(dir, said) => {
            let mut package = package(&dir)?;
            if let Some(said) = said {
                said.apply(&mut package);
            }
            let (device, bytes) = (package.settings.device, package.weights_bytes);
            Ok(Opened { kind: Kind::Package(Box::new(package)), device, bytes, _checkout: None })
        }
        Source::Registered { registry, files, memory_bytes } => {
            let checkout = registry.artifacts().checkout(&files)?;
            let package = package(checkout.path())?;
            let (device, bytes) = (package.settings.device, memory_bytes.unwrap_or(package.weights_bytes));
            Ok(Opened { kind: Kind::Package(Box::new(package)), device, bytes, _checkout: Some(checkout) })
        }
    }
}

impl Opened {
    /// Reads the weights, and warms up.
    fn load(self) -> Result<(ModelSettings, Arc<dyn LoadedModel>)> {
        match self.kind {
            Kind::Builtin(settings, model) => Ok((settings, model)),
            Kind::Package(mut package) => {
                let settings = package.settings.clone();
                let declared = std::mem::take(&mut package.warmup);
                let model = package.load().map_err(|error| Error::new(error.code(), error.to_string()))?;
                warm_up(&*model, declared)?;
                Ok((settings, model))
            }
        }
    }
}

/// Has an instance answer the requests the package declares, or else one made up from the signature: pages are touched,
/// kernels are compiled, and a model that cannot answer is found out before it is served.
///
/// # Errors
/// A declared request has no answer. A made-up one may be one the model rightly refuses: its failure says nothing.
fn warm_up(model: &dyn LoadedModel, declared: Vec<Vec<(String, Tensor)>>) -> Result<()> {
    let mut backend = model.instance()?;
    let mut answer = |request: Vec<(String, Tensor)>| -> Result<()> {
        let input = model.prepare(model.signature().check(request)?)?;
        backend.submit(Batch { inputs: vec![input] })?;
        backend.collect()?.outputs.into_iter().try_for_each(|output| output.map(drop))
    };
    if declared.is_empty() {
        let examples = model.signature().examples();
        let answered = examples.into_iter().any(|example| answer(example).is_ok());
        tracing::debug!(answered, "warmed up with a made-up request");
        return Ok(());
    }
    for (index, request) in declared.into_iter().enumerate() {
        answer(request).map_err(|error| {
            Error::new(ErrorCode::FailedPrecondition, format!("warmup[{index}]: {error}"))
        })?;
    }
    Ok(())
}

/// Runs `work` on a thread of its own that yields to those that serve.
///
/// # Errors
/// What it failed with; `Internal` when it panicked or no thread can be had.
async fn on_thread<T: Send + 'static>(
    name: &ModelName,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, outcome) = oneshot::channel();
    let loading = move || {
        // On Linux this is the calling thread's priority alone. Without it loading disturbs more, and works.
        let _ = rustix::process::setpriority_process(None, NICE);
        let _ = done.send(work());
    };
    std::thread::Builder::new()
        .name(format!("sconce-loader-{name}"))
        .spawn(loading)
        .map_err(|error| Error::internal("a loading thread could not be started").with_source(error))?;
    outcome.await.unwrap_or_else(|_| Err(Error::internal("loading panicked")))
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
