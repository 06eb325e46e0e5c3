use super::keep::Reason;
use super::observed::Observed;
use super::spans;
use std::str::FromStr;
use tracing::field::display;

/// Which requests get a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Those that fail.
    #[default]
    Errors,
    /// Those whose trace is kept, failures among them.
    Sampled,
    /// Every one.
    All,
    /// None.
    Off,
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "errors" => Ok(Self::Errors),
            "sampled" => Ok(Self::Sampled),
            "all" => Ok(Self::All),
            "off" => Ok(Self::Off),
            _ => Err(format!("log access: expected errors, sampled, all or off, got {text:?}")),
        }
    }
}

impl Access {
    /// Whether a request that failed, or is kept, gets its line.
    pub(crate) fn wants(self, failed: bool, kept: bool) -> bool {
        match self {
            Self::Errors => failed,
            Self::Sampled => failed || kept,
            Self::All => true,
            Self::Off => false,
        }
    }
}

/// Writes a request's line: what it was and what became of it, nothing of what it held.
pub(crate) fn write(observed: &Observed, reason: Option<Reason>) {
    let trace_id = format!("{:032x}", observed.trace.trace_id);
    let span_id = format!("{:016x}", observed.trace.span_id);
    let prediction_id = observed.prediction_id.map(display);
    let model = observed.named().map(|(model, _)| model);
    let version = observed.named().map(|(_, version)| version).filter(|version| !version.is_empty());
    let latency_ms = observed.time().as_secs_f64() * 1e3;
    let status = spans::status(observed.code).1;
    let tenant = observed.tenant.as_deref();
    let kept = reason.map(Reason::name);
    let method = observed.method.name();
    // A level is a constant of its line.
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "sconce::access",
                method, model, version, status, latency_ms, trace_id, span_id, prediction_id, tenant, kept,
                "request"
            )
        };
    }
    if observed.code.is_some() { line!(warn) } else { line!(info) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::observed::tests::observed;
    use sconce_core::ErrorCode;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[test]
    fn each_policy_takes_its_requests() {
        let taken = |policy: &str| {
            let access: Access = policy.parse().unwrap();
            [(false, false), (false, true), (true, true)].map(|(failed, kept)| access.wants(failed, kept))
        };
        assert_eq!(taken("errors"), [false, false, true]);
        assert_eq!(taken("sampled"), [false, true, true]);
        assert_eq!(taken("all"), [true; 3]);
        assert_eq!(taken("off"), [false; 3]);
        assert!("loud".parse::<Access>().unwrap_err().contains("sampled"));
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_json_with_what_finds_the_request_again() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        let mut observed = observed();
        observed.tenant = Some("a \"tenant\"\n".into());
        tracing::subscriber::with_default(subscriber, || {
            write(&observed, Some(Reason::Ratio));
            observed.code = Some(ErrorCode::NotFound);
            (observed.target, observed.prediction_id, observed.tenant) = (None, None, None);
            write(&observed, None);
            observed.asked = Some(Box::new(("nobody".to_owned(), String::new())));
            write(&observed, None);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let [good, bad, unknown] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        for part in [
            format!("\"trace_id\":\"{:032x}\"", observed.trace.trace_id),
            format!("\"span_id\":\"{:016x}\"", observed.trace.span_id),
            "\"model\":\"m\",\"version\":\"1\",\"status\":\"OK\",\"latency_ms\":10.0".to_owned(),
            "\"prediction_id\":\"".to_owned(),
            "\"tenant\":\"a \\\"tenant\\\"\\n\"".to_owned(),
            "\"level\":\"INFO\"".to_owned(),
        ] {
            assert!(good.contains(&part), "{part} not in {good}");
        }
        assert!(bad.contains("\"status\":\"NOT_FOUND\"") && bad.contains("\"level\":\"WARN\""), "{bad}");
        assert!(!bad.contains("model\"") && !bad.contains("tenant"), "{bad}");
        assert!(unknown.contains("\"model\":\"nobody\"") && !unknown.contains("version"), "{unknown}");
    }
}
