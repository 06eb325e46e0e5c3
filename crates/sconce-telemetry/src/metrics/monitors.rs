//! How watched versions stand against their references.

use super::{Scrape, to_i64};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;

/// Features of a version that have a metric of their own: those that changed most.
const FEATURES: usize = 32;

/// One watched version at the time of a scrape; how many there are is bounded by whoever gives the sample.
#[derive(Debug, Clone, Default)]
pub struct MonitorSample {
    /// The model's name.
    pub model: String,
    /// The version.
    pub version: String,
    /// How it stands.
    pub state: &'static str,
    /// Rows that were taken.
    pub rows: u64,
    /// How far each feature is from the reference.
    pub psi: Vec<(String, f64)>,
}

/// What labels say of a version at the time of a scrape: of the latest cohort whose labels had time to come.
#[derive(Debug, Clone, Default)]
pub struct PerformanceSample {
    /// The model's name.
    pub model: String,
    /// The version.
    pub version: String,
    /// How it stands.
    pub state: &'static str,
    /// Labels of the cohort.
    pub labelled: Option<u64>,
    /// The share of its predictions that have one.
    pub coverage: Option<f64>,
    /// The accuracy, and what it is held against.
    pub accuracy: Option<(f64, Option<f64>)>,
    /// The mean absolute error, likewise.
    pub mean_absolute_error: Option<(f64, Option<f64>)>,
}

impl Scrape {
    pub(super) fn encode_performances(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = |it: &PerformanceSample| [("model", it.model.clone()), ("version", it.version.clone())];
        let help = "How a version does by its labels: 1 of one state";
        let mut family =
            encoder.encode_descriptor("sconce_performance_state", help, None, MetricType::Gauge)?;
        for sample in &self.performances {
            let [model, version] = labels(sample);
            let state = ("state", sample.state.to_owned());
            family.encode_family(&[model, version, state])?.encode_gauge(&1_i64)?;
        }
        type Value = fn(&PerformanceSample) -> Option<f64>;
        let gauges: [(&str, &str, Value); 6] = [
            ("sconce_accuracy_ratio", "Decisions of the latest mature cohort that were right", |it| {
                it.accuracy.map(|(now, _)| now)
            }),
            ("sconce_accuracy_baseline_ratio", "What sconce_accuracy_ratio is held against", |it| {
                it.accuracy.and_then(|(_, then)| then)
            }),
            ("sconce_mean_absolute_error", "How far numbers of the latest mature cohort were off", |it| {
                it.mean_absolute_error.map(|(now, _)| now)
            }),
            (
                "sconce_mean_absolute_error_baseline",
                "What sconce_mean_absolute_error is held against",
                |it| it.mean_absolute_error.and_then(|(_, then)| then),
            ),
            (
                "sconce_label_coverage_ratio",
                "Noted predictions of the latest mature cohort with a label",
                |it| it.coverage,
            ),
            ("sconce_cohort_labels", "Labels of the latest mature cohort", |it| {
                it.labelled.map(|labelled| labelled as f64)
            }),
        ];
        for (name, help, value) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for sample in &self.performances {
                if let Some(value) = value(sample).filter(|value| value.is_finite()) {
                    family.encode_family(&labels(sample))?.encode_gauge(&value)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn encode_monitors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = |it: &MonitorSample| [("model", it.model.clone()), ("version", it.version.clone())];
        let help = "How a watched version stands against its reference: 1 of one state";
        let mut family = encoder.encode_descriptor("sconce_drift_state", help, None, MetricType::Gauge)?;
        for monitor in &self.monitors {
            let [model, version] = labels(monitor);
            let state = ("state", monitor.state.to_owned());
            family.encode_family(&[model, version, state])?.encode_gauge(&1_i64)?;
        }
        let help =
            "How far a feature is from its reference, as a stability index; the largest of each version";
        let mut family = encoder.encode_descriptor("sconce_drift_psi", help, None, MetricType::Gauge)?;
        for monitor in &self.monitors {
            let mut psi: Vec<_> = monitor.psi.iter().filter(|(_, psi)| psi.is_finite()).collect();
            psi.sort_by(|a, b| b.1.total_cmp(&a.1));
            for (feature, psi) in psi.into_iter().take(FEATURES) {
                let [model, version] = labels(monitor);
                family.encode_family(&[model, version, ("feature", feature.clone())])?.encode_gauge(psi)?;
            }
        }
        let help = "Rows that were held against a reference, or learned from";
        let mut family = encoder.encode_descriptor("sconce_monitor_rows", help, None, MetricType::Counter)?;
        for monitor in &self.monitors {
            let labels = labels(monitor);
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&monitor.rows, None)?;
        }
        let help = "Requests that monitors were to see, by what became of that";
        let mut requests =
            encoder.encode_descriptor("sconce_monitor_requests", help, None, MetricType::Counter)?;
        if let Some(sink) = &self.monitors_sink {
            for (status, count) in
                [("taken", sink.written), ("dropped", sink.dropped), ("failed", sink.failed)]
            {
                let labels = [("status", status)];
                requests.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let (waiting, bound) = self.monitors_sink.as_ref().map_or((0, 0), |sink| sink.queue);
        for (name, help, value) in [
            ("sconce_monitor_queue_depth", "Requests that wait to be held against references", waiting),
            ("sconce_monitor_queue_depth_limit", "The bound of sconce_monitor_queue_depth", bound),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&to_i64(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, encode};
    use super::*;

    #[test]
    fn a_watched_version_says_how_it_stands_and_what_changed_most() {
        let psi = (0..40).map(|at| (format!("f{at}"), f64::from(at))).chain([("n".to_owned(), f64::NAN)]);
        let monitor = MonitorSample {
            model: "m".to_owned(),
            version: "2".to_owned(),
            state: "drifted",
            rows: 7,
            psi: psi.collect(),
        };
        let performance = PerformanceSample {
            model: "m".to_owned(),
            version: "2".to_owned(),
            state: "degraded",
            labelled: Some(200),
            coverage: Some(0.5),
            accuracy: Some((0.75, Some(0.875))),
            mean_absolute_error: None,
        };
        let scrape = Scrape { monitors: vec![monitor], performances: vec![performance], ..Scrape::default() };
        let text = encode(scrape, Format::Text).unwrap();
        for line in [
            "sconce_drift_state{model=\"m\",version=\"2\",state=\"drifted\"} 1",
            "sconce_drift_psi{model=\"m\",version=\"2\",feature=\"f39\"} 39.0",
            "sconce_monitor_rows_total{model=\"m\",version=\"2\"} 7",
            "sconce_performance_state{model=\"m\",version=\"2\",state=\"degraded\"} 1",
            "sconce_accuracy_ratio{model=\"m\",version=\"2\"} 0.75",
            "sconce_accuracy_baseline_ratio{model=\"m\",version=\"2\"} 0.875",
            "sconce_label_coverage_ratio{model=\"m\",version=\"2\"} 0.5",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\nnot in\n{text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("sconce_drift_psi{")).count(), FEATURES);
    }
}
