use bytes::Bytes;
use sconce_core::{Backend, Batch, BatchOutput, Checkpoint, DataType, Error, InferOutput, Result, Tensor};
use std::cell::RefCell;
use std::collections::VecDeque;

/// A model's computation, split where a device would run beside the worker.
pub(crate) trait Forward {
    /// A batch that was started.
    type Pending;

    /// How many batches may be in flight.
    fn depth(&self) -> usize {
        1
    }

    fn launch(&mut self, batch: Batch, checkpoint: Checkpoint<'_>) -> Result<Self::Pending>;

    fn finish(&mut self, pending: Self::Pending) -> Result<BatchOutput>;
}

/// A [`Backend`] over a [`Forward`]: batches come back in the order they were submitted.
pub(crate) struct Pipeline<F: Forward> {
    forward: F,
    pending: VecDeque<F::Pending>,
}

impl<F: Forward> Pipeline<F> {
    /// Called on the worker's thread: whatever it computes stays in a pool of `threads` threads.
    pub(crate) fn new(forward: F, threads: usize) -> Result<Self> {
        join_own_pool(threads)?;
        Ok(Self { forward, pending: VecDeque::new() })
    }
}

impl<F: Forward> Backend for Pipeline<F> {
    fn depth(&self) -> usize {
        self.forward.depth()
    }

    fn submit(&mut self, batch: Batch, checkpoint: Checkpoint<'_>) -> Result<()> {
        let pending = self.forward.launch(batch, checkpoint)?;
        self.pending.push_back(pending);
        Ok(())
    }

    fn collect(&mut self) -> Result<BatchOutput> {
        let oldest = self.pending.pop_front().ok_or_else(|| Error::internal("no batch is in flight"))?;
        self.forward.finish(oldest)
    }
}

thread_local! {
    static POOL: RefCell<Option<rayon::ThreadPool>> = const { RefCell::new(None) };
}

/// Makes this thread the first of its own rayon pool, so that instances do not fight over the global one. A
/// thread joins a pool once: an instance rebuilt after a panic finds the pool of the one before it.
fn join_own_pool(threads: usize) -> Result<()> {
    if rayon::current_thread_index().is_some() {
        return Ok(());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("sconce-compute-{index}"))
        .use_current_thread()
        .build()
        .map_err(|e| Error::internal("cannot start the instance's compute threads").with_source(e))?;
    POOL.with(|slot| *slot.borrow_mut() = Some(pool));
    Ok(())
}

/// Gives each request a copy of its rows of one output, a slice of `values` ([all rows, `width`]). A request whose own
/// rows hold NaN or an infinity fails alone.
pub(crate) fn scatter_rows(values: &[f32], width: usize, request_rows: &[usize]) -> Vec<Result<InferOutput>> {
    let mut start = 0;
    let mut outputs = Vec::with_capacity(request_rows.len());
    for &rows in request_rows {
        let end = start + rows * width;
        outputs.push(match values.get(start..end) {
            Some(own) if own.iter().all(|value| value.is_finite()) => {
                Tensor::new(DataType::Fp32, vec![rows, width], f32_bytes(own))
                    .map(|tensor| InferOutput { tensors: vec![tensor] })
            }
            Some(_) => Err(Error::internal("the model's output holds NaN or infinity")),
            None => Err(Error::internal("the model gave fewer rows than it got")),
        });
        start = end;
    }
    outputs
}

/// `values` in the protocol's byte layout.
pub(crate) fn f32_bytes(values: &[f32]) -> Bytes {
    let mut data = vec![0; values.len() * 4];
    for (bytes, value) in data.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
    data.into()
}

/// A failure of the framework under a model, with its cause for the log.
pub(crate) fn failed(source: candle_core::Error) -> Error {
    Error::internal("the model failed").with_source(source)
}
