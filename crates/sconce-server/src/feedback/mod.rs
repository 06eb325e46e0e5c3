//! What was predicted, and what turned out to be true of it: kept in the registry's journal, joined by the prediction's id.
//!
//! Keys are `MODEL/ID` and `MODEL/ID/METRIC`. Ids sort by time, so the predictions of a model and a time lie side by side.

mod controller;
pub(crate) mod experiments;
mod exposures;
pub(crate) mod performance;

pub(crate) use controller::{Experiments, refuse_rollout, refuse_route};
pub(crate) use exposures::{Draft, Exposures, is_classes, now_ms};

use sconce_core::{ModelName, PredictionId};
use sconce_registry::journal::KEY_BYTES;
use sconce_registry::{Journal, RegistryError, Topic, limits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Outcomes of one call.
pub(crate) const MAX_OUTCOMES: usize = 1000;
/// Metrics of one prediction.
pub(crate) const MAX_METRICS: usize = 32;
/// Bytes of a label that would have been right.
pub(crate) const MAX_LABEL_BYTES: usize = 256;
/// The metric that says what would have been right.
pub(crate) const LABEL: &str = "label";
/// Bytes of a metric's name.
pub(crate) const MAX_METRIC_BYTES: usize = sconce_traffic::experiment::MAX_METRIC_BYTES;
// The longest key has room.
const _: () = assert!(ModelName::MAX_BYTES + 1 + 36 + 1 + MAX_METRIC_BYTES <= KEY_BYTES);

/// How a prediction was made. Stored: fields may be added, none changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exposure {
    pub(crate) version: u64,
    /// The label of the route's variant, and how it was chosen; empty where no route decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) chosen: String,
    /// Who stays with the variant, as 16 hexadecimal digits of a digest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) unit: String,
    pub(crate) status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) score: Option<f64>,
}

/// What is known of a prediction by one metric. Stored like an exposure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// In the key.
    #[serde(skip)]
    pub(crate) metric: String,
    pub(crate) value: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) second: Option<f64>,
    /// When it became known, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// What came of a prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Value {
    Label(String),
    Number(f64),
    Converted(bool),
}

/// What recording outcomes led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Recorded {
    pub(crate) recorded: u64,
    pub(crate) replaced: u64,
    pub(crate) unknown: u64,
}

/// A prediction with what is known of it: one of the two at least.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Joined {
    pub(crate) id: PredictionId,
    pub(crate) exposure: Option<Exposure>,
    pub(crate) outcomes: Vec<Outcome>,
}

/// Records outcomes of predictions of `model`, in the place of earlier ones of the same metrics. They are on disk when this returns.
///
/// # Errors
/// `ResourceExhausted` for too many metrics of a prediction, or when too much waits for the disk; `Unavailable` after a write failed.
pub(crate) fn record(
    journal: &Journal,
    model: &ModelName,
    outcomes: Vec<(PredictionId, Outcome)>,
    now_ms: u64,
) -> Result<Recorded, RegistryError> {
    let mut recorded = Recorded::default();
    let mut last = None;
    for (id, outcome) in outcomes {
        let of_prediction = exposure_key(model.as_str(), id);
        let prefix = [&of_prediction[..], b"/"].concat();
        let end = [&of_prediction[..], b"0"].concat();
        let (from, to) = (Bound::Included(&prefix[..]), Bound::Excluded(&end[..]));
        let present = journal.scan(Topic::Feedback, from, to, MAX_METRICS, now_ms)?;
        let key = [&prefix[..], outcome.metric.as_bytes()].concat();
        let is_there = present.iter().any(|(present, _)| *present == key);
        if !is_there && present.len() == MAX_METRICS {
            let message = format!("prediction {id}: expected at most {MAX_METRICS} metrics");
            return Err(RegistryError::Exhausted(message));
        }
        let value = serde_json::to_vec(&outcome).map_err(damaged)?;
        last = Some(journal.append(Topic::Feedback, &key, &value, now_ms)?);
        recorded.recorded += 1;
        recorded.replaced += u64::from(is_there);
        let exposure = journal.get(Topic::Exposures, &of_prediction, now_ms)?;
        recorded.unknown += u64::from(exposure.is_none());
    }
    // What was appended before the last is on disk when that is.
    last.map_or(Ok(()), sconce_registry::Ticket::wait)?;
    Ok(recorded)
}

/// Predictions of `model` made from `from_ms` on and before `to_ms`, behind `after`, in the order they were made: `limit` at most
/// (1 to [`limits::PAGE`]), and where to go on, unless there are no more.
///
/// # Errors
/// `Internal` when an entry cannot be read.
pub(crate) fn joined(
    journal: &Journal,
    model: &ModelName,
    (from_ms, to_ms): (u64, u64),
    after: Option<PredictionId>,
    limit: usize,
    now_ms: u64,
) -> Result<(Vec<Joined>, Option<PredictionId>), RegistryError> {
    let prefix = format!("{model}/");
    let from = match after {
        // Behind all that begins with the id: its metrics follow a slash.
        Some(id) => format!("{prefix}{id}0"),
        None => prefix.clone() + &PredictionId::first_at(from_ms),
    };
    let to = prefix.clone() + &PredictionId::first_at(to_ms);
    let (from, to) = (Bound::Included(from.as_bytes()), Bound::Excluded(to.as_bytes()));
    let exposed = journal.scan(Topic::Exposures, from, to, limit, now_ms)?;
    let mut known = journal.scan(Topic::Feedback, from, to, limits::PAGE, now_ms)?;
    let id_of = |key: &[u8]| -> Result<PredictionId, RegistryError> {
        let text = key.get(prefix.len()..).and_then(|rest| rest.get(..PredictionId::TEXT_BYTES));
        let id = text.and_then(|text| std::str::from_utf8(text).ok()).and_then(PredictionId::parse);
        id.ok_or_else(|| damaged("a key without a prediction"))
    };
    let more_exposed = exposed.len() == limit;
    let more_known = known.len() == limits::PAGE;
    // Of the last prediction some outcomes may be missing. There are others before it: it has far fewer than a page.
    let mut end = None;
    if more_known && let Some((last, _)) = known.last() {
        let cut = id_of(last)?;
        while let Some((key, _)) = known.last()
            && id_of(key)? == cut
        {
            known.pop();
        }
        end = known.last().map(|(key, _)| id_of(key)).transpose()?;
    }
    if more_exposed && let Some((last, _)) = exposed.last() {
        let last = id_of(last)?;
        end = Some(end.map_or(last, |end: PredictionId| end.min(last)));
    }
    let is_in = |id: PredictionId| end.is_none_or(|end| id <= end);
    let mut rows = BTreeMap::<PredictionId, Joined>::new();
    let row = |id| Joined { id, exposure: None, outcomes: Vec::new() };
    for (key, value) in &exposed {
        let id = id_of(key)?;
        if is_in(id) {
            let exposure = serde_json::from_slice(value).map_err(damaged)?;
            rows.entry(id).or_insert_with(|| row(id)).exposure = Some(exposure);
        }
    }
    for (key, value) in &known {
        let id = id_of(key)?;
        if is_in(id) {
            let mut outcome: Outcome = serde_json::from_slice(value).map_err(damaged)?;
            let metric = &key[(prefix.len() + PredictionId::TEXT_BYTES + 1).min(key.len())..];
            outcome.metric = String::from_utf8_lossy(metric).into_owned();
            rows.entry(id).or_insert_with(|| row(id)).outcomes.push(outcome);
        }
    }
    let mut rows: Vec<Joined> = rows.into_values().collect();
    let cut = rows.len() > limit;
    rows.truncate(limit);
    let next = if cut { rows.last().map(|row| row.id) } else { end };
    Ok((rows, next))
}

fn damaged(what: impl std::fmt::Display) -> RegistryError {
    RegistryError::Damaged(format!("journal: {what}"))
}

fn exposure_key(model: &str, id: PredictionId) -> Vec<u8> {
    format!("{model}/{id}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_registry::Registry;

    fn outcome(metric: &str, value: f64) -> Outcome {
        Outcome { metric: metric.to_owned(), value: Value::Number(value), second: None, at_ms: 1 }
    }

    fn exposure(version: u64) -> Exposure {
        Exposure {
            version,
            variant: String::new(),
            chosen: String::new(),
            unit: String::new(),
            status: "OK".to_owned(),
            label: None,
            score: Some(0.5),
        }
    }

    #[test]
    fn predictions_and_outcomes_are_joined_page_by_page_and_the_last_word_counts() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path()).unwrap();
        let journal = registry.journal();
        let model = ModelName::new("m").unwrap();
        let now = now_ms();
        let ids: Vec<PredictionId> = (0..90).map(|_| PredictionId::new()).collect();
        // Two of three are noted; of two of three something becomes known, of some of them by many metrics.
        let mut expected = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let mut row = Joined { id: *id, exposure: None, outcomes: Vec::new() };
            if at % 3 != 0 {
                let value = serde_json::to_vec(&exposure(at as u64)).unwrap();
                let _ = journal.append(Topic::Exposures, &exposure_key("m", *id), &value, now).unwrap();
                row.exposure = Some(exposure(at as u64));
            }
            if at % 3 != 1 {
                let metrics = if at % 2 == 0 { MAX_METRICS } else { 1 };
                row.outcomes = (0..metrics).map(|n| outcome(&format!("metric{n:02}"), n as f64)).collect();
                let all = row.outcomes.iter().map(|outcome| (*id, outcome.clone())).collect();
                let recorded = record(journal, &model, all, now).unwrap();
                let unknown = if at % 3 == 0 { metrics as u64 } else { 0 };
                assert_eq!(recorded, Recorded { recorded: metrics as u64, replaced: 0, unknown });
            }
            expected.push(row);
        }
        // Another model, which begins like it.
        let other = ModelName::new("m0").unwrap();
        record(journal, &other, vec![(ids[0], outcome("x", 1.0))], now).unwrap();
        for limit in [1, 7, 1000] {
            let (mut all, mut after) = (Vec::new(), None);
            loop {
                let (rows, next) = joined(journal, &model, (0, u64::MAX), after, limit, now).unwrap();
                assert!(rows.len() <= limit);
                all.extend(rows);
                after = next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(all, expected, "{limit}");
        }
        let of = |from, to| joined(journal, &model, (from, to), None, 1000, now).unwrap().0.len();
        assert_eq!((of(now + 60_000, u64::MAX), of(0, ids[0].at_ms())), (0, 0));
        assert_eq!(of(ids[0].at_ms(), ids[89].at_ms() + 1), 90);
        // Another word on it takes the place of the first; one metric more than there may be is refused.
        let again = vec![(ids[0], outcome("metric00", 7.0))];
        assert_eq!(record(journal, &model, again, now).unwrap().replaced, 1);
        let (rows, _) = joined(journal, &model, (0, u64::MAX), None, 1, now).unwrap();
        assert_eq!((rows[0].outcomes.len(), &rows[0].outcomes[0]), (MAX_METRICS, &outcome("metric00", 7.0)));
        assert!(record(journal, &model, vec![(ids[0], outcome("one more", 1.0))], now).is_err());
    }
}
