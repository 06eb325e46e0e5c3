//! Drives a server with a registry for `benches/lifecycle/run`: changes what it serves while the load generator asks it, and
//! prints rows of markdown tables.

#![expect(clippy::print_stdout, reason = "the rows go to standard output")]

mod load;
mod server;

use clap::Parser;
use load::{Load, Run, Subject};
use sconce_candle::Package;
use sconce_client::{InferRequest, Parameter, tensor};
use sconce_core::{DeviceId, ModelName, TensorSpec};
use sconce_proto::sconce as pb;
use sconce_registry::{By, Limits, NewVersion, Registry, SignatureRecord, TensorRecord};
use server::{Server, Target, files};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
enum Cli {
    /// Moves the alias `champion` to and fro between two versions in memory, under load
    Swap {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        load: Load,
        /// In each interval
        #[arg(long, default_value_t = 50)]
        swaps: u32,
        /// The models, folders in `packages`
        subjects: Vec<Subject>,
    },
    /// Loads and unloads a second model while a first one answers
    Beside {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        load: Load,
        /// What the row says of the server
        #[arg(long)]
        title: String,
    },
    /// Loads and unloads a model again and again, and looks at the process's memory
    Memory {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 100)]
        cycles: u32,
    },
    /// Makes a data folder with many models, each with versions of one tiny package
    Store {
        dir: PathBuf,
        package: PathBuf,
        #[arg(long, default_value_t = 1_000)]
        models: u32,
        #[arg(long, default_value_t = 10)]
        versions: u32,
    },
    /// Asks a server of such a folder for what a console and a scraper would
    Scale {
        #[command(flatten)]
        target: Target,
        /// What the rows say of the server
        #[arg(long)]
        title: String,
        /// Seconds from its start until it was ready
        #[arg(long)]
        ready: f64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Cli::parse() {
        Cli::Swap { target, load, swaps, subjects } => {
            for subject in subjects {
                swap(&Server::of(&target).await?, &load, swaps, subject).await?;
            }
            Ok(())
        }
        Cli::Beside { target, load, title } => beside(&Server::of(&target).await?, &load, &title).await,
        Cli::Memory { target, cycles } => memory(&Server::of(&target).await?, cycles).await,
        Cli::Store { dir, package, models, versions } => store(&dir, &package, models, versions),
        Cli::Scale { target, title, ready } => scale(&Server::of(&target).await?, &title, ready).await,
    }
}

/// What changes took, and answers that came from before one that was acknowledged.
#[derive(Default)]
struct Changes {
    took: Vec<Duration>,
    outdated: u32,
}

async fn swap(server: &Server<'_>, load: &Load, swaps: u32, subject: Subject) -> Result<()> {
    let model = subject.name();
    for version in ["1", "2"] {
        server.push(model, model).await?;
        server.want(model, version, pb::Wanted::Loaded).await?;
    }
    server.promote(model, "1").await?;
    let run = Run::new(server, load, subject, model).await?;
    let gap = Duration::from_secs_f64(load.duration) / (swaps + 1);
    let mut changes = Changes::default();
    let outcome = run
        .intervals(async |until, changing| {
            for swap in 0..swaps {
                let started = Instant::now();
                if started >= until && swap % 2 == 0 {
                    break;
                }
                let changed = match swap % 2 {
                    _ if !changing => None,
                    0 => Some(server.promote(model, "2").await?),
                    _ => Some(server.roll_back(model).await?),
                };
                let took = started.elapsed();
                // Whoever asks after a change was acknowledged is answered by it.
                let answer = server.client.infer(subject.request(model)?).await?;
                if let Some((version, generation)) = changed {
                    let seen = match answer.parameters.get("routing_generation") {
                        Some(Parameter::Int64Param(seen)) => u64::try_from(*seen)?,
                        _ => return Err("an answer without `routing_generation`".into()),
                    };
                    let is_outdated = answer.model_version != version.to_string() || seen < generation;
                    changes.outdated += u32::from(is_outdated);
                    changes.took.push(took);
                }
                sleep_until((started + gap).into()).await;
            }
            Ok(())
        })
        .await?;
    let count = changes.took.len();
    let what = format!("{count} swaps of {}, {} outdated", millis(&mut changes.took, 50), changes.outdated);
    run.print(model, &what, &outcome);
    Ok(())
}

async fn beside(server: &Server<'_>, load: &Load, title: &str) -> Result<()> {
    let subject = Subject::Minilm;
    server.push("first", subject.name()).await?;
    server.want("first", "1", pb::Wanted::Loaded).await?;
    server.push("second", subject.name()).await?;
    server.want("second", "1", pb::Wanted::Loaded).await?;
    server.want("second", "1", pb::Wanted::Unloaded).await?;
    let run = Run::new(server, load, subject, "first").await?;
    let mut changes = Changes::default();
    let outcome = run
        .intervals(async |until, changing| {
            while changing && Instant::now() < until {
                let started = Instant::now();
                server.want("second", "1", pb::Wanted::Loaded).await?;
                changes.took.push(started.elapsed());
                server.want("second", "1", pb::Wanted::Unloaded).await?;
            }
            Ok(())
        })
        .await?;
    let count = changes.took.len();
    run.print(title, &format!("{count} loads of {}", millis(&mut changes.took, 50)), &outcome);
    Ok(())
}

async fn memory(server: &Server<'_>, cycles: u32) -> Result<()> {
    let (subject, model) = (Subject::Minilm, "minilm");
    let empty = server.resident().await?;
    println!("| none, no model yet | | | {} | |", mebibytes(empty));
    server.push(model, model).await?;
    server.want(model, "1", pb::Wanted::Loaded).await?;
    server.want(model, "1", pb::Wanted::Unloaded).await?;
    let mut first = None;
    for cycle in 1..=cycles {
        server.want(model, "1", pb::Wanted::Loaded).await?;
        server.client.infer(subject.request(model)?).await?;
        let is_shown = [1, 10, 50, cycles].contains(&cycle);
        let loaded = if is_shown { server.resident().await? } else { 0 };
        server.want(model, "1", pb::Wanted::Unloaded).await?;
        if is_shown {
            let unloaded = server.resident().await?;
            let (loaded_first, unloaded_first) = *first.get_or_insert((loaded, unloaded));
            println!(
                "| {cycle} | {} | {:.2} | {} | {:.2} |",
                mebibytes(loaded),
                loaded as f64 / loaded_first as f64,
                mebibytes(unloaded),
                unloaded as f64 / unloaded_first as f64
            );
        }
    }
    Ok(())
}

fn store(dir: &Path, package: &Path, models: u32, versions: u32) -> Result<()> {
    let opened = Package::open(package, DeviceId::Cpu)?;
    let registry = Registry::open(dir)?;
    let by = By::new("lifecycle", "many models");
    let started = Instant::now();
    for version in 1..=versions {
        for model in 0..models {
            let mut importer = registry.artifacts().importer(Limits::default());
            for (path, content) in files(package)? {
                let mut file = importer.file(&path, content.len() as u64)?;
                file.append(&content)?;
                file.finish()?;
            }
            let mut new = NewVersion::new(ModelName::new(&format!("model-{model:04}"))?);
            new.signature = signature(&opened);
            new.description = format!("version {version} of a model among many");
            registry.register(new, importer.finish()?, &by)?;
        }
    }
    let took = started.elapsed().as_secs_f64();
    let count = models * versions;
    println!(
        "{models} models with {versions} versions each were registered in {took:.1} s, {:.0} a second, with the library; the \
         catalogue takes {} MiB on disk.",
        f64::from(count) / took,
        mebibytes(registry.catalogue_bytes()?)
    );
    Ok(())
}

async fn scale(server: &Server<'_>, title: &str, ready: f64) -> Result<()> {
    let row = |what: &str, measured: String| println!("| {title} | {what} | {measured} |");
    row("start to ready", format!("{ready:.1} s"));
    let metrics = server.metrics().await?;
    let loaded = metrics.lines().filter(|line| line.starts_with("sconce_model_memory_bytes{")).count();
    row("models in memory, resident, threads", {
        let resident = mebibytes(server.resident().await?);
        format!("{loaded}, {resident} MiB, {}", server.status("Threads:")?)
    });
    let mut scrapes = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        server.metrics().await?;
        scrapes.push(started.elapsed());
    }
    row("scrape of /metrics, p50, p99, size", {
        let kib = metrics.len() >> 10;
        format!("{}, {}, {kib} KiB", millis(&mut scrapes, 50), millis(&mut scrapes, 99))
    });
    let mut registry = server.registry.clone();
    let (mut pages, mut names, mut token) = (Vec::new(), Vec::new(), String::new());
    while pages.len() < 200 {
        let request = pb::ListModelsRequest { page_size: 100, page_token: token, ..Default::default() };
        let started = Instant::now();
        let page = registry.list_models(request).await?.into_inner();
        pages.push(started.elapsed());
        token = page.next_page_token;
        names = page.models.into_iter().map(|model| model.name).collect();
    }
    row(
        "ListModels, a page of 100, p50, p99",
        format!("{}, {}", millis(&mut pages, 50), millis(&mut pages, 99)),
    );
    let (mut promotions, mut first_requests) = (Vec::new(), Vec::new());
    for name in names.iter().take(20) {
        let request = InferRequest::new(name).version("2");
        let started = Instant::now();
        server.client.infer(request.input("features", tensor::fp32(&[1, 4], &[1.0; 4])?)).await?;
        first_requests.push(started.elapsed());
        let started = Instant::now();
        server.promote(name, "2").await?;
        promotions.push(started.elapsed());
    }
    row("first request for a version not in memory, p50", millis(&mut first_requests, 50));
    row("promotion of a version in memory, p50", millis(&mut promotions, 50));
    Ok(())
}

fn signature(package: &Package) -> SignatureRecord {
    let record = |spec: &TensorSpec| TensorRecord {
        name: spec.name.clone(),
        datatype: spec.datatype.name().to_owned(),
        shape: spec.shape.iter().map(|side| side.map_or(-1, |side| side as i64)).collect(),
        optional: spec.optional,
        form: spec.form as u32,
    };
    SignatureRecord {
        inputs: package.signature.inputs.iter().map(record).collect(),
        outputs: package.signature.outputs.iter().map(record).collect(),
        max_batch_size: package.signature.max_batch_size as u64,
    }
}

/// A percentile, for people. Sorts `times`.
fn millis(times: &mut [Duration], percentile: usize) -> String {
    times.sort();
    let at = (times.len() * percentile / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or("-".to_owned(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}
