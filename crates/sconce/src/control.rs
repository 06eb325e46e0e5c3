use crate::{Failure, Outcome};
use sconce_client::control_proto as pb;
use sconce_client::{
    Code, FeedbackClient, HealthClient, MonitorClient, Options, RegistryClient, Result, ReviewClient,
    TrafficClient,
};
use sconce_core::ErrorCode;
use sconce_registry::RegistryError;
use serde_json::{Value, json};
use std::fmt;
use std::process::ExitCode;

/// Their own heading: they are the same of every command.
const HEADING: &str = "Server, audit trail and output";

/// The exit code of a refused command line.
const BAD_USAGE: u8 = 2;

/// How the commands of the registry reach it, and how they say what it said.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Control {
    /// Address of the server's control listener
    #[arg(long, global = true, help_heading = HEADING, default_value = "127.0.0.1:8002", value_name = "ADDRESS")]
    admin: String,
    /// Who makes the change, for the audit trail [default: $USER, $LOGNAME or anonymous]
    #[arg(long, global = true, help_heading = HEADING, value_name = "NAME")]
    actor: Option<String>,
    /// Print JSON: one document, or a line for each item of watch and audit list
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) json: bool,
}

impl Control {
    /// The server's registry.
    pub(crate) async fn connect(&self) -> Result<RegistryClient, Failure> {
        let client = RegistryClient::connect(&self.admin, Options::default()).await.map_err(unreachable)?;
        Ok(client.actor(&self.actor())?)
    }

    /// The server's traffic.
    pub(crate) async fn traffic(&self) -> Result<TrafficClient, Failure> {
        let client = TrafficClient::connect(&self.admin, Options::default()).await.map_err(unreachable)?;
        Ok(client.actor(&self.actor())?)
    }

    /// The server's health.
    pub(crate) async fn health(&self) -> Result<HealthClient, Failure> {
        Ok(HealthClient::connect(&self.admin, Options::default()).await.map_err(unreachable)?)
    }

    /// The server's monitors.
    pub(crate) async fn monitors(&self) -> Result<MonitorClient, Failure> {
        let client = MonitorClient::connect(&self.admin, Options::default()).await.map_err(unreachable)?;
        Ok(client.actor(&self.actor())?)
    }

    /// What people decide on the server.
    pub(crate) async fn reviews(&self) -> Result<ReviewClient, Failure> {
        let client = ReviewClient::connect(&self.admin, Options::default()).await.map_err(unreachable)?;
        Ok(client.actor(&self.actor())?)
    }

    /// The server's feedback.
    pub(crate) async fn feedback(&self) -> Result<FeedbackClient, Failure> {
        Ok(FeedbackClient::connect(&self.admin, Options::default()).await.map_err(unreachable)?)
    }

    fn actor(&self) -> String {
        let from_env = || {
            let named = ["USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
            named.into_iter().find(|name| !name.trim().is_empty())
        };
        self.actor.clone().or_else(from_env).unwrap_or_else(|| "anonymous".to_owned())
    }

    /// A listener without a registry says nothing that would help.
    pub(crate) fn explain(&self, error: Failure) -> Failure {
        match error.downcast_ref::<sconce_client::Error>().map(sconce_client::Error::code) {
            Some(Code::Unimplemented) => {
                let message = format!(
                    "{}: no registry answers there: --admin wants the address of the control listener, `admin` in the server's log",
                    self.admin
                );
                Told::new(ErrorCode::Unimplemented.name(), message).into()
            }
            _ => error,
        }
    }

    /// What a command ends with. Machines are told a failure on standard output, as one line: some commands print a line for
    /// each item.
    pub(crate) fn end(&self, done: Outcome) -> Outcome {
        done.or_else(|error| {
            let error = self.explain(error);
            if self.json {
                // Who cannot be told here is told by the exit code.
                let _ = say!("{}", json!({ "error": describe(&error) }));
            }
            match error.downcast_ref::<Told>() {
                Some(told) if told.is_usage => Ok(crate::tell(error, ExitCode::from(BAD_USAGE))),
                _ => Err(error),
            }
        })
    }

    /// Prints `document` to machines; says whether it did.
    pub(crate) fn print_json(&self, document: impl FnOnce() -> Value) -> Result<bool, Failure> {
        if self.json {
            say!("{}", serde_json::to_string_pretty(&document())?)?;
        }
        Ok(self.json)
    }
}

/// A failure whose code is known, and told otherwise than by whoever found it out.
#[derive(Debug)]
pub(crate) struct Told {
    code: String,
    message: String,
    /// The command line was wrong, not what it asked for.
    is_usage: bool,
}

impl Told {
    pub(crate) fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), is_usage: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { is_usage: true, ..Self::new(ErrorCode::InvalidArgument.name(), message) }
    }

    /// `error`, told as `message`.
    pub(crate) fn of(error: &sconce_client::Error, message: impl Into<String>) -> Self {
        Self::new(name(error.code()), message)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Told {}

fn unreachable(error: sconce_client::Error) -> Told {
    let hint = "is `sconce serve` running there? --admin ADDRESS says where its control listener is";
    Told::of(&error, format!("{error}\n  {hint}"))
}

/// A failure for machines: its code, as gRPC calls it, and its message; of gates that were not passed, each.
pub(crate) fn describe(error: &Failure) -> Value {
    let code = if let Some(error) = error.downcast_ref::<sconce_client::Error>() {
        name(error.code())
    } else if let Some(error) = error.downcast_ref::<RegistryError>() {
        error.code().name().to_owned()
    } else if let Some(told) = error.downcast_ref::<Told>() {
        told.code.clone()
    } else {
        name(Code::Unknown)
    };
    let message = error.to_string();
    let mut described = json!({ "code": code, "message": message });
    if let Some(gates) = failed_gates(&message) {
        described["gates"] = gates;
    }
    described
}

/// `FAILED_PRECONDITION`.
fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && name.ends_with(|last: char| last.is_ascii_lowercase()) {
            name.push('_');
        }
        name.push(letter);
    }
    name.to_ascii_uppercase()
}

/// The gates in a refusal by gates: `… does not pass 2 gate(s): GATE: WHAT WAS FOUND; GATE: WHAT WAS FOUND`. None in another,
/// and in one that a text in it makes ambiguous.
fn failed_gates(message: &str) -> Option<Value> {
    let (before, failed) = message.split_once(" gate(s): ")?;
    let count: usize = before.rsplit(' ').next()?.parse().ok()?;
    let gates = failed.split("; ").map(|failed| failed.split_once(": "));
    let gates: Vec<_> = gates.collect::<Option<_>>()?;
    let gate = |(gate, detail): &(&str, &str)| json!({ "gate": gate, "passed": false, "detail": detail });
    (gates.len() == count).then(|| gates.iter().map(gate).collect())
}

/// `key=value`, as tags are given.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// `name=number`, as metrics are given.
pub(crate) fn metric(text: &str) -> Result<(String, f64), String> {
    let (name, value) = pair(text).map_err(|_| "expected NAME=NUMBER")?;
    match value.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok((name, value)),
        _ => Err(format!("expected a number after `{name}=`, got {value:?}")),
    }
}

/// Every model that fits, page by page.
pub(crate) async fn models(
    client: &RegistryClient,
    name_contains: &str,
    tags: &[String],
) -> Result<Vec<pb::Model>> {
    let mut request = pb::ListModelsRequest {
        page_size: PAGE,
        name_contains: name_contains.to_owned(),
        tags: tags.to_vec(),
        ..Default::default()
    };
    let mut models = Vec::new();
    loop {
        let page = client.list_models(request.clone()).await?;
        models.extend(page.models);
        if page.next_page_token.is_empty() {
            return Ok(models);
        }
        request.page_token = page.next_page_token;
    }
}

/// Every version of a model that fits, page by page.
pub(crate) async fn versions(
    client: &RegistryClient,
    model: &str,
    tags: &[String],
) -> Result<Vec<pb::Version>> {
    let mut request = pb::ListVersionsRequest {
        model: model.to_owned(),
        page_size: PAGE,
        tags: tags.to_vec(),
        ..Default::default()
    };
    let mut versions = Vec::new();
    loop {
        let page = client.list_versions(request.clone()).await?;
        versions.extend(page.versions);
        if page.next_page_token.is_empty() {
            return Ok(versions);
        }
        request.page_token = page.next_page_token;
    }
}

/// Items of one page.
pub(crate) const PAGE: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_a_code_and_the_gates_that_it_names() {
        assert_eq!(name(Code::FailedPrecondition), "FAILED_PRECONDITION");
        assert_eq!(name(Code::NotFound), "NOT_FOUND");
        assert_eq!(name(Code::Ok), "OK");
        let message =
            "model `m` version 2 does not pass 2 gate(s): auc at least 0.9: it has 0.8; smoke[0]: took 3 ms";
        let described = describe(&Told::new("FAILED_PRECONDITION", message).into());
        assert_eq!(described["code"], "FAILED_PRECONDITION");
        assert_eq!(
            described["gates"],
            json!([
                { "gate": "auc at least 0.9", "passed": false, "detail": "it has 0.8" },
                { "gate": "smoke[0]", "passed": false, "detail": "took 3 ms" },
            ])
        );
        for other in ["no such model", "does not pass 3 gate(s): a: b; c: d", "does not pass 1 gate(s): a"] {
            assert_eq!(failed_gates(other), None, "{other}");
        }
        assert_eq!(describe(&"anything".into()), json!({ "code": "UNKNOWN", "message": "anything" }));
    }
}
