use super::detector::LARGEST;
use crate::error::{Result, StatsError, at_least, in_range, positive, same_length};
use serde::{Deserialize, Serialize};

/// Cells and bets, multiplied: what an update reads stays in the nearest cache.
const MOST_FACTORS: usize = 65_536;
/// Bets to either side, each a fraction of the largest that is allowed, with their weights: small changes take longest, so theirs is most.
const BETS: [(f64, f64); 3] = [(0.05, 3.0), (0.12, 2.0), (0.35, 1.0)];
/// By so many standard errors of the reference a bet's null hypothesis is widened.
const MARGIN: f64 = 3.0;

/// E-detector (see [`super::EDetector`]) of a stream of cells, such as bins or categories: bets on several scores of a cell at once, by
/// a table, so that an update is one row of multiplications.
///
/// A score is a number between 0 and 1 for each cell, such as its middle rank, or whether it is one of some. Each is bet on in both
/// directions, from small changes to large, and has its weight among all: the more, the sooner its changes are found. What the reference leaves open counts as no change: bets are against means
/// that lie three of its standard errors away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellDetector {
    bets: usize,
    /// Of each bet.
    weights: Vec<f64>,
    /// Row after row, a row a cell.
    factors: Vec<f64>,
    values: Vec<f64>,
}

impl CellDetector {
    /// Against a reference with these counts a cell; scores come with their weights.
    ///
    /// # Errors
    /// No score, a weight that is not above 0, scores that are not a number between 0 and 1 for each cell, fewer than 2 cells, a reference of nothing, more than
    /// 65,536 cells times bets.
    pub fn new(reference: &[u64], scores: &[(f64, Vec<f64>)]) -> Result<Self> {
        at_least("cells", reference.len(), 2)?;
        at_least("scores", scores.len(), 1)?;
        let bets = scores.len().saturating_mul(2 * BETS.len());
        let needed = bets.saturating_mul(reference.len());
        if needed > MOST_FACTORS {
            return Err(StatsError::TooMany { name: "cells times bets", most: MOST_FACTORS, got: needed });
        }
        let total = reference.iter().map(|count| *count as f64).sum::<f64>();
        in_range("reference", total, total > 0.0, "at least one observation")?;
        let cells = reference.len() as f64;
        let share = |count: &u64| (*count as f64 + 0.5) / (total + 0.5 * cells);
        let mut factors = vec![0.0; needed];
        let mut weights = Vec::with_capacity(bets);
        let all: f64 = scores.iter().map(|(weight, _)| weight).sum();
        for (at, (weight, scores)) in scores.iter().enumerate() {
            positive("weight", *weight)?;
            let sum = 2.0 * all * BETS.iter().map(|(_, weight)| weight).sum::<f64>();
            weights.extend(BETS.iter().flat_map(|(_, bet)| [weight * bet / sum; 2]));
            same_length(("cells", reference.len()), ("scores", scores.len()))?;
            for &score in scores {
                in_range("score", score, (0.0..=1.0).contains(&score), "a number between 0 and 1")?;
            }
            let mean = |of: &dyn Fn(f64) -> f64| -> f64 {
                reference.iter().zip(scores).map(|(count, score)| share(count) * of(*score)).sum()
            };
            let middle = mean(&|score| score);
            let error = (mean(&|score| (score - middle) * (score - middle)) / total).sqrt();
            // A score that hardly varies leaves room for small bets only; one that does not, for none.
            let above = (middle + MARGIN * error).clamp(1e-9, 1.0);
            let below = (middle - MARGIN * error).clamp(0.0, 1.0 - 1e-9);
            for (cell, score) in scores.iter().enumerate() {
                let row = &mut factors[cell * bets + at * 2 * BETS.len()..];
                for (bet, (fraction, _)) in BETS.iter().enumerate() {
                    row[2 * bet] = 1.0 + fraction * (score - above) / above;
                    row[2 * bet + 1] = 1.0 + fraction * (below - score) / (1.0 - below);
                }
            }
        }
        Ok(Self { bets, weights, factors, values: vec![0.0; bets] })
    }

    /// Takes an observation of a cell; one that does not exist counts as nothing.
    #[inline]
    pub fn update(&mut self, cell: usize) {
        let Some(row) = self.factors.get(cell * self.bets..(cell + 1) * self.bets) else { return };
        for (value, factor) in self.values.iter_mut().zip(row) {
            *value = ((*value + 1.0) * factor).min(LARGEST);
        }
    }

    /// The detector: alarm at `1 / alpha`, which comes without a change after no fewer than `1 / alpha` observations on average.
    pub fn e_value(&self) -> f64 {
        // Bets come in pairs: two sums side by side.
        let pairs = self.values.chunks_exact(2).zip(self.weights.chunks_exact(2));
        let [up, down] = pairs.fold([0.0; 2], |[up, down], (value, weight)| {
            [up + value[0] * weight[0], down + value[1] * weight[1]]
        });
        up + down
    }

    /// Forgets all observations.
    pub fn reset(&mut self) {
        self.values.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn detector(reference: u64) -> CellDetector {
        CellDetector::new(&[reference * 4, reference], &[(1.0, vec![0.0, 1.0])]).unwrap()
    }

    /// The number of observations until the alarm.
    fn run_length(detector: &mut CellDetector, random: &mut Rng, rate: f64, alpha: f64, most: u32) -> u32 {
        detector.reset();
        for at in 1..=most {
            detector.update(usize::from(random.f64() < rate));
            if detector.e_value() >= 1.0 / alpha {
                return at;
            }
        }
        most
    }

    #[test]
    fn alarms_are_as_far_apart_as_configured_and_changes_are_found_soon() {
        let mut random = Rng::with_seed(5);
        let mut detector = detector(1_000_000);
        let mut mean = |rate: f64, runs: u32| {
            let total: u32 =
                (0..runs).map(|_| run_length(&mut detector, &mut random, rate, 1e-3, 20_000)).sum();
            f64::from(total) / f64::from(runs)
        };
        assert!(mean(0.2, 200) >= 1_000.0);
        assert!(mean(0.4, 100) < 80.0 && mean(0.25, 100) < 900.0);
    }

    #[test]
    fn what_the_reference_leaves_open_is_no_change() {
        let mut random = Rng::with_seed(7);
        // The truth lies two standard errors from a reference of 500.
        let mut detector = CellDetector::new(&[382, 118], &[(1.0, vec![0.0, 1.0])]).unwrap();
        for _ in 0..200_000 {
            detector.update(usize::from(random.f64() < 0.2));
            assert!(detector.e_value() < 1e4);
        }
    }

    #[test]
    fn wrong_input_is_refused_and_evidence_stays_finite() {
        assert!(
            CellDetector::new(&[1], &[(1.0, vec![0.0])]).is_err() && CellDetector::new(&[1, 1], &[]).is_err()
        );
        assert!(CellDetector::new(&[1, 1], &[(1.0, vec![0.0, 2.0])]).is_err());
        assert!(CellDetector::new(&[0, 0], &[(1.0, vec![0.0, 1.0])]).is_err());
        let mut sure =
            CellDetector::new(&[1_000, 0], &[(1.0, vec![0.0, 1.0]), (0.1, vec![1.0, 1.0])]).unwrap();
        (0..10_000).for_each(|_| sure.update(1));
        sure.update(7);
        assert!(sure.e_value().is_finite() && sure.e_value() > 1e50);
    }
}
