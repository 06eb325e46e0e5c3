//! Which class the primary gave, and which the candidate.

use super::report::{ClassCount, ClassFlip, Classes};
use std::collections::BTreeMap;

/// Classes that are told apart; the rest are `other`.
pub const MAX_CLASSES: usize = 64;
/// The name of what is beyond.
const OTHER: &str = "other";
/// The place of what is beyond.
const OTHER_AT: u8 = MAX_CLASSES as u8;

/// A confusion matrix between two models, of the first [`MAX_CLASSES`] classes that came.
#[derive(Debug, Clone, Default)]
pub(super) struct Confusion {
    /// Places by name.
    places: BTreeMap<String, u8>,
    /// Counts by the primary's place and the candidate's.
    cells: BTreeMap<(u8, u8), u64>,
}

impl Confusion {
    pub(super) fn add(&mut self, primary: &str, candidate: &str, count: u64) {
        let cell = (self.place(primary), self.place(candidate));
        *self.cells.entry(cell).or_default() += count;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for ((primary, candidate), count) in &other.cells {
            self.add(other.name(*primary), other.name(*candidate), *count);
        }
    }

    pub(super) fn report(&self) -> Option<Classes> {
        if self.cells.is_empty() {
            return None;
        }
        let named = |place: u8| self.name(place).to_owned();
        let mut counts: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
        for ((primary, candidate), count) in &self.cells {
            counts.entry(*primary).or_default().0 += count;
            counts.entry(*candidate).or_default().1 += count;
        }
        let total = |(primary, candidate): (u64, u64)| primary + candidate;
        let mut classes: Vec<(u8, (u64, u64))> = counts.into_iter().collect();
        classes.sort_by_key(|(place, counts)| (std::cmp::Reverse(total(*counts)), *place));
        let mut flips: Vec<ClassFlip> = self
            .cells
            .iter()
            .map(|((from, to), count)| ClassFlip {
                primary: named(*from),
                candidate: named(*to),
                count: *count,
            })
            .collect();
        flips.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.primary.cmp(&b.primary)));
        let class = |(place, (primary, candidate))| ClassCount { class: named(place), primary, candidate };
        Some(Classes { classes: classes.into_iter().map(class).collect(), cells: flips })
    }

    fn place(&mut self, name: &str) -> u8 {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        match u8::try_from(self.places.len()) {
            Ok(place) if place < OTHER_AT => {
                self.places.insert(name.to_owned(), place);
                place
            }
            _ => OTHER_AT,
        }
    }

    fn name(&self, place: u8) -> &str {
        self.places.iter().find(|(_, at)| **at == place).map_or(OTHER, |(name, _)| name)
    }
}
