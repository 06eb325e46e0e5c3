use crate::Failure;
use sconce_client::control_proto as pb;
use sconce_client::{
    Code, FeedbackClient, HealthClient, MonitorClient, Options, RegistryClient, Result, TrafficClient,
};
use serde_json::Value;

/// Their own heading: they are the same of every command.
const HEADING: &str = "Server, audit trail and output";

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
            Some(Code::Unimplemented) => format!(
                "{}: no registry answers there: --admin wants the address of the control listener, `admin` in the server's log",
                self.admin
            )
            .into(),
            _ => error,
        }
    }

    /// Prints `document` to machines; says whether it did.
    pub(crate) fn print_json(&self, document: impl FnOnce() -> Value) -> Result<bool, Failure> {
        if self.json {
            say!("{}", serde_json::to_string_pretty(&document())?)?;
        }
        Ok(self.json)
    }
}

fn unreachable(error: sconce_client::Error) -> String {
    format!("{error}\n  is `sconce serve` running there? --admin ADDRESS says where its control listener is")
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
