//! What a version must meet before an alias may mean it. Nothing here reads or writes: the server decides with it.

use crate::{SignatureRecord, TensorRecord, VersionRecord};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Gates of a model. The default asks only for a compatible signature.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "StoredGates")]
pub struct Gates {
    /// Metrics that must be at least this.
    pub min_metrics: BTreeMap<String, f64>,
    /// Metrics that must be at most this.
    pub max_metrics: BTreeMap<String, f64>,
    /// Metrics that must not be much worse than those of the version the alias means now.
    pub not_worse: BTreeMap<String, NotWorse>,
    /// Although the version takes or gives something else than the alias's. Otherwise every request that that one takes must
    /// be taken, and be answered alike in name and shape.
    pub any_signature: bool,
    /// Requests that must be answered before the alias moves. The server sends them; [`check`] does not.
    pub smoke: Vec<SmokeSample>,
}

/// How much worse a metric may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredNotWorse")]
pub struct NotWorse {
    /// The largest loss that is accepted, in the metric's unit; 0 or more.
    pub by_at_most: f64,
    /// Whether less is better, as of an error; of accuracy, more is.
    pub lower_is_better: bool,
}

/// A request to try. What stands in it is the server's to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmokeSample {
    /// JSON.
    pub request: String,
    /// How long the answer may take.
    pub max_latency_ms: u64,
}

/// What became of one gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which, such as `auc at least 0.9`.
    pub gate: String,
    /// Whether it is met.
    pub passed: bool,
    /// What was found.
    pub detail: String,
}

/// Gates as they are stored, also under the names they had first.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredGates {
    min_metrics: BTreeMap<String, f64>,
    max_metrics: BTreeMap<String, f64>,
    not_worse: BTreeMap<String, NotWorse>,
    any_signature: bool,
    require_compatible_signature: Option<bool>,
    smoke: Vec<SmokeSample>,
}

#[derive(Deserialize)]
struct StoredNotWorse {
    by_at_most: f64,
    #[serde(default)]
    lower_is_better: bool,
    higher_is_better: Option<bool>,
}

impl From<StoredGates> for Gates {
    fn from(stored: StoredGates) -> Self {
        Self {
            min_metrics: stored.min_metrics,
            max_metrics: stored.max_metrics,
            not_worse: stored.not_worse,
            any_signature: stored.require_compatible_signature.map_or(stored.any_signature, |asked| !asked),
            smoke: stored.smoke,
        }
    }
}

impl From<StoredNotWorse> for NotWorse {
    fn from(stored: StoredNotWorse) -> Self {
        let lower_is_better = stored.higher_is_better.map_or(stored.lower_is_better, |higher| !higher);
        Self { by_at_most: stored.by_at_most, lower_is_better }
    }
}

/// Holds `candidate` against `gates`, and against `champion`, which the alias means now. One verdict a gate; a metric that
/// the candidate lacks fails its gate, and so does one that the champion lacks, for nothing shows that it is not worse.
/// Without a champion the gates that compare are met.
pub fn check(gates: &Gates, candidate: &VersionRecord, champion: Option<&VersionRecord>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let metric = |name: &str| candidate.metrics.get(name).copied();
    for (name, bound) in &gates.min_metrics {
        let gate = format!("{name} at least {bound}");
        verdicts.push(verdict(gate, metric(name), name, |value| value >= *bound));
    }
    for (name, bound) in &gates.max_metrics {
        let gate = format!("{name} at most {bound}");
        verdicts.push(verdict(gate, metric(name), name, |value| value <= *bound));
    }
    let Some(champion) = champion else { return verdicts };
    for (name, rule) in &gates.not_worse {
        let gate =
            format!("{name} not worse than version {} by more than {}", champion.version, rule.by_at_most);
        let Some(old) = champion.metrics.get(name).copied() else {
            let detail = format!("version {} has no metric {name}", champion.version);
            verdicts.push(Verdict { gate, passed: false, detail });
            continue;
        };
        let loss = |value: f64| if rule.lower_is_better { value - old } else { old - value };
        let mut compared = verdict(gate, metric(name), name, |value| loss(value) <= rule.by_at_most);
        compared.detail.push_str(&format!(", version {} has {old}", champion.version));
        verdicts.push(compared);
    }
    if !gates.any_signature {
        let result = compatible(&champion.signature, &candidate.signature);
        verdicts.push(Verdict {
            gate: format!("signature compatible with version {}", champion.version),
            passed: result.is_ok(),
            detail: result.err().unwrap_or_else(|| "it is".to_owned()),
        });
    }
    verdicts
}

/// Whether whoever speaks to `old` can speak to `new`: every form of input that `old` takes, `new` takes, and every output
/// of `old` is there with the same datatype and shape.
///
/// # Errors
/// The first thing that differs, for people.
pub fn compatible(old: &SignatureRecord, new: &SignatureRecord) -> Result<(), String> {
    let forms = |signature: &SignatureRecord| signature.inputs.iter().map(|tensor| tensor.form).max();
    for form in 0..=forms(old).unwrap_or(0) {
        let wanted: Vec<&TensorRecord> = old.inputs.iter().filter(|tensor| tensor.form == form).collect();
        let Some(first) = wanted.first() else { continue };
        let mut obstacle = format!("input `{}`: no longer taken", first.name);
        let taken = (0..=forms(new).unwrap_or(0)).any(|candidate| {
            let offered: Vec<&TensorRecord> =
                new.inputs.iter().filter(|tensor| tensor.form == candidate).collect();
            // The message is about the form that is meant: the one with the same first input.
            let named = offered.iter().any(|tensor| tensor.name == first.name);
            match takes(&wanted, &offered) {
                Ok(()) => !offered.is_empty(),
                Err(reason) => {
                    if named {
                        obstacle = reason;
                    }
                    false
                }
            }
        });
        if !taken {
            return Err(obstacle);
        }
    }
    for output in &old.outputs {
        let Some(now) = new.outputs.iter().find(|tensor| tensor.name == output.name) else {
            return Err(format!("output `{}`: no longer given", output.name));
        };
        same_type("output", output, now)?;
        if output.shape != now.shape {
            return Err(format!("output `{}`: was {:?}, is {:?}", output.name, output.shape, now.shape));
        }
    }
    if new.max_batch_size < old.max_batch_size {
        return Err(format!(
            "rows of a request: were up to {}, are {}",
            old.max_batch_size, new.max_batch_size
        ));
    }
    Ok(())
}

/// Whether a request of the form `old` fits the form `new`.
fn takes(old: &[&TensorRecord], new: &[&TensorRecord]) -> Result<(), String> {
    for input in old {
        let Some(now) = new.iter().find(|tensor| tensor.name == input.name) else {
            return Err(format!("input `{}`: no longer taken", input.name));
        };
        same_type("input", input, now)?;
        let fits = input.shape.len() == now.shape.len()
            && input.shape.iter().zip(&now.shape).all(|(was, is)| *is == -1 || was == is);
        if !fits {
            return Err(format!("input `{}`: was {:?}, is {:?}", input.name, input.shape, now.shape));
        }
        if input.optional && !now.optional {
            return Err(format!("input `{}`: could be left out, now it cannot", input.name));
        }
    }
    let added = new.iter().find(|tensor| !tensor.optional && !old.iter().any(|was| was.name == tensor.name));
    added.map_or(Ok(()), |tensor| Err(format!("input `{}`: required, and was not there before", tensor.name)))
}

fn same_type(role: &str, old: &TensorRecord, new: &TensorRecord) -> Result<(), String> {
    if old.datatype == new.datatype {
        return Ok(());
    }
    Err(format!("{role} `{}`: was {}, is {}", old.name, old.datatype, new.datatype))
}

fn verdict(gate: String, value: Option<f64>, name: &str, met: impl Fn(f64) -> bool) -> Verdict {
    match value {
        Some(value) => Verdict { gate, passed: met(value), detail: format!("it has {value}") },
        None => Verdict { gate, passed: false, detail: format!("it has no metric {name}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lineage, VersionState, Wanted};
    use sconce_core::{ModelName, ModelVersion};

    fn tensor(name: &str, datatype: &str, shape: &[i64], form: u32) -> TensorRecord {
        let (name, datatype) = (name.to_owned(), datatype.to_owned());
        TensorRecord { name, datatype, shape: shape.to_vec(), optional: false, form }
    }

    fn signature() -> SignatureRecord {
        SignatureRecord {
            inputs: vec![tensor("text", "BYTES", &[-1, 1], 0), tensor("ids", "INT64", &[-1, 8], 1)],
            outputs: vec![tensor("score", "FP32", &[-1, 2], 0)],
            max_batch_size: 8,
        }
    }

    fn version(number: u64, metrics: &[(&str, f64)]) -> VersionRecord {
        VersionRecord {
            model: ModelName::new("m").unwrap(),
            version: ModelVersion::new(number).unwrap(),
            label: None,
            state: VersionState::Registered,
            wanted: Wanted::Auto,
            created_at_ms: 0,
            created_by: "me".into(),
            description: String::new(),
            tags: BTreeMap::new(),
            metrics: metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            lineage: Lineage::default(),
            signature: signature(),
            files: Vec::new(),
            memory_bytes: None,
            monitors: BTreeMap::new(),
        }
    }

    #[test]
    fn metrics_are_held_against_their_bounds_and_against_the_champion() {
        let rule = |by_at_most, lower_is_better| NotWorse { by_at_most, lower_is_better };
        let gates = Gates {
            min_metrics: [("auc".to_owned(), 0.9)].into(),
            max_metrics: [("rmse".to_owned(), 2.0)].into(),
            not_worse: [("auc".to_owned(), rule(0.01, false)), ("rmse".to_owned(), rule(0.5, true))].into(),
            ..Gates::default()
        };
        let champion = version(1, &[("auc", 0.95), ("rmse", 1.0)]);
        let passed = |candidate: &VersionRecord, champion: Option<&VersionRecord>| -> Vec<bool> {
            check(&gates, candidate, champion).iter().map(|verdict| verdict.passed).collect()
        };
        let good = version(2, &[("auc", 0.945), ("rmse", 1.5)]);
        assert_eq!(passed(&good, Some(&champion)), [true; 5]);
        assert_eq!(passed(&good, None), [true; 2]);
        let worse = version(2, &[("auc", 0.92), ("rmse", 1.6)]);
        assert_eq!(passed(&worse, Some(&champion)), [true, true, false, false, true]);
        let bad = version(2, &[("auc", 0.8), ("rmse", 2.1)]);
        assert_eq!(passed(&bad, Some(&champion)), [false, false, false, false, true]);
        assert_eq!(passed(&version(2, &[]), Some(&champion)), [false, false, false, false, true]);
        assert_eq!(passed(&good, Some(&version(1, &[]))), [true, true, false, false, true]);
    }

    #[test]
    fn gates_are_read_under_the_names_they_had_first() {
        let gates = |lower_is_better, any_signature| Gates {
            not_worse: [("auc".to_owned(), NotWorse { by_at_most: 0.5, lower_is_better })].into(),
            any_signature,
            ..Gates::default()
        };
        for flag in [true, false] {
            let first = format!(
                r#"{{"not_worse": {{"auc": {{"by_at_most": 0.5, "higher_is_better": {flag}}}}}, "require_compatible_signature": {flag}}}"#
            );
            assert_eq!(serde_json::from_str::<Gates>(&first).unwrap(), gates(!flag, !flag));
            let now = serde_json::to_string(&gates(flag, flag)).unwrap();
            assert_eq!(serde_json::from_str::<Gates>(&now).unwrap(), gates(flag, flag), "{now}");
        }
        assert_eq!(serde_json::from_str::<Gates>("{}").unwrap(), Gates::default());
    }

    #[test]
    fn a_signature_is_compatible_when_old_requests_and_readers_still_work() {
        let check = |change: &dyn Fn(&mut SignatureRecord), expected: Result<(), &str>| {
            let mut new = signature();
            change(&mut new);
            assert_eq!(compatible(&signature(), &new), expected.map_err(str::to_owned));
        };
        check(&|_| {}, Ok(()));
        check(&|new| new.inputs.push(tensor("image", "UINT8", &[-1], 2)), Ok(()));
        check(&|new| new.inputs[1].shape = vec![-1, -1], Ok(()));
        check(&|new| new.outputs.push(tensor("more", "FP32", &[-1], 0)), Ok(()));
        // The same forms in another order.
        check(&|new| (new.inputs[0].form, new.inputs[1].form) = (1, 0), Ok(()));
        check(&|new| drop(new.inputs.remove(1)), Err("input `ids`: no longer taken"));
        check(&|new| new.inputs[1].shape = vec![-1, 4], Err("input `ids`: was [-1, 8], is [-1, 4]"));
        check(&|new| new.inputs[1].datatype = "INT32".into(), Err("input `ids`: was INT64, is INT32"));
        let added = |new: &mut SignatureRecord| new.inputs.push(tensor("mask", "INT64", &[-1, 8], 1));
        check(&added, Err("input `mask`: required, and was not there before"));
        check(&|new| new.outputs.clear(), Err("output `score`: no longer given"));
        check(&|new| new.outputs[0].shape = vec![-1, 3], Err("output `score`: was [-1, 2], is [-1, 3]"));
        check(&|new| new.max_batch_size = 4, Err("rows of a request: were up to 8, are 4"));
    }
}
