//! What people declare of a rollout, and the check of it.

use crate::Problems;
use crate::route::Target;
use sconce_core::abbreviate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Stages of a rollout.
pub const MAX_STAGES: usize = 32;
/// Gates of a rollout.
pub const MAX_GATES: usize = 32;
/// Bytes of the name of a monitor or query, and of one of a monitor's states.
pub const MAX_FACT_NAME_BYTES: usize = 128;
/// Bytes of a query.
pub const MAX_QUERY_BYTES: usize = 4_096;
/// The longest that anything may be declared to take: 90 days.
pub const MAX_SECONDS: u64 = 90 * 86_400;

/// A rollout as people declare it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What is to answer in the end: a version's number or an alias.
    pub candidate: String,
    /// The alias that means the candidate once it is promoted. Default `champion`.
    #[serde(default = "champion")]
    pub alias: String,
    /// By which stages.
    pub strategy: Strategy,
    /// What must hold; all of it, at every stage. Up to [`MAX_GATES`].
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// What to do when a gate is broken. Default: roll back.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What to do when a stage's longest time is over and its gates say neither. Default: pause.
    #[serde(default)]
    pub on_inconclusive: OnInconclusive,
    /// How often a candidate that is no worse may be taken for worse, over the whole rollout however often its gates are looked
    /// at: shared among the gates. Default 0.01.
    #[serde(default = "one_percent")]
    pub false_rollback_rate: f64,
}

/// How traffic moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// A growing share of requests.
    Canary {
        /// In order: each with a larger share than the one before, the last with 100 percent.
        stages: Vec<Stage>,
    },
    /// Green stands warm beside blue and sees mirrored requests; then all are switched.
    BlueGreen(BlueGreen),
}

/// A stage of a canary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The candidate's share, 0 to 100 percent in steps of 0.01; 0 only with `mirror`.
    pub percent: f64,
    /// Whether the candidate sees, as a shadow, what the control answers. Default false.
    #[serde(default)]
    pub mirror: bool,
    /// The least time. Default 60 s.
    #[serde(default = "minute")]
    pub min_seconds: u64,
    /// The longest time, after which an undecided stage is inconclusive. Default a day.
    #[serde(default = "day")]
    pub max_seconds: u64,
    /// The least requests that the candidate answered, or saw if its share is 0. Default 100.
    #[serde(default = "hundred")]
    pub min_samples: u64,
    /// Whether somebody must approve before the stage begins. Default false.
    #[serde(default)]
    pub approval: bool,
}

/// A switch from blue to green.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlueGreen {
    /// Green sees mirrored requests for at least as long. Default 300 s; 0 for no mirroring.
    pub mirror_seconds: u64,
    /// And at least as many. Default 1,000.
    pub mirror_samples: u64,
    /// Whether somebody must approve the switch. Default false.
    pub approval: bool,
    /// The shares of green by which traffic is switched. Default 100 alone: at once.
    pub steps: Vec<f64>,
    /// How long a step before the last lasts. Default 60 s.
    pub step_seconds: u64,
    /// How long blue stays warm after the switch, and may be switched back to at once. Default 900 s.
    pub keep_blue_seconds: u64,
    /// The longest that mirroring, and each step, may take. Default a day.
    pub max_seconds: u64,
}

impl Default for BlueGreen {
    fn default() -> Self {
        Self {
            mirror_seconds: 300,
            mirror_samples: 1_000,
            approval: false,
            steps: vec![100.0],
            step_seconds: 60,
            keep_blue_seconds: 900,
            max_seconds: 86_400,
        }
    }
}

/// What must hold for a rollout to go on.
///
/// Unless `proof` is asked for, a gate is passed once the stage has its least time and samples, nothing shows that the bound is
/// exceeded, and the estimate lies within it. With `proof` it is passed once the bound is shown to hold, which takes more samples.
/// It is broken once the bound is shown to be exceeded, at any time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "metric", rename_all = "snake_case", deny_unknown_fields)]
pub enum Gate {
    /// The share of the candidate's requests that fail through no fault of the caller.
    ErrorRate {
        /// At most this, 0 to 1.
        #[serde(default)]
        max: Option<f64>,
        /// At most this more than the control's, 0 to 1.
        #[serde(default)]
        vs_control: Option<f64>,
        /// See [`Gate`].
        #[serde(default)]
        proof: bool,
    },
    /// The share of the candidate's requests that succeed.
    SuccessRate {
        /// At least this, 0 to 1.
        #[serde(default)]
        min: Option<f64>,
        /// At most this less than the control's, 0 to 1.
        #[serde(default)]
        vs_control: Option<f64>,
        /// See [`Gate`].
        #[serde(default)]
        proof: bool,
    },
    /// A quantile of the candidate's latency.
    Latency {
        /// Which, such as 0.99.
        quantile: f64,
        /// At most this.
        #[serde(default)]
        max_ms: Option<f64>,
        /// At most this many times the control's, 1 or more.
        #[serde(default)]
        vs_control: Option<f64>,
        /// See [`Gate`].
        #[serde(default)]
        proof: bool,
    },
    /// The share of mirrored requests that the candidate answers otherwise.
    ShadowDisagreement {
        /// At most this, 0 to 1.
        max: f64,
        /// See [`Gate`].
        #[serde(default)]
        proof: bool,
    },
    /// The share of labelled requests whose answer was right.
    Accuracy {
        /// At least this, 0 to 1.
        #[serde(default)]
        min: Option<f64>,
        /// At most this less than the control's, 0 to 1.
        #[serde(default)]
        vs_control: Option<f64>,
        /// See [`Gate`].
        #[serde(default)]
        proof: bool,
    },
    /// The share of the candidate's answers that people decide in its place.
    Deferred {
        /// At most this, 0 to 1.
        #[serde(default)]
        max: Option<f64>,
        /// At most this more than the control's, 0 to 1.
        #[serde(default)]
        vs_control: Option<f64>,
        /// See [`Gate`].
        #[serde(default)]
        proof: bool,
    },
    /// The state of a monitor, as it says it.
    Monitor {
        /// Which.
        name: String,
        /// The states that pass; any other breaks the gate. Default `ok`.
        #[serde(default = "ok")]
        pass: Vec<String>,
    },
    /// What a Prometheus query gives, as it is.
    Prometheus {
        /// What it is called here.
        name: String,
        /// The query.
        query: String,
        /// At least this.
        #[serde(default)]
        min: Option<f64>,
        /// At most this.
        #[serde(default)]
        max: Option<f64>,
    },
}

/// What to do when a gate is broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Give the candidate's traffic back to the control.
    #[default]
    RollBack,
    /// Leave shares as they are until somebody decides.
    Pause,
}

/// What to do when a stage stays undecided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInconclusive {
    /// Leave shares as they are until somebody decides.
    #[default]
    Pause,
    /// Give the candidate's traffic back to the control.
    RollBack,
    /// Go on as if the gates had passed.
    Promote,
}

fn champion() -> String {
    "champion".to_owned()
}

fn one_percent() -> f64 {
    0.01
}

fn minute() -> u64 {
    60
}

fn day() -> u64 {
    86_400
}

fn hundred() -> u64 {
    100
}

fn ok() -> Vec<String> {
    vec!["ok".to_owned()]
}

impl Gate {
    /// What it is about, for people: `error_rate`, `latency p99`, `monitor drift`.
    pub fn name(&self) -> String {
        match self {
            Self::ErrorRate { .. } => "error_rate".to_owned(),
            Self::SuccessRate { .. } => "success_rate".to_owned(),
            Self::Latency { quantile, .. } => format!("latency p{}", quantile * 100.0),
            Self::ShadowDisagreement { .. } => SHADOW_DISAGREEMENT.to_owned(),
            Self::Accuracy { .. } => ACCURACY.to_owned(),
            Self::Deferred { .. } => "deferred".to_owned(),
            Self::Monitor { name, .. } => format!("monitor {name}"),
            Self::Prometheus { name, .. } => format!("query {name}"),
        }
    }
}

/// The fact that labels come for the model.
pub const ACCURACY: &str = "accuracy";
/// Metrics that every rollout has.
const ALWAYS_KNOWN: [&str; 4] = ["error_rate", "success_rate", "latency", "deferred"];
/// The fact that a shadow is compared.
pub const SHADOW_DISAGREEMENT: &str = "shadow_disagreement";

impl Plan {
    /// Checks it. `known` names the facts that there are: monitors, queries that gave a number when they were tried, and
    /// [`ACCURACY`] if labels come for the model. [`SHADOW_DISAGREEMENT`] is known where a stage mirrors.
    ///
    /// # Errors
    /// Every problem, with the key it is about, what was expected and what came.
    pub fn check(&self, known: &BTreeSet<String>) -> Result<(), Problems> {
        let mut problems = Vec::new();
        if matches!(Target::parse(&self.candidate), None | Some(Target::Default)) {
            let got = abbreviate(&self.candidate);
            problems.push(format!("candidate: expected a version number or an alias, got `{got}`"));
        }
        if !matches!(Target::parse(&self.alias), Some(Target::Alias(_))) {
            problems.push(format!("alias: expected an alias, got `{}`", abbreviate(&self.alias)));
        }
        if !(self.false_rollback_rate > 0.0 && self.false_rollback_rate < 1.0) {
            problems.push(format!(
                "false_rollback_rate: expected a number between 0 and 1, neither included, got {}",
                self.false_rollback_rate
            ));
        }
        self.check_strategy(&mut problems);
        if self.gates.len() > MAX_GATES {
            problems.push(format!("gates: expected up to {MAX_GATES}, got {}", self.gates.len()));
        }
        let mut known = known.clone();
        if self.stages().iter().any(|stage| stage.mirror) {
            known.insert(SHADOW_DISAGREEMENT.to_owned());
        }
        for (at, gate) in self.gates.iter().take(MAX_GATES).enumerate() {
            check_gate(&format!("gates[{at}]"), gate, &known, &mut problems);
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// Its stages, those of a blue-green switch too.
    pub fn stages(&self) -> Vec<Stage> {
        match &self.strategy {
            Strategy::Canary { stages } => stages.clone(),
            Strategy::BlueGreen(switch) => switch.stages(),
        }
    }

    fn check_strategy(&self, problems: &mut Vec<String>) {
        let (place, stages) = match &self.strategy {
            Strategy::Canary { stages } => ("strategy.canary.stages", stages.clone()),
            Strategy::BlueGreen(switch) => {
                check_switch(switch, problems);
                ("strategy.blue_green.steps", switch.stages())
            }
        };
        if !(1..=MAX_STAGES).contains(&stages.len()) {
            problems.push(format!("{place}: expected 1 to {MAX_STAGES}, got {}", stages.len()));
            return;
        }
        let mut before: Option<f64> = None;
        for (at, stage) in stages.iter().enumerate() {
            let percent = stage.percent;
            let place = format!("{place}[{at}]");
            if crate::route::hundredths(percent).is_none() {
                problems.push(format!("{place}.percent: expected 0 to 100 in steps of 0.01, got {percent}"));
            } else if percent == 0.0 && !stage.mirror {
                problems.push(format!("{place}.percent: expected more than 0 where nothing is mirrored"));
            } else if let Some(before) = before.filter(|before| percent <= *before) {
                problems.push(format!(
                    "{place}.percent: expected more than the {before} before it, got {percent}"
                ));
            }
            before = Some(percent);
            if stage.mirror && percent >= 100.0 {
                problems.push(format!("{place}.mirror: with 100 percent there is nothing to mirror"));
            }
            if stage.max_seconds > MAX_SECONDS || stage.min_seconds > stage.max_seconds {
                problems.push(format!(
                    "{place}: expected min_seconds <= max_seconds <= {MAX_SECONDS}, got {} and {}",
                    stage.min_seconds, stage.max_seconds
                ));
            }
        }
        if let Some(last) = before.filter(|last| *last != 100.0) {
            problems.push(format!("{place}: expected the last to have 100 percent, got {last}"));
        }
    }
}

impl BlueGreen {
    fn stages(&self) -> Vec<Stage> {
        let stage = |percent: f64, min_seconds: u64| Stage {
            percent,
            mirror: false,
            min_seconds,
            max_seconds: self.max_seconds.max(min_seconds),
            min_samples: 0,
            approval: false,
        };
        let mut stages = Vec::new();
        if self.mirror_seconds > 0 {
            stages.push(Stage {
                mirror: true,
                min_samples: self.mirror_samples,
                ..stage(0.0, self.mirror_seconds)
            });
        }
        let first = stages.len();
        let (last, front) = self.steps.split_last().map_or((&100.0, &[][..]), |(last, front)| (last, front));
        stages.extend(front.iter().map(|percent| stage(*percent, self.step_seconds)));
        stages.push(stage(*last, self.keep_blue_seconds));
        stages[first].approval = self.approval;
        stages
    }
}

fn check_switch(switch: &BlueGreen, problems: &mut Vec<String>) {
    let times = [
        ("mirror_seconds", switch.mirror_seconds),
        ("step_seconds", switch.step_seconds),
        ("keep_blue_seconds", switch.keep_blue_seconds),
        ("max_seconds", switch.max_seconds),
    ];
    for (key, seconds) in times.into_iter().filter(|(_, seconds)| *seconds > MAX_SECONDS) {
        problems.push(format!("strategy.blue_green.{key}: expected up to {MAX_SECONDS}, got {seconds}"));
    }
    if switch.steps.is_empty() {
        problems.push("strategy.blue_green.steps: expected at least one, got none".to_owned());
    }
}

fn check_gate(place: &str, gate: &Gate, known: &BTreeSet<String>, problems: &mut Vec<String>) {
    let mut share = |key: &str, value: Option<f64>, strictly: bool| {
        let good = |value: f64| (0.0..=1.0).contains(&value) && !(strictly && (value == 0.0 || value == 1.0));
        if let Some(value) = value.filter(|value| !good(*value)) {
            let ends = if strictly { ", neither included" } else { "" };
            problems.push(format!("{place}.{key}: expected a number between 0 and 1{ends}, got {value}"));
        }
    };
    match gate {
        Gate::ErrorRate { max: bound, vs_control, proof }
        | Gate::Deferred { max: bound, vs_control, proof }
        | Gate::SuccessRate { min: bound, vs_control, proof }
        | Gate::Accuracy { min: bound, vs_control, proof } => {
            let is_most = matches!(gate, Gate::ErrorRate { .. } | Gate::Deferred { .. });
            share(if is_most { "max" } else { "min" }, *bound, true);
            share("vs_control", *vs_control, false);
            if bound.is_none() && vs_control.is_none() {
                problems.push(format!("{place}: expected a bound or vs_control, got neither"));
            }
            if *proof && *vs_control == Some(0.0) {
                problems.push(format!("{place}.vs_control: expected more than 0 to be proven, got 0"));
            }
            if matches!(gate, Gate::Accuracy { .. }) && !known.contains(ACCURACY) {
                problems.push(format!("{place}: no labels come for this model, so it has no accuracy"));
            }
        }
        Gate::Latency { quantile, max_ms, vs_control, proof } => {
            share("quantile", Some(*quantile), true);
            if let Some(max) = max_ms.filter(|max| !(*max > 0.0 && max.is_finite())) {
                problems.push(format!("{place}.max_ms: expected a number above 0, got {max}"));
            }
            if let Some(ratio) = vs_control.filter(|ratio| !(*ratio >= 1.0 && ratio.is_finite())) {
                problems.push(format!("{place}.vs_control: expected a ratio of at least 1, got {ratio}"));
            }
            if max_ms.is_none() && vs_control.is_none() {
                problems.push(format!("{place}: expected max_ms or vs_control, got neither"));
            }
            if *proof && *vs_control == Some(1.0) {
                problems.push(format!("{place}.vs_control: expected more than 1 to be proven, got 1"));
            }
        }
        Gate::ShadowDisagreement { max, .. } => {
            share("max", Some(*max), true);
            if !known.contains(SHADOW_DISAGREEMENT) {
                problems.push(format!("{place}: no stage mirrors and the candidate is no shadow"));
            }
        }
        Gate::Monitor { name, pass } => {
            check_fact(place, "monitor", name, known, problems);
            if pass.is_empty()
                || pass.iter().any(|state| state.len() > MAX_FACT_NAME_BYTES)
                || pass.len() > 16
            {
                problems.push(format!(
                    "{place}.pass: expected 1 to 16 states of up to {MAX_FACT_NAME_BYTES} bytes"
                ));
            }
        }
        Gate::Prometheus { name, query, min, max } => {
            check_fact(place, "query that gives a number", name, known, problems);
            if !(1..=MAX_QUERY_BYTES).contains(&query.len()) {
                problems.push(format!(
                    "{place}.query: expected 1 to {MAX_QUERY_BYTES} bytes, got {}",
                    query.len()
                ));
            }
            if min.is_none() && max.is_none() {
                problems.push(format!("{place}: expected min or max, got neither"));
            }
            for (key, bound) in [("min", min), ("max", max)] {
                if bound.is_some_and(|bound| !bound.is_finite()) {
                    problems.push(format!("{place}.{key}: expected a finite number"));
                }
            }
        }
    }
}

fn check_fact(place: &str, what: &str, name: &str, known: &BTreeSet<String>, problems: &mut Vec<String>) {
    if !(1..=MAX_FACT_NAME_BYTES).contains(&name.len()) {
        problems.push(format!("{place}.name: expected 1 to {MAX_FACT_NAME_BYTES} bytes, got {}", name.len()));
    } else if !known.contains(name) {
        let mut there_are: Vec<&str> = ALWAYS_KNOWN.to_vec();
        there_are.extend(known.iter().map(String::as_str));
        problems.push(format!(
            "{place}.name: there is no {what} `{}`; there are {}",
            abbreviate(name),
            there_are.join(", ")
        ));
    }
}
