//! Metrics in the text formats of Prometheus and OpenMetrics. Nothing is counted here: a scrape reads the counters that the
//! scheduler keeps anyway, so the request path pays nothing for it.

mod gpus;
mod models;
mod monitors;
mod reviews;
mod rollouts;
mod server;
mod text;
mod traffic;
mod triton;

pub use gpus::GpuSample;
pub use monitors::{MonitorSample, PerformanceSample};
pub use reviews::{ReviewDecisions, ReviewSample};
pub use rollouts::{RolloutSample, RolloutsSample};
pub use text::Format;
pub use traffic::{RequestsSample, ShadowSample, VariantSample};

use crate::traces::RecorderSample;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use sconce_core::{DurationHistogram, ModelStats};
use std::fmt;

/// Model versions that have series of their own. What is beyond them shares one, `other`.
pub const MAX_VERSIONS: usize = 512;
const OTHER: &str = "other";

/// One model version at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct ModelSample {
    /// The model's name.
    pub model: String,
    /// The version.
    pub version: String,
    /// Its counters.
    pub stats: ModelStats,
    /// Requests that wait.
    pub queue_depth: usize,
    /// Requests that are prepared, wait or run.
    pub in_flight: usize,
    /// Bytes of weights and tables.
    pub memory_bytes: usize,
    /// Bytes of answers that are kept, and their bound; `None` where none are.
    pub cache_bytes: Option<(usize, usize)>,
    /// What was learned of its time; `None` where nothing is.
    pub cost: Option<CostSample>,
    /// What is counted of the server that answers it; `None` where this one does.
    pub remote: Option<RemoteSample>,
    /// What it is; `None` for several together.
    pub info: Option<ModelInfo>,
}

/// What is counted of a model that another server answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoteSample {
    /// Whether calls are refused without being made, because the server did not answer of late.
    pub is_open: bool,
    /// Calls that were made again.
    pub retries: u64,
    /// Calls that were refused so.
    pub refused: u64,
}

/// What batches of a model version take, as was learned.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CostSample {
    /// Each, however small.
    pub batch_seconds: f64,
    /// What a row adds.
    pub row_seconds: f64,
    /// What a token adds.
    pub token_seconds: f64,
    /// By how much estimates were off of late, as a part of them.
    pub relative_error: f64,
}

/// What a model version is.
#[derive(Debug, Clone, Default)]
pub struct ModelInfo {
    /// Its family.
    pub family: String,
    /// What its weights are computed in.
    pub precision: String,
    /// The device it runs on.
    pub device: String,
    /// How many instances it has.
    pub instances: String,
}

/// The server at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct ServerSample {
    /// The server's version.
    pub version: String,
    /// Bytes of requests in flight, and their bound.
    pub inflight_bytes: (usize, usize),
    /// Open connections, and their bound.
    pub connections: (usize, usize),
    /// Calls in progress, and their bound.
    pub streams: (usize, usize),
    /// Bytes that shadows hold, and their bound.
    pub shadow_bytes: (usize, usize),
    /// Tenants told apart, and the bound of it.
    pub tenants: (usize, usize),
    /// Requests by tenant; bounded by whoever gives the sample.
    pub tenant_requests: Vec<TenantSample>,
    /// Requests refused before any model was known, by the bound they met.
    pub rejected: Vec<(&'static str, u64)>,
    /// What models hold of each device's memory.
    pub model_memory: Vec<DeviceMemory>,
    /// What the process holds of the machine's memory, if the system says so.
    pub resident_bytes: Option<u64>,
    /// What the process holds beyond what it held before the first load and what models account for.
    pub residual_bytes: Option<u64>,
    /// The registry's routing generation; 0 without a registry.
    pub generation: u64,
    /// Loads of model versions that succeeded, and that failed.
    pub loads: [DurationHistogram; 2],
}

/// One tenant's requests up to a scrape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantSample {
    /// The tenant's name.
    pub tenant: String,
    /// Requests that were answered.
    pub ok: u64,
    /// Requests that were refused because something was used up: its quota, or room for anybody.
    pub rejected: u64,
    /// All others that ended.
    pub failed: u64,
}

/// One device's memory at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct DeviceMemory {
    /// The device's name.
    pub device: String,
    /// Bytes of weights and tables, of models that are loaded, being loaded or still answering.
    pub used_bytes: u64,
    /// The bound of it, if there is one.
    pub limit_bytes: Option<u64>,
}

/// The process at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct ProcessSample {
    /// Processor time in user and system mode.
    pub cpu_seconds: f64,
    /// When it started, since 1970.
    pub start_time_seconds: f64,
    /// Memory it holds.
    pub resident_bytes: u64,
    /// Addresses it holds.
    pub virtual_bytes: u64,
    /// Open file descriptors, and their bound.
    pub open_fds: u64,
    /// The bound of open file descriptors.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
}

/// The runtime that serves connections, at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct RuntimeSample {
    /// Its threads.
    pub workers: usize,
    /// Its tasks.
    pub alive_tasks: usize,
    /// Tasks that wait for any thread.
    pub global_queue_depth: usize,
}

/// A queue to a thread that writes what requests leave behind, at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct SinkSample {
    /// The sink's name.
    pub sink: &'static str,
    /// Items that were written.
    pub written: u64,
    /// Items that found no place.
    pub dropped: u64,
    /// Items that could not be written.
    pub failed: u64,
    /// Items that wait, and their bound.
    pub queue: (usize, usize),
}

/// One kind of operation on the registry up to a scrape.
#[derive(Debug, Clone, Default)]
pub struct RegistrySample {
    /// Its name.
    pub operation: &'static str,
    /// Of these, those that the registry refused, because they do not fit what there is.
    pub refused: u64,
    /// Of these, those that failed for no fault of whoever asked.
    pub failed: u64,
    /// How long they took, all of them.
    pub times: DurationHistogram,
}

/// Exposures and feedback at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct FeedbackSample {
    /// Exposures on their way to the journal.
    pub exposures: SinkSample,
    /// Outcomes since the start, by what they were.
    pub outcomes: Vec<(&'static str, u64)>,
    /// The journal, by topic.
    pub journal: Vec<JournalSample>,
}

/// A topic of the journal at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct JournalSample {
    /// The topic's name.
    pub topic: &'static str,
    /// Its entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that went because of their age, and to make room, since the start.
    pub removed: (u64, u64),
}

/// All that one scrape says.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// The server.
    pub server: ServerSample,
    /// The model versions that are ready.
    pub models: Vec<ModelSample>,
    /// The variants of models that have a route.
    pub variants: Vec<VariantSample>,
    /// The shadows of models.
    pub shadows: Vec<ShadowSample>,
    /// Rollouts.
    pub rollouts: RolloutsSample,
    /// What was asked of the registry, if there is one.
    pub registry: Vec<RegistrySample>,
    /// Traces and log lines.
    pub recorder: RecorderSample,
    /// The prediction log, by sink.
    pub prediction_log: Vec<SinkSample>,
    /// Webhooks.
    pub webhooks: Vec<SinkSample>,
    /// Exposures and feedback, where there is a registry.
    pub feedback: Option<FeedbackSample>,
    /// Versions under watch; bounded by whoever gives the sample.
    pub monitors: Vec<MonitorSample>,
    /// What they take requests from, where there is a registry.
    pub monitors_sink: Option<SinkSample>,
    /// How requests ended, by model.
    pub requests: Vec<RequestsSample>,
    /// Versions that labels came for.
    pub performances: Vec<PerformanceSample>,
    /// What people decide, where there is a registry.
    pub reviews: Option<ReviewSample>,
    /// The machine's GPUs; bounded by whoever gives the sample.
    pub gpus: Vec<GpuSample>,
    /// The process, where the system tells of it.
    pub process: Option<ProcessSample>,
    /// The runtime.
    pub runtime: RuntimeSample,
    /// Whether the common metrics are there under Triton's names too.
    pub triton_names: bool,
}

/// Writes the text of one scrape.
///
/// # Errors
/// Only when formatting into a string fails.
pub fn encode(mut scrape: Scrape, format: Format) -> Result<String, fmt::Error> {
    bound(&mut scrape.models);
    traffic::bound_requests(&mut scrape.requests);
    traffic::bound(&mut scrape.variants);
    traffic::bound_shadows(&mut scrape.shadows);
    let of = |model: &ModelSample| {
        let key = (model.model.as_str().into(), model.version.as_str().into());
        scrape.recorder.exemplars.get(&key).copied()
    };
    let exemplars: Vec<_> = scrape.models.iter().map(of).collect();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut output = String::new();
    prometheus_client::encoding::text::encode(&mut output, &registry)?;
    Ok(text::finish(output, format, &exemplars))
}

/// Adds up what is beyond [`MAX_VERSIONS`]. Which they are does not change with their load: counters must not jump.
fn bound(models: &mut Vec<ModelSample>) {
    models.sort_by(|a, b| (&a.model, &a.version).cmp(&(&b.model, &b.version)));
    if models.len() <= MAX_VERSIONS {
        return;
    }
    let mut other = ModelSample { model: OTHER.to_owned(), version: OTHER.to_owned(), ..Default::default() };
    for model in models.drain(MAX_VERSIONS..) {
        other.stats.merge(&model.stats);
        other.queue_depth += model.queue_depth;
        other.in_flight += model.in_flight;
        other.memory_bytes += model.memory_bytes;
    }
    models.push(other);
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_server(&mut encoder)?;
        self.encode_registry(&mut encoder)?;
        self.encode_recorder(&mut encoder)?;
        self.encode_sinks(&mut encoder)?;
        self.encode_feedback(&mut encoder)?;
        self.encode_process(&mut encoder)?;
        self.encode_gpus(&mut encoder)?;
        self.encode_counters(&mut encoder)?;
        self.encode_histograms(&mut encoder)?;
        self.encode_traffic(&mut encoder)?;
        self.encode_shadows(&mut encoder)?;
        self.encode_rollouts(&mut encoder)?;
        self.encode_monitors(&mut encoder)?;
        self.encode_reviews(&mut encoder)?;
        self.encode_performances(&mut encoder)?;
        self.encode_requests(&mut encoder)?;
        if self.triton_names { self.encode_triton_names(&mut encoder) } else { Ok(()) }
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn i64_of(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn to_i64(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_core::FailReason;
    use std::time::Duration;

    #[test]
    fn a_scrape_has_both_naming_schemes_and_ends_properly() {
        let mut stats = ModelStats { inference_count: 7, execution_count: 2, ..ModelStats::default() };
        stats.success.add(Duration::from_millis(3));
        stats.request_latency.add(Duration::from_millis(3));
        stats.add_failure(FailReason::Rejected, Duration::ZERO);
        stats.cache_hit.add(Duration::ZERO);
        stats.refusals.insert("overloaded", 4);
        stats.batches.entry(300).or_default().compute_infer.add(Duration::from_millis(1));
        let model = ModelSample {
            model: "we\"ird".into(),
            version: "1".into(),
            stats,
            queue_depth: 3,
            memory_bytes: 10,
            cache_bytes: Some((40, 50)),
            cost: Some(CostSample { batch_seconds: 0.5, ..CostSample::default() }),
            info: Some(ModelInfo { family: "bert".into(), ..ModelInfo::default() }),
            ..ModelSample::default()
        };
        let server = ServerSample {
            version: "9".into(),
            rejected: vec![("calls", 2), ("bytes", 3)],
            tenants: (3, 4096),
            tenant_requests: vec![TenantSample { tenant: "acme".into(), ok: 5, rejected: 2, failed: 0 }],
            ..ServerSample::default()
        };
        let scrape = Scrape { server, models: vec![model], triton_names: true, ..Scrape::default() };
        let without = encode(Scrape { triton_names: false, ..scrape.clone() }, Format::Text).unwrap();
        assert!(!without.contains("nv_"));
        let text = encode(scrape, Format::OpenMetrics).unwrap();
        for line in [
            "sconce_build_info{version=\"9\"} 1",
            "sconce_rows_total{model=\"we\\\"ird\",version=\"1\"} 7",
            "sconce_predictions_total{model=\"we\\\"ird\",version=\"1\",status=\"rejected\"} 1",
            "sconce_predictions_total{model=\"we\\\"ird\",version=\"1\",status=\"failed\"} 0",
            "sconce_request_duration_seconds_bucket{le=\"0.005\",model=\"we\\\"ird\",version=\"1\"} 1",
            "sconce_batch_rows_bucket{le=\"256.0\",model=\"we\\\"ird\",version=\"1\"} 0",
            "sconce_batch_rows_bucket{le=\"+Inf\",model=\"we\\\"ird\",version=\"1\"} 1",
            "sconce_refused_requests_total 5",
            "sconce_tenants 3",
            "sconce_tenants_limit 4096",
            "sconce_tenant_requests_total{tenant=\"acme\",status=\"rejected\"} 2",
            "sconce_cache_hits_total{model=\"we\\\"ird\",version=\"1\"} 1",
            "sconce_cache_bytes_limit{model=\"we\\\"ird\",version=\"1\"} 50",
            "nv_cache_num_misses_per_model{model=\"we\\\"ird\",version=\"1\"} 0",
            "sconce_cost_batch_seconds{model=\"we\\\"ird\",version=\"1\"} 0.5",
            "sconce_queue_refusals_total{model=\"we\\\"ird\",version=\"1\",reason=\"overloaded\"} 4",
            "sconce_rejected_requests_total{reason=\"bytes\"} 3",
            "sconce_model_info{model=\"we\\\"ird\",version=\"1\",family=\"bert\",precision=\"\",device=\"\",instances=\"\"} 1",
            "sconce_trace_spans_dropped_total 0",
            "nv_inference_count{model=\"we\\\"ird\",version=\"1\"} 7",
            "nv_inference_request_failure{model=\"we\\\"ird\",version=\"1\",reason=\"REJECTED\"} 1",
            "nv_inference_pending_request_count{model=\"we\\\"ird\",version=\"1\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    /// What 200 models of two versions cost: bounded in size, whatever their number.
    #[test]
    fn labels_are_bounded_and_what_is_beyond_them_adds_up() {
        let model = |number: usize| {
            let mut stats = ModelStats { inference_count: 1, ..ModelStats::default() };
            stats.request_latency.add(Duration::from_millis(1));
            ModelSample {
                model: format!("m{number:05}"),
                version: "1".into(),
                stats,
                ..ModelSample::default()
            }
        };
        let scrape = |count: usize| Scrape {
            models: (0..count).map(model).collect(),
            triton_names: true,
            ..Scrape::default()
        };
        let two = encode(scrape(MAX_VERSIONS + 2), Format::Text).unwrap();
        let line = "sconce_rows_total{model=\"other\",version=\"other\"} 2";
        assert!(two.lines().any(|l| l == line), "{line}");
        assert!(two.contains("model=\"m00511\"") && !two.contains("model=\"m00512\""));
        let many = encode(scrape(4 * MAX_VERSIONS), Format::Text).unwrap();
        assert!(many.len() < two.len() + 1000, "{} and {} bytes", two.len(), many.len());
        let a_version = encode(scrape(400), Format::Text).unwrap().len() / 400;
        assert!(a_version < 16 << 10, "{a_version} bytes a version");
    }
}
