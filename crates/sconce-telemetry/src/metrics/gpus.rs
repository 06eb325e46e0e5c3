//! What the machine's GPUs say of themselves.

use super::Scrape;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use std::fmt;

/// One GPU at the time it was last looked at. What it does not tell is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuSample {
    /// Its number among the GPUs that the driver shows.
    pub index: u32,
    /// What it is told from all others by.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// The part of the time that something ran on it of late, 0 to 1.
    pub utilization: Option<f64>,
    /// Bytes of its memory in use, by whomever, and all there are.
    pub memory_bytes: Option<(u64, u64)>,
    /// Its temperature in °C.
    pub temperature_celsius: Option<f64>,
    /// The power that it draws.
    pub power_watts: Option<f64>,
}

/// Where a figure comes from.
type FigureOf = fn(&GpuSample) -> Option<f64>;

impl Scrape {
    pub(super) fn encode_gpus(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauges: [(&str, &str, FigureOf); 5] = [
            ("sconce_gpu_utilization_ratio", "Part of the time that something ran on a GPU", |gpu| {
                gpu.utilization
            }),
            ("sconce_gpu_memory_used_bytes", "Memory of a GPU in use, by whomever", used),
            ("sconce_gpu_memory_total_bytes", "All memory of a GPU", total),
            ("sconce_gpu_temperature_celsius", "Temperature of a GPU", |gpu| gpu.temperature_celsius),
            ("sconce_gpu_power_watts", "Power that a GPU draws", |gpu| gpu.power_watts),
        ];
        let labels = |gpu: &GpuSample| {
            [("index", gpu.index.to_string()), ("uuid", gpu.uuid.clone()), ("name", gpu.name.clone())]
        };
        gauges.into_iter().try_for_each(|gauge| self.encode_gpu_gauge(encoder, gauge, labels))
    }

    /// The same under the names that load testers of another server collect.
    pub(super) fn encode_gpus_as_triton(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauges: [(&str, &str, FigureOf); 4] = [
            ("nv_gpu_utilization", "Utilization, 0 to 1", |gpu| gpu.utilization),
            ("nv_gpu_memory_used_bytes", "Memory in use", used),
            ("nv_gpu_memory_total_bytes", "All memory", total),
            ("nv_gpu_power_usage", "Power in watts", |gpu| gpu.power_watts),
        ];
        let labels = |gpu: &GpuSample| [("gpu_uuid", gpu.uuid.clone())];
        gauges.into_iter().try_for_each(|gauge| self.encode_gpu_gauge(encoder, gauge, labels))
    }

    fn encode_gpu_gauge<const LABELS: usize>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, of): (&str, &str, FigureOf),
        labels: impl Fn(&GpuSample) -> [(&'static str, String); LABELS],
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (gpu, figure) in self.gpus.iter().filter_map(|gpu| Some((gpu, of(gpu)?))) {
            family.encode_family(&labels(gpu))?.encode_gauge(&figure)?;
        }
        Ok(())
    }
}

fn used(gpu: &GpuSample) -> Option<f64> {
    Some(gpu.memory_bytes?.0 as f64)
}

fn total(gpu: &GpuSample) -> Option<f64> {
    Some(gpu.memory_bytes?.1 as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, encode};

    #[test]
    fn what_a_gpu_tells_is_there_under_both_names_and_nothing_else() {
        let gpu = GpuSample {
            index: 1,
            uuid: "GPU-1".into(),
            name: "H".into(),
            utilization: Some(0.25),
            memory_bytes: Some((3, 80)),
            ..GpuSample::default()
        };
        let scrape = Scrape { gpus: vec![gpu], triton_names: true, ..Scrape::default() };
        let text = encode(scrape, Format::Text).unwrap();
        let samples: Vec<&str> =
            text.lines().filter(|line| line.contains("_gpu_") && !line.starts_with('#')).collect();
        let labels = "{index=\"1\",uuid=\"GPU-1\",name=\"H\"}";
        assert_eq!(
            samples,
            [
                format!("sconce_gpu_utilization_ratio{labels} 0.25"),
                format!("sconce_gpu_memory_used_bytes{labels} 3.0"),
                format!("sconce_gpu_memory_total_bytes{labels} 80.0"),
                "nv_gpu_utilization{gpu_uuid=\"GPU-1\"} 0.25".to_owned(),
                "nv_gpu_memory_used_bytes{gpu_uuid=\"GPU-1\"} 3.0".to_owned(),
                "nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-1\"} 80.0".to_owned(),
            ]
        );
    }
}
