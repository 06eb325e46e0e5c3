//! `sconce replay`: recorded requests once more, to any server that speaks the protocol, and its answers held against those of then.

mod export;
mod page;
mod recording;
mod run;

use crate::control::pair;
use crate::progress::{self, Bar};
use crate::{Failure, Outcome, block_on, report};
use recording::{Lacking, Recorded, Recording};
use run::{Pace, Plan, Verdict};
use sconce_core::DataType;
use sconce_traffic::compare::MAX_OUTPUTS;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Models of a recording: each has a comparison of its own.
const MAX_MODELS: usize = 256;
/// The exit code of answers that differ.
const DIFFERENT: u8 = 1;
/// That of what could not be done.
const FAILED: u8 = 2;
/// That of answers that do not differ, but are not all.
const INCOMPLETE: u8 = 3;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "What is replayed is what a prediction log kept: requests whose inputs their model's data_policy keeps \
                        whole.\n\nExit codes: 0 the answers are equal within the tolerance, 1 they differ, 2 it could not be \
                        done, 3 none differs but not all were compared"
)]
pub(crate) struct Args {
    /// Files that a prediction log wrote, or its folder
    #[arg(required = true, value_name = "FILE|FOLDER")]
    recording: Vec<PathBuf>,
    /// Address of a server that speaks the Open Inference Protocol over gRPC
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDRESS")]
    server: String,
    /// How fast: `1x` as it was recorded, `2x` twice as fast, or `max`: as fast as it is answered
    #[arg(long, default_value = "1x", value_name = "SPEED", value_parser = run::pace)]
    rate: Pace,
    /// Requests without an answer yet, at most; beyond it those that are due are not sent, and counted [default: 1024; 16 with
    /// --rate max, where the next one waits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_outstanding: Option<u32>,
    /// Only requests to this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// What the model is called there
    #[arg(long = "as", value_name = "MODEL", requires = "model")]
    called: Option<String>,
    /// Ask for this version, by its number or an alias, in place of the one that was asked for
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Ask for this output, where it is called otherwise there as NAME=THERE, and compare no other
    #[arg(long = "output", value_name = "NAME[=THERE]")]
    outputs: Vec<String>,
    /// Only the first requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Metadata of each request, such as credentials
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// Give up after this many milliseconds on requests that had no deadline of their own
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..))]
    deadline_ms: u64,
    /// A floating-point number may differ by this and by --relative of what it was, together
    #[arg(long, value_name = "NUMBER", default_value_t = 1e-4)]
    absolute: f64,
    /// See --absolute
    #[arg(long, value_name = "SHARE", default_value_t = 1e-3)]
    relative: f64,
    /// Of outputs that are probabilities, compare the likeliest class and not each number
    #[arg(long)]
    decisions: bool,
    /// The share of the answers that may differ, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    max_different: f64,
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Write Markdown
    #[arg(long, conflicts_with = "json")]
    md: bool,
    /// Write a page to this file, with plots and without anything that is fetched
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Send nothing: write the requests to this file, for `ghz --data-file`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["export_k6", "json", "md", "html"])]
    export_ghz: Option<PathBuf>,
    /// Send nothing: write the requests with their times to this file, for loadtest/k6_replay.js
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "md", "html"])]
    export_k6: Option<PathBuf>,
}

/// Those of a recording that are wanted and can be made again.
struct Selection {
    recording: Recording,
    model: Option<String>,
    limit: Option<u64>,
}

/// What there is to replay.
#[derive(Default)]
struct Survey {
    requests: u64,
    lacking: BTreeMap<Lacking, u64>,
    first_us: i64,
    last_us: i64,
    models: BTreeMap<String, Recordeds>,
}

/// What there is of one model.
#[derive(Default)]
struct Recordeds {
    requests: u64,
    outputs: BTreeMap<String, DataType>,
}

impl Selection {
    /// Gives each of them as they came, with the share of the files that was read, until `take` says false; of others, what they lack.
    fn each(
        &self,
        mut take: impl FnMut(Recorded, f64) -> Result<bool, Failure>,
        mut lacking: impl FnMut(Lacking),
    ) -> Result<(), Failure> {
        let mut taken = 0;
        self.recording.each(|recorded, share| {
            if self.model.as_ref().is_some_and(|model| *model != recorded.model) {
                return Ok(true);
            }
            if let Err(lacks) = recorded.inputs() {
                lacking(lacks);
                return Ok(true);
            }
            taken += 1;
            Ok(take(recorded, share)? && self.limit.is_none_or(|limit| taken < limit))
        })
    }

    /// Reads all of it, so that what is wrong with a file is told before anything is sent.
    fn survey(&self) -> Result<Survey, Failure> {
        let (mut survey, mut bar) = (Survey::default(), Bar::default());
        let mut lacking = BTreeMap::new();
        let read = self.each(
            |recorded, share| {
                survey.take(&recorded)?;
                bar.show_share("recording read", share);
                Ok(true)
            },
            |lacks| *lacking.entry(lacks).or_default() += 1,
        );
        progress::clear_line();
        read?;
        survey.lacking = lacking;
        if survey.requests == 0 {
            let skipped: u64 = survey.lacking.values().sum();
            let why = match skipped {
                0 => "it has no request that is wanted".to_owned(),
                _ => format!(
                    "of {skipped} requests none has all its inputs ({}): a model's `data_policy` says what is kept, and \
                     nothing is without `allow_plaintext = true`",
                    page::reasons(&survey.lacking)
                ),
            };
            return Err(format!("nothing to replay: {why}").into());
        }
        Ok(survey)
    }
}

impl Survey {
    fn take(&mut self, recorded: &Recorded) -> Result<(), Failure> {
        if self.requests == 0 {
            self.first_us = recorded.at_us;
        }
        self.last_us = self.last_us.max(recorded.at_us);
        self.requests += 1;
        if !self.models.contains_key(&recorded.model) && self.models.len() >= MAX_MODELS {
            return Err(format!("expected at most {MAX_MODELS} models: --model says which one").into());
        }
        let of_model = self.models.entry(recorded.model.clone()).or_default();
        of_model.requests += 1;
        for (name, tensor) in recorded.outputs() {
            if of_model.outputs.len() < MAX_OUTPUTS {
                of_model.outputs.entry(name.to_owned()).or_insert(tensor.datatype());
            }
        }
        Ok(())
    }

    /// From the first request to the last, as they were recorded.
    fn span(&self) -> Duration {
        Duration::from_micros(self.last_us.saturating_sub(self.first_us).unsigned_abs())
    }
}

pub(crate) fn run(args: Args) -> Outcome {
    replay(args).or_else(|error| Ok(crate::tell(error, ExitCode::from(FAILED))))
}

fn replay(args: Args) -> Outcome {
    check(&args)?;
    let recording = Recording::open(&args.recording)?;
    let files = recording.files();
    let mut selection = Selection { recording, model: args.model.clone(), limit: args.limit };
    // A reader that does not get along with a hostile file is its end, not ours.
    let survey = std::thread::scope(|scope| scope.spawn(|| selection.survey()).join());
    let survey = survey.unwrap_or_else(|_| Err("the recording cannot be read".into()))?;
    // What a server writes meanwhile is not replayed.
    selection.limit = Some(survey.requests);
    let plan = Plan {
        server: args.server,
        pace: args.rate,
        max_outstanding: args.max_outstanding.map(|most| most as usize),
        called: args.called,
        version: args.version,
        outputs: args.outputs.iter().map(|it| it.split_once('=').unwrap_or((it, it))).map(owned).collect(),
        headers: args.header,
        deadline: Duration::from_millis(args.deadline_ms),
        tolerance: (args.absolute, args.relative),
        decisions: args.decisions,
        max_different: args.max_different,
    };
    if let Some(path) = &args.export_ghz {
        return export::ghz(&selection, &plan, &survey, path);
    }
    if let Some(path) = &args.export_k6 {
        return export::k6(&selection, &plan, &survey, path);
    }
    let ran = block_on(run::run(&plan, selection, &survey))??;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&page::document(&plan, &survey, files, &ran))?)?;
    } else if args.md {
        say!("{}", report::markdown(&page::page(&plan, &survey, &ran)).trim_end())?;
    } else {
        say!("{}", page::text(&plan, &survey, &ran).trim_end())?;
    }
    if let Some(path) = &args.html {
        let cannot = |error| format!("cannot write {}: {error}", path.display());
        fs::write(path, report::html(&page::page(&plan, &survey, &ran))).map_err(cannot)?;
    }
    Ok(ExitCode::from(match ran.verdict(&plan) {
        Verdict::Equal => 0,
        Verdict::Different => DIFFERENT,
        Verdict::Incomplete => INCOMPLETE,
    }))
}

fn owned((name, there): (&str, &str)) -> (String, String) {
    (name.to_owned(), there.to_owned())
}

fn check(args: &Args) -> Result<(), Failure> {
    for (flag, value) in [("absolute", args.absolute), ("relative", args.relative)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(format!("--{flag}: expected a number of at least 0, got {value}").into());
        }
    }
    if !(0.0..=1.0).contains(&args.max_different) {
        return Err(format!("--max-different: expected 0 to 1, got {}", args.max_different).into());
    }
    Ok(())
}
