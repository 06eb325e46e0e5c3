//! What is made of a network's numbers on the host.

use sconce_kernels::Isa;

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
            Self::Softmax => sconce_kernels::softmax(Isa::current(), &mut values, width.max(1)),
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
