use crate::cells::{CellKind, Cells};
use crate::error::Result;
use crate::monitor::Feature;
use crate::reference::Reference;
use crate::verdict::State;
use crate::window::{Pane, Tally};
use sconce_stats::proportion::{DifferenceMethod, difference_interval};
use sconce_stats::sequential::SameCells;
use sconce_stats::{Interval, Trials};
use serde::{Deserialize, Serialize};

/// Values before a column counts as constant.
const LEAST_CONSTANT: u64 = 30;

/// A question about the data's quality, and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// Of which feature; `None` for whole rows.
    pub feature: Option<String>,
    /// `Drifted` is a failure.
    pub state: State,
    /// The reference's share of rows that have it.
    pub reference: f64,
    /// The window's.
    pub current: f64,
    /// 95 % interval of the difference.
    pub interval: Interval,
    /// The natural logarithm of the evidence against no change.
    pub log_evidence: f64,
}

/// What can be wrong with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// No value, more often than before.
    Missing,
    /// A number below the smallest or above the largest of the reference.
    OutOfRange,
    /// A category that the reference does not know.
    Unseen,
    /// A text where numbers are expected, or the other way about.
    WrongType,
    /// Only one value, where the reference has several.
    Constant,
    /// A row that came before.
    Duplicates,
    /// No row for too long: the shares are milliseconds, allowed and passed.
    Stale,
}

impl CheckKind {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::OutOfRange => "out of range",
            Self::Unseen => "unseen category",
            Self::WrongType => "wrong type",
            Self::Constant => "constant",
            Self::Duplicates => "duplicate rows",
            Self::Stale => "no rows",
        }
    }
}

/// All questions about a window, without their states yet: those need the evidence of all.
pub(crate) fn checks(
    reference: &Reference,
    features: &[Feature],
    cells: &[Cells],
    pane: &Pane,
) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    if pane.rows == 0 {
        return Ok(checks);
    }
    let rows = reference.rows();
    for ((feature, cells), tally) in features.iter().zip(cells).zip(&pane.features) {
        let known = &reference.columns()[feature.column];
        let share =
            |kind, then: u64, now: u64| rate(kind, Some(&feature.name), (then, rows), (now, pane.rows));
        // The descriptors of a text are missing together.
        if feature.descriptor.is_none_or(|at| at == 0) {
            checks.push(share(CheckKind::Missing, known.missing, tally.counts[cells.missing()])?);
            if matches!(cells.kind(), CellKind::Numeric(_)) {
                checks.push(share(CheckKind::WrongType, known.wrong_type, tally.wrong_type)?);
            }
        }
        match cells.kind() {
            CellKind::Numeric(bins) if bins.range.is_some() => {
                // Of n + 1 exchangeable values two are the smallest and the largest.
                checks.push(share(CheckKind::OutOfRange, 2, tally.out_of_range)?);
            }
            CellKind::Categorical(named) => {
                // What comes for the first time is about as frequent as what came once (Good, 1953).
                checks.push(share(CheckKind::Unseen, named.once(), tally.counts[named.unseen()])?);
            }
            CellKind::Numeric(_) => {}
        }
        checks.extend(constant(feature, cells, tally)?);
    }
    let duplicates = (reference.duplicates(), rows);
    checks.push(rate(CheckKind::Duplicates, None, duplicates, (pane.duplicates, pane.rows))?);
    Ok(checks)
}

/// No row since `last_ms`, where at most `allowed_ms` may pass.
pub(crate) fn stale(last_ms: u64, now_ms: u64, allowed_ms: u64) -> Check {
    let passed = now_ms.saturating_sub(last_ms);
    let (state, difference) = if passed > allowed_ms {
        (State::Drifted, (passed - allowed_ms) as f64)
    } else {
        (State::Stable, 0.0)
    };
    Check {
        kind: CheckKind::Stale,
        feature: None,
        state,
        reference: allowed_ms as f64,
        current: passed as f64,
        interval: Interval { low: difference, high: difference },
        log_evidence: crate::monitor::MOST_LOG_E,
    }
}

/// Whether something is more frequent than it was.
fn rate(kind: CheckKind, feature: Option<&str>, then: (u64, u64), now: (u64, u64)) -> Result<Check> {
    let trials = |(events, trials): (u64, u64)| Trials { events: events.min(trials), trials };
    let (then, now) = (trials(then), trials(now));
    let interval = difference_interval(now, then, 0.05, DifferenceMethod::Newcombe)?;
    let counts = |it: Trials| [it.trials - it.events, it.events];
    // Fewer than before is no failure.
    let log_evidence =
        if now.rate() > then.rate() { SameCells::new(&counts(then))?.log_e(&counts(now))? } else { 0.0 };
    Ok(Check {
        kind,
        feature: feature.map(str::to_owned),
        state: State::NotEnoughEvidence,
        reference: then.rate(),
        current: now.rate(),
        interval,
        log_evidence,
    })
}

/// Whether a feature has one value where the reference has several; nothing where it has several too.
fn constant(feature: &Feature, cells: &Cells, tally: &Tally) -> Result<Option<Check>> {
    let missing = cells.missing();
    let several = cells.counts[..missing].iter().filter(|count| **count > 0).count() > 1;
    let mut filled = tally.counts[..missing].iter().filter(|count| **count > 0);
    let is_one = match cells.kind() {
        CellKind::Numeric(_) => tally.range().0 == tally.range().1,
        CellKind::Categorical(_) => filled.next().is_some() && filled.next().is_none(),
    };
    if !several || !is_one || tally.values() < LEAST_CONSTANT {
        return Ok(None);
    }
    Ok(Some(Check {
        kind: CheckKind::Constant,
        feature: Some(feature.name.clone()),
        state: State::NotEnoughEvidence,
        reference: 0.0,
        current: 1.0,
        interval: Interval { low: 1.0, high: 1.0 },
        log_evidence: cells.same.log_e(&tally.counts)?,
    }))
}
