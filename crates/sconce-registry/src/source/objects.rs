//! Object stores, through the crate object_store, which retries by itself what can be retried.

use super::download::{Body, Download, Failure, RemoteFile};
use super::{Access, Source};
use crate::artifacts::{Artifacts, Import, Transfer, io_error};
use crate::{RegistryError, Result};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig};
use sconce_core::abbreviate;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For one answer with its body: what takes longer goes on with another.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// The most that is told of what a server said.
const MAX_QUOTED_CHARS: usize = 500;
/// How often a wait looks whether someone wants it to stop.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// Reads `s3://BUCKET/PREFIX` and its like.
pub(super) fn parse(text: &str) -> Result<Source> {
    let url = Url::parse(text).ok().filter(|url| {
        url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
            && url.port().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    // A key in a source would end up in records and logs.
    url.map(Source::Objects).ok_or_else(|| {
        RegistryError::Invalid(format!(
            "source {:?}: expected SCHEME://BUCKET/PREFIX without credentials, query or fragment",
            abbreviate(text)
        ))
    })
}

/// Downloads everything below a prefix.
pub(super) fn fetch(
    url: &Url,
    artifacts: &Artifacts,
    access: &Access,
    transfer: &Transfer<'_>,
) -> Result<Import> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error(|| "cannot start a runtime for the object store".to_owned()))?;
    let store = open(url, access)?;
    let prefix = Path::from_url_path(url.path()).map_err(|error| failed(url, error.into()))?;
    let objects = list(&runtime, &*store, &prefix, url, transfer)?;
    let download = Download { artifacts, access, transfer };
    let mut importer = artifacts.importer(transfer.limits);
    for (path, object) in &objects {
        let file = RemoteFile {
            path,
            identity: format!("{url}\n{}\n{:?}\n{}", object.location, object.e_tag, object.last_modified),
            bytes: Some(object.size),
            sha256: None,
        };
        download.file(&mut importer, &file, |offset| {
            let options = GetOptions {
                if_match: object.e_tag.clone(),
                range: (offset > 0).then_some(GetRange::Offset(offset)),
                ..GetOptions::default()
            };
            let answer = wait(&runtime, transfer.cancel, store.get_opts(&object.location, options));
            let answer = answer.ok_or(RegistryError::Cancelled)?.map_err(|error| failure(url, error))?;
            let (start, total) = (answer.range.start, answer.meta.size);
            let stream = answer.into_stream();
            let content =
                Content { runtime: &runtime, cancel: transfer.cancel, stream, piece: Vec::new().into() };
            Ok(Body { start, total: Some(total), content: Box::new(content) })
        })?;
    }
    importer.finish()
}

/// The objects below `prefix`, by their path below it.
fn list(
    runtime: &Runtime,
    store: &dyn ObjectStore,
    prefix: &Path,
    url: &Url,
    transfer: &Transfer<'_>,
) -> Result<Vec<(String, ObjectMeta)>> {
    let most = transfer.limits.files;
    let mut stream = store.list(Some(prefix));
    let mut objects = Vec::new();
    // Twice as many: what stands for a folder is left out below.
    while objects.len() <= 2 * most {
        let next = wait(runtime, transfer.cancel, stream.next()).ok_or(RegistryError::Cancelled)?;
        let Some(object) = next.transpose().map_err(|error| failed(url, error))? else { break };
        let path = object.location.as_ref().strip_prefix(prefix.as_ref()).unwrap_or_default();
        let path = path.trim_start_matches('/').to_owned();
        if !path.is_empty() && !path.split('/').any(|name| name.starts_with('.')) {
            objects.push((path, object));
        }
    }
    // Some tools put an empty object where a folder would be.
    let paths: Vec<String> = objects.iter().map(|(path, _)| format!("{path}/")).collect();
    let is_folder = |path: &str| {
        paths.iter().any(|other| other.len() > path.len() + 1 && other.starts_with(&format!("{path}/")))
    };
    objects.retain(|(path, object)| object.size > 0 || !is_folder(path));
    if objects.is_empty() {
        return Err(RegistryError::NotFound(format!("{url}: there is nothing below this prefix")));
    }
    if objects.len() > most {
        return Err(RegistryError::Exhausted(format!("{url}: there are more than the {most} files allowed")));
    }
    objects.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(objects)
}

fn open(url: &Url, access: &Access) -> Result<Box<dyn ObjectStore>> {
    // Fails where the process has one already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(ANSWER_TIMEOUT);
    let retry =
        RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };
    // The three builders share their shape, and no trait.
    macro_rules! store {
        ($builder:ty, $key:ty) => {{
            let mut builder =
                <$builder>::new().with_url(url.as_str()).with_retry(retry).with_client_options(client);
            for (name, value) in &access.object_store {
                if let Ok(key) = name.to_ascii_lowercase().parse::<$key>() {
                    builder = builder.with_config(key, value);
                }
            }
            builder.build().map(|store| Box::new(store) as Box<dyn ObjectStore>)
        }};
    }
    match url.scheme() {
        "s3" => store!(AmazonS3Builder, AmazonS3ConfigKey),
        "gs" => store!(GoogleCloudStorageBuilder, GoogleConfigKey),
        _ => store!(MicrosoftAzureBuilder, AzureConfigKey),
    }
    .map_err(|error| RegistryError::Invalid(format!("{url}: {error}")))
}

/// What `future` gives, or `None` once someone wants it to stop.
fn wait<T>(runtime: &Runtime, cancel: &AtomicBool, future: impl Future<Output = T>) -> Option<T> {
    runtime.block_on(async {
        let mut future = std::pin::pin!(future);
        loop {
            if cancel.load(Ordering::Relaxed) {
                return None;
            }
            if let Ok(value) = timeout(CANCEL_POLL, &mut future).await {
                return Some(value);
            }
        }
    })
}

struct Content<'a> {
    runtime: &'a Runtime,
    cancel: &'a AtomicBool,
    stream: BoxStream<'static, object_store::Result<bytes::Bytes>>,
    piece: bytes::Bytes,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match wait(self.runtime, self.cancel, self.stream.next()) {
                None => return Err(io::Error::other("cancelled")),
                Some(None) => return Ok(0),
                Some(Some(piece)) => self.piece = piece.map_err(io::Error::other)?,
            }
        }
        let n = self.piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

fn failure(url: &Url, error: Error) -> Failure {
    match error {
        Error::Generic { .. } => Failure::Passing(failed(url, error)),
        other => Failure::Lasting(failed(url, other)),
    }
}

fn failed(url: &Url, error: Error) -> RegistryError {
    match error {
        Error::NotFound { .. } => RegistryError::NotFound(format!("{url}: {error}")),
        Error::Precondition { .. } => {
            RegistryError::Invalid(format!("{url}: an object changed while it was downloaded"))
        }
        Error::InvalidPath { .. } => RegistryError::Invalid(format!("{url}: {error}")),
        other => {
            // It quotes the server, at any length.
            let said: String = other.to_string().chars().take(MAX_QUOTED_CHARS).collect();
            RegistryError::Remote { what: format!("{url}: {said}"), source: Some(Box::new(other)) }
        }
    }
}
