use super::{Said, Which, Why};
use crate::control::{Control, Told};
use crate::{Failure, Outcome, records, text};
use sconce_client::{RegistryClient, control_proto as pb};
use sconce_core::ErrorCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Promote {
    /// The model's name
    model: String,
    /// A number, a label or another alias
    version: String,
    #[arg(default_value = "champion")]
    alias: String,
    /// Although gates fail; needs --reason, and is audited as forced
    #[arg(long, requires = "reason")]
    force: bool,
    /// Only if the alias points at this version now; 0: only if there is no such alias
    #[arg(long, value_name = "N")]
    expected: Option<u64>,
    #[command(flatten)]
    why: Why,
}

#[derive(Debug, clap::Args)]
pub(super) struct Describe {
    /// The model's name
    model: String,
    /// A number, a label or an alias; the model itself when not given
    version: Option<String>,
    /// What it is
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Tags, metrics and monitors are added to those there are
    #[command(flatten)]
    said: Said,
    /// A tag to remove; may be given several times
    #[arg(long = "untag", value_name = "KEY")]
    untags: Vec<String>,
    /// A metric to remove; may be given several times
    #[arg(long = "unmetric", value_name = "NAME")]
    unmetrics: Vec<String>,
    #[command(flatten)]
    why: Why,
}

/// The most bytes of a file of gates: more than the registry keeps of them.
const GATES_BYTES: u64 = 1 << 20;

pub(super) async fn promote(control: &Control, promote: Promote) -> Outcome {
    let client = control.connect().await?;
    let Promote { model, version, alias, force, expected, why } = promote;
    let request = pb::PromoteRequest { model, version, alias, reason: why.reason, force, expected };
    let document = promote_one(control, &client, request).await?;
    control.print_json(|| document)?;
    Ok(ExitCode::SUCCESS)
}

/// Promotes, tells people, and gives what machines are told.
pub(super) async fn promote_one(
    control: &Control,
    client: &RegistryClient,
    request: pb::PromoteRequest,
) -> Result<Value, Failure> {
    let (model, alias) = (request.model.clone(), request.alias.clone());
    let done = client.promote(request).await?;
    if !control.json {
        for gate in &done.gates {
            let mark = if gate.passed { "✓" } else { "✗" };
            say!("  {mark} {}: {}", gate.gate, gate.detail)?;
        }
        tell_alias(&model, &alias, done.version, done.previous)?;
    }
    Ok(json!({
        "model": model,
        "alias": alias,
        "version": done.version,
        "previous": (done.previous != 0).then_some(done.previous),
        "generation": done.generation,
        "gates": done.gates.iter().map(records::gate).collect::<Vec<_>>(),
    }))
}

fn tell_alias(model: &str, alias: &str, version: u64, previous: u64) -> Result<(), Failure> {
    let before = match previous {
        0 => "new".to_owned(),
        previous if previous == version => "as it was".to_owned(),
        previous => format!("was {previous}"),
    };
    say!("{model}: {alias} → version {version} ({before})")?;
    Ok(())
}

pub(super) async fn rollback(control: &Control, request: pb::RollbackRequest) -> Outcome {
    let (model, alias) = (request.model.clone(), request.alias.clone());
    let done = control.connect().await?.rollback(request).await?;
    let document = || {
        json!({
            "model": model, "alias": alias, "version": done.version, "previous": done.previous,
            "generation": done.generation,
        })
    };
    if !control.print_json(document)? {
        tell_alias(&model, &alias, done.version, done.previous)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn unalias(control: &Control, request: pb::RemoveAliasRequest) -> Outcome {
    let (model, alias) = (request.model.clone(), request.alias.clone());
    let done = control.connect().await?.remove_alias(request).await?;
    let document = || json!({ "model": model, "alias": alias, "generation": done.generation });
    if !control.print_json(document)? {
        say!("{model}: {alias} points at nothing any more")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn set_wanted(control: &Control, which: Which, wanted: pb::Wanted) -> Outcome {
    let Which { model, version, why } = which;
    let request = pb::SetWantedRequest { model, version, wanted: wanted.into(), reason: why.reason };
    let version = control.connect().await?.set_wanted(request).await?;
    tell_version(control, &version)
}

pub(super) async fn archive(control: &Control, which: Which, undo: bool) -> Outcome {
    let Which { model, version, why } = which;
    let request = pb::ArchiveRequest { model, version, reason: why.reason, undo };
    let version = control.connect().await?.archive(request).await?;
    tell_version(control, &version)
}

fn tell_version(control: &Control, version: &pb::Version) -> Outcome {
    if !control.print_json(|| records::version(version))? {
        let wanted = match version.wanted() {
            pb::Wanted::Loaded => ", kept loaded",
            pb::Wanted::Unloaded => ", kept unloaded",
            _ => "",
        };
        say!("{} version {}: {}{wanted}", version.model, version.version, records::state(version))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn delete(control: &Control, request: pb::DeleteRequest, yes: bool) -> Outcome {
    let what = match request.version.as_str() {
        "" => format!("{} with all its versions", request.model),
        version => format!("{} version {version}", request.model),
    };
    if !yes {
        if !std::io::stdin().is_terminal() {
            let message = format!("deleting {what}: there is no terminal to ask at, so it needs --yes");
            return Err(Told::usage(message).into());
        }
        write!(std::io::stderr(), "Delete {what}? Nothing brings it back. [y/N] ")?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err("nothing deleted".into());
        }
    }
    let client = control.connect().await?;
    let cut = aliases_before(&client, &request).await?;
    let model = request.model.clone();
    let done = client.delete(request).await?;
    let document = || json!({ "model": model, "versions": done.versions, "no_way_back_for": cut });
    if !control.print_json(document)? {
        say!("deleted {what}; `sconce model gc` frees the space of its files")?;
        cut.iter().try_for_each(|alias| say!("  alias {alias} cannot go back to it any more"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Aliases that pointed at a version before.
async fn aliases_before(
    client: &RegistryClient,
    request: &pb::DeleteRequest,
) -> Result<Vec<String>, Failure> {
    if request.version.is_empty() {
        return Ok(Vec::new());
    }
    let (model, version) = (request.model.clone(), request.version.clone());
    let number = client.get_version(pb::GetVersionRequest { model: model.clone(), version }).await?.version;
    let aliases = client.get_model(pb::GetModelRequest { model }).await?.aliases;
    let before = aliases.into_iter().filter(|(_, alias)| alias.previous.contains(&number));
    Ok(before.map(|(name, _)| name).collect())
}

pub(super) async fn collect_garbage(control: &Control, dry_run: bool) -> Outcome {
    let request = pb::CollectGarbageRequest { dry_run };
    let done = control.connect().await?.collect_garbage(request).await?;
    let document = || json!({ "dry_run": dry_run, "files": done.files, "bytes": done.bytes });
    if !control.print_json(document)? {
        let verb = if dry_run { "would delete" } else { "deleted" };
        say!("{verb} {}, {}", text::count(done.files, "file"), text::bytes(done.bytes))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn gates(control: &Control, model: String, set: Option<PathBuf>, reason: String) -> Outcome {
    // Read before the server is asked: a bad file changes nothing.
    let gates = set.as_deref().map(read_gates).transpose()?;
    let client = control.connect().await?;
    let record = match gates {
        Some(gates) => {
            let request = pb::UpdateModelRequest { model, gates: Some(gates), reason, ..Default::default() };
            client.update_model(request).await?
        }
        None => client.get_model(pb::GetModelRequest { model }).await?,
    };
    // The form in which a file says them is as good for people.
    let gates = records::GatesFile::from(record.gates.unwrap_or_default());
    say!("{}", serde_json::to_string_pretty(&gates)?)?;
    Ok(ExitCode::SUCCESS)
}

fn read_gates(path: &Path) -> Result<pb::Gates, Failure> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().lock().take(GATES_BYTES + 1).read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|file| file.take(GATES_BYTES + 1).read_to_string(&mut text)),
    };
    read.map_err(cannot)?;
    if text.len() as u64 > GATES_BYTES {
        return Err(format!("{}: expected at most {GATES_BYTES} bytes", path.display()).into());
    }
    // Of an object: serde would take a list as well, and an empty one as no gates.
    let object: serde_json::Result<serde_json::Map<_, _>> = serde_json::from_str(&text);
    let gates: serde_json::Result<records::GatesFile> =
        object.and_then(|object| serde_json::from_value(object.into()));
    Ok(gates.map_err(|e| format!("{}: no gates: {e}", path.display()))?.into())
}

pub(super) async fn describe(control: &Control, describe: Describe) -> Outcome {
    let Describe { model, version, description, said, untags, unmetrics, why } = describe;
    let set_tags = !said.tags.is_empty() || !untags.is_empty();
    let of_version = !(said.metrics.is_empty() && unmetrics.is_empty() && said.monitors.is_empty());
    if description.is_none() && !set_tags && !of_version {
        let message = "nothing to set: give --description, --tag, --untag, --metric, --unmetric or --monitor";
        return Err(Told::usage(message).into());
    }
    if version.is_none() && of_version {
        let message =
            "metrics and monitors are a version's: give VERSION beside --metric, --unmetric and --monitor";
        return Err(Told::usage(message).into());
    }
    let client = control.connect().await?;
    let merge = |mut tags: BTreeMap<String, String>| {
        if let Some(key) = untags.iter().find(|key| tags.remove(*key).is_none()) {
            let message = format!("--untag {key}: there is no such tag, nothing was changed");
            return Err(Told::new(ErrorCode::NotFound.name(), message));
        }
        tags.extend(said.tags.iter().cloned());
        Ok(tags)
    };
    let Some(version) = version else {
        let tags = match set_tags {
            true => merge(client.get_model(pb::GetModelRequest { model: model.clone() }).await?.tags)?,
            false => Default::default(),
        };
        let request =
            pb::UpdateModelRequest { model, description, tags, set_tags, gates: None, reason: why.reason };
        let record = client.update_model(request).await?;
        if !control.print_json(|| records::model(&record))? {
            say!("{}: updated", record.name)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let get = pb::GetVersionRequest { model: model.clone(), version };
    let present = client.get_version(get).await?;
    let request = pb::UpdateVersionRequest {
        model,
        // The number: an alias could move in between.
        version: present.version.to_string(),
        description,
        tags: if set_tags { merge(present.tags)? } else { Default::default() },
        set_tags,
        metrics: said.metrics.iter().cloned().collect(),
        // Those that are sent replace those there are; none leaves them.
        monitors: match said.monitors.is_empty() {
            true => Default::default(),
            false => present.monitors.into_iter().chain(said.monitors.iter().cloned()).collect(),
        },
        reason: why.reason,
        remove_metrics: unmetrics,
    };
    let version = client.update_version(request).await?;
    if !control.print_json(|| records::version(&version))? {
        say!("{} version {}: updated", version.model, version.version)?;
    }
    Ok(ExitCode::SUCCESS)
}
