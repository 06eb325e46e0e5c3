use crate::error::{Result, finite, in_range, open_unit};
use serde::{Deserialize, Serialize};

/// How [`Adwin`] looks for changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdwinConfig {
    /// Chance of a false alarm at one look, strictly between 0 and 1.
    pub delta: f64,
    /// Values between two looks; at least 1.
    pub clock: u32,
    /// Buckets of one size that are kept before two are merged; from 1 to 64.
    pub max_buckets: u32,
    /// Values on each side of a cut; at least 1.
    pub min_window: u32,
    /// Values before the first look.
    pub grace: u32,
}

impl Default for AdwinConfig {
    fn default() -> Self {
        Self { delta: 0.002, clock: 32, max_buckets: 5, min_window: 5, grace: 10 }
    }
}

/// Adaptive windowing: the mean over a window that grows while the stream is stable and drops its older part when the parts differ
/// (Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing", 2007).
///
/// The window is an exponential histogram: about `max_buckets * log2(width)` sums are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adwin {
    config: AdwinConfig,
    /// Row r has buckets of `2^r` values, oldest first.
    rows: Vec<Vec<Bucket>>,
    width: u64,
    total: f64,
    squares: f64,
    ticks: u32,
    drifted: bool,
    detections: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Bucket {
    total: f64,
    squares: f64,
}

impl Adwin {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// A setting out of its range.
    pub fn new(config: AdwinConfig) -> Result<Self> {
        open_unit("delta", config.delta)?;
        in_range("clock", f64::from(config.clock), config.clock > 0, "at least 1")?;
        let buckets = config.max_buckets;
        in_range("max_buckets", f64::from(buckets), (1..=64).contains(&buckets), "a number from 1 to 64")?;
        in_range("min_window", f64::from(config.min_window), config.min_window > 0, "at least 1")?;
        Ok(Self {
            config,
            rows: vec![Vec::new()],
            width: 0,
            total: 0.0,
            squares: 0.0,
            ticks: 0,
            drifted: false,
            detections: 0,
        })
    }

    /// Takes a value, and says whether the stream has changed.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<bool> {
        finite("value", &[value])?;
        if self.drifted {
            self.restart();
        }
        self.insert(value);
        // Counted modulo the clock: only that matters.
        self.ticks = (self.ticks + 1) % self.config.clock;
        self.drifted = false;
        if self.ticks == 0 && self.width > u64::from(self.config.grace) {
            while self.has_cut() {
                self.drifted = true;
                self.drop_oldest();
            }
        }
        self.detections += u64::from(self.drifted);
        Ok(self.drifted)
    }

    /// How many values the window holds.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// The mean of the window; NaN while it is empty.
    pub fn mean(&self) -> f64 {
        self.total / self.width as f64
    }

    /// The window's sum of squared deviations from its mean.
    pub fn squared_deviations(&self) -> f64 {
        self.squares
    }

    /// How often the stream has changed.
    pub fn detections(&self) -> u64 {
        self.detections
    }

    fn restart(&mut self) {
        self.rows.truncate(1);
        self.rows[0].clear();
        (self.width, self.total, self.squares, self.ticks) = (0, 0.0, 0.0, 0);
    }

    fn insert(&mut self, value: f64) {
        self.rows[0].push(Bucket { total: value, squares: 0.0 });
        self.width += 1;
        if self.width > 1 {
            let before = (self.width - 1) as f64;
            let off = value - self.total / before;
            self.squares += before * off * off / self.width as f64;
        }
        self.total += value;
        // Two of a size too many become one of the next.
        let mut row = 0;
        let mut size = 1.0;
        while self.rows[row].len() > self.config.max_buckets as usize {
            if row + 1 == self.rows.len() {
                self.rows.push(Vec::new());
            }
            let (first, second) = (self.rows[row][0], self.rows[row][1]);
            self.rows[row].drain(..2);
            let off = first.total / size - second.total / size;
            self.rows[row + 1].push(Bucket {
                total: first.total + second.total,
                squares: first.squares + second.squares + size * size * off * off / (2.0 * size),
            });
            row += 1;
            size *= 2.0;
        }
    }

    /// Whether the parts before and after any boundary of buckets differ too much.
    fn has_cut(&self) -> bool {
        let width = self.width as f64;
        let variance = self.squares / width;
        let least = f64::from(self.config.min_window);
        let log = (2.0 * width.ln() / self.config.delta).ln();
        let (mut old, mut old_total) = (0.0, 0.0);
        for (row, buckets) in self.rows.iter().enumerate().rev() {
            let size = 2_f64.powi(row as i32);
            for bucket in buckets {
                old += size;
                old_total += bucket.total;
                let new = width - old;
                if old < least || new < least {
                    continue;
                }
                let inverse = 1.0 / (old - least + 1.0) + 1.0 / (new - least + 1.0);
                let bound = (2.0 * inverse * variance * log).sqrt() + 2.0 / 3.0 * log * inverse;
                if (old_total / old - (self.total - old_total) / new).abs() > bound {
                    return true;
                }
            }
        }
        false
    }

    fn drop_oldest(&mut self) {
        let last = self.rows.len() - 1;
        if self.rows[last].is_empty() {
            return;
        }
        let Bucket { total, squares } = self.rows[last].remove(0);
        let size = 2_f64.powi(last as i32);
        self.width -= 1 << last;
        self.total -= total;
        let rest = self.width as f64;
        let off = total / size - self.total / rest;
        self.squares -= squares + size * rest * off * off / (size + rest);
        if self.rows[last].is_empty() && last > 0 {
            self.rows.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn memory_grows_with_the_logarithm_of_the_window() {
        let mut adwin = Adwin::new(AdwinConfig::default()).unwrap();
        for _ in 0..100_000 {
            assert!(!adwin.update(1.0).unwrap());
        }
        assert_eq!((adwin.width(), adwin.mean(), adwin.detections()), (100_000, 1.0, 0));
        assert!(adwin.rows.iter().map(Vec::len).sum::<usize>() <= 5 * 17);
    }

    #[test]
    fn a_change_is_found_and_the_old_part_is_dropped() {
        let mut random = Rng::with_seed(53);
        let mut adwin = Adwin::new(AdwinConfig::default()).unwrap();
        let mut found = None;
        for at in 0..4_000 {
            let rate = if at < 2_000 { 0.2 } else { 0.6 };
            if adwin.update(f64::from(u8::from(random.f64() < rate))).unwrap() {
                found.get_or_insert(at);
            }
        }
        assert!(found.is_some_and(|at| (2_000..2_200).contains(&at)), "{found:?}");
        assert!((adwin.mean() - 0.6).abs() < 0.05, "{}", adwin.mean());
    }

    #[test]
    fn huge_values_do_no_harm_and_others_are_refused() {
        let tight =
            AdwinConfig { min_window: 1, clock: 1, grace: 0, max_buckets: 1, ..AdwinConfig::default() };
        let mut adwin = Adwin::new(tight).unwrap();
        for at in 0..1_000 {
            adwin.update(if at % 3 == 0 { 1e308 } else { -1e308 }).unwrap();
        }
        assert!(adwin.update(f64::NAN).is_err());
        assert!(Adwin::new(AdwinConfig { clock: 0, ..AdwinConfig::default() }).is_err());
        assert!(Adwin::new(AdwinConfig { delta: 1.0, ..AdwinConfig::default() }).is_err());
    }
}
