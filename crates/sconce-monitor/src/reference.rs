use crate::error::{MonitorError, Result};
use crate::text::{DESCRIPTORS, describe_text};
use crate::value::{RecentRows, Value};
use sconce_stats::experiment::Moments;
use sconce_stats::sketch::ValueSketch;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The newest format of a stored reference.
pub const FORMAT: u32 = 1;
/// Columns of a reference.
pub const MAX_COLUMNS: usize = 1_024;
/// Categories of a column that are told apart; the rest are *other*.
const MAX_CATEGORIES: usize = 256;
/// Bytes of a category that are kept.
const MAX_CATEGORY_BYTES: usize = 128;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    /// Numbers, whose size means something.
    Numeric,
    /// One of some names. Numbers are names here.
    Categorical,
    /// Text, watched by [`DESCRIPTORS`].
    Text,
}

/// A column that is to be watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnSpec {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
}

/// What data looked like: counts, sketches and moments of each column, a few kilobytes each, and no row of it. Made row by row; merged
/// references are the reference of all rows, but for duplicates across them and the last digits of means.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reference {
    #[serde(deserialize_with = "known_format")]
    format: u32,
    rows: u64,
    duplicates: u64,
    columns: Vec<Column>,
    #[serde(skip, default = "RecentRows::new")]
    recent: RecentRows,
}

/// A column of a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Rows without a value, or with one of the wrong type.
    pub missing: u64,
    /// Of these, those with one of the wrong type.
    pub wrong_type: u64,
    /// Of the others.
    pub profile: Profile,
}

/// What is known of a column's values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Of numbers.
    Numeric(Numbers),
    /// Of categories.
    Categorical(Categories),
    /// Of texts: numbers for each of [`DESCRIPTORS`].
    Text(Vec<Numbers>),
}

/// Numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Numbers {
    /// How often which values came.
    pub sketch: ValueSketch,
    /// Their mean and variance.
    pub moments: Moments,
    /// The smallest and the largest; `None` before the first.
    pub range: Option<(f64, f64)>,
}

/// Categories.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Categories {
    /// By name, at most 256: those that came first, and of merged references the most frequent.
    pub counts: BTreeMap<String, u64>,
    /// All others together.
    pub other: u64,
}

impl Reference {
    /// Of no row yet.
    ///
    /// # Errors
    /// No column, more than [`MAX_COLUMNS`], two of one name.
    pub fn new(columns: &[ColumnSpec]) -> Result<Self> {
        if !(1..=MAX_COLUMNS).contains(&columns.len()) {
            return Err(MonitorError::unfit("columns", format!("1 to {MAX_COLUMNS}"), columns.len()));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = columns.iter().find(|column| !names.insert(&column.name)) {
            return Err(MonitorError::unfit("columns", "each name once", format!("`{}` twice", twice.name)));
        }
        let column = |spec: &ColumnSpec| Column {
            name: spec.name.clone(),
            missing: 0,
            wrong_type: 0,
            profile: match spec.kind {
                ColumnKind::Numeric => Profile::Numeric(Numbers::default()),
                ColumnKind::Categorical => Profile::Categorical(Categories::default()),
                ColumnKind::Text => Profile::Text(vec![Numbers::default(); DESCRIPTORS.len()]),
            },
        };
        let columns = columns.iter().map(column).collect();
        Ok(Self { format: FORMAT, rows: 0, duplicates: 0, columns, recent: RecentRows::new() })
    }

    /// Takes a row: a value for each column.
    ///
    /// # Errors
    /// Another number of values.
    pub fn update(&mut self, row: &[Value<'_>]) -> Result<()> {
        if row.len() != self.columns.len() {
            return Err(MonitorError::unfit("row", format!("{} values", self.columns.len()), row.len()));
        }
        self.rows += 1;
        self.duplicates += u64::from(self.recent.repeats(row));
        self.columns.iter_mut().zip(row).try_for_each(|(column, value)| column.update(*value))
    }

    /// Takes all that `other` took, as if it had come after.
    ///
    /// # Errors
    /// Other columns.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let names = |it: &Self| -> Vec<ColumnSpec> { it.columns.iter().map(Column::spec).collect() };
        if names(self) != names(other) {
            return Err(MonitorError::unfit("columns", "the same ones", "others"));
        }
        self.rows += other.rows;
        self.duplicates += other.duplicates;
        self.columns.iter_mut().zip(&other.columns).for_each(|(ours, theirs)| ours.merge(theirs));
        Ok(())
    }

    /// Checks one that was stored somewhere. That its format is known was checked when it was read.
    ///
    /// # Errors
    /// Columns that [`new`](Self::new) would not take.
    pub(crate) fn check(&self) -> Result<()> {
        Self::new(&self.columns.iter().map(Column::spec).collect::<Vec<_>>())?;
        let is_text =
            |column: &&Column| matches!(&column.profile, Profile::Text(it) if it.len() != DESCRIPTORS.len());
        match self.columns.iter().find(is_text) {
            Some(column) => Err(MonitorError::unfit("text", "all descriptors", format!("`{}`", column.name))),
            None => Ok(()),
        }
    }

    /// How many rows it has taken.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How many of them had come before, as far as the last few thousand rows tell.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Its columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        let of = |it: &Self| (it.format, it.rows, it.duplicates);
        of(self) == of(other) && self.columns == other.columns
    }
}

impl Column {
    /// What was declared of it.
    pub fn spec(&self) -> ColumnSpec {
        let kind = match self.profile {
            Profile::Numeric(_) => ColumnKind::Numeric,
            Profile::Categorical(_) => ColumnKind::Categorical,
            Profile::Text(_) => ColumnKind::Text,
        };
        ColumnSpec { name: self.name.clone(), kind }
    }

    fn update(&mut self, value: Value<'_>) -> Result<()> {
        match (&mut self.profile, value) {
            (_, Value::Missing) => self.missing += 1,
            (_, Value::Number(number)) if !number.is_finite() => self.missing += 1,
            (Profile::Numeric(numbers), Value::Number(number)) => numbers.update(number)?,
            (Profile::Categorical(categories), Value::Text(text)) => categories.add(text, 1),
            (Profile::Categorical(categories), Value::Number(number)) => {
                categories.add(&number.to_string(), 1)
            }
            (Profile::Text(descriptors), Value::Text(text)) => {
                let described = descriptors.iter_mut().zip(describe_text(text));
                described.into_iter().try_for_each(|(numbers, number)| numbers.update(number))?;
            }
            (Profile::Numeric(_), Value::Text(_)) | (Profile::Text(_), Value::Number(_)) => {
                self.missing += 1;
                self.wrong_type += 1;
            }
        }
        Ok(())
    }

    fn merge(&mut self, other: &Self) {
        self.missing += other.missing;
        self.wrong_type += other.wrong_type;
        match (&mut self.profile, &other.profile) {
            (Profile::Numeric(ours), Profile::Numeric(theirs)) => ours.merge(theirs),
            (Profile::Categorical(ours), Profile::Categorical(theirs)) => ours.merge(theirs),
            (Profile::Text(ours), Profile::Text(theirs)) => {
                ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| ours.merge(theirs));
            }
            // Whoever merges has compared the kinds.
            _ => {}
        }
    }
}

impl Numbers {
    fn update(&mut self, number: f64) -> Result<()> {
        self.sketch.update(number)?;
        self.moments.update(number)?;
        self.widen((number, number));
        Ok(())
    }

    fn merge(&mut self, other: &Self) {
        self.sketch.merge(&other.sketch);
        self.moments.merge(&other.moments);
        if let Some(range) = other.range {
            self.widen(range);
        }
    }

    fn widen(&mut self, (low, high): (f64, f64)) {
        let (ours_low, ours_high) = self.range.unwrap_or((low, high));
        self.range = Some((ours_low.min(low), ours_high.max(high)));
    }
}

impl Categories {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.other + self.counts.values().sum::<u64>()
    }

    fn add(&mut self, name: &str, count: u64) {
        let name = kept(name);
        if let Some(present) = self.counts.get_mut(name) {
            *present += count;
        } else if self.counts.len() < MAX_CATEGORIES {
            self.counts.insert(name.to_owned(), count);
        } else {
            self.other += count;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.other += other.other;
        for (name, count) in &other.counts {
            *self.counts.entry(name.clone()).or_default() += count;
        }
        if self.counts.len() > MAX_CATEGORIES {
            let mut by_count: Vec<(String, u64)> = std::mem::take(&mut self.counts).into_iter().collect();
            by_count.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            self.other += by_count.drain(MAX_CATEGORIES..).map(|(_, count)| count).sum::<u64>();
            self.counts = by_count.into_iter().collect();
        }
    }
}

/// Refuses a reference that a newer version wrote, before anything else of it is read.
fn known_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let got = u32::deserialize(deserializer)?;
    if (1..=FORMAT).contains(&got) {
        return Ok(got);
    }
    Err(D::Error::custom(MonitorError::Format { got, known: FORMAT }))
}

/// A category's name as far as it is kept.
pub(crate) fn kept(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_CATEGORY_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn specs() -> Vec<ColumnSpec> {
        let column = |name: &str, kind| ColumnSpec { name: name.to_owned(), kind };
        vec![
            column("age", ColumnKind::Numeric),
            column("plan", ColumnKind::Categorical),
            column("note", ColumnKind::Text),
        ]
    }

    fn of(rows: &[(f64, String)]) -> Reference {
        let mut reference = Reference::new(&specs()).unwrap();
        for (age, plan) in rows {
            reference.update(&[Value::Number(*age), Value::Text(plan), Value::Text(plan)]).unwrap();
        }
        reference
    }

    fn rows(count: usize, categories: u32) -> Vec<(f64, String)> {
        let mut random = Rng::with_seed(4);
        let row = |_| (random.f64() * 1e3 - 20.0, format!("plan {}", random.u32(0..categories)));
        (0..count).map(row).collect()
    }

    #[test]
    fn merged_is_what_all_rows_give() {
        let rows = rows(6_000, 40);
        let (whole, mut merged) = (of(&rows), of(&rows[..2_000]));
        merged.merge(&of(&rows[2_000..])).unwrap();
        assert_eq!(merged.rows(), 6_000);
        for (ours, theirs) in merged.columns().iter().zip(whole.columns()) {
            match (&ours.profile, &theirs.profile) {
                (Profile::Numeric(ours), Profile::Numeric(theirs)) => {
                    assert!((&ours.sketch, ours.range) == (&theirs.sketch, theirs.range));
                    assert!((ours.moments.mean() - theirs.moments.mean()).abs() < 1e-9);
                }
                (ours, theirs) => assert!(ours == theirs || matches!(ours, Profile::Text(_))),
            }
        }
        assert!(merged.merge(&Reference::new(&specs()[..2]).unwrap()).is_err());
        // The same rows give the same reference.
        assert!(whole == of(&rows));
    }

    #[test]
    fn it_is_stored_in_a_few_kilobytes_and_a_newer_one_is_refused() {
        let reference = of(&rows(20_000, 40));
        let text = serde_json::to_string(&reference).unwrap();
        assert!(text.len() < 7 * 7_000, "{}", text.len());
        let back: Reference = serde_json::from_str(&text).unwrap();
        back.check().unwrap();
        assert!(back == reference);
        let newer = text.replacen("\"format\":1", "\"format\":2", 1);
        let refused = serde_json::from_str::<Reference>(&newer).unwrap_err().to_string();
        assert!(refused.starts_with("this reference has format 2, and formats up to 1"), "{refused}");
    }

    #[test]
    fn hostile_rows_neither_grow_nor_panic() {
        let mut reference = of(&rows(100_000, 1_000_000));
        let Profile::Categorical(categories) = &reference.columns()[1].profile else { panic!() };
        assert_eq!((categories.counts.len(), categories.count()), (256, 100_000));
        let long = "é".repeat(1_000_000);
        for value in
            [Value::Missing, Value::Number(f64::NAN), Value::Number(f64::INFINITY), Value::Text(&long)]
        {
            reference.update(&[value, value, value]).unwrap();
        }
        assert_eq!((reference.columns()[0].missing, reference.columns()[0].wrong_type), (4, 1));
        assert!(reference.update(&[Value::Missing]).is_err());
        assert!(Reference::new(&[]).is_err());
        let twice = [specs()[0].clone(), specs()[0].clone()];
        assert!(Reference::new(&twice).is_err());
    }
}
