//! What is counted for each model version.

use super::{CostSample, ModelSample, RemoteSample, Scrape, to_i64};
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use sconce_core::{DurationHistogram, FailReason, ModelStats, SizeHistogram};
use std::fmt;

/// Labels of a model version, and one more for some metrics.
#[derive(Debug, Clone)]
pub(super) struct Labels<'a> {
    pub(super) model: &'a ModelSample,
    pub(super) extra: Option<(&'static str, &'a str)>,
}

/// Where a histogram comes from.
type HistogramOf = fn(&ModelStats) -> &DurationHistogram;
/// Where a count comes from.
type CountOf = fn(&ModelStats) -> u64;
/// Where a figure of the cost comes from.
type CostOf = fn(&CostSample) -> f64;
/// Where a count of a remote comes from.
type RemoteCountOf = fn(&RemoteSample) -> u64;
/// Where a histogram of sizes comes from.
type SizesOf = fn(&ModelStats) -> &SizeHistogram;

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let pairs = [("model", self.model.model.as_str()), ("version", self.model.version.as_str())];
        pairs.into_iter().chain(self.extra).try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

impl Scrape {
    pub(super) fn encode_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.counter(encoder, "sconce_rows", "Rows answered", |s| s.inference_count)?;
        self.counter(encoder, "sconce_tokens", "Tokens executed, without padding", |s| s.token_count)?;
        self.counter(encoder, "sconce_batches", "Batches executed", |s| s.execution_count)?;
        let help = "Batches that stood still for a while, because another model went first";
        self.counter(encoder, "sconce_batches_paused", help, |s| s.paused_count)?;
        self.counter(encoder, "sconce_model_panics", "Panics of the model that a worker survived", |s| {
            s.panics
        })?;
        self.gauge(encoder, "sconce_queue_depth", "Requests that wait", |m| m.queue_depth)?;
        self.gauge(encoder, "sconce_inflight_requests", "Requests being worked on", |m| m.in_flight)?;
        self.gauge(encoder, "sconce_model_memory_bytes", "Bytes of weights and tables", |m| m.memory_bytes)?;

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
            // All of them, from zero on: of a counter that comes with its first event no rate sees that event.
            for reason in FailReason::ALL {
                let status = match reason {
                    FailReason::Rejected => "rejected",
                    FailReason::Canceled => "canceled",
                    FailReason::Backend => "failed",
                    FailReason::Other => "invalid",
                };
                let labels = Labels { model, extra: Some(("status", status)) };
                let count = model.stats.fail.get(&reason).map_or(0, |total| total.count);
                predictions.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        self.encode_info(encoder)?;
        self.encode_refusals(encoder)?;
        self.encode_cost(encoder)?;
        self.encode_cache(encoder)?;
        self.encode_remotes(encoder)?;
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

    fn encode_refusals(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests that a queue did not take in or gave up, by reason";
        let mut family =
            encoder.encode_descriptor("sconce_queue_refusals", help, None, MetricType::Counter)?;
        for model in &self.models {
            for (reason, count) in &model.stats.refusals {
                let labels = Labels { model, extra: Some(("reason", reason)) };
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        Ok(())
    }

    fn encode_remotes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let remotes = || self.models.iter().filter_map(|model| Some((model, model.remote.as_ref()?)));
        let help = "Whether a remote model is not asked, because its server did not answer of late";
        let mut family = encoder.encode_descriptor("sconce_remote_open", help, None, MetricType::Gauge)?;
        for (model, remote) in remotes() {
            family.encode_family(&Labels { model, extra: None })?.encode_gauge(&i64::from(remote.is_open))?;
        }
        let counters: [(&str, &str, RemoteCountOf); 2] = [
            ("sconce_remote_retries", "Calls of a remote model that were made again", |r| r.retries),
            (
                "sconce_remote_refused",
                "Calls of a remote model that were not made, because its server did not answer of late",
                |r| r.refused,
            ),
        ];
        for (name, help, count) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, remote) in remotes() {
                let labels = Labels { model, extra: None };
                let count = count(remote);
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn encode_cost(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauges: [(&str, &str, CostOf); 4] = [
            ("sconce_cost_batch_seconds", "What a batch takes, however small, as learned", |c| {
                c.batch_seconds
            }),
            ("sconce_cost_row_seconds", "What a row adds to it", |c| c.row_seconds),
            ("sconce_cost_token_seconds", "What a token adds to it", |c| c.token_seconds),
            ("sconce_cost_relative_error", "By how much estimates are off, as a part of them", |c| {
                c.relative_error
            }),
        ];
        for (name, help, value) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for model in &self.models {
                let Some(cost) = &model.cost else { continue };
                family.encode_family(&Labels { model, extra: None })?.encode_gauge(&value(cost))?;
            }
        }
        Ok(())
    }

    fn encode_cache(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters: [(&str, &str, CountOf); 2] = [
            ("sconce_cache_hits", "Requests answered from the cache", |s| s.cache_hit.count),
            ("sconce_cache_misses", "Requests whose answer was not in the cache", |s| s.cache_miss.count),
        ];
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, _) in self.cached() {
                let count = value(&model.stats);
                let labels = Labels { model, extra: None };
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let help = "Bytes of answers that are kept";
        let mut family = encoder.encode_descriptor("sconce_cache_bytes", help, None, MetricType::Gauge)?;
        for (model, (bytes, _)) in self.cached() {
            family.encode_family(&Labels { model, extra: None })?.encode_gauge(&to_i64(bytes))?;
        }
        let (name, help) = ("sconce_cache_bytes_limit", "The bound of sconce_cache_bytes");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (model, (_, limit)) in self.cached() {
            family.encode_family(&Labels { model, extra: None })?.encode_gauge(&to_i64(limit))?;
        }
        Ok(())
    }

    /// Models whose answers are kept.
    pub(super) fn cached(&self) -> impl Iterator<Item = (&ModelSample, (usize, usize))> {
        self.models.iter().filter_map(|model| Some((model, model.cache_bytes?)))
    }

    fn encode_info(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "What a model version is";
        let mut infos = encoder.encode_descriptor("sconce_model", help, None, MetricType::Info)?;
        for model in &self.models {
            // Of all the others together there is nothing to say.
            let Some(info) = &model.info else { continue };
            infos.encode_info(&[
                ("model", model.model.as_str()),
                ("version", &model.version),
                ("family", &info.family),
                ("precision", &info.precision),
                ("device", &info.device),
                ("instances", &info.instances),
            ])?;
        }
        Ok(())
    }

    pub(super) fn encode_histograms(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // The first one's lines are found again by their order: see `text`.
        let histograms: [(&str, &str, HistogramOf); 4] = [
            (super::text::WITH_EXEMPLARS, "From the front door to the answer", |s| &s.request_latency),
            ("sconce_prepare_duration_seconds", "Preparing the input", |s| &s.prepare_latency),
            ("sconce_queue_duration_seconds", "Waiting in the queue", |s| &s.queue_latency),
            ("sconce_execute_duration_seconds", "In the model", |s| &s.execute_latency),
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
        let sizes: [(&str, &str, SizesOf); 2] = [
            ("sconce_batch_tokens", "Tokens in a batch, without padding", |s| &s.batch_tokens),
            ("sconce_batch_padding_tokens", "Tokens of padding in a batch", |s| &s.batch_padding),
        ];
        for (name, help, of) in sizes {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            // Most models know no tokens.
            for model in self.models.iter().filter(|model| of(&model.stats).count() > 0) {
                let histogram = of(&model.stats);
                let buckets: Vec<(f64, u64)> = histogram.buckets().collect();
                family.encode_family(&Labels { model, extra: None })?.encode_histogram::<NoLabelSet>(
                    histogram.sum() as f64,
                    histogram.count(),
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

    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: CountOf,
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
