//! Load for servers of the Open Inference Protocol over gRPC: closed and open loops, and a bare echo server as the
//! floor to compare a server with. Linux only: it reads `/proc` and paces with a kernel timer.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool: its output is what it is for"
)]

mod connection;
mod echo;
mod load;
mod pace;
mod payload;
mod process;
mod recorder;
mod report;
mod sink;
mod statistics;

use clap::{Args, Parser, Subcommand};
use http::header::{HeaderName, HeaderValue};
use load::{Arrivals, Plan, Terms};
use payload::{Kind, Lengths, Source};
use statistics::Statistics;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

pub(crate) type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about = "Load for gRPC inference servers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep a fixed number of requests in flight: the most a server can do
    Closed {
        /// Requests in flight over all connections
        #[arg(short, long, default_value_t = 1)]
        concurrency: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Send at a fixed rate whatever the server does: the latency its users would see, counted from the time each
    /// request was due
    Open {
        /// Requests a second over all connections
        #[arg(short, long)]
        rate: f64,
        /// Random gaps between requests (a Poisson process) instead of equal ones
        #[arg(long)]
        poisson: bool,
        /// Requests that may be unanswered at once; what would exceed it is not sent and counts as DROPPED
        #[arg(long, default_value_t = 10_000)]
        max_outstanding: usize,
        #[command(flatten)]
        target: Target,
    },
    /// A bare tonic server whose ModelInfer gives the tensors back; prints the address it listens on
    EchoServer {
        /// Where to listen; port 0 takes a free one
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// A gRPC server that answers every call with an empty message, such as a collector of traces does; prints the address it
    /// listens on
    Sink {
        /// Where to listen; port 0 takes a free one
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
}

#[derive(Args)]
struct Target {
    /// The server, as host:port
    addr: String,
    /// Connections
    #[arg(short = 'n', long, default_value_t = 1)]
    connections: usize,
    /// Seconds to measure
    #[arg(short, long, default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Seconds before that, at the same load
    #[arg(short, long, default_value = "2", value_parser = seconds)]
    warmup: Duration,
    /// Seconds after that to wait for requests still unanswered, which then count as UNFINISHED
    #[arg(long, default_value = "10", value_parser = seconds)]
    drain: Duration,
    /// The model to ask
    #[arg(short, long)]
    model: String,
    /// Its version or alias; empty: the server chooses
    #[arg(long, default_value = "")]
    version: String,
    /// The input to fill; without it, the first fitting one of the model's metadata
    #[arg(long)]
    input: Option<String>,
    #[command(flatten)]
    tensor: TensorArgs,
    /// Milliseconds that an answer may take, from the time its request was due: reports those in time, a second
    #[arg(long, value_name = "MS", value_parser = millis)]
    slo_ms: Option<Duration>,
    /// The same, but told to the server (grpc-timeout): what is left of it when the request is sent
    #[arg(long, value_name = "MS", value_parser = millis)]
    timeout_ms: Option<Duration>,
    /// Metadata of every request
    #[arg(long = "header", value_name = "KEY:VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Priority of every request, 1 the highest; 0 leaves it to the server
    #[arg(long, default_value_t = 0)]
    priority: u64,
    /// Different requests to prepare and send in turn
    #[arg(long, default_value_t = 256)]
    pool: usize,
    /// Fixes the requests' content and the gaps of --poisson
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Process id of a server on this machine: reports its CPU time a request and its memory
    #[arg(long)]
    server_pid: Option<u32>,
    /// Asks the server's ModelStatistics too: reports the mean batch size
    #[arg(long)]
    statistics: bool,
    /// Threads of the generator; without it, as many as there are cores to run on and connections
    #[arg(short, long)]
    threads: Option<usize>,
    /// One line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct TensorArgs {
    /// FP32 tensor of this shape
    #[arg(long, value_name = "ROWSxCOLS", value_parser = shape)]
    fp32: Option<(usize, usize)>,
    /// Sentence of about so many tokens, the two special ones included
    #[arg(long, value_name = "MIN[-MAX]")]
    text_tokens: Option<Lengths>,
    /// INT64 tensor [1, so many] of token ids, lengths differing from request to request
    #[arg(long, value_name = "MIN[-MAX]")]
    token_ids: Option<Lengths>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::EchoServer { listen } => echo::serve(listen).map(|()| true),
        Command::Sink { listen } => sink::serve(listen).map(|()| true),
        Command::Closed { concurrency, target } => run(target, Arrivals::Closed { concurrency }),
        Command::Open { rate, poisson, max_outstanding, target } => {
            let seed = poisson.then_some(target.seed);
            run(target, Arrivals::Open { rate, poisson_seed: seed, max_outstanding })
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether any request succeeded.
fn run(target: Target, arrivals: Arrivals) -> Result<bool> {
    let addr = target.addr.to_socket_addrs().ok().and_then(|mut addrs| addrs.next());
    let addr = addr.ok_or_else(|| format!("server address: expected host:port, got {:?}", target.addr))?;
    let cores = available_parallelism().map_or(1, usize::from);
    let kind = match (&target.tensor.fp32, target.tensor.text_tokens, target.tensor.token_ids) {
        (Some((rows, cols)), _, _) => Kind::Fp32 { rows: *rows, cols: *cols },
        (_, Some(lengths), _) => Kind::Text(lengths),
        (_, _, Some(lengths)) => Kind::TokenIds(lengths),
        (None, None, None) => return Err("one of --fp32, --text-tokens and --token-ids is required".into()),
    };
    let statistics = match target.statistics {
        true => Some(Statistics::connect(&target.addr, &target.model, &target.version)?),
        false => None,
    };
    let source = Source {
        model: target.model,
        version: target.version,
        input: target.input,
        kind,
        priority: target.priority,
        pool: target.pool,
        seed: target.seed,
    };
    let plan = Plan {
        addr,
        messages: source.messages(&target.addr)?,
        metadata: target.headers,
        terms: Terms { timeout: target.timeout_ms, slo: target.slo_ms },
        connections: target.connections.max(1),
        threads: target.threads.unwrap_or(cores).max(1),
        arrivals,
        warmup: target.warmup,
        duration: target.duration,
        drain: target.drain,
        server_pid: target.server_pid,
        statistics,
    };
    let results = load::run(&plan)?;
    if target.json {
        println!("{}", report::json(&plan, &results));
    } else {
        print!("{}", report::table(&plan, &results));
    }
    Ok(results.succeeded() > 0)
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected seconds".into())
}

fn millis(text: &str) -> Result<Duration, String> {
    let millis: f64 = text.parse().map_err(|_| "expected milliseconds")?;
    Duration::try_from_secs_f64(millis / 1e3).map_err(|_| "expected milliseconds".into())
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parts = text.split_once(':');
    let parsed = parts.and_then(|(key, value)| Some((key.parse().ok()?, value.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected KEY:VALUE, such as x-tenant-id:a".into())
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let sizes = text.split_once('x').and_then(|(rows, cols)| Some((rows.parse().ok()?, cols.parse().ok()?)));
    sizes.ok_or_else(|| "expected ROWSxCOLS, such as 1x16".into())
}
