use crate::post;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Webhooks of one server.
pub(crate) const MAX_WEBHOOKS: usize = 8;
/// Types of events that one of them names.
const MAX_EVENTS: usize = 32;
/// Bytes of a secret, and the most that is read for one.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const READ_BYTES: u64 = 4096;
/// What a secret in Base64 begins with.
const ENCODED: &[u8] = b"whsec_";

/// Who is told what happens. At least one secret must be given; of two each signs, so that one can take the other's place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhook {
    /// Where events go, `http://host:port/path`.
    pub url: String,
    /// The file that holds the secret: 24 to 64 bytes, or `whsec_` and these in Base64. White space around it does not count.
    pub secret_file: Option<PathBuf>,
    /// The environment variable that holds the secret, in the same form.
    pub secret_env: Option<String>,
    /// The types of events, or beginnings of types that end in `*`: `sconce.rollout.*`. Default: all.
    pub events: Vec<String>,
}

impl Webhook {
    /// Calls `check` with each condition, and what is wrong where it does not hold.
    pub(super) fn check(&self, place: usize, check: &mut impl FnMut(bool, String)) {
        let at = format!("webhooks[{place}]");
        if let Err(error) = post::check_url(&self.url) {
            check(false, format!("{at}.url: {error}"));
        }
        if let Err(problem) = self.secrets() {
            check(false, format!("{at}.{problem}"));
        }
        let (events, most) = (self.events.len(), MAX_EVENTS);
        check(events <= most, format!("{at}.events: expected up to {most} types, got {events}"));
        for event in &self.events {
            let kind = event.strip_suffix('*').unwrap_or(event);
            let is_part = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.');
            let fits = !event.is_empty() && kind.len() <= 128 && kind.bytes().all(is_part);
            let got = sconce_core::abbreviate(event);
            check(fits, format!("{at}.events: expected a type such as `sconce.rollout.*`, got {got:?}"));
        }
    }

    /// The secrets, as they are now.
    ///
    /// # Errors
    /// What is wrong with which key.
    pub(crate) fn secrets(&self) -> Result<Vec<Vec<u8>>, String> {
        let file = self.secret_file.as_deref().map(|path| {
            let text = read(path).map_err(|error| format!("{}: {error}", path.display()));
            secret(&text.map_err(|problem| format!("secret_file: {problem}"))?)
                .map_err(|problem| format!("secret_file: {}: {problem}", path.display()))
        });
        let variable = self.secret_env.as_deref().map(|name| {
            let text = std::env::var(name).map_err(|error| format!("secret_env: {name:?}: {error}"))?;
            secret(text.as_bytes()).map_err(|problem| format!("secret_env: {name:?}: {problem}"))
        });
        let secrets = file.into_iter().chain(variable).collect::<Result<Vec<_>, String>>()?;
        if secrets.is_empty() {
            return Err("secret_file: expected it or secret_env, got neither".to_owned());
        }
        Ok(secrets)
    }

    /// Whether it is told of events of type `kind`.
    pub(crate) fn wants(&self, kind: &str) -> bool {
        let fits = |event: &String| match event.strip_suffix('*') {
            Some(beginning) => kind.starts_with(beginning),
            None => kind == event,
        };
        self.events.is_empty() || self.events.iter().any(fits)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(READ_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// The secret that `text` says. What it says is told to nobody.
fn secret(text: &[u8]) -> Result<Vec<u8>, String> {
    let text = text.trim_ascii();
    let secret = match text.strip_prefix(ENCODED) {
        Some(encoded) => {
            BASE64_STANDARD.decode(encoded).map_err(|_| "expected Base64 behind `whsec_`".to_owned())?
        }
        None => text.to_vec(),
    };
    if !SECRET_BYTES.contains(&secret.len()) {
        let (from, to) = SECRET_BYTES.into_inner();
        return Err(format!("expected a secret of {from} to {to} bytes, got {}", secret.len()));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServerConfig;
    use std::fs;

    #[test]
    fn secrets_are_bytes_or_base64_and_never_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let hook = Webhook { secret_file: Some(path.clone()), ..Webhook::default() };
        assert!(hook.secrets().unwrap_err().starts_with("secret_file: "));
        for (text, bytes) in [
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", Some(24)),
            ("  twenty-four bytes of text \n", Some(25)),
            ("short", None),
            ("whsec_secret!", None),
            (&"x".repeat(65), None),
            ("whsec_AAAA", None),
        ] {
            fs::write(&path, text).unwrap();
            match (hook.secrets(), bytes) {
                (Ok(secrets), Some(bytes)) => assert_eq!(secrets[0].len(), bytes),
                (Err(problem), None) => assert!(!problem.contains(text.trim()), "{problem}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_filter_names_types_or_their_beginnings() {
        let of = |events: &[&str]| Webhook {
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            ..Webhook::default()
        };
        let kind = "sconce.rollout.promoted.v1";
        for events in [&[][..], &["*"], &["sconce.rollout.*"], &["sconce.drift.*", kind]] {
            assert!(of(events).wants(kind), "{events:?}");
        }
        for events in [&["sconce.rollout."][..], &["sconce.rollout.promoted"], &["sconce.drift.*"]] {
            assert!(!of(events).wants(kind), "{events:?}");
        }
    }

    #[test]
    fn every_problem_of_a_webhook_is_told() {
        let text = "
            [[webhooks]]
            url = 'https://example.com/'
            events = ['sconce.*.v1', '']
            [[webhooks]]
            url = 'http://example.com/'
            secret_env = 'SCONCE_NO_SUCH_SECRET'
            secret_file = '/no/such/file'";
        let problems = ServerConfig::read(text, [], toml::Table::new()).unwrap_err().0;
        for part in [
            "webhooks[0].url: expected http://",
            "webhooks[0].secret_file: expected it or secret_env",
            "got \"sconce.*.v1\"",
            "got \"\"",
            "webhooks[1].secret_file: /no/such/file: ",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part} not in {problems:#?}");
        }
        assert_eq!(problems.len(), 5, "{problems:#?}");
        let many = "[[webhooks]]\nurl = 'http://example.com/'\n".repeat(9);
        let problems = ServerConfig::read(&many, [], toml::Table::new()).unwrap_err().0;
        assert!(problems[0].contains("expected up to 8, got 9"), "{problems:#?}");
        let unknown = ServerConfig::read("[[webhooks]]\nsecret = 'x'", [], toml::Table::new()).unwrap_err();
        assert!(unknown.0[0].contains("unknown field"), "{unknown}");
    }
}
