use super::models::Labels;
use super::{ModelSample, Scrape, micros};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use sconce_core::FailReason;
use std::fmt;

/// Where a value comes from.
type ValueOf = fn(&ModelSample) -> u64;

impl Scrape {
    /// The names that dashboards and load testers of another server scrape. They carry no `_total`, so their type is
    /// unknown to OpenMetrics.
    pub(super) fn encode_triton_names(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
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
        self.encode_gpus_as_triton(encoder)
    }
}
