//! `TraceSetting`: the settings of the protocol that mean something here, read and changed at run time.

use sconce_core::abbreviate;
use sconce_proto::inference::trace_setting_request::SettingValue;
use sconce_proto::inference::{TraceSettingResponse, trace_setting_response};
use sconce_telemetry::traces::Recorder;
use std::collections::BTreeMap;

/// A change of one setting.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    Enable(bool),
    /// The share that is kept; `None`: the configured one.
    Ratio(Option<f64>),
}

/// Makes all changes, or none.
///
/// # Errors
/// What was expected of the first setting that is wrong.
pub(crate) fn apply(
    recorder: &Recorder,
    model_name: &str,
    settings: &BTreeMap<String, SettingValue>,
) -> Result<(), String> {
    if settings.is_empty() {
        return Ok(());
    }
    if !model_name.is_empty() {
        return Err("trace settings are the server's: leave model_name empty to change them".to_owned());
    }
    let changes = settings.iter().map(|(name, value)| change(name, &value.value));
    let changes: Vec<Change> = changes.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    if changes.contains(&Change::Enable(true)) && !recorder.exports() {
        return Err("trace_level: expected OFF, for no traces.endpoint is configured".to_owned());
    }
    for change in changes {
        match change {
            Change::Enable(enabled) => recorder.enable(enabled),
            Change::Ratio(ratio) => recorder.set_ratio(ratio),
        }
    }
    let (enabled, ratio) = recorder.tracing();
    tracing::info!(enabled, ratio, "the trace settings were changed");
    Ok(())
}

/// The settings in force.
pub(crate) fn describe(recorder: &Recorder) -> TraceSettingResponse {
    let (enabled, ratio) = recorder.tracing();
    let rate = if ratio > 0.0 { (1.0 / ratio).round() } else { 0.0 };
    let settings = [
        ("trace_level", if enabled { "TIMESTAMPS" } else { "OFF" }.to_owned()),
        ("trace_rate", format!("{rate:.0}")),
        ("trace_count", "-1".to_owned()),
        ("trace_mode", "opentelemetry".to_owned()),
    ];
    let value = |text| trace_setting_response::SettingValue { value: vec![text] };
    TraceSettingResponse {
        settings: settings.map(|(name, text)| (name.to_owned(), value(text))).into_iter().collect(),
    }
}

/// What one setting asks for; no value asks for what was configured.
fn change(name: &str, value: &[String]) -> Result<Option<Change>, String> {
    let got = || abbreviate(&value.join(",")).into_owned();
    let value: Vec<&str> = value.iter().map(String::as_str).collect();
    match (name, &value[..]) {
        ("trace_level", ["OFF"]) => Ok(Some(Change::Enable(false))),
        ("trace_level", ["TIMESTAMPS"]) => Ok(Some(Change::Enable(true))),
        ("trace_level", _) => Err(format!(
            "trace_level: expected OFF or TIMESTAMPS (tensors are never traced), got {:?}",
            got()
        )),
        ("trace_rate", []) => Ok(Some(Change::Ratio(None))),
        ("trace_rate", [rate]) => match rate.parse::<u32>() {
            Ok(0) => Ok(Some(Change::Ratio(Some(0.0)))),
            Ok(rate) => Ok(Some(Change::Ratio(Some(1.0 / f64::from(rate))))),
            Err(_) => {
                Err(format!("trace_rate: expected N for one request in N, or 0 for none, got {:?}", got()))
            }
        },
        ("trace_count", [] | ["-1"]) | ("trace_mode", [] | ["opentelemetry"]) => Ok(None),
        ("trace_count", _) => {
            Err(format!("trace_count: expected -1, for there is no limit, got {:?}", got()))
        }
        ("trace_mode", _) => Err(format!("trace_mode: expected opentelemetry, got {:?}", got())),
        _ => {
            let known = "trace_level, trace_rate, trace_count, trace_mode";
            Err(format!("unknown trace setting {:?}: expected one of {known}", abbreviate(name)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_mean_what_they_say_or_are_refused() {
        let of = |name: &str, values: &[&str]| {
            change(name, &values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of("trace_level", &["OFF"]), Ok(Some(Change::Enable(false))));
        assert_eq!(of("trace_rate", &["4"]), Ok(Some(Change::Ratio(Some(0.25)))));
        assert_eq!(of("trace_rate", &["0"]), Ok(Some(Change::Ratio(Some(0.0)))));
        assert_eq!(of("trace_rate", &[]), Ok(Some(Change::Ratio(None))));
        assert_eq!(of("trace_count", &["-1"]), Ok(None));
        let long = "9".repeat(500);
        for (name, values) in [
            ("trace_level", &["TENSORS"][..]),
            ("trace_level", &["OFF", "TIMESTAMPS"]),
            ("trace_rate", &["-1"]),
            ("trace_rate", &["0.5"]),
            ("trace_rate", &["1", "2"]),
            ("trace_rate", &[&long]),
            ("trace_count", &["5"]),
            ("trace_mode", &["triton"]),
            ("trace_file", &["/tmp/x"]),
        ] {
            let message = of(name, values).unwrap_err();
            assert!(message.contains(name) && message.len() < 300, "{message}");
        }
    }
}
