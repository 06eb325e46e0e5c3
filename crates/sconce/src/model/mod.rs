//! `sconce model`: versions of models, from their registration to their end.

mod change;
mod push;
mod show;

use crate::control::{Control, metric, pair};
use crate::{Failure, Outcome, block_on};
use sconce_client::control_proto as pb;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

/// A VERSION is a number, a label or an alias.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Register a version: upload a folder, or let the server fetch hf://, s3://, gs://, az://
    #[command(override_usage = "sconce model push [OPTIONS] [MODEL] <SOURCE>")]
    Push(push::Push),
    /// List models, or one model's versions
    List(show::List),
    /// Show a model, or one version of it
    Show {
        /// The model's name
        model: String,
        /// A number, a label or an alias
        version: Option<String>,
    },
    /// Show what differs between two versions
    Diff {
        /// The model's name
        model: String,
        /// A number, a label or an alias
        a: String,
        /// A number, a label or an alias
        b: String,
    },
    /// Point an alias at a version, once it is in memory and passes the model's gates
    Promote(change::Promote),
    /// Point an alias at what it pointed to before
    Rollback {
        /// The model's name
        model: String,
        #[arg(default_value = "champion")]
        alias: String,
        /// How many changes to go back
        #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        steps: u32,
        #[command(flatten)]
        why: Why,
    },
    /// Remove an alias
    Unalias {
        /// The model's name
        model: String,
        alias: String,
        #[command(flatten)]
        why: Why,
    },
    /// Keep a version in memory, whatever points at it
    Load(Which),
    /// Keep a version out of memory
    Unload(Which),
    /// Let a version be in memory while an alias points at it or somebody asks for it
    Auto(Which),
    /// Take a version out of service, keeping its record and files
    Archive {
        #[command(flatten)]
        which: Which,
        /// Take it back into service
        #[arg(long)]
        undo: bool,
    },
    /// Delete a version, or a model with all its versions; refused while an alias points at one
    Rm {
        /// The model's name
        model: String,
        /// A number, a label or an alias; the whole model when not given
        version: Option<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        why: Why,
    },
    /// Delete files that no version has any more
    Gc {
        /// Only say what would be deleted
        #[arg(long)]
        dry_run: bool,
    },
    /// Print changes as they come, until interrupted
    Watch {
        /// Only those of this model
        model: Option<String>,
        /// Begin behind this entry of the audit trail; 0 is all of it [default: only what comes from now on]
        #[arg(long, value_name = "SEQ")]
        after: Option<u64>,
    },
    /// Show what a version must meet before an alias may point at it, or set it
    Gates {
        /// The model's name
        model: String,
        /// Replace the gates by those in this file, in the form in which they are shown; - is the standard input
        #[arg(long, value_name = "FILE")]
        set: Option<PathBuf>,
        #[command(flatten)]
        why: Why,
    },
    /// Set what is said of a model, or of one version
    Describe(change::Describe),
}

/// A version to change.
#[derive(Debug, clap::Args)]
struct Which {
    /// The model's name
    model: String,
    /// A number, a label or an alias
    version: String,
    #[command(flatten)]
    why: Why,
}

#[derive(Debug, clap::Args)]
struct Why {
    /// Why, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

/// What is said of a version.
#[derive(Debug, clap::Args)]
struct Said {
    /// A tag; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = pair)]
    tags: Vec<(String, String)>,
    /// A metric of evaluation, such as accuracy=0.95; may be given several times
    #[arg(long = "metric", value_name = "NAME=NUMBER", value_parser = metric)]
    metrics: Vec<(String, f64)>,
    /// A monitor and what it refers to, such as drift=reference-2; may be given several times
    #[arg(long = "monitor", value_name = "NAME=REFERENCE", value_parser = pair)]
    monitors: Vec<(String, String)>,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = block_on(dispatch(&control, command)).unwrap_or_else(|e| Err(e.into()));
    control.end(done)
}

async fn dispatch(control: &Control, command: Command) -> Outcome {
    match command {
        Command::Push(push) => push::run(control, push).await,
        Command::List(list) => show::list(control, list).await,
        Command::Show { model, version } => show::show(control, model, version).await,
        Command::Diff { model, a, b } => show::diff(control, model, a, b).await,
        Command::Promote(promote) => change::promote(control, promote).await,
        Command::Rollback { model, alias, steps, why } => {
            change::rollback(control, pb::RollbackRequest { model, alias, steps, reason: why.reason }).await
        }
        Command::Unalias { model, alias, why } => {
            change::unalias(control, pb::RemoveAliasRequest { model, alias, reason: why.reason }).await
        }
        Command::Load(which) => change::set_wanted(control, which, pb::Wanted::Loaded).await,
        Command::Unload(which) => change::set_wanted(control, which, pb::Wanted::Unloaded).await,
        Command::Auto(which) => change::set_wanted(control, which, pb::Wanted::Auto).await,
        Command::Archive { which, undo } => change::archive(control, which, undo).await,
        Command::Rm { model, version, yes, why } => {
            let version = version.unwrap_or_default();
            change::delete(control, pb::DeleteRequest { model, version, reason: why.reason }, yes).await
        }
        Command::Gc { dry_run } => change::collect_garbage(control, dry_run).await,
        Command::Watch { model, after } => {
            let model = model.unwrap_or_default();
            crate::audit::watch(control, pb::WatchRequest { model, after }).await
        }
        Command::Gates { model, set, why } => change::gates(control, model, set, why.reason).await,
        Command::Describe(describe) => change::describe(control, describe).await,
    }
}

/// A folder, its `.`, `..` and links resolved.
fn absolute(folder: &str) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(folder).map_err(|e| format!("cannot open folder {folder}: {e}").into())
}
