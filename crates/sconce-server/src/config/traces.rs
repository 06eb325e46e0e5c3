use super::ServerConfig;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use sconce_telemetry::traces::{Protocol, Settings};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::time::Duration;
use toml::{Table, Value};

/// Traces of requests.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// The collector, `http://host:port`. Default none: no traces. `OTEL_EXPORTER_OTLP_ENDPOINT` where nothing else is said.
    pub endpoint: Option<String>,
    /// grpc (default) or http. `OTEL_EXPORTER_OTLP_PROTOCOL` where nothing else is said.
    pub protocol: String,
    /// What else each message to the collector says, such as a key it asks for. `OTEL_EXPORTER_OTLP_HEADERS` where nothing else is
    /// said.
    pub headers: BTreeMap<String, String>,
    /// The share of requests that is kept where their caller decided nothing. Default 0.01, 0 to 1. `OTEL_TRACES_SAMPLER_ARG`
    /// where nothing else is said.
    pub ratio: f64,
    /// Milliseconds from which on a request is kept for being slow. Default 1000.
    pub slow_ms: u64,
    /// Kept requests that wait for the exporter; what does not fit is dropped. Default 2048, 1 to 1048576.
    pub queue: usize,
    /// The name this server has in traces. Default `sconce`. `OTEL_SERVICE_NAME` where nothing else is said.
    pub service_name: String,
}

/// What `/metrics` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Whether the common metrics are there under Triton's names (`nv_*`) too. Default true.
    pub triton_names: bool,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: "grpc".to_owned(),
            headers: BTreeMap::new(),
            ratio: 0.01,
            slow_ms: 1000,
            queue: 2048,
            service_name: "sconce".to_owned(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { triton_names: true }
    }
}

impl Traces {
    /// Calls `check` with each condition, and what is wrong where it does not hold.
    pub(super) fn check(&self, check: &mut impl FnMut(bool, String)) {
        if let Err(problem) = self.protocol.parse::<Protocol>() {
            check(false, problem);
        }
        if let Some(endpoint) = &self.endpoint {
            let uri = endpoint.parse::<http::Uri>();
            let fits = uri.is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
            let got = sconce_core::abbreviate(endpoint);
            check(fits, format!("traces.endpoint: expected http://host:port, got {got:?}"));
        }
        if let Err(problem) = self.header_map() {
            check(false, problem);
        }
        let share = (0.0..=1.0).contains(&self.ratio);
        check(share, format!("traces.ratio: expected 0 to 1, got {}", self.ratio));
        let fits = (1..=1 << 20).contains(&self.queue);
        check(fits, format!("traces.queue: expected 1 to 1048576, got {}", self.queue));
    }

    /// The headers, as they are sent. Their values are told to nobody.
    fn header_map(&self) -> Result<HeaderMap, String> {
        let header = |(name, value): (&String, &String)| {
            let wrong = || format!("traces.headers: {:?} is no header", sconce_core::abbreviate(name));
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            Ok((HeaderName::from_str(name).map_err(|_| wrong())?, value))
        };
        self.headers.iter().map(header).collect()
    }
}

impl ServerConfig {
    /// What is kept of requests, and where it goes.
    ///
    /// # Errors
    /// `InvalidArgument` for a protocol or a policy that is none.
    pub(crate) fn recorder(&self) -> sconce_core::Result<Settings> {
        let headers = self.traces.header_map().map_err(sconce_core::Error::invalid)?;
        let Traces { endpoint, protocol, ratio, slow_ms, queue, service_name, .. } = self.traces.clone();
        Ok(Settings {
            endpoint,
            protocol: protocol.parse().map_err(sconce_core::Error::invalid)?,
            headers,
            ratio,
            slow: Duration::from_millis(slow_ms),
            queue,
            service_name,
            access: self.log.access.parse().map_err(sconce_core::Error::invalid)?,
        })
    }
}

/// What OpenTelemetry's own variables say, in the shape of the file. Everything else goes over it.
pub(super) fn standard_table(environment: &[(String, String)]) -> Table {
    let mut traces = Table::new();
    for (variable, key) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "endpoint"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "protocol"),
        ("OTEL_TRACES_SAMPLER_ARG", "ratio"),
        ("OTEL_SERVICE_NAME", "service_name"),
    ] {
        let value = environment.iter().find(|(name, text)| name == variable && !text.is_empty());
        let Some((_, text)) = value else { continue };
        let number = text.parse().ok().filter(|_| key == "ratio").map(Value::Float);
        traces.insert(key.to_owned(), number.unwrap_or_else(|| Value::String(text.clone())));
    }
    let headers = environment.iter().find(|(name, _)| name == "OTEL_EXPORTER_OTLP_HEADERS");
    let headers = headers.map(|(_, text)| standard_headers(text)).filter(|headers| !headers.is_empty());
    traces.extend(headers.map(|headers| ("headers".to_owned(), Value::Table(headers))));
    if traces.is_empty() {
        Table::new()
    } else {
        Table::from_iter([("traces".to_owned(), Value::Table(traces))])
    }
}

/// `name=value,…`, each value with `%` escapes, as the variable has them.
fn standard_headers(text: &str) -> Table {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let header = |part: &str| {
        // What has no value is no header: with a space in its name it is refused with the others.
        let Some((name, value)) = part.split_once('=') else {
            return (format!("{part} "), Value::String(String::new()));
        };
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8_lossy();
        (name.trim().to_owned(), Value::String(value.into_owned()))
    };
    parts.map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<ServerConfig, Vec<String>> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        ServerConfig::read(text, environment, Table::new()).map_err(|error| error.0)
    }

    #[test]
    fn what_opentelemetry_says_counts_where_nothing_else_is_said() {
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_TRACES_SAMPLER_ARG", "1"),
            ("OTEL_SERVICE_NAME", "five"),
        ];
        let said = read("", &environment).unwrap();
        assert_eq!(said.traces.endpoint.as_deref(), Some("http://collector:4317"));
        assert_eq!((said.traces.ratio, said.traces.service_name.as_str()), (1.0, "five"));
        assert_eq!(said.recorder().unwrap().protocol, Protocol::Http);
        let own = read("[traces]\nratio = 0.5\nservice_name = 'mine'", &environment).unwrap();
        assert_eq!((own.traces.ratio, own.traces.service_name.as_str()), (0.5, "mine"));
        let headers = |text| read("", &[("OTEL_EXPORTER_OTLP_HEADERS", text)]);
        let said = headers("api-key=a%20secret%3D1, x-tenant = me ,").unwrap().recorder().unwrap().headers;
        assert!(said["api-key"] == "a secret=1" && said["x-tenant"] == "me" && said.len() == 2, "{said:?}");
        assert!(!format!("{said:?}").contains("secret"));
        for bad in ["novalue", "a b=c", "a=%0A", "=x"] {
            assert_eq!(headers(bad).unwrap_err().len(), 1, "{bad}");
        }
        for bad in ["https://collector:4317", "collector", "http://", "ftp://x:1"] {
            assert_eq!(read("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", bad)]).unwrap_err().len(), 1, "{bad}");
        }
        let bad = "[traces]\nratio = nan\nqueue = 0\nprotocol = 'udp'\n[log]\naccess = 'some'";
        assert_eq!(read(bad, &[]).unwrap_err().len(), 4);
    }
}
