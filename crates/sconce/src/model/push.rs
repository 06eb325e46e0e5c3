use super::{Said, absolute, change};
use crate::control::Control;
use crate::progress::{Bar, clear_line};
use crate::validate::is_package;
use crate::{Failure, Outcome, records, text};
use sconce_client::{Progress, RegistryClient, control_proto as pb};
use serde_json::{Value, json};
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

pub(super) async fn run(control: &Control, push: Push) -> Outcome {
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
    let mut versions = Vec::new();
    if on_server {
        header.model = model.unwrap_or_default().to_owned();
        versions = fetch(&client, header, source).await?;
    } else {
        for (model, folder) in uploads {
            let header = pb::NewVersion { model, ..header.clone() };
            let mut bar = Bar::default();
            let name = header.model.clone();
            let uploaded = client.register_folder(header, &folder, move |progress| bar.show(progress)).await;
            clear_line();
            let version = uploaded.map_err(|error| -> Failure {
                // What was registered before stays.
                let done: Vec<_> = versions.iter().map(named).collect();
                if done.is_empty() {
                    error.into()
                } else {
                    format!("{name}: {error} (registered before: {})", done.join(", ")).into()
                }
            })?;
            tell(control, &version)?;
            versions.push(version);
        }
    }
    if on_server {
        versions.iter().try_for_each(|version| tell(control, version))?;
    }
    let mut promoted = Vec::new();
    if let Some(alias) = &push.promote {
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
            promoted.push(change::promote_one(control, &client, request).await?);
        }
    }
    control.print_json(|| {
        let versions: Vec<Value> = versions.iter().map(records::version).collect();
        json!({ "versions": versions, "promoted": promoted })
    })?;
    Ok(ExitCode::SUCCESS)
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
            monitors: std::collections::BTreeMap::new(),
            reason: self.reason.clone(),
        }
    }
}

/// Model names and folders, in the order in which they become versions.
fn to_upload(model: Option<&str>, source: &str) -> Result<Vec<(String, PathBuf)>, Failure> {
    let folder = absolute(source)?;
    let is_package = is_package(&folder)?;
    match model {
        Some(model) if is_package => Ok(vec![(model.to_owned(), folder)]),
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
            Ok(discovery.found.into_iter().map(|found| (found.name.to_string(), found.dir)).collect())
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

fn tell(control: &Control, version: &pb::Version) -> Result<(), Failure> {
    if control.json {
        return Ok(());
    }
    let size = version.files.iter().map(|file| file.bytes).sum();
    say!("✓ {}: {}, {}", named(version), text::count(version.files.len() as u64, "file"), text::bytes(size))?;
    Ok(())
}

fn named(version: &pb::Version) -> String {
    format!("{} version {}", version.model, version.version)
}
