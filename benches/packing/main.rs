//! What running lengths mixed gains over padding: `sconce-packing FOLDER`, where FOLDER is a package of the BERT family. One model in
//! memory behind several schedulers, packed and padded, in turns, each with a closed loop of requests of one row.

#![expect(clippy::print_stdout, reason = "the table goes to standard output")]

#[path = "../lengths.rs"]
mod lengths;
mod padded;

use clap::Parser;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lengths::Lengths;
use padded::{Padded, Padding};
use sconce_candle::Package;
use sconce_core::{Batch, ByteBudget, DataType, DeviceId, InferOutput, LoadedModel, ModelInput, Tensor};
use sconce_scheduler::{BatchPolicy, Class, Device, Priority, Scheduler, Submission, Tenant};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about = "Packed against padded batches")]
struct Cli {
    /// The model package
    folder: PathBuf,
    /// Requests in flight
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each turn
    #[arg(long, default_value_t = 4.0)]
    duration: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Padding that attention sees: what it takes in full, but answers that are not compared
    #[arg(long)]
    attended: bool,
}

/// Different requests of a distribution, sent in turn.
const POOL: usize = 256;
/// Answers of unit length may differ by this in each number: batches are summed up in other orders.
const TOLERANCE: f32 = 1e-4;

/// A way to run the model, and what its turns came to.
struct Contestant {
    name: &'static str,
    scheduler: Scheduler,
    turns: Vec<Turn>,
}

#[derive(Clone, Copy)]
struct Turn {
    rate: f64,
    batches: u64,
    tokens: u64,
    padding: u64,
    difference: f32,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let package = Package::open(&cli.folder, DeviceId::Cpu)?;
    let policy = BatchPolicy {
        max_rows: package.settings.max_batch_size,
        max_tokens: package.settings.max_batch_tokens,
        // How long requests wait is no matter here.
        queue_target: Duration::ZERO,
        ..BatchPolicy::default()
    };
    let model = package.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    println!(
        "| tokens | batches | sentences/s | packed / this | ideal | tokens a batch | padding | largest difference |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|");
    for lengths in Lengths::ALL {
        let inputs = requests(&*model, lengths)?;
        let expected = answers(&*model, &inputs)?;
        let padding = if cli.attended { Padding::Within } else { Padding::Beside };
        let padded = |is_told| -> Arc<dyn LoadedModel> {
            Arc::new(Padded { inner: Arc::clone(&model), padding, is_told })
        };
        let mut contestants = Vec::new();
        for (name, model) in [
            ("packed", Arc::clone(&model)),
            ("padded, in order of arrival", padded(false)),
            ("padded, like lengths together", padded(true)),
        ] {
            // Waits for a runtime to wake its callers in.
            let _entered = runtime.enter();
            let scheduler = Scheduler::start(name, model, policy.clone(), Arc::new(Device::new(1)), 1)?;
            contestants.push(Contestant { name, scheduler, turns: Vec::new() });
        }
        for _ in 0..cli.rounds {
            for contestant in &mut contestants {
                let turn = turn(&contestant.scheduler, &inputs, &expected, &cli);
                contestant.turns.push(runtime.block_on(turn)?);
            }
        }
        report(lengths, &contestants, &cli)?;
    }
    Ok(())
}

/// A pool of token ids, always the same.
fn requests(model: &dyn LoadedModel, lengths: Lengths) -> Result<Vec<ModelInput>> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut request = || {
        let tokens = lengths.pick(&mut random);
        let data: Vec<u8> = (0..tokens).flat_map(|_| random.i64(1000..2000).to_le_bytes()).collect();
        let ids = Tensor::new(DataType::Int64, vec![1, tokens], data.into())?;
        Ok(model.prepare(model.signature().check([("input_ids", ids)])?)?)
    };
    (0..POOL).map(|_| request()).collect()
}

/// What each request is answered alone.
fn answers(model: &dyn LoadedModel, inputs: &[ModelInput]) -> Result<Vec<Vec<f32>>> {
    let mut backend = model.instance()?;
    let mut answer = |input: &ModelInput| {
        backend.submit(Batch { inputs: vec![input.clone()] }, &|| {})?;
        let output = backend.collect()?.outputs.pop().ok_or("a request without an answer")?;
        Ok(values(&output?))
    };
    inputs.iter().map(&mut answer).collect()
}

fn values(output: &InferOutput) -> Vec<f32> {
    output.tensors.iter().flat_map(Tensor::f32_values).collect()
}

/// Keeps requests in flight for as long as a turn takes. What is answered after the warm-up counts.
async fn turn(
    scheduler: &Scheduler,
    inputs: &[ModelInput],
    expected: &[Vec<f32>],
    cli: &Cli,
) -> Result<Turn> {
    let submit = |number: usize| {
        let submission = Submission {
            input: inputs[number % inputs.len()].clone(),
            priority: Priority::default(),
            tenant: Tenant::default(),
            class: Class::Primary,
            deadline: None,
            arrived_at: Instant::now(),
            prepare_time: Duration::ZERO,
            reservation: ByteBudget::new(0).empty(),
        };
        scheduler.submit(submission).map(|reply| async move { (number, reply.await) })
    };
    let mut flying = FuturesUnordered::new();
    let (mut sent, mut answered, mut difference) = (0, 0u64, 0f32);
    let from = Instant::now() + Duration::try_from_secs_f64(cli.warmup)?;
    let mut started = None;
    loop {
        let is_over =
            started.as_ref().is_some_and(|(at, _): &(Instant, _)| at.elapsed().as_secs_f64() >= cli.duration);
        while !is_over && flying.len() < cli.concurrency.max(1) {
            flying.push(submit(sent)?);
            sent += 1;
        }
        if is_over {
            break;
        }
        let (number, reply) = flying.next().await.ok_or("nothing is in flight")?;
        let got = values(&reply?.result?);
        for (got, expected) in got.iter().zip(&expected[number % expected.len()]) {
            difference = difference.max((got - expected).abs());
        }
        if started.is_some() {
            answered += 1;
        } else if Instant::now() >= from {
            started = Some((Instant::now(), scheduler.stats()));
        }
    }
    let (at, before) = started.ok_or("the turn never began")?;
    let (seconds, after) = (at.elapsed().as_secs_f64(), scheduler.stats());
    // The next turn is another's, and has the core to itself.
    while flying.next().await.is_some() {}
    Ok(Turn {
        rate: answered as f64 / seconds,
        batches: after.execution_count - before.execution_count,
        tokens: after.token_count - before.token_count,
        padding: after.batch_padding.sum() - before.batch_padding.sum(),
        difference,
    })
}

fn report(lengths: Lengths, contestants: &[Contestant], cli: &Cli) -> Result<()> {
    let packed = contestants.first().ok_or("nobody took part")?;
    for contestant in contestants {
        let sum = |of: fn(&Turn) -> u64| contestant.turns.iter().map(of).sum::<u64>() as f64;
        let [batches, tokens, padding] = [sum(|t| t.batches), sum(|t| t.tokens), sum(|t| t.padding)];
        let ratios = packed.turns.iter().zip(&contestant.turns).map(|(packed, turn)| packed.rate / turn.rate);
        let difference = contestant.turns.iter().map(|turn| turn.difference).fold(0.0, f32::max);
        let is_compared = !cli.attended || std::ptr::eq(contestant, packed);
        if is_compared && difference > TOLERANCE {
            return Err(format!("{}: an answer differs by {difference}", contestant.name).into());
        }
        println!(
            "| {} | {} | {:.0} | **{:.2}** | {:.2} | {:.0} | {:.2} | {} |",
            lengths.name(),
            contestant.name,
            median(contestant.turns.iter().map(|turn| turn.rate)),
            median(ratios),
            (tokens + padding) / tokens.max(1.0),
            tokens / batches.max(1.0),
            padding / (tokens + padding).max(1.0),
            if is_compared { format!("{difference:.0e}") } else { "not compared".to_owned() },
        );
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
