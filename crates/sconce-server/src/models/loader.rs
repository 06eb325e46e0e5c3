//! From a source to a version that takes requests: on threads of its own, which yield to those that serve.

use super::cores::Cores;
use super::memory::{Lease, Leased};
use super::overrides::Override;
use super::{Served, Target, blocking};
use crate::cache::ResponseCache;
use sconce_candle::{ModelSettings, Package, Remote};
use sconce_core::{
    Batch, DeviceId, Ensemble, Error, ErrorCode, LoadedModel, ModelInput, ModelName, ModelVersion, Result,
    Tensor,
};
use sconce_registry::{Checkout, FileRecord, Registry};
use sconce_scheduler::{BatchPolicy, Device, Scheduler, Work};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
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

/// Loads models, in steps: [`open`](Self::open), [`read`](Self::read), [`warm_up`](Self::warm_up), [`start`](Self::start).
pub(crate) struct Loader {
    default_device: DeviceId,
    /// How long a batch may take while another model or tenant waits.
    quantum: Duration,
    /// For instances with cores of their own.
    cores: Arc<Cores>,
    devices: Mutex<HashMap<DeviceId, Arc<Device>>>,
    /// A place for each load at once.
    places: Semaphore,
}

/// How many instances a version has.
#[derive(Default)]
pub(crate) struct Instances {
    pub(crate) count: usize,
    /// Why as many.
    pub(crate) why: String,
    /// The cores of each, where they have their own.
    pub(crate) cores: Option<String>,
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
    Builtin(Box<ModelSettings>, Arc<dyn LoadedModel>),
    Package(Box<Package>),
}

/// A model in memory that has not answered yet.
pub(crate) struct Cold {
    settings: ModelSettings,
    pub(crate) model: Arc<dyn LoadedModel>,
    /// The requests that a package declares to warm it up; `None` where it need not be.
    warmup: Option<Vec<Vec<(String, Tensor)>>>,
}

/// A model that can answer.
pub(crate) struct Loaded {
    settings: ModelSettings,
    model: Arc<dyn LoadedModel>,
    /// What a batch took once it was warm.
    warm: Option<(Work, Duration)>,
}

impl Loader {
    pub(crate) fn new(default_device: DeviceId, quantum: Duration) -> Self {
        Self {
            default_device,
            quantum,
            cores: Cores::available(),
            devices: Mutex::default(),
            places: Semaphore::new((cores() / 2).max(1)),
        }
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

    /// Reads the weights.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(crate) async fn read(&self, name: &ModelName, opened: Opened) -> Result<Cold> {
        on_thread(name, move || opened.read()).await
    }

    /// Has the model answer once. Who waits for it no longer ends it with the request it is at.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(crate) async fn warm_up(&self, name: &ModelName, cold: Cold) -> Result<Loaded> {
        let Cold { settings, model, warmup } = cold;
        let Some(declared) = warmup else { return Ok(Loaded { settings, model, warm: None }) };
        let ended = CancellationToken::new();
        let _waits = ended.clone().drop_guard();
        on_thread(name, move || {
            let warm = warm_up(&*model, declared, &ended)?;
            Ok(Loaded { settings, model, warm })
        })
        .await
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// `FailedPrecondition` when its answers are to be kept and may not be;
    /// `Internal` when there is no thread for them.
    pub(crate) async fn start(
        &self,
        name: &ModelName,
        version: ModelVersion,
        loaded: Loaded,
        lease: Lease,
    ) -> Result<Served> {
        let Loaded { settings, model, warm } = loaded;
        let cache = settings.response_cache.map(ResponseCache::new);
        if cache.is_some() && !model.is_deterministic() {
            let message =
                "its answers cannot be kept: equal inputs may have different ones (`response_cache`)";
            return Err(Error::new(ErrorCode::FailedPrecondition, message));
        }
        let gone = CancellationToken::new();
        let (count, why) = instances(&settings);
        let pins = settings.pin_cores.then(|| Arc::new(self.cores.take(count, settings.threads)));
        let instances = Instances { count, why, cores: pins.as_ref().map(|pins| pins.describe()) };
        let model = Arc::new(Leased::new(model, lease, pins, gone.clone().drop_guard()));
        let policy = BatchPolicy {
            max_rows: settings.max_batch_size,
            max_tokens: settings.max_batch_tokens,
            max_delay: settings.max_queue_delay,
            queue_depth: settings.queue_depth,
            queue_target: settings.queue_target,
            quantum: self.quantum,
            weight: settings.weight,
            ..BatchPolicy::default()
        };
        let (label, slots) = (name.to_string(), self.device(settings.device));
        // Not on a thread that yields: workers inherit that.
        let scheduler = blocking(move || Scheduler::start(&label, model, policy, slots, count)).await?;
        if let Some((work, time)) = warm {
            scheduler.learn(work, time);
        }
        Ok(Served::new(name, version, settings, instances, Target::Model(scheduler), cache, gone))
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
            Ok(Opened { kind: Kind::Builtin(Box::new(settings), model), device, bytes: 0, _checkout: None })
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
    /// What it says, if it is an ensemble: it has nothing to read, and no workers.
    pub(crate) fn ensemble(&self) -> Option<(ModelSettings, Ensemble)> {
        match &self.kind {
            Kind::Package(package) => Some((package.settings.clone(), package.ensemble()?.clone())),
            Kind::Builtin(..) => None,
        }
    }

    /// Where it is, if another server answers it.
    pub(crate) fn remote(&self) -> Option<(ModelSettings, Remote)> {
        match &self.kind {
            Kind::Package(package) => Some((package.settings.clone(), package.remote()?.clone())),
            Kind::Builtin(..) => None,
        }
    }

    fn read(self) -> Result<Cold> {
        match self.kind {
            Kind::Builtin(settings, model) => Ok(Cold { settings: *settings, model, warmup: None }),
            Kind::Package(mut package) => {
                let settings = package.settings.clone();
                let warmup = Some(std::mem::take(&mut package.warmup));
                let model = package.load().map_err(|error| Error::new(error.code(), error.to_string()))?;
                Ok(Cold { settings, model, warmup })
            }
        }
    }
}

/// Has an instance answer the requests the package declares, or else one made up from the signature: pages are touched,
/// kernels are compiled, and a model that cannot answer is found out before it is served. Returns what a batch of the last one
/// takes when it runs again.
///
/// # Errors
/// A declared request has no answer, or nobody waits any more (`ended`). A made-up one may be one the model rightly refuses: its failure says nothing.
fn warm_up(
    model: &dyn LoadedModel,
    declared: Vec<Vec<(String, Tensor)>>,
    ended: &CancellationToken,
) -> Result<Option<(Work, Duration)>> {
    let mut backend = model.instance()?;
    let mut run = |input: ModelInput| -> Result<()> {
        backend.submit(Batch { inputs: vec![input] }, &|| {})?;
        backend.collect()?.outputs.into_iter().try_for_each(|output| output.map(drop))
    };
    let mut answer = |request: Vec<(String, Tensor)>| -> Result<ModelInput> {
        let input = model.prepare(model.signature().check(request)?)?;
        run(input.clone()).map(|()| input)
    };
    let last = if declared.is_empty() {
        let examples = model.signature().examples();
        let answered = examples.into_iter().find_map(|example| answer(example).ok());
        tracing::debug!(answered = answered.is_some(), "warmed up with a made-up request");
        answered
    } else {
        let mut last = None;
        for (index, request) in declared.into_iter().enumerate() {
            if ended.is_cancelled() {
                return Err(Error::new(ErrorCode::Cancelled, "nobody waits for the warm-up any more"));
            }
            last = Some(answer(request).map_err(|error| {
                Error::new(ErrorCode::FailedPrecondition, format!("warmup[{index}]: {error}"))
            })?);
        }
        last
    };
    let Some(input) = last else { return Ok(None) };
    let work = Work { rows: input.rows, tokens: input.tokens() };
    let started = Instant::now();
    run(input)?;
    Ok(Some((work, started.elapsed())))
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

/// How many instances a model has, and why: what it says, or else on a CPU as many as the threads of each leave room for, one
/// on a GPU. One-thread instances side by side answer more than fewer with more threads: no thread waits for another.
fn instances(settings: &ModelSettings) -> (usize, String) {
    let (cores, threads) = (cores(), settings.threads.max(1));
    match (settings.instances, settings.device) {
        (Some(instances), _) => (instances, "model.toml or the load call says so".to_owned()),
        (None, DeviceId::Cuda(_)) => (1, "one a GPU: it runs one batch at a time".to_owned()),
        (None, DeviceId::Cpu) if threads == 1 => (
            cores,
            format!(
                "one a core of {cores}: instances of one thread answered more than threads of one instance when measured"
            ),
        ),
        (None, DeviceId::Cpu) => {
            ((cores / threads).max(1), format!("{cores} cores, {threads} threads for each instance"))
        }
    }
}

/// Cores this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;
    use sconce_core::{Backend, DataType, Inputs, ModelInput, Signature};
    use std::collections::BTreeMap;

    /// A model that says of itself that it may answer differently each time.
    struct Dice(Arc<dyn LoadedModel>);

    impl LoadedModel for Dice {
        fn signature(&self) -> &Signature {
            self.0.signature()
        }
        fn memory_bytes(&self) -> usize {
            0
        }
        fn is_deterministic(&self) -> bool {
            false
        }
        fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
            self.0.prepare(inputs)
        }
        fn instance(&self) -> Result<Box<dyn Backend>> {
            self.0.instance()
        }
    }

    #[test]
    fn a_warm_up_that_nobody_waits_for_asks_nothing_more() {
        let (_, model) = sconce_candle::builtin("identity").unwrap();
        let tensor = Tensor::new(DataType::Fp32, vec![1], bytes::Bytes::from(vec![0; 4])).unwrap();
        let declared = || vec![vec![("no such input".to_owned(), tensor.clone())]];
        let ended = CancellationToken::new();
        assert_eq!(warm_up(&*model, declared(), &ended).unwrap_err().code(), ErrorCode::FailedPrecondition);
        ended.cancel();
        assert_eq!(warm_up(&*model, declared(), &ended).unwrap_err().code(), ErrorCode::Cancelled);
    }

    #[tokio::test]
    async fn answers_that_may_differ_are_not_kept() {
        let loader = Loader::new(DeviceId::Cpu, Duration::from_millis(10));
        let memory = Memory::new(&BTreeMap::new());
        let (name, version) = (ModelName::new("dice").unwrap(), ModelVersion::new(1).unwrap());
        let (settings, model) = sconce_candle::builtin("identity").unwrap();
        let model: Arc<dyn LoadedModel> = Arc::new(Dice(model));
        for (response_cache, is_refused) in [(None, false), (Some(1 << 20), true)] {
            let settings = ModelSettings { response_cache, instances: Some(1), ..settings.clone() };
            let lease = memory.lease(DeviceId::Cpu, 0).unwrap();
            let loaded = Loaded { settings, model: Arc::clone(&model), warm: None };
            let started = loader.start(&name, version, loaded, lease).await;
            let refusal = started.err().map(|error| (error.code(), error.to_string()));
            assert_eq!(refusal.is_some(), is_refused, "{refusal:?}");
            if let Some((code, message)) = refusal {
                assert!(
                    code == ErrorCode::FailedPrecondition && message.contains("response_cache"),
                    "{message}"
                );
            }
        }
    }
}
