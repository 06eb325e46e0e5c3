//! Exposures: which version and variant made a prediction, and what it said, noted off the request's way.

use super::{Exposure, exposure_key};
use crate::content::{Content, Kept};
use crate::models::Served;
use crate::sink::{Inbox, Sink};
use crate::traffic::Decided;
use sconce_core::{Automation, DataType, InferOutput, PredictionId, Signature, Tensor, TensorSpec};
use sconce_registry::{Registry, RegistryError, Topic};
use sconce_telemetry::metrics::SinkSample;
use sconce_telemetry::traces::Observed;
use sconce_traffic::route::Reason;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Exposures that are appended before the thread looks whether it is to end.
const BATCH: usize = 1024;
/// Exposures that wait.
const QUEUE: usize = 16_384;
/// What an exposure holds in memory, about.
const EXPOSURE_BYTES: usize = 512;
/// The metric's label that says so.
const NAME: &str = "exposures";

/// Where exposures go.
pub(crate) struct Exposures {
    /// The share that is noted where neither the model nor a split says otherwise.
    sample: f64,
    sink: Sink<(PredictionId, Arc<str>, Exposure)>,
}

/// One prediction on its way to be noted.
pub(crate) struct Draft {
    exposures: Arc<Exposures>,
    chosen: &'static str,
    unit: Option<u64>,
    decision: Option<Decision>,
}

/// What a model said of a request's only row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// The most likely class.
    pub(crate) label: Option<String>,
    /// Its probability; of a model that gives a number, that.
    pub(crate) score: f64,
}

impl Exposures {
    /// Starts the thread that appends them to the journal of `registry`.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn start(sample: f64, registry: Arc<Registry>) -> io::Result<Arc<Self>> {
        let sink = Sink::start(NAME, QUEUE, move |inbox| run(&registry, inbox))?;
        Ok(Arc::new(Self { sample, sink }))
    }

    /// A draft of a prediction's exposure, if it is to be noted: which ones are follows from their ids alone. Where several variants
    /// answer, or people decide, all are, unless the model says otherwise.
    pub(crate) fn draft(
        self: &Arc<Self>,
        served: &Served,
        decided: Option<&Decided>,
        id: PredictionId,
    ) -> Option<Box<Draft>> {
        let is_split = decided.is_some_and(|decided| decided.reason != Reason::Primary);
        let is_reviewed = served.settings.review.automation != Automation::Full;
        let default = if is_split || is_reviewed { 1.0 } else { self.sample };
        let sample = served.settings.feedback.unwrap_or(default);
        (id.share() < sample).then(|| {
            Box::new(Draft {
                exposures: Arc::clone(self),
                chosen: decided.map_or("", |decided| name(decided.reason)),
                unit: decided.and_then(|decided| decided.unit),
                decision: None,
            })
        })
    }

    /// A scrape's view.
    pub(crate) fn sample(&self) -> SinkSample {
        self.sink.sample()
    }

    /// Writes what is left.
    pub(crate) async fn shutdown(&self) {
        self.sink.shutdown().await;
    }
}

impl Draft {
    /// Notes what the model said, as far as its policy lets it be kept.
    pub(crate) fn answered(&mut self, content: &Content, served: &Served, output: &InferOutput) {
        let (policy, signature) = (&served.settings.data_policy, served.signature());
        let Some(at) = decisive(signature, &output.tensors) else { return };
        let (spec, tensor) = (&signature.outputs[at], &output.tensors[at]);
        let alone = Signature { inputs: Vec::new(), outputs: vec![spec.clone()], ..*signature };
        let kept = content.outputs(served.name.as_str(), policy, &alone, std::slice::from_ref(tensor));
        self.decision = kept.first().and_then(Kept::tensor).and_then(|tensor| decision(spec, tensor));
    }

    /// Notes that what the model said was no decision: people decide in its place.
    pub(crate) fn withhold(&mut self) {
        self.decision = None;
    }

    /// Offers the exposure of a request that has ended.
    pub(crate) fn offer(self, observed: &Observed) {
        let (Some(id), Some(target)) = (observed.prediction_id, &observed.target) else { return };
        let (label, score) = match self.decision {
            Some(Decision { label, score }) if observed.code.is_none() => (label, Some(score)),
            _ => (None, None),
        };
        let exposure = Exposure {
            version: target.version.parse().unwrap_or_default(),
            variant: observed.variant.as_deref().unwrap_or_default().to_owned(),
            chosen: self.chosen.to_owned(),
            unit: self.unit.map(|unit| format!("{unit:016x}")).unwrap_or_default(),
            status: observed.status().to_owned(),
            label,
            score,
        };
        self.exposures.sink.offer((id, Arc::clone(&target.model), exposure), EXPOSURE_BYTES);
    }
}

/// Appends what comes until it is told to stop.
fn run(registry: &Registry, mut inbox: Inbox<(PredictionId, Arc<str>, Exposure)>) {
    let journal = registry.journal();
    let mut pending = Vec::new();
    loop {
        let go_on = inbox.gather(&mut pending, BATCH);
        for offered in pending.drain(..) {
            let (id, model, exposure) = &offered.item;
            let appended =
                serde_json::to_vec(exposure).map_err(|error| error.to_string()).and_then(|value| {
                    let appended =
                        journal.append(Topic::Exposures, &exposure_key(model, *id), &value, now_ms());
                    // Nobody waits until it is on disk.
                    appended.map(drop).map_err(|error: RegistryError| error.to_string())
                });
            match appended {
                Ok(()) => inbox.written(1),
                Err(error) => inbox.failed(1, &error),
            }
        }
        if !go_on {
            if let Err(error) = journal.sync() {
                inbox.failed(0, &error);
            }
            return;
        }
    }
}

/// The place of the output that decides: the first with class names, or `probabilities`, else the first that is one number. None for an
/// answer of several rows: they have one id.
fn decisive(signature: &Signature, outputs: &[Tensor]) -> Option<usize> {
    let is_row = |tensor: &Tensor| tensor.datatype() == DataType::Fp32 && tensor.shape().first() == Some(&1);
    let mut pairs = signature.outputs.iter().zip(outputs);
    let classes = pairs.clone().position(|(spec, _)| is_classes(spec));
    let place = classes.or_else(|| pairs.position(|(_, tensor)| tensor.data().len() == size_of::<f32>()))?;
    outputs.get(place).filter(|tensor| is_row(tensor)).map(|_| place)
}

/// Whether an output says how likely classes are.
pub(crate) fn is_classes(spec: &TensorSpec) -> bool {
    spec.labels.is_some() || spec.name == "probabilities"
}

/// What a row of numbers says: the likeliest class, or the number.
fn decision(spec: &TensorSpec, tensor: &Tensor) -> Option<Decision> {
    let scores = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let (class, score) = scores.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let name = || spec.labels.as_ref().and_then(|labels| labels.get(class).cloned());
    let label = is_classes(spec).then(|| name().unwrap_or_else(|| class.to_string()));
    Some(Decision { label, score: score.into() })
}

fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::Sticky => "sticky",
        Reason::Random => "random",
        Reason::Override => "override",
        Reason::Primary => "primary",
        Reason::Version => "",
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_the_likeliest_class_or_the_number() {
        let spec = |name: &str| TensorSpec::new(name, DataType::Fp32, &[None, None]);
        let signature = |outputs| Signature { inputs: Vec::new(), outputs, max_batch_size: 8 };
        let tensor = |rows: usize, values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Tensor::new(DataType::Fp32, vec![rows, values.len() / rows], bytes.into()).unwrap()
        };
        let decision = |signature: &Signature, outputs: &[Tensor]| {
            let at = decisive(signature, outputs)?;
            Some((at, decision(&signature.outputs[at], &outputs[at])?))
        };
        let said = |label: Option<&str>, score| Decision { label: label.map(str::to_owned), score };
        let labels = ["cat", "dog"].map(str::to_owned);
        let named = TensorSpec { labels: Some(labels.to_vec().into()), ..spec("scores") };
        let classes = signature(vec![spec("embedding"), named]);
        let outputs = [tensor(1, &[1.0, 2.0, 3.0]), tensor(1, &[0.25, 0.75])];
        assert_eq!(decision(&classes, &outputs), Some((1, said(Some("dog"), 0.75))));
        // Rows cannot be told apart by the id.
        assert_eq!(decision(&classes, &[tensor(2, &[1.0, 2.0]), tensor(2, &[0.0, 1.0, 1.0, 0.0])]), None);
        let unnamed = signature(vec![spec("probabilities")]);
        assert_eq!(decision(&unnamed, &[tensor(1, &[0.5, 0.5])]), Some((0, said(Some("0"), 0.5))));
        let number = signature(vec![spec("prediction")]);
        assert_eq!(decision(&number, &[tensor(1, &[-3.5])]), Some((0, said(None, -3.5))));
        assert_eq!(decision(&number, &[tensor(1, &[1.0, 2.0])]), None);
    }
}
