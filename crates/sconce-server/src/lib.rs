//! The front door of Sconce: listeners, conversion, dispatch, and the wiring of everything behind it. The only crate that
//! knows both the wire and the core.

#[doc(hidden)]
pub mod bench;
mod cache;
mod config;
mod content;
mod dispatch;
mod door;
mod ensemble;
mod feedback;
mod grpc;
mod http;
mod models;
mod monitors;
mod objectives;
mod observe;
mod operation;
mod post;
mod predictions;
mod process;
mod prometheus;
mod remote;
mod review;
mod rollout;
mod shadow;
mod sink;
mod tenants;
mod traffic;
mod webhooks;

pub use sconce_telemetry::logs;

pub use config::{
    ConfigError, Feedback as FeedbackConfig, Limits, Log, Metrics, PredictionLog as PredictionLogConfig,
    Review as ReviewConfig, Scheduling, ServerConfig, Traces, Webhook as WebhookConfig,
};
pub use objectives::{ModelObjectives, Objectives};
pub use tenants::{Quota, Tenants};

use door::{Door, Sinks};
use feedback::Exposures;
use grpc::{Listener, Role};
use models::{Loader, Models, RemoteAccess};
use monitors::Monitors;
use predictions::PredictionLog;
use review::Reviews;
use sconce_core::{DeviceId, Error};
use sconce_registry::{Registry, RegistryError};
use sconce_telemetry::traces::{self, Recorder};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use webhooks::Webhooks;

/// A running server.
pub struct Server {
    door: Arc<Door>,
    addresses: Addresses,
    tasks: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Inference, health, reflection.
    pub grpc: SocketAddr,
    /// The same, and control calls.
    pub admin: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address cannot be had.
    #[error("{listener}: cannot listen on {address}")]
    Bind {
        /// The listener's name in the configuration.
        listener: &'static str,
        /// The address it was to have.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server's own definitions do not fit together.
    #[error("the reflection service cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The default device is none, or what there is to serve cannot be read.
    #[error(transparent)]
    Models(#[from] sconce_core::Error),
    /// The data folder cannot be opened.
    #[error("data: the registry cannot be opened")]
    Registry(#[from] RegistryError),
    /// The prediction log cannot be opened.
    #[error("prediction_log.dir: the log cannot be opened")]
    PredictionLog(#[source] io::Error),
    /// A webhook's secret cannot be read, or its thread cannot be had.
    #[error("webhooks: they cannot be started")]
    Webhooks(#[source] io::Error),
    /// A thread cannot be had.
    #[error("a thread cannot be started")]
    Thread(#[source] io::Error),
    /// What is kept of requests cannot be recorded.
    #[error(transparent)]
    Traces(#[from] traces::StartError),
}

impl Server {
    /// Binds the listeners, answers on them at once, and returns when every model was tried. Models that fail to load are
    /// logged, and keep the server from being ready; the others are served.
    ///
    /// # Errors
    /// An address that cannot be bound, or a folder of models or a registry that cannot be read; nothing is left running then.
    pub async fn start(config: ServerConfig) -> Result<Self, StartError> {
        let device: DeviceId = config.device.parse()?;
        let memory = config.model_memory()?;
        let registry = match config.data.clone() {
            None => None,
            Some(dir) => {
                let opened = tokio::task::spawn_blocking(move || Registry::open(&dir)).await;
                let opened =
                    opened.map_err(|error| Error::internal("opening panicked").with_source(error))?;
                let opened = opened?;
                if let Some(lost) = opened.lost_head() {
                    tracing::warn!("{lost}");
                }
                Some(Arc::new(opened))
            }
        };
        let grpc = bind("grpc", config.grpc).await?;
        let admin = bind("admin", config.admin).await?;
        let http = bind("http", config.http).await?;
        let addresses = Addresses { grpc: grpc.1, admin: admin.1, http: http.1 };

        let recorder = Recorder::start(config.recorder()?).await?;
        let settings = config.prediction_log.clone();
        let opened = tokio::task::spawn_blocking(move || PredictionLog::open(&settings)).await;
        let opened = opened.map_err(|error| Error::internal("opening panicked").with_source(error))?;
        let predictions = opened.map_err(StartError::PredictionLog)?;
        let settings = config.webhooks.clone();
        let started = tokio::task::spawn_blocking(move || Webhooks::start(&settings)).await;
        let started = started.map_err(|error| Error::internal("starting panicked").with_source(error))?;
        let webhooks = started.map_err(StartError::Webhooks)?;
        let exposures = match &registry {
            None => None,
            Some(registry) => {
                config.feedback.apply(registry.journal());
                Some(
                    Exposures::start(config.feedback.sample, Arc::clone(registry))
                        .map_err(StartError::Thread)?,
                )
            }
        };
        let (monitors, reviews) = match registry.clone() {
            None => (None, None),
            Some(registry) => {
                let (webhooks, settings) = (Arc::clone(&webhooks), config.review.clone());
                let start =
                    move || Ok((Monitors::start(&registry, webhooks)?, Reviews::start(&settings, registry)?));
                let started = tokio::task::spawn_blocking(start).await;
                let started =
                    started.map_err(|error| Error::internal("starting panicked").with_source(error))?;
                let (monitors, reviews) = started.map_err(StartError::Thread)?;
                (Some(monitors), Some(reviews))
            }
        };
        let loader = Loader::new(device, Duration::from_millis(config.scheduling.quantum_ms));
        let shadows = shadow::Shadows::start()?;
        let remotes = RemoteAccess {
            hosts: config.remote_hosts.clone(),
            max_message_bytes: config.limits.max_message_bytes,
        };
        let root = config.models.clone();
        let models = Models::new(root, &config.builtin, loader, &memory, registry, shadows, remotes);
        let models = Arc::new(models);
        let (health, health_service) = tonic_health::server::health_reporter();
        let sinks = Sinks { predictions, exposures, monitors, reviews, webhooks };
        let door = Arc::new(Door::new(&config, models, health, recorder, sinks));
        door.report_health().await;
        let inference = Listener::new(
            Arc::clone(&door),
            Role::Inference { control: addresses.admin },
            health_service.clone(),
        )?;
        let control = Listener::new(Arc::clone(&door), Role::Control, health_service)?;

        let server = Self {
            door,
            addresses,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        let (tasks, stop, abort) = (&server.tasks, &server.stop, &server.abort);
        tasks.spawn(inference.run(grpc.0, tasks.clone(), stop.clone(), abort.clone()));
        tasks.spawn(control.run(admin.0, tasks.clone(), stop.clone(), abort.clone()));
        let (door, stopped) = (Arc::clone(&server.door), stop.clone());
        tasks.spawn(async move { stopped.run_until_cancelled(door.follow()).await });
        let (door, stopped) = (Arc::clone(&server.door), stop.clone());
        tasks.spawn(async move { stopped.run_until_cancelled(door.watch_objectives()).await });
        if let Some(performances) = server.door.performances.clone() {
            let stopped = stop.clone();
            tasks.spawn(async move { stopped.run_until_cancelled(performances.follow()).await });
        }
        let door = Arc::clone(&server.door);
        tasks.spawn(http::run(door, http.0, tasks.clone(), stop.clone(), abort.clone()));

        if let Err(error) = Box::pin(server.door.models.load_all()).await {
            server.shutdown().await;
            return Err(error.into());
        }
        if let Err(error) = Box::pin(server.door.rollouts.take_up_all()).await {
            server.shutdown().await;
            return Err(error.into());
        }
        if let Some(experiments) = server.door.experiments.clone() {
            let stopped = server.stop.clone();
            server.tasks.spawn(async move { stopped.run_until_cancelled(experiments.follow()).await });
        }
        server.door.loaded.store(true, Ordering::Release);
        server.door.report_health().await;
        Ok(server)
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Whether every model was loaded, now or once before; `Err` says why the server is not ready.
    ///
    /// # Errors
    /// The first reason.
    pub fn readiness(&self) -> Result<(), String> {
        self.door.readiness()
    }

    /// Stops: reports NOT_SERVING, takes no more requests, answers those it has, joins the workers. Calls that are still
    /// running after the drain timeout are cut off.
    pub async fn shutdown(self) {
        self.door.draining.cancel();
        self.door.models.hurry();
        self.door.report_health().await;
        self.stop.cancel();
        self.tasks.close();
        self.door.models.stop();
        let limit = self.door.limits.drain_timeout();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                connections = self.tasks.len(),
                "the drain timeout passed: connections are cut off"
            );
            self.abort.cancel();
            self.tasks.wait().await;
        }
        // A change under way still holds what it loads or drains.
        if tokio::time::timeout(limit, self.door.models.tasks.wait()).await.is_err() {
            tracing::warn!("a change of the models did not end in time: it is left behind");
        }
        self.door.models.close().await;
        self.door.recorder.shutdown().await;
        self.door.predictions.shutdown().await;
        if let Some(exposures) = &self.door.exposures {
            exposures.shutdown().await;
        }
        if let Some(monitors) = &self.door.monitors {
            monitors.shutdown().await;
        }
        if let Some(reviews) = &self.door.reviews {
            reviews.shutdown().await;
        }
        self.door.webhooks.shutdown().await;
    }
}

async fn bind(listener: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    bound.await.map_err(|source| StartError::Bind { listener, address, source })
}
