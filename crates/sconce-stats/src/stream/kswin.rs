use crate::error::{Result, finite, in_range, open_unit};
use crate::two_sample::{Alternative, Method, kolmogorov_smirnov};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How [`Kswin`] looks for changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KswinConfig {
    /// Level of a test, strictly between 0 and 1. There is a test at every value, so false alarms are more frequent than this.
    pub alpha: f64,
    /// Values that are kept; at least twice `recent`, at most 10,000.
    pub window: usize,
    /// How many of the newest are tested against as many of the older ones; from 1 to 1,000.
    pub recent: usize,
    /// Where the draw of the older ones starts.
    pub seed: u64,
}

impl Default for KswinConfig {
    fn default() -> Self {
        Self { alpha: 0.005, window: 100, recent: 30, seed: 0 }
    }
}

/// Kolmogorov-Smirnov windowing: the newest values against a draw from those before them (Raab, Heusinger and Schleif, "Reactive soft
/// prototype computing for concept drift streams", 2020). It alarms at a p-value of at most `alpha` if the distance is above 0.1.
///
/// A test takes time in the square of `recent`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kswin {
    config: KswinConfig,
    values: VecDeque<f64>,
    random: u64,
    drifted: bool,
}

impl Kswin {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// A setting out of its range.
    pub fn new(config: KswinConfig) -> Result<Self> {
        open_unit("alpha", config.alpha)?;
        let (window, recent) = (config.window, config.recent);
        in_range("recent", recent as f64, (1..=1_000).contains(&recent), "a number from 1 to 1,000")?;
        let fits = (2 * recent..=10_000).contains(&window);
        in_range("window", window as f64, fits, "a number from twice `recent` to 10,000")?;
        Ok(Self { random: config.seed, config, values: VecDeque::new(), drifted: false })
    }

    /// Takes a value, and says whether the stream has changed.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<bool> {
        finite("value", &[value])?;
        if self.drifted {
            self.values.clear();
            (self.random, self.drifted) = (self.config.seed, false);
        }
        if self.values.len() == self.config.window {
            self.values.pop_front();
        }
        self.values.push_back(value);
        if self.values.len() == self.config.window {
            let mut older: Vec<f64> = self.values.iter().copied().collect();
            let newest = older.split_off(self.config.window - self.config.recent);
            self.draw(&mut older);
            let test = kolmogorov_smirnov(&older, &newest, Alternative::TwoSided, Method::Auto)?;
            self.drifted = test.p_value <= self.config.alpha && test.statistic > 0.1;
        }
        Ok(self.drifted)
    }

    /// Keeps as many of `values` as are tested, by chance.
    fn draw(&mut self, values: &mut Vec<f64>) {
        for at in 0..self.config.recent.min(values.len()) {
            let other = at + (self.next() % (values.len() - at) as u64) as usize;
            values.swap(at, other);
        }
        values.truncate(self.config.recent);
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn a_change_of_spread_is_found_though_the_mean_stays() {
        let mut random = Rng::with_seed(89);
        let config = KswinConfig { alpha: 1e-5, window: 200, recent: 80, seed: 0 };
        let mut detector = Kswin::new(config).unwrap();
        let found = (0..1_000).find(|at| {
            let scale = if *at < 500 { 1.0 } else { 20.0 };
            detector.update(scale * (random.f64() - 0.5)).unwrap()
        });
        assert!(found.is_some_and(|at| (500..600).contains(&at)), "{found:?}");
    }

    #[test]
    fn wrong_input_is_refused() {
        let with = |window, recent| Kswin::new(KswinConfig { window, recent, ..KswinConfig::default() });
        assert!(with(100, 0).is_err() && with(100, 51).is_err() && with(100_000, 10).is_err());
        assert!(with(100, 50).unwrap().update(f64::NAN).is_err());
    }
}
