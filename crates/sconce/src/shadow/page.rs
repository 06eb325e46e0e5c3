//! What a shadow has shown, for people.

use crate::Failure;
use crate::report::{Figure, Report, Section, number};
use crate::text;
use sconce_client::control_proto as pb;
use sconce_traffic::compare::{self, OutputReport, Share, Summary, Verdict};
use std::collections::BTreeMap;

/// The comparison in a shadow's report; `None` before there is one.
///
/// # Errors
/// One that is in a form of another version.
pub(super) fn comparison(shadow: &pb::Shadowed) -> Result<Option<compare::Report>, Failure> {
    match shadow.comparison_json.as_str() {
        "" => Ok(None),
        text => Ok(Some(serde_json::from_str(text)?)),
    }
}

/// A shadow in one line.
pub(super) fn line(shadow: &pb::Shadowed, comparison: &Option<compare::Report>) -> String {
    let (dropped, failed) = (sum(&shadow.dropped), sum(&shadow.failed));
    let name = format!("{} {} (version {})", shadow.model, shadow.variant, version(shadow.version));
    let verdict = comparison.as_ref().map_or("nothing compared yet", |it| self::verdict(it.verdict));
    let counts = format!(
        "{} offered, {} compared, {dropped} dropped, {failed} failed",
        shadow.offered, shadow.compared
    );
    let why = shadow
        .explanations
        .last()
        .map_or(String::new(), |why| format!("; last: {}", crate::table::plain(why)));
    format!("{name}: {verdict}; {counts}{why}")
}

/// Every shadow of an answer.
///
/// # Errors
/// As [`comparison`].
pub(super) fn page(shadows: &[pb::Shadowed]) -> Result<Report, Failure> {
    let model = shadows.first().map_or("", |shadow| &shadow.model);
    let mut page = Report { title: format!("Shadows of {model}"), ..Report::default() };
    if let Some(first) = shadows.first() {
        page.about = format!("{} UTC to {} UTC", text::time(first.since_ms), text::time(first.at_ms));
    }
    for shadow in shadows {
        page.sections.push(summary(shadow));
        if let Some(comparison) = comparison(shadow)? {
            page.sections.push(evidence(shadow, &comparison));
            page.sections.extend(comparison.outputs.iter().map(|output| self::output(shadow, output)));
        }
    }
    Ok(page)
}

fn summary(shadow: &pb::Shadowed) -> Section {
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let with = shadow.primaries.iter().map(|(version, count)| format!("{version} ({count})"));
    let rows = vec![
        row("candidate", format!("{} → version {}", shadow.target, version(shadow.version))),
        row("compared with version", with.collect::<Vec<_>>().join(", ")),
        row("offered", shadow.offered.to_string()),
        row("compared", shadow.compared.to_string()),
        row("the same to the last bit", shadow.identical.to_string()),
        row("dropped, never run", reasons(&shadow.dropped)),
        row("failed", reasons(&shadow.failed)),
        row("waiting, running", format!("{}, {}", shadow.waiting, shadow.running)),
    ];
    let mut section = Section::new(format!("Shadow {}", shadow.variant)).table(&["", ""], rows);
    if !shadow.explanations.is_empty() {
        let rows = shadow.explanations.iter().map(|why| vec![why.clone()]).collect();
        section = section.table(&["what went wrong, the latest last"], rows);
    }
    if let (Some(primary), Some(candidate)) = (&shadow.primary_ms, &shadow.candidate_ms) {
        let line = |it: &pb::Quantiles| vec![it.p50, it.p90, it.p95, it.p99];
        let places = ["p50", "p90", "p95", "p99"].map(str::to_owned).to_vec();
        let lines = vec![("primary".to_owned(), line(primary)), ("candidate".to_owned(), line(candidate))];
        section = section.figure(
            "Milliseconds of the same requests: the primary's from the front door to the answer, the candidate's from its start to its end",
            Figure::Lines { places, lines },
        );
    }
    if shadow.agreement.len() > 1 {
        let places = shadow.agreement.iter().map(|point| text::time(point.at_ms)).collect();
        let line = shadow.agreement.iter().map(|point| point.identical as f64 / point.compared.max(1) as f64);
        let lines = vec![("identical answers".to_owned(), line.collect())];
        section = section.figure("Share of identical answers over time", Figure::Lines { places, lines });
    }
    if !shadow.differences.is_empty() {
        let name = |exponent: i32| match exponent {
            i32::MIN => "0".to_owned(),
            exponent => format!("1e{exponent}"),
        };
        let bars = shadow.differences.iter().map(|(exponent, count)| (name(*exponent), *count as f64));
        section = section
            .figure("Answers by their largest absolute difference, up to", Figure::Bars(bars.collect()));
    }
    section
}

fn evidence(shadow: &pb::Shadowed, comparison: &compare::Report) -> Section {
    let row = |finding: &compare::Finding| {
        let interval = finding.interval.as_ref();
        vec![
            finding.name.clone(),
            verdict(finding.verdict).to_owned(),
            finding.estimate.map_or(String::new(), number),
            interval.map_or(String::new(), |it| format!("{} to {}", number(it.low), number(it.high))),
            number(finding.margin),
            finding.pairs.to_string(),
        ]
    };
    let mut section = Section::new(format!("Evidence on {}", shadow.variant)).text(format!(
        "Over all: {}, by {} pairs. Intervals hold at all times together, however often one looks.",
        verdict(comparison.verdict),
        comparison.pairs
    ));
    let rows = comparison.findings.iter().map(row).collect();
    section = section.table(&["question", "verdict", "estimate", "interval", "margin", "pairs"], rows);
    let endings = comparison.endings.iter();
    let endings = endings.map(|it| vec![it.primary.clone(), it.candidate.clone(), it.count.to_string()]);
    section.table(&["primary ended", "candidate ended", "requests"], endings.collect())
}

fn output(shadow: &pb::Shadowed, output: &OutputReport) -> Section {
    let mut rows = Vec::new();
    let mut share = |what: &str, share: &Share| {
        if let Some(rate) = share.rate() {
            rows.push(vec![
                what.to_owned(),
                format!("{} of {} ({} %)", share.count, share.of, number(rate * 100.0)),
            ]);
        }
    };
    share("rows that disagree", &output.disagreeing);
    share("rows with the same top class", &output.top1);
    share("elements beyond the tolerance", &output.breaches);
    share("answers that do not fit", &output.mismatched);
    for (what, mean) in [
        ("bias", &output.bias),
        ("cosine", &output.cosine),
        ("Kullback–Leibler divergence, nats", &output.kl),
        ("Jensen–Shannon distance", &output.js),
    ] {
        if let Some(mean) = mean {
            rows.push(vec![what.to_owned(), format!("{} ± {}", number(mean.mean), number(mean.deviation))]);
        }
    }
    let quantiles = |what: &str, it: &Option<Summary>| {
        let it = it.as_ref()?;
        let cells = [it.mean, it.p50, it.p90, it.p99, it.max].map(number);
        Some(std::iter::once(what.to_owned()).chain(cells).collect::<Vec<_>>())
    };
    let differences = [quantiles("absolute", &output.absolute), quantiles("relative", &output.relative)];
    let mut section =
        Section::new(format!("Output {} of {}", output.name, shadow.variant)).table(&["", ""], rows).table(
            &["difference", "mean", "p50", "p90", "p99", "max"],
            differences.into_iter().flatten().collect(),
        );
    if let Some(classes) = &output.classes {
        let labels: Vec<String> = classes.classes.iter().map(|class| class.class.clone()).collect();
        let counts: BTreeMap<(&str, &str), u64> =
            classes.cells.iter().map(|it| ((it.primary.as_str(), it.candidate.as_str()), it.count)).collect();
        let count = |row: &String, column: &String| {
            counts.get(&(row.as_str(), column.as_str())).copied().unwrap_or(0)
        };
        let counts =
            labels.iter().map(|row| labels.iter().map(|column| count(row, column)).collect()).collect();
        let (rows, columns) = ("primary".to_owned(), "candidate".to_owned());
        section = section.figure("Classes of both", Figure::Matrix { rows, columns, labels, counts });
    }
    section
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equal => "equal",
        Verdict::Different => "different",
        Verdict::NotEnoughEvidence => "not enough evidence",
    }
}

fn version(version: u64) -> String {
    if version == 0 { "none yet".to_owned() } else { version.to_string() }
}

fn sum(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}

/// `3 queue, 1 shed`.
fn reasons(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return "0".to_owned();
    }
    counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report;
    use sconce_core::{DataType, Tensor};
    use sconce_traffic::compare::{CompareSpec, Comparison, Pair};
    use std::time::Duration;

    fn probabilities(first: f32) -> Tensor {
        let bytes: Vec<u8> = [first, 1.0 - first].iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(DataType::Fp32, vec![1, 2], bytes.into()).unwrap()
    }

    fn shadowed() -> pb::Shadowed {
        let mut comparison = Comparison::new(CompareSpec::default(), 1).unwrap();
        for number in 0..50 {
            let (primary, candidate) =
                (probabilities(0.9), probabilities(if number % 5 == 0 { 0.2 } else { 0.9 }));
            let pair = Pair {
                id: "p",
                primary: Ok(&[("probs", &primary)]),
                candidate: Ok(&[("probs", &candidate)]),
                primary_latency: Duration::from_millis(2),
                candidate_latency: Duration::from_millis(3),
            };
            comparison.add(&pair, || None);
        }
        let quantiles = |p50| Some(pb::Quantiles { p50, p90: 2.0 * p50, p95: 3.0 * p50, p99: 4.0 * p50 });
        pb::Shadowed {
            model: "m".to_owned(),
            variant: "new".to_owned(),
            target: "2".to_owned(),
            version: 2,
            primaries: [(1, 50)].into(),
            offered: 60,
            compared: 50,
            identical: 40,
            dropped: [("queue".to_owned(), 7)].into(),
            failed: [("INTERNAL".to_owned(), 3)].into(),
            explanations: vec!["INTERNAL: <it> panicked".to_owned()],
            primary_ms: quantiles(2.0),
            candidate_ms: quantiles(3.0),
            differences: [(i32::MIN, 40), (0, 10)].into(),
            agreement: [0, 1].map(|at_ms| pb::Agreement { at_ms, compared: 25, identical: 20 }).to_vec(),
            comparison_json: serde_json::to_string(&comparison.report()).unwrap(),
            ..Default::default()
        }
    }

    #[test]
    fn all_that_a_shadow_has_shown_is_on_its_page() {
        let shadow = shadowed();
        let page = page(std::slice::from_ref(&shadow)).unwrap();
        let text = report::markdown(&page);
        for part in [
            "| offered | 60 |",
            "7 queue",
            "3 INTERNAL",
            "&lt;it> panicked",
            "Output probs of new",
            "| primary \\ candidate |",
        ] {
            assert!(text.contains(part), "{part}\nnot in\n{text}");
        }
        // Latency, agreement, differences and classes.
        assert_eq!(report::html(&page).matches("<svg").count(), 4);
        let line = line(&shadow, &comparison(&shadow).unwrap());
        assert!(
            line.starts_with("m new (version 2): ")
                && line.contains("60 offered, 50 compared, 7 dropped, 3 failed"),
            "{line}"
        );
    }

    #[test]
    fn a_shadow_that_has_shown_nothing_has_a_page() {
        let shadow = pb::Shadowed { model: "m".to_owned(), variant: "new".to_owned(), ..Default::default() };
        let text = report::markdown(&page(std::slice::from_ref(&shadow)).unwrap());
        assert!(text.contains("version none yet"), "{text}");
        assert!(line(&shadow, &None).contains("nothing compared yet"));
    }
}
