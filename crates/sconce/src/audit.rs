use crate::control::{Control, PAGE};
use crate::registry::open;
use crate::table::plain;
use crate::{Failure, Outcome, block_on, records, table, text};
use sconce_client::control_proto as pb;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
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
        Command::List { model, after } => {
            block_on(list(&control, model.unwrap_or_default(), after)).unwrap_or_else(|e| Err(e.into()))
        }
        Command::Verify { data } => verify(&control, data),
    };
    control.end(done)
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

/// What was done to what: `set_alias champion → 2 (was 1) (forced)`, `set_wanted version 2: kept loaded (was auto)`.
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
    let value = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    text += &difference(&entry.action, &value(&entry.before_json), &value(&entry.after_json));
    if entry.forced { text + " (forced)" } else { text }
}

/// What an entry says of how it was before, and how it is now.
fn difference(action: &str, before: &Value, after: &Value) -> String {
    match (action, before, after) {
        ("set_alias" | "rollback" | "remove_alias", Value::Number(before), _) => format!(" (was {before})"),
        ("set_alias", Value::Null, _) => " (new)".to_owned(),
        ("set_wanted", Value::String(before), Value::String(after)) => {
            format!(": {} (was {})", kept(after), kept(before))
        }
        ("update_model" | "update_version", Value::Object(before), Value::Object(after)) => {
            let fields = after.iter().filter_map(|(field, after)| {
                let before = before.get(field).unwrap_or(&Value::Null);
                match (before, after) {
                    (before, after) if before == after => None,
                    (Value::Object(before), Value::Object(after)) if field != "gates" => {
                        Some(format!("{field} {}", entries(before, after)))
                    }
                    _ => Some(field.clone()),
                }
            });
            let fields = fields.collect::<Vec<_>>().join(", ");
            if fields.is_empty() { ": nothing new".to_owned() } else { format!(": {fields}") }
        }
        _ => String::new(),
    }
}

fn kept(wanted: &str) -> &str {
    match wanted {
        "loaded" => "kept loaded",
        "unloaded" => "kept unloaded",
        other => other,
    }
}

/// `auc=0.93 (was 0.91) -team` of tags, metrics and the like.
fn entries(before: &Map<String, Value>, after: &Map<String, Value>) -> String {
    let show = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = keys.into_iter().filter_map(|key| match (before.get(key), after.get(key)) {
        (before, after) if before == after => None,
        (Some(before), Some(after)) => Some(format!("{key}={} (was {})", show(after), show(before))),
        (None, Some(after)) => Some(format!("{key}={}", show(after))),
        (_, None) => Some(format!("-{key}")),
    });
    changed.collect::<Vec<_>>().join(" ")
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
        let mark = if is_intact { "✓ the chain holds" } else { "✗ not to be relied on" };
        say!("{mark}: {entries} audit entries in order, the last with hash {head}")?;
    }
    Ok(if is_intact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_changed() {
        let said = |action: &str, before: Value, after: Value| difference(action, &before, &after);
        assert_eq!(said("set_wanted", json!("auto"), json!("loaded")), ": kept loaded (was auto)");
        assert_eq!(said("set_alias", json!(1), json!(2)), " (was 1)");
        assert_eq!(said("set_alias", Value::Null, json!(2)), " (new)");
        assert_eq!(said("remove_alias", json!(2), Value::Null), " (was 2)");
        let before =
            json!({ "description": "a", "tags": { "team": "x", "kind": "mlp" }, "metrics": { "auc": 0.91 } });
        let after =
            json!({ "description": "b", "tags": { "kind": "mlp", "new": "y" }, "metrics": { "auc": 0.93 } });
        let expected = ": description, metrics auc=0.93 (was 0.91), tags new=y -team";
        assert_eq!(said("update_version", before.clone(), after), expected);
        assert_eq!(said("update_version", before.clone(), before), ": nothing new");
        assert_eq!(
            said("update_model", json!({ "gates": {} }), json!({ "gates": { "smoke": [] } })),
            ": gates"
        );
        assert_eq!(said("register", Value::Null, json!({ "files": 2 })), "");
    }
}
