use crate::control::{Control, PAGE};
use crate::registry::open;
use crate::table::plain;
use crate::{Failure, Outcome, block_on, records, table, text};
use sconce_client::control_proto as pb;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List changes, oldest first
    List {
        /// Only those of this model
        model: Option<String>,
        /// Begin behind this entry
        #[arg(long, default_value_t = 0, value_name = "SEQ")]
        after: u64,
    },
    /// Recompute the chain of hashes; exit code 1 when it is broken
    Verify {
        /// Data folder of a server that does not run, instead of asking one that does
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = match command {
        Command::List { model, after } => block_on(list(&control, model.unwrap_or_default(), after))?,
        Command::Verify { data } => verify(&control, data),
    };
    done.map_err(|error| control.explain(error))
}

async fn list(control: &Control, model: String, after: u64) -> Outcome {
    let client = control.connect().await?;
    let mut request = pb::ListAuditRequest { after, page_size: PAGE, model };
    loop {
        let page = client.list_audit(request.clone()).await?;
        if control.json {
            page.entries.iter().try_for_each(|entry| say!("{}", records::entry(entry)))?;
        } else if !page.entries.is_empty() {
            let rows: Vec<_> = page.entries.iter().map(row).collect();
            let header = ["seq", "time (UTC)", "actor", "model", "change", "reason"];
            say!("{}", table::render(&header, &rows).trim_end())?;
        }
        if page.next_after == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        request.after = page.next_after;
    }
}

fn row(entry: &pb::AuditEntry) -> Vec<String> {
    vec![
        entry.seq.to_string(),
        text::time(entry.at_ms),
        entry.actor.clone(),
        entry.model.clone(),
        change(entry),
        entry.reason.clone(),
    ]
}

/// What was done to what: `set_alias champion → 2 (forced)`.
fn change(entry: &pb::AuditEntry) -> String {
    let mut text = entry.action.clone();
    match (entry.alias.as_str(), entry.version) {
        ("", 0) => {}
        ("", version) => text += &format!(" version {version}"),
        (alias, 0) => text += &format!(" {alias}"),
        (alias, version) => text += &format!(" {alias} → {version}"),
    }
    if !entry.document.is_empty() {
        text += &format!(" {}", entry.document);
    }
    if entry.forced { text + " (forced)" } else { text }
}

/// Prints entries as they come. That the server ends them is a failure: who watches wants to know.
pub(crate) async fn watch(control: &Control, request: pb::WatchRequest) -> Outcome {
    let mut entries = control.connect().await?.watch(request).await?;
    while let Some(entry) = entries.next().await? {
        if control.json {
            say!("{}", records::entry(&entry))?;
            continue;
        }
        let reason = if entry.reason.is_empty() { String::new() } else { format!(": {}", entry.reason) };
        let line = format!("{} {} by {}{reason}", entry.model, change(&entry), entry.actor);
        say!("{} {} {}", entry.seq, text::time(entry.at_ms), plain(&line))?;
    }
    Err("the server stopped".into())
}

fn verify(control: &Control, data: Option<PathBuf>) -> Outcome {
    let (entries, head, problems) = match data {
        Some(dir) => {
            let report = open(&dir)?.verify_audit()?;
            (report.entries, report.head.to_string(), report.problem.into_iter().collect())
        }
        None => {
            let verify = async { Ok::<_, Failure>(control.connect().await?.verify_audit().await?) };
            let report = block_on(verify)??;
            (report.entries, report.head, report.problems)
        }
    };
    let is_intact = problems.is_empty();
    let document = || json!({ "intact": is_intact, "entries": entries, "head": head, "problems": problems });
    if !control.print_json(document)? {
        problems.iter().try_for_each(|problem| say!("✗ {}", plain(problem)))?;
        let mark = if is_intact { "✓ the chain holds" } else { "✗ the chain is broken" };
        say!("{mark}: {entries} audit entries in order, the last with hash {head}")?;
    }
    Ok(if is_intact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
