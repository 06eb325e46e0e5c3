use crate::error::{Result, StatsError, finite, in_range};
use serde::{Deserialize, Serialize};

/// Values that are kept apart.
const MOST_KEYS: usize = 512;
/// Values that wait to be sorted in.
const MOST_WAITING: usize = 4_096;

/// How often which values came, of any sign and scale, in at most 512 counts: exactly while there are no more distinct values, else
/// to as many leading bits of them as leave no more. What it holds does not depend on the order of values, so merged sketches
/// are the sketch of all values to the last bit.
///
/// Counts are exact: only where a value lies within its bucket is forgotten. Buckets are as fine as the range that values fill allows:
/// years stay years, and values between 999 and 1,001 a few thousandths apart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct ValueSketch {
    /// Bits of a key that are dropped.
    dropped: u32,
    /// Keys and their counts, ascending.
    sorted: Vec<(u64, u64)>,
    waiting: Vec<u64>,
}

/// As it is stored: keys as the differences to the one before.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    dropped: u32,
    steps: Vec<u64>,
    counts: Vec<u64>,
}

impl ValueSketch {
    /// Takes a value.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<()> {
        finite("value", &[value])?;
        self.waiting.push(key(value));
        if self.waiting.len() == MOST_WAITING {
            self.settle();
        }
        Ok(())
    }

    /// Takes all that `other` took.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        other.settle();
        self.settle();
        let dropped = self.dropped.max(other.dropped);
        self.drop_bits(dropped);
        other.drop_bits(dropped);
        self.sorted.append(&mut other.sorted);
        self.shrink();
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.waiting.len() as u64 + self.sorted.iter().map(|(_, count)| count).sum::<u64>()
    }

    /// Buckets in order: the largest value each may hold, and its count. Where values are few enough, each is one.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let mut settled;
        let sketch = if self.waiting.is_empty() {
            self
        } else {
            settled = self.clone();
            settled.settle();
            &settled
        };
        let low = low_bits(sketch.dropped);
        // The last bucket may reach beyond the numbers.
        let upper = |key: u64| Some(value((key << sketch.dropped) | low)).filter(|end| end.is_finite());
        sketch.sorted.iter().map(|&(key, count)| (upper(key).unwrap_or(f64::MAX), count)).collect()
    }

    /// The value with the share `p` of all values at or below it, as the upper end of its bucket; `None` before the first.
    ///
    /// # Errors
    /// `p` not in 0..=1.
    pub fn quantile(&self, p: f64) -> Result<Option<f64>> {
        in_range("p", p, (0.0..=1.0).contains(&p), "a number between 0 and 1")?;
        let buckets = self.buckets();
        let rank = ((p * self.count() as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let at = buckets.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        Ok(at.map(|(value, _)| *value))
    }

    /// Sorts in what waits.
    fn settle(&mut self) {
        let dropped = self.dropped;
        self.sorted.extend(self.waiting.drain(..).map(|key| (key >> dropped, 1)));
        self.shrink();
    }

    /// Makes keys ascend, and drops bits until they are few enough.
    fn shrink(&mut self) {
        self.sorted.sort_unstable_by_key(|(key, _)| *key);
        self.gather();
        while self.sorted.len() > MOST_KEYS {
            self.drop_bits(self.dropped + 1);
        }
    }

    fn drop_bits(&mut self, dropped: u32) {
        let more = dropped - self.dropped;
        if more > 0 {
            self.sorted.iter_mut().for_each(|(key, _)| *key >>= more);
            self.dropped = dropped;
            self.gather();
        }
    }

    /// Adds the counts of equal keys, which lie beside each other.
    fn gather(&mut self) {
        self.sorted.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.saturating_add(next.1);
            }
            same
        });
    }
}

impl PartialEq for ValueSketch {
    fn eq(&self, other: &Self) -> bool {
        let settled = |sketch: &Self| {
            let mut sketch = sketch.clone();
            sketch.settle();
            (sketch.dropped, sketch.sorted)
        };
        settled(self) == settled(other)
    }
}

impl From<ValueSketch> for Stored {
    fn from(mut sketch: ValueSketch) -> Self {
        sketch.settle();
        let mut before = 0;
        let step = |(key, _): &(u64, u64)| key - std::mem::replace(&mut before, *key);
        Self {
            dropped: sketch.dropped,
            steps: sketch.sorted.iter().map(step).collect(),
            counts: sketch.sorted.iter().map(|(_, count)| *count).collect(),
        }
    }
}

impl TryFrom<Stored> for ValueSketch {
    type Error = StatsError;

    fn try_from(stored: Stored) -> Result<Self> {
        let Stored { dropped, steps, counts } = stored;
        let bad = || StatsError::Undefined { reason: "this is no stored sketch" };
        if dropped > 63 || steps.len() != counts.len() || steps.len() > MOST_KEYS {
            return Err(bad());
        }
        let mut key = 0_u64;
        let mut sorted = Vec::with_capacity(steps.len());
        for (at, (step, count)) in steps.into_iter().zip(counts).enumerate() {
            key = key.checked_add(step).ok_or_else(bad)?;
            if (at > 0 && step == 0) || key > u64::MAX >> dropped || count == 0 || count > 1 << 52 {
                return Err(bad());
            }
            sorted.push((key, count));
        }
        Ok(Self { dropped, sorted, waiting: Vec::new() })
    }
}

fn low_bits(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// Numbers in the order of the values.
fn key(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

fn value(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 { key & !(1 << 63) } else { !key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn of(values: &[f64]) -> ValueSketch {
        let mut sketch = ValueSketch::default();
        values.iter().for_each(|value| sketch.update(*value).unwrap());
        sketch
    }

    #[test]
    fn keys_are_in_the_order_of_values() {
        let ordered = [f64::MIN, -1.5, -1e-300, 0.0, 1e-310, 2.0, f64::MAX];
        assert!(ordered.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
        assert!(ordered.iter().all(|it| value(key(*it)) == *it));
        assert_eq!(key(-0.0), key(0.0));
    }

    #[test]
    fn few_values_are_exact_and_many_are_near() {
        let years: Vec<f64> = (0..10_000).map(|at| f64::from(1990 + at % 30)).collect();
        let sketch = of(&years);
        assert_eq!(sketch.buckets()[0], (1990.0, 334));
        assert_eq!((sketch.buckets().len(), sketch.quantile(1.0).unwrap()), (30, Some(2019.0)));
        let mut random = Rng::with_seed(1);
        let mut narrow: Vec<f64> = (0..50_000).map(|_| 999.0 + 2.0 * random.f64()).collect();
        let sketch = of(&narrow);
        narrow.sort_unstable_by(f64::total_cmp);
        for p in [0.01, 0.25, 0.5, 0.99] {
            let (exact, found) = (narrow[(p * 50_000.0) as usize], sketch.quantile(p).unwrap().unwrap());
            assert!((exact - found).abs() < 0.02, "{p}: {exact} {found}");
        }
        // What lies at or below a bucket's end is counted exactly.
        let mut below = 0;
        for (end, count) in sketch.buckets() {
            below += count;
            assert_eq!(narrow.iter().filter(|value| **value <= end).count() as u64, below);
        }
    }

    #[test]
    fn merged_is_all_at_once_whatever_the_order_and_so_is_what_is_stored() {
        let mut random = Rng::with_seed(2);
        let mut values: Vec<f64> = (0..30_000)
            .map(|_| (random.f64() * 40.0 - 20.0).exp() * if random.bool() { 1.0 } else { -1.0 })
            .collect();
        let whole = of(&values);
        let mut merged = of(&values[20_000..]);
        merged.merge(&of(&values[..20_000]));
        merged.merge(&ValueSketch::default());
        assert_eq!(merged, whole);
        random.shuffle(&mut values);
        assert_eq!(of(&values), whole);
        let text = serde_json::to_string(&whole).unwrap();
        assert!(text.len() < 6_000, "{}", text.len());
        assert_eq!(serde_json::from_str::<ValueSketch>(&text).unwrap(), whole);
    }

    #[test]
    fn hostile_values_neither_grow_nor_panic() {
        let mut random = Rng::with_seed(3);
        let mut sketch = ValueSketch::default();
        for _ in 0..100_000 {
            let value = f64::from_bits(random.u64(..));
            assert_eq!(sketch.update(value).is_ok(), value.is_finite());
        }
        assert!(sketch.buckets().len() <= MOST_KEYS);
        assert!(sketch.quantile(0.5).unwrap().unwrap().is_finite() && sketch.quantile(2.0).is_err());
        assert_eq!(ValueSketch::default().quantile(0.5).unwrap(), None);
        for text in [
            r#"{"dropped":64,"steps":[],"counts":[]}"#,
            r#"{"dropped":0,"steps":[1,0],"counts":[1,1]}"#,
            r#"{"dropped":60,"steps":[99],"counts":[1]}"#,
            r#"{"dropped":0,"steps":[1],"counts":[0]}"#,
            r#"{"dropped":0,"steps":[1],"counts":[]}"#,
        ] {
            assert!(serde_json::from_str::<ValueSketch>(text).is_err(), "{text}");
        }
    }
}
