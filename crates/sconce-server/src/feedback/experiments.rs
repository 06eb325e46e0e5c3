//! What exposures and outcomes come to in an experiment. Nothing is summed up as they come: an outcome may come weeks later or take the
//! place of another, so the journal is read anew for each report.

use super::{Exposure, Joined, Value, joined};
use sconce_core::{ModelName, PredictionId};
use sconce_registry::{Journal, RegistryError, Topic, limits};
use sconce_traffic::experiment::{
    Comparison, Design, Experiment, ExperimentReport, ExperimentSpec, MetricKind,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Bound;

/// The kind of the document that holds an experiment.
pub(crate) const KIND: &str = "experiment";
/// Units of one experiment.
const MAX_UNITS: usize = 1_000_000;

/// An experiment as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) spec: ExperimentSpec,
    /// Milliseconds since 1970.
    pub(crate) started_ms: u64,
    #[serde(default)]
    pub(crate) stopped_ms: Option<u64>,
    /// Why the server stopped it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stopped_because: Option<String>,
    /// What a bandit gave the arms, the latest last; at most [`MAX_MOVES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) moves: Vec<Move>,
    /// Whether there were more before those.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) has_forgotten: bool,
}

/// Shares that changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Move {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Of each arm, in percent of what they have together.
    pub(crate) percents: Vec<f64>,
}

/// Moves that are remembered.
const MAX_MOVES: usize = 1_000;

impl Stored {
    pub(crate) fn new(spec: ExperimentSpec, started_ms: u64) -> Self {
        let moves = Vec::new();
        Self { spec, started_ms, stopped_ms: None, stopped_because: None, moves, has_forgotten: false }
    }

    /// The share of each arm in percent of what they are to have together: after a guardrail broke, all is the control's.
    pub(crate) fn shares(&self) -> Vec<f64> {
        if self.stopped_because.is_some() {
            let of = |at: usize| if at == 0 { 100.0 } else { 0.0 };
            return (0..self.spec.arms.len()).map(of).collect();
        }
        self.moves.last().map_or_else(|| self.declared(), |last| last.percents.clone())
    }

    /// Gives the arms shares that are to be from `at_ms` on.
    pub(super) fn give(&mut self, percents: Vec<f64>, at_ms: u64) {
        if self.moves.len() >= MAX_MOVES {
            self.moves.remove(0);
            self.has_forgotten = true;
        }
        self.moves.push(Move { at_ms, percents });
    }

    /// Stops it for a guardrail, and says why in a sentence.
    pub(super) fn stop_for(&mut self, broken: &Comparison, now_ms: u64) -> String {
        let metric = self.spec.metrics.iter().find(|metric| metric.name == broken.metric);
        let harm = metric.and_then(|metric| metric.max_harm).unwrap_or_default();
        let least = broken.interval.map_or(0.0, |it| {
            if metric.is_some_and(|metric| metric.higher_is_better) { -it.high } else { it.low }
        });
        let control = self.spec.arms.first().map_or("the control", |arm| arm.variant.as_str());
        let sentence = format!(
            "{} breaks the guardrail {}: it is worse than {control} by at least {least:.4}, and {harm} may be; its requests go to \
             {control}",
            broken.variant, broken.metric
        );
        self.stopped_ms = Some(now_ms);
        self.stopped_because = Some(sentence.clone());
        sentence
    }

    fn declared(&self) -> Vec<f64> {
        let all: f64 = self.spec.arms.iter().map(|arm| arm.weight).sum();
        self.spec.arms.iter().map(|arm| 100.0 * arm.weight / all).collect()
    }

    /// The shares of the arms at a time; `None` where they are not known any more.
    fn shares_at(&self, at_ms: u64) -> Option<Vec<f64>> {
        match self.moves.iter().rev().find(|moved| moved.at_ms <= at_ms) {
            Some(moved) => Some(moved.percents.clone()),
            None if self.has_forgotten => None,
            None => Some(self.declared()),
        }
    }
}

/// What an experiment comes to.
pub(crate) struct Evaluation {
    pub(crate) experiment: Experiment,
    pub(crate) report: ExperimentReport,
    /// Units that were exposed to another variant later; they count for their first.
    pub(crate) moved: u64,
    /// Whether there were more units than are counted.
    pub(crate) cut: bool,
}

/// A unit of an arm, with what came of it: a number and its companion for each metric.
struct Unit {
    arm: usize,
    /// When it was exposed first, in milliseconds since 1970.
    at_ms: u64,
    outcomes: Vec<Option<(f64, f64)>>,
    moved: bool,
}

/// Units in the order of their first exposure.
struct Units<'a> {
    stored: &'a Stored,
    spec: &'a ExperimentSpec,
    /// How many the design takes.
    most: usize,
    places: HashMap<String, usize>,
    units: Vec<Unit>,
    cut: bool,
}

/// Evaluates an experiment on what is known at `now_ms`. Only what a split decided counts: a request that an override sent somewhere
/// was not drawn. Without a sticky key each prediction is a unit.
///
/// # Errors
/// `Internal` when the journal, or the experiment, cannot be read.
pub(crate) fn evaluate(
    journal: &Journal,
    model: &ModelName,
    stored: &Stored,
    now_ms: u64,
) -> Result<Evaluation, RegistryError> {
    let range = (stored.started_ms, stored.stopped_ms.unwrap_or(u64::MAX));
    let mut units = Units::new(stored);
    let mut after = None;
    loop {
        let (rows, next) = joined(journal, model, range, after, limits::PAGE, now_ms)?;
        rows.iter().for_each(|row| units.take(row));
        if next.is_none() {
            return units.evaluate();
        }
        after = next;
    }
}

/// Whether every exposure since the start is still there, as far as can be told: the oldest go first, so they are where older ones are.
///
/// # Errors
/// `Internal` when the journal cannot be read.
pub(crate) fn is_whole(
    journal: &Journal,
    model: &ModelName,
    stored: &Stored,
    now_ms: u64,
) -> Result<bool, RegistryError> {
    let from = format!("{model}/");
    let to = from.clone() + &PredictionId::first_at(stored.started_ms);
    let (from, to) = (Bound::Included(from.as_bytes()), Bound::Excluded(to.as_bytes()));
    let older = journal.scan(Topic::Exposures, from, to, 1, now_ms)?;
    let stats = journal.stats(Topic::Exposures);
    Ok(!older.is_empty() || stats.evicted + stats.expired == 0)
}

impl<'a> Units<'a> {
    fn new(stored: &'a Stored) -> Self {
        let spec = &stored.spec;
        let planned = looks(&spec.design).last().copied().and_then(|units| usize::try_from(units).ok());
        let most = planned.unwrap_or(MAX_UNITS).min(MAX_UNITS);
        Self { stored, spec, most, places: HashMap::new(), units: Vec::new(), cut: false }
    }

    fn take(&mut self, row: &Joined) {
        let Some(exposure) = row.exposure.as_ref().filter(|it| is_drawn(it)) else { return };
        let Some(arm) = self.spec.arms.iter().position(|arm| arm.variant == exposure.variant) else { return };
        let name = if exposure.unit.is_empty() { row.id.to_string() } else { exposure.unit.clone() };
        let at = match self.places.entry(name) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(_) if self.units.len() == self.most => {
                self.cut |= self.most == MAX_UNITS;
                return;
            }
            Entry::Vacant(place) => {
                let outcomes = vec![None; self.spec.metrics.len()];
                self.units.push(Unit { arm, at_ms: row.id.at_ms(), outcomes, moved: false });
                *place.insert(self.units.len() - 1)
            }
        };
        let unit = &mut self.units[at];
        unit.moved |= unit.arm != arm;
        for outcome in &row.outcomes {
            let Some(at) = self.spec.metrics.iter().position(|metric| metric.name == outcome.metric) else {
                continue;
            };
            let value = match outcome.value {
                Value::Number(number) => number,
                Value::Converted(converted) => f64::from(u8::from(converted)),
                Value::Label(_) => continue,
            };
            let (sum, second) = unit.outcomes[at].unwrap_or_default();
            let metric = &self.spec.metrics[at];
            unit.outcomes[at] = Some(match (metric.kind, outcome.second) {
                // What was known of a unit before is the same each time.
                (MetricKind::Adjusted, given) => (sum + value, given.unwrap_or(second)),
                (_, given) => (sum + value, second + given.unwrap_or(1.0)),
            });
        }
    }

    fn evaluate(self) -> Result<Evaluation, RegistryError> {
        let unreadable =
            |problems: &dyn std::fmt::Display| RegistryError::Damaged(format!("experiment: {problems}"));
        let mut experiment = Experiment::new(self.spec.clone()).map_err(|problems| unreadable(&problems))?;
        let looks = looks(&self.spec.design);
        for (at, unit) in self.units.iter().enumerate() {
            let variant = &self.spec.arms[unit.arm].variant;
            experiment.expose_by(variant, self.stored.shares_at(unit.at_ms).as_deref());
            for (metric, outcome) in self.spec.metrics.iter().zip(&unit.outcomes) {
                let Some((value, second)) = *outcome else { continue };
                let value = match metric.kind {
                    MetricKind::Conversion if value == 0.0 => continue,
                    MetricKind::Conversion => 1.0,
                    _ => value,
                };
                let observed = experiment.observe(variant, &metric.name, value, Some(second));
                observed.map_err(|problems| unreadable(&problems))?;
            }
            // Looks are taken at the units that were planned, whenever somebody asks.
            if looks.contains(&(at as u64 + 1)) {
                experiment.report();
            }
        }
        let moved = self.units.iter().filter(|unit| unit.moved).count() as u64;
        let report = experiment.report();
        Ok(Evaluation { experiment, report, moved, cut: self.cut })
    }
}

fn is_drawn(exposure: &Exposure) -> bool {
    matches!(&*exposure.chosen, "sticky" | "random")
}

/// Units at which a design looks, the last of them its end; none where it always may.
fn looks(design: &Design) -> Vec<u64> {
    match design {
        Design::AlwaysValid => Vec::new(),
        Design::Fixed { units } => vec![*units],
        Design::GroupSequential { units, looks } => {
            looks.iter().map(|look| (look * *units as f64).ceil() as u64).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::Outcome;
    use sconce_traffic::experiment::Advice;
    use serde_json::json;

    fn spec(design: serde_json::Value) -> ExperimentSpec {
        let arms = json!([{ "variant": "old", "weight": 1.0 }, { "variant": "new", "weight": 1.0 }]);
        let metrics = json!([
            { "name": "conversion", "kind": "conversion" },
            { "name": "revenue", "kind": "mean", "max_harm": 100.0 },
        ]);
        serde_json::from_value(json!({ "arms": arms, "metrics": metrics, "design": design })).unwrap()
    }

    fn row(variant: &str, chosen: &str, unit: &str, outcomes: &[(&str, Value)]) -> Joined {
        let outcome = |(metric, value): &(&str, Value)| Outcome {
            metric: (*metric).to_owned(),
            value: value.clone(),
            second: None,
            at_ms: 1,
        };
        Joined {
            id: PredictionId::new(),
            exposure: Some(Exposure {
                version: 1,
                variant: variant.to_owned(),
                chosen: chosen.to_owned(),
                unit: unit.to_owned(),
                status: "OK".to_owned(),
                label: None,
                score: None,
            }),
            outcomes: outcomes.iter().map(outcome).collect(),
        }
    }

    #[test]
    fn a_unit_counts_once_for_its_first_variant_whatever_it_does() {
        let stored = Stored::new(spec(json!("always_valid")), 0);
        let mut units = Units::new(&stored);
        let bought = [("conversion", Value::Converted(true)), ("revenue", Value::Number(2.0))];
        let did_not = [("conversion", Value::Converted(false))];
        for row in [
            row("old", "sticky", "a", &bought),
            row("old", "sticky", "a", &bought),
            row("new", "sticky", "a", &bought),
            row("new", "sticky", "b", &did_not),
            // Not drawn; no part of it; each a unit of its own.
            row("new", "override", "c", &bought),
            row("other", "sticky", "d", &bought),
            row("new", "random", "", &bought),
            row("new", "random", "", &[("conversion", Value::Label("x".to_owned()))]),
        ] {
            units.take(&row);
        }
        let revenue: Vec<_> = units.units.iter().map(|unit| unit.outcomes[1].map(|it| it.0)).collect();
        assert_eq!(revenue, [Some(6.0), None, Some(2.0), None]);
        let Evaluation { report, moved, cut, .. } = units.evaluate().unwrap();
        assert_eq!((report.units, moved, cut), (vec![1, 3], 1, false));
        assert!((report.goals[0].difference.unwrap() - (1.0 / 3.0 - 1.0)).abs() < 1e-12);
    }

    #[test]
    fn a_design_with_an_end_counts_the_units_it_planned_and_looks_when_it_said() {
        for design in [
            json!({ "fixed": { "units": 1000 } }),
            json!({ "group_sequential": { "units": 1000, "looks": [0.5, 1.0] } }),
        ] {
            let stored = Stored::new(spec(design.clone()), 0);
            let after = |count: usize| {
                let mut units = Units::new(&stored);
                for number in 0..count {
                    // Of the new one's units four in ten convert, of the old one's two.
                    let (variant, of_ten) = if number % 2 == 0 { ("old", 2) } else { ("new", 4) };
                    let outcomes = [("conversion", Value::Converted(number / 2 % 10 < of_ten))];
                    units.take(&row(variant, "sticky", &number.to_string(), &outcomes));
                }
                units.evaluate().unwrap()
            };
            assert_eq!(after(200).report.advice, Advice::GoOn, "{design}");
            let Evaluation { report, cut, .. } = after(3000);
            assert_eq!(
                (report.units, report.advice, cut),
                (vec![500, 500], Advice::Decide, false),
                "{design}"
            );
        }
    }

    #[test]
    fn shares_of_a_time_are_those_that_were_given_last_and_a_broken_guardrail_gives_all_to_the_control() {
        let mut stored = Stored::new(spec(json!("always_valid")), 1_000);
        assert_eq!((stored.shares(), stored.shares_at(5)), (vec![50.0, 50.0], Some(vec![50.0, 50.0])));
        stored.give(vec![20.0, 80.0], 2_000);
        stored.give(vec![5.0, 95.0], 3_000);
        assert_eq!(stored.shares_at(1_999), Some(vec![50.0, 50.0]));
        assert_eq!(stored.shares_at(2_000), Some(vec![20.0, 80.0]));
        assert_eq!((stored.shares_at(9_000), stored.shares()), (Some(vec![5.0, 95.0]), vec![5.0, 95.0]));
        (0..MAX_MOVES as u64).for_each(|at| stored.give(vec![50.0, 50.0], 4_000 + at));
        assert_eq!((stored.moves.len(), stored.shares_at(3_500)), (MAX_MOVES, None));
        // What is usual is not written, and what was written before there was more is read.
        let old = json!({ "spec": stored.spec, "started_ms": 1_000, "stopped_ms": null });
        let read: Stored = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), old);
    }
}
