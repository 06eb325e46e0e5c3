use crate::Result;
use crate::server::Server;
use clap::{Args, ValueEnum};
use sconce_client::{InferRequest, tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

#[derive(Args)]
pub(crate) struct Load {
    /// The generator's binary
    #[arg(long)]
    pub(crate) loadtest: PathBuf,
    /// Intervals with changes; there is one more without, around them
    #[arg(long)]
    pub(crate) rounds: usize,
    /// Seconds of an interval
    #[arg(long)]
    pub(crate) duration: f64,
    /// Seconds before it, at the same load
    #[arg(long)]
    pub(crate) warmup: f64,
    /// Requests a second, as a part of what the closed loop reached
    #[arg(long)]
    pub(crate) part: f64,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Subject {
    Minilm,
    Tabular,
}

impl Subject {
    /// Its model, which is the folder of its package too.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Minilm => "minilm",
            Self::Tabular => "tabular",
        }
    }

    pub(crate) fn load(self) -> [&'static str; 4] {
        match self {
            Self::Minilm => ["--input", "input_ids", "--token-ids", "20"],
            Self::Tabular => ["--input", "features", "--fp32", "1x30"],
        }
    }

    pub(crate) fn request(self, model: &str) -> Result<InferRequest> {
        let request = InferRequest::new(model);
        Ok(match self {
            Self::Minilm => request.input("input_ids", tensor::int64(&[1, 20], &[2000; 20])?),
            Self::Tabular => request.input("features", tensor::fp32(&[1, 30], &[1.0; 30])?),
        })
    }
}

/// The part of a core that the generator may need: near a whole one it is late itself.
const GENERATOR: f64 = 0.6;

/// A server under an open loop of requests for one model. The generator is a process of its own, on the cores this one may use.
pub(crate) struct Run<'a> {
    pub(crate) server: &'a Server<'a>,
    pub(crate) load: &'a Load,
    pub(crate) subject: Subject,
    pub(crate) model: &'static str,
    pub(crate) rate: f64,
}

/// Intervals without changes, one more than with, in turns.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) without: Vec<Interval>,
    pub(crate) with: Vec<Interval>,
}

/// What the generator saw: milliseconds.
pub(crate) struct Interval {
    /// By gRPC code, or what else the generator calls it.
    pub(crate) failed: Vec<(String, u64)>,
    pub(crate) requests_per_s: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// The part of a core that the generator needed.
    pub(crate) generator: f64,
}

impl<'a> Run<'a> {
    /// Finds out how many requests a second the server can answer, and takes a part of it: no more than the generator sends on
    /// time.
    pub(crate) async fn new(
        server: &'a Server<'a>,
        load: &'a Load,
        subject: Subject,
        model: &'static str,
    ) -> Result<Self> {
        let mut run = Self { server, load, subject, model, rate: 0.0 };
        let closed = run.generator(&["closed", "--concurrency", "64"])?;
        let most = report(closed).await?;
        let generator = GENERATOR / most.generator * most.requests_per_s;
        run.rate = (most.requests_per_s * load.part).min(generator).round();
        Ok(run)
    }

    /// Intervals without and with changes, in turns. In each, `act` runs until the instant it is given, and is told whether to
    /// change anything; what else it does burdens both alike.
    pub(crate) async fn intervals(
        &self,
        mut act: impl AsyncFnMut(Instant, bool) -> Result<()>,
    ) -> Result<Outcome> {
        let rate = self.rate.to_string();
        let mut outcome = Outcome::default();
        for turn in 0..=2 * self.load.rounds {
            let changing = turn % 2 == 1;
            let generator = self.generator(&["open", "--poisson", "--rate", &rate])?;
            sleep(Duration::from_secs_f64(self.load.warmup)).await;
            act(Instant::now() + Duration::from_secs_f64(self.load.duration), changing).await?;
            let intervals = if changing { &mut outcome.with } else { &mut outcome.without };
            intervals.push(report(generator).await?);
        }
        Ok(outcome)
    }

    fn generator(&self, arguments: &[&str]) -> Result<Child> {
        let (duration, warmup) = (self.load.duration.to_string(), self.load.warmup.to_string());
        let mut command = Command::new(&self.load.loadtest);
        command.arg(arguments[0]).arg(&self.server.target.grpc).args(&arguments[1..]);
        command.args(["--connections", "8", "--json", "--duration", &duration, "--warmup", &warmup]);
        command.args(["--model", self.model]).args(self.subject.load());
        Ok(command.stdout(Stdio::piped()).spawn()?)
    }

    pub(crate) fn print(&self, title: &str, what: &str, outcome: &Outcome) {
        let Outcome { without, with } = outcome;
        let failed = |intervals: &[Interval]| {
            let mut codes = BTreeMap::new();
            for (code, count) in intervals.iter().flat_map(|interval| &interval.failed) {
                *codes.entry(code.as_str()).or_insert(0) += count;
            }
            let shown: Vec<String> = codes.iter().map(|(code, count)| format!("{count} {code}")).collect();
            if shown.is_empty() { "0".to_owned() } else { shown.join(", ") }
        };
        let both = |value: fn(&Interval) -> f64| {
            let of = |intervals: &[Interval]| median(intervals.iter().map(value).collect());
            format!("{:.2} / {:.2}", of(without), of(with))
        };
        // Each interval with changes against the two around it; and these two against each other, which is noise.
        let around = without.windows(2).zip(with);
        let ratio = median(around.map(|(a, b)| 2.0 * b.p99 / (a[0].p99 + a[1].p99)).collect());
        let noise = without.windows(2).map(|a| (a[0].p99 / a[1].p99).max(a[1].p99 / a[0].p99));
        let generator = with.iter().map(|interval| interval.generator).fold(0.0, f64::max);
        println!(
            "| {title} | {:.0} | {what} | {} / {} | {} | {} | {} | **{ratio:.2}** | {:.2} | {:.0} % |",
            self.rate,
            failed(without),
            failed(with),
            both(|interval| interval.p50),
            both(|interval| interval.p99),
            both(|interval| interval.max),
            noise.fold(1.0, f64::max),
            generator * 100.0
        );
    }
}

/// Waits for the generator's end.
async fn report(generator: Child) -> Result<Interval> {
    let output = tokio::task::spawn_blocking(move || generator.wait_with_output()).await??;
    let said = String::from_utf8(output.stdout)?;
    let report: Value =
        serde_json::from_str(&said).map_err(|error| format!("the generator failed ({error}): {said}"))?;
    let number = |name: &str| report[name].as_f64().ok_or_else(|| format!("no `{name}` in {said}"));
    let errors = report["errors"].as_object().ok_or("no `errors` in the generator's report")?;
    let requests_per_s = number("requests_per_s")?;
    Ok(Interval {
        failed: errors.iter().map(|(code, count)| (code.clone(), count.as_u64().unwrap_or(0))).collect(),
        requests_per_s,
        p50: number("p50_us")? / 1e3,
        p99: number("p99_us")? / 1e3,
        max: number("max_us")? / 1e3,
        generator: number("generator_cpu_us")? * requests_per_s / 1e6,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
