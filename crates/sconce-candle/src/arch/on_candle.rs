//! Layers on Candle's own kernels: on a GPU, and on the CPU in what our kernels do not compute.

use crate::weights::{LayerNames, Weights};
use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{layer_norm, sigmoid};
use sconce_kernels::Activation;
use std::ops::Range;

type Result<T, E = candle_core::Error> = std::result::Result<T, E>;

/// Where and in what a model computes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
}

impl Target {
    /// A tensor of the package as the model computes with it.
    pub(crate) fn read(&self, weights: &Weights, name: &str) -> Result<Tensor, String> {
        weights.read(name, self.dtype, &self.device)
    }
}

/// A dense layer and the activation after it.
#[derive(Debug)]
pub(crate) struct Dense {
    /// [in, out], contiguous: how `gemm` reads it without packing it again for every batch.
    weights: Tensor,
    bias: Option<Tensor>,
    act: Activation,
}

impl Dense {
    /// Reads one layer, or several that share their input (query, key and value) as one.
    pub(crate) fn load(
        weights: &Weights,
        names: &[LayerNames<'_>],
        act: Activation,
        target: &Target,
    ) -> Result<Self, String> {
        let read = |name: &str| weights.read(name, DType::F32, &Device::Cpu);
        let matrices: Vec<Tensor> = names.iter().map(|(weight, _)| read(weight)).collect::<Result<_, _>>()?;
        let biases: Vec<Tensor> =
            names.iter().filter_map(|(_, bias)| bias.map(read)).collect::<Result<_, _>>()?;
        let stored =
            Tensor::cat(&matrices, 0).and_then(|stored| stored.to_dtype(target.dtype)?.t()?.contiguous());
        let bias = || match &biases[..] {
            [] => Ok(None),
            biases => Tensor::cat(biases, 0)?.to_dtype(target.dtype)?.to_device(&target.device).map(Some),
        };
        let weights = stored.and_then(|weights| weights.to_device(&target.device)).map_err(fault)?;
        Ok(Self { weights, bias: bias().map_err(fault)?, act })
    }

    /// `x` [rows, in], contiguous; gives [rows, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.weights)?;
        let sum = match &self.bias {
            Some(bias) => product.broadcast_add(bias)?,
            None => product,
        };
        match self.act {
            Activation::None => Ok(sum),
            Activation::Relu => sum.relu(),
            Activation::Gelu => sum.gelu_erf(),
            Activation::GeluTanh => sum.gelu(),
            Activation::Tanh => sum.tanh(),
            Activation::Sigmoid => sigmoid(&sum),
            Activation::Silu => sum.silu(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        tensor_bytes(&self.weights) + self.bias.as_ref().map_or(0, tensor_bytes)
    }
}

/// Bytes a tensor's elements take.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// A failure of the framework while a model is loaded.
fn fault(e: candle_core::Error) -> String {
    format!("weights: {e}")
}

/// A layer norm over the last dimension, computed in f32 whatever the model computes in: halves lose too much in the sums.
#[derive(Debug)]
pub(crate) struct Norm {
    gamma: Tensor,
    beta: Tensor,
    epsilon: f32,
}

impl Norm {
    pub(crate) fn load(
        weights: &Weights,
        (gamma, beta): (&str, &str),
        epsilon: f32,
        target: &Target,
    ) -> Result<Self, String> {
        let read = |name: &str| weights.read(name, DType::F32, &target.device);
        Ok(Self { gamma: read(gamma)?, beta: read(beta)?, epsilon })
    }

    /// The norm of `x + residual`.
    pub(crate) fn add(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        let sum = (x + residual)?.to_dtype(DType::F32)?;
        layer_norm(&sum, &self.gamma, &self.beta, self.epsilon)?.to_dtype(dtype)
    }

    pub(crate) fn bytes(&self) -> usize {
        tensor_bytes(&self.gamma) + tensor_bytes(&self.beta)
    }
}

/// Self-attention of packed sequences. `qkv` is [tokens, 3 · hidden]; sequence `i` has the tokens `sequences[i]`, which
/// follow one another from 0; sequences of equal length must be neighbours to run together. Gives [tokens, hidden].
pub(crate) fn attention(qkv: &Tensor, heads: usize, sequences: &[Range<usize>]) -> Result<Tensor> {
    let contexts: Vec<Tensor> = equal_lengths(sequences)
        .map(|group| grouped_attention(qkv, heads, &sequences[group]))
        .collect::<Result<_>>()?;
    Tensor::cat(&contexts, 0)
}

/// Neighbouring sequences of equal length.
fn equal_lengths(sequences: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> + '_ {
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

/// The values of a tensor, in memory as f32.
pub(crate) fn to_f32(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The mean over each sequence's tokens of `x` [tokens, hidden]; gives [sequences, hidden]. Sequences as in
/// [`attention`].
pub(crate) fn mean_pool(x: &Tensor, sequences: &[Range<usize>]) -> Result<Tensor> {
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
