use crate::control::{self, Control, pair};
use crate::table::plain;
use crate::{Failure, Outcome, records, table, text};
use sconce_client::control_proto as pb;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// List this model's versions
    model: Option<String>,
    /// Only models whose name contains this
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "TEXT",
        conflicts_with = "model"
    )]
    name_contains: String,
    /// Only what has this tag; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = pair)]
    tags: Vec<(String, String)>,
}

pub(super) async fn list(control: &Control, list: List) -> Outcome {
    let client = control.connect().await?;
    let tags: Vec<String> = list.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
    match &list.model {
        None => {
            let models = control::models(&client, &list.name_contains, &tags).await?;
            let document = || json!({ "models": models.iter().map(records::model).collect::<Vec<_>>() });
            if !control.print_json(document)? {
                if models.is_empty() && !(list.name_contains.is_empty() && tags.is_empty()) {
                    say!("no model has that name and those tags")?;
                } else {
                    print_models(&models)?;
                }
            }
        }
        Some(model) => {
            let versions = control::versions(&client, model, &tags).await?;
            let document =
                || json!({ "versions": versions.iter().map(records::version).collect::<Vec<_>>() });
            if !control.print_json(document)? {
                print_versions(&versions)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_models(models: &[pb::Model]) -> Result<(), Failure> {
    if models.is_empty() {
        say!("no models; `sconce model push MODEL FOLDER` registers one")?;
        return Ok(());
    }
    let rows: Vec<_> = models
        .iter()
        .map(|model| {
            let aliases = model.aliases.iter().map(|(name, alias)| format!("{name} → {}", alias.version));
            let aliases = aliases.collect::<Vec<_>>().join(", ");
            let highest = model.highest_version.to_string();
            vec![model.name.clone(), highest, aliases, pairs(&model.tags), text::time(model.created_at_ms)]
        })
        .collect();
    print_table(&["model", "highest", "aliases", "tags", "created (UTC)"], &rows)
}

fn print_versions(versions: &[pb::Version]) -> Result<(), Failure> {
    if versions.is_empty() {
        say!("no versions")?;
        return Ok(());
    }
    let rows: Vec<_> = versions
        .iter()
        .map(|version| {
            vec![
                version.version.to_string(),
                state(version),
                version.aliases.join(", "),
                version.label.clone(),
                text::bytes(size(version)),
                numbers(&version.metrics),
                text::time(version.created_at_ms),
                version.created_by.clone(),
            ]
        })
        .collect();
    let header = ["version", "state", "aliases", "label", "size", "metrics", "created (UTC)", "by"];
    print_table(&header, &rows)
}

pub(super) async fn show(control: &Control, model: String, version: Option<String>) -> Outcome {
    let client = control.connect().await?;
    if let Some(version) = version {
        let version = client.get_version(pb::GetVersionRequest { model, version }).await?;
        if !control.print_json(|| records::version(&version))? {
            print_version(&version)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let record = client.get_model(pb::GetModelRequest { model: model.clone() }).await?;
    let versions = control::versions(&client, &model, &[]).await?;
    let document = || {
        let mut document = records::model(&record);
        document["versions"] = versions.iter().map(records::version).collect();
        document
    };
    if control.print_json(document)? {
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{}: {}",
        record.name,
        if record.description.is_empty() { "no description" } else { &record.description }
    )?;
    field("tags", pairs(&record.tags))?;
    if record.unloaded {
        field(
            "unloaded",
            "as a whole, until RepositoryModelLoad or `sconce model load` of a version".to_owned(),
        )?;
    }
    for (name, alias) in &record.aliases {
        let before = alias.previous.iter().rev().take(5).map(u64::to_string).collect::<Vec<_>>().join(", ");
        let before = if before.is_empty() { String::new() } else { format!(" (before: {before})") };
        field("alias", format!("{name} → version {}{before}", alias.version))?;
    }
    field("gates", gates(record.gates.unwrap_or_default()))?;
    say!("")?;
    print_versions(&versions)?;
    Ok(ExitCode::SUCCESS)
}

/// What a version must meet, in short; `sconce model gates` has it all.
fn gates(gates: pb::Gates) -> String {
    let bound = |words: &'static str| move |(name, bound): (String, f64)| format!("{name} {words} {bound}");
    let not_worse = |(name, rule): (String, pb::NotWorse)| {
        let better = if rule.lower_is_better { " (lower is better)" } else { "" };
        format!("{name} not worse by more than {}{better}", rule.by_at_most)
    };
    let samples = gates.smoke.len() as u64;
    let smoke = (samples > 0).then(|| format!("{} answered", text::count(samples, "smoke sample")));
    let all = gates.min_metrics.into_iter().map(bound("at least"));
    let all = all.chain(gates.max_metrics.into_iter().map(bound("at most")));
    let all = all.chain(gates.not_worse.into_iter().map(not_worse)).chain(smoke);
    all.chain(gates.any_signature.then(|| "any signature".to_owned())).collect::<Vec<_>>().join(", ")
}

/// A line of what is known of something; none where nothing is known.
fn field(name: &str, value: String) -> Result<(), Failure> {
    if !value.is_empty() {
        say!("  {name}: {}", plain(&value))?;
    }
    Ok(())
}

fn print_version(version: &pb::Version) -> Result<(), Failure> {
    let lineage = version.lineage.clone().unwrap_or_default();
    say!("{} version {}: {}", version.model, version.version, state(version))?;
    field("why", version.state_reason.clone())?;
    field("aliases", version.aliases.join(", "))?;
    field("label", version.label.clone())?;
    field("description", version.description.clone())?;
    field("metrics", numbers(&version.metrics))?;
    field("tags", pairs(&version.tags))?;
    field("monitors", pairs(&version.monitors))?;
    field("registered", format!("{} UTC by {}", text::time(version.created_at_ms), version.created_by))?;
    field(
        "made from",
        if lineage.parent == 0 { String::new() } else { format!("version {}", lineage.parent) },
    )?;
    field("training data", lineage.training_data)?;
    field("trained by", lineage.trained_by)?;
    field("trained at", lineage.trained_at)?;
    field("source", lineage.source)?;
    field(
        "memory",
        if version.memory_bytes == 0 { String::new() } else { text::bytes(version.memory_bytes) },
    )?;
    let signature = version.signature.clone().unwrap_or_default();
    let inputs = signature.inputs.iter().map(|spec| {
        let form = if spec.form > 0 { format!("input, form {}", spec.form + 1) } else { "input".to_owned() };
        (if spec.optional { form + " (optional)" } else { form }, spec)
    });
    let outputs = signature.outputs.iter().map(|spec| ("output".to_owned(), spec));
    let rows: Vec<_> = inputs
        .chain(outputs)
        .map(|(kind, spec)| vec![kind, spec.name.clone(), spec.datatype.clone(), format!("{:?}", spec.shape)])
        .collect();
    say!("")?;
    print_table(&["", "name", "datatype", "shape"], &rows)?;
    say!("")?;
    let rows: Vec<_> = version
        .files
        .iter()
        .map(|file| vec![file.path.clone(), text::bytes(file.bytes), file.digest.clone()])
        .collect();
    print_table(&["file", "size", "BLAKE3"], &rows)
}

pub(super) async fn diff(control: &Control, model: String, a: String, b: String) -> Outcome {
    let client = control.connect().await?;
    let get = |version| client.get_version(pb::GetVersionRequest { model: model.clone(), version });
    let (a, b) = (get(a).await?, get(b).await?);
    let rows = differences(&a, &b);
    let document = || {
        let row =
            |row: &Difference| json!({ "what": row.what, "a": row.a, "b": row.b, "change": row.change });
        json!({ "model": model, "a": a.version, "b": b.version, "differences": rows.iter().map(row).collect::<Vec<_>>() })
    };
    if control.print_json(document)? {
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        say!("{model}: versions {} and {} do not differ", a.version, b.version)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let change = row.change.map_or(String::new(), |change| format!("{change:+}"));
            let of = |value: &Value| match value.as_u64() {
                Some(size) if row.what == "size" => text::bytes(size),
                _ => cell(value),
            };
            vec![row.what.clone(), of(&row.a), of(&row.b), change]
        })
        .collect();
    let (a, b) = (format!("version {}", a.version), format!("version {}", b.version));
    print_table(&["", &a, &b, "change"], &cells)?;
    Ok(ExitCode::SUCCESS)
}

/// One thing that two versions do not have in common; null is what one does not have.
#[derive(Debug)]
struct Difference {
    what: String,
    a: Value,
    b: Value,
    /// What was added, of a number.
    change: Option<f64>,
}

fn differences(a: &pb::Version, b: &pb::Version) -> Vec<Difference> {
    let mut rows = Vec::new();
    let mut compare = |what: String, a: Value, b: Value| {
        if a != b {
            let change = a.as_f64().zip(b.as_f64()).map(|(a, b)| round(b - a));
            rows.push(Difference { what, a, b, change });
        }
    };
    let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    for name in keys(&a.metrics, &b.metrics) {
        compare(format!("metric {name}"), json!(a.metrics.get(&name)), json!(b.metrics.get(&name)));
    }
    let tensors = |version: &pb::Version| -> BTreeMap<String, pb::TensorSpec> {
        let signature = version.signature.clone().unwrap_or_default();
        let inputs = signature.inputs.into_iter().map(|spec| (format!("input {}", spec.name), spec));
        let outputs = signature.outputs.into_iter().map(|spec| (format!("output {}", spec.name), spec));
        inputs.chain(outputs).collect()
    };
    let (a_tensors, b_tensors) = (tensors(a), tensors(b));
    for name in keys(&a_tensors, &b_tensors) {
        let of = |tensors: &BTreeMap<String, pb::TensorSpec>| tensors.get(&name).map_or(Value::Null, spec);
        compare(name.clone(), of(&a_tensors), of(&b_tensors));
    }
    let rows_of =
        |version: &pb::Version| version.signature.as_ref().map_or(0, |signature| signature.max_batch_size);
    compare("max_batch_size".into(), rows_of(a).into(), rows_of(b).into());
    let files = |version: &pb::Version| -> BTreeMap<String, String> {
        version.files.iter().map(|file| (file.path.clone(), file.digest.chars().take(12).collect())).collect()
    };
    let (a_files, b_files) = (files(a), files(b));
    for path in keys(&a_files, &b_files) {
        compare(format!("file {path}"), json!(a_files.get(&path)), json!(b_files.get(&path)));
    }
    compare("size".into(), size(a).into(), size(b).into());
    for key in keys(&a.tags, &b.tags) {
        compare(format!("tag {key}"), json!(a.tags.get(&key)), json!(b.tags.get(&key)));
    }
    for name in keys(&a.monitors, &b.monitors) {
        compare(format!("monitor {name}"), json!(a.monitors.get(&name)), json!(b.monitors.get(&name)));
    }
    let lineage = |version: &pb::Version| version.lineage.clone().unwrap_or_default();
    let (from, to) = (lineage(a), lineage(b));
    let parent = |lineage: &pb::Lineage| match lineage.parent {
        0 => Value::Null,
        parent => format!("version {parent}").into(),
    };
    compare("made from".into(), parent(&from), parent(&to));
    for (what, a, b) in [
        ("training data", &from.training_data, &to.training_data),
        ("trained by", &from.trained_by, &to.trained_by),
        ("trained at", &from.trained_at, &to.trained_at),
        ("source", &from.source, &to.source),
    ] {
        compare(what.into(), text(a), text(b));
    }
    compare("aliases".into(), text(&a.aliases.join(", ")), text(&b.aliases.join(", ")));
    compare("label".into(), text(&a.label), text(&b.label));
    compare("description".into(), text(&a.description), text(&b.description));
    compare("state".into(), records::state(a).into(), records::state(b).into());
    rows
}

/// Without the last digits that only come of the subtraction.
fn round(change: f64) -> f64 {
    format!("{change:.9}").parse().unwrap_or(change)
}

fn keys<T>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> BTreeSet<String> {
    a.keys().chain(b.keys()).cloned().collect()
}

fn spec(spec: &pb::TensorSpec) -> Value {
    let optional = if spec.optional { " optional" } else { "" };
    format!("{} {:?}{optional}", spec.datatype, spec.shape).into()
}

/// The longest text in a cell of a comparison.
const CELL_CHARS: usize = 40;

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) if text.chars().count() > CELL_CHARS => {
            text.chars().take(CELL_CHARS - 1).chain(['…']).collect()
        }
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The state, and what it should be where somebody said so.
fn state(version: &pb::Version) -> String {
    let wanted = match version.wanted() {
        pb::Wanted::Loaded => " (kept loaded)",
        pb::Wanted::Unloaded => " (kept unloaded)",
        _ => "",
    };
    format!("{}{wanted}", records::state(version))
}

fn size(version: &pb::Version) -> u64 {
    version.files.iter().map(|file| file.bytes).sum()
}

fn pairs(pairs: &BTreeMap<String, String>) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

fn numbers(metrics: &BTreeMap<String, f64>) -> String {
    metrics.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

fn print_table(header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    say!("{}", table::render(header, rows).trim_end())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_a_difference() {
        let a = pb::Version {
            version: 1,
            metrics: [("auc".to_owned(), 0.9), ("same".to_owned(), 1.0)].into(),
            files: vec![pb::File { path: "w".into(), digest: "ab".into(), bytes: 10 }],
            ..Default::default()
        };
        assert!(differences(&a, &pb::Version { version: 2, ..a.clone() }).is_empty());
        let mut b = a.clone();
        b.aliases = vec!["champion".into()];
        b.lineage = Some(pb::Lineage { parent: 1, training_data: "march".into(), ..Default::default() });
        b.metrics = [("auc".to_owned(), 0.95), ("same".to_owned(), 1.0), ("new".to_owned(), 2.0)].into();
        b.files = vec![pb::File { path: "w".into(), digest: "cd".into(), bytes: 10 }];
        let found: Vec<_> = differences(&a, &b).into_iter().map(|row| (row.what, row.change)).collect();
        let expected = [
            ("metric auc", Some(0.05)),
            ("metric new", None),
            ("file w", None),
            ("made from", None),
            ("training data", None),
            ("aliases", None),
        ];
        assert_eq!(found, expected.map(|(what, change)| (what.to_owned(), change)));
    }
}
