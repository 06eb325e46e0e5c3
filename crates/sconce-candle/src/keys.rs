use crate::Problems;
use sconce_core::abbreviate;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// The keys of one table of `model.toml`, taken one by one so that every problem is reported, not only the
/// first.
#[derive(Debug)]
pub(crate) struct Keys {
    table: toml::Table,
    /// What messages start with: `model.toml`, or a table in it.
    place: String,
    known: Vec<&'static str>,
}

impl Keys {
    pub(crate) fn new(table: toml::Table, place: impl Into<String>) -> Self {
        Self { table, place: place.into(), known: Vec::new() }
    }

    /// Takes `key`, or `None` when it is absent or is not a `T` (which is reported).
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<T> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let parsed = T::deserialize(value).map_err(|e| self.message(key, e.to_string().trim()));
        problems.keep(parsed)
    }

    /// Takes a number that must lie in `range`.
    pub(crate) fn take_in<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
        problems: &mut Problems,
    ) -> Option<T>
    where
        T: DeserializeOwned + PartialOrd + Display,
    {
        let value: T = self.take(key, problems)?;
        if range.contains(&value) {
            return Some(value);
        }
        let expected = format!("expected {} to {}, got {value}", range.start(), range.end());
        problems.push(self.message(key, &expected));
        None
    }

    /// Takes a word and gives what it stands for.
    pub(crate) fn take_word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        problems: &mut Problems,
    ) -> Option<T> {
        let word: String = self.take(key, problems)?;
        let found = words.iter().find(|(name, _)| *name == word);
        if found.is_none() {
            let expected: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
            let got = abbreviate(&word);
            problems
                .push(self.message(key, &format!("expected one of {}, got {got:?}", expected.join(", "))));
        }
        found.map(|(_, value)| *value)
    }

    /// Reports every key that nothing took.
    pub(crate) fn finish(self, problems: &mut Problems) {
        for key in self.table.keys() {
            let (key, known) = (abbreviate(key), self.known.join(", "));
            problems.push(format!("{}: unknown key `{key}`: expected {known}", self.place));
        }
    }

    pub(crate) fn message(&self, key: &str, problem: &str) -> String {
        format!("{}: `{key}`: {problem}", self.place)
    }
}
