//! What the scheduler makes of requests as they come, beside simpler policies, in virtual time: `sconce-simulator [--seed N] [--plots
//! DIR]`. The batcher and the arbiter are the real ones; a batch takes what it would take all-MiniLM-L6-v2 on one core, with noise.
//! A seed fixes what is printed.

#![expect(clippy::print_stdout, reason = "the tables go to standard output")]

#[path = "../lengths.rs"]
mod lengths;
mod measure;
mod plot;
mod policy;
mod simulation;
mod tables;
mod trace;

use clap::Parser;
use std::path::PathBuf;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about = "Scheduling policies in virtual time")]
struct Cli {
    /// Fixes the requests and the noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds of virtual time that are measured; a day is 60
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Where to draw simulator-goodput.svg and simulator-p99.svg
    #[arg(long)]
    plots: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Cli { seed, seconds, plots } = Cli::parse();
    let run = tables::Run { seed, seconds: f64::from(seconds.max(1)) };
    let (text, drawn) = run.load();
    print!("{text}{}{}{}{}", run.patterns(), run.isolation(), run.quanta(), run.many());
    if let Some(folder) = plots {
        for (name, svg) in drawn {
            std::fs::write(folder.join(name), svg)?;
        }
    }
    Ok(())
}
