//! From a request and its answer to what becomes of it, and to what people are shown of it.

use crate::content::{Content, Kept};
use crate::feedback::is_classes;
use crate::models::Served;
use crate::monitors::Monitors;
use sconce_core::{Automation, DataType, Error, ErrorCode, InferOutput, Result, Signature, Tensor, json};
use sconce_registry::journal::VALUE_BYTES;
use sconce_traffic::defer::{self, Confidence, Disposition, Signals};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The output that says how unlike a request is what the model knows: the largest of its numbers counts.
const OUTLIER_OUTPUT: &str = "outlier_score";
/// As text a tensor takes at least as much as it has bytes of text, or half as much as it has of numbers.
const MAX_TENSOR_BYTES: usize = 2 * VALUE_BYTES;

/// A request whose answer may be for people.
pub(crate) struct Draft {
    inputs: Vec<Kept>,
}

/// A prediction that waits for people. Stored: fields may be added, none changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) version: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
    pub(crate) disposition: Disposition,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) inputs: Vec<Shown>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) outputs: Vec<Shown>,
}

/// What is kept of a tensor, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) name: String,
    pub(crate) datatype: String,
    pub(crate) shape: Vec<usize>,
    /// Its elements, row by row; `None` where they are more than is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Vec<Value>>,
}

/// Whether what a version leaves to people can be left to them here.
///
/// # Errors
/// `FailedPrecondition` without a registry, and for rules about outputs that it does not have.
pub(crate) fn check(served: &Served, has_registry: bool) -> Result<()> {
    let (spec, signature) = (&served.settings.review, served.signature());
    let refuse = |message: String| Err(Error::new(ErrorCode::FailedPrecondition, message));
    if spec.automation == Automation::Full {
        return Ok(());
    }
    if !has_registry {
        return refuse(
            "`review` leaves predictions to people, which takes a server with a data folder".to_owned(),
        );
    }
    let asks_how_sure = spec.min_confidence.is_some() || spec.min_margin.is_some();
    if asks_how_sure && place_of_classes(signature).is_none() {
        return refuse(
            "`review`: min_confidence and min_margin take an FP32 output with classes, and it has none"
                .to_owned(),
        );
    }
    if spec.max_outlier_score.is_some() && place_of_outliers(signature).is_none() {
        return refuse(format!(
            "`review`: max_outlier_score takes an FP32 output `{OUTLIER_OUTPUT}`, and it has none"
        ));
    }
    Ok(())
}

impl Draft {
    /// Of a request to a version that leaves something to people; else `None`.
    pub(crate) fn new(content: &Content, served: &Served, tensors: &[(String, Tensor)]) -> Option<Self> {
        let settings = &served.settings;
        (settings.review.automation != Automation::Full).then(|| {
            let inputs = content.inputs(served.name.as_str(), &settings.data_policy, tensors);
            Self { inputs }
        })
    }

    /// What becomes of its answer.
    pub(crate) fn decide(
        &self,
        monitors: Option<&Monitors>,
        served: &Served,
        output: &InferOutput,
    ) -> Disposition {
        let (spec, signature) = (&served.settings.review, served.signature());
        let watched = monitors
            .filter(|_| !spec.drift_states.is_empty())
            .and_then(|monitors| monitors.get(&served.name, served.version).ok());
        let signals = Signals {
            confidence: confidence(signature, &output.tensors),
            outlier_score: outlier_score(signature, &output.tensors),
            drift_state: watched.map(|watched| watched.glance().standing.as_str()),
        };
        defer::decide(spec, &signals)
    }

    /// What waits for people: of what the model said nothing where they are not to see it.
    pub(crate) fn item(
        self,
        content: &Content,
        served: &Served,
        variant: Option<&str>,
        disposition: Disposition,
        output: &InferOutput,
    ) -> Item {
        let (settings, signature) = (&served.settings, served.signature());
        let outputs = match settings.review.automation {
            Automation::Shadow => Vec::new(),
            _ => content.outputs(served.name.as_str(), &settings.data_policy, signature, &output.tensors),
        };
        Item {
            version: served.version.get(),
            variant: variant.unwrap_or_default().to_owned(),
            disposition,
            inputs: self.inputs.iter().map(Shown::new).collect(),
            outputs: outputs.iter().map(Shown::new).collect(),
        }
    }
}

impl Item {
    /// As it is stored. The largest tensors are kept without their elements where all would be too much for an entry.
    ///
    /// # Errors
    /// `ResourceExhausted` where even their names and shapes are.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let unwritable =
            |error| Error::internal("a prediction cannot be written for people to see").with_source(error);
        let mut item = self.clone();
        loop {
            let value = serde_json::to_vec(&item).map_err(unwritable)?;
            if value.len() <= VALUE_BYTES {
                return Ok(value);
            }
            let shown = item.inputs.iter_mut().chain(&mut item.outputs).filter(|shown| shown.data.is_some());
            match shown.max_by_key(|shown| shown.data.as_ref().map_or(0, |data| text_bytes(data))) {
                Some(largest) => largest.data = None,
                None => {
                    let message = format!(
                        "a prediction of {} bytes without content is too large to review",
                        value.len()
                    );
                    return Err(Error::new(ErrorCode::ResourceExhausted, message));
                }
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Internal` for anything else.
    pub(super) fn decode(stored: &[u8]) -> Result<Self> {
        let damaged = |error| Error::internal("journal: a review cannot be read").with_source(error);
        serde_json::from_slice(stored).map_err(damaged)
    }
}

impl Shown {
    fn new(kept: &Kept) -> Self {
        let fits = kept.tensor().filter(|tensor| tensor.data().len() <= MAX_TENSOR_BYTES);
        Self {
            name: kept.name().to_owned(),
            datatype: kept.datatype().name().to_owned(),
            shape: kept.shape().to_vec(),
            data: fits.map(json::from_tensor),
        }
    }
}

fn text_bytes(data: &[Value]) -> usize {
    let one = |value: &Value| value.as_str().map_or(8, str::len);
    data.iter().map(one).sum()
}

fn place_of_classes(signature: &Signature) -> Option<usize> {
    let is_usable = |spec: &sconce_core::TensorSpec| spec.datatype == DataType::Fp32 && is_classes(spec);
    signature.outputs.iter().position(is_usable)
}

fn place_of_outliers(signature: &Signature) -> Option<usize> {
    let is_it =
        |spec: &sconce_core::TensorSpec| spec.datatype == DataType::Fp32 && spec.name == OUTLIER_OUTPUT;
    signature.outputs.iter().position(is_it)
}

fn confidence(signature: &Signature, outputs: &[Tensor]) -> Option<Confidence> {
    let tensor = outputs.get(place_of_classes(signature)?)?;
    let width = tensor.shape().iter().skip(1).product();
    let probabilities: Vec<f64> = tensor.f32_values().map(f64::from).collect();
    Confidence::of_rows(&probabilities, width)
}

/// Of the row that is the least like what the model knows. NaN where one is.
fn outlier_score(signature: &Signature, outputs: &[Tensor]) -> Option<f64> {
    let tensor = outputs.get(place_of_outliers(signature)?)?;
    let largest = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    tensor.f32_values().map(f64::from).reduce(largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_core::{DeferSpec, TensorSpec};
    use sconce_traffic::defer::Cause;

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(DataType::Fp32, shape.to_vec(), data.into()).unwrap()
    }

    #[test]
    fn an_answer_is_judged_by_its_least_sure_and_least_known_row() {
        let output = |name: &str| TensorSpec::new(name, DataType::Fp32, &[None, None]);
        let outputs = vec![output(OUTLIER_OUTPUT), output("probabilities")];
        let signature = Signature { inputs: Vec::new(), outputs, max_batch_size: 8 };
        let tensors = [tensor(&[2, 1], &[0.5, 3.0]), tensor(&[2, 2], &[0.875, 0.125, 0.25, 0.75])];
        assert_eq!(outlier_score(&signature, &tensors), Some(3.0));
        assert_eq!(confidence(&signature, &tensors), Some(Confidence { highest: 0.75, margin: 0.5 }));
        let strange = [tensor(&[2, 1], &[f32::NAN, 3.0]), tensor(&[0, 2], &[])];
        assert!(outlier_score(&signature, &strange).is_some_and(f64::is_nan));
        assert_eq!(confidence(&signature, &strange), None);
    }

    #[test]
    fn what_is_too_large_is_kept_without_its_largest_tensors() {
        let shown = |name: &str, count: usize| Shown {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, count],
            data: Some(vec![Value::from(0.123_456_78_f32); count]),
        };
        let item = Item {
            version: 3,
            variant: "new".to_owned(),
            disposition: Disposition::Defer(Cause::Confidence { got: 0.5, least: 0.9 }),
            inputs: vec![shown("small", 4), shown("large", 20_000), shown("medium", 2_000)],
            outputs: Vec::new(),
        };
        let stored = item.encode().unwrap();
        assert!(stored.len() <= VALUE_BYTES);
        let read = Item::decode(&stored).unwrap();
        let kept: Vec<_> =
            read.inputs.iter().map(|shown| (shown.name.as_str(), shown.data.is_some())).collect();
        assert_eq!(kept, [("small", true), ("large", false), ("medium", true)]);
        assert_eq!(
            (read.version, read.disposition, &read.inputs[1].shape),
            (3, item.disposition, &vec![1, 20_000])
        );
        assert!(Item::decode(b"{}").is_err());
    }

    #[test]
    fn the_states_of_a_monitor_are_those_that_may_be_named() {
        use crate::monitors::Standing;
        let all = [Standing::Learning, Standing::NotEnoughEvidence, Standing::Stable, Standing::Drifted];
        assert_eq!(all.map(Standing::as_str), DeferSpec::DRIFT_STATES);
    }
}
