//! What is made of a network's numbers on the host.

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

/// Divides each row of `width` values by its Euclidean length.
pub(crate) fn normalize(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x /= length);
    }
}
