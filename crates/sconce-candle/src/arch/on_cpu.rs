//! Layers on our own kernels. Values are plain slices in memory that an instance keeps from batch to batch.

use crate::weights::{LayerNames, Weights};
use crate::{ModelSettings, Problems};
use rayon::iter::{IntoParallelRefMutIterator as _, ParallelIterator as _};
use sconce_core::Checkpoint;
use sconce_kernels::{
    Activation, After, Images, Isa, MAX_INT8_INNER, PackedMatrix, Precision, Scratch, Window,
};
use std::sync::{Mutex, PoisonError};

/// Reports a layer that takes more values than the model's precision can sum up. Plans ask it of every layer that is computed in that
/// precision, so that loading need not.
pub(crate) fn check_inner(settings: &ModelSettings, inner: usize, problems: &mut Problems) {
    if settings.precision == crate::Precision::Int8 && inner > MAX_INT8_INNER {
        problems.push(format!(
            "model.toml: `dtype`: int8 expects layers of at most {MAX_INT8_INNER} inputs, got {inner}"
        ));
    }
}

/// A dense layer and the activation after it.
#[derive(Debug)]
pub(crate) struct Dense {
    weights: PackedMatrix,
    bias: Vec<f32>,
    activation: Activation,
}

impl Dense {
    /// Reads one layer, or several that share their input (query, key and value) as one.
    pub(crate) fn load(
        weights: &Weights,
        names: &[LayerNames<'_>],
        activation: Activation,
        precision: Precision,
    ) -> Result<Self, String> {
        let (mut matrix, mut bias, mut inner) = (Vec::new(), Vec::new(), 0);
        for (weight, own_bias) in names {
            inner = weights.shape(weight).and_then(|shape| shape.last().copied()).unwrap_or(0);
            matrix.append(&mut weights.values(weight)?);
            if let Some(name) = own_bias {
                bias.append(&mut weights.values(name)?);
            }
        }
        Ok(Self { weights: pack(&matrix, inner, precision), bias, activation })
    }

    /// A layer without activation, of `matrix` [out, inner].
    pub(crate) fn new(matrix: &[f32], inner: usize, bias: Vec<f32>, precision: Precision) -> Self {
        Self { weights: pack(matrix, inner, precision), bias, activation: Activation::None }
    }

    pub(crate) fn columns(&self) -> usize {
        self.weights.columns()
    }

    /// `out = activation(x · weightsᵀ + bias) + residual` for `x` [rows, in]; an empty `residual` is none.
    pub(crate) fn forward(&self, x: &[f32], residual: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        let after = After { bias: &self.bias, activation: self.activation, residual };
        sconce_kernels::dense(x, &self.weights, after, out, scratch);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.bytes() + self.bias.len() * size_of::<f32>()
    }
}

/// Packs `matrix` [out, inner], where [`check_inner`] had nothing to report of `inner`.
fn pack(matrix: &[f32], inner: usize, precision: Precision) -> PackedMatrix {
    PackedMatrix::new(Isa::current(), precision, matrix, matrix.len() / inner.max(1), inner)
}

/// A convolution, its batch norm folded into it, and whether negative values become zero last.
#[derive(Debug)]
pub(crate) struct Convolution {
    window: Window,
    weights: PackedMatrix,
    bias: Vec<f32>,
    relu: bool,
}

impl Convolution {
    /// Of `matrix` [out channels, size, size, channels].
    pub(crate) fn new(
        window: Window,
        matrix: &[f32],
        bias: Vec<f32>,
        relu: bool,
        precision: Precision,
    ) -> Self {
        let inner = matrix.len() / bias.len().max(1);
        Self { window, weights: pack(matrix, inner, precision), bias, relu }
    }

    /// `out` [images, places down, places across, out channels], to which `residual` is added; an empty one is none.
    pub(crate) fn forward(&self, x: Images<'_>, residual: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        let after = After { bias: &self.bias, activation: Activation::None, residual };
        let Self { window, weights, relu, .. } = self;
        let with = sconce_kernels::Convolution { window: *window, weights, after, relu_last: *relu };
        sconce_kernels::convolve(x, with, out, scratch);
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    pub(crate) fn columns(&self) -> usize {
        self.weights.columns()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.bytes() + self.bias.len() * size_of::<f32>()
    }
}

/// A layer norm over rows.
#[derive(Debug)]
pub(crate) struct Norm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    pub(crate) fn load(weights: &Weights, (gamma, beta): (&str, &str), epsilon: f32) -> Result<Self, String> {
        Ok(Self { gamma: weights.values(gamma)?, beta: weights.values(beta)?, epsilon })
    }

    /// Replaces the rows of `x` by their norm.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        sconce_kernels::add_norm(Isa::current(), x, &[], &self.gamma, &self.beta, self.epsilon);
    }

    pub(crate) fn bytes(&self) -> usize {
        (self.gamma.len() + self.beta.len()) * size_of::<f32>()
    }
}

/// A vector of values that every batch uses again.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// `len` values that the caller overwrites.
    pub(crate) fn take(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        &mut self.0[..len]
    }

    /// The first `len` values, as they were left.
    pub(crate) fn get(&self, len: usize) -> &[f32] {
        &self.0[..len]
    }
}

/// Runs `run` on every group of rows, on as many threads of the instance as there are `workspaces`. Groups know nothing of
/// each other, so no thread waits for another before the last group. Before each group is a checkpoint.
pub(crate) fn for_each_group<W: Send, G: Send>(
    workspaces: &mut [W],
    groups: Vec<G>,
    checkpoint: Checkpoint<'_>,
    run: impl Fn(&mut W, G) + Sync,
) {
    if let [workspace] = workspaces {
        return groups.into_iter().for_each(|group| {
            checkpoint();
            run(workspace, group);
        });
    }
    let left = Mutex::new(groups.into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    workspaces.par_iter_mut().for_each(|workspace| {
        while let Some(group) = next() {
            checkpoint();
            run(workspace, group);
        }
    });
}
