//! One version under watch: its reference, its window, and how it stands.

use super::LOOK_EVERY;
use super::columns::{Columns, Tensors};
use sconce_core::{Error, ModelName, ModelVersion, Result, Signature};
use sconce_monitor::{Budget, Fitted, Monitor, MonitorSpec, PaneSize, Reference, State, Value, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// An hour: how often it is noted how a version stands, whatever happens.
const NOTE_EVERY_MS: u64 = 3_600_000;
/// Features, and checks, that an entry of the history names.
const NAMED: usize = 16;

/// How a version is watched, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) settings: Settings,
    /// Where columns come from that are not named as the model's tensors are.
    #[serde(default)]
    pub(crate) columns: BTreeMap<String, String>,
    /// What rows are held against; `None` while that is being learned.
    pub(crate) fitted: Option<Fitted>,
    /// How many rows it is learned from.
    #[serde(default)]
    pub(crate) learn_rows: u64,
}

/// What can be said of how a version is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) window: MonitorSpec,
    pub(crate) budget: Budget,
    /// The share of requests that is looked at, at most.
    pub(crate) sample: f64,
    /// Rows that are taken, about: of more, fewer requests are looked at.
    pub(crate) rows_per_second: f64,
}

/// A version under watch.
pub(crate) struct Watched {
    pub(crate) model: ModelName,
    pub(crate) version: ModelVersion,
    /// Of what is stored.
    pub(super) revision: u64,
    pub(crate) stored: Stored,
    /// Known once the version is in memory.
    columns: OnceLock<Result<Columns, String>>,
    /// The share of requests that is looked at now: bits of a number.
    share: AtomicU64,
    /// Rows since the last look.
    admitted: AtomicU64,
    live: Mutex<Live>,
}

struct Live {
    stage: Stage,
    started_ms: u64,
    rows: u64,
    /// Rows, and when that was, at the last look.
    looked: (u64, u64),
    standing: Standing,
    since_ms: u64,
    verdict: Option<Verdict>,
    noted_ms: u64,
    problem: Option<String>,
}

enum Stage {
    /// Without a reference until the first request: the columns are the version's.
    Learning(Option<Reference>),
    Watching(Box<Monitor>),
}

/// How a version stands: as was shown last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    Learning,
    NotEnoughEvidence,
    Stable,
    Drifted,
}

/// How a version stood at some time: an entry of its history, and what is told of a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) at_ms: u64,
    pub(crate) standing: Standing,
    /// In the window.
    pub(crate) rows: u64,
    /// What had drifted, the largest change first: its index, and the logarithm of the evidence.
    pub(crate) features: Vec<(String, f64, f64)>,
    /// Checks of quality that failed.
    pub(crate) failed: Vec<String>,
}

/// What a look at a version found.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    Nothing,
    /// To be noted.
    Entry(Entry),
    /// It stands differently from before.
    Changed(Entry),
    /// The reference is learned.
    Learned(Reference),
}

/// What a list sees of a version.
pub(crate) struct Glance {
    pub(crate) standing: Standing,
    pub(crate) since_ms: u64,
    pub(crate) rows: u64,
    /// Of requests that is looked at now.
    pub(crate) share: f64,
    pub(crate) reference_rows: u64,
    pub(crate) problem: Option<String>,
}

impl Watched {
    /// # Errors
    /// `InvalidArgument` for a reference or settings that do not hold together.
    pub(super) fn new(
        model: ModelName,
        version: ModelVersion,
        revision: u64,
        stored: Stored,
        now_ms: u64,
    ) -> Result<Self> {
        let Settings { window, budget, sample, rows_per_second } = &stored.settings;
        if !(*sample > 0.0 && *sample <= 1.0) {
            return Err(Error::invalid(format!("sample: expected above 0 to 1, got {sample}")));
        }
        if !(*rows_per_second >= 1.0 && rows_per_second.is_finite()) {
            return Err(Error::invalid(format!(
                "rows_per_second: expected at least 1, got {rows_per_second}"
            )));
        }
        let monthly = budget.false_alarms_per_month;
        if !(monthly > 0.0 && monthly <= 1e6) {
            return Err(Error::invalid(format!(
                "false_alarms_per_month: expected above 0 to 1000000, got {monthly}"
            )));
        }
        window.check()?;
        let (stage, standing) = match &stored.fitted {
            None => (Stage::Learning(None), Standing::Learning),
            Some(fitted) => {
                let monitor = Monitor::new(fitted.reference.clone(), window.clone())?;
                (Stage::Watching(Box::new(monitor)), Standing::NotEnoughEvidence)
            }
        };
        let live = Live {
            stage,
            started_ms: now_ms,
            rows: 0,
            looked: (0, now_ms),
            standing,
            since_ms: now_ms,
            verdict: None,
            noted_ms: now_ms,
            problem: None,
        };
        let share = AtomicU64::new(stored.settings.sample.to_bits());
        let (columns, admitted, live) = (OnceLock::new(), AtomicU64::new(0), Mutex::new(live));
        Ok(Self { model, version, revision, stored, columns, share, admitted, live })
    }

    /// The share of requests that is looked at now.
    fn share(&self) -> f64 {
        f64::from_bits(self.share.load(Ordering::Relaxed))
    }

    /// Whether a request is looked at, by a number from 0 up to 1 that is drawn for it.
    pub(super) fn admits(&self, drawn: f64) -> bool {
        drawn < self.share()
    }

    /// Whether its rows are taken. Until the next look that ends with the request that brings twice the rows that are wanted: a burst
    /// after a quiet time costs little more than what comes always.
    pub(super) fn has_room(&self, rows: usize) -> bool {
        let most = 2.0 * self.stored.settings.rows_per_second * LOOK_EVERY.as_secs_f64();
        (self.admitted.fetch_add(rows as u64, Ordering::Relaxed) as f64) < most
    }

    /// Has fewer requests looked at while more rows come than are to be taken, and more of them while fewer do. Which requests are
    /// looked at is a matter of chance, so what is seen is what comes.
    fn adapt(&self, live: &mut Live, now_ms: u64) {
        let Settings { sample, rows_per_second, .. } = self.stored.settings;
        self.admitted.store(0, Ordering::Relaxed);
        let (rows, then_ms) = std::mem::replace(&mut live.looked, (live.rows, now_ms));
        let taken = (live.rows - rows) as f64;
        let wanted = rows_per_second * now_ms.saturating_sub(then_ms) as f64 / 1000.0;
        let share = if taken > 0.0 { self.share() * wanted / taken } else { sample };
        // Never so few that a quieter hour would not be noticed.
        self.share.store(share.clamp(1e-4 * sample, sample).to_bits(), Ordering::Relaxed);
    }

    /// Where its columns come from in a model of this signature; `None` where they cannot.
    pub(super) fn columns(&self, signature: &Signature) -> Option<&Columns> {
        self.checked(signature).as_ref().ok()
    }

    /// # Errors
    /// `InvalidArgument` when the signature does not have what the reference has.
    pub(super) fn check(&self, signature: &Signature) -> Result<()> {
        self.checked(signature).as_ref().map(|_| ()).map_err(Error::invalid)
    }

    fn checked(&self, signature: &Signature) -> &Result<Columns, String> {
        self.columns.get_or_init(|| {
            let made = || match &self.stored.fitted {
                Some(fitted) => Columns::new(signature, &fitted.reference, &self.stored.columns),
                None => {
                    let reference = Reference::new(&Columns::default_of(signature)?)?;
                    let columns = Columns::new(signature, &reference, &self.stored.columns)?;
                    self.live().stage = Stage::Learning(Some(reference));
                    Ok(columns)
                }
            };
            made().map_err(|error| error.to_string())
        })
    }

    /// Takes the rows of a request, which was answered at `now_ms`.
    pub(super) fn take(&self, tensors: &Tensors<'_>, now_ms: u64) -> Result<()> {
        let Some(Ok(columns)) = self.columns.get() else { return Ok(()) };
        let mut live = self.live();
        let mut row: Vec<Value<'_>> = Vec::new();
        for at in 0..tensors.rows {
            columns.fill(tensors, at, &mut row);
            live.rows += 1;
            match &mut live.stage {
                Stage::Learning(Some(reference)) if reference.rows() < self.stored.learn_rows => {
                    reference.update(&row)?;
                }
                Stage::Learning(_) => {}
                Stage::Watching(monitor) => monitor.update(&row, now_ms)?,
            }
        }
        Ok(())
    }

    /// Judges what there is at `now_ms`.
    pub(super) fn look(&self, now_ms: u64) -> Result<Found> {
        let mut guard = self.live();
        let live = &mut *guard;
        self.adapt(live, now_ms);
        let monitor = match &mut live.stage {
            _ if live.problem.is_some() => return Ok(Found::Nothing),
            Stage::Learning(Some(reference)) if reference.rows() >= self.stored.learn_rows => {
                return Ok(Found::Learned(reference.clone()));
            }
            Stage::Learning(_) => return Ok(Found::Nothing),
            Stage::Watching(monitor) => monitor,
        };
        let month_of =
            |count: f64| count / (now_ms - live.started_ms.min(now_ms)).max(1) as f64 * Budget::MONTH_MS;
        let budget = self.stored.settings.budget;
        let panes = match self.stored.settings.window.pane {
            PaneSize::Ms(ms) => Budget::MONTH_MS / ms as f64,
            PaneSize::Rows(rows) => month_of(live.rows as f64 / rows as f64),
        };
        monitor.set_stream_level(Some(budget.level(month_of(live.rows as f64))));
        let verdict = monitor.judge(budget.level(panes), now_ms)?;
        let standing = match verdict.state {
            State::Drifted => Standing::Drifted,
            State::Stable => Standing::Stable,
            // What was shown holds until the other is: who goes to and fro is told of once.
            State::NotEnoughEvidence => live.standing,
        };
        let entry = Entry::of(&verdict, standing, now_ms);
        live.verdict = Some(verdict);
        let found = if standing != live.standing {
            (live.standing, live.since_ms) = (standing, now_ms);
            Found::Changed(entry)
        } else if now_ms.saturating_sub(live.noted_ms) >= NOTE_EVERY_MS {
            Found::Entry(entry)
        } else {
            return Ok(Found::Nothing);
        };
        live.noted_ms = now_ms;
        Ok(found)
    }

    /// How it stands, as of the last look.
    pub(crate) fn glance(&self) -> Glance {
        let live = self.live();
        let reference_rows = match (&live.stage, &self.stored.fitted) {
            (Stage::Learning(reference), _) => reference.as_ref().map_or(0, Reference::rows),
            (_, Some(fitted)) => fitted.reference.rows(),
            (_, None) => 0,
        };
        Glance {
            standing: live.standing,
            since_ms: live.since_ms,
            rows: live.rows,
            share: self.share(),
            reference_rows,
            problem: live
                .problem
                .clone()
                .or_else(|| self.columns.get().and_then(|columns| columns.as_ref().err().cloned())),
        }
    }

    /// What the last look found.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.live().verdict.clone()
    }

    /// How far each feature is from the reference, as of the last look.
    pub(super) fn psi(&self) -> Vec<(String, f64)> {
        let live = self.live();
        let features = live.verdict.iter().flat_map(|verdict| &verdict.features);
        features.map(|feature| (feature.feature.clone(), feature.psi)).collect()
    }

    /// What it learned cannot be kept: it learns no more.
    pub(super) fn give_up(&self, problem: String) {
        self.live().problem = Some(problem);
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn of(verdict: &Verdict, standing: Standing, at_ms: u64) -> Self {
        let drifted = verdict.drifted().into_iter().take(NAMED);
        let failed = verdict.failed().into_iter().take(NAMED).map(|check| match &check.feature {
            Some(feature) => format!("{}: {feature}", check.kind.as_str()),
            None => check.kind.as_str().to_owned(),
        });
        Self {
            at_ms,
            standing,
            rows: verdict.rows,
            features: drifted.map(|it| (it.feature.clone(), it.psi, it.log_evidence)).collect(),
            failed: failed.collect(),
        }
    }
}

impl Standing {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Learning => "learning",
            Self::NotEnoughEvidence => "not_enough_evidence",
            Self::Stable => "stable",
            Self::Drifted => "drifted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_core::{DataType, Tensor, TensorSpec};

    fn signature() -> Signature {
        let spec = |name| TensorSpec::new(name, DataType::Fp64, &[None, Some(1)]);
        Signature { inputs: vec![spec("x")], outputs: vec![spec("y")], max_batch_size: 8 }
    }

    fn watched(stored: Stored) -> Result<Watched> {
        Watched::new(ModelName::new("m").unwrap(), ModelVersion::new(1).unwrap(), 1, stored, 0)
    }

    fn learning(rows: u64) -> Stored {
        let window = MonitorSpec { pane: PaneSize::Rows(500), panes: 4, ..MonitorSpec::default() };
        let settings = Settings { window, budget: Budget::default(), sample: 1.0, rows_per_second: 1e9 };
        Stored { settings, columns: BTreeMap::new(), fitted: None, learn_rows: rows }
    }

    /// `rows` requests of a row each, a second apart, with values that are `shift` higher; a look after each tenth.
    fn ask(
        watched: &Watched,
        random: &mut fastrand::Rng,
        now: &mut u64,
        rows: usize,
        shift: f64,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        for at in 0..rows {
            let tensor = |value: f64| {
                Tensor::new(DataType::Fp64, vec![1, 1], value.to_le_bytes().to_vec().into()).unwrap()
            };
            let value = (0..12).map(|_| random.f64()).sum::<f64>() + shift;
            let inputs = [("x".to_owned(), tensor(value))];
            let outputs = [Some(tensor(random.f64()))];
            *now += 1000;
            watched.take(&Tensors::new(&inputs, &outputs), *now).unwrap();
            if at % 10 == 0 {
                found.push(watched.look(*now).unwrap());
            }
        }
        found.retain(|found| *found != Found::Nothing);
        found
    }

    #[test]
    fn a_reference_is_learned_and_a_change_is_told_once_and_its_end_as_well() {
        let (mut random, mut now) = (fastrand::Rng::with_seed(5), 0);
        let learner = watched(learning(2000)).unwrap();
        learner.check(&signature()).unwrap();
        let learned = ask(&learner, &mut random, &mut now, 2001, 0.0).pop();
        let Some(Found::Learned(reference)) = learned else { panic!("{learned:?}") };
        assert_eq!((reference.rows(), learner.glance().standing), (2000, Standing::Learning));
        let stored = Stored { fitted: Some(Fitted { reference, baseline: None }), ..learning(2000) };
        let watched = Watched::new(learner.model, learner.version, 2, stored, now).unwrap();
        watched.check(&signature()).unwrap();
        let mut told = Vec::new();
        for (rows, shift) in [(3000, 0.0), (600, 2.0), (6000, 0.0)] {
            for found in ask(&watched, &mut random, &mut now, rows, shift) {
                if let Found::Changed(entry) = found {
                    told.push((shift, entry));
                }
            }
        }
        let standings: Vec<_> = told.iter().map(|(shift, entry)| (*shift, entry.standing)).collect();
        let expected = [(0.0, Standing::Stable), (2.0, Standing::Drifted), (0.0, Standing::Stable)];
        assert_eq!(standings, expected);
        assert_eq!(told[1].1.features[0].0, "x");
        assert!(told[1].1.features.iter().all(|(name, ..)| name == "x"));
    }

    #[test]
    fn no_more_rows_are_taken_than_are_wanted() {
        let mut stored = learning(1_000_000);
        stored.settings.rows_per_second = 10.0;
        let watched = watched(stored).unwrap();
        watched.check(&signature()).unwrap();
        let (mut random, mut now, mut taken) = (fastrand::Rng::with_seed(6), 0, 0);
        let tensor = || Tensor::new(DataType::Fp64, vec![1, 1], vec![0; 8].into()).unwrap();
        let (inputs, outputs) = ([("x".to_owned(), tensor())], [Some(tensor())]);
        // A thousand requests a second, then five, and a look every two seconds.
        for (a_second, seconds, least, most) in [(1_000, 60, 500, 900), (5, 60, 0, 300), (5, 20, 100, 100)] {
            let before = taken;
            for _ in 0..seconds / 2 {
                for _ in 0..2 * a_second {
                    if watched.admits(random.f64()) && watched.has_room(1) {
                        watched.take(&Tensors::new(&inputs, &outputs), now).unwrap();
                        taken += 1;
                    }
                }
                now += 2_000;
                watched.look(now).unwrap();
            }
            assert!((least..=most).contains(&(taken - before)), "{a_second} a second: {}", taken - before);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |change: &dyn Fn(&mut Stored)| {
            let mut stored = learning(100);
            change(&mut stored);
            watched(stored).is_err()
        };
        assert!(
            of(&|stored| stored.settings.sample = 0.0) && of(&|stored| stored.settings.sample = f64::NAN)
        );
        assert!(of(&|stored| stored.settings.rows_per_second = 0.5));
        assert!(of(&|stored| stored.settings.window.panes = 0));
        assert!(of(&|stored| stored.settings.budget.false_alarms_per_month = -1.0));
        let none = Signature { inputs: Vec::new(), outputs: Vec::new(), max_batch_size: 1 };
        assert!(watched(learning(100)).unwrap().check(&none).is_err());
    }
}
