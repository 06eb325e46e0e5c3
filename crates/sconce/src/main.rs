//! `sconce`: a multi-model inference server, and the command line around it.
#![expect(clippy::print_stderr, reason = "a command line tells its failures there")]

/// `println!` for an output that its reader may close early (`sconce models | head`): an error, not a panic.
macro_rules! say {
    ($($text:tt)*) => { std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*))) };
}

mod audit;
mod control;
mod demo;
mod drift;
mod experiment;
mod feedback;
mod health;
mod infer;
mod model;
mod models;
mod monitor;
mod progress;
mod records;
mod registry;
mod replay;
mod report;
mod review;
mod rollout;
mod serve;
mod shadow;
mod table;
mod text;
mod traffic;
mod validate;

use clap::{CommandFactory as _, Parser, Subcommand};
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
    /// Register, list, promote, roll back and retire models of a running server
    Model(model::Args),
    /// Say which versions of a model answer which requests of a running server
    Traffic(traffic::Args),
    /// Send recorded requests once more, and compare the answers
    Replay(replay::Args),
    /// Let a version see a model's requests without answering any, and say how it compares
    Shadow(shadow::Args),
    /// Move a model's traffic to a candidate, stage by stage, while the evidence holds
    Rollout(rollout::Args),
    /// Find out which variant of a model does better by what its users do
    Experiment(experiment::Args),
    /// Record what turned out to be true of predictions, and list it beside them
    Feedback(feedback::Args),
    /// Decide what models leave to people
    Review(review::Args),
    /// Say how a running server and its models are, and what somebody should look at
    Health(health::Args),
    /// Watch what versions of models see and say, held against a reference
    Monitor(monitor::Args),
    /// Say whether data, or what a served model sees, is what it was
    Drift {
        #[command(subcommand)]
        command: drift::Drifts,
    },
    /// Read and verify the trail of changes
    Audit(audit::Args),
    /// Check, back up, restore or export a whole registry
    Registry(registry::Args),
    /// Say what the server would make of a model folder, and everything that is wrong with it
    Validate(validate::Args),
    /// Print a completion script, such as for `source <(sconce completions bash)`
    Completions {
        /// The shell that will read it
        shell: clap_complete::Shell,
    },
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
        Command::Model(args) => model::run(args),
        Command::Traffic(args) => traffic::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Shadow(args) => shadow::run(args),
        Command::Rollout(args) => rollout::run(args),
        Command::Experiment(args) => experiment::run(args),
        Command::Feedback(args) => feedback::run(args),
        Command::Review(args) => review::run(args),
        Command::Health(args) => health::run(args),
        Command::Monitor(args) => monitor::run(args),
        Command::Drift { command } => {
            let said = match command {
                drift::Drifts::Compare(args) => drift::compare(&args),
                drift::Drifts::Report(args) => monitor::report(args),
            };
            // 1 says that something has drifted.
            said.or_else(|error| Ok(tell(error, ExitCode::from(2))))
        }
        Command::Audit(args) => audit::run(args),
        Command::Registry(args) => registry::run(args),
        Command::Validate(args) => validate::run(&args),
        Command::Completions { shell } => completions(shell),
    };
    outcome.unwrap_or_else(|error| tell(error, ExitCode::FAILURE))
}

/// Tells an error with its causes, and ends with `code`.
fn tell(error: Failure, code: ExitCode) -> ExitCode {
    let first: &(dyn Error + 'static) = error.as_ref();
    let chain = || std::iter::successors(Some(first), |&cause| cause.source());
    let is_closed_pipe = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    if chain().filter_map(|cause| cause.downcast_ref()).any(is_closed_pipe) {
        // Whoever read the output has what they wanted.
        return ExitCode::SUCCESS;
    }
    eprintln!("sconce: {error}");
    chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
    code
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    // The generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sconce", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(ExitCode::SUCCESS)
}

/// A client command's runtime: one thread is enough to wait on one server.
fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
