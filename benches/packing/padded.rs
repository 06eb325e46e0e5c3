//! A model that runs lengths mixed, made to compute what one would that pads.

use sconce_core::{
    Backend, Batch, BatchOutput, Checkpoint, DataType, Inputs, LoadedModel, ModelInput, Preparation, Result,
    Signature, Tensor,
};
use std::collections::VecDeque;
use std::sync::Arc;

/// How a batch is padded to its longest row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    /// By rows of padding beside: all layers compute it, and the answers stay as they are. Attention sees two short rows in place
    /// of a long one, which takes less: it favours padding.
    Beside,
    /// By padding at the end of each row, which attention sees as well: what it takes in full, and other answers.
    Within,
}

/// `inner`, padded. Requests are of one row.
pub(crate) struct Padded {
    pub(crate) inner: Arc<dyn LoadedModel>,
    pub(crate) padding: Padding,
    /// Whether the scheduler is told, and puts like lengths together.
    pub(crate) is_told: bool,
}

impl LoadedModel for Padded {
    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn memory_bytes(&self) -> usize {
        self.inner.memory_bytes()
    }

    fn preparation(&self, inputs: &Inputs) -> Preparation {
        self.inner.preparation(inputs)
    }

    fn is_padded(&self) -> bool {
        self.is_told
    }

    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        self.inner.prepare(inputs)
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        let (inner, padding) = (self.inner.instance()?, self.padding);
        Ok(Box::new(PaddedBackend { inner, padding, submitted: VecDeque::new() }))
    }
}

struct PaddedBackend {
    inner: Box<dyn Backend>,
    padding: Padding,
    /// Requests and tokens of padding of each batch in flight.
    submitted: VecDeque<(usize, usize)>,
}

impl Backend for PaddedBackend {
    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn submit(&mut self, mut batch: Batch, checkpoint: Checkpoint<'_>) -> Result<()> {
        let longest = batch.inputs.iter().map(ModelInput::longest).max().unwrap_or_default();
        let requests = batch.inputs.len();
        let mut padding = 0;
        for at in 0..requests {
            let tokens = batch.inputs[at].tokens();
            padding += longest - tokens;
            match self.padding {
                _ if tokens == longest => {}
                Padding::Beside => batch.inputs.push(filler(longest - tokens)?),
                Padding::Within => batch.inputs[at] = lengthened(&batch.inputs[at], longest)?,
            }
        }
        self.inner.submit(batch, checkpoint)?;
        self.submitted.push_back((requests, padding));
        Ok(())
    }

    fn collect(&mut self) -> Result<BatchOutput> {
        let (requests, padding) = self.submitted.pop_front().unwrap_or_default();
        let mut output = self.inner.collect()?;
        output.outputs.truncate(requests);
        Ok(BatchOutput { padding, ..output })
    }
}

/// A row of padding.
fn filler(tokens: usize) -> Result<ModelInput> {
    row(std::iter::repeat_n(0, tokens), std::iter::repeat_n(0, tokens), tokens)
}

/// The row, with padding up to `tokens`.
fn lengthened(input: &ModelInput, tokens: usize) -> Result<ModelInput> {
    let pad = |tensor: &Tensor| {
        let values: Vec<i64> = tensor.i64_values().collect();
        values.into_iter().chain(std::iter::repeat(0)).take(tokens)
    };
    match &input.tensors[..] {
        [ids, types, _] => row(pad(ids), pad(types), tokens),
        _ => Err(sconce_core::Error::internal("expected ids, types and positions")),
    }
}

/// A request of one row: ids, types and positions, as the BERT family has them.
fn row(
    ids: impl Iterator<Item = i64>,
    types: impl Iterator<Item = i64>,
    tokens: usize,
) -> Result<ModelInput> {
    let positions = (0..tokens).map(|position| position as i64);
    let tensors = vec![tensor(ids)?, tensor(types)?, tensor(positions)?];
    Ok(ModelInput { tensors, rows: 1, row_tokens: vec![tokens] })
}

fn tensor(values: impl Iterator<Item = i64>) -> Result<Tensor> {
    let data: Vec<u8> = values.flat_map(i64::to_le_bytes).collect();
    Tensor::new(DataType::Int64, vec![data.len() / size_of::<i64>()], data.into())
}
