//! Where a version's files come from.
//!
//! Everything here blocks. Object stores are reached through a library that does not: [`Source::fetch`] runs it on a small
//! runtime of its own, so it must not be called on a thread that runs asynchronous tasks (`spawn_blocking` is right).

mod download;
mod hub;
mod objects;
mod repository;
#[cfg(test)]
mod tests;

pub use repository::RepositoryVersion;

use crate::artifacts::{Artifacts, Import, Transfer};
use crate::{RegistryError, Result};
use sconce_core::abbreviate;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// The longest source, in bytes.
const MAX_SOURCE_BYTES: usize = 4096;

/// A place that files are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder with one version's files.
    Folder(PathBuf),
    /// The model repository of another server: a folder of `NAME/1/…`.
    Repository(PathBuf),
    /// A repository of the Hugging Face hub, or of a mirror of it.
    Hub {
        /// `ORG/NAME`, or `NAME` alone.
        repository: String,
        /// A branch, a tag or a commit. Default: `main`.
        revision: String,
    },
    /// Everything below a prefix of an object store's bucket: `s3://`, `gs://` or `az://`.
    Objects(Url),
}

/// How to reach other servers.
#[derive(Clone)]
pub struct Access {
    /// The hub, default `https://huggingface.co`.
    pub hub_endpoint: String,
    /// What the hub asks for where a repository is not public. Sent to the hub alone, never to where it redirects.
    pub hub_token: Option<String>,
    /// Settings of object stores by the names of their usual environment variables (`AWS_ENDPOINT_URL`, say).
    pub object_store: Vec<(String, String)>,
    /// The wait before the second attempt; doubled with each.
    retry_delay: Duration,
}

impl Access {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, and what begins with `AWS_`, `GOOGLE_` or `AZURE_`.
    pub fn from_env() -> Self {
        let text = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let prefixes = ["AWS_", "GOOGLE_", "AZURE_"];
        Self {
            hub_endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hub_token: text("HF_TOKEN"),
            object_store: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)))
                .collect(),
            retry_delay: Duration::from_millis(500),
        }
    }
}

impl fmt::Debug for Access {
    /// Names no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("hub_endpoint", &self.hub_endpoint).finish_non_exhaustive()
    }
}

impl Source {
    /// Reads a source: `hf://ORG/NAME@REVISION`, `s3://BUCKET/PREFIX`, `gs://…`, `az://…`, or a folder. A folder is a
    /// model repository when it holds folders that hold numbered folders, and no file.
    ///
    /// # Errors
    /// `Invalid` for another scheme, a name that is none, credentials in the URL; `NotFound` where there is no folder.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > MAX_SOURCE_BYTES || text.chars().any(char::is_control) {
            return Err(RegistryError::Invalid(format!(
                "source: expected 1 to {MAX_SOURCE_BYTES} bytes without control characters, got {:?}",
                abbreviate(text)
            )));
        }
        match text.split_once("://") {
            Some(("hf", rest)) => hub::parse(rest),
            Some(("s3" | "gs" | "az", _)) => objects::parse(text),
            Some((scheme, _)) => Err(RegistryError::Invalid(format!(
                "source {:?}: expected a folder or hf://, s3://, gs://, az://, got {:?}",
                abbreviate(text),
                abbreviate(scheme)
            ))),
            None => {
                let folder = PathBuf::from(text);
                if !folder.is_dir() {
                    return Err(RegistryError::NotFound(format!(
                        "source {:?} is no folder",
                        abbreviate(text)
                    )));
                }
                Ok(if repository::is_repository(&folder)? {
                    Self::Repository(folder)
                } else {
                    Self::Folder(folder)
                })
            }
        }
    }

    /// The versions of a model repository, by name and number; none for another source.
    ///
    /// # Errors
    /// `Invalid` for a name or number that is none, or more than 10,000 versions; `Io`.
    pub fn versions(&self) -> Result<Vec<RepositoryVersion>> {
        match self {
            Self::Repository(root) => repository::versions(root),
            _ => Ok(Vec::new()),
        }
    }

    /// Brings one version's files into `artifacts`.
    ///
    /// From the hub come the files that models are loaded from: `*.safetensors`, `*.json`, `*.txt`, `*.toml`, `*.model`,
    /// `*.jinja`, and what begins with `tokenizer`, `vocab` or `merges`. Weights in other formats (`.bin`, `.h5`,
    /// `.onnx`, `.msgpack`, …) stay there. From an object store comes everything below the prefix.
    ///
    /// A download that ends early goes on where it stopped, in this call and in a later one: until then it is kept, for
    /// at most a week, where no version sees it.
    ///
    /// # Errors
    /// As [`Artifacts::import_folder`]; `Invalid` for a model repository (fetch each of its [`versions`](Self::versions)),
    /// a hostile file name, or a server that sends more or other than it said; `NotFound`; `Corrupt` when a file is not
    /// what the hub's listing says; `Remote` when the server does not answer after several attempts.
    pub fn fetch(&self, artifacts: &Artifacts, access: &Access, transfer: &Transfer<'_>) -> Result<Import> {
        match self {
            Self::Folder(folder) => artifacts.import_folder(folder, transfer),
            Self::Repository(root) => Err(RegistryError::Invalid(format!(
                "{} is a model repository: name one version's folder in it",
                root.display()
            ))),
            Self::Hub { repository, revision } => {
                hub::fetch(repository, revision, artifacts, access, transfer)
            }
            Self::Objects(url) => objects::fetch(url, artifacts, access, transfer),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) | Self::Repository(folder) => folder.display().fmt(f),
            Self::Hub { repository, revision } => write!(f, "hf://{repository}@{revision}"),
            Self::Objects(url) => url.fmt(f),
        }
    }
}
