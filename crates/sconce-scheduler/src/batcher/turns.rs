/// Whose turn it is: numbers in fixed places, of which the smallest is found at once and any changed in logarithmic time.
///
/// A tournament in one allocation: each node holds the smaller one of its two children, the root, at 1, the smallest of all. A search
/// tree would take several times as long for few tenants, who are nearly all there are.
#[derive(Debug)]
pub(super) struct Turns {
    /// The inner nodes, and from the middle on the places. [`Turns::NEVER`] where there is none.
    nodes: Vec<f64>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { nodes: vec![Self::NEVER; 2] }
    }
}

impl Turns {
    /// Whoever has this has no turn.
    pub(super) const NEVER: f64 = f64::INFINITY;

    fn places(&self) -> usize {
        self.nodes.len() / 2
    }

    fn node(&self, at: usize) -> f64 {
        self.nodes.get(at).copied().unwrap_or(Self::NEVER)
    }

    pub(super) fn set(&mut self, place: usize, turn: f64) {
        if place >= self.places() {
            self.grow(place + 1);
        }
        let mut at = self.places() + place;
        let mut least = turn;
        while let Some(node) = self.nodes.get_mut(at) {
            *node = least;
            if at <= 1 {
                break;
            }
            least = least.min(self.node(at ^ 1));
            at /= 2;
        }
    }

    fn grow(&mut self, places: usize) {
        let old = std::mem::take(&mut self.nodes);
        self.nodes.resize(2 * places.next_power_of_two(), Self::NEVER);
        for (place, turn) in old.get(old.len() / 2..).unwrap_or_default().iter().enumerate() {
            self.set(place, *turn);
        }
    }

    /// The place whose turn comes first.
    pub(super) fn first(&self) -> Option<usize> {
        if self.node(1) == Self::NEVER {
            return None;
        }
        let mut at = 1;
        while at < self.places() {
            at = if self.node(2 * at) <= self.node(2 * at + 1) { 2 * at } else { 2 * at + 1 };
        }
        Some(at - self.places())
    }

    /// The places that have a turn.
    pub(super) fn all(&self) -> impl Iterator<Item = usize> {
        let mut next = (self.node(1) != Self::NEVER).then_some(1);
        std::iter::from_fn(move || {
            let mut at = next?;
            while at < self.places() {
                at = if self.node(2 * at) == Self::NEVER { 2 * at + 1 } else { 2 * at };
            }
            let place = at - self.places();
            // Up to where there is something on the right.
            while at > 1 && (at % 2 == 1 || self.node(at + 1) == Self::NEVER) {
                at /= 2;
            }
            next = (at > 1).then_some(at + 1);
            Some(place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn the_first_is_the_smallest_of_all(steps in prop::collection::vec((0usize..70, prop::option::of(-5.0..5.0f64)), 0..300)) {
            let (mut turns, mut expected) = (Turns::default(), BTreeMap::new());
            for (place, turn) in steps {
                turns.set(place, turn.unwrap_or(Turns::NEVER));
                match turn {
                    Some(turn) => expected.insert(place, turn),
                    None => expected.remove(&place),
                };
                let least = expected.values().copied().min_by(f64::total_cmp);
                prop_assert_eq!(turns.first().map(|place| expected[&place]), least);
                prop_assert!(turns.all().eq(expected.keys().copied()));
            }
        }
    }
}
