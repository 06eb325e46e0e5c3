use crate::error::{Result, StatsError, in_range, open_unit, positive};
use crate::interval::Interval;
use crate::sequential::{QuantileRanks, quantile_ranks};
use serde::{Deserialize, Serialize};

/// Counts in buckets whose bounds grow by a constant ratio, so every quantile has the same relative error (as in Masson, Rim and
/// Lee, "DDSketch", 2019). Mergeable; at most `ln(most / least) / (2 relative_error) + 2` counts are kept.
///
/// For values of at least 0, such as latencies. A value below `least` is taken for `least` or less, one above `most` for `most`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogSketch {
    relative_error: f64,
    least: f64,
    most: f64,
    count: u64,
    /// Below `least`.
    below: u64,
    /// The index of the first bucket that is kept. Bucket i holds what is above `least ratio^(i-1)`, up to `least ratio^i`.
    first: usize,
    buckets: Vec<u64>,
    smallest: f64,
    largest: f64,
}

/// More buckets than this are more than a quantile is worth: 512 KiB.
const MOST_BUCKETS: f64 = 65_536.0;

impl LogSketch {
    /// Empty. Quantiles from `least` to `most` come out within `relative_error`.
    ///
    /// # Errors
    /// `relative_error` not strictly between 0 and 1; bounds that are not finite, above 0 and in order; so wide a range at so
    /// small an error that more than 65,536 buckets would be needed.
    pub fn new(relative_error: f64, least: f64, most: f64) -> Result<Self> {
        open_unit("relative_error", relative_error)?;
        positive("least", least)?;
        positive("most", most)?;
        in_range("most", most, most > least, "a number above the least")?;
        let sketch = Self {
            relative_error,
            least,
            most,
            count: 0,
            below: 0,
            first: 0,
            buckets: Vec::new(),
            smallest: f64::INFINITY,
            largest: 0.0,
        };
        let needed = (most.ln() - least.ln()) / sketch.ln_ratio();
        in_range(
            "relative_error",
            relative_error,
            needed <= MOST_BUCKETS,
            "one that takes at most 65,536 buckets",
        )?;
        Ok(sketch)
    }

    /// Takes a value.
    ///
    /// # Errors
    /// A value that is negative or not finite.
    pub fn update(&mut self, value: f64) -> Result<()> {
        self.update_times(value, 1)
    }

    /// Takes a value as often as `times`: what another histogram counted, whose own error then adds to this one's.
    ///
    /// # Errors
    /// A value that is negative or not finite.
    pub fn update_times(&mut self, value: f64, times: u64) -> Result<()> {
        in_range("value", value, value >= 0.0 && value.is_finite(), "a finite number of at least 0")?;
        if times == 0 {
            return Ok(());
        }
        self.count += times;
        self.smallest = self.smallest.min(value);
        self.largest = self.largest.max(value);
        if value < self.least {
            self.below += times;
        } else {
            let index = self.index(value.min(self.most));
            self.make_room(index, index);
            self.buckets[index - self.first] += times;
        }
        Ok(())
    }

    /// Takes all that `other` took.
    ///
    /// # Errors
    /// Another error or other bounds.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let ours = (self.relative_error, self.least, self.most);
        if ours != (other.relative_error, other.least, other.most) {
            return Err(StatsError::Undefined {
                reason: "sketches of different errors or bounds do not merge",
            });
        }
        self.count += other.count;
        self.below += other.below;
        self.smallest = self.smallest.min(other.smallest);
        self.largest = self.largest.max(other.largest);
        if !other.buckets.is_empty() {
            self.make_room(other.first, other.first + other.buckets.len() - 1);
            let start = other.first - self.first;
            self.buckets[start..].iter_mut().zip(&other.buckets).for_each(|(ours, theirs)| *ours += theirs);
        }
        Ok(())
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest and the largest value, exactly; `None` before the first.
    pub fn range(&self) -> Option<Interval> {
        (self.count > 0).then_some(Interval { low: self.smallest, high: self.largest })
    }

    /// The value with the share `p` of all values at or below it, within the relative error; `None` before the first.
    ///
    /// # Errors
    /// `p` not in 0..=1.
    pub fn quantile(&self, p: f64) -> Result<Option<f64>> {
        in_range("p", p, (0.0..=1.0).contains(&p), "a number between 0 and 1")?;
        let rank = ((p * self.count as f64).ceil() as u64).max(1);
        // The middle of the bucket, in the sense in which its ends are equally far off.
        let middle = |bounds: Interval| 2.0 * bounds.low * bounds.high / (bounds.low + bounds.high);
        Ok(self.at_rank(rank).map(|bounds| if bounds.high > 0.0 { middle(bounds) } else { 0.0 }))
    }

    /// Where the quantile `p` of the distribution lies at all times together with probability `1 - alpha`: the confidence sequence
    /// of [`quantile_ranks`], widened by the buckets. Its upper end is infinite while nothing bounds it.
    ///
    /// # Errors
    /// As [`quantile_ranks`].
    pub fn quantile_interval(&self, p: f64, alpha: f64, tuned_for: u64) -> Result<Interval> {
        let QuantileRanks { low, high } = quantile_ranks(self.count, p, alpha, tuned_for)?;
        Ok(Interval {
            low: if low == 0 { 0.0 } else { self.at_rank(low).map_or(0.0, |bounds| bounds.low) },
            high: self.at_rank(high).map_or(f64::INFINITY, |bounds| bounds.high),
        })
    }

    /// Between which values the one of `rank` lies; ranks count from 1.
    fn at_rank(&self, rank: u64) -> Option<Interval> {
        if rank == 0 || rank > self.count {
            return None;
        }
        let known = Interval { low: self.smallest, high: self.largest };
        if rank <= self.below {
            return Some(known.intersection(&Interval { low: 0.0, high: self.least }));
        }
        let mut seen = self.below;
        let at = self.buckets.iter().position(|bucket| {
            seen += bucket;
            seen >= rank
        })?;
        let index = (self.first + at) as f64;
        let bound = |index: f64| self.least * (index * self.ln_ratio()).exp();
        // The last digit of a bound is rounding's.
        let bucket = Interval {
            low: bound(index - 1.0) * (1.0 - 1e-12),
            // What lies above the most was counted here.
            high: if bound(index) >= self.most { self.largest } else { bound(index) * (1.0 + 1e-12) },
        };
        Some(known.intersection(&bucket))
    }

    fn ln_ratio(&self) -> f64 {
        ((1.0 + self.relative_error) / (1.0 - self.relative_error)).ln()
    }

    fn index(&self, value: f64) -> usize {
        ((value / self.least).ln() / self.ln_ratio()).ceil().max(0.0) as usize
    }

    /// Extends the kept buckets to hold those from `low` to `high`.
    fn make_room(&mut self, low: usize, high: usize) {
        if self.buckets.is_empty() {
            self.first = low;
        }
        if low < self.first {
            self.buckets.splice(0..0, std::iter::repeat_n(0, self.first - low));
            self.first = low;
        }
        let needed = high + 1 - self.first;
        if needed > self.buckets.len() {
            self.buckets.resize(needed, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn sketch() -> LogSketch {
        LogSketch::new(0.01, 1e-3, 1e6).unwrap()
    }

    #[test]
    fn a_value_many_times_is_as_many_values() {
        let mut once = LogSketch::new(0.01, 1e-3, 1e3).unwrap();
        let mut often = once.clone();
        for (value, times) in [(0.0, 3), (0.5, 7), (5e3, 2), (1.0, 0)] {
            (0..times).for_each(|_| once.update(value).unwrap());
            often.update_times(value, times).unwrap();
        }
        assert_eq!(once, often);
        assert!(often.update_times(-1.0, 1).is_err());
    }

    #[test]
    fn quantiles_are_within_the_relative_error() {
        let mut random = Rng::with_seed(43);
        let (mut whole, mut left, mut right) = (sketch(), sketch(), sketch());
        let mut values: Vec<f64> = (0..20_000).map(|_| (random.f64() * 12.0 - 4.0).exp()).collect();
        for (i, &value) in values.iter().enumerate() {
            whole.update(value).unwrap();
            if i % 3 == 0 { &mut left } else { &mut right }.update(value).unwrap();
        }
        left.merge(&right).unwrap();
        assert_eq!(left, whole);
        values.sort_by(f64::total_cmp);
        for p in [0.0, 0.001, 0.5, 0.95, 0.999, 1.0] {
            let rank = ((p * 20_000.0_f64).ceil() as usize).max(1);
            let (exact, found) = (values[rank - 1], whole.quantile(p).unwrap().unwrap());
            assert!((found / exact - 1.0).abs() <= 0.0101, "{p}: {found} {exact}");
        }
        assert!(whole.buckets.len() < 700, "{}", whole.buckets.len());
    }

    #[test]
    fn values_beyond_the_bounds_are_counted_at_them() {
        let mut sketch = sketch();
        assert_eq!((sketch.quantile(0.5).unwrap(), sketch.range()), (None, None));
        for value in [0.0, 1e-9, 5.0, 1e30] {
            sketch.update(value).unwrap();
        }
        assert!(sketch.quantile(0.5).unwrap().unwrap() <= 1e-3);
        assert!((sketch.quantile(0.75).unwrap().unwrap() / 5.0 - 1.0).abs() < 0.0101);
        assert!(sketch.quantile(1.0).unwrap().unwrap() >= 0.99e6);
        assert_eq!(sketch.range(), Some(Interval { low: 0.0, high: 1e30 }));
        assert!(sketch.buckets.len() < 1_100);
    }

    #[test]
    fn a_confidence_sequence_holds_the_quantile() {
        let mut random = Rng::with_seed(47);
        let mut missed = 0;
        for _ in 0..500 {
            let (mut sketch, mut miss) = (sketch(), false);
            for step in 1..=400 {
                // Exponential with mean 1, whose quantile at 0.9 is ln(10).
                sketch.update(-(1.0 - random.f64()).ln()).unwrap();
                if step % 20 == 0 {
                    let interval = sketch.quantile_interval(0.9, 0.05, 200).unwrap();
                    miss |= !interval.contains(10_f64.ln());
                }
            }
            missed += u32::from(miss);
        }
        assert!(missed <= 25, "{missed}");
        assert_eq!(
            sketch().quantile_interval(0.9, 0.05, 200).unwrap(),
            Interval { low: 0.0, high: f64::INFINITY }
        );
    }

    #[test]
    fn wrong_input_is_refused() {
        assert!(LogSketch::new(0.0, 1.0, 2.0).is_err() && LogSketch::new(0.01, 2.0, 1.0).is_err());
        assert!(LogSketch::new(1e-9, 1.0, 1e9).is_err() && LogSketch::new(0.01, f64::NAN, 1.0).is_err());
        let mut one = sketch();
        assert!(one.update(-1.0).is_err() && one.update(f64::NAN).is_err() && one.quantile(1.5).is_err());
        assert!(one.merge(&LogSketch::new(0.02, 1e-3, 1e6).unwrap()).is_err());
    }
}
