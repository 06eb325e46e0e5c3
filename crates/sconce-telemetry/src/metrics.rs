//! Metrics in the OpenMetrics text format. Nothing is counted here: a scrape reads the counters that the scheduler keeps
//! anyway, so the request path pays nothing for it.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, LabelSetEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use sconce_core::{DurationHistogram, FailReason, ModelStats};
use std::fmt;

/// The content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One model version at the time of a scrape.
#[derive(Debug, Clone)]
pub struct ModelSample {
    /// The model's name.
    pub model: String,
    /// The version.
    pub version: String,
    /// Its counters.
    pub stats: ModelStats,
    /// Requests that wait.
    pub queue_depth: usize,
    /// Bytes of weights and tables.
    pub memory_bytes: usize,
    /// Bytes of answers that are kept, and their bound; `None` where none are.
    pub cache_bytes: Option<(usize, usize)>,
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
    /// Tenants told apart, and the bound of it.
    pub tenants: (usize, usize),
    /// Requests by tenant; bounded by whoever gives the sample.
    pub tenant_requests: Vec<TenantSample>,
    /// Requests refused before any model was known.
    pub refused: u64,
    /// What models hold of each device's memory.
    pub model_memory: Vec<DeviceMemory>,
    /// What the process holds of the machine's memory, if the system says so.
    pub resident_bytes: Option<u64>,
    /// The registry's routing generation; 0 without a registry.
    pub generation: u64,
    /// Loads of model versions that succeeded, and that failed.
    pub loads: (u64, u64),
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

/// Writes the text of one scrape.
///
/// # Errors
/// Only when formatting into a string fails.
pub fn encode(server: ServerSample, models: Vec<ModelSample>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { server, models }));
    let mut output = String::new();
    text::encode(&mut output, &registry)?;
    Ok(output)
}

#[derive(Debug)]
struct Scrape {
    server: ServerSample,
    models: Vec<ModelSample>,
}

/// Labels of a model version, and one more for some metrics.
#[derive(Debug, Clone)]
struct Labels<'a> {
    model: &'a ModelSample,
    extra: Option<(&'static str, &'a str)>,
}

/// Where a histogram comes from.
type HistogramOf = fn(&ModelStats) -> &DurationHistogram;
/// Where a value comes from.
type ValueOf = fn(&ModelSample) -> u64;

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let pairs = [("model", self.model.model.as_str()), ("version", self.model.version.as_str())];
        pairs.into_iter().chain(self.extra).try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_server(&mut encoder)?;
        self.encode_counters(&mut encoder)?;
        self.encode_histograms(&mut encoder)?;
        self.encode_triton_names(&mut encoder)
    }
}

impl Scrape {
    fn encode_server(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut info =
            encoder.encode_descriptor("sconce_build", "The server's version", None, MetricType::Info)?;
        info.encode_info(&[("version", self.server.version.as_str())])?;
        let gauges = [
            ("sconce_inflight_bytes", "Bytes of requests in flight", self.server.inflight_bytes),
            ("sconce_connections", "Open connections", self.server.connections),
            ("sconce_streams", "Calls in progress", self.server.streams),
            ("sconce_tenants", "Tenants told apart", self.server.tenants),
        ];
        for (name, help, (now, limit)) in gauges {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&to_i64(now))?;
            let help = format!("The bound of {name}");
            let name = format!("{name}_limit");
            encoder.encode_descriptor(&name, &help, None, MetricType::Gauge)?.encode_gauge(&to_i64(limit))?;
        }
        self.encode_memory(encoder)?;
        self.encode_tenants(encoder)?;
        encoder
            .encode_descriptor(
                "sconce_refused_requests",
                "Requests refused before any model was known",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&self.server.refused, None)
    }

    fn encode_tenants(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests by tenant and outcome";
        let mut family =
            encoder.encode_descriptor("sconce_tenant_requests", help, None, MetricType::Counter)?;
        for TenantSample { tenant, ok, rejected, failed } in &self.server.tenant_requests {
            for (status, count) in [("ok", ok), ("rejected", rejected), ("failed", failed)] {
                let labels = [("tenant", tenant.as_str()), ("status", status)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        Ok(())
    }

    fn encode_memory(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let devices = &self.server.model_memory;
        let of = |device: &DeviceMemory| [("device", device.device.clone())];
        let help = "Bytes of weights and tables in a device's memory";
        let mut used =
            encoder.encode_descriptor("sconce_device_memory_bytes", help, None, MetricType::Gauge)?;
        for device in devices {
            used.encode_family(&of(device))?.encode_gauge(&i64_of(device.used_bytes))?;
        }
        let help = "The bound of sconce_device_memory_bytes";
        let mut limits =
            encoder.encode_descriptor("sconce_device_memory_bytes_limit", help, None, MetricType::Gauge)?;
        for device in devices {
            if let Some(limit) = device.limit_bytes {
                limits.encode_family(&of(device))?.encode_gauge(&i64_of(limit))?;
            }
        }
        let mut single = |name: &str, help: &str, value: u64| {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&i64_of(value))
        };
        if let Some(bytes) = self.server.resident_bytes {
            single("sconce_resident_memory_bytes", "Bytes of memory the process holds", bytes)?;
        }
        single(
            "sconce_routing_generation",
            "Changes of what answers, by the registry",
            self.server.generation,
        )?;
        let help = "Loads of model versions by outcome";
        let mut loads = encoder.encode_descriptor("sconce_loads", help, None, MetricType::Counter)?;
        for (status, count) in [("ok", self.server.loads.0), ("failed", self.server.loads.1)] {
            loads.encode_family(&[("status", status)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn encode_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.counter(encoder, "sconce_rows", "Rows answered", |s| s.inference_count)?;
        self.counter(encoder, "sconce_tokens", "Tokens executed, without padding", |s| s.token_count)?;
        self.counter(encoder, "sconce_batches", "Batches executed", |s| s.execution_count)?;
        self.counter(encoder, "sconce_model_panics", "Panics of the model that a worker survived", |s| {
            s.panics
        })?;
        self.gauge(encoder, "sconce_queue_depth", "Requests that wait", |m| m.queue_depth)?;
        self.gauge(encoder, "sconce_model_memory_bytes", "Bytes of weights and tables", |m| m.memory_bytes)?;

        self.encode_cache(encoder)?;
        let mut predictions = encoder.encode_descriptor(
            "sconce_predictions",
            "Requests of a known model by outcome",
            None,
            MetricType::Counter,
        )?;
        for model in &self.models {
            let labels = Labels { model, extra: Some(("status", "ok")) };
            let count = model.stats.success.count;
            predictions.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            for (reason, total) in &model.stats.fail {
                let status = match reason {
                    FailReason::Rejected => "rejected",
                    FailReason::Canceled => "canceled",
                    FailReason::Backend => "failed",
                    FailReason::Other => "invalid",
                };
                let labels = Labels { model, extra: Some(("status", status)) };
                predictions
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&total.count, None)?;
            }
        }
        let mut closed = encoder.encode_descriptor(
            "sconce_batches_closed",
            "Batches by the reason they stopped growing",
            None,
            MetricType::Counter,
        )?;
        for model in &self.models {
            for (reason, count) in &model.stats.close_reasons {
                let labels = Labels { model, extra: Some(("reason", reason)) };
                closed.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        Ok(())
    }

    fn encode_cache(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters: [(&str, &str, ValueOf); 2] = [
            ("sconce_cache_hits", "Requests answered from the cache", |m| m.stats.cache_hit.count),
            ("sconce_cache_misses", "Requests whose answer was not in the cache", |m| {
                m.stats.cache_miss.count
            }),
        ];
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, _) in self.cached() {
                family
                    .encode_family(&Labels { model, extra: None })?
                    .encode_counter::<NoLabelSet, _, u64>(&value(model), None)?;
            }
        }
        let help = "Bytes of answers that are kept";
        let mut family = encoder.encode_descriptor("sconce_cache_bytes", help, None, MetricType::Gauge)?;
        for (model, (bytes, _)) in self.cached() {
            family.encode_family(&Labels { model, extra: None })?.encode_gauge(&to_i64(bytes))?;
        }
        let help = "The bound of sconce_cache_bytes";
        let mut family =
            encoder.encode_descriptor("sconce_cache_bytes_limit", help, None, MetricType::Gauge)?;
        for (model, (_, limit)) in self.cached() {
            family.encode_family(&Labels { model, extra: None })?.encode_gauge(&to_i64(limit))?;
        }
        Ok(())
    }

    /// Models whose answers are kept.
    fn cached(&self) -> impl Iterator<Item = (&ModelSample, (usize, usize))> {
        self.models.iter().filter_map(|model| Some((model, model.cache_bytes?)))
    }

    fn encode_histograms(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let histograms: [(&str, &str, HistogramOf); 2] = [
            ("sconce_request_duration_seconds", "From the front door to the answer", |s| &s.request_latency),
            ("sconce_queue_duration_seconds", "Waiting in the queue", |s| &s.queue_latency),
        ];
        for (name, help, of) in histograms {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for model in &self.models {
                let histogram = of(&model.stats);
                let buckets: Vec<(f64, u64)> = histogram.buckets().collect();
                let total = histogram.total();
                family.encode_family(&Labels { model, extra: None })?.encode_histogram::<NoLabelSet>(
                    total.time.as_secs_f64(),
                    total.count,
                    &buckets,
                    None,
                )?;
            }
        }
        let name = "sconce_batch_rows";
        let mut family = encoder.encode_descriptor(name, "Rows in a batch", None, MetricType::Histogram)?;
        for model in &self.models {
            let batches = &model.stats.batches;
            let rows =
                batches.iter().map(|(rows, size)| (*rows as u64) * size.compute_infer.count).sum::<u64>();
            let count = batches.values().map(|size| size.compute_infer.count).sum();
            let mut buckets: Vec<(f64, u64)> =
                [1, 2, 4, 8, 16, 32, 64, 128, 256].map(|le| (f64::from(le), 0)).to_vec();
            buckets.push((f64::INFINITY, 0));
            for (rows, size) in batches {
                let bucket = buckets.partition_point(|(le, _)| *le < *rows as f64);
                if let Some(bucket) = buckets.get_mut(bucket) {
                    bucket.1 += size.compute_infer.count;
                }
            }
            let labels = Labels { model, extra: None };
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                rows as f64,
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    /// The names that dashboards and load testers of another server scrape. They carry no `_total`, so their type is
    /// unknown to OpenMetrics.
    fn encode_triton_names(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics: [(&str, &str, ValueOf); 9] = [
            ("nv_inference_request_success", "Answered requests", |m| m.stats.success.count),
            ("nv_inference_count", "Rows answered", |m| m.stats.inference_count),
            ("nv_inference_exec_count", "Batches executed", |m| m.stats.execution_count),
            ("nv_inference_pending_request_count", "Requests that wait", |m| m.queue_depth as u64),
            ("nv_inference_request_duration_us", "End to end, cumulative", |m| micros(m.stats.success.time)),
            ("nv_inference_queue_duration_us", "In the queue, cumulative", |m| micros(m.stats.queue.time)),
            ("nv_inference_compute_input_duration_us", "Preparing, cumulative", |m| {
                micros(m.stats.compute_input.time)
            }),
            ("nv_inference_compute_infer_duration_us", "Executing, cumulative", |m| {
                micros(m.stats.compute_infer.time)
            }),
            ("nv_inference_compute_output_duration_us", "Handing out, cumulative", |m| {
                micros(m.stats.compute_output.time)
            }),
        ];
        for (name, help, value) in metrics {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            for model in &self.models {
                family.encode_family(&Labels { model, extra: None })?.encode_gauge(&value(model))?;
            }
        }
        let cached: [(&str, &str, ValueOf); 2] = [
            ("nv_cache_num_hits_per_model", "Requests answered from the cache", |m| m.stats.cache_hit.count),
            ("nv_cache_num_misses_per_model", "Requests not in the cache", |m| m.stats.cache_miss.count),
        ];
        for (name, help, value) in cached {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            for (model, _) in self.cached() {
                family.encode_family(&Labels { model, extra: None })?.encode_gauge(&value(model))?;
            }
        }
        let name = "nv_inference_request_failure";
        let mut family = encoder.encode_descriptor(name, "Failed requests", None, MetricType::Unknown)?;
        for model in &self.models {
            for reason in FailReason::ALL {
                let labels = Labels { model, extra: Some(("reason", reason.name())) };
                let count = model.stats.fail.get(&reason).map_or(0, |total| total.count);
                family.encode_family(&labels)?.encode_gauge(&count)?;
            }
        }
        Ok(())
    }

    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: fn(&ModelStats) -> u64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        self.models.iter().try_for_each(|model| {
            let count = value(&model.stats);
            family
                .encode_family(&Labels { model, extra: None })?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)
        })
    }

    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: fn(&ModelSample) -> usize,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        self.models.iter().try_for_each(|model| {
            family.encode_family(&Labels { model, extra: None })?.encode_gauge(&to_i64(value(model)))
        })
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
    use std::time::Duration;

    #[test]
    fn a_scrape_has_both_naming_schemes_and_ends_properly() {
        let mut stats = ModelStats { inference_count: 7, execution_count: 2, ..ModelStats::default() };
        stats.success.add(Duration::from_millis(3));
        stats.request_latency.add(Duration::from_millis(3));
        stats.add_failure(FailReason::Rejected, Duration::ZERO);
        stats.cache_hit.add(Duration::ZERO);
        stats.batches.entry(300).or_default().compute_infer.add(Duration::from_millis(1));
        let model = ModelSample {
            model: "we\"ird".into(),
            version: "1".into(),
            stats,
            queue_depth: 3,
            memory_bytes: 10,
            cache_bytes: Some((40, 50)),
        };
        let server = ServerSample {
            version: "9".into(),
            tenants: (3, 4096),
            tenant_requests: vec![TenantSample { tenant: "acme".into(), ok: 5, rejected: 2, failed: 0 }],
            ..ServerSample::default()
        };
        let text = encode(server, vec![model]).unwrap();
        for line in [
            "sconce_build_info{version=\"9\"} 1",
            "sconce_tenants 3",
            "sconce_tenants_limit 4096",
            "sconce_tenant_requests_total{tenant=\"acme\",status=\"ok\"} 5",
            "sconce_tenant_requests_total{tenant=\"acme\",status=\"rejected\"} 2",
            "sconce_rows_total{model=\"we\\\"ird\",version=\"1\"} 7",
            "sconce_predictions_total{model=\"we\\\"ird\",version=\"1\",status=\"rejected\"} 1",
            "sconce_request_duration_seconds_bucket{le=\"0.005\",model=\"we\\\"ird\",version=\"1\"} 1",
            "sconce_batch_rows_bucket{le=\"256.0\",model=\"we\\\"ird\",version=\"1\"} 0",
            "sconce_batch_rows_bucket{le=\"+Inf\",model=\"we\\\"ird\",version=\"1\"} 1",
            "nv_inference_count{model=\"we\\\"ird\",version=\"1\"} 7",
            "nv_inference_request_failure{model=\"we\\\"ird\",version=\"1\",reason=\"REJECTED\"} 1",
            "sconce_cache_hits_total{model=\"we\\\"ird\",version=\"1\"} 1",
            "sconce_cache_bytes_limit{model=\"we\\\"ird\",version=\"1\"} 50",
            "nv_cache_num_misses_per_model{model=\"we\\\"ird\",version=\"1\"} 0",
            "nv_inference_pending_request_count{model=\"we\\\"ird\",version=\"1\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
