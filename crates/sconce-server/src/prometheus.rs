//! What a Prometheus says: numbers that rollouts' gates ask for.

use crate::post::{check_url, exchange};
use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::Full;
use sconce_core::abbreviate;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A Prometheus, or what speaks its HTTP API.
#[derive(Debug)]
pub(crate) struct Prometheus {
    query: Uri,
}

/// An answer of the API.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: Value,
}

#[derive(Deserialize)]
struct Series {
    value: (f64, String),
}

impl Prometheus {
    /// The one at `url`, `http://host:port` with or without a path.
    ///
    /// # Errors
    /// `InvalidArgument` as [`check_url`].
    pub(crate) fn new(url: &str) -> sconce_core::Result<Self> {
        Ok(Self { query: check_url(&format!("{}/api/v1/query", url.trim_end_matches('/')))? })
    }

    /// The number that `query` gives now: of a scalar, or of a vector of one series.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn ask(&self, query: &str) -> Result<f64, String> {
        let asked = percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(format!("query={asked}"))))
            .map_err(|error| error.to_string())?;
        let answered = tokio::time::timeout(PATIENCE, exchange(&self.query, request)).await;
        let (status, body) = match answered {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(format!("Prometheus cannot be asked: {error}")),
            Err(_) => return Err(format!("Prometheus did not answer within {PATIENCE:?}")),
        };
        match serde_json::from_slice::<Answer>(&body) {
            Ok(answer) if status.is_success() => number(answer.data),
            Ok(answer) if !answer.error.is_empty() => {
                Err(format!("Prometheus says: {}", abbreviate(&answer.error)))
            }
            _ => Err(format!("Prometheus answered {status} with what is none of its answers")),
        }
    }
}

fn number(data: Option<Data>) -> Result<f64, String> {
    let none = || "it gives no number, expected a scalar or one series".to_owned();
    let Data { kind, result } = data.ok_or_else(none)?;
    let (_, text) = match kind.as_str() {
        "scalar" => serde_json::from_value::<(f64, String)>(result).map_err(|_| none())?,
        "vector" => {
            let series = serde_json::from_value::<Vec<Series>>(result).map_err(|_| none())?;
            let count = series.len();
            match <[Series; 1]>::try_from(series) {
                Ok([Series { value }]) => value,
                Err(_) => return Err(format!("it gives {count} series, expected one")),
            }
        }
        _ => return Err(none()),
    };
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(format!("it gives {:?}, expected a number", abbreviate(&text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_is_an_answer_and_nothing_else() {
        let of = |data: &str| {
            let answer: Answer =
                serde_json::from_str(&format!(r#"{{"status": "success", "data": {data}}}"#)).unwrap();
            number(answer.data)
        };
        assert_eq!(of(r#"{"resultType": "scalar", "result": [1.5, "2"]}"#), Ok(2.0));
        let series = r#"{"metric": {"job": "a"}, "value": [1435781451.781, "0.25"]}"#;
        assert_eq!(of(&format!(r#"{{"resultType": "vector", "result": [{series}]}}"#)), Ok(0.25));
        for (data, says) in [
            (r#"{"resultType": "vector", "result": []}"#.to_owned(), "0 series"),
            (format!(r#"{{"resultType": "vector", "result": [{series}, {series}]}}"#), "2 series"),
            (r#"{"resultType": "scalar", "result": [1, "NaN"]}"#.to_owned(), "NaN"),
            (r#"{"resultType": "string", "result": [1, "text"]}"#.to_owned(), "no number"),
            (r#"{"resultType": "matrix", "result": [{"metric": {}, "values": []}]}"#.to_owned(), "no number"),
            ("null".to_owned(), "no number"),
        ] {
            let error = of(&data).unwrap_err();
            assert!(error.contains(says), "{data}: {error}");
        }
    }
}
