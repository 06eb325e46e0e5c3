//! What the tests know of two sorted samples: how far each has come at every distinct value, and ranks.

use crate::error::{Result, at_least, finite};

/// A sorted copy of a sample of at least `least` finite values.
pub(crate) fn sorted(name: &'static str, sample: &[f64], least: usize) -> Result<Vec<f64>> {
    at_least(name, sample.len(), least)?;
    finite(name, sample)?;
    let mut sample = sample.to_vec();
    sample.sort_unstable_by(f64::total_cmp);
    Ok(sample)
}

/// One distinct value of two pooled samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub(crate) value: f64,
    /// How many values of the first sample, and of the second, are not above it.
    pub(crate) reached: [usize; 2],
    /// How many equal it.
    pub(crate) equal: [usize; 2],
}

/// The distinct values of two sorted samples, ascending.
pub(crate) fn steps<'a>(x: &'a [f64], y: &'a [f64]) -> impl Iterator<Item = Step> + 'a {
    let (mut i, mut j) = (0, 0);
    std::iter::from_fn(move || {
        let value = match (x.get(i), y.get(j)) {
            (Some(&a), Some(&b)) => a.min(b),
            (Some(&a), None) => a,
            (None, Some(&b)) => b,
            (None, None) => return None,
        };
        let from = (i, j);
        while x.get(i).is_some_and(|&a| a == value) {
            i += 1;
        }
        while y.get(j).is_some_and(|&b| b == value) {
            j += 1;
        }
        Some(Step { value, reached: [i, j], equal: [i - from.0, j - from.1] })
    })
}

/// Twice the rank, among the pooled values, of each that equals the step's: ties share the middle of their ranks.
pub(crate) fn twice_rank(step: &Step) -> u64 {
    let last = (step.reached[0] + step.reached[1]) as u64;
    let tied = (step.equal[0] + step.equal[1]) as u64;
    2 * last - tied + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_walk_the_pooled_values_once() {
        let found: Vec<Step> = steps(&[1.0, 2.0, 2.0], &[2.0, 3.0]).collect();
        let step = |value, reached, equal| Step { value, reached, equal };
        assert_eq!(found, [step(1.0, [1, 0], [1, 0]), step(2.0, [3, 1], [2, 1]), step(3.0, [3, 2], [0, 1])]);
        let ranks: Vec<u64> = found.iter().map(twice_rank).collect();
        assert_eq!(ranks, [2, 6, 10]);
        assert_eq!(steps(&[], &[]).count(), 0);
        // Both zeros are one value.
        assert_eq!(steps(&[-0.0], &[0.0]).count(), 1);
    }
}
