//! The Hugging Face hub, through hf-hub: its client, its addresses, its authorization.
//!
//! What it has for whole files is not used: hf-hub 0.5 takes the names of the files it writes from the server's headers,
//! panics on some answers, appends a whole body where a rest was asked for, and knows no bound.

use super::download::{Body, Download, Failure, RemoteFile};
use super::{Access, Source};
use crate::artifacts::{Artifacts, Import, Transfer, check_path};
use crate::{RegistryError, Result};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sconce_core::abbreviate;
use serde::Deserialize;
use std::error::Error;
use std::io::Read;
use std::time::Duration;
use url::Url;

/// The longest listing that is read, in bytes.
const MAX_LISTING_BYTES: u64 = 16 << 20;
/// The most redirects followed for one file.
const MAX_REDIRECTS: usize = 5;
/// How long to connect, and how long a server may say nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

const FORMATS: [&str; 6] = ["safetensors", "json", "txt", "toml", "model", "jinja"];
const PREFIXES: [&str; 3] = ["tokenizer", "vocab", "merges"];
/// Formats of weights that never come, whatever the file is called.
const NEVER: [&str; 13] =
    ["bin", "h5", "onnx", "msgpack", "ot", "pt", "pth", "ckpt", "pkl", "gguf", "tflite", "mlmodel", "zip"];

/// Reads `ORG/NAME@REVISION`.
pub(super) fn parse(text: &str) -> Result<Source> {
    let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
    let plain = |text: &str, more: &[u8]| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b) || more.contains(&b);
        text.len() <= 128
            && text.bytes().all(allowed)
            && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
    };
    if !plain(repository, b"/") || repository.matches('/').count() > 1 || !plain(revision, b"/") {
        return Err(RegistryError::Invalid(format!(
            "source {:?}: expected hf://ORG/NAME or hf://ORG/NAME@REVISION",
            abbreviate(text)
        )));
    }
    Ok(Source::Hub { repository: repository.to_owned(), revision: revision.to_owned() })
}

/// Downloads the model files of one revision. The revision is resolved to a commit once, so all files are of one.
pub(super) fn fetch(
    repository: &str,
    revision: &str,
    artifacts: &Artifacts,
    access: &Access,
    transfer: &Transfer<'_>,
) -> Result<Import> {
    let source = format!("hf://{repository}@{revision}");
    let download = Download { artifacts, access, transfer };
    let endpoint = Url::parse(access.hub_endpoint.trim_end_matches('/'))
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| {
            RegistryError::Invalid("the hub's endpoint is no http:// or https:// URL".to_owned())
        })?;
    let at = |revision: &str| -> Result<Hub> {
        // hf-hub wants a cache; nothing is read from it and nothing written to it.
        let api = ApiBuilder::from_cache(Cache::new(artifacts.partial().join("none")))
            .with_endpoint(endpoint.as_str().trim_end_matches('/').to_owned())
            .with_token(access.hub_token.clone())
            .with_progress(false)
            .with_user_agent("sconce", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| remote("cannot prepare requests to the hub", error))?;
        let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
        Ok(Hub { repo: api.repo(repo), endpoint: endpoint.clone() })
    };

    let hub = at(revision)?;
    let listing = download.attempt(&source, || (hub.listing(&source), false))?;
    let hub = at(&listing.sha)?;
    let mut importer = artifacts.importer(transfer.limits);
    for sibling in listing.model_files()? {
        let path = sibling.rfilename.as_str();
        let url = hub.repo.url(&percent_encode(path));
        let lfs = sibling.lfs.as_ref();
        let file = RemoteFile {
            path,
            identity: url.clone(),
            bytes: sibling.size.or(lfs.and_then(|lfs| lfs.size)),
            sha256: lfs.and_then(|lfs| lfs.sha256.as_deref()),
        };
        let what = format!("{source}: `{path}`");
        download.file(&mut importer, &file, |offset| hub.get(&url, offset, &what))?;
    }
    importer.finish().map_err(|error| match error {
        RegistryError::Invalid(_) => RegistryError::Invalid(format!("{source} has no model files")),
        other => other,
    })
}

/// What the hub says of a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// The files to take. Any hostile name spoils the listing, also of a file that would be left out.
    fn model_files(&self) -> Result<Vec<&Sibling>> {
        let mut files = Vec::new();
        for sibling in &self.siblings {
            let path = sibling.rfilename.as_str();
            let hidden = |name: &str| name.starts_with('.') && name != "." && name != "..";
            if path.split('/').any(hidden)
                && !path.split('/').any(|name| name == "..")
                && !path.starts_with('/')
            {
                continue;
            }
            check_path(path)?;
            if is_model_file(path) {
                files.push(sibling);
            }
        }
        Ok(files)
    }
}

fn is_model_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let format = name.rsplit_once('.').map_or("", |(_, format)| format);
    !NEVER.contains(&format)
        && (FORMATS.contains(&format) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// One repository at one revision.
struct Hub {
    repo: ApiRepo,
    endpoint: Url,
}

impl Hub {
    fn listing(&self, source: &str) -> Result<Listing, Failure> {
        // With sizes and digests, which hf-hub's own question leaves out.
        let url =
            self.repo.info_request().uri_ref().map(|uri| format!("{uri}?blobs=true")).unwrap_or_default();
        let mut text = Vec::new();
        let body = self.get(&url, 0, source)?;
        body.content.take(MAX_LISTING_BYTES + 1).read_to_end(&mut text).map_err(|error| {
            Failure::Passing(remote(&format!("{source}: the connection broke in the listing"), error))
        })?;
        if text.len() as u64 > MAX_LISTING_BYTES {
            let what = format!("{source}: the listing is longer than {MAX_LISTING_BYTES} bytes");
            return Err(RegistryError::Exhausted(what).into());
        }
        let listing: Listing = serde_json::from_slice(&text)
            .map_err(|error| remote(&format!("{source}: the listing is none: {error}"), error))?;
        // It becomes part of every address.
        if !(7..=64).contains(&listing.sha.len()) || !listing.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(RegistryError::Invalid(format!("{source}: the listing names no commit")).into());
        }
        Ok(listing)
    }

    /// The content at `url` from byte `offset` on, wherever that is served from.
    fn get(&self, url: &str, offset: u64, what: &str) -> Result<Body<'static>, Failure> {
        let mut url = Url::parse(url).map_err(|error| remote(&format!("{what}: no address"), error))?;
        for _ in 0..=MAX_REDIRECTS {
            // Not compressed: lengths and offsets are those of the file.
            let mut request =
                self.repo.info_request().uri(url.as_str()).header("Accept-Encoding", "identity");
            if offset > 0 {
                request = request.header("Range", format!("bytes={offset}-"));
            }
            if url.origin() != self.endpoint.origin()
                && let Some(headers) = request.headers_mut()
            {
                headers.remove("Authorization");
            }
            let answer = request
                .config()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(IDLE_TIMEOUT))
                .timeout_per_read(Some(IDLE_TIMEOUT))
                .build()
                .call()
                .map_err(|error| Failure::Passing(remote(&format!("{what}: no answer: {error}"), error)))?;
            let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
            let number = |text: &str| text.trim().parse::<u64>().ok();
            match answer.status().as_u16() {
                200 => {
                    let total = header("Content-Length").and_then(number);
                    return Ok(Body { start: 0, total, content: Box::new(answer.into_body().into_reader()) });
                }
                206 => {
                    let range = header("Content-Range").and_then(|range| range.strip_prefix("bytes "));
                    let range = range.and_then(|range| range.split_once('/'));
                    let start = range.and_then(|(span, _)| number(span.split('-').next()?));
                    let total = range.and_then(|(_, total)| number(total));
                    let start =
                        start.ok_or_else(|| unexpected(what, "a part of the file that it does not name"))?;
                    return Ok(Body { start, total, content: Box::new(answer.into_body().into_reader()) });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let target = header("Location").and_then(|location| url.join(location).ok());
                    let target = target.ok_or_else(|| unexpected(what, "a redirect to nowhere"))?;
                    if !may_follow(&url, &target) {
                        let to = format!("a redirect to {}://, which is not followed", target.scheme());
                        return Err(unexpected(what, &to).into());
                    }
                    url = target;
                }
                401 | 403 => {
                    let why =
                        "the hub refuses access: is the name right, and does HF_TOKEN hold a token for it?";
                    return Err(RegistryError::NotFound(format!("{what}: {why}")).into());
                }
                404 => {
                    return Err(RegistryError::NotFound(format!("{what}: the hub has no such thing")).into());
                }
                status @ (408 | 429 | 500..=599) => {
                    let what = format!("{what}: the server answered {status}");
                    return Err(Failure::Passing(RegistryError::Remote { what, source: None }));
                }
                status => return Err(unexpected(what, &format!("status {status}")).into()),
            }
        }
        Err(unexpected(what, &format!("more than {MAX_REDIRECTS} redirects")).into())
    }
}

/// Redirects lead to HTTP, and never from the encrypted to the open.
fn may_follow(from: &Url, to: &Url) -> bool {
    to.has_host() && (to.scheme() == "https" || to.scheme() == "http" && from.scheme() == "http")
}

fn unexpected(what: &str, came: &str) -> RegistryError {
    RegistryError::Invalid(format!("{what}: the server answered with {came}"))
}

fn remote(what: &str, source: impl Error + Send + Sync + 'static) -> RegistryError {
    RegistryError::Remote { what: what.to_owned(), source: Some(Box::new(source)) }
}

/// Everything but letters, digits, `-._~` and the separators, as `%XX`.
fn percent_encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_web_and_encrypted() {
        let url = |text| Url::parse(text).unwrap();
        for (from, to, follows) in [
            ("https://a/x", "https://b/y", true),
            ("http://a/x", "https://b/y", true),
            ("http://a/x", "http://b/y", true),
            ("https://a/x", "http://a/x", false),
            ("http://a/x", "file:///etc/passwd", false),
            ("http://a/x", "ftp://a/x", false),
            ("http://a/x", "data:text/plain,x", false),
        ] {
            assert_eq!(may_follow(&url(from), &url(to)), follows, "{from} to {to}");
        }
    }

    #[test]
    fn what_models_are_loaded_from_is_taken() {
        for taken in [
            "model.safetensors",
            "config.json",
            "1_Pooling/config.json",
            "vocab.txt",
            "merges.txt",
            "tokenizer.model",
            "model.toml",
            "spiece.model",
        ] {
            assert!(is_model_file(taken), "{taken}");
        }
        for left in [
            "pytorch_model.bin",
            "tf_model.h5",
            "onnx/model.onnx",
            "flax_model.msgpack",
            "tokenizer.bin",
            "README.md",
            "vocab.pkl",
        ] {
            assert!(!is_model_file(left), "{left}");
        }
    }

    #[test]
    fn names_become_addresses() {
        assert_eq!(percent_encode("a b/c#d?e%f.json"), "a%20b/c%23d%3Fe%25f.json");
    }
}
