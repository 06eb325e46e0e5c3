use crate::error::{MonitorError, Result};
use crate::reference::{Categories, Numbers, kept};
use crate::verdict::QUANTILES;
use sconce_stats::sequential::{CellDetector, SameCells};
use std::collections::HashMap;

/// Bins of numbers.
pub(crate) const MAX_BINS: usize = 16;
/// Categories with a cell of their own.
const MAX_NAMED: usize = 30;

/// Where a feature's values fall: bins at quantiles of the reference, or its most frequent categories; and a cell for no value. With
/// what the reference had in each, and the evidence against that.
#[derive(Debug, Clone)]
pub(crate) struct Cells {
    kind: CellKind,
    /// The reference's.
    pub(crate) counts: Vec<u64>,
    /// Each cell in words.
    pub(crate) labels: Vec<String>,
    pub(crate) same: SameCells,
    pub(crate) detector: CellDetector,
}

#[derive(Debug, Clone)]
pub(crate) enum CellKind {
    Numeric(Bins),
    Categorical(Named),
}

/// Bins of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Bins {
    /// A value on an edge falls to its left. Unused edges are infinite, and every value is left of them.
    edges: [f64; MAX_BINS],
    used: usize,
    /// Whether each bin is one value of the reference.
    discrete: bool,
    /// Mean and standard deviation of the reference.
    pub(crate) moments: (f64, f64),
    /// Its smallest and its largest value.
    pub(crate) range: Option<(f64, f64)>,
    /// Its quantiles at [`QUANTILES`]; NaN without values.
    pub(crate) quantiles: [f64; QUANTILES.len()],
}

/// Categories.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    names: Vec<String>,
    /// The cell of every name that the reference knows.
    cells: HashMap<String, usize>,
    /// The cell of names that it does not: that of *other*, if it has seen more than it kept.
    unknown: usize,
    unseen: usize,
    /// How many names the reference saw once.
    once: u64,
}

impl Cells {
    /// Of numbers, with so many rows without one.
    pub(crate) fn numeric(numbers: &Numbers, missing: u64) -> Result<Self> {
        let buckets = numbers.sketch.buckets();
        let total: u64 = buckets.iter().map(|(_, count)| count).sum();
        let discrete = buckets.len() <= MAX_BINS;
        let (mut edges, mut counts, mut seen, mut since) = (Vec::new(), Vec::new(), 0_u64, 0_u64);
        // The next quantile at which an edge is wanted, of 16.
        let mut due = 1.0;
        for (end, count) in &buckets[..buckets.len().saturating_sub(1)] {
            seen += count;
            since += count;
            let reached = seen as f64 / total as f64 * MAX_BINS as f64;
            if edges.len() + 1 < MAX_BINS && (discrete || reached >= due) {
                edges.push(*end);
                counts.push(std::mem::take(&mut since));
                due = reached.floor() + 1.0;
            }
        }
        since += buckets.last().map_or(0, |(_, count)| *count);
        counts.extend([since, missing]);
        let used = edges.len();
        edges.resize(MAX_BINS, f64::INFINITY);
        let edges = edges.try_into().unwrap_or([f64::INFINITY; MAX_BINS]);
        let mut quantiles = [f64::NAN; QUANTILES.len()];
        for (place, p) in quantiles.iter_mut().zip(QUANTILES) {
            *place = numbers.sketch.quantile(p)?.unwrap_or(f64::NAN);
        }
        let moments = (numbers.moments.mean(), numbers.moments.variance().sqrt());
        let bins = Bins { edges, used, discrete, moments, range: numbers.range, quantiles };
        Self::new(CellKind::Numeric(bins), counts)
    }

    /// Of categories, with so many rows without one.
    pub(crate) fn categorical(categories: &Categories, missing: u64) -> Result<Self> {
        let mut ordered: Vec<(&String, u64)> =
            categories.counts.iter().map(|(name, count)| (name, *count)).collect();
        // The most frequent first, so neighbours in order are alike in frequency.
        ordered.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        let named = ordered.len().min(MAX_NAMED);
        let mut counts: Vec<u64> = ordered[..named].iter().map(|(_, count)| *count).collect();
        let mut names: Vec<String> = ordered[..named].iter().map(|(name, _)| (*name).clone()).collect();
        let rest = ordered[named..].iter().map(|(_, count)| count).sum::<u64>() + categories.other;
        if rest > 0 {
            names.push("(other)".to_owned());
            counts.push(rest);
        }
        let unseen = names.len();
        let once = ordered.iter().filter(|(_, count)| *count == 1).count() as u64;
        names.push("(unseen)".to_owned());
        counts.extend([0, missing]);
        let cell = |(at, (name, _)): (usize, &(&String, u64))| ((*name).clone(), at.min(named));
        let cells = ordered.iter().enumerate().map(cell).collect();
        let unknown = if categories.other > 0 { named } else { unseen };
        Self::new(CellKind::Categorical(Named { names, cells, unknown, unseen, once }), counts)
    }

    fn new(kind: CellKind, counts: Vec<u64>) -> Result<Self> {
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return Err(MonitorError::unfit("reference", "at least one row", 0));
        }
        let (same, detector) =
            (SameCells::new(&counts)?, CellDetector::new(&counts, &scores(&kind, &counts))?);
        let mut labels = match &kind {
            CellKind::Numeric(bins) => bins.labels(),
            CellKind::Categorical(named) => named.names.clone(),
        };
        labels.push("(missing)".to_owned());
        Ok(Self { kind, counts, labels, same, detector })
    }

    pub(crate) fn kind(&self) -> &CellKind {
        &self.kind
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// That of no value.
    pub(crate) fn missing(&self) -> usize {
        self.counts.len() - 1
    }
}

impl Bins {
    /// The bin of a number.
    #[inline]
    pub(crate) fn bin(&self, number: f64) -> usize {
        self.edges.iter().map(|edge| usize::from(*edge < number)).sum()
    }

    fn labels(&self) -> Vec<String> {
        let edges = &self.edges[..self.used];
        let Some((low, high)) = self.range else { return vec!["any number".to_owned()] };
        if self.discrete {
            let values = edges.iter().chain([&high]);
            return values.map(|value| short(*value)).collect();
        }
        let ends = edges.iter().chain([&high]);
        let starts = std::iter::once(&low).chain(edges);
        starts.zip(ends).map(|(start, end)| format!("{} to {}", short(*start), short(*end))).collect()
    }

    /// The quantile `p` of so many values in each bin, which reach from `low` to `high`: within a bin as if they were spread evenly.
    pub(crate) fn quantile(&self, counts: &[u64], (low, high): (f64, f64), p: f64) -> f64 {
        let counts = &counts[..=self.used];
        let rank = p * counts.iter().sum::<u64>() as f64;
        let mut before = 0.0;
        for (bin, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if before + count >= rank {
                let start = if bin == 0 { low } else { self.edges[bin - 1].max(low) };
                let end = if bin == self.used { high } else { self.edges[bin].min(high) };
                let share = if self.discrete { 1.0 } else { (rank - before) / count };
                return start + (end - start) * share;
            }
            before += count;
        }
        high
    }
}

impl Named {
    /// The cell of a category.
    pub(crate) fn cell(&self, name: &str) -> usize {
        self.cells.get(kept(name)).copied().unwrap_or(self.unknown)
    }

    pub(crate) fn unseen(&self) -> usize {
        self.unseen
    }

    pub(crate) fn once(&self) -> u64 {
        self.once
    }
}

/// What the stream's detector bets on, by weight: that values move, that they spread, and a little that there are none; of few categories
/// each but the first, whose share the others leave, of many whether they are frequent ones; and a little that they were never
/// seen.
fn scores(kind: &CellKind, counts: &[u64]) -> Vec<(f64, Vec<f64>)> {
    let missing = counts.len() - 1;
    let cells =
        |is: &dyn Fn(usize) -> bool| (0..=missing).map(|cell| f64::from(u8::from(is(cell)))).collect();
    let only = |wanted: usize| cells(&|cell| cell == wanted);
    let total = counts[..missing].iter().sum::<u64>().max(1) as f64;
    let mut before = 0.0;
    let middle = |count: &u64| {
        let middle = before + 0.5 * *count as f64;
        before += *count as f64;
        (middle / total).min(1.0)
    };
    let mut ranks: Vec<f64> = counts[..missing].iter().map(middle).collect();
    // No value says nothing of where values are.
    ranks.push(0.5);
    match kind {
        CellKind::Numeric(_) => {
            let mut spread: Vec<f64> = ranks.iter().map(|rank| (2.0 * rank - 1.0).abs()).collect();
            let sum: f64 = spread.iter().zip(&counts[..missing]).map(|(it, count)| it * *count as f64).sum();
            spread[missing] = (sum / total).clamp(0.0, 1.0);
            vec![(1.0, ranks), (0.5, spread), (0.1, only(missing))]
        }
        CellKind::Categorical(named) => {
            let new = (0.1, cells(&|cell| cell >= named.unseen));
            match named.unseen {
                0..=4 => (1..named.unseen).map(|cell| (1.0, only(cell))).chain([new]).collect(),
                _ => vec![(1.0, ranks), (1.0, only(0)), new],
            }
        }
    }
}

/// A number in about four digits.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (value.fract() == 0.0 && size < 1e9) {
        return format!("{value}");
    }
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let digits = (3.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{ColumnKind, ColumnSpec, Profile, Reference};
    use crate::value::Value;
    use fastrand::Rng;

    fn numbers(values: &[f64]) -> Numbers {
        let spec = ColumnSpec { name: "x".to_owned(), kind: ColumnKind::Numeric };
        let mut reference = Reference::new(&[spec]).unwrap();
        values.iter().for_each(|value| reference.update(&[Value::Number(*value)]).unwrap());
        match &reference.columns()[0].profile {
            Profile::Numeric(numbers) => numbers.clone(),
            _ => panic!(),
        }
    }

    fn bins(cells: &Cells) -> &Bins {
        match cells.kind() {
            CellKind::Numeric(bins) => bins,
            CellKind::Categorical(_) => panic!(),
        }
    }

    #[test]
    fn bins_hold_what_the_reference_counted_and_about_as_much_each() {
        let mut random = Rng::with_seed(6);
        let values: Vec<f64> =
            (0..40_000).map(|_| (0..12).map(|_| random.f64()).sum::<f64>() - 6.0).collect();
        let cells = Cells::numeric(&numbers(&values), 7).unwrap();
        assert_eq!((cells.len(), cells.counts[16], cells.missing()), (17, 7, 16));
        let mut counted = vec![0; 16];
        values.iter().for_each(|value| counted[bins(&cells).bin(*value)] += 1);
        assert_eq!(counted, cells.counts[..16]);
        assert!(counted.iter().all(|count| (1_000..5_000).contains(count)), "{counted:?}");
        let quantile = |p| bins(&cells).quantile(&counted, (-4.0, 4.0), p);
        assert!(quantile(0.5).abs() < 0.05 && (quantile(0.9) - 1.28).abs() < 0.1, "{}", quantile(0.9));
    }

    #[test]
    fn few_values_have_a_bin_each_and_none_has_one() {
        let cells = Cells::numeric(&numbers(&[3.0, 1.0, 1.0, 2.5]), 0).unwrap();
        assert_eq!(
            (cells.counts.clone(), cells.labels.join(" ")),
            (vec![2, 1, 1, 0], "1 2.5 3 (missing)".to_owned())
        );
        assert_eq!([0.0, 1.0, 2.0, 9.0].map(|value| bins(&cells).bin(value)), [0, 0, 1, 2]);
        assert_eq!(Cells::numeric(&numbers(&[]), 5).unwrap().counts, [0, 5]);
        assert!(Cells::numeric(&numbers(&[]), 0).is_err());
        let heavy: Vec<f64> = (0..1_000).map(|at| if at % 2 == 0 { 0.0 } else { f64::from(at) }).collect();
        let cells = Cells::numeric(&numbers(&heavy), 0).unwrap();
        assert_eq!(cells.counts[0], 500, "{:?}", cells.counts);
    }

    #[test]
    fn categories_are_named_other_or_unseen() {
        let counts = (0..40_u64).map(|at| (format!("c{at:02}"), 100 - at)).collect();
        let cells = Cells::categorical(&Categories { counts, other: 0 }, 3).unwrap();
        let CellKind::Categorical(named) = cells.kind() else { panic!() };
        assert_eq!((cells.len(), named.cell("c00"), named.cell("c35"), named.cell("new")), (33, 0, 30, 31));
        assert_eq!(cells.labels[30..], ["(other)", "(unseen)", "(missing)"]);
        let one = Categories { counts: [("yes".to_owned(), 5)].into(), other: 0 };
        assert_eq!(Cells::categorical(&one, 0).unwrap().counts, [5, 0, 0]);
    }
}
