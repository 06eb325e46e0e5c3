use super::on_candle::{self, to_f32};
use super::on_cpu::{self, Buffer, check_inner, for_each_group};
use super::scores::Scores;
use crate::backend::{Forward, Pipeline, failed, scatter_rows};
use crate::device::Engine;
use crate::files::Folder;
use crate::keys::Keys;
use crate::process::tabular::Features;
use crate::weights::Weights;
use crate::{ModelSettings, Problems};
use candle_core::Tensor;
use sconce_core::{
    Backend, Batch, BatchOutput, Checkpoint, DataType, Inputs, LoadedModel, ModelInput, Preparation, Result,
    Signature, TensorSpec,
};
use sconce_kernels::{Activation, Scratch};
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
        layers.iter().for_each(|layer| check_inner(settings, layer.inner, problems));
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
    layers: Layers,
    /// Values of an encoded row, and of a row of logits.
    inner: usize,
    columns: usize,
    scores: Scores,
}

enum Layers {
    Cpu(Vec<on_cpu::Dense>),
    Candle(Vec<on_candle::Dense>, on_candle::Target),
}

impl Layers {
    fn load(plan: &Plan, engine: Engine) -> Result<Self, String> {
        let last = plan.layers.len().saturating_sub(1);
        let layers = plan.layers.iter().enumerate().map(|(index, layer)| {
            let activation = if index < last { plan.activation } else { Activation::None };
            ([(&layer.weight[..], layer.bias.as_deref())], activation)
        });
        Ok(match engine {
            Engine::Cpu(precision) => {
                let load =
                    |(names, act): ([_; 1], _)| on_cpu::Dense::load(&plan.weights, &names, act, precision);
                Self::Cpu(layers.map(load).collect::<Result<_, _>>()?)
            }
            Engine::Candle(target) => {
                let load =
                    |(names, act): ([_; 1], _)| on_candle::Dense::load(&plan.weights, &names, act, &target);
                Self::Candle(layers.map(load).collect::<Result<_, _>>()?, target)
            }
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Cpu(layers) => layers.iter().map(on_cpu::Dense::bytes).sum(),
            Self::Candle(layers, _) => layers.iter().map(on_candle::Dense::bytes).sum(),
        }
    }
}

impl Model {
    pub(crate) fn load(plan: Plan, settings: &ModelSettings, signature: Signature) -> Result<Self, String> {
        let network = Network {
            layers: Layers::load(&plan, Engine::of(settings)?)?,
            inner: plan.layers.first().map_or(0, |layer| layer.inner),
            columns: plan.layers.last().map_or(0, |layer| layer.columns),
            scores: plan.scores,
        };
        Ok(Self { network: Arc::new(network), features: plan.features, signature, threads: settings.threads })
    }
}

impl LoadedModel for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn memory_bytes(&self) -> usize {
        self.network.layers.bytes()
    }

    fn preparation(&self, inputs: &Inputs) -> Preparation {
        self.features.preparation(inputs)
    }

    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        let rows = inputs.rows();
        Ok(ModelInput { tensors: vec![self.features.encode(inputs)?], rows, row_tokens: Vec::new() })
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        let instance = Instance {
            network: Arc::clone(&self.network),
            rows: Vec::new(),
            workspaces: (0..self.threads).map(|_| Workspace::default()).collect(),
            output: Vec::new(),
        };
        Ok(Box::new(Pipeline::new(instance, self.threads)?))
    }
}

/// Rows that go through all layers together, at least, when there are several threads.
const GROUP_ROWS: usize = 64;

/// One worker's part: memory that every batch uses again.
struct Instance {
    network: Arc<Network>,
    rows: Vec<f32>,
    workspaces: Vec<Workspace>,
    output: Vec<f32>,
}

/// What one thread computes with.
#[derive(Default)]
struct Workspace {
    here: Buffer,
    there: Buffer,
    scratch: Scratch,
}

/// Where a batch's logits are.
enum Logits {
    /// In the instance.
    Here,
    OnDevice(Tensor),
}

/// `x` [rows, inner] through all layers, on the CPU.
fn forward(layers: &[on_cpu::Dense], x: &[f32], out: &mut [f32], workspace: &mut Workspace) {
    let Some((last, before)) = layers.split_last() else { return };
    let rows = out.len() / last.columns();
    let Workspace { here, there, scratch } = workspace;
    let mut width = None;
    for layer in before {
        let from = width.map_or(x, |width| here.get(rows * width));
        layer.forward(from, &[], there.take(rows * layer.columns()), scratch);
        width = Some(layer.columns());
        std::mem::swap(here, there);
    }
    last.forward(width.map_or(x, |width| here.get(rows * width)), &[], out, scratch);
}

impl Forward for Instance {
    type Pending = (Logits, Vec<usize>);

    fn depth(&self) -> usize {
        match &self.network.layers {
            Layers::Candle(_, target) if !target.device.is_cpu() => 2,
            _ => 1,
        }
    }

    fn launch(&mut self, batch: Batch, checkpoint: Checkpoint<'_>) -> Result<Self::Pending> {
        let Self { network, rows, workspaces, output } = self;
        let request_rows = batch.inputs.iter().map(|input| input.rows).collect();
        rows.clear();
        for tensor in batch.inputs.iter().flat_map(|input| &input.tensors) {
            rows.extend(tensor.f32_values());
        }
        let logits = match &network.layers {
            Layers::Cpu(layers) => {
                let (inner, columns) = (network.inner, network.columns);
                output.clear();
                output.resize(batch.rows() * columns, 0.0);
                let group = batch.rows().div_ceil(workspaces.len().max(1)).max(GROUP_ROWS);
                let groups = rows.chunks(group * inner).zip(output.chunks_mut(group * columns)).collect();
                for_each_group(workspaces, groups, checkpoint, |workspace, (rows, out)| {
                    forward(layers, rows, out, workspace)
                });
                Logits::Here
            }
            Layers::Candle(layers, target) => {
                let x = Tensor::from_slice(rows, (batch.rows(), network.inner), &target.device);
                let x = x.and_then(|x| x.to_dtype(target.dtype)).map_err(failed)?;
                let logits = layers.iter().try_fold(x, |x, layer| layer.forward(&x));
                Logits::OnDevice(logits.map_err(failed)?)
            }
        };
        Ok((logits, request_rows))
    }

    fn finish(&mut self, (logits, request_rows): Self::Pending) -> Result<BatchOutput> {
        let Network { scores, columns, .. } = &*self.network;
        let values = match logits {
            Logits::Here => std::mem::take(&mut self.output),
            Logits::OnDevice(tensor) => to_f32(&tensor).map_err(failed)?,
        };
        self.output = scores.apply(values, *columns);
        let outputs = scatter_rows(&self.output, scores.columns(*columns), &request_rows);
        Ok(BatchOutput { outputs, padding: 0 })
    }
}
