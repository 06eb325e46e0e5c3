//! `sconce monitor fit` and `sconce drift compare`: references from files, and files held against them. No server needed. And how what
//! was found is told, which `sconce drift report` has in common with them.

mod data;
mod page;

use crate::progress::Bar;
use crate::{Failure, Outcome, report, table, text};
use data::{Data, Found};
use sconce_monitor::{
    Baseline, BinaryMetrics, ColumnKind, ColumnSpec, Estimate, Fitted, Monitor, MonitorSpec, PaneSize,
    Profile, Reference, State, Value, Verdict,
};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How often a comparison without any change may be called a drift.
const LEVEL: &str = "0.01";
/// Chunks of a file.
const MOST_CHUNKS: usize = 10_000;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Drifts {
    /// Compare data with a reference or with other data
    ///
    /// Ends with 0 if nothing has drifted (or it cannot be known), 1 if something has or a check of quality fails, and 2
    /// on errors.
    Compare(Compare),
    /// Say whether what a served version sees and says is what its reference has
    ///
    /// Ends with 0 if nothing has drifted (or it cannot be known yet), 1 if something has or a check of quality fails, and 2
    /// on errors.
    Report(crate::monitor::Report),
}

/// How what was found is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Form {
    /// Write Markdown
    #[arg(long, conflicts_with = "json")]
    md: bool,
    /// Write a page to this file, with plots and without anything that is fetched
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Fit {
    /// A .csv, .jsonl or .parquet file
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to write the reference
    #[arg(long, value_name = "FILE", default_value = "reference.json")]
    out: PathBuf,
    #[command(flatten)]
    columns: Columns,
}

/// What columns hold, where the data does not show it.
#[derive(Debug, clap::Args)]
struct Columns {
    /// A column to leave out; those that only count rows are left out anyway
    #[arg(long, value_name = "COLUMN")]
    ignore: Vec<String>,
    /// A column of numbers
    #[arg(long, value_name = "COLUMN")]
    numeric: Vec<String>,
    /// A column of categories, numbers or not
    #[arg(long, value_name = "COLUMN")]
    categorical: Vec<String>,
    /// A column of texts
    #[arg(long, value_name = "COLUMN")]
    text: Vec<String>,
    /// The column with the truth, of two classes: for performance
    #[arg(long, value_name = "COLUMN", requires = "score")]
    label: Option<String>,
    /// The column with the model's probability of the positive class
    #[arg(long, value_name = "COLUMN")]
    score: Option<String>,
    /// What a label of the positive class says
    #[arg(long, value_name = "VALUE", default_value = "1")]
    positive: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// What `sconce monitor fit` wrote, or a .csv, .jsonl or .parquet file
    reference: PathBuf,
    /// A .csv, .jsonl or .parquet file
    current: PathBuf,
    /// Judge every so many rows as well: since when, and how performance goes
    #[arg(long, value_name = "ROWS")]
    chunk: Option<u64>,
    /// The least change of a feature that matters, as a stability index
    #[arg(long, value_name = "PSI", default_value_t = 0.1)]
    min_psi: f64,
    /// How often a comparison without any change may be called a drift
    #[arg(long, value_name = "SHARE", default_value = LEVEL)]
    level: f64,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    columns: Columns,
}

/// What a comparison found.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) reference: String,
    pub(crate) current: String,
    pub(crate) reference_rows: u64,
    /// Of all rows together.
    pub(crate) verdict: Verdict,
    /// Of each so many rows.
    chunks: Vec<Chunk>,
    /// What the model was worth on the reference, if that is known.
    baseline: Option<BinaryMetrics>,
    estimate: Option<Estimate>,
    realised: Option<BinaryMetrics>,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
}

impl Comparison {
    /// Of a verdict alone.
    pub(crate) fn new(reference: String, current: String, reference_rows: u64, verdict: Verdict) -> Self {
        let (chunks, notes) = (Vec::new(), Vec::new());
        let (baseline, estimate, realised) = (None, None, None);
        Self { reference, current, reference_rows, verdict, chunks, baseline, estimate, realised, notes }
    }
}

#[derive(Debug, Serialize)]
struct Chunk {
    /// Its first row, from 1.
    from: u64,
    rows: u64,
    verdict: Verdict,
    estimate: Option<Estimate>,
    realised: Option<BinaryMetrics>,
}

pub(crate) fn fit(args: &Fit) -> Outcome {
    let data = Data::open(&args.data)?;
    let (fitted, notes) = fitted(&data, &args.columns)?;
    let text = serde_json::to_vec(&fitted)?;
    let size = text.len() as u64;
    fs::write(&args.out, text).map_err(|error| format!("cannot write {}: {error}", args.out.display()))?;
    let reference = &fitted.reference;
    let rows: Vec<Vec<String>> =
        reference.columns().iter().map(|column| describe(column, reference.rows())).collect();
    say!("{}", table::render(&["column", "holds", "missing", "values"], &rows).trim_end())?;
    if let Some(baseline) = &fitted.baseline {
        let metrics = &baseline.metrics;
        say!("accuracy {:.4}, ROC AUC {:.4} by {} labels", metrics.accuracy, metrics.roc_auc, metrics.count)?;
    }
    notes.iter().try_for_each(|note| say!("{}", table::plain(note)))?;
    let name = args.out.display();
    say!(
        "✓ {name}: {} of {} rows, {}",
        count(reference.columns().len()),
        reference.rows(),
        text::bytes(size)
    )?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn compare(args: &Compare) -> Outcome {
    tell(&compared(args)?, &args.form, args.json)
}

/// Says what was found; ends with 1 if that is a drift.
pub(crate) fn tell(found: &Comparison, form: &Form, json: bool) -> Outcome {
    if let Some(path) = &form.html {
        let page = report::html(&page::page(found));
        fs::write(path, page).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    if json {
        say!("{}", serde_json::to_string_pretty(found)?)?;
    } else if form.md {
        say!("{}", report::markdown(&page::page(found)).trim_end())?;
    } else {
        page::lines(found)?;
        match &form.html {
            Some(path) => say!("wrote {}", path.display())?,
            None => say!("--md, --json or --html FILE says all of it")?,
        }
    }
    Ok(if found.verdict.state == State::Drifted { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// The reference of a file, and what was left out of it.
fn fitted(data: &Data, columns: &Columns) -> Result<(Fitted, Vec<String>), Failure> {
    let named = [&columns.ignore, &columns.numeric, &columns.categorical, &columns.text];
    let named = named.into_iter().flatten().chain(&columns.label).chain(&columns.score);
    for name in named {
        place(data, name)?;
    }
    let (mut specs, mut places, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for (place, (name, found)) in data.names.iter().zip(data.kinds()?).enumerate() {
        let is_in = |list: &[String]| list.contains(name);
        let kind = if is_in(&columns.ignore) || columns.label.as_ref() == Some(name) {
            continue;
        } else if is_in(&columns.numeric) || columns.score.as_ref() == Some(name) {
            ColumnKind::Numeric
        } else if is_in(&columns.categorical) {
            ColumnKind::Categorical
        } else if is_in(&columns.text) {
            ColumnKind::Text
        } else {
            match found {
                Found::Kind(kind) => kind,
                Found::Counts => {
                    notes.push(format!(
                        "`{name}` only counts rows, and is left out; --numeric {name} takes it in"
                    ));
                    continue;
                }
            }
        };
        specs.push(ColumnSpec { name: name.clone(), kind });
        places.push(place);
    }
    let mut reference = Reference::new(&specs)?;
    let performance = Performance::find(data, columns)?;
    let (mut labels, mut scores) = (Vec::new(), Vec::new());
    let mut bar = Bar::default();
    data.each(|row, share| {
        bar.show_share("rows", share);
        let values: Vec<Value<'_>> =
            specs.iter().zip(&places).map(|(spec, at)| row[*at].as_kind(spec.kind)).collect();
        reference.update(&values)?;
        if let Some((Some(label), score)) = performance.as_ref().and_then(|it| it.of(row)) {
            labels.push(label);
            scores.push(score);
        }
        Ok(true)
    })?;
    crate::progress::clear_line();
    let baseline = if labels.is_empty() { None } else { Some(Baseline::fit(&labels, &scores)?) };
    Ok((Fitted { reference, baseline }, notes))
}

fn compared(args: &Compare) -> Result<Comparison, Failure> {
    let (fitted, mut notes) = match args.reference.extension().is_some_and(|it| it == "json") {
        true => (read_fitted(&args.reference)?, Vec::new()),
        false => self::fitted(&Data::open(&args.reference)?, &args.columns)?,
    };
    let data = Data::open(&args.current)?;
    let columns = fitted.reference.columns();
    let places: Vec<Option<usize>> =
        columns.iter().map(|column| data.names.iter().position(|name| *name == column.name)).collect();
    for (column, _) in columns.iter().zip(&places).filter(|(_, place)| place.is_none()) {
        notes.push(format!(
            "`{}` is not in {}: all of it counts as missing",
            column.name,
            data_name(&args.current)
        ));
    }
    let kinds: Vec<ColumnKind> = columns.iter().map(|column| column.spec().kind).collect();
    let performance = Performance::find(&data, &args.columns)?;
    let spec = |rows| MonitorSpec {
        pane: PaneSize::Rows(rows),
        panes: 1,
        minimum_psi: args.min_psi,
        ..MonitorSpec::default()
    };
    let mut whole = Part::new(Monitor::new(fitted.reference.clone(), spec(u64::MAX))?);
    let size = args.chunk.unwrap_or(u64::MAX);
    let mut part = Part::new(Monitor::new(fitted.reference.clone(), spec(size))?);
    let (mut chunks, mut rows) = (Vec::new(), 0_u64);
    let mut close = |part: &mut Part, rows: u64| -> Result<(), Failure> {
        let (verdict, estimate, realised) = part.close(&fitted, args.level)?;
        chunks.push(Chunk { from: rows - verdict.rows + 1, rows: verdict.rows, verdict, estimate, realised });
        if chunks.len() > MOST_CHUNKS {
            return Err(format!("--chunk {size}: expected at most {MOST_CHUNKS} chunks").into());
        }
        Ok(())
    };
    let mut bar = Bar::default();
    data.each(|row, share| {
        bar.show_share("rows", share);
        let value = |(kind, place): (&ColumnKind, &Option<usize>)| {
            place.map_or(Value::Missing, |at| row[at].as_kind(*kind))
        };
        let values: Vec<Value<'_>> = kinds.iter().zip(&places).map(value).collect();
        let scored = performance.as_ref().and_then(|it| it.of(row));
        whole.take(&values, scored)?;
        rows += 1;
        if args.chunk.is_some() {
            part.take(&values, scored)?;
            if part.rows == size {
                close(&mut part, rows)?;
            }
        }
        Ok(true)
    })?;
    crate::progress::clear_line();
    if rows == 0 {
        return Err(format!("{}: expected at least one row", args.current.display()).into());
    }
    if part.rows > 0 {
        close(&mut part, rows)?;
    }
    let (verdict, estimate, realised) = whole.close(&fitted, args.level)?;
    Ok(Comparison {
        reference: data_name(&args.reference),
        current: data_name(&args.current),
        reference_rows: fitted.reference.rows(),
        verdict,
        chunks,
        baseline: fitted.baseline.as_ref().map(|it| it.metrics),
        estimate,
        realised,
        notes,
    })
}

/// Rows that are judged together.
struct Part {
    monitor: Monitor,
    rows: u64,
    /// Of rows with a score.
    scores: Vec<f64>,
    /// Of those with a label as well.
    labelled: (Vec<bool>, Vec<f64>),
}

impl Part {
    fn new(mut monitor: Monitor) -> Self {
        monitor.set_stream_level(None);
        Self { monitor, rows: 0, scores: Vec::new(), labelled: (Vec::new(), Vec::new()) }
    }

    fn take(&mut self, row: &[Value<'_>], scored: Option<(Option<bool>, f64)>) -> Result<(), Failure> {
        self.monitor.update(row, 0)?;
        self.rows += 1;
        if let Some((label, score)) = scored {
            self.scores.push(score);
            if let Some(label) = label {
                self.labelled.0.push(label);
                self.labelled.1.push(score);
            }
        }
        Ok(())
    }

    /// Judges what it has, and begins anew.
    fn close(
        &mut self,
        fitted: &Fitted,
        level: f64,
    ) -> Result<(Verdict, Option<Estimate>, Option<BinaryMetrics>), Failure> {
        let verdict = self.monitor.judge(level, 0)?;
        let estimate = match &fitted.baseline {
            Some(baseline) if !self.scores.is_empty() => {
                Some(baseline.estimate(&self.scores, Some(&verdict))?)
            }
            _ => None,
        };
        let (labels, scores) = &self.labelled;
        let realised = if labels.is_empty() { None } else { Some(BinaryMetrics::of(labels, scores)?) };
        self.rows = 0;
        self.scores.clear();
        self.labelled = (Vec::new(), Vec::new());
        Ok((verdict, estimate, realised))
    }
}

/// Where truth and scores stand in a row.
struct Performance {
    label: Option<usize>,
    score: usize,
    positive: String,
}

impl Performance {
    fn find(data: &Data, columns: &Columns) -> Result<Option<Self>, Failure> {
        let Some(score) = &columns.score else { return Ok(None) };
        // Data that is compared may have no labels yet.
        let label = columns.label.as_ref().and_then(|name| data.names.iter().position(|it| it == name));
        Ok(Some(Self { label, score: place(data, score)?, positive: columns.positive.clone() }))
    }

    /// The label, if there is one, and the score; nothing without a score that is a probability.
    fn of(&self, row: &[data::Owned<'_>]) -> Option<(Option<bool>, f64)> {
        let score = row[self.score].number().filter(|score| (0.0..=1.0).contains(score))?;
        let number = self.positive.parse::<f64>().ok();
        let is_positive = |value: Value<'_>| match value {
            Value::Missing => None,
            Value::Number(it) => Some(number == Some(it)),
            Value::Text(it) if number.is_some() => {
                Some(it.parse().map_or(it == self.positive, |it: f64| number == Some(it)))
            }
            Value::Text(it) => Some(it == self.positive),
        };
        Some((self.label.and_then(|at| is_positive(row[at].as_kind(ColumnKind::Categorical))), score))
    }
}

fn read_fitted(path: &Path) -> Result<Fitted, Failure> {
    let cannot = |error: &dyn std::fmt::Display| -> Failure { format!("{}: {error}", path.display()).into() };
    let text = fs::read(path).map_err(|error| cannot(&error))?;
    serde_json::from_slice(&text).map_err(|error| cannot(&error))
}

fn place(data: &Data, name: &str) -> Result<usize, Failure> {
    let missing = || format!("expected one of the columns {}, got `{name}`", data.names.join(", "));
    Ok(data.names.iter().position(|it| it == name).ok_or_else(missing)?)
}

fn data_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn describe(column: &sconce_monitor::Column, rows: u64) -> Vec<String> {
    let (kind, values) = match &column.profile {
        Profile::Numeric(numbers) => {
            let range = numbers.range.map_or_else(String::new, |(low, high)| {
                format!(
                    "{} to {}, mean {}",
                    report::number(low),
                    report::number(high),
                    report::number(numbers.moments.mean())
                )
            });
            ("numbers", range)
        }
        Profile::Categorical(categories) => {
            let more = if categories.other > 0 { " and more" } else { "" };
            ("categories", format!("{}{more}", text::count(categories.counts.len() as u64, "name")))
        }
        Profile::Text(descriptors) => (
            "texts",
            descriptors
                .first()
                .map_or_else(String::new, |it| format!("about {:.0} characters", it.moments.mean())),
        ),
    };
    let missing = format!("{:.1} %", 100.0 * column.missing as f64 / rows.max(1) as f64);
    vec![column.name.clone(), kind.to_owned(), missing, values]
}

fn count(columns: usize) -> String {
    text::count(columns as u64, "column")
}
