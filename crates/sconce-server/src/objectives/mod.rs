//! Service level objectives: what a model's callers may expect, how it is kept over windows, and at what rate what may go wrong
//! is used up.
//!
//! Burn rates and the pairs of windows that alert are those of chapter 5 of Google's "The Site Reliability Workbook".

mod windows;

pub(crate) use windows::{Counts, Ends, SPANS, WINDOWS};

use sconce_core::{ModelName, abbreviate};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use windows::Windows;

/// What callers may expect of every model, and of some in its place.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objectives {
    /// Milliseconds that 95 % of the answers take at most. Default 500.
    pub p95_ms: f64,
    /// Milliseconds that 99 % of the answers take at most. Default 1000.
    pub p99_ms: f64,
    /// The share of requests with nothing wrong about them that fail at most. Default 0.01.
    pub error_rate: f64,
    /// The share of requests with nothing wrong about them that are answered at least. Default 0.999.
    pub availability: f64,
    /// What is expected of single models.
    pub models: BTreeMap<String, ModelObjectives>,
}

/// What is expected of one model; what is not said is as for every model.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelObjectives {
    /// As [`Objectives::p95_ms`].
    pub p95_ms: Option<f64>,
    /// As [`Objectives::p99_ms`].
    pub p99_ms: Option<f64>,
    /// As [`Objectives::error_rate`].
    pub error_rate: Option<f64>,
    /// As [`Objectives::availability`].
    pub availability: Option<f64>,
}

impl Default for Objectives {
    fn default() -> Self {
        Self { p95_ms: 500.0, p99_ms: 1000.0, error_rate: 0.01, availability: 0.999, models: BTreeMap::new() }
    }
}

impl Objectives {
    /// Calls `check` with each condition, and what is wrong where it does not hold.
    pub(crate) fn check(&self, check: &mut impl FnMut(bool, String)) {
        let mut one = |place: &str, objectives: [f64; 4]| {
            let [p95_ms, p99_ms, error_rate, availability] = objectives;
            for (key, ms) in [("p95_ms", p95_ms), ("p99_ms", p99_ms)] {
                check(
                    ms > 0.0 && ms <= 120_000.0,
                    format!("{place}.{key}: expected over 0 to 120000, got {ms}"),
                );
            }
            for (key, share) in [("error_rate", error_rate), ("availability", availability)] {
                check(
                    share > 0.0 && share < 1.0,
                    format!("{place}.{key}: expected a share between 0 and 1, got {share}"),
                );
            }
        };
        one("objectives", self.of(""));
        for name in self.models.keys() {
            one(&format!("objectives.models.{}", abbreviate(name)), self.of(name));
        }
        for name in self.models.keys() {
            if let Err(error) = ModelName::new(name) {
                check(false, format!("objectives.models: {error}"));
            }
        }
    }

    /// What is expected of `model`, in the order of [`Objective::ALL`].
    fn of(&self, model: &str) -> [f64; 4] {
        let own = self.models.get(model);
        let of = |own: Option<f64>, every: f64| own.unwrap_or(every);
        [
            of(own.and_then(|own| own.p95_ms), self.p95_ms),
            of(own.and_then(|own| own.p99_ms), self.p99_ms),
            of(own.and_then(|own| own.error_rate), self.error_rate),
            of(own.and_then(|own| own.availability), self.availability),
        ]
    }
}

/// What may be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Objective {
    P95,
    P99,
    ErrorRate,
    Availability,
}

/// How an objective is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Nobody asked.
    NoData,
    /// It is kept over every window.
    Met,
    /// It is not kept over some window.
    Violated,
    /// What may go wrong is used up so fast that somebody should look.
    Burning(Severity),
}

/// How soon somebody should look at an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// In working hours.
    Warning,
    /// Now.
    Critical,
}

/// One objective over one window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    /// Requests that count for it.
    pub(crate) requests: u64,
    /// Milliseconds or a share, as the objective is; `None` without requests.
    pub(crate) value: Option<f64>,
    /// How many times faster than the objective allows what may go wrong is used up. 1: in the end just kept.
    pub(crate) burn_rate: f64,
    /// Requests that did not keep it.
    bad: f64,
}

/// How one objective of a model stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kept {
    pub(crate) objective: Objective,
    pub(crate) target: f64,
    pub(crate) standing: Standing,
    /// In the order of [`SPANS`].
    pub(crate) windows: [Measured; WINDOWS],
}

/// Both windows of a pair burn at this rate or faster: an alert. The first pair wins.
const ALERTS: [(usize, usize, f64, Severity); 3] =
    [(0, 1, 14.4, Severity::Critical), (1, 2, 6.0, Severity::Critical), (2, 3, 1.0, Severity::Warning)];
/// A few bad requests among few are no reason to wake anybody.
const FEWEST_BAD: f64 = 5.0;

impl Objective {
    pub(crate) const ALL: [Self; 4] = [Self::P95, Self::P99, Self::ErrorRate, Self::Availability];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P95 => "p95_ms",
            Self::P99 => "p99_ms",
            Self::ErrorRate => "error_rate",
            Self::Availability => "availability",
        }
    }

    fn measure(self, counts: &Counts, target: f64) -> Measured {
        // What was wrong itself says nothing of the model, as in the Prometheus rules and in gates of rollouts.
        let (answered, failed) = (counts.answered(), counts.failed as f64);
        let owed = answered + counts.failed;
        let quantile = |q| counts.quantile(q).map(|seconds| seconds * 1e3);
        let share = |part: f64, of: u64| (of > 0).then(|| part / of as f64);
        // Requests, bad ones among them, the share that may be bad, the value.
        let (requests, bad, allowed, value) = match self {
            Self::P95 => (answered, counts.slower(target / 1e3), 0.05, quantile(0.95)),
            Self::P99 => (answered, counts.slower(target / 1e3), 0.01, quantile(0.99)),
            Self::ErrorRate => (owed, failed, target, share(failed, owed)),
            Self::Availability => (owed, failed, 1.0 - target, share(answered as f64, owed)),
        };
        let burn_rate = share(bad, requests).map_or(0.0, |share| share / allowed);
        Measured { requests, value, burn_rate, bad }
    }

    fn is_kept(self, value: f64, target: f64) -> bool {
        match self {
            Self::P95 | Self::P99 | Self::ErrorRate => value <= target,
            Self::Availability => value >= target,
        }
    }
}

impl Kept {
    fn new(objective: Objective, target: f64, sums: &[Counts; WINDOWS]) -> Self {
        let windows: [Measured; WINDOWS] = std::array::from_fn(|at| objective.measure(&sums[at], target));
        let burns = |(short, long, rate, _): &(usize, usize, f64, Severity)| {
            windows[*short].burn_rate >= *rate
                && windows[*long].burn_rate >= *rate
                && windows[*long].bad >= FEWEST_BAD
        };
        let is_violated =
            |window: &Measured| window.value.is_some_and(|value| !objective.is_kept(value, target));
        let standing = match ALERTS.iter().find(|alert| burns(alert)) {
            Some((.., severity)) => Standing::Burning(*severity),
            None if windows.iter().all(|window| window.requests == 0) => Standing::NoData,
            None if windows.iter().any(is_violated) => Standing::Violated,
            None => Standing::Met,
        };
        Self { objective, target, standing, windows }
    }
}

/// How every model keeps its objectives. Bounded by the models there are: about 36 KiB for one that was asked.
#[derive(Debug)]
pub(crate) struct Watch {
    objectives: Objectives,
    models: Mutex<BTreeMap<ModelName, Watched>>,
}

#[derive(Debug)]
struct Watched {
    seen: Counts,
    windows: Windows,
    /// Since when an objective burns.
    burning: BTreeMap<Objective, SystemTime>,
}

/// How one model keeps its objectives, and since when those that burn do.
pub(crate) struct Report {
    pub(crate) model: ModelName,
    pub(crate) kept: Vec<(Kept, Option<SystemTime>)>,
}

/// How often windows take in what was counted.
pub(crate) const TICK: Duration = Duration::from_secs(30);

impl Watch {
    pub(crate) fn new(objectives: Objectives) -> Self {
        Self { objectives, models: Mutex::default() }
    }

    /// Takes in what was counted of each model, and says how it stands.
    pub(crate) fn look(
        &self,
        ends: Vec<(ModelName, Arc<Ends>)>,
        now: Instant,
        at: SystemTime,
    ) -> Vec<Report> {
        let mut models = self.models();
        let known: BTreeSet<&ModelName> = ends.iter().map(|(name, _)| name).collect();
        models.retain(|name, _| known.contains(name));
        let mut reports = Vec::with_capacity(ends.len());
        for (model, ends) in ends {
            let counts = ends.counts();
            let targets = self.objectives.of(model.as_str());
            // One that nobody asked yet holds nothing.
            let Some(watched) = (match counts.total() {
                0 => models.get_mut(&model),
                _ => Some(models.entry(model.clone()).or_insert_with(|| Watched::new(now))),
            }) else {
                let nothing = std::array::from_fn(|_| Counts::default());
                let kept = Objective::ALL.into_iter().zip(targets);
                let kept =
                    kept.map(|(objective, target)| (Kept::new(objective, target, &nothing), None)).collect();
                reports.push(Report { model, kept });
                continue;
            };
            let new = counts.since(&watched.seen);
            watched.windows.add(&new, now);
            watched.seen = counts;
            let sums = watched.windows.sums();
            let kept = Objective::ALL.into_iter().zip(targets).map(|(objective, target)| {
                let kept = Kept::new(objective, target, &sums);
                let since = match kept.standing {
                    Standing::Burning(_) => Some(*watched.burning.entry(objective).or_insert(at)),
                    Standing::NoData | Standing::Met | Standing::Violated => {
                        watched.burning.remove(&objective);
                        None
                    }
                };
                (kept, since)
            });
            let kept = kept.collect();
            reports.push(Report { model, kept });
        }
        reports.sort_by(|a, b| a.model.cmp(&b.model));
        reports
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<ModelName, Watched>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    fn new(now: Instant) -> Self {
        Self { seen: Counts::default(), windows: Windows::new(now), burning: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_core::ErrorCode;

    /// A model that is asked, and looked at, in virtual time.
    struct Asked {
        watch: Watch,
        ends: Arc<Ends>,
        start: Instant,
        seconds: u64,
    }

    impl Asked {
        fn new(objectives: Objectives) -> Self {
            Self { watch: Watch::new(objectives), ends: Arc::default(), start: Instant::now(), seconds: 0 }
        }

        /// Each `seconds` ten requests, of which `bad` end so.
        fn ask(&mut self, seconds: u64, bad: u64, code: Option<ErrorCode>, time: Duration) {
            for _ in 0..seconds {
                self.seconds += 1;
                for number in 0..10 {
                    let (code, time) =
                        if number < bad { (code, time) } else { (None, Duration::from_millis(5)) };
                    self.ends.count(code, time);
                }
                if self.seconds.is_multiple_of(30) {
                    self.look();
                }
            }
        }

        fn look(&self) -> Vec<(Kept, Option<SystemTime>)> {
            let past = Duration::from_secs(self.seconds);
            let name = ModelName::new("scale").unwrap();
            let ends = vec![(name, Arc::clone(&self.ends))];
            let mut reports = self.watch.look(ends, self.start + past, SystemTime::UNIX_EPOCH + past);
            reports.remove(0).kept
        }

        fn standings(&self) -> [Standing; 4] {
            let kept = self.look();
            std::array::from_fn(|at| kept[at].0.standing)
        }
    }

    #[test]
    fn a_model_that_answers_in_time_keeps_what_is_expected_of_it() {
        let mut asked = Asked::new(Objectives::default());
        assert_eq!(asked.standings(), [Standing::NoData; 4]);
        asked.ask(600, 0, None, Duration::ZERO);
        assert_eq!(asked.standings(), [Standing::Met; 4]);
        let kept = asked.look();
        let p95 = kept[0].0.windows[0];
        assert!(p95.value.unwrap() < 6.0 && p95.burn_rate == 0.0, "{p95:?}");
        assert_eq!(kept[3].0.windows[1].value, Some(1.0));
    }

    #[test]
    fn failures_burn_until_they_end_and_since_when_is_said() {
        let mut asked = Asked::new(Objectives::default());
        asked.ask(4000, 0, None, Duration::ZERO);
        asked.ask(900, 3, Some(ErrorCode::Internal), Duration::ZERO);
        let critical = Standing::Burning(Severity::Critical);
        let warning = Standing::Burning(Severity::Warning);
        assert_eq!(asked.standings(), [Standing::Met, Standing::Met, warning, critical]);
        let since = asked.look()[3].1.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!((4000..4400).contains(&since), "{since}");
        // The short window says that it is over, and what is lost stays lost for its time.
        asked.ask(400, 0, None, Duration::ZERO);
        assert_eq!(asked.standings()[3], critical);
        asked.ask(2 * 3600, 0, None, Duration::ZERO);
        assert_eq!(asked.standings(), [Standing::Met, Standing::Met, warning, warning]);
    }

    #[test]
    fn requests_that_are_wrong_themselves_count_against_nothing() {
        let mut asked = Asked::new(Objectives::default());
        asked.ask(600, 5, Some(ErrorCode::InvalidArgument), Duration::ZERO);
        assert_eq!(asked.standings(), [Standing::Met; 4]);
        assert_eq!(asked.look()[2].0.windows[1].requests, 3000);
    }

    #[test]
    fn slow_answers_are_held_against_the_models_own_objective() {
        let patient = ModelObjectives { p95_ms: Some(2000.0), p99_ms: Some(2000.0), ..Default::default() };
        for (models, is_kept) in
            [(BTreeMap::new(), false), (BTreeMap::from([("scale".to_owned(), patient)]), true)]
        {
            let mut asked = Asked::new(Objectives { models, ..Default::default() });
            asked.ask(300, 2, None, Duration::from_millis(1500));
            assert_eq!(asked.standings()[..2].iter().all(|one| *one == Standing::Met), is_kept);
        }
    }

    #[test]
    fn a_few_failures_among_few_requests_wake_nobody() {
        let mut asked = Asked::new(Objectives::default());
        asked.ask(1, 4, Some(ErrorCode::Internal), Duration::ZERO);
        assert_eq!(asked.standings()[3], Standing::Violated);
    }

    #[test]
    fn what_is_expected_is_checked() {
        let mut problems = Vec::new();
        let bad = ModelObjectives { availability: Some(1.0), p99_ms: Some(f64::NAN), ..Default::default() };
        let models = BTreeMap::from([("a b".to_owned(), bad)]);
        Objectives { p95_ms: 0.0, models, ..Default::default() }.check(&mut |good, problem| {
            if !good {
                problems.push(problem)
            }
        });
        assert_eq!(problems.len(), 4 + 1, "{problems:?}");
    }
}
