//! What is counted of the variants of models that have a route.

use super::{MAX_VERSIONS, OTHER, Scrape, to_i64};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use sconce_core::DurationHistogram;
use std::collections::BTreeMap;
use std::fmt;

/// How a model's requests ended, whatever version they were for and whether it was in memory.
#[derive(Debug, Clone, Default)]
pub struct RequestsSample {
    /// The model's name.
    pub model: String,
    /// Those that were answered.
    pub answered: u64,
    /// Those that were wrong themselves.
    pub refused: u64,
    /// Those that were not answered although nothing was wrong with them.
    pub failed: u64,
}

/// One variant at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct VariantSample {
    /// The model's name.
    pub model: String,
    /// The variant's label.
    pub variant: String,
    /// Answered requests, from the front door to the answer.
    pub latency: DurationHistogram,
    /// Requests by the version that it was for them, and by the name of their status; bounded by whoever gives the sample.
    pub versions: Vec<(String, BTreeMap<&'static str, u64>)>,
}

/// One shadow at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct ShadowSample {
    /// The model's name.
    pub model: String,
    /// The shadow's label.
    pub variant: String,
    /// Answered requests that its sample chose.
    pub offered: u64,
    /// What of them was answered and compared.
    pub compared: u64,
    /// Those of them that it answered otherwise.
    pub disagreed: u64,
    /// What never ran, by the reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// What failed, by the name of the status.
    pub failed: BTreeMap<&'static str, u64>,
    /// Requests that wait.
    pub waiting: usize,
}

/// Adds up what is beyond [`MAX_VERSIONS`], by name.
pub(super) fn bound_requests(requests: &mut Vec<RequestsSample>) {
    requests.sort_by(|a, b| a.model.cmp(&b.model));
    if requests.len() <= MAX_VERSIONS {
        return;
    }
    let mut other = RequestsSample { model: OTHER.to_owned(), ..Default::default() };
    for model in requests.drain(MAX_VERSIONS..) {
        other.answered += model.answered;
        other.refused += model.refused;
        other.failed += model.failed;
    }
    requests.push(other);
}

/// Adds up what is beyond [`MAX_VERSIONS`], by name.
pub(super) fn bound(variants: &mut Vec<VariantSample>) {
    variants.sort_by(|a, b| (&a.model, &a.variant).cmp(&(&b.model, &b.variant)));
    if variants.len() <= MAX_VERSIONS {
        return;
    }
    let (mut latency, mut counts) = (DurationHistogram::default(), BTreeMap::new());
    for variant in variants.drain(MAX_VERSIONS..) {
        latency.merge(&variant.latency);
        for (status, count) in variant.versions.into_iter().flat_map(|(_, counts)| counts) {
            *counts.entry(status).or_default() += count;
        }
    }
    let other = || OTHER.to_owned();
    let versions = vec![(other(), counts)];
    variants.push(VariantSample { model: other(), variant: other(), latency, versions });
}

/// The same of shadows.
pub(super) fn bound_shadows(shadows: &mut Vec<ShadowSample>) {
    shadows.sort_by(|a, b| (&a.model, &a.variant).cmp(&(&b.model, &b.variant)));
    if shadows.len() <= MAX_VERSIONS {
        return;
    }
    let mut other = ShadowSample { model: OTHER.to_owned(), variant: OTHER.to_owned(), ..Default::default() };
    for shadow in shadows.drain(MAX_VERSIONS..) {
        other.offered += shadow.offered;
        other.compared += shadow.compared;
        other.disagreed += shadow.disagreed;
        other.waiting += shadow.waiting;
        for (sum, more) in [(&mut other.dropped, shadow.dropped), (&mut other.failed, shadow.failed)] {
            more.into_iter().for_each(|(reason, count)| *sum.entry(reason).or_default() += count);
        }
    }
    shadows.push(other);
}

impl Scrape {
    pub(super) fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests of a model by how they ended, as its callers see it: also where no version of it was in memory";
        let mut family = encoder.encode_descriptor("sconce_requests", help, None, MetricType::Counter)?;
        for RequestsSample { model, answered, refused, failed } in &self.requests {
            for (outcome, count) in [("answered", answered), ("refused", refused), ("failed", failed)] {
                let labels = [("model", model.clone()), ("outcome", outcome.to_owned())];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn encode_shadows(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type CountOf = fn(&ShadowSample) -> u64;
        type CountsOf = fn(&ShadowSample) -> &BTreeMap<&'static str, u64>;
        let labels = |it: &ShadowSample| [("model", it.model.clone()), ("variant", it.variant.clone())];
        let counters: [(&str, &str, CountOf); 3] = [
            ("sconce_shadow_offered", "Answered requests that a shadow was to see", |it| it.offered),
            ("sconce_shadow_compared", "Requests that a shadow answered and that were compared", |it| {
                it.compared
            }),
            ("sconce_shadow_disagreed", "Compared requests that a shadow answered otherwise", |it| {
                it.disagreed
            }),
        ];
        for (name, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for shadow in &self.shadows {
                family
                    .encode_family(&labels(shadow))?
                    .encode_counter::<NoLabelSet, _, u64>(&of(shadow), None)?;
            }
        }
        let counters: [(&str, &str, &str, CountsOf); 2] = [
            ("sconce_shadow_dropped", "reason", "Requests that a shadow was to see and never ran", |it| {
                &it.dropped
            }),
            ("sconce_shadow_failed", "status", "Requests that a shadow ran and failed", |it| &it.failed),
        ];
        for (name, label, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for shadow in &self.shadows {
                for (reason, count) in of(shadow) {
                    let [model, variant] = labels(shadow);
                    let labels = [model, variant, (label, (*reason).to_owned())];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
                }
            }
        }
        let help = "Requests that wait for a shadow";
        let mut family =
            encoder.encode_descriptor("sconce_shadow_queue_depth", help, None, MetricType::Gauge)?;
        for shadow in &self.shadows {
            family.encode_family(&labels(shadow))?.encode_gauge(&to_i64(shadow.waiting))?;
        }
        Ok(())
    }

    pub(super) fn encode_traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests that a route sent to a variant, by the version that it was for them, and status";
        let mut family =
            encoder.encode_descriptor("sconce_variant_requests", help, None, MetricType::Counter)?;
        for VariantSample { model, variant, versions, .. } in &self.variants {
            for (version, counts) in versions {
                for (status, count) in counts {
                    let labels = [
                        ("model", model.as_str()),
                        ("version", version),
                        ("variant", variant),
                        ("status", status),
                    ];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
                }
            }
        }
        let help = "Requests that a variant answered, from the front door to the answer";
        let name = "sconce_variant_request_duration_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for VariantSample { model, variant, latency, .. } in &self.variants {
            let buckets: Vec<(f64, u64)> = latency.buckets().collect();
            let (labels, total) =
                ([("model", model.as_str()), ("variant", variant.as_str())], latency.total());
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                total.time.as_secs_f64(),
                total.count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn variants_are_told_apart_as_far_as_the_bound_goes() {
        let sample = |number: usize| {
            let mut latency = DurationHistogram::default();
            latency.add(Duration::from_millis(1));
            let counts = [("OK", 1), ("INTERNAL", 2)].into();
            let versions = vec![("3".to_owned(), counts)];
            VariantSample { model: format!("m{number:04}"), variant: "new".into(), latency, versions }
        };
        let variants = (0..MAX_VERSIONS + 3).map(sample).collect();
        let text = super::super::encode(Scrape { variants, ..Scrape::default() }, super::super::Format::Text);
        let text = text.unwrap();
        for line in [
            "sconce_variant_requests_total{model=\"m0000\",version=\"3\",variant=\"new\",status=\"OK\"} 1",
            "sconce_variant_requests_total{model=\"m0000\",version=\"3\",variant=\"new\",status=\"INTERNAL\"} 2",
            "sconce_variant_requests_total{model=\"other\",version=\"other\",variant=\"other\",status=\"INTERNAL\"} 6",
            "sconce_variant_request_duration_seconds_count{model=\"other\",variant=\"other\"} 3",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\nnot in\n{text}");
        }
        assert!(!text.contains("m0512"));
    }
}
