//! BERT, DistilBERT, RoBERTa and XLM-RoBERTa: a plan, a loaded model, and a forward pass on our kernels and on Candle's.

mod candle;
mod config;
mod cpu;

use super::fields::class_names;
use super::on_cpu::check_inner;
use super::scores::Scores;
use crate::backend::Pipeline;
use crate::device::Engine;
use crate::files::Folder;
use crate::keys::Keys;
use crate::process::text::{Text, TextBounds};
use crate::process::tokens::Tokens;
use crate::weights::{LayerNames, Weights};
use crate::{ModelSettings, Problems};
use config::{Config, Kind, Pair};
use sconce_core::{
    Backend, Batch, DataType, Error, Inputs, LoadedModel, ModelInput, Preparation, Result, Signature,
    TensorSpec,
};
use sconce_kernels::{Activation, Isa};
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;

const DEFAULT_TEXT_BYTES: usize = 262_144;
const MAX_TEXT_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Embedding,
    Classification,
}

/// How a sentence's embedding comes of its tokens'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    Cls,
}

/// What comes after the encoder.
#[derive(Debug, Clone)]
enum Output {
    Embedding { pooling: Pooling, normalize: bool },
    Classification { scores: Scores, labels: Arc<[String]> },
}

/// A BERT, DistilBERT, RoBERTa or XLM-RoBERTa encoder, as a Hugging Face folder holds it.
#[derive(Debug)]
pub(crate) struct Plan {
    config: Config,
    weights: Weights,
    tokens: Tokens,
    output: Output,
}

impl Plan {
    pub(crate) fn open(
        folder: &Folder,
        settings: &ModelSettings,
        keys: &mut Keys,
        problems: &mut Problems,
    ) -> Option<Self> {
        let tasks = [("embedding", Task::Embedding), ("classification", Task::Classification)];
        let task = keys.take_word("task", &tasks, problems);
        let pooling = keys.take_word("pooling", &[("mean", Pooling::Mean), ("cls", Pooling::Cls)], problems);
        let normalize = keys.take::<bool>("normalize", problems);
        let max_tokens = keys.take_in("max_tokens", 1..=1 << 24, problems);
        let max_text_bytes =
            keys.take_in("max_text_bytes", 1..=MAX_TEXT_BYTES, problems).unwrap_or(DEFAULT_TEXT_BYTES);

        let config = read_config(folder, problems);
        let weights = Weights::open(folder, problems);
        let (config, weights) = (config?, weights?);
        check_encoder(&config, &weights, problems);
        check_inner(settings, config.hidden.max(config.intermediate), problems);
        let head = config.names(&weights).head();
        let classifies = config.is_classifier || weights.shape(&head.1.0).is_some();
        let task = task.unwrap_or(if classifies { Task::Classification } else { Task::Embedding });
        let output = match task {
            Task::Classification => open_classification(settings, &config, &weights, &head, problems),
            Task::Embedding => Some(open_embedding(folder, settings, pooling, normalize, problems)),
        };
        if task == Task::Classification && (pooling.is_some() || normalize.is_some()) {
            problems.push(
                "model.toml: `pooling` and `normalize` belong to task embedding, this is classification",
            );
        }

        let positions = config.max_tokens();
        if let Some(got) = max_tokens.filter(|tokens| *tokens > positions) {
            problems
                .push(format!("model.toml: `max_tokens`: the model has {positions} positions, got {got}"));
        }
        let bounds = TextBounds { max_tokens, positions, vocab_size: config.vocab_size, max_text_bytes };
        let text = Text::open(folder, &bounds, problems);
        let output = output?;
        let tokens = Tokens {
            text,
            vocab_size: config.vocab_size,
            positions: config.positions,
            token_types: config.token_types,
            padding_id: (config.kind == Kind::Roberta).then_some(config.pad_token_id),
            reads_first: !matches!(output, Output::Embedding { pooling: Pooling::Mean, .. }),
        };
        Some(Self { config, weights, tokens, output })
    }

    pub(crate) fn signature(&self, settings: &ModelSettings) -> Signature {
        let output = match &self.output {
            Output::Embedding { .. } => {
                TensorSpec::new("embedding", DataType::Fp32, &[None, Some(self.config.hidden)])
            }
            Output::Classification { labels, .. } => TensorSpec {
                labels: Some(Arc::clone(labels)),
                ..TensorSpec::new("probabilities", DataType::Fp32, &[None, Some(labels.len())])
            },
        };
        Signature {
            inputs: self.tokens.inputs(),
            outputs: vec![output],
            max_batch_size: settings.max_batch_size,
        }
    }
}

fn read_config(folder: &Folder, problems: &mut Problems) -> Option<Config> {
    let before = problems.count();
    match folder.json("config.json", problems) {
        Some(json) => Config::read(&json, problems),
        None => {
            if problems.count() == before {
                problems.push("config.json: no such file: the bert family needs it");
            }
            None
        }
    }
}

/// Checks the weights of the encoder against the configuration.
fn check_encoder(config: &Config, weights: &Weights, problems: &mut Problems) {
    let (names, hidden) = (config.names(weights), config.hidden);
    weights.check(&names.table("word"), &[config.vocab_size, hidden], problems);
    weights.check(&names.table("position"), &[config.positions, hidden], problems);
    if config.token_types > 0 {
        weights.check(&names.table("token_type"), &[config.token_types, hidden], problems);
    }
    let mut pair = |(weight, bias): &Pair, shape: &[usize]| {
        weights.check(weight, shape, problems);
        weights.check(bias, &shape[..1], problems);
    };
    pair(&names.embeddings_norm(), &[hidden]);
    for index in 0..config.layers {
        let layer = names.layer(index);
        layer.qkv.iter().for_each(|names| pair(names, &[hidden, hidden]));
        pair(&layer.attention_out, &[hidden, hidden]);
        pair(&layer.attention_norm, &[hidden]);
        pair(&layer.up, &[config.intermediate, hidden]);
        pair(&layer.down, &[hidden, config.intermediate]);
        pair(&layer.out_norm, &[hidden]);
    }
}

fn open_classification(
    settings: &ModelSettings,
    config: &Config,
    weights: &Weights,
    (dense, classifier): &(Pair, Pair),
    problems: &mut Problems,
) -> Option<Output> {
    let hidden = config.hidden;
    let classes = match weights.shape(&classifier.0) {
        Some(&[classes @ 1..=usize::MAX, _]) => classes,
        _ => {
            problems.push(format!("weights: tensor `{}` [classes, {hidden}] is missing", classifier.0));
            return None;
        }
    };
    for ((weight, bias), shape) in [(dense, [hidden, hidden]), (classifier, [classes, hidden])] {
        weights.check(weight, &shape, problems);
        weights.check(bias, &shape[..1], problems);
    }
    let labels = class_names(settings, config.labels.as_ref(), classes, problems);
    // One logit says yes or no, as Hugging Face's pipelines read it.
    let scores = if config.multi_label || classes == 1 { Scores::Sigmoid } else { Scores::Softmax };
    Some(Output::Classification { scores, labels })
}

fn open_embedding(
    folder: &Folder,
    settings: &ModelSettings,
    pooling: Option<Pooling>,
    normalize: Option<bool>,
    problems: &mut Problems,
) -> Output {
    if settings.labels.is_some() {
        problems.push("model.toml: `labels`: a model of task embedding has no classes");
    }
    let modules = folder.json("modules.json", problems);
    let modules: Vec<(&str, &str)> = modules
        .as_ref()
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|module| {
            let kind = module.get("type")?.as_str()?;
            Some((kind.rsplit('.').next()?, module.get("path").and_then(Value::as_str).unwrap_or("")))
        })
        .collect();
    for (kind, _) in &modules {
        if !["Transformer", "Pooling", "Normalize"].contains(kind) {
            let got = sconce_core::abbreviate(kind);
            problems.push(format!("modules.json: expected Transformer, Pooling and Normalize, got {got:?}"));
        }
    }
    let path = modules.iter().find(|(kind, _)| *kind == "Pooling").map(|(_, path)| *path);
    let configured = || path.and_then(|path| read_pooling(folder, path, problems));
    Output::Embedding {
        pooling: pooling.or_else(configured).unwrap_or(Pooling::Mean),
        normalize: normalize.unwrap_or_else(|| modules.iter().any(|(kind, _)| *kind == "Normalize")),
    }
}

/// The pooling of a sentence-transformers module: one flag a mode, or the mode's name.
fn read_pooling(folder: &Folder, path: &str, problems: &mut Problems) -> Option<Pooling> {
    let file = format!("{path}/config.json");
    let json = folder.json(&file, problems)?;
    let flags = json.as_object()?.iter().filter(|(_, value)| value.as_bool() == Some(true));
    let mut modes: Vec<&str> = flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect();
    modes.extend(json.get("pooling_mode").and_then(Value::as_str));
    match modes[..] {
        ["mean_tokens" | "mean"] => Some(Pooling::Mean),
        ["cls_token" | "cls"] => Some(Pooling::Cls),
        _ => {
            let got = modes.join(", ");
            let got = sconce_core::abbreviate(&got);
            problems.push(format!("{file}: expected the pooling mode mean or cls alone, got {got:?}"));
            None
        }
    }
}

/// A loaded encoder.
pub(crate) struct Model {
    network: Network,
    tokens: Tokens,
    signature: Signature,
    threads: usize,
}

enum Network {
    Cpu(Arc<cpu::Network>),
    Candle(Arc<candle::Network>),
}

impl Model {
    pub(crate) fn load(plan: Plan, settings: &ModelSettings, signature: Signature) -> Result<Self, String> {
        let network = match Engine::of(settings)? {
            Engine::Cpu(precision) => Network::Cpu(Arc::new(cpu::Network::load(&plan, precision)?)),
            Engine::Candle(target) => Network::Candle(Arc::new(candle::Network::load(&plan, target)?)),
        };
        Ok(Self { network, tokens: plan.tokens, signature, threads: settings.threads })
    }
}

impl LoadedModel for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn memory_bytes(&self) -> usize {
        let network = match &self.network {
            Network::Cpu(network) => network.bytes(),
            Network::Candle(network) => network.bytes(),
        };
        network + self.tokens.text.as_ref().map_or(0, Text::memory_bytes)
    }

    fn preparation(&self, inputs: &Inputs) -> Preparation {
        self.tokens.preparation(inputs)
    }

    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        self.tokens.prepare(inputs)
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        Ok(match &self.network {
            Network::Cpu(network) => {
                let instance = cpu::Instance::new(Arc::clone(network), self.threads);
                Box::new(Pipeline::new(instance, self.threads)?)
            }
            Network::Candle(network) => {
                Box::new(Pipeline::new(candle::Instance(Arc::clone(network)), self.threads)?)
            }
        })
    }
}

/// What comes after the encoder, on the host.
#[derive(Debug)]
struct Finish {
    head: Output,
    /// Values of a row of the output.
    width: usize,
}

impl Finish {
    fn new(plan: &Plan) -> Self {
        let width = match &plan.output {
            Output::Embedding { .. } => plan.config.hidden,
            Output::Classification { labels, .. } => labels.len(),
        };
        Self { head: plan.output.clone(), width }
    }

    /// Rows of `width` pooled values or logits as they are answered.
    fn apply(&self, mut values: Vec<f32>) -> Vec<f32> {
        match &self.head {
            Output::Embedding { normalize: false, .. } => values,
            Output::Embedding { normalize: true, .. } => {
                sconce_kernels::l2_normalize(Isa::current(), &mut values, self.width.max(1));
                values
            }
            Output::Classification { scores, .. } => scores.apply(values, self.width),
        }
    }
}

/// The two dense layers of a classifier, and the activation after the first.
fn classifier_layers(plan: &Plan) -> ([Pair; 2], Activation) {
    let (dense, classifier) = plan.config.names(&plan.weights).head();
    let activation = if plan.config.kind == Kind::DistilBert { Activation::Relu } else { Activation::Tanh };
    ([dense, classifier], activation)
}

/// A layer's names where a bias may be missing.
fn layer((weight, bias): &Pair) -> LayerNames<'_> {
    (weight, Some(bias))
}

/// A row of a batch: a sequence of tokens.
struct Sequence<'a> {
    input: &'a ModelInput,
    /// Where its tokens are among the request's.
    tokens: Range<usize>,
}

impl Sequence<'_> {
    /// The rows of a batch.
    fn all(batch: &Batch) -> Vec<Sequence<'_>> {
        let mut sequences = Vec::with_capacity(batch.rows());
        for input in &batch.inputs {
            let mut start = 0;
            for &tokens in &input.row_tokens {
                sequences.push(Sequence { input, tokens: start..start + tokens });
                start += tokens;
            }
        }
        sequences
    }

    /// Appends its ids, types and positions to lists of them.
    fn append_to(&self, lists: [&mut Vec<u32>; 3]) -> Result<()> {
        for (list, tensor) in lists.into_iter().zip(&self.input.tensors) {
            let values = tensor.data().as_chunks::<8>().0.get(self.tokens.clone());
            let values = values.ok_or_else(|| Error::internal("a row has fewer tokens than it says"))?;
            list.extend(values.iter().map(|value| i64::from_le_bytes(*value) as u32));
        }
        Ok(())
    }
}
