//! `sconce`: a multi-model inference server, and the command line around it.
#![expect(clippy::print_stderr, reason = "a command line tells its failures there")]

/// `println!` for an output that its reader may close early (`sconce models | head`): an error, not a panic.
macro_rules! say {
    ($($text:tt)*) => { std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*))) };
}

mod demo;
mod infer;
mod models;
mod serve;
mod table;
mod validate;

use clap::{Parser, Subcommand};
use std::error::Error;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves models over gRPC with the Open Inference Protocol.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models until SIGTERM or SIGINT
    Serve(serve::Args),
    /// Serve two versions of a small real model, ask them about held-out data, and show what they said
    Demo(demo::Args),
    /// Ask a served model for one prediction
    Infer(infer::Args),
    /// List what a server serves, or show one model
    Models(models::Args),
    /// Say what the server would make of a model folder, and everything that is wrong with it
    Validate(validate::Args),
}

/// What a command ends with: the exit code, or an error that is told with its causes (exit code 1).
type Outcome = Result<ExitCode, Failure>;

/// Any error, on its way to be told.
type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Infer(args) => infer::run(args),
        Command::Models(args) => models::run(args),
        Command::Validate(args) => validate::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
        {
            // Whoever read the output has what they wanted.
            return ExitCode::SUCCESS;
        }
        eprintln!("sconce: {error}");
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        causes.for_each(|cause| eprintln!("  because: {cause}"));
        ExitCode::FAILURE
    })
}

/// A client command's runtime: one thread is enough to wait on one server.
fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
