use super::dense::{Dense, Scores, Target, to_f32};
use crate::backend::{Forward, Pipeline, failed, scatter_rows};
use crate::cpu::Activation;
use crate::files::Folder;
use crate::keys::Keys;
use crate::process::tabular::Features;
use crate::weights::Weights;
use crate::{ModelSettings, Problems, device};
use candle_core::Tensor;
use sconce_core::{
    Backend, Batch, BatchOutput, DataType, Error, Inputs, LoadedModel, ModelInput, Preparation, Result,
    Signature, TensorSpec,
};
use std::sync::Arc;

/// The most floats a batch may need in one layer.
const MAX_BATCH_FLOATS: usize = 1 << 28;

const ACTIVATIONS: [(&str, Activation); 4] = [
    ("relu", Activation::Relu),
    ("gelu", Activation::Gelu),
    ("tanh", Activation::Tanh),
    ("sigmoid", Activation::Sigmoid),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Classification,
    Regression,
}

/// Dense layers over encoded columns.
#[derive(Debug)]
pub(crate) struct Plan {
    features: Features,
    layers: Vec<Layer>,
    scores: Scores,
    labels: Option<Arc<[String]>>,
    activation: Activation,
    weights: Weights,
}

#[derive(Debug, PartialEq, Eq)]
struct Layer {
    weight: String,
    bias: Option<String>,
    columns: usize,
    inner: usize,
}

impl Plan {
    pub(crate) fn open(
        folder: &Folder,
        settings: &ModelSettings,
        keys: &mut Keys,
        problems: &mut Problems,
    ) -> Option<Self> {
        let tasks = [("classification", Task::Classification), ("regression", Task::Regression)];
        let task = keys.take_word("task", &tasks, problems);
        let activation = keys.take_word("activation", &ACTIVATIONS, problems).unwrap_or(Activation::Relu);
        let features = Features::read(keys, problems);
        let weights = Weights::open(folder, problems)?;
        let layers = find_layers(&weights, problems)?;
        let (first, last) = (layers.first()?, layers.last()?);
        if !features.is_empty() && features.width() != first.inner {
            problems.push(format!(
                "model.toml: the features encode to {} columns, but the first layer `{}` takes {}",
                features.width(),
                first.weight,
                first.inner
            ));
        }
        let widest = layers.iter().map(|layer| layer.columns.max(layer.inner)).max().unwrap_or(0);
        if widest.saturating_mul(settings.max_batch_size) > MAX_BATCH_FLOATS {
            problems.push(format!(
                "model.toml: `max_batch_size`: {} rows of {widest} values are too large a batch: \
                 expected at most {MAX_BATCH_FLOATS} values",
                settings.max_batch_size
            ));
        }
        // A bare weights file says nothing of classes: its numbers are given as they are.
        let classifies = task.map_or(settings.labels.is_some(), |task| task == Task::Classification);
        let scores = match (classifies, last.columns) {
            (false, _) => Scores::Raw,
            (true, 1) => Scores::Binary,
            (true, _) => Scores::Softmax,
        };
        let labels = class_labels(settings, classifies, scores.columns(last.columns), problems);
        Some(Self { features, layers, scores, labels, activation, weights })
    }

    pub(crate) fn signature(&self, settings: &ModelSettings) -> Signature {
        let width = self.layers.first().map_or(0, |layer| layer.inner);
        let logits = self.layers.last().map_or(0, |layer| layer.columns);
        let name = if self.scores == Scores::Raw { "prediction" } else { "probabilities" };
        let output = TensorSpec::new(name, DataType::Fp32, &[None, Some(self.scores.columns(logits))]);
        Signature {
            inputs: self.features.inputs(width),
            outputs: vec![TensorSpec { labels: self.labels.clone(), ..output }],
            max_batch_size: settings.max_batch_size,
        }
    }
}

/// The names of `classes` classes: as given, or else their numbers. `None` when the model does not classify.
fn class_labels(
    settings: &ModelSettings,
    classifies: bool,
    classes: usize,
    problems: &mut Problems,
) -> Option<Arc<[String]>> {
    match &settings.labels {
        Some(_) if !classifies => {
            problems.push("model.toml: `labels`: a model of task regression has no classes");
            None
        }
        Some(labels) if labels.len() != classes => {
            problems.push(format!("model.toml: `labels`: expected {classes} labels, got {}", labels.len()));
            None
        }
        Some(labels) => Some(labels.clone().into()),
        None => classifies.then(|| (0..classes).map(|class| class.to_string()).collect()),
    }
}

/// The layers, in the order of the numbers in their names: `layers.0.weight`, `net.0.weight`, `0.weight`.
fn find_layers(weights: &Weights, problems: &mut Problems) -> Option<Vec<Layer>> {
    let before = problems.count();
    let mut numbered: Vec<(u64, Layer)> = Vec::new();
    for name in weights.names() {
        match layer_number(name) {
            Some((number, prefix)) => {
                if let Some(layer) = read_layer(weights, name, prefix, problems) {
                    numbered.push((number, layer));
                }
            }
            None if is_bias_of_layer(weights, name) => {}
            None => problems.push(format!(
                "weights: unexpected tensor `{name}`: expected `layers.N.weight` [out, in] and `layers.N.bias` [out]"
            )),
        }
    }
    numbered.sort_by_key(|(number, _)| *number);
    for pair in numbered.windows(2) {
        let ((a, one), (b, next)) = (&pair[0], &pair[1]);
        if a == b {
            problems.push(format!("weights: `{}` and `{}` have the same number", one.weight, next.weight));
        } else if one.columns != next.inner {
            problems.push(format!(
                "weights: `{}` gives {} values, but `{}` takes {}",
                one.weight, one.columns, next.weight, next.inner
            ));
        }
    }
    if numbered.is_empty() && problems.count() == before {
        problems.push("weights: expected at least one layer, got none");
    }
    (problems.count() == before).then(|| numbered.into_iter().map(|(_, layer)| layer).collect())
}

/// The number in a weight's name, and the name up to and with it.
fn layer_number(name: &str) -> Option<(u64, &str)> {
    let prefix = name.strip_suffix(".weight")?;
    let number = prefix.rsplit('.').next()?.parse().ok()?;
    Some((number, prefix))
}

fn is_bias_of_layer(weights: &Weights, name: &str) -> bool {
    let prefix = name.strip_suffix(".bias");
    let weight = prefix.map(|prefix| format!("{prefix}.weight"));
    weight.is_some_and(|weight| layer_number(&weight).is_some() && weights.shape(&weight).is_some())
}

fn read_layer(weights: &Weights, name: &str, prefix: &str, problems: &mut Problems) -> Option<Layer> {
    let shape = weights.shape(name)?;
    let &[columns @ 1..=usize::MAX, inner @ 1..=usize::MAX] = shape else {
        problems.push(format!("weights: tensor `{name}`: expected shape [out, in], got {shape:?}"));
        return None;
    };
    weights.check(name, shape, problems);
    let bias = format!("{prefix}.bias");
    let bias = weights.shape(&bias).is_some().then_some(bias);
    if let Some(bias) = &bias {
        weights.check(bias, &[columns], problems);
    }
    Some(Layer { weight: name.to_owned(), bias, columns, inner })
}

/// A loaded tabular model.
pub(crate) struct Model {
    network: Arc<Network>,
    features: Features,
    signature: Signature,
    threads: usize,
}

struct Network {
    layers: Vec<Dense>,
    inner: usize,
    columns: usize,
    scores: Scores,
    target: Target,
}

impl Model {
    pub(crate) fn load(plan: Plan, settings: &ModelSettings, signature: Signature) -> Result<Self, String> {
        let target =
            Target { device: device::open(settings.device)?, dtype: device::dtype(settings.precision) };
        let mut layers = Vec::with_capacity(plan.layers.len());
        for (index, layer) in plan.layers.iter().enumerate() {
            let act = if index + 1 < plan.layers.len() { plan.activation } else { Activation::None };
            let names = [(layer.weight.clone(), layer.bias.clone())];
            layers.push(Dense::load(&plan.weights, &names, act, &target)?);
        }
        let network = Network {
            layers,
            inner: plan.layers.first().map_or(0, |layer| layer.inner),
            columns: plan.layers.last().map_or(0, |layer| layer.columns),
            scores: plan.scores,
            target,
        };
        Ok(Self { network: Arc::new(network), features: plan.features, signature, threads: settings.threads })
    }
}

impl LoadedModel for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn memory_bytes(&self) -> usize {
        self.network.layers.iter().map(Dense::bytes).sum()
    }

    fn preparation(&self, inputs: &Inputs) -> Preparation {
        self.features.preparation(inputs)
    }

    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        let rows = inputs.rows();
        Ok(ModelInput { tensors: vec![self.features.encode(inputs)?], rows, row_tokens: Vec::new() })
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Pipeline::new(Instance(Arc::clone(&self.network)), self.threads)?))
    }
}

struct Instance(Arc<Network>);

impl Network {
    fn logits(&self, batch: &Batch) -> Result<Tensor, candle_core::Error> {
        let mut values = Vec::with_capacity(batch.rows() * self.inner);
        for tensor in batch.inputs.iter().flat_map(|input| &input.tensors) {
            values.extend(tensor.f32_values());
        }
        let mut x = Tensor::from_vec(values, (batch.rows(), self.inner), &self.target.device)?;
        x = x.to_dtype(self.target.dtype)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}

impl Forward for Instance {
    type Pending = (Tensor, Vec<usize>);

    fn depth(&self) -> usize {
        if self.0.target.device.is_cpu() { 1 } else { 2 }
    }

    fn launch(&mut self, batch: Batch) -> Result<Self::Pending> {
        let rows = batch.inputs.iter().map(|input| input.rows).collect();
        self.0.logits(&batch).map(|logits| (logits, rows)).map_err(failed)
    }

    fn finish(&mut self, (logits, rows): Self::Pending) -> Result<BatchOutput> {
        let network = &self.0;
        let values = network.scores.apply(to_f32(&logits).map_err(failed)?, network.columns);
        let outputs = scatter_rows(&values, network.scores.columns(network.columns), &rows);
        if outputs.len() != rows.len() {
            return Err(Error::internal("the model gave another number of answers than it got requests"));
        }
        Ok(BatchOutput { outputs, padding: 0 })
    }
}
