//! What is the server's own, and the process's.

use super::{DeviceMemory, RegistrySample, Scrape, SinkSample, TenantSample, i64_of, to_i64};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use sconce_core::DurationHistogram;
use std::fmt;

impl Scrape {
    pub(super) fn encode_server(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut info =
            encoder.encode_descriptor("sconce_build", "The server's version", None, MetricType::Info)?;
        info.encode_info(&[("version", self.server.version.as_str())])?;
        let gauges = [
            ("sconce_inflight_bytes", "Bytes of requests in flight", self.server.inflight_bytes),
            ("sconce_connections", "Open connections", self.server.connections),
            ("sconce_streams", "Calls in progress", self.server.streams),
            ("sconce_shadow_bytes", "Bytes of requests that shadows see", self.server.shadow_bytes),
            ("sconce_tenants", "Tenants told apart", self.server.tenants),
        ];
        for (name, help, (now, limit)) in gauges {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&to_i64(now))?;
            let help = format!("The bound of {name}");
            let name = format!("{name}_limit");
            encoder.encode_descriptor(&name, &help, None, MetricType::Gauge)?.encode_gauge(&to_i64(limit))?;
        }
        self.encode_tenants(encoder)?;
        self.encode_memory(encoder)?;
        self.encode_loads(encoder)?;
        let help = "Calls and connections refused before any model was known, by the bound they met";
        let mut rejected =
            encoder.encode_descriptor("sconce_rejected_requests", help, None, MetricType::Counter)?;
        for (reason, count) in &self.server.rejected {
            rejected
                .encode_family(&[("reason", *reason)])?
                .encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
        let refused: u64 = self.server.rejected.iter().map(|(_, count)| count).sum();
        encoder
            .encode_descriptor(
                "sconce_refused_requests",
                "Requests refused before any model was known",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&refused, None)
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
        if let Some(bytes) = self.server.residual_bytes {
            let help = "Resident bytes beyond those before the first load and those of weights and tables: what instances compute \
                        in, and what unloads left behind";
            single("sconce_residual_memory_bytes", help, bytes)?;
        }
        single(
            "sconce_routing_generation",
            "Changes of what answers, by the registry",
            self.server.generation,
        )?;
        Ok(())
    }

    fn encode_loads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let outcomes = [("ok", &self.server.loads[0]), ("failed", &self.server.loads[1])];
        let help = "Loads of model versions by outcome";
        let mut loads = encoder.encode_descriptor("sconce_loads", help, None, MetricType::Counter)?;
        for (status, times) in outcomes {
            let count = times.total().count;
            loads.encode_family(&[("status", status)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let help = "Loading a model version, by outcome";
        let name = "sconce_load_duration_seconds";
        let mut loads = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (status, times) in outcomes {
            let buckets: Vec<(f64, u64)> = DurationHistogram::buckets(times).collect();
            let total = times.total();
            loads.encode_family(&[("status", status)])?.encode_histogram::<NoLabelSet>(
                total.time.as_secs_f64(),
                total.count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    /// What was asked of the registry.
    pub(super) fn encode_registry(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.registry.is_empty() {
            return Ok(());
        }
        let help = "Operations on the registry by what became of them";
        let name = "sconce_registry_operations";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for RegistrySample { operation, refused, failed, times } in &self.registry {
            let ok = times.total().count.saturating_sub(refused + failed);
            for (status, count) in [("ok", &ok), ("refused", refused), ("failed", failed)] {
                let labels = [("operation", *operation), ("status", status)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        let help = "Operations on the registry, until they are on disk";
        let name = "sconce_registry_operation_duration_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for RegistrySample { operation, times, .. } in &self.registry {
            let (buckets, total): (Vec<(f64, u64)>, _) = (times.buckets().collect(), times.total());
            family.encode_family(&[("operation", *operation)])?.encode_histogram::<NoLabelSet>(
                total.time.as_secs_f64(),
                total.count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    /// Traces and log lines: what is kept, and what is lost.
    pub(super) fn encode_recorder(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let recorder = &self.recorder;
        for (name, help, value) in [
            ("sconce_trace_spans_exported", "Spans that a collector took", recorder.exported),
            ("sconce_trace_spans_dropped", "Spans that were kept and lost", recorder.dropped),
            ("sconce_access_lines_dropped", "Log lines of requests that were lost", recorder.dropped_lines),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        let (depth, limit) = recorder.queue;
        for (name, help, value) in [
            ("sconce_trace_queue_depth", "Kept requests that wait for the exporter", depth),
            ("sconce_trace_queue_depth_limit", "The bound of sconce_trace_queue_depth", limit),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&to_i64(value))?;
        }
        Ok(())
    }

    /// The prediction log and the webhooks: what is written, and what is lost.
    pub(super) fn encode_sinks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let records =
            ("sconce_prediction_log_records", "Records of the prediction log by what became of them");
        let waiting =
            ("sconce_prediction_log_queue_depth", "Records that wait for a sink of the prediction log");
        encode_sinks(encoder, "sink", records, waiting, &self.prediction_log)?;
        let events = ("sconce_webhook_events", "Events by webhook and what became of them");
        let waiting = ("sconce_webhook_queue_depth", "Events that wait for a webhook");
        encode_sinks(encoder, "hook", events, waiting, &self.webhooks)
    }

    /// Exposures, outcomes and the journal that keeps both.
    pub(super) fn encode_feedback(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(feedback) = &self.feedback else { return Ok(()) };
        let exposures = &feedback.exposures;
        let help = "Exposures of predictions by what became of them";
        let mut statuses = encoder.encode_descriptor("sconce_exposures", help, None, MetricType::Counter)?;
        for (status, count) in
            [("written", exposures.written), ("dropped", exposures.dropped), ("failed", exposures.failed)]
        {
            statuses
                .encode_family(&[("status", status)])?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let (waiting, bound) = exposures.queue;
        for (name, help, value) in [
            ("sconce_exposures_queue_depth", "Exposures that wait for the journal", waiting),
            ("sconce_exposures_queue_depth_limit", "The bound of sconce_exposures_queue_depth", bound),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&to_i64(value))?;
        }
        let help =
            "Outcomes that were recorded, those in place of earlier ones, and those of unknown predictions";
        let mut outcomes =
            encoder.encode_descriptor("sconce_feedback_outcomes", help, None, MetricType::Counter)?;
        for (result, count) in &feedback.outcomes {
            outcomes
                .encode_family(&[("result", *result)])?
                .encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
        let help = "Entries that left the journal, by the reason";
        let mut removed =
            encoder.encode_descriptor("sconce_journal_removed", help, None, MetricType::Counter)?;
        for topic in &feedback.journal {
            for (reason, count) in [("expired", topic.removed.0), ("evicted", topic.removed.1)] {
                let labels = [("topic", topic.topic), ("reason", reason)];
                removed.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let to_i64 = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let help = "Entries of the journal";
        let mut entries =
            encoder.encode_descriptor("sconce_journal_entries", help, None, MetricType::Gauge)?;
        for topic in &feedback.journal {
            entries.encode_family(&[("topic", topic.topic)])?.encode_gauge(&to_i64(topic.entries))?;
        }
        let help = "Bytes of keys and values of the journal";
        let mut bytes = encoder.encode_descriptor("sconce_journal_bytes", help, None, MetricType::Gauge)?;
        for topic in &feedback.journal {
            bytes.encode_family(&[("topic", topic.topic)])?.encode_gauge(&to_i64(topic.bytes))?;
        }
        Ok(())
    }

    /// The process, under the names that every Prometheus client uses, and its runtime.
    pub(super) fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let runtime = &self.runtime;
        let mut gauges = vec![
            ("sconce_runtime_workers", "Threads that serve connections", runtime.workers as u64),
            ("sconce_runtime_alive_tasks", "Tasks of the runtime", runtime.alive_tasks as u64),
            (
                "sconce_runtime_global_queue_depth",
                "Tasks that wait for any of its threads",
                runtime.global_queue_depth as u64,
            ),
        ];
        if let Some(process) = &self.process {
            encoder
                .encode_descriptor("process_cpu_seconds", "Processor time", None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&process.cpu_seconds, None)?;
            encoder
                .encode_descriptor(
                    "process_start_time_seconds",
                    "Start, since 1970",
                    None,
                    MetricType::Gauge,
                )?
                .encode_gauge(&process.start_time_seconds)?;
            gauges.extend([
                ("process_resident_memory_bytes", "Memory the process holds", process.resident_bytes),
                ("process_virtual_memory_bytes", "Addresses the process holds", process.virtual_bytes),
                ("process_open_fds", "Open file descriptors", process.open_fds),
                ("process_max_fds", "The bound of process_open_fds", process.max_fds),
                ("process_threads", "Threads", process.threads),
            ]);
        }
        gauges.into_iter().try_for_each(|(name, help, value)| {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&i64_of(value))
        })
    }
}

/// Items of sinks by what became of them, and how many wait; nothing where there are no sinks.
fn encode_sinks(
    encoder: &mut DescriptorEncoder<'_>,
    label: &str,
    (items, help): (&str, &str),
    (depth, depth_help): (&str, &str),
    sinks: &[SinkSample],
) -> fmt::Result {
    if sinks.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(items, help, None, MetricType::Counter)?;
    for sink in sinks {
        for (status, count) in [("written", sink.written), ("dropped", sink.dropped), ("failed", sink.failed)]
        {
            let labels = [(label, sink.sink), ("status", status)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    let mut family = encoder.encode_descriptor(depth, depth_help, None, MetricType::Gauge)?;
    for sink in sinks {
        family.encode_family(&[(label, sink.sink)])?.encode_gauge(&to_i64(sink.queue.0))?;
    }
    let (limit, help) = (format!("{depth}_limit"), format!("The bound of {depth}"));
    let mut family = encoder.encode_descriptor(&limit, &help, None, MetricType::Gauge)?;
    for sink in sinks {
        family.encode_family(&[(label, sink.sink)])?.encode_gauge(&to_i64(sink.queue.1))?;
    }
    Ok(())
}
