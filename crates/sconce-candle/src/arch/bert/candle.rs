use super::config::{Names, Pair};
use super::{Finish, Output, Plan, Pooling, Sequence, classifier_layers, layer};
use crate::arch::on_candle::{Dense, Norm, Target, attention, mean_pool, tensor_bytes, to_f32};
use crate::backend::{Forward, failed, scatter_rows};
use candle_core::Tensor;
use sconce_core::{Batch, BatchOutput, Checkpoint, Result};
use sconce_kernels::Activation;
use std::ops::Range;
use std::sync::Arc;

/// An encoder on Candle's kernels.
pub(crate) struct Network {
    words: Tensor,
    positions: Tensor,
    types: Option<Tensor>,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    classifier: Option<[Dense; 2]>,
    finish: Finish,
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

impl Network {
    pub(crate) fn load(plan: &Plan, target: Target) -> Result<Self, String> {
        let (config, weights) = (&plan.config, &plan.weights);
        let names = config.names(weights);
        let table = |of| target.read(weights, &names.table(of));
        let classifier = match &plan.output {
            Output::Embedding { .. } => None,
            Output::Classification { .. } => {
                let ([dense, classifier], activation) = classifier_layers(plan);
                let load =
                    |names: &Pair, activation| Dense::load(weights, &[layer(names)], activation, &target);
                Some([load(&dense, activation)?, load(&classifier, Activation::None)?])
            }
        };
        Ok(Self {
            words: table("word")?,
            positions: table("position")?,
            types: if config.token_types > 0 { Some(table("token_type")?) } else { None },
            norm: load_norm(plan, &names.embeddings_norm(), &target)?,
            layers: (0..config.layers)
                .map(|index| Layer::load(plan, names, index, &target))
                .collect::<Result<_, _>>()?,
            heads: config.heads,
            classifier,
            finish: Finish::new(plan),
            target,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let tables = [Some(&self.words), Some(&self.positions), self.types.as_ref()];
        let tables: usize = tables.into_iter().flatten().map(tensor_bytes).sum();
        let classifier: usize = self.classifier.iter().flatten().map(Dense::bytes).sum();
        tables + self.norm.bytes() + self.layers.iter().map(Layer::bytes).sum::<usize>() + classifier
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
        if let Output::Embedding { pooling: Pooling::Mean, .. } = self.finish.head {
            return mean_pool(&x, &layout.sequences);
        }
        let starts: Vec<u32> = layout.sequences.iter().map(|tokens| tokens.start as u32).collect();
        let first = select(&x, &starts)?;
        match &self.classifier {
            None => Ok(first),
            Some([dense, classifier]) => classifier.forward(&dense.forward(&first)?),
        }
    }
}

impl Layer {
    fn load(plan: &Plan, names: Names<'_>, index: usize, target: &Target) -> Result<Self, String> {
        let names = names.layer(index);
        let dense = |names: &[Pair], activation| {
            let names: Vec<_> = names.iter().map(layer).collect();
            Dense::load(&plan.weights, &names, activation, target)
        };
        Ok(Self {
            qkv: dense(&names.qkv, Activation::None)?,
            attention_out: dense(&[names.attention_out], Activation::None)?,
            attention_norm: load_norm(plan, &names.attention_norm, target)?,
            up: dense(&[names.up], plan.config.act)?,
            down: dense(&[names.down], Activation::None)?,
            out_norm: load_norm(plan, &names.out_norm, target)?,
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

fn load_norm(plan: &Plan, (gamma, beta): &Pair, target: &Target) -> Result<Norm, String> {
    Norm::load(&plan.weights, (gamma, beta), plan.config.epsilon, target)
}

/// A batch as it is computed: all tokens of all rows in one list, rows in order of length, so that rows of
/// equal length are neighbours.
#[derive(Default)]
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
        let rows = Sequence::all(batch);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| rows[row].tokens.len());
        let mut layout = Self { order, ..Self::default() };
        for &row in &layout.order {
            let start = layout.ids.len();
            rows[row].append_to([&mut layout.ids, &mut layout.types, &mut layout.positions])?;
            layout.sequences.push(start..layout.ids.len());
        }
        Ok(layout)
    }
}

pub(crate) struct Instance(pub(crate) Arc<Network>);

/// A batch that was started: a row of output for each sequence, and the way back to the requests.
pub(crate) struct Pending {
    output: Tensor,
    order: Vec<usize>,
    request_rows: Vec<usize>,
}

impl Forward for Instance {
    type Pending = Pending;

    fn depth(&self) -> usize {
        if self.0.target.device.is_cpu() { 1 } else { 2 }
    }

    fn launch(&mut self, batch: Batch, _: Checkpoint<'_>) -> Result<Pending> {
        let layout = Layout::new(&batch)?;
        let output = self.0.forward(&layout).map_err(failed)?;
        let request_rows = batch.inputs.iter().map(|input| input.rows).collect();
        Ok(Pending { output, order: layout.order, request_rows })
    }

    fn finish(&mut self, pending: Pending) -> Result<BatchOutput> {
        let width = self.0.finish.width;
        let sorted = self.0.finish.apply(to_f32(&pending.output).map_err(failed)?);
        let mut values = vec![0.0; sorted.len()];
        for (row, from) in pending.order.iter().zip(sorted.chunks_exact(width)) {
            values[row * width..][..width].copy_from_slice(from);
        }
        Ok(BatchOutput { outputs: scatter_rows(&values, width, &pending.request_rows), padding: 0 })
    }
}
