//! What models leave to people, and what of that waits.

use super::{Scrape, i64_of, to_i64};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::collections::BTreeMap;
use std::fmt;

/// The queue of what people decide, at the time of a scrape; how many models it tells apart is bounded by whoever gives the sample.
#[derive(Debug, Clone, Default)]
pub struct ReviewSample {
    /// What became of answers, by version, of versions that leave something to people.
    pub decisions: Vec<ReviewDecisions>,
    /// How many predictions of each model wait.
    pub depths: Vec<(String, usize)>,
    /// How long the oldest of each has waited, in seconds.
    pub oldest: Vec<(String, f64)>,
    /// The bound of each.
    pub max_items: usize,
    /// Bytes that wait, and their bound.
    pub bytes: (u64, u64),
    /// Predictions since the start by what became of them.
    pub ended: Vec<(&'static str, u64)>,
}

/// What became of a version's answers since the start.
#[derive(Debug, Clone, Default)]
pub struct ReviewDecisions {
    /// The model's name.
    pub model: String,
    /// The version.
    pub version: String,
    /// Those that went out.
    pub answered: u64,
    /// Those that went out as suggestions.
    pub suggested: u64,
    /// Those that people decide in their place, by the reason.
    pub deferred: BTreeMap<&'static str, u64>,
}

impl Scrape {
    pub(super) fn encode_reviews(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(reviews) = &self.reviews else { return Ok(()) };
        let help = "Answers of versions that leave something to people, by what became of them";
        let mut family =
            encoder.encode_descriptor("sconce_review_decisions", help, None, MetricType::Counter)?;
        for it in &reviews.decisions {
            let deferred = it.deferred.values().sum();
            for (decision, count) in
                [("answered", it.answered), ("suggested", it.suggested), ("deferred", deferred)]
            {
                let labels = [("model", &*it.model), ("version", &*it.version), ("decision", decision)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let help = "Answers that were left to people, by the reason";
        let mut family =
            encoder.encode_descriptor("sconce_review_deferred", help, None, MetricType::Counter)?;
        for it in &reviews.decisions {
            for (cause, count) in &it.deferred {
                let labels = [("model", &*it.model), ("version", &*it.version), ("cause", *cause)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        let help = "Predictions that were answered or given back by people, expired, or found no place, since the start";
        let mut family = encoder.encode_descriptor("sconce_reviews", help, None, MetricType::Counter)?;
        for (result, count) in &reviews.ended {
            let labels = [("result", *result)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
        let help = "Predictions that wait for people";
        let mut family =
            encoder.encode_descriptor("sconce_review_queue_depth", help, None, MetricType::Gauge)?;
        for (model, depth) in &reviews.depths {
            family.encode_family(&[("model", &**model)])?.encode_gauge(&to_i64(*depth))?;
        }
        let help = "How long the prediction that has waited longest waits for people";
        let mut family =
            encoder.encode_descriptor("sconce_review_oldest_seconds", help, None, MetricType::Gauge)?;
        for (model, seconds) in &reviews.oldest {
            family.encode_family(&[("model", &**model)])?.encode_gauge(seconds)?;
        }
        let (bytes, most) = reviews.bytes;
        for (name, help, value) in [
            (
                "sconce_review_queue_depth_limit",
                "The bound of sconce_review_queue_depth",
                to_i64(reviews.max_items),
            ),
            ("sconce_review_queue_bytes", "Bytes of all predictions that wait for people", i64_of(bytes)),
            ("sconce_review_queue_bytes_limit", "The bound of sconce_review_queue_bytes", i64_of(most)),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, encode};
    use super::*;

    #[test]
    fn it_is_told_what_models_leave_to_people_and_what_waits() {
        let decisions = ReviewDecisions {
            model: "m".to_owned(),
            version: "2".to_owned(),
            answered: 7,
            deferred: [("confidence", 2), ("margin", 1)].into(),
            ..ReviewDecisions::default()
        };
        let reviews = ReviewSample {
            decisions: vec![decisions],
            depths: vec![("m".to_owned(), 3)],
            oldest: vec![("m".to_owned(), 61.5)],
            max_items: 9,
            bytes: (40, 50),
            ended: vec![("answered", 5)],
        };
        let text = encode(Scrape { reviews: Some(reviews), ..Scrape::default() }, Format::Text).unwrap();
        for line in [
            "sconce_review_decisions_total{model=\"m\",version=\"2\",decision=\"deferred\"} 3",
            "sconce_review_decisions_total{model=\"m\",version=\"2\",decision=\"answered\"} 7",
            "sconce_review_deferred_total{model=\"m\",version=\"2\",cause=\"margin\"} 1",
            "sconce_reviews_total{result=\"answered\"} 5",
            "sconce_review_queue_depth{model=\"m\"} 3",
            "sconce_review_oldest_seconds{model=\"m\"} 61.5",
            "sconce_review_queue_depth_limit 9",
            "sconce_review_queue_bytes 40",
            "sconce_review_queue_bytes_limit 50",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\nnot in\n{text}");
        }
    }
}
