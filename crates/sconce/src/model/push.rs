use super::{Said, absolute, change};
use crate::control::{self, Control, Told};
use crate::progress::{Bar, clear_line};
use crate::validate::is_package;
use crate::{Failure, Outcome, records, text};
use sconce_client::{Progress, RegistryClient, control_proto as pb};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Push {
    /// The model's name and where its files are: a folder, hf://ORG/NAME@REVISION, s3://BUCKET/PREFIX, gs://…, az://…
    /// Without a name: a folder of NAME/VERSION/ folders, each registered with the next number of its model
    #[arg(required = true, num_args = 1..=2, value_names = ["MODEL", "SOURCE"])]
    what: Vec<String>,
    /// The version's number [default: the next]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    version: Option<u64>,
    /// A semantic version, unique in its model, such as 1.4.0
    #[arg(long)]
    label: Option<String>,
    /// What it is [default: what its files say]
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    said: Said,
    /// The version it was made from
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    parent: Option<u64>,
    /// What it was trained on
    #[arg(long, value_name = "TEXT")]
    training_data: Option<String>,
    /// Who trained it
    #[arg(long, value_name = "TEXT")]
    trained_by: Option<String>,
    /// When it was trained
    #[arg(long, value_name = "TEXT")]
    trained_at: Option<String>,
    /// Why, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
    /// Then point this alias at it
    #[arg(long, value_name = "ALIAS")]
    promote: Option<String>,
    /// The folder is one of the server's machine, which reads it itself
    #[arg(long)]
    on_server: bool,
}

/// What was done, also where not all was.
#[derive(Default)]
struct Done {
    versions: Vec<pb::Version>,
    /// The same for machines, each with the version that has the same files.
    documents: Vec<Value>,
    promoted: Vec<Value>,
}

/// A version to upload.
struct Upload {
    model: String,
    folder: PathBuf,
    /// The folder, as it was given.
    source: String,
}

pub(super) async fn run(control: &Control, push: Push) -> Outcome {
    let mut done = Done::default();
    let failed = push_all(control, push, &mut done).await.err();
    let Done { documents, promoted, .. } = done;
    let Some(error) = failed else {
        control.print_json(|| json!({ "versions": documents, "promoted": promoted }))?;
        return Ok(ExitCode::SUCCESS);
    };
    if documents.is_empty() || !control.json {
        return Err(error);
    }
    // One document says both: what is registered stays so.
    let described = control::describe(&error);
    control.print_json(|| json!({ "versions": documents, "promoted": promoted, "error": described }))?;
    Ok(crate::tell(error, ExitCode::FAILURE))
}

async fn push_all(control: &Control, push: Push, done: &mut Done) -> Result<(), Failure> {
    let (model, source) = match push.what.as_slice() {
        [source] => (None, source.as_str()),
        [model, source] => (Some(model.as_str()), source.as_str()),
        _ => return Err("expected a model's name and a source".into()),
    };
    let mut header = push.header();
    let on_server = push.on_server || source.contains("://");
    let uploads = if on_server { Vec::new() } else { to_upload(model, source)? };
    if model.is_none() && (push.version.is_some() || push.label.is_some()) && uploads.len() != 1 {
        return Err(
            "--version and --label are of one version: give MODEL and the folder of that version".into()
        );
    }
    let client = control.connect().await?;
    if on_server {
        header.model = model.unwrap_or_default().to_owned();
        for version in fetch(&client, header, source).await? {
            registered(control, &client, version, done).await?;
        }
    } else {
        for Upload { model: name, folder, source } in uploads {
            let mut header = pb::NewVersion { model: name, ..header.clone() };
            header.lineage.get_or_insert_default().source.clone_from(&source);
            let mut bar = Bar::default();
            let uploaded = client.register_folder(header, &folder, move |progress| bar.show(progress)).await;
            clear_line();
            let version = uploaded.map_err(|error| -> Failure {
                if model.is_some() {
                    return error.into();
                }
                // What was registered before stays.
                let before: Vec<_> = done.versions.iter().map(named).collect();
                let before = match before.as_slice() {
                    [] => String::new(),
                    before => format!(" (registered before: {})", before.join(", ")),
                };
                Told::of(&error, format!("{source}: {error}{before}")).into()
            })?;
            registered(control, &client, version, done).await?;
        }
    }
    if let Some(alias) = &push.promote {
        let versions = &done.versions;
        // Of several versions of one model the last.
        let last = versions
            .iter()
            .enumerate()
            .filter(|(at, version)| versions.get(at + 1).is_none_or(|next| next.model != version.model));
        for (_, version) in last {
            let request = pb::PromoteRequest {
                model: version.model.clone(),
                version: version.version.to_string(),
                alias: alias.clone(),
                reason: push.reason.clone(),
                ..Default::default()
            };
            done.promoted.push(change::promote_one(control, &client, request).await?);
        }
    }
    Ok(())
}

/// Tells people of a version that was registered, and keeps it for machines.
async fn registered(
    control: &Control,
    client: &RegistryClient,
    version: pb::Version,
    done: &mut Done,
) -> Result<(), Failure> {
    // It is registered, whether this can be found out or not.
    let same = same_content(client, &version).await.unwrap_or(None);
    if !control.json {
        let size = version.files.iter().map(|file| file.bytes).sum();
        let files = text::count(version.files.len() as u64, "file");
        let same = same.map_or(String::new(), |same| format!(" (the same content as version {same})"));
        say!("✓ {}: {files}, {}{same}", named(&version), text::bytes(size))?;
    }
    let mut document = records::version(&version);
    document["same_content_as"] = json!(same);
    done.documents.push(document);
    done.versions.push(version);
    Ok(())
}

/// The latest version of the same model before `version` that has the same files.
async fn same_content(client: &RegistryClient, version: &pb::Version) -> Result<Option<u64>, Failure> {
    let files = |version: &pb::Version| -> BTreeSet<(String, String)> {
        version.files.iter().map(|file| (file.path.clone(), file.digest.clone())).collect()
    };
    let wanted = files(version);
    let versions = control::versions(client, &version.model, &[]).await?;
    let same = |other: &&pb::Version| other.version < version.version && files(other) == wanted;
    Ok(versions.iter().rev().find(same).map(|other| other.version))
}

impl Push {
    fn header(&self) -> pb::NewVersion {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        pb::NewVersion {
            model: String::new(),
            version: self.version.unwrap_or(0),
            label: text(&self.label),
            description: text(&self.description),
            tags: self.said.tags.iter().cloned().collect(),
            metrics: self.said.metrics.iter().cloned().collect(),
            lineage: Some(pb::Lineage {
                parent: self.parent.unwrap_or(0),
                training_data: text(&self.training_data),
                trained_by: text(&self.trained_by),
                trained_at: text(&self.trained_at),
                source: String::new(),
            }),
            monitors: self.said.monitors.iter().cloned().collect(),
            reason: self.reason.clone(),
        }
    }
}

/// What is to be uploaded, in the order in which it becomes versions.
fn to_upload(model: Option<&str>, source: &str) -> Result<Vec<Upload>, Failure> {
    let folder = absolute(source)?;
    let is_package = is_package(&folder)?;
    match model {
        Some(model) if is_package => {
            Ok(vec![Upload { model: model.to_owned(), folder, source: source.to_owned() }])
        }
        Some(_) => Err(format!(
            "{source}: no model's files here: expected model.toml, config.json or *.safetensors in it. \
             For a folder of NAME/VERSION/ folders give no MODEL"
        )
        .into()),
        None if is_package => Err(format!(
            "{source} is one version's folder: what is the model's name? sconce model push MODEL {source}"
        )
        .into()),
        None => {
            let discovery = sconce_candle::discover(&folder)?;
            if let Some(problem) = discovery.problems.first() {
                return Err(format!("{source}: {problem}").into());
            }
            if discovery.found.is_empty() {
                return Err(format!("{source}: no model here: expected NAME/VERSION/ folders").into());
            }
            let source = source.trim_end_matches('/');
            let uploads = discovery.found.into_iter().map(|found| Upload {
                source: format!("{source}/{}/{}", found.name, found.version),
                model: found.name.to_string(),
                folder: found.dir,
            });
            Ok(uploads.collect())
        }
    }
}

async fn fetch(
    client: &RegistryClient,
    header: pb::NewVersion,
    source: &str,
) -> Result<Vec<pb::Version>, Failure> {
    let request = pb::RegisterFromRequest { header: Some(header), source: source.to_owned() };
    let mut items = client.register_from(request).await?;
    let mut bar = Bar::default();
    let mut versions = Vec::new();
    loop {
        let item = items.next().await;
        if !matches!(&item, Ok(Some(item)) if item.versions.is_empty()) {
            clear_line();
        }
        match item? {
            Some(item) if item.versions.is_empty() => {
                bar.show(Progress { file: &item.file, bytes: item.bytes, total_bytes: item.total_bytes });
            }
            Some(item) => versions = item.versions,
            None if versions.is_empty() => {
                return Err("the server ended the transfer without a version".into());
            }
            None => return Ok(versions),
        }
    }
}

fn named(version: &pb::Version) -> String {
    format!("{} version {}", version.model, version.version)
}
