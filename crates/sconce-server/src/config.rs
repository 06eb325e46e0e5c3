//! The server's configuration: a TOML file, `SCONCE__*` environment variables over it, command-line flags over both.
//! Validated whole before a port is bound; every problem is reported at once.

mod feedback;
mod prediction_log;
mod review;
mod traces;
mod webhooks;

pub use feedback::Feedback;
pub use prediction_log::PredictionLog;
pub use review::Review;
pub use traces::{Metrics, Traces};
pub(crate) use webhooks::MAX_WEBHOOKS;
pub use webhooks::Webhook;

use crate::objectives::Objectives;
use crate::tenants::Tenants;
use sconce_core::DeviceId;
use sconce_monitor::PerformanceSpec;
use sconce_telemetry::traces::Access;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

/// What a server needs to know before it starts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where inference, health and reflection are served. Default `0.0.0.0:8001`; port 0 takes a free one.
    pub grpc: SocketAddr,
    /// Where models are loaded and unloaded and settings change. Default `127.0.0.1:8002`; loopback only.
    pub admin: SocketAddr,
    /// Where health and metrics are served over HTTP. Default `0.0.0.0:8000`.
    pub http: SocketAddr,
    /// The folder of models, `NAME/VERSION/` each. Default none.
    pub models: Option<PathBuf>,
    /// The data folder: the registry of models. Default none; made if it is not there.
    pub data: Option<PathBuf>,
    /// The most bytes of weights in the memory of a device, by its name. Default: no bound.
    pub model_memory_bytes: BTreeMap<String, u64>,
    /// Built-in models to serve beside: `identity`, `add_sub`. Default none.
    pub builtin: Vec<String>,
    /// Servers, `host:port` each, that models of the family `remote` may be on, or `*` for any. Default none: a package comes from
    /// anywhere, and must not say by itself where requests are sent.
    pub remote_hosts: Vec<String>,
    /// Where models run that do not say it themselves: `cpu` (default) or `cuda:N`.
    pub device: String,
    /// Whether what models' data policies keep may be kept without being encrypted. Default false: without encryption at rest,
    /// which there is none of yet, no content is kept.
    pub allow_plaintext: bool,
    /// Bounds.
    pub limits: Limits,
    /// How models and tenants share a device.
    pub scheduling: Scheduling,
    /// Who calls, and what each may have.
    pub tenants: Tenants,
    /// What callers may expect of models.
    pub objectives: Objectives,
    /// Logging.
    pub log: Log,
    /// Traces of requests.
    pub traces: Traces,
    /// What `/metrics` says.
    pub metrics: Metrics,
    /// Where predictions are logged.
    pub prediction_log: PredictionLog,
    /// What is noted of predictions, and how long feedback stays.
    pub feedback: Feedback,
    /// What waits for people.
    pub review: Review,
    /// How performance is followed by the labels that come.
    pub performance: PerformanceSpec,
    /// Whom rollouts' gates ask.
    pub prometheus: Prometheus,
    /// Who is told what happens. Default nobody; at most 8.
    pub webhooks: Vec<Webhook>,
}

/// Bounds on what callers can make the server hold. Over them a call gets RESOURCE_EXHAUSTED.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one message. Default 64 MiB, minimum 1 KiB, maximum 2 GiB.
    pub max_message_bytes: usize,
    /// Bytes of all messages in flight. Default 1 GiB, minimum `max_message_bytes`.
    pub max_inflight_bytes: usize,
    /// Open connections on the inference listener. Default 1024, minimum 1.
    pub max_connections: usize,
    /// Calls in progress over all connections. Default 8192, minimum 1.
    pub max_streams: usize,
    /// Seconds that calls in progress get to finish at shutdown. Default 30.
    pub drain_timeout_seconds: u64,
}

/// How models and tenants share a device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduling {
    /// Milliseconds that a batch may take while another model or tenant waits. Default 10, 1 to 1000.
    pub quantum_ms: u64,
}

/// Whom rollouts' gates ask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prometheus {
    /// Where a Prometheus is, `http://host:port` with or without a path. Default none: no gate asks a query.
    pub url: Option<String>,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// off, error, warn, info (default), debug or trace.
    pub level: String,
    /// auto (default: text on a terminal, JSON elsewhere), json or text.
    pub format: String,
    /// Which requests get a line: errors (default), sampled (those whose trace is kept, and errors), all or off.
    pub access: String,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([0, 0, 0, 0], 8001)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8002)),
            http: SocketAddr::from(([0, 0, 0, 0], 8000)),
            models: None,
            data: None,
            model_memory_bytes: BTreeMap::new(),
            builtin: Vec::new(),
            remote_hosts: Vec::new(),
            device: "cpu".to_owned(),
            allow_plaintext: false,
            limits: Limits::default(),
            scheduling: Scheduling::default(),
            tenants: Tenants::default(),
            objectives: Objectives::default(),
            log: Log::default(),
            traces: Traces::default(),
            metrics: Metrics::default(),
            prediction_log: PredictionLog::default(),
            feedback: Feedback::default(),
            review: Review::default(),
            performance: PerformanceSpec::default(),
            prometheus: Prometheus::default(),
            webhooks: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 64 << 20,
            max_inflight_bytes: 1 << 30,
            max_connections: 1024,
            max_streams: 8192,
            drain_timeout_seconds: 30,
        }
    }
}

impl Default for Scheduling {
    fn default() -> Self {
        Self { quantum_ms: 10 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: "auto".to_owned(), access: "errors".to_owned() }
    }
}

impl Limits {
    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_seconds)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} problem(s):\n  {}", .0.len(), .0.join("\n  "))]
pub struct ConfigError(pub Vec<String>);

impl ServerConfig {
    /// Reads a configuration: `text` is the TOML file's, `environment` gives `SCONCE__GRPC=…`,
    /// `SCONCE__LIMITS__MAX_STREAMS=…` and so on, and `flags` (in the shape of the file) go over both.
    ///
    /// # Errors
    /// Every unknown key, wrong type and value out of range at once.
    pub fn read(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Table,
    ) -> Result<Self, ConfigError> {
        let file: Table = text.parse().map_err(|e| ConfigError(vec![format!("not TOML: {e}")]))?;
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let mut table = traces::standard_table(&environment);
        overlay(&mut table, file);
        overlay(&mut table, environment_table(environment));
        overlay(&mut table, flags);
        let mut problems = Vec::new();
        let config = loop {
            match serde_path_to_error::deserialize::<_, Self>(Value::Table(table.clone())) {
                Ok(config) => break config,
                Err(error) => {
                    let path = error.path().to_string();
                    let message = error.into_inner();
                    problems.push(format!("{path}: {}", message.message().trim()));
                    // Without the offending key the next problem comes to light.
                    if !remove(&mut table, &path) {
                        return Err(ConfigError(problems));
                    }
                }
            }
        };
        problems.extend(config.problems());
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    /// [`model_memory_bytes`](Self::model_memory_bytes) by device.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is no device's.
    pub(crate) fn model_memory(&self) -> sconce_core::Result<BTreeMap<DeviceId, u64>> {
        self.model_memory_bytes.iter().map(|(name, bytes)| Ok((name.parse()?, *bytes))).collect()
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let limits = &self.limits;
        let mut check = |good: bool, problem: String| {
            if !good {
                problems.push(problem);
            }
        };
        check(
            self.admin.ip().is_loopback(),
            format!(
                "admin: expected a loopback address (there is no authentication yet), got {}",
                self.admin
            ),
        );
        check(
            (1 << 10..=1 << 31).contains(&limits.max_message_bytes),
            format!(
                "limits.max_message_bytes: expected 1024 to 2147483648, got {}",
                limits.max_message_bytes
            ),
        );
        check(
            limits.max_inflight_bytes >= limits.max_message_bytes,
            format!(
                "limits.max_inflight_bytes: expected at least limits.max_message_bytes ({}), got {}",
                limits.max_message_bytes, limits.max_inflight_bytes
            ),
        );
        for (name, value) in
            [("max_connections", limits.max_connections), ("max_streams", limits.max_streams)]
        {
            let most = tokio::sync::Semaphore::MAX_PERMITS;
            check((1..=most).contains(&value), format!("limits.{name}: expected at least 1, got {value}"));
        }
        let quantum_ms = self.scheduling.quantum_ms;
        check(
            (1..=1000).contains(&quantum_ms),
            format!("scheduling.quantum_ms: expected 1 to 1000, got {quantum_ms}"),
        );
        for name in &self.builtin {
            let known = sconce_candle::builtin(name).is_some();
            check(
                known,
                format!("builtin: expected identity or add_sub, got {:?}", sconce_core::abbreviate(name)),
            );
        }
        for host in &self.remote_hosts {
            let is_address = host
                .rsplit_once(':')
                .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
            check(
                host == "*" || is_address,
                format!("remote_hosts: expected `host:port` or `*`, got {:?}", sconce_core::abbreviate(host)),
            );
        }
        match self.device.parse::<DeviceId>().and_then(sconce_candle::check_device) {
            Ok(()) => {}
            Err(error) => check(false, error.to_string()),
        }
        if let Some(models) = &self.models {
            check(models.is_dir(), format!("models: expected a folder, got {}", models.display()));
        }
        if let Some(data) = &self.data {
            let fits = data.is_dir() || !data.exists();
            check(fits, format!("data: expected a folder, got {}", data.display()));
        }
        if let Err(error) = self.model_memory() {
            check(false, format!("model_memory_bytes: {error}"));
        }
        for problem in self.tenants.problems() {
            check(false, problem);
        }
        self.objectives.check(&mut check);
        if let Err(problem) = self.log.format.parse::<sconce_telemetry::logs::Format>() {
            check(false, problem);
        }
        if let Err(problem) = sconce_telemetry::logs::parse_level(&self.log.level) {
            check(false, problem);
        }
        if let Err(problem) = self.log.access.parse::<Access>() {
            check(false, problem);
        }
        self.traces.check(&mut check);
        self.prediction_log.check(&mut check);
        self.feedback.check(&mut check);
        if let Some(Err(error)) = self.prometheus.url.as_deref().map(crate::prometheus::Prometheus::new) {
            check(false, format!("prometheus.url: {error}"));
        }
        self.review.check(&mut check);
        let performance = self.performance.check();
        check(
            performance.is_ok(),
            format!("performance.{}", performance.err().map_or_else(String::new, |it| it.to_string())),
        );
        let hooks = self.webhooks.len();
        check(hooks <= MAX_WEBHOOKS, format!("webhooks: expected up to {MAX_WEBHOOKS}, got {hooks}"));
        self.webhooks.iter().enumerate().for_each(|(place, hook)| hook.check(place, &mut check));
        problems
    }
}

/// `SCONCE__LIMITS__MAX_STREAMS=5` as `{limits: {max_streams: 5}}`. A value that is no TOML is text. The doubled underscore
/// keeps clear of what cluster software sets for a service of this name (`SCONCE_PORT`).
fn environment_table(environment: impl IntoIterator<Item = (String, String)>) -> Table {
    let mut table = Table::new();
    for (name, text) in environment {
        let Some(path) = name.strip_prefix("SCONCE__") else { continue };
        let value = format!("value = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("value"));
        let value = value.unwrap_or(Value::String(text));
        let mut keys: Vec<String> = path.to_ascii_lowercase().split("__").map(str::to_owned).collect();
        let Some(last) = keys.pop() else { continue };
        let leaf = Table::from_iter([(last, value)]);
        let nested =
            keys.into_iter().rev().fold(leaf, |inner, key| Table::from_iter([(key, Value::Table(inner))]));
        overlay(&mut table, nested);
    }
    table
}

fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => overlay(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Removes the value at a dotted path; whether there was one.
fn remove(table: &mut Table, path: &str) -> bool {
    // A list is taken out whole: `builtin[0]` is a part of `builtin`.
    let (head, rest) = match path.split_once('.') {
        Some((head, rest)) => (head, Some(rest)),
        None => (path, None),
    };
    let head = head.split_once('[').map_or(head, |(list, _)| list);
    match (table.get_mut(head), rest) {
        (Some(Value::Table(inner)), Some(rest)) => remove(inner, rest),
        _ => table.remove(head).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<ServerConfig, Vec<String>> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        ServerConfig::read(text, environment, Table::new()).map_err(|error| error.0)
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        assert_eq!(read("", &[]).unwrap(), ServerConfig::default());
    }

    #[test]
    fn the_environment_goes_over_the_file_and_flags_over_both() {
        let text =
            "grpc = '127.0.0.1:1'\nhttp = '127.0.0.1:2'\n[limits]\nmax_streams = 1\nmax_connections = 7";
        let environment = [
            ("SCONCE__HTTP", "127.0.0.1:3"),
            ("SCONCE__LIMITS__MAX_STREAMS", "5"),
            ("SCONCE_PORT", "tcp://x"),
        ];
        let config = read(text, &environment).unwrap();
        assert_eq!((config.grpc.port(), config.http.port()), (1, 3));
        assert_eq!((config.limits.max_streams, config.limits.max_connections), (5, 7));
        let flags = "http = '127.0.0.1:4'".parse().unwrap();
        assert_eq!(ServerConfig::read(text, [], flags).unwrap().http.port(), 4);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "
            gprc = '127.0.0.1:1'
            http = 5
            admin = '0.0.0.0:9'
            builtin = ['nope']
            device = 'tpu'
            models = '/no/such/folder'
            data = '/dev/null'
            model_memory_bytes = { tpu = 5 }
            [limits]
            max_message_bytes = 1
            max_streams = -1
            [scheduling]
            quantum_ms = 0
            [tenants]
            header = 'grpc-tenant'
            default = { weight = -1 }
            [tenants.quotas.'a b']
            max_concurrent = -1
            [log]
            level = 'loud'
            colour = true";
        let problems = read(text, &[]).unwrap_err();
        for part in [
            "gprc",
            "http",
            "admin",
            "builtin",
            "device",
            "models",
            "data",
            "model_memory",
            "message",
            "streams",
            "quantum",
            "tenants.header",
            "tenants.default.weight",
            "\"a b\"",
            "max_concurrent",
            "level",
            "colour",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part} not in {problems:#?}");
        }
        assert_eq!(problems.len(), 17, "{problems:#?}");
    }

    #[test]
    fn broken_toml_is_one_problem() {
        assert_eq!(read("grpc = ", &[]).unwrap_err().len(), 1);
    }
}
