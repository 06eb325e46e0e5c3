use crate::cost::Work;
use std::collections::VecDeque;

/// Where a request stands in its line: the one that must be done first, of those the one that came first. Nanoseconds, of which only the
/// order counts, then a number: comparing two of them takes a few instructions, two `Instant`s ten times as many.
pub(crate) type Key = (u64, u64);

/// A place in a line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) key: Key,
    /// Where the request itself is kept.
    pub(crate) slot: usize,
    pub(crate) work: Work,
}

/// Requests in order of their keys, with the work of all that stand before any of them.
///
/// Pieces of at most [`PIECE`] places, each with the sum of its work: an insertion moves no more than one piece, and a sum over
/// ten thousand requests adds up a few hundred numbers. Nothing is allocated a request.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pieces: VecDeque<Piece>,
    len: usize,
    work: Work,
}

/// Emptied pieces, kept for the next ones that are needed: of all lines that share it.
#[derive(Debug, Default)]
pub(crate) struct Spare(Vec<VecDeque<Place>>);

impl Spare {
    fn take(&mut self) -> VecDeque<Place> {
        self.0.pop().unwrap_or_else(|| VecDeque::with_capacity(PIECE))
    }

    fn keep(&mut self, places: VecDeque<Place>) {
        if self.0.len() < MAX_SPARE {
            self.0.push(places);
        }
    }
}

#[derive(Debug)]
struct Piece {
    places: VecDeque<Place>,
    work: Work,
}

const PIECE: usize = 128;
const MAX_SPARE: usize = 64;

impl Line {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Work of all.
    pub(crate) fn work(&self) -> Work {
        self.work
    }

    pub(crate) fn first(&self) -> Option<&Place> {
        self.pieces.front()?.places.front()
    }

    pub(crate) fn last(&self) -> Option<&Place> {
        self.pieces.back()?.places.back()
    }

    pub(crate) fn insert(&mut self, place: Place, spare: &mut Spare) {
        self.len += 1;
        self.work.add(place.work);
        // Most come with the latest key so far.
        let at = self.piece_of(place.key).min(self.pieces.len().saturating_sub(1));
        let Some(piece) = self.pieces.get_mut(at) else {
            let mut places = spare.take();
            places.push_back(place);
            self.pieces.push_back(Piece { places, work: place.work });
            return;
        };
        let within = piece.places.partition_point(|other| other.key < place.key);
        if piece.places.len() < PIECE {
            piece.work.add(place.work);
            piece.places.insert(within, place);
            return;
        }
        let mut after = spare.take();
        if at + 1 == self.pieces.len() && within == PIECE {
            // At the end of the line pieces stay full.
            after.push_back(place);
            self.pieces.push_back(Piece { places: after, work: place.work });
            return;
        }
        let Some(piece) = self.pieces.get_mut(at) else { return };
        let half = PIECE / 2;
        after.extend(piece.places.drain(half..));
        if within <= half {
            piece.places.insert(within, place);
        } else {
            after.insert(within - half, place);
        }
        piece.work = sum(&piece.places);
        let work = sum(&after);
        self.pieces.insert(at + 1, Piece { places: after, work });
    }

    /// Takes out the place with `key`.
    pub(crate) fn remove(&mut self, key: Key, spare: &mut Spare) -> Option<Place> {
        let at = self.piece_of(key);
        let piece = self.pieces.get_mut(at)?;
        let within = piece.places.partition_point(|other| other.key < key);
        piece.places.get(within).filter(|place| place.key == key)?;
        let place = piece.places.remove(within)?;
        piece.work.take(place.work);
        self.len -= 1;
        self.work.take(place.work);
        self.tidy(at, spare);
        Some(place)
    }

    /// Lets go of the piece at `at` when it is empty, and of its successor where one of both is enough: there are never many small
    /// ones.
    fn tidy(&mut self, at: usize, spare: &mut Spare) {
        let len = |at: usize| self.pieces.get(at).map(|piece| piece.places.len());
        match (len(at), len(at + 1)) {
            (Some(0), _) => self.pieces.remove(at).into_iter().for_each(|piece| spare.keep(piece.places)),
            (Some(this), Some(next)) if this + next <= PIECE / 2 => {
                let Some(mut next) = self.pieces.remove(at + 1) else { return };
                if let Some(piece) = self.pieces.get_mut(at) {
                    piece.places.append(&mut next.places);
                    piece.work.add(next.work);
                }
                spare.keep(next.places);
            }
            _ => {}
        }
    }

    /// The work of all that stand before `key`.
    pub(crate) fn before(&self, key: Key) -> Work {
        let at = self.piece_of(key);
        if at == self.pieces.len() {
            return self.work;
        }
        let mut work = Work::default();
        self.pieces.iter().take(at).for_each(|piece| work.add(piece.work));
        let Some(Piece { places, work: of_piece }) = self.pieces.get(at) else { return work };
        let within = places.partition_point(|place| place.key < key);
        // From the nearer end.
        if within <= places.len() / 2 {
            places.range(..within).for_each(|place| work.add(place.work));
        } else {
            work.add(*of_piece);
            places.range(within..).for_each(|place| work.take(place.work));
        }
        work
    }

    /// The places behind `key`; all without one.
    pub(crate) fn from(&self, key: Option<Key>) -> impl Iterator<Item = &Place> {
        let (piece, within) = key.map_or((0, 0), |key| {
            let piece = self.piece_of(key);
            let places = self.pieces.get(piece).map(|piece| &piece.places);
            (piece, places.map_or(0, |places| places.partition_point(|place| place.key <= key)))
        });
        self.pieces.iter().skip(piece).flat_map(|piece| &piece.places).skip(within)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.pieces.iter().flat_map(|piece| &piece.places)
    }

    /// The first piece that ends at `key` or after it.
    fn piece_of(&self, key: Key) -> usize {
        let ends_before = |piece: &Piece| piece.places.back().is_some_and(|last| last.key < key);
        // Most come at the end and leave at the front.
        match (self.pieces.back(), self.pieces.front()) {
            (Some(last), _) if ends_before(last) => self.pieces.len(),
            (_, Some(first)) if !ends_before(first) => 0,
            _ => self.pieces.partition_point(ends_before),
        }
    }
}

fn sum(places: &VecDeque<Place>) -> Work {
    let mut work = Work::default();
    places.iter().for_each(|place| work.add(place.work));
    work
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// A line is a sorted map that knows the work before each key.
        #[test]
        fn it_is_a_sorted_map(steps in prop::collection::vec((0u64..500, 0usize..5, 0u8..10), 1..1500)) {
            let (mut line, mut spare) = (Line::default(), Spare::default());
            let mut expected = BTreeMap::new();
            for (seq, (at, tokens, what)) in steps.into_iter().enumerate() {
                let key = (at, seq as u64);
                if what < 7 {
                    let work = Work { rows: 1, tokens };
                    line.insert(Place { key, slot: seq, work }, &mut spare);
                    expected.insert(key, work);
                } else {
                    let victim = match what {
                        7 => expected.keys().next(),
                        8 => expected.keys().next_back(),
                        _ => expected.range(key..).next().map(|(key, _)| key),
                    };
                    if let Some(&victim) = victim {
                        let removed = line.remove(victim, &mut spare).map(|place| place.work);
                        prop_assert_eq!(removed, expected.remove(&victim));
                    }
                }
                let mut before = Work::default();
                expected.range(..key).for_each(|(_, work)| before.add(*work));
                prop_assert_eq!(line.before(key), before);
                prop_assert!(line.from(Some(key)).map(|place| place.key).eq(expected.range(key..).map(|(k, _)| *k).filter(|k| *k > key)));
                prop_assert!(line.remove((9_000, 0), &mut spare).is_none());
            }
            let keys: Vec<Key> = line.iter().map(|place| place.key).collect();
            prop_assert_eq!(&keys, &expected.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(line.len, keys.len());
            prop_assert_eq!(line.first().map(|place| place.key), keys.first().copied());
            prop_assert_eq!(line.last().map(|place| place.key), keys.last().copied());
        }
    }
}
