use super::config::Pair;
use super::{Finish, Output, Plan, Pooling, Sequence, classifier_layers, layer};
use crate::arch::on_cpu::{Buffer, Dense, Norm, for_each_group};
use crate::backend::{Forward, scatter_rows};
use sconce_core::{Batch, BatchOutput, Checkpoint, Result};
use sconce_kernels::{Activation, Isa, Precision, Scratch, Table};
use std::ops::Range;
use std::sync::Arc;

/// Tokens that go through all layers together, or a little more: so few that what a layer writes is in the second-level cache
/// when the next one reads it, and enough that reading the weights costs little beside multiplying with them.
const GROUP_TOKENS: usize = 240;

/// An encoder on our kernels.
pub(crate) struct Network {
    words: Vec<f32>,
    positions: Vec<f32>,
    types: Option<Vec<f32>>,
    norm: Norm,
    layers: Vec<Layer>,
    hidden: usize,
    heads: usize,
    classifier: Option<[Dense; 2]>,
    finish: Finish,
}

struct Layer {
    qkv: Dense,
    attention_out: Dense,
    attention_norm: Norm,
    up: Dense,
    down: Dense,
    out_norm: Norm,
}

impl Network {
    pub(crate) fn load(plan: &Plan, precision: Precision) -> Result<Self, String> {
        let (config, weights) = (&plan.config, &plan.weights);
        let names = config.names(weights);
        let table = |of| weights.values(&names.table(of));
        let norm = |(gamma, beta): &Pair| Norm::load(weights, (gamma, beta), config.epsilon);
        let dense = |names: &[Pair], activation| {
            let names: Vec<_> = names.iter().map(layer).collect();
            Dense::load(weights, &names, activation, precision)
        };
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let names = names.layer(index);
            layers.push(Layer {
                qkv: dense(&names.qkv, Activation::None)?,
                attention_out: dense(&[names.attention_out], Activation::None)?,
                attention_norm: norm(&names.attention_norm)?,
                up: dense(&[names.up], config.act)?,
                down: dense(&[names.down], Activation::None)?,
                out_norm: norm(&names.out_norm)?,
            });
        }
        let classifier = match &plan.output {
            Output::Embedding { .. } => None,
            Output::Classification { .. } => {
                let ([dense, classifier], activation) = classifier_layers(plan);
                // One row a sequence: whatever the layers compute in, exactness costs nothing here.
                let load =
                    |names, activation| Dense::load(weights, &[layer(names)], activation, Precision::F32);
                Some([load(&dense, activation)?, load(&classifier, Activation::None)?])
            }
        };
        Ok(Self {
            words: table("word")?,
            positions: table("position")?,
            types: if config.token_types > 0 { Some(table("token_type")?) } else { None },
            norm: norm(&names.embeddings_norm())?,
            layers,
            hidden: config.hidden,
            heads: config.heads,
            classifier,
            finish: Finish::new(plan),
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let tables = self.words.len() + self.positions.len() + self.types.as_ref().map_or(0, Vec::len);
        let classifier: usize = self.classifier.iter().flatten().map(Dense::bytes).sum();
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        tables * size_of::<f32>() + self.norm.bytes() + layers + classifier
    }

    /// Values of a row before the last touch: of an embedding, or logits.
    fn columns(&self) -> usize {
        self.classifier.as_ref().map_or(self.hidden, |[_, classifier]| classifier.columns())
    }

    /// A group of sequences from their tokens to their rows of output.
    fn forward(&self, workspace: &mut Workspace, group: Group<'_>, checkpoint: Checkpoint<'_>) {
        let Group { tokens, sequences, out } = group;
        let Some(offset) = sequences.first().map(|first| first.start) else { return };
        let (hidden, count) = (self.hidden, tokens.ids.len());
        let widest = |layer: &Layer| layer.qkv.columns().max(layer.up.columns());
        let wide = self.layers.iter().map(widest).max().unwrap_or(0);
        let mut values = Values {
            x: workspace.x.take(count * hidden),
            y: workspace.y.take(count * hidden),
            context: workspace.context.take(count * hidden),
            wide: workspace.wide.take(count * wide),
        };
        let scratch = &mut workspace.scratch;
        let words = Table { values: &self.words, ids: tokens.ids };
        let positions = Table { values: &self.positions, ids: tokens.positions };
        match &self.types {
            Some(types) => {
                let types = Table { values: types, ids: tokens.types };
                sconce_kernels::embed(Isa::current(), &[words, types, positions], hidden, values.x);
            }
            None => sconce_kernels::embed(Isa::current(), &[words, positions], hidden, values.x),
        }
        self.norm.apply(values.x);
        let own = |tokens: &Range<usize>| tokens.start - offset..tokens.end - offset;
        for layer in &self.layers {
            layer.forward(&mut values, hidden, self.heads, sequences.iter().map(own), scratch, checkpoint);
        }

        let Values { x, y, context, .. } = values;
        let pooled =
            if self.classifier.is_some() { &mut context[..sequences.len() * hidden] } else { &mut *out };
        let is_mean = matches!(self.finish.head, Output::Embedding { pooling: Pooling::Mean, .. });
        for (pooled, tokens) in pooled.chunks_exact_mut(hidden).zip(sequences.iter().map(own)) {
            let rows = &x[tokens.start * hidden..tokens.end * hidden];
            if is_mean {
                sconce_kernels::mean_pool(Isa::current(), rows, pooled);
            } else {
                pooled.copy_from_slice(&rows[..hidden]);
            }
        }
        if let Some([dense, classifier]) = &self.classifier {
            let inner = &mut y[..sequences.len() * hidden];
            dense.forward(&context[..sequences.len() * hidden], &[], inner, scratch);
            classifier.forward(inner, &[], out, scratch);
        }
    }
}

impl Layer {
    /// From `x` to `x`.
    fn forward(
        &self,
        values: &mut Values<'_>,
        hidden: usize,
        heads: usize,
        sequences: impl Iterator<Item = Range<usize>>,
        scratch: &mut Scratch,
        checkpoint: Checkpoint<'_>,
    ) {
        let Values { x, y, context, wide } = values;
        let count = x.len() / hidden;
        let qkv = &mut wide[..count * 3 * hidden];
        self.qkv.forward(x, &[], qkv, scratch);
        for tokens in sequences {
            let own = &qkv[tokens.start * 3 * hidden..tokens.end * 3 * hidden];
            let out = &mut context[tokens.start * hidden..tokens.end * hidden];
            sconce_kernels::attention(Isa::current(), own, hidden, heads, out, scratch);
        }
        checkpoint();
        self.attention_out.forward(context, x, y, scratch);
        self.attention_norm.apply(y);
        let inner = &mut wide[..count * self.up.columns()];
        self.up.forward(y, &[], inner, scratch);
        checkpoint();
        self.down.forward(inner, y, x, scratch);
        self.out_norm.apply(x);
        checkpoint();
    }

    fn bytes(&self) -> usize {
        let dense = [&self.qkv, &self.attention_out, &self.up, &self.down].map(Dense::bytes);
        dense.iter().sum::<usize>() + self.attention_norm.bytes() + self.out_norm.bytes()
    }
}

/// What one thread computes with.
#[derive(Default)]
struct Workspace {
    x: Buffer,
    y: Buffer,
    context: Buffer,
    wide: Buffer,
    scratch: Scratch,
}

/// The values of a group's tokens: [tokens, hidden], but for `wide`, which is [tokens, 3 · hidden] or [tokens, intermediate].
struct Values<'a> {
    x: &'a mut [f32],
    y: &'a mut [f32],
    context: &'a mut [f32],
    wide: &'a mut [f32],
}

/// What tokens are looked up by, one of each a token.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    ids: &'a [u32],
    types: &'a [u32],
    positions: &'a [u32],
}

/// Sequences that go through all layers together.
struct Group<'a> {
    tokens: Tokens<'a>,
    /// Where in the batch the tokens of each are.
    sequences: &'a [Range<usize>],
    /// A row for each.
    out: &'a mut [f32],
}

/// One worker's part: memory that every batch uses again.
pub(crate) struct Instance {
    network: Arc<Network>,
    workspaces: Vec<Workspace>,
    ids: Vec<u32>,
    types: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<Range<usize>>,
    output: Vec<f32>,
}

impl Instance {
    pub(crate) fn new(network: Arc<Network>, threads: usize) -> Self {
        Self {
            network,
            workspaces: (0..threads).map(|_| Workspace::default()).collect(),
            ids: Vec::new(),
            types: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
            output: Vec::new(),
        }
    }

    fn read(&mut self, batch: &Batch) -> Result<()> {
        let Self { ids, types, positions, sequences, .. } = self;
        sequences.clear();
        for list in [&mut *ids, &mut *types, &mut *positions] {
            list.clear();
        }
        for sequence in Sequence::all(batch) {
            let start = ids.len();
            sequence.append_to([ids, types, positions])?;
            sequences.push(start..ids.len());
        }
        Ok(())
    }
}

impl Forward for Instance {
    /// The rows of each request; what they are answered is in the instance.
    type Pending = Vec<usize>;

    fn launch(&mut self, batch: Batch, checkpoint: Checkpoint<'_>) -> Result<Vec<usize>> {
        self.read(&batch)?;
        let Self { network, workspaces, ids, types, positions, sequences, output } = self;
        let columns = network.columns();
        output.clear();
        output.resize(sequences.len() * columns, 0.0);

        // Groups of about equal size, as many as keep every thread at work.
        let count = ids.len().div_ceil(GROUP_TOKENS).next_multiple_of(workspaces.len().max(1));
        let group_of = |sequence: &Range<usize>| sequence.start * count / ids.len().max(1);
        let mut rest = &mut output[..];
        let groups = sequences.chunk_by(|a, b| group_of(a) == group_of(b)).map(|sequences| {
            let tokens = match sequences {
                [first, .., last] => first.start..last.end,
                [only] => only.clone(),
                [] => 0..0,
            };
            let tokens = Tokens {
                ids: &ids[tokens.clone()],
                types: &types[tokens.clone()],
                positions: &positions[tokens],
            };
            Group {
                tokens,
                sequences,
                out: rest.split_off_mut(..sequences.len() * columns).unwrap_or_default(),
            }
        });
        let groups = groups.collect();
        for_each_group(workspaces, groups, checkpoint, |workspace, group| {
            network.forward(workspace, group, checkpoint)
        });
        Ok(batch.inputs.iter().map(|input| input.rows).collect())
    }

    fn finish(&mut self, request_rows: Vec<usize>) -> Result<BatchOutput> {
        let finish = &self.network.finish;
        self.output = finish.apply(std::mem::take(&mut self.output));
        Ok(BatchOutput { outputs: scatter_rows(&self.output, finish.width, &request_rows), padding: 0 })
    }
}
