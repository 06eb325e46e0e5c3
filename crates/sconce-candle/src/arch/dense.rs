use crate::cpu::{self, Activation, PackedMatrix};
use crate::weights::Weights;
use candle_core::{CpuStorage, CustomOp1, DType, Device, InplaceOp2, Layout, Shape, Tensor};
use candle_nn::ops::{layer_norm, sigmoid};
use std::ops::Range;

type Result<T, E = candle_core::Error> = std::result::Result<T, E>;

/// Where and in what a model computes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
}

impl Target {
    /// Whether our own kernels run: f32 on the CPU. Anything else is left to Candle.
    fn is_fast(&self) -> bool {
        self.device.is_cpu() && self.dtype == DType::F32
    }
}

/// A dense layer and the activation after it.
#[derive(Debug)]
pub(crate) struct Dense {
    weights: Matrix,
    bias: Vector,
    act: Activation,
}

#[derive(Debug)]
enum Matrix {
    Packed(PackedMatrix),
    /// [in, out], contiguous: how `gemm` reads it without packing it again for every batch.
    Candle(Tensor),
}

/// A vector where the kernels want it: in memory, or on the device.
#[derive(Debug)]
struct Vector {
    host: Vec<f32>,
    tensor: Tensor,
}

impl Vector {
    fn new(tensor: &Tensor, target: &Target) -> Result<Self> {
        let host = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { host, tensor: tensor.to_dtype(target.dtype)?.to_device(&target.device)? })
    }
}

impl Dense {
    /// Reads one layer, or several that share their input (query, key and value) as one. Each is named by its
    /// weights [out, in] and its bias [out], if it has one.
    pub(crate) fn load(
        weights: &Weights,
        names: &[(String, Option<String>)],
        act: Activation,
        target: &Target,
    ) -> Result<Self, String> {
        let read = |name: &str| weights.read(name, DType::F32, &Device::Cpu);
        let mut matrices = Vec::with_capacity(names.len());
        let mut biases = Vec::with_capacity(names.len());
        for (weight, bias) in names {
            let matrix = read(weight)?;
            biases.push(match bias {
                Some(name) => read(name)?,
                None => matrix.narrow(1, 0, 1).and_then(|c| c.flatten_all()?.zeros_like()).map_err(fault)?,
            });
            matrices.push(matrix);
        }
        Self::new(&matrices, &biases, act, target).map_err(fault)
    }

    fn new(matrices: &[Tensor], biases: &[Tensor], act: Activation, target: &Target) -> Result<Self> {
        let stored = Tensor::cat(matrices, 0)?;
        let (columns, inner) = stored.dims2()?;
        let weights = if target.is_fast() {
            let rows = stored.flatten_all()?.to_vec1::<f32>()?;
            Matrix::Packed(PackedMatrix::from_transposed(&rows, columns, inner))
        } else {
            Matrix::Candle(stored.to_dtype(target.dtype)?.t()?.contiguous()?.to_device(&target.device)?)
        };
        Ok(Self { weights, bias: Vector::new(&Tensor::cat(biases, 0)?, target)?, act })
    }

    /// `x` [rows, in], contiguous; gives [rows, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Matrix::Packed(weights) => {
                x.apply_op1_no_bwd(&DenseOp { weights, bias: &self.bias.host, act: self.act })
            }
            Matrix::Candle(weights) => {
                activate(&x.matmul(weights)?.broadcast_add(&self.bias.tensor)?, self.act)
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        let matrix = match &self.weights {
            Matrix::Packed(weights) => weights.bytes(),
            Matrix::Candle(tensor) => tensor_bytes(tensor),
        };
        matrix + tensor_bytes(&self.bias.tensor)
    }
}

/// Bytes a tensor's elements take.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// A failure of the framework while a model is loaded.
pub(crate) fn fault(e: candle_core::Error) -> String {
    format!("weights: {e}")
}

fn activate(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::None => Ok(x.clone()),
        Activation::Relu => x.relu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
    }
}

/// A layer norm over the last dimension.
#[derive(Debug)]
pub(crate) struct Norm {
    gamma: Vector,
    beta: Vector,
    epsilon: f32,
    fast: bool,
}

impl Norm {
    pub(crate) fn load(
        weights: &Weights,
        gamma: &str,
        beta: &str,
        epsilon: f32,
        target: &Target,
    ) -> Result<Self, String> {
        // Norms are computed in f32 whatever the model computes in: halves lose too much in the sums.
        let in_f32 = Target { dtype: DType::F32, ..target.clone() };
        let read =
            |name: &str| Vector::new(&weights.read(name, DType::F32, &Device::Cpu)?, &in_f32).map_err(fault);
        Ok(Self { gamma: read(gamma)?, beta: read(beta)?, epsilon, fast: target.is_fast() })
    }

    /// The norm of `x + residual`. `x` is overwritten: nothing else may hold it.
    pub(crate) fn add(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        if self.fast {
            x.inplace_op2(residual, self)?;
            return Ok(x);
        }
        let dtype = x.dtype();
        let sum = (x + residual)?.to_dtype(DType::F32)?;
        layer_norm(&sum, &self.gamma.tensor, &self.beta.tensor, self.epsilon)?.to_dtype(dtype)
    }

    pub(crate) fn bytes(&self) -> usize {
        tensor_bytes(&self.gamma.tensor) + tensor_bytes(&self.beta.tensor)
    }
}

impl InplaceOp2 for Norm {
    fn name(&self) -> &'static str {
        "add-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let residual = f32_slice(y, y_layout)?;
        let CpuStorage::F32(x) = x else { candle_core::bail!("add-norm: expected f32") };
        let Some((0, end)) = x_layout.contiguous_offsets() else {
            candle_core::bail!("add-norm: expected a whole contiguous tensor")
        };
        cpu::add_norm(&mut x[..end], residual, &self.gamma.host, &self.beta.host, self.epsilon);
        Ok(())
    }
}

fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected a contiguous f32 tensor"),
    }
}

struct DenseOp<'a> {
    weights: &'a PackedMatrix,
    bias: &'a [f32],
    act: Activation,
}

impl CustomOp1 for DenseOp<'_> {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = layout.shape().dims2()?;
        if inner != self.weights.inner() {
            candle_core::bail!("dense: expected rows of {} values, got {inner}", self.weights.inner());
        }
        let out = cpu::dense(f32_slice(storage, layout)?, self.weights, self.bias, self.act);
        Ok((CpuStorage::F32(out), (rows, self.weights.columns()).into()))
    }
}

/// Self-attention of packed sequences. `qkv` is [tokens, 3 · hidden]; sequence `i` has the tokens
/// `sequences[i]`, which follow one another from 0; sequences of equal length must be neighbours to run
/// together. Gives [tokens, hidden].
pub(crate) fn attention(qkv: &Tensor, heads: usize, sequences: &[Range<usize>]) -> Result<Tensor> {
    if qkv.device().is_cpu() && qkv.dtype() == DType::F32 {
        return qkv.apply_op1_no_bwd(&AttentionOp { heads, sequences });
    }
    let contexts: Vec<Tensor> = equal_lengths(sequences)
        .map(|group| grouped_attention(qkv, heads, &sequences[group]))
        .collect::<Result<_>>()?;
    Tensor::cat(&contexts, 0)
}

/// Neighbouring sequences of equal length.
pub(crate) fn equal_lengths(sequences: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut start = 0;
    sequences.chunk_by(|a, b| a.len() == b.len()).map(move |group| {
        let range = start..start + group.len();
        start = range.end;
        range
    })
}

/// Attention of sequences of one length, as one batched product.
fn grouped_attention(qkv: &Tensor, heads: usize, group: &[Range<usize>]) -> Result<Tensor> {
    let [first, ..] = group else { candle_core::bail!("attention: an empty group") };
    let (tokens, count) = (first.len(), group.len());
    let dim = qkv.dim(1)? / 3 / heads;
    // [sequences, tokens, 3, heads, dim] → [3, sequences, heads, tokens, dim]
    let parts = qkv
        .narrow(0, first.start, tokens * count)?
        .reshape((count, tokens, 3, heads, dim))?
        .permute([2, 0, 3, 1, 4])?
        .contiguous()?;
    let (query, key, value) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
    let scale = 1.0 / (dim as f64).sqrt();
    // Scaled before the product, so that the scores of a long f16 sequence do not overflow.
    let scores = (query * scale)?.matmul(&key.t()?)?.to_dtype(DType::F32)?;
    let shares = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(qkv.dtype())?;
    shares.matmul(&value)?.transpose(1, 2)?.contiguous()?.reshape((tokens * count, heads * dim))
}

struct AttentionOp<'a> {
    heads: usize,
    sequences: &'a [Range<usize>],
}

impl CustomOp1 for AttentionOp<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = layout.shape().dims2()?;
        let hidden = width / 3;
        let out = cpu::attention(f32_slice(storage, layout)?, hidden, self.heads, self.sequences);
        Ok((CpuStorage::F32(out), (tokens, hidden).into()))
    }
}

/// What turns logits into probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scores {
    /// As they are.
    Raw,
    /// Of classes that exclude each other.
    Softmax,
    /// Of classes that do not.
    Sigmoid,
    /// Of one logit: the probabilities of no and of yes.
    Binary,
}

impl Scores {
    /// Columns that come of `logits` columns.
    pub(crate) fn columns(self, logits: usize) -> usize {
        if self == Self::Binary { 2 } else { logits }
    }

    /// Applies it to `values` [rows, width].
    pub(crate) fn apply(self, mut values: Vec<f32>, width: usize) -> Vec<f32> {
        match self {
            Self::Raw => {}
            Self::Softmax => values.chunks_exact_mut(width.max(1)).for_each(softmax),
            Self::Sigmoid => values.iter_mut().for_each(|value| *value = logistic(*value)),
            // Each from its own logit: 1 - p would lose the small one's digits.
            Self::Binary => return values.into_iter().flat_map(|x| [logistic(-x), logistic(x)]).collect(),
        }
        values
    }
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::MIN, f32::max);
    row.iter_mut().for_each(|value| *value = (*value - most).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= sum);
}

/// The values of a tensor, in memory as f32.
pub(crate) fn to_f32(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Divides each row of `width` values by its Euclidean length.
pub(crate) fn normalize(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x /= length);
    }
}

/// The mean over each sequence's tokens of `x` [tokens, hidden]; gives [sequences, hidden]. Sequences as in
/// [`attention`].
pub(crate) fn mean_pool(x: &Tensor, sequences: &[Range<usize>]) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() == DType::F32 {
        return x.apply_op1_no_bwd(&MeanPoolOp { sequences });
    }
    let hidden = x.dim(1)?;
    let means: Vec<Tensor> = equal_lengths(sequences)
        .map(|group| {
            let group = &sequences[group];
            let (start, tokens) = group.first().map_or((0, 0), |first| (first.start, first.len()));
            let rows = x.narrow(0, start, group.len() * tokens)?.to_dtype(DType::F32)?;
            rows.reshape((group.len(), tokens, hidden))?.mean(1)
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&means, 0)
}

struct MeanPoolOp<'a> {
    sequences: &'a [Range<usize>],
}

impl CustomOp1 for MeanPoolOp<'_> {
    fn name(&self) -> &'static str {
        "mean-pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, hidden) = layout.shape().dims2()?;
        let x = f32_slice(storage, layout)?;
        let mut out = vec![0.0; self.sequences.len() * hidden];
        for (mean, tokens) in out.chunks_exact_mut(hidden).zip(self.sequences) {
            for row in x[tokens.start * hidden..tokens.end * hidden].chunks_exact(hidden) {
                mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value);
            }
            mean.iter_mut().for_each(|mean| *mean /= tokens.len() as f32);
        }
        Ok((CpuStorage::F32(out), (self.sequences.len(), hidden).into()))
    }
}
