use crate::{Inputs, Result, Signature, Tensor};

/// What a model's [`LoadedModel::prepare`] will take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preparation {
    /// The most bytes it makes beside the inputs.
    pub bytes: usize,
    /// Whether it is real work (tokenizing), for the preparation threads and never for a thread that serves connections; else
    /// it takes microseconds and runs where the request is.
    pub is_heavy: bool,
}

/// A model version in memory: weights read, verified and packed once, shared by every instance.
pub trait LoadedModel: Send + Sync {
    /// What the model takes and gives.
    fn signature(&self) -> &Signature;

    /// Bytes its weights and tables hold.
    fn memory_bytes(&self) -> usize;

    /// Whether equal inputs always have equal answers, so that an answer may be kept and given again. Not so for a model that
    /// draws random numbers or remembers earlier requests.
    fn is_deterministic(&self) -> bool {
        true
    }

    /// What [`prepare`](Self::prepare) will take for these inputs. Cheap.
    fn preparation(&self, _inputs: &Inputs) -> Preparation {
        Preparation::default()
    }

    /// Whether its backends pad every row to the longest of a batch.
    fn is_padded(&self) -> bool {
        false
    }

    /// Turns a request's tensors into what the backend executes: text tokenized, features encoded. After this the
    /// request's true cost, rows and tokens, is known.
    ///
    /// # Errors
    /// `InvalidArgument` for content the signature cannot express (invalid UTF-8, an unknown category).
    fn prepare(&self, inputs: Inputs) -> Result<ModelInput>;

    /// Makes what one worker needs. Cheap; called on the worker's own thread, and again after a panic.
    ///
    /// # Errors
    /// `Internal` when the device refuses.
    fn instance(&self) -> Result<Box<dyn Backend>>;
}

/// What a backend calls between the steps of a batch that it computes itself, on any of its threads, about once a millisecond: here
/// another model's batch may go first. It may take as long as that one does.
pub type Checkpoint<'a> = &'a (dyn Fn() + Sync);

/// One worker's executor. It lives and dies on its worker's thread.
pub trait Backend {
    /// How many batches may be in flight: 1 where `submit` computes, 2 where a device computes beside it.
    fn depth(&self) -> usize {
        1
    }

    /// Starts `batch`.
    ///
    /// # Errors
    /// The batch has failed; nothing of it is in flight.
    fn submit(&mut self, batch: Batch, checkpoint: Checkpoint<'_>) -> Result<()>;

    /// Waits for the oldest submitted batch.
    ///
    /// # Errors
    /// That batch has failed.
    fn collect(&mut self) -> Result<BatchOutput>;
}

/// One prepared request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInput {
    /// Tensors in the order the model's family defines.
    pub tensors: Vec<Tensor>,
    /// Rows, at least 1.
    pub rows: usize,
    /// Tokens of each row, for models that have tokens; empty otherwise.
    pub row_tokens: Vec<usize>,
}

impl ModelInput {
    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.row_tokens.iter().sum()
    }

    /// Tokens of the longest row.
    pub fn longest(&self) -> usize {
        self.row_tokens.iter().copied().max().unwrap_or_default()
    }
}

/// Requests that run together. Ragged: requests keep their own rows, and rows their own lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The requests, in order.
    pub inputs: Vec<ModelInput>,
}

impl Batch {
    /// Rows of all requests.
    pub fn rows(&self) -> usize {
        self.inputs.iter().map(|input| input.rows).sum()
    }

    /// Tokens of all requests.
    pub fn tokens(&self) -> usize {
        self.inputs.iter().map(ModelInput::tokens).sum()
    }
}

/// A batch's answer.
#[derive(Debug)]
pub struct BatchOutput {
    /// Output `i` answers request `i`. An error here fails that request alone (NaN in its own rows, say).
    pub outputs: Vec<Result<InferOutput>>,
    /// Tokens of padding the backend added.
    pub padding: usize,
}

/// One request's answer: tensors in the order of the signature's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferOutput {
    /// The tensors.
    pub tensors: Vec<Tensor>,
}
