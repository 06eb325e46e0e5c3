use crate::error::{Result, StatsError, at_least, in_range, same_length};

/// Cells that are told apart.
const MOST_CELLS: usize = 4_096;
/// How far alternatives lie from the reference, as the stability index that is expected of them: a change worth a look, and a large
/// one.
const EXPECTED_PSI: [f64; 2] = [0.1, 0.6];
/// Cells are looked at in so few groups as well: halves find that values moved, quarters that they spread, with less evidence than
/// all cells need to say the same.
const GROUPS: [usize; 2] = [2, 4];
/// Jeffreys' prior of a cell.
const PRIOR: f64 = 0.5;

/// E-process for new observations falling into cells (bins, categories) as those of a reference sample did, by counts alone.
///
/// The null hypothesis is not that the shares of the reference are exact, but that both samples have the same unknown shares: given the
/// reference these have a Dirichlet distribution, and the e-process is the ratio of what the counts are expected to be under
/// alternatives (Dirichlet distributions about the reference, spread as far as changes of a size that matters) and under it: a Bayes
/// factor, which is a martingale under its null (Grünwald, de Heide and Koolen, "Safe testing", 2024). For bins at quantiles of a
/// continuous sample the shares between them are Dirichlet exactly, so over reference and stream together
/// the chance that it *ever* reaches `1 / alpha` is at most `alpha`. A larger stream than the reference finds nothing that the
/// reference leaves open.
///
/// Evidence is the mean of that of all cells, of quarters and of halves of them, in their order: a shift or a change of spread is seen
/// early, any other change later.
#[derive(Debug, Clone)]
pub struct SameCells {
    cells: usize,
    layers: Vec<Layer>,
}

/// A way to group the cells.
#[derive(Debug, Clone)]
struct Layer {
    /// The group of each cell.
    groups: Vec<usize>,
    null: Dirichlet,
    alternatives: Vec<Dirichlet>,
}

/// Its parameters, and what of its normalisation does not depend on counts.
#[derive(Debug, Clone)]
struct Dirichlet {
    parameters: Vec<f64>,
    total: f64,
    constant: f64,
}

impl SameCells {
    /// Against a reference with these counts; the order of cells should mean something, such as the order of bins.
    ///
    /// # Errors
    /// Fewer than 2 cells or more than 4,096; a reference of nothing or of more than 2^52.
    pub fn new(reference: &[u64]) -> Result<Self> {
        at_least("cells", reference.len(), 2)?;
        if reference.len() > MOST_CELLS {
            return Err(StatsError::TooMany { name: "cells", most: MOST_CELLS, got: reference.len() });
        }
        let total = reference.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        in_range("reference", total as f64, (1..=1 << 52).contains(&total), "1 to 2^52 observations")?;
        let finest = std::iter::once((0..reference.len()).collect());
        let coarser = GROUPS.iter().filter(|&&groups| groups < reference.len()).map(|&groups| {
            let mut before = 0;
            let group = |count: &u64| {
                let middle = before as f64 + 0.5 * *count as f64;
                before += count;
                ((middle / total as f64 * groups as f64) as usize).min(groups - 1)
            };
            reference.iter().map(group).collect()
        });
        let layers = finest.chain(coarser).map(|groups| Layer::new(groups, reference)).collect();
        Ok(Self { cells: reference.len(), layers })
    }

    /// The natural logarithm of the e-process after these counts of each cell.
    ///
    /// # Errors
    /// Another number of cells; more than 2^52 observations.
    pub fn log_e(&self, counts: &[u64]) -> Result<f64> {
        same_length(("reference", self.cells), ("counts", counts.len()))?;
        let total = counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        in_range("counts", total as f64, total <= 1 << 52, "at most 2^52 observations")?;
        let mut terms = [f64::NEG_INFINITY; EXPECTED_PSI.len() * (GROUPS.len() + 1)];
        let mut place = terms.iter_mut();
        let mut grouped = Vec::new();
        for layer in &self.layers {
            grouped.clear();
            grouped.resize(layer.null.parameters.len(), 0_u64);
            layer.groups.iter().zip(counts).for_each(|(&group, count)| grouped[group] += count);
            let null = layer.null.log_probability(&grouped, total);
            for alternative in &layer.alternatives {
                if let Some(term) = place.next() {
                    *term = alternative.log_probability(&grouped, total) - null;
                }
            }
        }
        let most = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = terms.iter().map(|term| (term - most).exp()).sum();
        Ok(most + (sum / (self.layers.len() * EXPECTED_PSI.len()) as f64).ln())
    }
}

impl Layer {
    fn new(groups: Vec<usize>, reference: &[u64]) -> Self {
        let count = groups.iter().max().map_or(0, |largest| largest + 1);
        let mut counts = vec![0_u64; count];
        groups.iter().zip(reference).for_each(|(&group, count)| counts[group] += count);
        let null: Vec<f64> = counts.iter().map(|count| *count as f64 + PRIOR).collect();
        let total: f64 = null.iter().sum();
        // The index expected of a draw from Dirichlet(A p) is about (cells - 1) / A.
        let spread = |psi: f64| {
            let strength = (count as f64 - 1.0).max(1.0) / psi;
            Dirichlet::new(null.iter().map(|it| it / total * strength).collect())
        };
        let alternatives = EXPECTED_PSI.map(spread).to_vec();
        Self { groups, null: Dirichlet::new(null), alternatives }
    }
}

impl Dirichlet {
    fn new(parameters: Vec<f64>) -> Self {
        let total: f64 = parameters.iter().sum();
        let constant = ln_gamma(total) - parameters.iter().map(|it| ln_gamma(*it)).sum::<f64>();
        Self { parameters, total, constant }
    }

    /// Of one order of the counted observations.
    fn log_probability(&self, counts: &[u64], total: u64) -> f64 {
        let terms = self.parameters.iter().zip(counts);
        let sum: f64 = terms.map(|(it, count)| ln_gamma(it + *count as f64)).sum();
        self.constant + sum - ln_gamma(self.total + total as f64)
    }
}

/// To about 1e-12 where it is large, which is where it is large here; several times as fast as the exact one.
fn ln_gamma(x: f64) -> f64 {
    if x < 10.0 {
        return crate::special::ln_gamma(x);
    }
    let square = x * x;
    let series =
        (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / (1680.0 * square)) / square) / square) / x;
    (x - 0.5) * x.ln() - x + 0.918_938_533_204_672_8 + series
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn ln_gamma_is_as_exact_as_stated() {
        for x in [0.3, 9.9, 10.0, 10.1, 37.5, 1e3, 1e9, 1e15] {
            let exact = crate::special::ln_gamma(x);
            assert!((ln_gamma(x) - exact).abs() <= 2e-12 * exact.abs().max(1.0), "{x}");
        }
    }

    /// Counts of `n` uniform values between sorted `edges`.
    fn drawn(random: &mut Rng, edges: &[f64], counts: &mut [u64], n: usize, power: f64) {
        for _ in 0..n {
            let value = random.f64().powf(power);
            counts[edges.partition_point(|edge| *edge < value)] += 1;
        }
    }

    /// The share of runs whose evidence ever reaches `1 / alpha`, looked at after every tenth of the stream.
    fn rejected(alpha: f64, reference: usize, stream: usize, power: f64) -> f64 {
        let mut random = Rng::with_seed(11);
        let runs = 400;
        let mut count = 0;
        for _ in 0..runs {
            let mut sample: Vec<f64> = (0..reference).map(|_| random.f64()).collect();
            sample.sort_unstable_by(f64::total_cmp);
            let edges: Vec<f64> = (1..16).map(|i| sample[i * reference / 16]).collect();
            let mut counts = [0; 16];
            sample.iter().for_each(|value| counts[edges.partition_point(|edge| edge < value)] += 1);
            let same = SameCells::new(&counts).unwrap();
            let mut seen = [0; 16];
            count += u32::from((0..10).any(|_| {
                drawn(&mut random, &edges, &mut seen, stream / 10, power);
                same.log_e(&seen).unwrap() >= -alpha.ln()
            }));
        }
        f64::from(count) / f64::from(runs)
    }

    #[test]
    fn without_a_change_it_seldom_ever_rejects_however_large_the_stream() {
        for (reference, stream) in [(100, 5_000), (1_000, 100), (1_000, 20_000)] {
            let share = rejected(0.05, reference, stream, 1.0);
            assert!(share <= 0.05, "{reference} {stream}: {share}");
        }
    }

    #[test]
    fn changes_are_found() {
        // The median moves from 0.5 to 0.62.
        let share = rejected(0.01, 5_000, 1_000, 0.7);
        assert!(share > 0.99, "{share}");
        let rare = SameCells::new(&[1_000, 0]).unwrap();
        assert!(rare.log_e(&[50, 20]).unwrap() > 20.0 && rare.log_e(&[1_000, 0]).unwrap() < 1.0);
    }

    #[test]
    fn wrong_input_is_refused_and_large_counts_stay_finite() {
        assert!(SameCells::new(&[5]).is_err() && SameCells::new(&[0, 0]).is_err());
        assert!(SameCells::new(&[u64::MAX, 1]).is_err() && SameCells::new(&[1; 5_000]).is_err());
        let same = SameCells::new(&[3, 4, 5]).unwrap();
        assert!(same.log_e(&[1, 2]).is_err() && same.log_e(&[u64::MAX, 1, 1]).is_err());
        assert!(same.log_e(&[0, 0, 0]).unwrap().abs() < 1e-9);
        assert!(same.log_e(&[1 << 50, 0, 0]).unwrap().is_finite());
    }
}
