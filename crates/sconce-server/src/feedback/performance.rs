//! What predictions were worth, by the labels that came of them: read anew from the journal whenever it is asked, like experiments, and now
//! and then for every model of which something became known.

use super::{Exposure, LABEL, Outcome, Value, joined, now_ms};
use crate::models::{Models, State};
use crate::monitors::Monitors;
use crate::webhooks::{Event, Webhooks};
use sconce_core::{ModelName, ModelVersion, PredictionId, Result};
use sconce_monitor::{
    Budget, Known, Metrics, Performance, PerformanceReport, PerformanceSpec, Said, State as Verdict, Truth,
};
use sconce_registry::{Journal, Registry, RegistryError, Topic, limits};
use sconce_telemetry::metrics::PerformanceSample;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Predictions that one evaluation reads.
const MAX_PREDICTIONS: usize = 1_000_000;
/// Versions, or their variants, that one evaluation tells apart.
const MAX_GROUPS: usize = 32;
/// Models that are followed.
const MAX_FOLLOWED: usize = 1024;
/// How often it is looked whether something became known.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Reading a model's predictions takes no more than one part in so many of the time.
const REST: u32 = 50;
/// Cohorts that are read now and then: those that ripen, and some that did.
const RECENT: u64 = 4;
/// What a version's metrics call these, in the registry.
const ACCURACY: &str = "accuracy";
const ERROR: [&str; 2] = ["mean_absolute_error", "mae"];

/// What is asked of a model's predictions.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Milliseconds since 1970, the second not included.
    pub(crate) made: (u64, u64),
    /// `None`: every version.
    pub(crate) version: Option<ModelVersion>,
    pub(crate) by_variant: bool,
    pub(crate) spec: PerformanceSpec,
    /// What decisions are worth, by the truth and what was said.
    pub(crate) values: BTreeMap<(String, String), f64>,
}

/// What is answered.
pub(crate) struct Answered {
    /// By version and variant; the variant is empty where it was not asked.
    pub(crate) reports: Vec<(u64, String, PerformanceReport)>,
    /// That were read.
    pub(crate) predictions: u64,
    /// Whether there are more, or more groups, than are read.
    pub(crate) cut: bool,
}

/// What is known of versions beside their predictions.
#[derive(Clone)]
pub(crate) struct Background {
    models: Arc<Models>,
    monitors: Option<Arc<Monitors>>,
}

impl Background {
    pub(crate) fn new(models: Arc<Models>, monitors: Option<Arc<Monitors>>) -> Self {
        Self { models, monitors }
    }

    /// What is to be expected of a version: what its monitor was fitted on, else the metrics it was registered with.
    fn known(&self, registry: &Registry, name: &ModelName, version: ModelVersion) -> Known {
        let metrics = registry.version(name, version).map(|record| record.metrics).unwrap_or_default();
        let watched = self.monitors.as_ref().and_then(|monitors| monitors.get(name, version).ok());
        let baseline = watched.and_then(|it| it.stored.fitted.as_ref()?.baseline.clone());
        let fitted = baseline.as_ref().map(|baseline| baseline.metrics.accuracy);
        let registered = metrics.get(ACCURACY).copied().filter(|it| (0.0..=1.0).contains(it));
        let error = ERROR.iter().find_map(|name| metrics.get(*name)).copied().filter(|it| *it >= 0.0);
        Known { accuracy: fitted.or(registered), mean_absolute_error: error, baseline }
    }

    /// The classes as the version names them, if it is in memory.
    fn classes(&self, name: &ModelName, version: ModelVersion) -> Vec<String> {
        let Some(State::Ready(served)) = self.models.live_state(name, version) else { return Vec::new() };
        let labels = served.signature().outputs.iter().find_map(|output| output.labels.clone());
        labels.map(|labels| labels.to_vec()).unwrap_or_default()
    }

    /// Answers `question` by what is known at `now_ms`. Blocks.
    ///
    /// # Errors
    /// What the specification is wrong in; `Internal` when the journal cannot be read.
    pub(crate) fn answer(
        &self,
        registry: &Registry,
        name: &ModelName,
        question: &Question,
        now_ms: u64,
    ) -> Result<Answered> {
        let mut groups: BTreeMap<(u64, String), Performance> = BTreeMap::new();
        let (mut predictions, mut cut, mut after) = (0, false, None);
        loop {
            let page = joined(registry.journal(), name, question.made, after, limits::PAGE, now_ms)?;
            let (rows, next) = page;
            predictions += rows.len() as u64;
            for row in rows {
                let Some(exposure) = row.exposure else { continue };
                let Some(version) = ModelVersion::new(exposure.version) else { continue };
                let Some(said) = said(&exposure) else { continue };
                if question.version.is_some_and(|wanted| wanted != version) {
                    continue;
                }
                let variant = if question.by_variant { exposure.variant.clone() } else { String::new() };
                let key = (exposure.version, variant);
                if !groups.contains_key(&key) {
                    if groups.len() == MAX_GROUPS {
                        cut = true;
                        continue;
                    }
                    let (known, classes) = (self.known(registry, name, version), self.classes(name, version));
                    let performance = Performance::new(question.spec, known, &classes)?;
                    groups.insert(key.clone(), performance.value(question.values.clone()));
                }
                let Some(group) = groups.get_mut(&key) else { continue };
                let outcome = row.outcomes.iter().find(|outcome| outcome.metric == LABEL);
                // A score that is no probability comes of a model that gives none: it is not taken.
                let _ = group.take(row.id.at_ms(), said, outcome.and_then(truth));
            }
            if next.is_none() || predictions >= MAX_PREDICTIONS as u64 {
                cut |= next.is_some();
                break;
            }
            after = next;
        }
        let level = Budget::default().level(Budget::MONTH_MS / question.spec.cohort_ms as f64);
        let report = |((version, variant), performance): ((u64, String), Performance)| {
            let watched = self.monitors.as_ref().zip(ModelVersion::new(version));
            let watched = watched.and_then(|(monitors, version)| monitors.get(name, version).ok());
            let verdict = watched.and_then(|watched| watched.verdict());
            Ok((version, variant, performance.report(level, verdict.as_ref(), now_ms)?))
        };
        let reports = groups.into_iter().map(report).collect::<Result<_>>()?;
        Ok(Answered { reports, predictions, cut })
    }
}

/// What a model said, if that was kept.
fn said(exposure: &Exposure) -> Option<Said<'_>> {
    let score = exposure.score?;
    Some(match &exposure.label {
        Some(label) => Said::Class(label, score),
        None => Said::Number(score),
    })
}

fn truth(outcome: &Outcome) -> Option<Truth<'_>> {
    match &outcome.value {
        Value::Label(label) => Some(Truth::Class(label)),
        Value::Number(number) => Some(Truth::Number(*number)),
        Value::Converted(_) => None,
    }
}

/// Whether a decision was right; `None` where it is none, or nothing that can be held against it is known.
fn is_right(exposure: &Exposure, outcome: &Outcome) -> Option<bool> {
    let said = exposure.label.as_ref()?;
    match truth(outcome)? {
        Truth::Class(truth) => Some(said == truth),
        Truth::Number(truth) => Some(*said == truth.to_string()),
    }
}

/// Labels of a variant's decisions, and how many of them were right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) labelled: u64,
    pub(crate) right: u64,
}

/// What labels say of the decisions of `model` made from `from_ms` on, by variant. Blocks.
///
/// # Errors
/// `Internal` when the journal cannot be read.
pub(crate) fn labels_by_variant(
    journal: &Journal,
    model: &ModelName,
    from_ms: u64,
    now_ms: u64,
) -> Result<BTreeMap<String, Labels>, RegistryError> {
    let mut found = BTreeMap::<String, Labels>::new();
    each_label(journal, model, from_ms, now_ms, |exposure, outcome| {
        if let Some(is_right) = is_right(exposure, outcome) {
            let labels = found.entry(exposure.variant.clone()).or_default();
            labels.labelled += 1;
            labels.right += u64::from(is_right);
        }
        true
    })?;
    Ok(found)
}

/// Whether labels come for decisions of `model`. Blocks.
///
/// # Errors
/// `Internal` when the journal cannot be read.
pub(crate) fn has_labels(journal: &Journal, model: &ModelName, now_ms: u64) -> Result<bool, RegistryError> {
    let mut has = false;
    each_label(journal, model, 0, now_ms, |exposure, outcome| {
        has = is_right(exposure, outcome).is_some();
        !has
    })?;
    Ok(has)
}

/// Calls `visit` with each label and the exposure it is of, in the order of the predictions, until it gives `false`.
fn each_label(
    journal: &Journal,
    model: &ModelName,
    from_ms: u64,
    now_ms: u64,
    mut visit: impl FnMut(&Exposure, &Outcome) -> bool,
) -> Result<(), RegistryError> {
    let prefix = format!("{model}/");
    let end = format!("{model}0").into_bytes();
    let mut from = Bound::Included((prefix + &PredictionId::first_at(from_ms)).into_bytes());
    let metric = format!("/{LABEL}").into_bytes();
    loop {
        let start = from.as_ref().map(Vec::as_slice);
        let page = journal.scan(Topic::Feedback, start, Bound::Excluded(&end), limits::PAGE, now_ms)?;
        for (key, value) in &page {
            let Some(of_prediction) = key.strip_suffix(&metric[..]) else { continue };
            let Some(exposure) = journal.get(Topic::Exposures, of_prediction, now_ms)? else { continue };
            let exposure = serde_json::from_slice(&exposure).map_err(super::damaged)?;
            let outcome = serde_json::from_slice(value).map_err(super::damaged)?;
            if !visit(&exposure, &outcome) {
                return Ok(());
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == limits::PAGE => from = Bound::Excluded(last.clone()),
            _ => return Ok(()),
        }
    }
}

/// How the versions stand of which something became known.
pub(crate) struct Performances {
    background: Background,
    webhooks: Arc<Webhooks>,
    pub(crate) spec: PerformanceSpec,
    followed: Mutex<BTreeMap<ModelName, Followed>>,
    /// Predictions are read by one at a time: that takes memory, and a core.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A model that is followed.
struct Followed {
    /// Something became known since it was looked at.
    is_touched: bool,
    /// When something ripens, in milliseconds since 1970.
    ripe_ms: u64,
    /// Not before then.
    rest_until: Instant,
    versions: BTreeMap<ModelVersion, Glance>,
}

/// How a version stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Glance {
    /// As was shown last: it holds until the other is.
    pub(crate) state: Verdict,
    /// In milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// The latest ripe cohort with labels enough.
    pub(crate) latest: Option<Latest>,
}

/// What is known of a cohort.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latest {
    pub(crate) since_ms: u64,
    pub(crate) labelled: u64,
    pub(crate) coverage: f64,
    /// The accuracy, or else the mean absolute error, and what it was.
    pub(crate) accuracy: Option<(f64, Option<f64>)>,
    pub(crate) error: Option<(f64, Option<f64>)>,
}

impl Performances {
    pub(crate) fn new(background: Background, webhooks: Arc<Webhooks>, spec: PerformanceSpec) -> Self {
        Self { background, webhooks, spec, followed: Mutex::default(), turn: Arc::default() }
    }

    /// Answers `question`.
    ///
    /// # Errors
    /// `NotFound` for an unknown model; as [`Background::answer`].
    pub(crate) async fn ask(&self, name: ModelName, question: Question) -> Result<Answered> {
        let (background, turn) = (self.background.clone(), Arc::clone(&self.turn).lock_owned().await);
        let ask = move |registry: &Registry| {
            let _turn = turn;
            registry.model(&name)?;
            Ok(background.answer(registry, &name, &question, now_ms()))
        };
        self.background.models.read(ask).await?
    }

    /// Something became known of predictions of `name`.
    pub(crate) fn touch(&self, name: &ModelName) {
        let mut followed = self.followed();
        if let Some(model) = followed.get_mut(name) {
            model.is_touched = true;
        } else if followed.len() < MAX_FOLLOWED {
            let rest_until = Instant::now();
            let model =
                Followed { is_touched: true, ripe_ms: u64::MAX, rest_until, versions: BTreeMap::new() };
            followed.insert(name.clone(), model);
        }
    }

    /// Every version that something is known of.
    pub(crate) fn all(&self) -> Vec<(ModelName, ModelVersion, Glance)> {
        let followed = self.followed();
        let of = |(name, model): (&ModelName, &Followed)| {
            let one = |(version, glance): (&ModelVersion, &Glance)| (name.clone(), *version, glance.clone());
            model.versions.iter().map(one).collect::<Vec<_>>()
        };
        followed.iter().flat_map(of).collect()
    }

    /// A scrape's view.
    pub(crate) fn sample(&self) -> Vec<PerformanceSample> {
        let of = |(model, version, glance): (ModelName, ModelVersion, Glance)| PerformanceSample {
            model: model.to_string(),
            version: version.to_string(),
            state: state_name(glance.state),
            labelled: glance.latest.as_ref().map(|latest| latest.labelled),
            coverage: glance.latest.as_ref().map(|latest| latest.coverage),
            accuracy: glance.latest.as_ref().and_then(|latest| latest.accuracy),
            mean_absolute_error: glance.latest.and_then(|latest| latest.error),
        };
        self.all().into_iter().map(of).collect()
    }

    /// Looks at models as something becomes known of them, one after the other, for as long as it is polled.
    pub(crate) async fn follow(self: Arc<Self>) {
        let models = Arc::clone(&self.background.models);
        match self.known_before().await {
            Ok(names) => names.iter().for_each(|name| self.touch(name)),
            Err(error) => tracing::warn!(%error, "what became known before cannot be read"),
        }
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for name in self.due() {
                let (performances, of) = (Arc::clone(&self), name.clone());
                let turn = Arc::clone(&self.turn).lock_owned().await;
                let look = move |registry: &Registry| {
                    let _turn = turn;
                    Ok(performances.look(registry, &of, now_ms()))
                };
                if let Err(error) = models.read(look).await.and_then(|looked| looked) {
                    tracing::warn!(model = %name, %error, "what became of predictions cannot be read");
                }
            }
        }
    }

    /// The models of whose predictions something became known before the server started.
    async fn known_before(&self) -> Result<BTreeSet<ModelName>> {
        let models = &self.background.models;
        let mut names = models.stored_models().await?;
        let known = move |registry: &Registry| {
            let now = now_ms();
            names.retain(|name| has_feedback(registry.journal(), name, now).unwrap_or(false));
            Ok(names)
        };
        models.read(known).await
    }

    fn due(&self) -> BTreeSet<ModelName> {
        let (now, at) = (now_ms(), Instant::now());
        let followed = self.followed();
        let is_due = |model: &Followed| (model.is_touched || model.ripe_ms <= now) && model.rest_until <= at;
        followed.iter().filter(|(_, model)| is_due(model)).map(|(name, _)| name.clone()).collect()
    }

    /// Reads what is known of a model's predictions at `now_ms`, and tells of what changed.
    fn look(&self, registry: &Registry, name: &ModelName, now_ms: u64) -> Result<()> {
        if let Some(model) = self.followed().get_mut(name) {
            model.is_touched = false;
        }
        if matches!(registry.model(name), Err(RegistryError::NotFound(_))) {
            self.followed().remove(name);
            return Ok(());
        }
        let PerformanceSpec { cohort_ms, maturity_ms, .. } = self.spec;
        let back = maturity_ms.saturating_add(RECENT.saturating_mul(cohort_ms));
        let from = now_ms.saturating_sub(back);
        let made = (from - from % cohort_ms, u64::MAX);
        let began = Instant::now();
        let question =
            Question { made, version: None, by_variant: false, spec: self.spec, values: BTreeMap::new() };
        let answered = self.background.answer(registry, name, &question, now_ms);
        let took = began.elapsed();
        let mut followed = self.followed();
        let Some(model) = followed.get_mut(name) else { return Ok(()) };
        model.rest_until = Instant::now() + took * REST;
        let answered = answered?;
        let ripens = answered.reports.iter().flat_map(|(.., report)| &report.cohorts);
        let ripens = ripens.filter(|cohort| !cohort.is_mature).map(|cohort| cohort.since_ms);
        model.ripe_ms = ripens
            .min()
            .map_or(u64::MAX, |since| since.saturating_add(cohort_ms).saturating_add(maturity_ms));
        let mut news = Vec::new();
        for (version, _, report) in answered.reports {
            let Some(version) = ModelVersion::new(version) else { continue };
            let before = model.versions.get(&version);
            let glance = glance(&report, before, now_ms);
            if before.is_none_or(|before| before.state != glance.state)
                && (before.is_some() || glance.state == Verdict::Drifted)
            {
                news.push((version, glance.clone()));
            }
            model.versions.insert(version, glance);
        }
        model.versions.retain(|version, _| registry.version(name, *version).is_ok());
        drop(followed);
        news.iter().for_each(|(version, glance)| self.tell(name, *version, glance));
        Ok(())
    }

    /// Says that a version does worse, or as well again.
    fn tell(&self, model: &ModelName, version: ModelVersion, glance: &Glance) {
        let latest = glance.latest.as_ref();
        let (accuracy, error) = (latest.and_then(|it| it.accuracy), latest.and_then(|it| it.error));
        let data = json!({
            "state": state_name(glance.state),
            "since_ms": glance.since_ms,
            "labelled": latest.map(|it| it.labelled),
            "coverage": latest.map(|it| it.coverage),
            "accuracy": accuracy.map(|(now, _)| now),
            "accuracy_baseline": accuracy.and_then(|(_, then)| then),
            "mean_absolute_error": error.map(|(now, _)| now),
            "mean_absolute_error_baseline": error.and_then(|(_, then)| then),
        });
        let event = |what: &str| Event {
            kind: format!("sconce.{what}.v1"),
            model,
            version: Some(version),
            data: data.clone(),
        };
        let state = state_name(glance.state);
        self.webhooks.tell(event(&format!("performance.{state}")));
        if glance.state == Verdict::Drifted {
            // Whoever fits models listens to this alone.
            self.webhooks.tell(event("monitor.retrain"));
            tracing::warn!(%model, %version, state, figures = %data, "a version does worse than it did");
        } else {
            tracing::info!(%model, %version, state, figures = %data, "a version's performance is known");
        }
    }

    fn followed(&self) -> MutexGuard<'_, BTreeMap<ModelName, Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a version stands that stood as `before` says.
fn glance(report: &PerformanceReport, before: Option<&Glance>, now_ms: u64) -> Glance {
    let (state, since_ms) = match (report.state, before) {
        (Verdict::NotEnoughEvidence, Some(before)) => (before.state, before.since_ms),
        (state, Some(before)) if before.state == state => (state, before.since_ms),
        (state, _) => (state, report.since_ms.unwrap_or(now_ms)),
    };
    let latest = report.cohorts.iter().rev().find(|it| it.is_mature && it.metrics.is_some());
    let latest = latest.map(|cohort| {
        let (accuracy, error) = match &cohort.metrics {
            Some(Metrics::Classes(it)) => (Some((it.accuracy, report.baseline.accuracy)), None),
            Some(Metrics::Numbers(it)) => {
                (None, Some((it.mean_absolute_error, report.baseline.mean_absolute_error)))
            }
            None => (None, None),
        };
        let (since_ms, labelled, coverage) = (cohort.since_ms, cohort.labelled, cohort.coverage);
        Latest { since_ms, labelled, coverage, accuracy, error }
    });
    Glance { state, since_ms, latest }
}

/// A state as machines read it.
pub(crate) fn state_name(state: Verdict) -> &'static str {
    match state {
        Verdict::Drifted => "degraded",
        Verdict::Stable => "stable",
        Verdict::NotEnoughEvidence => "not_enough_evidence",
    }
}

/// Whether anything became known of predictions of `model`.
fn has_feedback(journal: &Journal, model: &ModelName, now_ms: u64) -> Result<bool, RegistryError> {
    let (from, to) = (format!("{model}/"), format!("{model}0"));
    let (from, to) = (Bound::Included(from.as_bytes()), Bound::Excluded(to.as_bytes()));
    Ok(!journal.scan(Topic::Feedback, from, to, 1, now_ms)?.is_empty())
}
