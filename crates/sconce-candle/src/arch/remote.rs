//! A model that another server of the protocol answers. Nothing of it is here but where it is.

use super::ensemble::read_tensors;
use crate::files::Folder;
use crate::keys::Keys;
use crate::{ModelSettings, Problems};
use sconce_core::{Ensemble, Signature, TensorSpec, abbreviate};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where a remote model is, and how it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The server, `host:port`.
    pub authority: String,
    /// What the server calls the model.
    pub model: String,
    /// The version to ask for; empty: the server chooses.
    pub version: String,
    /// Connections to the server. Default 2.
    pub connections: usize,
    /// Most calls at once; more wait. Default 64.
    pub max_concurrency: usize,
    /// How long one call may take, retries included. Default 10 s.
    pub timeout: Duration,
    /// How often a call that found no server is tried again. Default 1.
    pub retries: u32,
    /// The certificates the server is trusted by, PEM; empty: the system's.
    pub certificates: Vec<u8>,
    /// What the model takes and gives, if `model.toml` says it; else the server is asked.
    pub signature: Option<Signature>,
    /// What the server calls inputs, by our names for them, where it calls them otherwise.
    pub inputs_there: BTreeMap<String, String>,
    /// The same of outputs.
    pub outputs_there: BTreeMap<String, String>,
}

/// The longest name of a remote's model or version: the servers have their own rules.
const MAX_NAME_BYTES: usize = 256;

impl Remote {
    /// Takes `[remote]`, and `[[inputs]]` and `[[outputs]]` if they are there.
    pub(super) fn open(
        folder: &Folder,
        settings: &ModelSettings,
        keys: &mut Keys,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.count();
        let table = keys.take::<toml::Table>("remote", problems);
        let inputs = read_tensors("inputs", Ensemble::MAX_TENSORS, keys, problems);
        let outputs = read_tensors("outputs", Ensemble::MAX_TENSORS, keys, problems);
        let signature = match (inputs.is_empty(), outputs.is_empty()) {
            (true, true) => None,
            (false, false) => Some(Signature { inputs, outputs, max_batch_size: settings.max_batch_size }),
            _ => {
                problems.push("model.toml: expected `[[inputs]]` and `[[outputs]]`, or neither: then the server is asked");
                None
            }
        };
        let Some(table) = table else {
            if problems.count() == before {
                problems.push("model.toml: `remote`: expected a table with `url` and `model`, got nothing");
            }
            return None;
        };
        let mut keys = Keys::new(table, "model.toml: remote");
        let url = keys.take::<String>("url", problems).unwrap_or_default();
        let address = parse_url(&url);
        if address.is_none() {
            let got = abbreviate(&url);
            let expected = format!("expected http://HOST:PORT or https://HOST:PORT, got {got:?}");
            problems.push(keys.message("url", &expected));
        }
        let mut name = |key: &'static str, keys: &mut Keys| {
            let name = keys.take::<String>(key, problems).unwrap_or_default();
            if name.len() > MAX_NAME_BYTES {
                let expected = format!("expected at most {MAX_NAME_BYTES} bytes, got {}", name.len());
                problems.push(keys.message(key, &expected));
            }
            name
        };
        let (model, version) = (name("model", &mut keys), name("version", &mut keys));
        if model.is_empty() {
            problems.push(keys.message("model", "expected the name the server knows it by, got nothing"));
        }
        let declared = signature.as_ref();
        let inputs_there = read_names("inputs", declared.map(|it| &*it.inputs), &mut keys, problems);
        let outputs_there = read_names("outputs", declared.map(|it| &*it.outputs), &mut keys, problems);
        let connections = keys.take_in("connections", 1..=64, problems).unwrap_or(2);
        let max_concurrency = keys.take_in("max_concurrency", 1..=65_536, problems).unwrap_or(64);
        let timeout_ms: u64 = keys.take_in("timeout_ms", 1..=3_600_000, problems).unwrap_or(10_000);
        let retries = keys.take_in("retries", 0..=5, problems).unwrap_or(1);
        let (tls, authority) = address.unwrap_or_default();
        let certificates = match keys.take::<String>("ca_file", problems) {
            Some(_) if !tls => {
                problems.push(keys.message("ca_file", "expected with https:// alone"));
                Vec::new()
            }
            Some(file) => match folder.read(&file) {
                Ok(Some(pem)) if pem.starts_with(b"-----BEGIN ") => pem,
                Ok(Some(_)) => {
                    problems.push(format!("{file}: expected certificates in PEM"));
                    Vec::new()
                }
                Ok(None) => {
                    problems.push(keys.message("ca_file", &format!("there is no `{}`", abbreviate(&file))));
                    Vec::new()
                }
                Err(problem) => {
                    problems.push(problem);
                    Vec::new()
                }
            },
            None => Vec::new(),
        };
        keys.finish(problems);
        (problems.count() == before).then_some(Self {
            tls,
            authority,
            model,
            version,
            connections,
            max_concurrency,
            timeout: Duration::from_millis(timeout_ms),
            retries,
            certificates,
            signature,
            inputs_there,
            outputs_there,
        })
    }

    /// Its address.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// What is known of its signature before the server is asked.
    pub(super) fn signature(&self, settings: &ModelSettings) -> Signature {
        let unknown =
            || Signature { inputs: vec![], outputs: vec![], max_batch_size: settings.max_batch_size };
        self.signature.clone().unwrap_or_else(unknown)
    }
}

/// Takes a table of the server's names and ours. What is returned is by ours.
fn read_names(
    key: &'static str,
    declared: Option<&[TensorSpec]>,
    keys: &mut Keys,
    problems: &mut Problems,
) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (theirs, ours) in keys.take::<BTreeMap<String, String>>(key, problems).unwrap_or_default() {
        if declared.is_some_and(|specs| specs.iter().all(|spec| spec.name != ours)) {
            let got = abbreviate(&ours);
            problems.push(keys.message(key, &format!("expected a name of `[[{key}]]`, got {got:?}")));
        } else if theirs.is_empty() || theirs.len() > MAX_NAME_BYTES {
            problems.push(keys.message(key, &format!("expected names of 1 to {MAX_NAME_BYTES} bytes")));
        } else if let Some(other) = names.insert(ours.clone(), theirs) {
            let (ours, other) = (abbreviate(&ours), abbreviate(&other));
            problems.push(keys.message(key, &format!("{ours:?} is there twice: {other:?} is it already")));
        }
    }
    names
}

/// Whether it is https, and `host:port`. A path, a user or a query is none.
fn parse_url(url: &str) -> Option<(bool, String)> {
    let (tls, rest) = match url.split_once("://")? {
        ("http", rest) => (false, rest),
        ("https", rest) => (true, rest),
        _ => return None,
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = authority.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let is_named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !host.is_empty() && host.len() <= 253 && host.bytes().all(is_named)
        }
    };
    let is_port =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    (is_host && is_port).then(|| (tls, authority.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Package;
    use sconce_core::DeviceId;
    use std::fs;

    fn open(toml: &str) -> Result<Package, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.toml"), toml).unwrap();
        Package::open(dir.path(), DeviceId::Cpu).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_where_the_model_is() {
        let package = open(
            "family = 'remote'\nqueue_depth = 9\n[remote]\nurl = 'https://Models.example:8001/'\nmodel = 'fraud'\nversion = '3'\n\
             timeout_ms = 250\nretries = 0\n[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [-1, 4]\n\
             [[outputs]]\nname = 'y'\ndatatype = 'FP32'\nshape = [-1]\n",
        )
        .unwrap();
        let remote = package.remote().unwrap();
        assert_eq!((remote.url().as_str(), remote.model.as_str()), ("https://models.example:8001", "fraud"));
        assert_eq!((remote.version.as_str(), remote.retries), ("3", 0));
        assert_eq!((remote.timeout, remote.connections), (Duration::from_millis(250), 2));
        assert_eq!((package.settings.queue_depth, package.settings.max_batch_size), (9, 4096));
        assert_eq!(remote.signature.as_ref(), Some(&package.signature));
        assert!(package.load().is_err_and(|error| error.to_string().contains("remote")));
    }

    #[test]
    fn tensors_may_be_called_otherwise_over_there() {
        let text = "family = 'remote'\n[remote]\nurl = 'http://h:1'\nmodel = 'm'\n\
                    inputs = { input-0 = 'x' }\noutputs = { predict_proba = 'probabilities' }";
        let package = open(text).unwrap();
        let remote = package.remote().unwrap();
        assert_eq!(remote.inputs_there, [("x".to_owned(), "input-0".to_owned())].into());
        assert_eq!(remote.outputs_there, [("probabilities".to_owned(), "predict_proba".to_owned())].into());
    }

    #[test]
    fn without_tensors_the_server_is_asked() {
        let package = open("family = 'remote'\n[remote]\nurl = 'http://[::1]:80'\nmodel = 'm'").unwrap();
        assert!(package.remote().unwrap().signature.is_none() && package.signature.inputs.is_empty());
    }

    #[test]
    fn every_problem_is_reported() {
        for (toml, expected) in [
            ("", "expected a table with `url` and `model`"),
            ("[remote]\nurl = 'http://h:1'", "expected the name the server knows it by"),
            ("[remote]\nmodel = 'm'", "expected http://HOST:PORT"),
            ("[remote]\nmodel = 'm'\nurl = 'ftp://h:1'", "got \"ftp://h:1\""),
            ("[remote]\nmodel = 'm'\nurl = 'http://h'", "expected http://HOST:PORT"),
            ("[remote]\nmodel = 'm'\nurl = 'http://u@h:1'", "expected http://HOST:PORT"),
            ("[remote]\nmodel = 'm'\nurl = 'http://h:1/p'", "expected http://HOST:PORT"),
            ("[remote]\nmodel = 'm'\nurl = 'http://h:65536'", "expected http://HOST:PORT"),
            ("[remote]\nmodel = 'm'\nurl = 'http://h:1'\nretries = 6", "expected 0 to 5, got 6"),
            ("[remote]\nmodel = 'm'\nurl = 'http://h:1'\nca_file = 'a.pem'", "with https:// alone"),
            ("[remote]\nmodel = 'm'\nurl = 'https://h:1'\nca_file = 'a.pem'", "there is no `a.pem`"),
            ("[remote]\nmodel = 'm'\nurl = 'https://h:1'\nca_file = '../a.pem'", "../a.pem"),
            ("[remote]\nmodel = 'm'\nurl = 'https://h:1'\ntoken = 'x'", "unknown key `token`"),
            ("threads = 2\n[remote]\nmodel = 'm'\nurl = 'http://h:1'", "unknown key `threads`"),
            (
                "[remote]\nmodel = 'm'\nurl = 'http://h:1'\ninputs = { a = 'x', b = 'x' }",
                "\"x\" is there twice: \"a\" is it already",
            ),
            (
                "[remote]\nmodel = 'm'\nurl = 'http://h:1'\noutputs = { a = 'z' }\n[[inputs]]\nname = 'x'\n\
                 datatype = 'FP32'\nshape = [-1]\n[[outputs]]\nname = 'y'\ndatatype = 'FP32'\nshape = [-1]",
                "`outputs`: expected a name of `[[outputs]]`, got \"z\"",
            ),
            (
                "[remote]\nmodel = 'm'\nurl = 'http://h:1'\n[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [-1]",
                "or neither",
            ),
        ] {
            let problem = open(&format!("family = 'remote'\n{toml}")).unwrap_err();
            assert!(problem.contains(expected), "{toml}: {problem}");
        }
    }
}
