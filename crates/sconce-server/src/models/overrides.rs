//! What a load call says in place of what is in the folder of models: a model's files, and how it is batched.

use super::blocking;
use sconce_candle::Package;
use sconce_core::{Error, ModelName, ModelVersion, Result, abbreviate};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The parameters of a load call.
#[derive(Default)]
pub(crate) struct Said {
    /// A model configuration, as JSON.
    pub(crate) config: Option<String>,
    /// Files by their path under the model's folder: `1/model.safetensors`.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

/// What [`Said`] comes to: it holds until the model is loaded again.
#[derive(Debug)]
pub(crate) struct Override {
    /// A folder of models with this one, if files were sent.
    files: Option<TempDir>,
    max_batch_size: Option<usize>,
    max_queue_delay: Option<Duration>,
    instances: Option<usize>,
}

/// The parts of a model configuration that mean something here. Names as in its two JSON forms.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    name: Option<String>,
    #[serde(alias = "maxBatchSize")]
    max_batch_size: Option<Number>,
    #[serde(alias = "dynamicBatching")]
    dynamic_batching: Option<Batching>,
    #[serde(alias = "instanceGroup")]
    instance_group: Vec<Group>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Batching {
    #[serde(alias = "maxQueueDelayMicroseconds")]
    max_queue_delay_microseconds: Option<Number>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Group {
    count: Option<Number>,
}

/// A number; JSON written from messages has large ones as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u64),
    Text(String),
}

/// Keys that say what the package says itself.
const SAID_BY_THE_PACKAGE: [&str; 8] = [
    "backend",
    "default_model_filename",
    "defaultModelFilename",
    "input",
    "output",
    "platform",
    "version_policy",
    "versionPolicy",
];
/// The most files of one call.
const MAX_FILES: usize = 1024;

impl Override {
    /// Reads `said` of the model `name`, and writes its files to a folder of their own.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be a configuration, or a file's path; `Internal` when files cannot be written.
    pub(super) async fn read(name: &ModelName, said: Said) -> Result<Arc<Self>> {
        let config = match &said.config {
            None => Config::default(),
            Some(text) => serde_json::from_str(text).map_err(|error| {
                Error::invalid(format!("config: not a model configuration in JSON: {error}"))
            })?,
        };
        config.check(name)?;
        let within = |what: &str, number: Option<Number>, most: u64| match number {
            None => Ok(None),
            Some(number) => number.within(what, most).map(Some),
        };
        let delay = config.dynamic_batching.and_then(|batching| batching.max_queue_delay_microseconds);
        let counts =
            config.instance_group.into_iter().map(|group| within("instance_group.count", group.count, 1024));
        let counts: Vec<Option<u64>> = counts.collect::<Result<_>>()?;
        let instances: u64 = counts.iter().map(|count| count.unwrap_or(1)).sum();
        let files = if said.files.is_empty() { None } else { Some(write(name, said.files).await?) };
        let as_size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            files,
            max_batch_size: within("max_batch_size", config.max_batch_size, 65_536)?.map(as_size),
            max_queue_delay: match delay {
                None => None,
                // None at all is what 0 says.
                Some(Number::Number(0)) => Some(Duration::ZERO),
                Some(delay) => {
                    Some(Duration::from_micros(delay.within("max_queue_delay_microseconds", 60_000_000)?))
                }
            },
            instances: (!counts.is_empty()).then_some(as_size(instances)),
        }))
    }

    /// The folder of models to look into instead of the server's.
    pub(super) fn root(&self) -> Option<&Path> {
        self.files.as_ref().map(TempDir::path)
    }

    /// Makes `package` be served as was said.
    pub(super) fn apply(&self, package: &mut Package) {
        if let Some(rows) = self.max_batch_size {
            package.settings.max_batch_size = rows;
            package.signature.max_batch_size = rows;
        }
        if let Some(delay) = self.max_queue_delay {
            package.settings.max_queue_delay = delay;
        }
        if self.instances.is_some() {
            package.settings.instances = self.instances;
        }
    }
}

impl Config {
    fn check(&self, name: &ModelName) -> Result<()> {
        if let Some(other) = self.name.as_ref().filter(|other| *other != name.as_str() && !other.is_empty()) {
            let got = abbreviate(other);
            return Err(Error::invalid(format!("config: expected the name `{name}` or none, got {got:?}")));
        }
        let unknown = self.rest.keys().find(|key| !SAID_BY_THE_PACKAGE.contains(&key.as_str()));
        let Some(key) = unknown else { return Ok(()) };
        Err(Error::invalid(format!(
            "config: expected max_batch_size, dynamic_batching.max_queue_delay_microseconds or instance_group.count, got {:?}",
            abbreviate(key)
        )))
    }
}

impl Number {
    fn within(self, what: &str, most: u64) -> Result<u64> {
        let number = match &self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        };
        let got = match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => format!("{:?}", abbreviate(&text)),
        };
        number
            .filter(|number| (1..=most).contains(number))
            .ok_or_else(|| Error::invalid(format!("config: {what}: expected 1 to {most}, got {got}")))
    }
}

/// Writes files to a new folder of models.
async fn write(name: &ModelName, files: Vec<(String, Vec<u8>)>) -> Result<TempDir> {
    if files.len() > MAX_FILES {
        return Err(Error::invalid(format!("expected at most {MAX_FILES} files, got {}", files.len())));
    }
    let mut paths = Vec::with_capacity(files.len());
    for (path, content) in files {
        paths.push((place(&path)?, content));
    }
    let name = name.clone();
    let writing = move || -> std::io::Result<TempDir> {
        let folder = tempfile::Builder::new().prefix("sconce-load-").tempdir()?;
        for (path, content) in paths {
            let path = folder.path().join(name.as_str()).join(path);
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(path, content)?;
        }
        Ok(folder)
    };
    blocking(move || Ok(writing()))
        .await?
        .map_err(|error| Error::internal("the files of the load cannot be written").with_source(error))
}

/// `VERSION/FILE` as a path below a model's folder, and nowhere else.
fn place(path: &str) -> Result<PathBuf> {
    let fine = |part: &str| {
        !part.is_empty()
            && part.len() <= 255
            && !part.starts_with('.')
            && !part.contains('\\')
            && !part.chars().any(char::is_control)
    };
    let parts: Vec<&str> = path.split('/').collect();
    let is_version = parts.first().is_some_and(|part| ModelVersion::parse(part).is_some());
    if is_version && (2..=8).contains(&parts.len()) && parts.iter().all(|part| fine(part)) {
        return Ok(parts.into_iter().collect());
    }
    let got = abbreviate(path);
    Err(Error::invalid(format!("expected a file such as `file:1/model.safetensors`, got {got:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_models_folder_are_refused() {
        for bad in [
            "",
            "1",
            "model.safetensors",
            "1/",
            "1/../x",
            "../1/x",
            "/1/x",
            "0/x",
            "1/.x",
            "1/a\\b",
            "1//x",
            "1/a\0",
        ] {
            assert!(place(bad).is_err(), "{bad:?}");
        }
        assert_eq!(place("12/sub/x.json").unwrap(), Path::new("12/sub/x.json"));
    }

    #[tokio::test]
    async fn a_configuration_is_read_in_both_forms_and_what_means_nothing_here_is_refused() {
        let name = ModelName::new("m").unwrap();
        let read = async |config: &str| {
            Override::read(&name, Said { config: Some(config.to_owned()), files: Vec::new() }).await
        };
        for good in [
            r#"{"max_batch_size": 8, "dynamic_batching": {"max_queue_delay_microseconds": 500}, "instance_group": [{"count": 2}]}"#,
            r#"{"name": "m", "backend": "candle", "maxBatchSize": 8, "dynamicBatching": {"maxQueueDelayMicroseconds": "500"}, "instanceGroup": [{"count": 1}, {"kind": "KIND_CPU"}]}"#,
        ] {
            let said = read(good).await.unwrap();
            assert_eq!(said.max_batch_size, Some(8), "{good}");
            assert_eq!(said.max_queue_delay, Some(Duration::from_micros(500)), "{good}");
            assert_eq!(said.instances, Some(2), "{good}");
        }
        assert_eq!(read("{}").await.unwrap().instances, None);
        for bad in [
            "",
            "[]",
            r#"{"name": "other"}"#,
            r#"{"max_batch_size": 0}"#,
            r#"{"max_batch_size": 65537}"#,
            r#"{"max_batch_size": -1}"#,
            r#"{"instance_group": [{"count": 1000000}]}"#,
            r#"{"optimization": {}}"#,
        ] {
            assert!(read(bad).await.is_err(), "{bad}");
        }
    }
}
