//! Pairs worth a look: the most divergent, and some at random.

use super::report::Example;

/// Bytes of the inputs of one example; longer ones are left out.
pub const MAX_INPUT_BYTES: usize = 16 * 1024;

/// The `most` examples with the largest keys.
#[derive(Debug, Clone)]
pub(super) struct Largest<K> {
    most: usize,
    kept: Vec<(K, Example)>,
}

impl<K: PartialOrd + Copy> Largest<K> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, kept: Vec::new() }
    }

    /// Whether an example with `key` would be kept.
    pub(super) fn wants(&self, key: K) -> bool {
        self.kept.len() < self.most || self.kept.last().is_some_and(|(least, _)| key > *least)
    }

    pub(super) fn add(&mut self, key: K, example: Example) {
        if !self.wants(key) {
            return;
        }
        let at = self.kept.partition_point(|(other, _)| *other >= key);
        self.kept.insert(at, (key, example));
        self.kept.truncate(self.most);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        other.kept.iter().for_each(|(key, example)| self.add(*key, example.clone()));
    }

    /// Those with the largest keys first.
    pub(super) fn report(&self) -> Vec<Example> {
        self.kept.iter().map(|(_, example)| example.clone()).collect()
    }
}
