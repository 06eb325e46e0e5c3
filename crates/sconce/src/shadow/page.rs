//! What a shadow has shown, for people.

use crate::Failure;
use crate::report::{self, Figure, Report, Section, Sides};
use crate::text;
use sconce_client::control_proto as pb;
use sconce_traffic::compare;
use std::collections::BTreeMap;

/// Whose answers are compared.
const SIDES: Sides = Sides { first: "primary", second: "candidate" };

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
    let verdict = comparison.as_ref().map_or("nothing compared yet", |it| report::verdict(it.verdict));
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
            page.sections.push(report::evidence(&shadow.variant, &SIDES, &comparison));
            let output = |output| report::output(&shadow.variant, &SIDES, output);
            page.sections.extend(comparison.outputs.iter().map(output));
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
