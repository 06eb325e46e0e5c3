//! How rollouts stand.

use super::{Scrape, to_i64};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;

/// Rollouts at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct RolloutsSample {
    /// Those that are under way; bounded by whoever gives the sample.
    pub under_way: Vec<RolloutSample>,
    /// The bound.
    pub limit: usize,
    /// Those that ended since the server started, by how.
    pub ended: Vec<(&'static str, u64)>,
}

/// One rollout at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct RolloutSample {
    /// The model's name.
    pub model: String,
    /// Where it stands.
    pub phase: &'static str,
    /// The stage it is at, from 1.
    pub stage: usize,
    /// How many there are.
    pub stages: usize,
    /// What the candidate answered, or saw, in this stage.
    pub samples: u64,
    /// The candidate's share of requests, 0 to 100.
    pub percent: f64,
    /// Its gates by name, and what each comes to.
    pub gates: Vec<(String, &'static str)>,
    /// Whether something keeps it from going on.
    pub has_problem: bool,
}

impl Scrape {
    pub(super) fn encode_rollouts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type ValueOf = fn(&RolloutSample) -> f64;
        let gauges: [(&str, &str, ValueOf); 5] = [
            ("sconce_rollout_stage", "The stage that a rollout is at, from 1", |it| it.stage as f64),
            ("sconce_rollout_stages", "The stages of a rollout", |it| it.stages as f64),
            ("sconce_rollout_percent", "The share of requests that a rollout's candidate has", |it| {
                it.percent
            }),
            ("sconce_rollout_samples", "What a rollout's candidate answered or saw in its stage", |it| {
                it.samples as f64
            }),
            ("sconce_rollout_blocked", "Whether something keeps a rollout from going on", |it| {
                f64::from(u8::from(it.has_problem))
            }),
        ];
        for (name, help, of) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for rollout in &self.rollouts.under_way {
                family.encode_family(&[("model", rollout.model.as_str())])?.encode_gauge(&of(rollout))?;
            }
        }
        let help = "Where a rollout stands: 1 of one state";
        let mut family = encoder.encode_descriptor("sconce_rollout_state", help, None, MetricType::Gauge)?;
        for RolloutSample { model, phase, .. } in &self.rollouts.under_way {
            family.encode_family(&[("model", model.as_str()), ("state", phase)])?.encode_gauge(&1_i64)?;
        }
        let help = "What a gate of a rollout comes to: 1 of one verdict";
        let mut family = encoder.encode_descriptor("sconce_rollout_gate", help, None, MetricType::Gauge)?;
        for RolloutSample { model, gates, .. } in &self.rollouts.under_way {
            for (at, (gate, verdict)) in gates.iter().enumerate() {
                // Two gates may be about the same.
                let at = (at + 1).to_string();
                let labels = [
                    ("model", model.as_str()),
                    ("number", &at),
                    ("gate", gate.as_str()),
                    ("verdict", verdict),
                ];
                family.encode_family(&labels)?.encode_gauge(&1_i64)?;
            }
        }
        for (name, help, value) in [
            ("sconce_rollouts", "Rollouts under way", self.rollouts.under_way.len()),
            ("sconce_rollouts_limit", "The most rollouts that may be under way", self.rollouts.limit),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&to_i64(value))?;
        }
        let help = "Rollouts that ended, by how";
        let mut family =
            encoder.encode_descriptor("sconce_rollouts_ended", help, None, MetricType::Counter)?;
        for (end, count) in &self.rollouts.ended {
            family.encode_family(&[("end", *end)])?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, encode};
    use super::*;

    #[test]
    fn a_rollout_says_where_it_stands_and_what_its_gates_come_to() {
        let gates = vec![("error_rate".to_owned(), "passed"), ("latency p99".to_owned(), "pending")];
        let rollout = RolloutSample {
            model: "m".to_owned(),
            phase: "running",
            stage: 2,
            stages: 3,
            percent: 12.5,
            gates,
            ..RolloutSample::default()
        };
        let ended = vec![("promoted", 2), ("rolled_back", 0)];
        let rollouts = RolloutsSample { under_way: vec![rollout], limit: 9, ended };
        let scrape = Scrape { rollouts, ..Scrape::default() };
        let text = encode(scrape, Format::Text).unwrap();
        for line in [
            "sconce_rollout_stage{model=\"m\"} 2.0",
            "sconce_rollout_percent{model=\"m\"} 12.5",
            "sconce_rollout_state{model=\"m\",state=\"running\"} 1",
            "sconce_rollout_gate{model=\"m\",number=\"2\",gate=\"latency p99\",verdict=\"pending\"} 1",
            "sconce_rollouts 1",
            "sconce_rollouts_limit 9",
            "sconce_rollouts_ended_total{end=\"promoted\"} 2",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\nnot in\n{text}");
        }
    }
}
