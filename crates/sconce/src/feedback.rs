//! `sconce feedback`: what turned out to be true of predictions.

use crate::control::Control;
use crate::progress::{Bar, clear_line};
use crate::table::plain;
use crate::{Failure, Outcome, block_on, table, text};
use sconce_client::FeedbackClient;
use sconce_client::control_proto as pb;
use sconce_client::control_proto::outcome::Value;
use sconce_monitor::{CohortReport, Estimate, Estimated, Known, Metrics, PerformanceReport, State, Trust};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Outcomes of one call, and predictions of one page.
const BATCH: usize = 1000;
/// Bytes of a line of a file.
const LINE_BYTES: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Record what turned out to be true of one prediction
    Send(Send),
    /// Record outcomes from a file: JSON lines, or CSV with a header, with the fields prediction_id, metric, label, number, converted,
    /// second, at_ms
    Import {
        /// The model that made the predictions
        model: String,
        /// FILE.jsonl or FILE.csv; may be imported again
        file: PathBuf,
    },
    /// List predictions with what is known of them, in the order they were made
    List {
        /// The model's name
        model: String,
        /// Only the latest: such as 90s, 30m, 12h or 7d
        #[arg(long, value_name = "TIME", value_parser = text::duration)]
        last: Option<Duration>,
        /// Only those of which something turned out
        #[arg(long)]
        known: bool,
    },
    /// Say what versions were worth, by the labels that came: accuracy, or errors, by when predictions were made; exits with 3 if one has
    /// degraded, with 4 if nothing can be said yet
    Performance(Performance),
}

#[derive(Debug, clap::Args)]
struct Performance {
    /// The model's name
    model: String,
    /// A version's number or an alias [default: every version]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Only the latest predictions: such as 90s, 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    last: Option<Duration>,
    /// How long predictions are gathered into one cohort [default: as the server is configured]
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    cohort: Option<Duration>,
    /// How long after a cohort's end its labels may come [default: as the server is configured]
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    maturity: Option<Duration>,
    /// Tell the variants of a route apart
    #[arg(long)]
    by_variant: bool,
    /// What it is worth to say DECISION where TRUTH would have been right; may be given again
    #[arg(long = "value", value_name = "TRUTH/DECISION=NUMBER", value_parser = worth)]
    values: Vec<pb::DecisionValue>,
}

/// `cat/dog=-2.5`.
fn worth(text: &str) -> Result<pb::DecisionValue, String> {
    let wrong = || "expected TRUTH/DECISION=NUMBER".to_owned();
    let (pair, value) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (truth, decision) = pair.split_once('/').ok_or_else(wrong)?;
    let value: f64 = value.parse().map_err(|_| wrong())?;
    Ok(pb::DecisionValue { truth: truth.to_owned(), decision: decision.to_owned(), value })
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("value").required(true)))]
struct Send {
    /// The model that made the prediction
    model: String,
    /// The answer's prediction_id
    prediction_id: String,
    /// What would have been right
    #[arg(long, value_name = "TEXT", group = "value")]
    label: Option<String>,
    /// What came of it; needs --metric
    #[arg(long, value_name = "NUMBER", group = "value", requires = "metric", allow_negative_numbers = true)]
    number: Option<f64>,
    /// Whether what was hoped for happened
    #[arg(long, value_name = "true|false", group = "value", num_args = 0..=1, default_missing_value = "true")]
    converted: Option<bool>,
    /// What was measured [default: label or conversion]
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// What goes with --number: its covariate, or its denominator
    #[arg(long, value_name = "NUMBER", requires = "number", allow_negative_numbers = true)]
    second: Option<f64>,
}

/// A line of a file.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Line {
    prediction_id: String,
    #[serde(default)]
    metric: Option<String>,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    number: Option<f64>,
    #[serde(default)]
    converted: Option<bool>,
    #[serde(default)]
    second: Option<f64>,
    #[serde(default)]
    at_ms: Option<u64>,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = block_on(async {
        match command {
            Command::Send(send) => self::send(&control, send).await,
            Command::Import { model, file } => import(&control, model, &file).await,
            Command::List { model, last, known } => list(&control, model, last, known).await,
            Command::Performance(asked) => performance(&control, asked).await,
        }
    })?;
    done.map_err(|error| control.explain(error))
}

async fn send(control: &Control, send: Send) -> Outcome {
    let Send { model, prediction_id, label, number, converted, metric, second } = send;
    let line = Line { prediction_id, metric, label, number, converted, second, at_ms: None };
    let request = pb::RecordFeedbackRequest { model, outcomes: vec![line.outcome()?] };
    tell(control, control.feedback().await?.record(request).await?)
}

async fn import(control: &Control, model: String, path: &Path) -> Outcome {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = File::open(path).map_err(cannot)?;
    let total = file.metadata().map_err(cannot)?.len();
    let read = Counting { file, bytes: 0 };
    let mut lines = Lines::new(path, read)?;
    let client = control.feedback().await?;
    let (mut done, mut batch) = (pb::RecordFeedbackResponse::default(), Vec::new());
    let mut bar = Bar::default();
    while let Some(line) = lines.next()? {
        batch.push(line);
        if batch.len() == BATCH {
            flush(&client, &model, &mut batch, &mut done).await?;
            bar.show_share("file", lines.bytes() as f64 / total.max(1) as f64);
        }
    }
    flush(&client, &model, &mut batch, &mut done).await?;
    clear_line();
    tell(control, done)
}

async fn flush(
    client: &FeedbackClient,
    model: &str,
    batch: &mut Vec<pb::Outcome>,
    done: &mut pb::RecordFeedbackResponse,
) -> Result<(), Failure> {
    if batch.is_empty() {
        return Ok(());
    }
    let request = pb::RecordFeedbackRequest { model: model.to_owned(), outcomes: std::mem::take(batch) };
    let recorded = done.recorded;
    let told = client.record(request).await.map_err(|error| {
        clear_line();
        format!("after {}: {error}", text::count(recorded, "outcome"))
    })?;
    done.recorded += told.recorded;
    done.replaced += told.replaced;
    done.unknown += told.unknown;
    Ok(())
}

fn tell(control: &Control, done: pb::RecordFeedbackResponse) -> Outcome {
    let pb::RecordFeedbackResponse { recorded, replaced, unknown } = done;
    let document = || json!({ "recorded": recorded, "replaced": replaced, "unknown": unknown });
    if !control.print_json(document)? {
        say!(
            "{} recorded: {replaced} in place of earlier ones, {unknown} of predictions that this server has not noted",
            text::count(recorded, "outcome")
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// So long ago, in milliseconds since 1970; 0 for ever.
fn since(last: Option<Duration>) -> u64 {
    let from = last.and_then(|last| SystemTime::now().checked_sub(last));
    let from = from.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    u64::try_from(from.as_millis()).unwrap_or(0)
}

async fn performance(control: &Control, asked: Performance) -> Outcome {
    let Performance { model, version, last, cohort, maturity, by_variant, values } = asked;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let has_values = !values.is_empty();
    let request = pb::GetPerformanceRequest {
        model: model.clone(),
        version: version.unwrap_or_default(),
        from_ms: since(last),
        to_ms: 0,
        cohort_ms: cohort.map_or(0, ms),
        maturity_ms: maturity.map(ms),
        by_variant,
        values,
    };
    let answer = control.feedback().await?.performance(request).await?;
    let read = |it: &pb::VersionPerformance| serde_json::from_str(&it.report_json);
    let reports = answer.versions.iter().map(read).collect::<Result<Vec<PerformanceReport>, _>>();
    let reports =
        reports.map_err(|error| format!("the server's report is none that is known here: {error}"))?;
    let document = || {
        let versions = answer.versions.iter().map(|it| {
            let report: serde_json::Value = serde_json::from_str(&it.report_json).unwrap_or_default();
            json!({ "version": it.version, "variant": it.variant, "report": report })
        });
        let versions: Vec<_> = versions.collect();
        json!({ "model": model, "versions": versions, "predictions": answer.predictions, "cut": answer.cut })
    };
    if !control.print_json(document)? {
        if reports.is_empty() {
            say!(
                "no prediction of `{}` with what was said is kept: see `feedback` in its model.toml, and its data_policy",
                plain(&model)
            )?;
        }
        for (of, report) in answer.versions.iter().zip(&reports) {
            show(of, report, has_values)?;
        }
        if answer.cut {
            say!(
                "only the oldest {} were read: ask for less with --last",
                text::count(answer.predictions, "prediction")
            )?;
        }
    }
    let states = reports.iter().map(|report| report.state);
    let worst = states.max_by_key(|state| match state {
        State::Drifted => 2,
        State::Stable => 1,
        State::NotEnoughEvidence => 0,
    });
    Ok(match worst {
        Some(State::Drifted) => ExitCode::from(3),
        Some(State::Stable) => ExitCode::SUCCESS,
        Some(State::NotEnoughEvidence) | None => ExitCode::from(4),
    })
}

fn show(of: &pb::VersionPerformance, report: &PerformanceReport, has_values: bool) -> Result<(), Failure> {
    let variant = if of.variant.is_empty() { String::new() } else { format!(", {}", plain(&of.variant)) };
    let Known { accuracy, mean_absolute_error, .. } = &report.baseline;
    let expected = match (accuracy, mean_absolute_error) {
        (Some(accuracy), _) => format!("expected accuracy {accuracy:.3}"),
        (None, Some(error)) => format!("expected mean absolute error {error:.4}"),
        (None, None) => {
            "nothing to hold it against: register it with --metric accuracy=… or mae=…".to_owned()
        }
    };
    let state = match report.state {
        State::Drifted => "has degraded",
        State::Stable => "stable",
        State::NotEnoughEvidence => "not enough evidence",
    };
    let since = report.since_ms.map_or_else(String::new, |at| format!(" since {}", text::time(at)));
    say!("version {}{variant}: {state}{since}; {expected}", of.version)?;
    let has_estimates = report.cohorts.iter().any(|cohort| cohort.estimate.is_some());
    let mut header = vec!["from (UTC)", "predictions", "labels", "coverage", "state", "by labels"];
    header.extend(has_estimates.then_some("without labels"));
    header.extend(has_values.then_some("value"));
    let row = |cohort: &CohortReport| {
        let mut row = cohort_row(cohort);
        row.extend(has_estimates.then(|| cohort.estimate.as_ref().map_or_else(String::new, estimate)));
        row.extend(has_values.then(|| cohort.value.map_or_else(String::new, |value| format!("{value:.2}"))));
        row
    };
    let rows: Vec<_> = report.cohorts.iter().map(row).collect();
    say!("{}", table::render(&header, &rows).trim_end())?;
    Ok(())
}

fn cohort_row(cohort: &CohortReport) -> Vec<String> {
    let state = match cohort.state {
        _ if !cohort.is_mature => "labels may still come",
        State::Drifted => "degraded",
        State::Stable => "stable",
        State::NotEnoughEvidence => "not enough evidence",
    };
    let figures = match &cohort.metrics {
        None => String::new(),
        Some(Metrics::Classes(it)) => {
            let two = it.two.as_ref().and_then(|two| two.roc_auc);
            format!(
                "accuracy {:.3} ({:.3} to {:.3}), F1 {:.3}{}",
                it.accuracy,
                it.interval.low,
                it.interval.high,
                it.f1,
                two.map_or_else(String::new, |auc| format!(", ROC AUC {auc:.3}"))
            )
        }
        Some(Metrics::Numbers(it)) => {
            let more =
                |what: &str, of: Option<f64>| of.map_or_else(String::new, |of| format!(", {what} {of:.4}"));
            format!(
                "MAE {:.4} ({:.4} to {:.4}){}{}",
                it.mean_absolute_error,
                it.interval.low,
                it.interval.high,
                more("RMSE", it.root_mean_squared_error),
                more("R²", it.r_squared)
            )
        }
    };
    vec![
        text::time(cohort.since_ms),
        cohort.predicted.to_string(),
        cohort.labelled.to_string(),
        format!("{:.0} %", 100.0 * cohort.coverage),
        state.to_owned(),
        figures,
    ]
}

fn estimate(estimate: &Estimate) -> String {
    let trust = match estimate.trust {
        Trust::Holds => "",
        Trust::Widened => ", widened",
        Trust::Broken => ", broken",
    };
    let Estimated { value, band } = estimate.accuracy;
    format!("accuracy {value:.3} ({:.3} to {:.3}){trust}", band.low, band.high)
}

async fn list(control: &Control, model: String, last: Option<Duration>, known: bool) -> Outcome {
    let client = control.feedback().await?;
    let mut request = pb::ListFeedbackRequest {
        model,
        from_ms: since(last),
        to_ms: 0,
        page_size: BATCH as u32,
        page_token: String::new(),
    };
    loop {
        let page = client.list(request.clone()).await?;
        let wanted = page.predictions.iter().filter(|it| !known || !it.outcomes.is_empty());
        if control.json {
            wanted.map(document).try_for_each(|document| say!("{document}"))?;
        } else {
            let rows: Vec<_> = wanted.map(row).collect();
            let header = ["prediction", "time (UTC)", "version", "variant", "said", "turned out"];
            if !rows.is_empty() {
                say!("{}", table::render(&header, &rows).trim_end())?;
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        request.page_token = page.next_page_token;
    }
}

fn row(joined: &pb::JoinedPrediction) -> Vec<String> {
    let exposure = joined.exposure.as_ref();
    let said = |exposure: &pb::Exposure| match (exposure.label.as_str(), exposure.score) {
        (_, None) => String::new(),
        ("", Some(score)) => format!("{score}"),
        (label, Some(score)) => format!("{label} ({score:.3})"),
    };
    let turned_out: Vec<_> =
        joined.outcomes.iter().map(|it| format!("{} {}", it.metric, value(it))).collect();
    vec![
        joined.prediction_id.clone(),
        text::time(joined.at_ms),
        exposure.map_or("not noted".to_owned(), |exposure| exposure.version.to_string()),
        exposure.map_or(String::new(), |exposure| exposure.variant.clone()),
        exposure.map_or(String::new(), said),
        turned_out.join(", "),
    ]
}

fn value(outcome: &pb::Outcome) -> serde_json::Value {
    match &outcome.value {
        None => serde_json::Value::Null,
        Some(Value::Label(label)) => json!(label),
        Some(Value::Number(number)) => json!(number),
        Some(Value::Converted(converted)) => json!(converted),
    }
}

fn document(joined: &pb::JoinedPrediction) -> serde_json::Value {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let exposure = joined.exposure.as_ref().map(|exposure| {
        json!({
            "version": exposure.version,
            "variant": given(&exposure.variant),
            "chosen": given(&exposure.chosen),
            "unit": given(&exposure.unit),
            "status": exposure.status,
            "label": given(&exposure.label),
            "score": exposure.score,
        })
    });
    let outcome = |outcome: &pb::Outcome| json!({ "metric": outcome.metric, "value": value(outcome), "second": outcome.second, "at_ms": outcome.at_ms });
    json!({
        "prediction_id": joined.prediction_id,
        "at_ms": joined.at_ms,
        "exposure": exposure,
        "outcomes": joined.outcomes.iter().map(outcome).collect::<Vec<_>>(),
    })
}

impl Line {
    fn outcome(self) -> Result<pb::Outcome, String> {
        let Self { prediction_id, metric, label, number, converted, second, at_ms } = self;
        let value = match (label, number, converted) {
            (Some(label), None, None) => Value::Label(label),
            (None, Some(number), None) => Value::Number(number),
            (None, None, Some(converted)) => Value::Converted(converted),
            _ => return Err("expected one of label, number and converted".to_owned()),
        };
        let (metric, at_ms) = (metric.unwrap_or_default(), at_ms.unwrap_or(0));
        Ok(pb::Outcome { prediction_id, metric, value: Some(value), second, at_ms })
    }
}

/// A file that knows how much of it was read.
struct Counting<R> {
    file: R,
    bytes: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(into)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Outcomes of a file, one by one.
enum Lines<R: Read> {
    Json { file: BufReader<Counting<R>>, at: u64 },
    Csv(Box<csv::Reader<Counting<R>>>),
}

impl<R: Read> Lines<R> {
    fn new(path: &Path, file: Counting<R>) -> Result<Self, Failure> {
        match path.extension().and_then(|kind| kind.to_str()) {
            Some("jsonl" | "ndjson") => Ok(Self::Json { file: BufReader::new(file), at: 0 }),
            Some("csv") => Ok(Self::Csv(Box::new(csv::Reader::from_reader(file)))),
            _ => Err(format!("{}: expected a name that ends in .jsonl or .csv", path.display()).into()),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Json { file, .. } => file.get_ref().bytes,
            Self::Csv(reader) => reader.get_ref().bytes,
        }
    }

    fn next(&mut self) -> Result<Option<pb::Outcome>, Failure> {
        let (at, line) = match self {
            Self::Json { file, at } => loop {
                *at += 1;
                let mut line = Vec::new();
                file.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line)?;
                if line.is_empty() {
                    return Ok(None);
                }
                if line.trim_ascii().is_empty() {
                    continue;
                }
                break (*at, serde_json::from_slice::<Line>(&line).map_err(|error| error.to_string()));
            },
            Self::Csv(reader) => {
                // The header is read first: a record begins where the reader stands before it.
                reader.headers()?;
                let at = reader.position().line();
                let Some(line) = reader.deserialize::<Line>().next() else { return Ok(None) };
                (at, line.map_err(|error| error.to_string()))
            }
        };
        let outcome = line.and_then(Line::outcome);
        outcome.map(Some).map_err(|error| format!("line {at}: {}", plain(&error)).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<pb::Outcome>, String> {
        let file = Counting { file: text.as_bytes(), bytes: 0 };
        let mut lines = Lines::new(Path::new(name), file).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        while let Some(outcome) = lines.next().map_err(|error| error.to_string())? {
            all.push(outcome);
        }
        Ok(all)
    }

    #[test]
    fn both_forms_of_a_file_say_the_same() {
        let json = r#"{"prediction_id": "a", "label": "cat, or \"dog\""}

{"prediction_id": "b", "metric": "revenue", "number": 2.5, "second": 3, "at_ms": 7}
{"prediction_id": "c", "converted": false}"#;
        let csv = "prediction_id,metric,label,number,converted,second,at_ms\n\
                   a,,\"cat, or \"\"dog\"\"\",,,,\nb,revenue,,2.5,,3,7\nc,,,,false,,\n";
        let outcomes = read("x.jsonl", json).unwrap();
        assert_eq!(outcomes.len(), 3);
        assert_eq!(outcomes[1].second, Some(3.0));
        assert_eq!(read("x.csv", csv).unwrap(), outcomes);
        for (name, text, says) in [
            ("x.jsonl", "{\"prediction_id\": \"a\"}", "line 1: expected one of label, number and converted"),
            ("x.jsonl", "\n{\"prediction\": \"a\"}", "line 2: unknown field"),
            ("x.csv", "prediction_id,label\na,b\nc\n", "line 3: "),
            ("x.csv", "prediction_id,label\na,\n", "line 2: expected one of"),
            ("x.txt", "", "expected a name"),
        ] {
            let error = read(name, text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
