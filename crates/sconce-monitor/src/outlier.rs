use crate::error::{MonitorError, Result};
use crate::reference::{Numbers, Profile, Reference, kept};
use crate::value::Value;
use std::collections::BTreeMap;

/// The median absolute deviation of normal values times this is their standard deviation.
const NORMAL_CONSISTENCY: f64 = 1.482_602_218_505_602;

/// Says how unusual a row is for a reference, value by value: what no column finds strange in itself is not strange here.
#[derive(Debug, Clone)]
pub struct Outliers {
    columns: Vec<Usual>,
}

#[derive(Debug, Clone)]
enum Usual {
    /// The median of numbers, and how far off they usually are.
    Number { median: f64, scale: f64 },
    /// The share of each category; of one that never came at most this.
    Category { shares: BTreeMap<String, f64>, rarest: f64 },
    /// Nothing is unusual here.
    Anything,
}

/// How unusual a row is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlier {
    /// In robust standard deviations: of a number, its distance from the median over the scaled median distance; of a category, that of a
    /// normal value as rare. 3 is unusual, 6 is hardly a chance. At most 1e6.
    pub score: f64,
    /// The column that is the most unusual.
    pub column: usize,
}

impl Outliers {
    /// For rows as a reference had them.
    pub fn new(reference: &Reference) -> Self {
        let column = |profile: &Profile| match profile {
            Profile::Numeric(numbers) => usual(numbers),
            Profile::Categorical(categories) if categories.count() > 0 => {
                let total = categories.count() as f64;
                let share = |(name, count): (&String, &u64)| (name.clone(), *count as f64 / total);
                let shares = categories.counts.iter().map(share).collect();
                // Of a name that is among the others no more is known than that it is there.
                let rarest = (categories.other as f64).max(0.5) / total;
                Usual::Category { shares, rarest }
            }
            Profile::Categorical(_) | Profile::Text(_) => Usual::Anything,
        };
        Self { columns: reference.columns().iter().map(|it| column(&it.profile)).collect() }
    }

    /// How unusual a row is. Values that are missing or of the wrong type are not: those are matters of quality.
    ///
    /// # Errors
    /// Another number of values than the reference has columns.
    pub fn score(&self, row: &[Value<'_>]) -> Result<Outlier> {
        if row.len() != self.columns.len() {
            return Err(MonitorError::unfit("row", format!("{} values", self.columns.len()), row.len()));
        }
        let mut most = Outlier { score: 0.0, column: 0 };
        for (column, (usual, value)) in self.columns.iter().zip(row).enumerate() {
            let score = match (usual, value) {
                (Usual::Number { median, scale }, Value::Number(number)) if number.is_finite() => {
                    let off = (number - median).abs();
                    if off == 0.0 { 0.0 } else { (off / scale).min(1e6) }
                }
                (Usual::Category { shares, rarest }, Value::Text(name)) => rarity(shares, *rarest, name),
                (Usual::Category { shares, rarest }, Value::Number(number)) => {
                    rarity(shares, *rarest, &number.to_string())
                }
                _ => 0.0,
            };
            if score > most.score {
                most = Outlier { score, column };
            }
        }
        Ok(most)
    }
}

fn usual(numbers: &Numbers) -> Usual {
    let Ok(Some(median)) = numbers.sketch.quantile(0.5) else { return Usual::Anything };
    let mut distances: Vec<(f64, u64)> =
        numbers.sketch.buckets().into_iter().map(|(value, count)| ((value - median).abs(), count)).collect();
    distances.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = numbers.sketch.count().div_ceil(2);
    let mut seen = 0;
    let middle = distances.iter().find(|(_, count)| {
        seen += count;
        seen >= half
    });
    let scale = NORMAL_CONSISTENCY * middle.map_or(0.0, |(distance, _)| *distance);
    // Where half of the values are one, the others say how far off is usual.
    let scale = if scale > 0.0 { scale } else { numbers.moments.variance().sqrt() };
    Usual::Number { median, scale: if scale.is_finite() { scale } else { 0.0 } }
}

/// As many standard deviations off is a normal value that is as rare.
fn rarity(shares: &BTreeMap<String, f64>, rarest: f64, name: &str) -> f64 {
    let share = shares.get(kept(name)).copied().unwrap_or(rarest);
    if share >= 0.5 { 0.0 } else { sconce_stats::special::normal_upper_quantile(share / 2.0).clamp(0.0, 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{ColumnKind, ColumnSpec};
    use fastrand::Rng;

    #[test]
    fn what_is_far_off_or_rare_is_unusual_and_named() {
        let mut random = Rng::with_seed(81);
        let kinds = [ColumnKind::Numeric, ColumnKind::Numeric, ColumnKind::Categorical, ColumnKind::Text];
        let specs = kinds.map(|kind| ColumnSpec { name: random.u32(..).to_string(), kind });
        let mut reference = Reference::new(&specs).unwrap();
        for at in 0..20_000 {
            let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            let plan = if at % 100 == 0 { "trial" } else { "full" };
            let row =
                [Value::Number(10.0 + 2.0 * normal), Value::Number(7.0), Value::Text(plan), Value::Text("x")];
            reference.update(&row).unwrap();
        }
        let outliers = Outliers::new(&reference);
        let score = |x: f64, y: f64, plan: &str| {
            let row = [Value::Number(x), Value::Number(y), Value::Text(plan), Value::Text("anything")];
            let Outlier { score, column } = outliers.score(&row).unwrap();
            (score, column)
        };
        assert!(score(10.0, 7.0, "full").0 < 0.1);
        let (far, column) = score(18.0, 7.0, "full");
        assert!((far - 4.0).abs() < 0.2 && column == 0, "{far}");
        assert_eq!(score(10.0, 7.1, "full"), (1e6, 1));
        let (rare, column) = score(10.0, 7.0, "trial");
        assert!((rare - 2.58).abs() < 0.01 && column == 2, "{rare}");
        assert!(score(10.0, 7.0, "new").0 > 4.0);
        let missing = [Value::Missing, Value::Number(f64::NAN), Value::Number(1.0), Value::Missing];
        assert!(outliers.score(&missing).unwrap().score > 4.0 && outliers.score(&[]).is_err());
    }

    #[test]
    fn a_reference_of_nothing_finds_nothing_unusual() {
        let specs = [ColumnKind::Numeric, ColumnKind::Categorical]
            .map(|kind| ColumnSpec { name: format!("{kind:?}"), kind });
        let outliers = Outliers::new(&Reference::new(&specs).unwrap());
        let row = [Value::Number(1e300), Value::Text("a")];
        assert_eq!(outliers.score(&row).unwrap().score, 0.0);
    }
}
