//! Splits of data as scikit-learn makes them, so that decisions that depend on a split are the reference implementation's.

use crate::error::{Result, StatsError};

/// Matsumoto and Nishimura's generator with 32 bits, as numpy's `RandomState` uses it.
pub(super) struct MersenneTwister {
    state: [u32; SIZE],
    at: usize,
}

const SIZE: usize = 624;
const PERIOD: usize = 397;

impl MersenneTwister {
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [seed; SIZE];
        for at in 1..SIZE {
            let last = state[at - 1];
            state[at] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(at as u32);
        }
        Self { state, at: SIZE }
    }

    fn next(&mut self) -> u32 {
        if self.at == SIZE {
            for at in 0..SIZE {
                let mixed = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % SIZE] & 0x7fff_ffff);
                let twist = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[at] = self.state[(at + PERIOD) % SIZE] ^ (mixed >> 1) ^ twist;
            }
            self.at = 0;
        }
        let mut value = self.state[self.at];
        self.at += 1;
        value ^= value >> 11;
        value ^= (value << 7) & 0x9d2c_5680;
        value ^= (value << 15) & 0xefc6_0000;
        value ^ (value >> 18)
    }

    /// From 0 to `most`, both included: values that are too large are drawn again.
    fn up_to(&mut self, most: u32) -> u32 {
        if most == 0 {
            return 0;
        }
        let mask = u32::MAX >> most.leading_zeros();
        loop {
            let value = self.next() & mask;
            if value <= most {
                return value;
            }
        }
    }

    fn shuffle(&mut self, items: &mut [usize]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.up_to(at as u32) as usize);
        }
    }
}

/// One split by class into train and test rows, a tenth of all for test.
///
/// # Errors
/// More rows than 32 bits count; fewer than two rows of a class; a part with fewer rows than classes.
pub(super) fn stratified_tests(
    labels: &[bool],
    random: &mut MersenneTwister,
) -> Result<(Vec<usize>, Vec<usize>)> {
    if u32::try_from(labels.len()).is_err() {
        return Err(StatsError::TooMany { name: "labels", most: u32::MAX as usize, got: labels.len() });
    }
    let rows = |class: bool| (0..labels.len()).filter(|&row| labels[row] == class).collect::<Vec<_>>();
    let classes = [rows(false), rows(true)];
    let counts = [classes[0].len(), classes[1].len()];
    let least = counts[0].min(counts[1]);
    if least < 2 {
        return Err(StatsError::TooFew { name: "labels of a class", least: 2, got: least });
    }
    let test_rows = labels.len().div_ceil(10);
    if test_rows < 2 {
        return Err(StatsError::TooFew { name: "labels", least: 11, got: labels.len() });
    }
    let train_counts = apportion(counts, labels.len() - test_rows, random);
    let left = [counts[0] - train_counts[0], counts[1] - train_counts[1]];
    let test_counts = apportion(left, test_rows, random);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (class, mut rows) in classes.into_iter().enumerate() {
        random.shuffle(&mut rows);
        train.extend_from_slice(&rows[..train_counts[class]]);
        test.extend_from_slice(&rows[train_counts[class]..train_counts[class] + test_counts[class]]);
    }
    random.shuffle(&mut train);
    random.shuffle(&mut test);
    Ok((train, test))
}

/// The likeliest counts of two classes among `draws`; equal remainders are settled by chance.
fn apportion(counts: [usize; 2], draws: usize, random: &mut MersenneTwister) -> [usize; 2] {
    let total = (counts[0] + counts[1]) as f64;
    let exact = counts.map(|count| count as f64 / total * draws as f64);
    let mut parts = exact.map(|part| part.floor() as usize);
    let missing = draws.saturating_sub(parts[0] + parts[1]);
    if missing == 1 {
        let remainders = [exact[0] - exact[0].floor(), exact[1] - exact[1].floor()];
        let mut order = [0, 1];
        if remainders[0] == remainders[1] {
            random.shuffle(&mut order);
        } else if remainders[1] > remainders[0] {
            order = [1, 0];
        }
        parts[order[0]] += 1;
    }
    // Rounding may have asked for one more than there is.
    [parts[0].min(counts[0]), parts[1].min(counts[1])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_known_one() {
        let mut random = MersenneTwister::new(5489);
        let last = (0..10_000).map(|_| random.next()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_split_keeps_the_shares_of_the_classes() {
        let labels: Vec<bool> = (0..200).map(|row| row % 4 == 0).collect();
        let (train, test) = stratified_tests(&labels, &mut MersenneTwister::new(42)).unwrap();
        assert_eq!((train.len(), test.len()), (180, 20));
        assert_eq!(test.iter().filter(|row| labels[**row]).count(), 5);
        let mut all = [train, test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
    }
}
