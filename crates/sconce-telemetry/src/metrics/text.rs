//! The two text formats. The encoder writes OpenMetrics; Prometheus' older format differs in how it names the families, and
//! exemplars are put in here, for the encoder takes none from outside.

use crate::traces::Exemplar;
use sconce_core::DurationHistogram;
use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

/// The histogram whose buckets have exemplars. Its lines come model by model, bucket by bucket.
pub(super) const WITH_EXEMPLARS: &str = "sconce_request_duration_seconds";

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Prometheus 0.0.4, which everybody reads.
    #[default]
    Text,
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
}

impl Format {
    /// What a request with this `Accept` header gets: OpenMetrics where it likes that no less than plain text.
    pub fn of_accept(accept: &str) -> Self {
        let weight = |wanted: &str| {
            let ranges = accept.split(',').map(|range| range.split(';').map(str::trim).collect::<Vec<_>>());
            let of = |range: Vec<&str>| {
                let quality = range.iter().find_map(|parameter| parameter.strip_prefix("q="));
                let named = range.first().is_some_and(|name| name.eq_ignore_ascii_case(wanted));
                named.then(|| quality.map_or(Some(1.0), |quality| quality.parse::<f32>().ok())).flatten()
            };
            ranges.filter_map(of).fold(0.0, f32::max)
        };
        let open = weight("application/openmetrics-text");
        if open > 0.0 && open >= weight("text/plain") { Self::OpenMetrics } else { Self::Text }
    }

    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The exemplars of one model version, a bucket each.
type OfVersion = Option<[Option<Exemplar>; DurationHistogram::BUCKETS]>;

/// OpenMetrics text in `format`, with the exemplars of each model version, in the order of the text.
pub(super) fn finish(text: String, format: Format, exemplars: &[OfVersion]) -> String {
    match format {
        Format::Text => classic(&text),
        Format::OpenMetrics if exemplars.iter().any(Option::is_some) => with_exemplars(&text, exemplars),
        Format::OpenMetrics => text,
    }
}

fn with_exemplars(text: &str, exemplars: &[OfVersion]) -> String {
    let mut buckets = exemplars.iter().flat_map(|of_version| of_version.unwrap_or_default());
    let mut output = String::with_capacity(text.len() + (16 << 10));
    for line in text.lines() {
        output.push_str(line);
        let rest = line.strip_prefix(WITH_EXEMPLARS).unwrap_or_default();
        if rest.starts_with("_bucket{")
            && let Some(Exemplar { trace_id, seconds, at }) = buckets.next().flatten()
        {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            // Writing into a string does not fail.
            let _ = write!(output, " # {{trace_id=\"{trace_id:032x}\"}} {seconds} {at:.3}");
        }
        output.push('\n');
    }
    output
}

/// In the older format a family has its samples' name, and the kinds `info` and `unknown` are not known.
fn classic(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = Some(said);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|said| said.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, help)) = help.take().and_then(|said: &str| said.split_once(' ')) {
                let _ = writeln!(output, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(output, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            output.push_str(line);
            output.push('\n');
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_scraper_gets_what_it_likes_best() {
        for (accept, expected) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
                Format::OpenMetrics,
            ),
            ("text/plain;q=0.5, Application/OpenMetrics-Text; q=0.4", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=nonsense", Format::Text),
            (",;,;q=,q=1", Format::Text),
        ] {
            assert_eq!(Format::of_accept(accept), expected, "{accept:?}");
        }
    }

    const OPEN: &str = "# HELP a Rows.\n# TYPE a counter\na_total{x=\"# TYPE b counter\"} 1\n\
        # HELP b Build.\n# TYPE b info\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c unknown\nc 2\n# EOF\n";

    #[test]
    fn the_older_format_names_its_families_as_their_samples() {
        let expected = "# HELP a_total Rows.\n# TYPE a_total counter\na_total{x=\"# TYPE b counter\"} 1\n\
            # HELP b_info Build.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c untyped\nc 2\n";
        assert_eq!(finish(OPEN.to_owned(), Format::Text, &[]), expected);
        assert_eq!(finish(OPEN.to_owned(), Format::OpenMetrics, &[None]), OPEN);
    }

    #[test]
    fn exemplars_stand_in_their_buckets() {
        let mut buckets = [None; DurationHistogram::BUCKETS];
        let at = UNIX_EPOCH + Duration::from_millis(1500);
        buckets[1] = Some(Exemplar { trace_id: 0xabc, seconds: 0.25, at });
        let line = |model: usize, bucket: usize| {
            format!("{WITH_EXEMPLARS}_bucket{{le=\"{bucket}\",m=\"{model}\"}} 1\n")
        };
        let mut text = String::new();
        for model in 0..2 {
            let _ = writeln!(text, "{WITH_EXEMPLARS}_sum{{m=\"{model}\"}} 1");
            (0..DurationHistogram::BUCKETS).for_each(|bucket| text.push_str(&line(model, bucket)));
        }
        let done = finish(text.clone(), Format::OpenMetrics, &[None, Some(buckets)]);
        let marked: Vec<&str> = done.lines().filter(|line| line.contains(" # ")).collect();
        let expected = format!("{} # {{trace_id=\"{:032x}\"}} 0.25 1.500", line(1, 1).trim_end(), 0xabc);
        assert_eq!(marked, [expected]);
        assert_eq!(done.lines().count(), text.lines().count());
    }
}
