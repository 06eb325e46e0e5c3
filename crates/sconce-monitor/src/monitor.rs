use crate::cells::{CellKind, Cells};
use crate::error::{MonitorError, Result};
use crate::quality::{self, CheckKind};
use crate::reference::{Profile, Reference};
use crate::text::{DESCRIPTORS, describe_text};
use crate::value::{RecentRows, Value};
use crate::verdict::{Alarm, Cell, FeatureVerdict, Numeric, QUANTILES, State, Verdict};
use crate::window::{Pane, Tally};
use sconce_stats::correction::e_benjamini_hochberg;
use sconce_stats::distance::stability_of_counts;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Panes of a window.
pub const MAX_PANES: usize = 64;
/// Alarms that are kept.
const MAX_ALARMS: usize = 32;
/// Rows between looks at the streams' detectors: what a look costs is then next to nothing.
const LOOK_EVERY: u64 = 8;
/// Of intervals.
const ALPHA: f64 = 0.05;
/// Jeffreys' prior of a cell.
const SMOOTHING: f64 = 0.5;
/// Beyond this every e-value is infinite enough.
pub(crate) const MOST_LOG_E: f64 = 600.0;

/// How live rows are watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorSpec {
    /// How much a pane, a part of the window, holds. Default an hour.
    pub pane: PaneSize,
    /// How many panes the window has, 1 to [`MAX_PANES`]: 1 is a tumbling window, more slide by one pane. Default 24.
    pub panes: usize,
    /// The least change of a feature that matters, as a stability index. Default 0.1.
    pub minimum_psi: f64,
    /// The least share of rows that matters to checks of quality. Default 0.01.
    pub minimum_share: f64,
    /// How long no row may come, in milliseconds. Default: as long as it likes.
    pub max_silence_ms: Option<u64>,
}

/// How much a pane holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaneSize {
    /// So many rows, at least 1.
    Rows(u64),
    /// What comes in so many milliseconds, at least 1.
    Ms(u64),
}

impl Default for MonitorSpec {
    fn default() -> Self {
        Self {
            pane: PaneSize::Ms(3_600_000),
            panes: 24,
            minimum_psi: 0.1,
            minimum_share: 0.01,
            max_silence_ms: None,
        }
    }
}

impl MonitorSpec {
    /// Checks it.
    ///
    /// # Errors
    /// A value out of its range.
    pub fn check(&self) -> Result<()> {
        let (PaneSize::Rows(size) | PaneSize::Ms(size)) = self.pane;
        if size == 0 {
            return Err(MonitorError::unfit("pane", "at least 1 row or millisecond", size));
        }
        if !(1..=MAX_PANES).contains(&self.panes) {
            return Err(MonitorError::unfit("panes", format!("1 to {MAX_PANES}"), self.panes));
        }
        if !(self.minimum_psi > 0.0 && self.minimum_psi.is_finite()) {
            return Err(MonitorError::unfit("minimum_psi", "a number above 0", self.minimum_psi));
        }
        if !(self.minimum_share > 0.0 && self.minimum_share < 1.0) {
            let expected = "a number between 0 and 1, neither included";
            return Err(MonitorError::unfit("minimum_share", expected, self.minimum_share));
        }
        Ok(())
    }
}

/// Holds live rows against a reference, in bounded memory: a few hundred bytes a feature and pane, see [`bytes`](Self::bytes).
///
/// Evidence of a window is that of [`sconce_stats::sequential::SameCells`] since each of several possible times of a change (one pane ago, two, four, …),
/// added up: an e-detector over panes (Shin, Ramdas and Rinaldo, "E-detectors", 2024). Features are rejected by e-BH
/// over these (Dandapanthula and Ramdas, "Multiple testing in multi-stream sequential change detection", 2025). So one may look
/// after every row, and without a change a verdict is wrong at most in a share of `level` of the panes.
#[derive(Debug, Clone)]
pub struct Monitor {
    spec: MonitorSpec,
    reference: Reference,
    features: Vec<Feature>,
    cells: Vec<Cells>,
    /// The oldest first; never none once a row came.
    panes: VecDeque<Pane>,
    recent: RecentRows,
    rows: u64,
    alarms: VecDeque<Alarm>,
    /// At which streams are watched, if they are.
    stream_level: Option<f64>,
}

/// Something of a column that is watched.
#[derive(Debug, Clone)]
pub(crate) struct Feature {
    pub(crate) name: String,
    pub(crate) column: usize,
    /// Which descriptor of a text.
    pub(crate) descriptor: Option<usize>,
}

impl Monitor {
    /// Without a row yet.
    ///
    /// # Errors
    /// A specification out of its range, a reference of no row, or one that does not hold together.
    pub fn new(reference: Reference, spec: MonitorSpec) -> Result<Self> {
        spec.check()?;
        reference.check()?;
        let (mut features, mut cells) = (Vec::new(), Vec::new());
        for (column, known) in reference.columns().iter().enumerate() {
            let mut feature = |name: String, descriptor: Option<usize>| {
                features.push(Feature { name, column, descriptor });
            };
            match &known.profile {
                Profile::Numeric(numbers) => {
                    feature(known.name.clone(), None);
                    cells.push(Cells::numeric(numbers, known.missing)?);
                }
                Profile::Categorical(categories) => {
                    feature(known.name.clone(), None);
                    cells.push(Cells::categorical(categories, known.missing)?);
                }
                Profile::Text(descriptors) => {
                    for (at, numbers) in descriptors.iter().enumerate() {
                        feature(format!("{}.{}", known.name, DESCRIPTORS[at]), Some(at));
                        cells.push(Cells::numeric(numbers, known.missing)?);
                    }
                }
            }
        }
        let stream_level = Some(1e-6);
        let (panes, alarms) = (VecDeque::new(), VecDeque::new());
        Ok(Self {
            spec,
            reference,
            features,
            cells,
            panes,
            recent: RecentRows::new(),
            rows: 0,
            alarms,
            stream_level,
        })
    }

    /// How seldom streams may be wrong: once in `1 / level` rows, all features together; `None` leaves them out. Default once in a
    /// million.
    pub fn set_stream_level(&mut self, level: Option<f64>) {
        self.stream_level = level;
    }

    /// Takes a row that came at `now_ms`: a value for each column of the reference.
    ///
    /// # Errors
    /// Another number of values.
    pub fn update(&mut self, row: &[Value<'_>], now_ms: u64) -> Result<()> {
        let columns = self.reference.columns().len();
        if row.len() != columns {
            return Err(MonitorError::unfit("row", format!("{columns} values"), row.len()));
        }
        self.turn(now_ms);
        self.rows += 1;
        let repeats = self.recent.repeats(row);
        let Some(pane) = self.panes.back_mut() else { return Ok(()) };
        pane.rows += 1;
        pane.until_ms = pane.until_ms.max(now_ms);
        pane.duplicates += u64::from(repeats);
        let alarm = self.stream_level.map(|level| self.features.len() as f64 / level);
        let mut described: Option<(usize, [f64; DESCRIPTORS.len()])> = None;
        for ((feature, cells), tally) in self.features.iter().zip(&mut self.cells).zip(&mut pane.features) {
            let value = match (feature.descriptor, row[feature.column]) {
                (Some(at), Value::Text(text)) => {
                    let known = described.filter(|(column, _)| *column == feature.column);
                    let (_, numbers) =
                        *described.insert(known.unwrap_or_else(|| (feature.column, describe_text(text))));
                    Value::Number(numbers[at])
                }
                (Some(_), _) => Value::Missing,
                (None, value) => value,
            };
            let cell = tally.update(cells, value);
            let Some(alarm) = alarm else { continue };
            cells.detector.update(cell);
            if self.rows.is_multiple_of(LOOK_EVERY) && cells.detector.e_value() >= alarm {
                cells.detector.reset();
                if self.alarms.len() == MAX_ALARMS {
                    self.alarms.pop_front();
                }
                self.alarms.push_back(Alarm { feature: feature.name.clone(), at_ms: now_ms, row: self.rows });
            }
        }
        Ok(())
    }

    /// Begins a new pane if the last one is full, and forgets the oldest if there are too many.
    fn turn(&mut self, now_ms: u64) {
        let is_full = |pane: &Pane| match self.spec.pane {
            PaneSize::Rows(rows) => pane.rows >= rows,
            PaneSize::Ms(ms) => now_ms.saturating_sub(pane.since_ms) >= ms,
        };
        if !self.panes.back().is_none_or(is_full) {
            return;
        }
        // What left the window is used again: no memory moves once it is full.
        let pane = match self.panes.len() >= self.spec.panes {
            true => self.panes.pop_front().map(|mut pane| {
                pane.restart(now_ms);
                pane
            }),
            false => None,
        };
        self.panes.push_back(pane.unwrap_or_else(|| Pane::new(&self.cells, now_ms)));
    }

    /// Says what the window shows at `now_ms`, held against chance at `level`: the expected number of false verdicts a pane, see
    /// [`crate::Budget`]. Checks of quality have as much of their own.
    ///
    /// # Errors
    /// A level that is not strictly between 0 and 1.
    pub fn judge(&self, level: f64, now_ms: u64) -> Result<Verdict> {
        if !(level > 0.0 && level < 1.0) {
            let expected = "a number between 0 and 1, neither included";
            return Err(MonitorError::unfit("level", expected, level));
        }
        let starts = self.starts();
        let whole = starts.last();
        let mut verdict = Verdict {
            state: State::NotEnoughEvidence,
            rows: whole.map_or(0, |pane| pane.rows),
            since_ms: whole.map(|pane| pane.since_ms),
            until_ms: whole.map(|pane| pane.until_ms),
            level,
            minimum_psi: self.spec.minimum_psi,
            features: Vec::new(),
            checks: Vec::new(),
            alarms: self.alarms.iter().cloned().collect(),
        };
        let Some(whole) = whole else { return Ok(verdict) };
        let mut strongest = Vec::with_capacity(self.features.len());
        let mut log_es = Vec::with_capacity(self.features.len());
        for (at, cells) in self.cells.iter().enumerate() {
            let since = |pane: &Pane| cells.same.log_e(&pane.features[at].counts);
            let since = starts.iter().map(since).collect::<sconce_stats::Result<Vec<f64>>>()?;
            let most = since.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            strongest.push(since.iter().position(|log_e| *log_e == most).unwrap_or(0));
            log_es.push(most + since.iter().map(|log_e| (log_e - most).exp()).sum::<f64>().ln());
        }
        let rejected = rejected(&log_es, level)?;
        for (at, (feature, cells)) in self.features.iter().zip(&self.cells).enumerate() {
            let is_rejected = rejected.contains(&at);
            let pane = if is_rejected { &starts[strongest[at]] } else { whole };
            verdict.features.push(self.feature(
                feature,
                cells,
                &pane.features[at],
                pane,
                log_es[at],
                is_rejected,
            )?);
        }
        verdict.checks = quality::checks(&self.reference, &self.features, &self.cells, whole)?;
        let log_es: Vec<f64> = verdict.checks.iter().map(|check| check.log_evidence).collect();
        let rejected = self::rejected(&log_es, level)?;
        for (at, check) in verdict.checks.iter_mut().enumerate() {
            let least = self.spec.minimum_share;
            check.state = match check.interval {
                _ if rejected.contains(&at) && check.current - check.reference >= least => State::Drifted,
                interval if interval.high < least => State::Stable,
                _ => State::NotEnoughEvidence,
            };
        }
        if let Some(allowed) = self.spec.max_silence_ms {
            verdict.checks.push(quality::stale(whole.until_ms, now_ms, allowed));
        }
        verdict.checks.sort_by_key(|check| check.kind);
        let states = || verdict.features.iter().map(|it| it.state);
        let fails = |kind: CheckKind| kind != CheckKind::Duplicates;
        verdict.state = if states().any(|state| state == State::Drifted)
            || verdict.checks.iter().any(|check| check.state == State::Drifted && fails(check.kind))
        {
            State::Drifted
        } else if states().all(|state| state == State::Stable) {
            State::Stable
        } else {
            State::NotEnoughEvidence
        };
        Ok(verdict)
    }

    /// All rows since each possible time of a change: the last pane, the last two, four, …, and all.
    fn starts(&self) -> Vec<Pane> {
        let (mut starts, mut wanted) = (Vec::<Pane>::new(), 1);
        let mut sum: Option<Pane> = None;
        for (at, pane) in self.panes.iter().rev().enumerate() {
            match &mut sum {
                Some(sum) => sum.add(pane),
                None => sum = Some(pane.clone()),
            }
            if at + 1 == wanted || at + 1 == self.panes.len() {
                starts.extend(sum.clone());
                wanted *= 2;
            }
        }
        starts
    }

    fn feature(
        &self,
        feature: &Feature,
        cells: &Cells,
        tally: &Tally,
        pane: &Pane,
        log_e: f64,
        is_rejected: bool,
    ) -> Result<FeatureVerdict> {
        let stability = stability_of_counts(&cells.counts, &tally.counts, SMOOTHING, ALPHA)?;
        let least = self.spec.minimum_psi;
        let state = if is_rejected && stability.psi >= least {
            State::Drifted
        } else if stability.interval.high < least {
            State::Stable
        } else {
            State::NotEnoughEvidence
        };
        let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
        let (then, now) = (total(&cells.counts), total(&tally.counts));
        let cell = |(place, label): (usize, &String)| Cell {
            label: label.clone(),
            place,
            reference: cells.counts[place] as f64 / then,
            current: tally.counts[place] as f64 / now,
        };
        let mut shares: Vec<Cell> = cells.labels.iter().enumerate().map(cell).collect();
        let off = |cell: &Cell| (cell.reference - cell.current).abs();
        shares.sort_by(|a, b| off(b).total_cmp(&off(a)));
        let numeric = match cells.kind() {
            CellKind::Numeric(bins) => {
                let now = |p| {
                    if tally.values() == 0 {
                        f64::NAN
                    } else {
                        bins.quantile(&tally.counts, tally.range(), p)
                    }
                };
                Some(Numeric {
                    reference: bins.moments,
                    current: tally.moments(),
                    reference_quantiles: bins.quantiles,
                    current_quantiles: QUANTILES.map(now),
                })
            }
            CellKind::Categorical(_) => None,
        };
        Ok(FeatureVerdict {
            feature: feature.name.clone(),
            state,
            psi: stability.psi,
            interval: stability.interval,
            log_evidence: log_e,
            rows: pane.rows,
            since_ms: Some(pane.since_ms),
            cells: shares,
            numeric,
        })
    }

    /// How many rows it has taken.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What it holds live rows against.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// How many bytes its window takes once it is full, about.
    pub fn bytes(&self) -> usize {
        self.spec.panes * Pane::bytes(&self.cells)
    }
}

/// Which of these e-values are rejected.
fn rejected(log_es: &[f64], level: f64) -> Result<Vec<usize>> {
    let e_values: Vec<f64> = log_es.iter().map(|log_e| log_e.min(MOST_LOG_E).exp()).collect();
    Ok(e_benjamini_hochberg(&e_values, level)?)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
