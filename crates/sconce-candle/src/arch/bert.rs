use super::bert_config::{Config, Kind, Names, Pair};
use super::dense::{Dense, Norm, Scores, Target, attention, mean_pool, normalize, tensor_bytes, to_f32};
use crate::backend::{Forward, Pipeline, failed, scatter_rows};
use crate::cpu::Activation;
use crate::files::Folder;
use crate::keys::Keys;
use crate::process::text::{Text, TextBounds};
use crate::process::tokens::Tokens;
use crate::weights::Weights;
use crate::{ModelSettings, Problems, device};
use candle_core::Tensor;
use sconce_core::{
    Backend, Batch, BatchOutput, DataType, Error, Inputs, LoadedModel, ModelInput, Preparation, Result,
    Signature, TensorSpec,
};
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
    let (labels, place) = match (&settings.labels, &config.labels) {
        (Some(labels), _) => (labels.clone(), "model.toml: `labels`"),
        (None, Some(labels)) => (labels.clone(), "config.json: `id2label`"),
        (None, None) => ((0..classes).map(|class| format!("LABEL_{class}")).collect(), ""),
    };
    if labels.len() != classes {
        problems.push(format!("{place}: expected {classes} labels, got {}", labels.len()));
    }
    // One logit says yes or no, as Hugging Face's pipelines read it.
    let scores = if config.multi_label || classes == 1 { Scores::Sigmoid } else { Scores::Softmax };
    Some(Output::Classification { scores, labels: labels.into() })
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
    network: Arc<Network>,
    tokens: Tokens,
    signature: Signature,
    threads: usize,
}

struct Network {
    words: Tensor,
    positions: Tensor,
    types: Option<Tensor>,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    head: Head,
    width: usize,
    target: Target,
}

struct Layer {
    qkv: Dense,
    attention_out: Dense,
    attention_norm: Norm,
    up: Dense,
    down: Dense,
    out_norm: Norm,
}

enum Head {
    Embedding { pooling: Pooling, normalize: bool },
    Classification { dense: Box<Dense>, classifier: Box<Dense>, scores: Scores },
}

impl Model {
    pub(crate) fn load(plan: Plan, settings: &ModelSettings, signature: Signature) -> Result<Self, String> {
        let target =
            Target { device: device::open(settings.device)?, dtype: device::dtype(settings.precision) };
        let network = Network::load(&plan, target)?;
        Ok(Self { network: Arc::new(network), tokens: plan.tokens, signature, threads: settings.threads })
    }
}

impl Network {
    fn load(plan: &Plan, target: Target) -> Result<Self, String> {
        let (config, weights) = (&plan.config, &plan.weights);
        let names = config.names(weights);
        let table = |of| weights.read(&names.table(of), target.dtype, &target.device);
        let head = match &plan.output {
            Output::Embedding { pooling, normalize } => {
                Head::Embedding { pooling: *pooling, normalize: *normalize }
            }
            Output::Classification { scores, .. } => {
                let (dense, classifier) = names.head();
                let act = if config.kind == Kind::DistilBert { Activation::Relu } else { Activation::Tanh };
                Head::Classification {
                    dense: load_dense(weights, &[dense], act, &target)?.into(),
                    classifier: load_dense(weights, &[classifier], Activation::None, &target)?.into(),
                    scores: *scores,
                }
            }
        };
        Ok(Self {
            words: table("word")?,
            positions: table("position")?,
            types: if config.token_types > 0 { Some(table("token_type")?) } else { None },
            norm: load_norm(weights, &names.embeddings_norm(), config, &target)?,
            layers: (0..config.layers)
                .map(|index| Layer::load(config, weights, names, index, &target))
                .collect::<Result<_, _>>()?,
            heads: config.heads,
            head,
            width: match &plan.output {
                Output::Embedding { .. } => config.hidden,
                Output::Classification { labels, .. } => labels.len(),
            },
            target,
        })
    }

    fn bytes(&self) -> usize {
        let tables = [Some(&self.words), Some(&self.positions), self.types.as_ref()];
        let tables: usize = tables.into_iter().flatten().map(tensor_bytes).sum();
        let head = match &self.head {
            Head::Embedding { .. } => 0,
            Head::Classification { dense, classifier, .. } => dense.bytes() + classifier.bytes(),
        };
        tables + self.norm.bytes() + self.layers.iter().map(Layer::bytes).sum::<usize>() + head
    }

    /// The tokens of `layout` through the encoder and its head: one row a sequence.
    fn forward(&self, layout: &Layout) -> Result<Tensor, candle_core::Error> {
        let device = &self.target.device;
        let select = |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, device)?, 0);
        let mut x = select(&self.words, &layout.ids)?;
        if let Some(types) = &self.types {
            x = (x + select(types, &layout.types)?)?;
        }
        x = self.norm.add(x, &select(&self.positions, &layout.positions)?)?;
        for layer in &self.layers {
            x = layer.forward(x, self.heads, &layout.sequences)?;
        }
        let first = || {
            let starts: Vec<u32> = layout.sequences.iter().map(|tokens| tokens.start as u32).collect();
            select(&x, &starts)
        };
        match &self.head {
            Head::Embedding { pooling: Pooling::Mean, .. } => mean_pool(&x, &layout.sequences),
            Head::Embedding { pooling: Pooling::Cls, .. } => first(),
            Head::Classification { dense, classifier, .. } => classifier.forward(&dense.forward(&first()?)?),
        }
    }

    /// What follows on the host: rows of `width` scores, or of an embedding.
    fn finish(&self, mut values: Vec<f32>) -> Vec<f32> {
        match &self.head {
            Head::Embedding { normalize: false, .. } => {}
            Head::Embedding { normalize: true, .. } => normalize(&mut values, self.width),
            Head::Classification { scores, .. } => return scores.apply(values, self.width),
        }
        values
    }
}

impl Layer {
    fn load(
        config: &Config,
        weights: &Weights,
        names: Names<'_>,
        index: usize,
        target: &Target,
    ) -> Result<Self, String> {
        let names = names.layer(index);
        let dense = |names: Pair, act| load_dense(weights, &[names], act, target);
        Ok(Self {
            qkv: load_dense(weights, &names.qkv, Activation::None, target)?,
            attention_out: dense(names.attention_out, Activation::None)?,
            attention_norm: load_norm(weights, &names.attention_norm, config, target)?,
            up: dense(names.up, config.act)?,
            down: dense(names.down, Activation::None)?,
            out_norm: load_norm(weights, &names.out_norm, config, target)?,
        })
    }

    fn forward(
        &self,
        x: Tensor,
        heads: usize,
        sequences: &[Range<usize>],
    ) -> Result<Tensor, candle_core::Error> {
        let context = attention(&self.qkv.forward(&x)?, heads, sequences)?;
        let x = self.attention_norm.add(self.attention_out.forward(&context)?, &x)?;
        let out = self.down.forward(&self.up.forward(&x)?)?;
        self.out_norm.add(out, &x)
    }

    fn bytes(&self) -> usize {
        let dense = [&self.qkv, &self.attention_out, &self.up, &self.down].map(Dense::bytes);
        dense.iter().sum::<usize>() + self.attention_norm.bytes() + self.out_norm.bytes()
    }
}

fn load_dense(weights: &Weights, names: &[Pair], act: Activation, target: &Target) -> Result<Dense, String> {
    let names: Vec<_> = names.iter().map(|(weight, bias)| (weight.clone(), Some(bias.clone()))).collect();
    Dense::load(weights, &names, act, target)
}

fn load_norm(weights: &Weights, names: &Pair, config: &Config, target: &Target) -> Result<Norm, String> {
    Norm::load(weights, &names.0, &names.1, config.epsilon, target)
}

impl LoadedModel for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn memory_bytes(&self) -> usize {
        self.network.bytes() + self.tokens.text.as_ref().map_or(0, Text::memory_bytes)
    }

    fn preparation(&self, inputs: &Inputs) -> Preparation {
        self.tokens.preparation(inputs)
    }

    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        self.tokens.prepare(inputs)
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Pipeline::new(Instance(Arc::clone(&self.network)), self.threads)?))
    }
}

/// A batch as it is computed: all tokens of all rows in one list, rows in order of length, so that rows of
/// equal length are neighbours.
struct Layout {
    ids: Vec<u32>,
    types: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<Range<usize>>,
    /// Which row of the batch each sequence is.
    order: Vec<usize>,
}

impl Layout {
    fn new(batch: &Batch) -> Result<Self> {
        // Each row: its request, and where in it its tokens are.
        let mut rows: Vec<(usize, Range<usize>)> = Vec::with_capacity(batch.rows());
        for (request, input) in batch.inputs.iter().enumerate() {
            let mut start = 0;
            for &tokens in &input.row_tokens {
                rows.push((request, start..start + tokens));
                start += tokens;
            }
        }
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| rows[row].1.len());
        let total = batch.tokens();
        let [mut ids, mut types, mut positions] = [(); 3].map(|()| Vec::with_capacity(total));
        let mut sequences = Vec::with_capacity(rows.len());
        for &row in &order {
            let (request, tokens) = &rows[row];
            sequences.push(ids.len()..ids.len() + tokens.len());
            let lists = [&mut ids, &mut types, &mut positions];
            for (list, tensor) in lists.into_iter().zip(&batch.inputs[*request].tensors) {
                let values = tensor.data().as_chunks::<8>().0.get(tokens.clone());
                let values = values.ok_or_else(|| Error::internal("a row has fewer tokens than it says"))?;
                list.extend(values.iter().map(|value| i64::from_le_bytes(*value) as u32));
            }
        }
        Ok(Self { ids, types, positions, sequences, order })
    }
}

struct Instance(Arc<Network>);

/// A batch that was started: a row of output for each sequence, and the way back to the requests.
struct Pending {
    output: Tensor,
    order: Vec<usize>,
    request_rows: Vec<usize>,
}

impl Forward for Instance {
    type Pending = Pending;

    fn depth(&self) -> usize {
        if self.0.target.device.is_cpu() { 1 } else { 2 }
    }

    fn launch(&mut self, batch: Batch) -> Result<Pending> {
        let layout = Layout::new(&batch)?;
        let output = self.0.forward(&layout).map_err(failed)?;
        let request_rows = batch.inputs.iter().map(|input| input.rows).collect();
        Ok(Pending { output, order: layout.order, request_rows })
    }

    fn finish(&mut self, pending: Pending) -> Result<BatchOutput> {
        let width = self.0.width;
        let sorted = self.0.finish(to_f32(&pending.output).map_err(failed)?);
        let mut values = vec![0.0; sorted.len()];
        for (row, from) in pending.order.iter().zip(sorted.chunks_exact(width)) {
            values[row * width..][..width].copy_from_slice(from);
        }
        Ok(BatchOutput { outputs: scatter_rows(&values, width, &pending.request_rows), padding: 0 })
    }
}
