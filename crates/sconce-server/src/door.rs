//! What every listener shares.

use crate::config::{Limits, Metrics, ServerConfig};
use crate::content::Content;
use crate::dispatch::PreparePool;
use crate::feedback::performance::{Background, Performances};
use crate::feedback::{self, Experiments, Exposures};
use crate::models::{Account, Models, Said, State, UNLOADED};
use crate::monitors::Monitors;
use crate::objectives::{Counts, Ends, Report, TICK, Watch};
use crate::predictions::PredictionLog;
use crate::process;
use crate::prometheus::Prometheus;
use crate::review::Reviews;
use crate::rollout::Rollouts;
use crate::shadow::Lane;
use crate::tenants::TenantTable;
use crate::traffic::{LiveRoute, Variant};
use crate::webhooks::Webhooks;
use sconce_core::{ByteBudget, DeviceId, Error, ModelName, PredictionId, Result};
use sconce_registry::{By, Registry, Topic};
use sconce_telemetry::gpus::Gpus;
use sconce_telemetry::metrics::{
    DeviceMemory, FeedbackSample, JournalSample, ModelInfo, ModelSample, RequestsSample, RuntimeSample,
    Scrape, ServerSample, ShadowSample, VariantSample,
};
use sconce_telemetry::traces::Recorder;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The server behind its listeners.
pub(crate) struct Door {
    pub(crate) models: Arc<Models>,
    pub(crate) rollouts: Arc<Rollouts>,
    /// What may be kept of requests.
    pub(crate) content: Content,
    pub(crate) limits: Limits,
    pub(crate) budget: ByteBudget,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) prepare: PreparePool,
    pub(crate) tenants: TenantTable,
    /// Cancelled when shutdown begins: no new request is taken.
    pub(crate) draining: CancellationToken,
    /// Calls and connections refused before any model was known.
    pub(crate) refused: Refused,
    /// Whether the first load is over.
    pub(crate) loaded: AtomicBool,
    /// Whether the server was ready once.
    was_ready: AtomicBool,
    health: HealthReporter,
    /// Where answered requests are looked at.
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) metrics: Metrics,
    /// The machine's GPUs.
    gpus: Gpus,
    pub(crate) started_at: Instant,
    /// How models keep what is expected of them.
    objectives: Watch,
    pub(crate) predictions: Arc<PredictionLog>,
    /// Where it is noted which variant made a prediction; `None` without a registry.
    pub(crate) exposures: Option<Arc<Exposures>>,
    /// What is held against a reference; `None` without a registry.
    pub(crate) monitors: Option<Arc<Monitors>>,
    /// What people decide; `None` without a registry.
    pub(crate) reviews: Option<Arc<Reviews>>,
    pub(crate) outcomes: Outcomes,
    /// What labels say of versions; `None` without a registry.
    pub(crate) performances: Option<Arc<Performances>>,
    /// What the server does about experiments by itself; `None` without a registry.
    pub(crate) experiments: Option<Arc<Experiments>>,
    /// Who is told what happens.
    pub(crate) webhooks: Arc<Webhooks>,
}

/// Where what happens goes, each with a queue of its own.
pub(crate) struct Sinks {
    pub(crate) predictions: Arc<PredictionLog>,
    pub(crate) exposures: Option<Arc<Exposures>>,
    pub(crate) monitors: Option<Arc<Monitors>>,
    pub(crate) reviews: Option<Arc<Reviews>>,
    pub(crate) webhooks: Arc<Webhooks>,
}

/// Outcomes that were recorded, and what they were.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) recorded: AtomicU64,
    pub(crate) replaced: AtomicU64,
    pub(crate) unknown: AtomicU64,
}

/// What was refused before any model was known, by the bound it met.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Open connections.
    pub(crate) connections: AtomicU64,
    /// Calls in progress.
    pub(crate) calls: AtomicU64,
    /// Bytes in flight.
    pub(crate) bytes: AtomicU64,
    /// A tenant's quota.
    pub(crate) tenants: AtomicU64,
}

/// A change of what is served.
pub(crate) enum Change {
    Load(String, Option<Said>, By),
    Unload(String, By),
}

const SERVICE: &str = "inference.GRPCInferenceService";

impl Door {
    pub(crate) fn new(
        config: &ServerConfig,
        models: Arc<Models>,
        health: HealthReporter,
        recorder: Arc<Recorder>,
        sinks: Sinks,
    ) -> Self {
        let limits = config.limits.clone();
        let Sinks { predictions, exposures, monitors, reviews, webhooks } = sinks;
        let performances = models.registry().is_ok().then(|| {
            let background = Background::new(Arc::clone(&models), monitors.clone());
            Arc::new(Performances::new(background, Arc::clone(&webhooks), config.performance))
        });
        let experiments = models.registry().is_ok().then(|| {
            let (models, webhooks) = (Arc::clone(&models), Arc::clone(&webhooks));
            Arc::new(Experiments::new(models, webhooks))
        });
        Self {
            performances,
            experiments,
            prepare: models.prepare.clone(),
            rollouts: Arc::new(Rollouts::new(
                Arc::clone(&models),
                Arc::clone(&webhooks),
                monitors.clone(),
                // Checked with the rest of the configuration.
                config.prometheus.url.as_deref().and_then(|url| Prometheus::new(url).ok()),
            )),
            models,
            content: Content::new(config.allow_plaintext),
            budget: ByteBudget::new(limits.max_inflight_bytes),
            connections: Arc::new(Semaphore::new(limits.max_connections)),
            streams: Arc::new(Semaphore::new(limits.max_streams)),
            limits,
            tenants: TenantTable::new(&config.tenants, Instant::now()),
            draining: CancellationToken::new(),
            refused: Refused::default(),
            loaded: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
            health,
            recorder,
            metrics: config.metrics.clone(),
            gpus: Gpus::start(),
            started_at: Instant::now(),
            objectives: Watch::new(config.objectives.clone()),
            predictions,
            exposures,
            monitors,
            reviews,
            outcomes: Outcomes::default(),
            webhooks,
        }
    }

    /// Ready: loading is over, every model was loaded (or unloaded on purpose), and no drain has begun. `Err` says why not. Once
    /// that was so a version that cannot be loaded is told by what tells of it alone: it says nothing of those that answer, and where
    /// all replicas were to load it, all would be taken out.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        if self.draining.is_cancelled() {
            return Err("draining".to_owned());
        }
        if !self.loaded.load(Ordering::Acquire) {
            return Err("loading models".to_owned());
        }
        if self.was_ready.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failed = self.models.index().into_iter().find_map(|(name, version, state)| match state {
            State::Unavailable(reason) if reason != UNLOADED => {
                Some(format!("{name} version {version}: {reason}"))
            }
            _ => None,
        });
        // Another look at the same time may have found it so already.
        self.was_ready.fetch_or(failed.is_none(), Ordering::Relaxed);
        failed.map_or(Ok(()), Err)
    }

    /// Makes a change and tells the health service.
    ///
    /// # Errors
    /// What the change failed with.
    pub(crate) async fn change(self: &Arc<Self>, change: Change) -> Result<()> {
        let door = Arc::clone(self);
        let task = self.models.tasks.spawn(async move {
            let outcome = match change {
                Change::Load(name, said, by) => door.models.load(&name, said, by).await,
                Change::Unload(name, by) => door.models.unload(&name, by).await,
            };
            door.report_health().await;
            outcome
        });
        task.await.unwrap_or_else(|error| Err(Error::internal("the change was cut off").with_source(error)))
    }

    /// Records outcomes of predictions of `name`; they are on disk when this returns.
    ///
    /// # Errors
    /// As [`feedback::record`]; `NotFound` for an unknown model; `FailedPrecondition` without a registry.
    pub(crate) async fn record_outcomes(
        &self,
        name: ModelName,
        outcomes: Vec<(PredictionId, feedback::Outcome)>,
        now_ms: u64,
    ) -> Result<feedback::Recorded> {
        let of = name.clone();
        let record = move |registry: &Registry| {
            registry.model(&of)?;
            feedback::record(registry.journal(), &of, outcomes, now_ms)
        };
        let done = self.models.read(record).await?;
        let Outcomes { recorded, replaced, unknown } = &self.outcomes;
        recorded.fetch_add(done.recorded, Ordering::Relaxed);
        replaced.fetch_add(done.replaced, Ordering::Relaxed);
        unknown.fetch_add(done.unknown, Ordering::Relaxed);
        if let Some(performances) = &self.performances {
            performances.touch(&name);
        }
        if let Some(experiments) = &self.experiments {
            experiments.touch(&name);
        }
        Ok(done)
    }

    /// Tells the health service of each change that the registry, or what is in memory of it, brings by itself.
    pub(crate) async fn follow(&self) {
        let mut changes = self.models.changes();
        while changes.changed().await.is_ok() {
            self.report_health().await;
        }
    }

    /// Tells the health service how [`Self::readiness`] stands. To be called after each change of it.
    pub(crate) async fn report_health(&self) {
        let status =
            if self.readiness().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", SERVICE] {
            self.health.set_service_status(service, status).await;
        }
    }

    /// How each model keeps what is expected of it.
    pub(crate) fn objectives(&self) -> Vec<Report> {
        self.objectives.look(self.models.all_ends(), Instant::now(), SystemTime::now())
    }

    /// Takes in what was counted, so that windows know when it was.
    pub(crate) async fn watch_objectives(&self) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            self.objectives();
        }
    }

    /// Exposures, outcomes, and the journal that keeps both.
    fn feedback(&self) -> Option<FeedbackSample> {
        let exposures = self.exposures.as_ref()?.sample();
        let journal = self.models.registry().ok()?.journal();
        let topic = |(topic, name)| {
            let stats = journal.stats(topic);
            let removed = (stats.expired, stats.evicted);
            JournalSample { topic: name, entries: stats.entries, bytes: stats.bytes, removed }
        };
        let topics = [
            (Topic::Exposures, "exposures"),
            (Topic::Feedback, "feedback"),
            (Topic::Monitors, "monitors"),
            (Topic::Reviews, "reviews"),
        ];
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Outcomes { recorded, replaced, unknown } = &self.outcomes;
        let outcomes =
            [("recorded", count(recorded)), ("replaced", count(replaced)), ("unknown", count(unknown))];
        Some(FeedbackSample { exposures, outcomes: outcomes.to_vec(), journal: topics.map(topic).to_vec() })
    }

    fn variants(&self) -> Vec<VariantSample> {
        let of = |(name, route): (ModelName, Arc<LiveRoute>)| -> Vec<VariantSample> {
            let sample = |variant: &Arc<Variant>| {
                let counts = variant.tally.snapshot();
                let (model, variant) = (name.to_string(), variant.label.to_string());
                let versions =
                    counts.versions.into_iter().map(|(version, counts)| (version.to_string(), counts));
                VariantSample { model, variant, latency: counts.latency, versions: versions.collect() }
            };
            route.variants().iter().map(sample).collect()
        };
        self.models.live_routes().into_iter().flat_map(of).collect()
    }

    fn shadows(&self) -> Vec<ShadowSample> {
        let of = |(name, route): (ModelName, Arc<LiveRoute>)| -> Vec<ShadowSample> {
            let sample = |lane: &Arc<Lane>| {
                let found = lane.findings.snapshot();
                ShadowSample {
                    model: name.to_string(),
                    variant: lane.shadow.variant.label.to_string(),
                    offered: lane.findings.offered.load(Ordering::Relaxed),
                    compared: found.compared,
                    disagreed: lane.findings.disagreement().count,
                    dropped: found.dropped,
                    failed: found.failed,
                    waiting: lane.findings.waiting.load(Ordering::Relaxed),
                }
            };
            route.shadows().iter().map(sample).collect()
        };
        self.models.live_routes().into_iter().flat_map(of).collect()
    }

    /// What is in use of the bytes in flight, connections and calls, and the bound of each.
    pub(crate) fn bounds(&self) -> [(usize, usize); 3] {
        let used = |semaphore: &Semaphore, limit: usize| {
            (limit.saturating_sub(semaphore.available_permits()), limit)
        };
        [
            (self.budget.held_bytes(), self.budget.limit_bytes()),
            used(&self.connections, self.limits.max_connections),
            used(&self.streams, self.limits.max_streams),
        ]
    }

    /// What `/metrics` says now. To be called in the runtime that serves.
    pub(crate) fn scrape(&self) -> Scrape {
        let [inflight_bytes, connections, streams] = self.bounds();
        let memory = |(device, account): (DeviceId, Account)| DeviceMemory {
            device: device.to_string(),
            used_bytes: account.used,
            limit_bytes: account.limit,
        };
        let process = process::sample();
        let server = ServerSample {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            inflight_bytes,
            connections,
            streams,
            shadow_bytes: self.models.shadows.bytes(),
            tenants: self.tenants.occupancy(),
            tenant_requests: self.tenants.sample(),
            rejected: vec![
                ("connections", self.refused.connections.load(Ordering::Relaxed)),
                ("calls", self.refused.calls.load(Ordering::Relaxed)),
                ("bytes", self.refused.bytes.load(Ordering::Relaxed)),
                ("tenant", self.refused.tenants.load(Ordering::Relaxed)),
            ],
            model_memory: self.models.memory().into_iter().map(memory).collect(),
            resident_bytes: process.as_ref().map(|process| process.resident_bytes),
            residual_bytes: self.models.residual_bytes(),
            generation: self.models.generation(),
            loads: self.models.loads(),
        };
        let model = |served: Arc<crate::models::Served>| ModelSample {
            model: served.name.to_string(),
            version: served.version_text.clone(),
            stats: served.stats(),
            queue_depth: served.queue_depth(),
            in_flight: served.in_flight(),
            memory_bytes: served.memory_bytes(),
            cache_bytes: served.cache.as_ref().map(|cache| (cache.bytes(), cache.max_bytes())),
            cost: served.cost(),
            remote: served.remote(),
            info: Some(ModelInfo {
                family: served.settings.family.to_string(),
                precision: served.settings.precision.name().to_owned(),
                device: served.settings.device.to_string(),
                instances: served.instances.count.to_string(),
            }),
        };
        let requests = |(model, ends): (ModelName, Arc<Ends>)| {
            let counts = ends.counts();
            let Counts { refused, failed, .. } = counts;
            RequestsSample { model: model.to_string(), answered: counts.answered(), refused, failed }
        };
        let runtime = tokio::runtime::Handle::current().metrics();
        Scrape {
            server,
            models: self.models.ready().map(model).collect(),
            requests: self.models.all_ends().into_iter().map(requests).collect(),
            variants: self.variants(),
            shadows: self.shadows(),
            rollouts: self.rollouts.sample(),
            registry: self.models.operations(),
            recorder: self.recorder.sample(),
            prediction_log: self.predictions.sinks(),
            webhooks: self.webhooks.sample(),
            feedback: self.feedback(),
            monitors: self.monitors.as_ref().map(|monitors| monitors.sample()).unwrap_or_default(),
            performances: self.performances.as_ref().map(|it| it.sample()).unwrap_or_default(),
            reviews: self.reviews.as_ref().map(|reviews| reviews.sample()),
            monitors_sink: self.monitors.as_ref().map(|monitors| monitors.sink()),
            gpus: self.gpus.sample(),
            process,
            runtime: RuntimeSample {
                workers: runtime.num_workers(),
                alive_tasks: runtime.num_alive_tasks(),
                global_queue_depth: runtime.global_queue_depth(),
            },
            triton_names: self.metrics.triton_names,
        }
    }
}
