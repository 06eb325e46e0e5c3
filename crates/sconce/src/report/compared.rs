//! A comparison of answers to the same requests, as parts of a report.

use super::{Figure, Section, number};
use sconce_traffic::compare::{self, OutputReport, Share, Summary, Verdict};
use std::collections::BTreeMap;

/// How the two are called.
pub(crate) struct Sides {
    pub(crate) first: &'static str,
    pub(crate) second: &'static str,
}

/// What the evidence says, and how both ended. `of` is who is compared.
pub(crate) fn evidence(of: &str, sides: &Sides, comparison: &compare::Report) -> Section {
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
    let mut section = Section::new(format!("Evidence on {of}")).text(format!(
        "Over all: {}, by {} pairs. Intervals hold at all times together, however often one looks.",
        verdict(comparison.verdict),
        comparison.pairs
    ));
    let rows = comparison.findings.iter().map(row).collect();
    section = section.table(&["question", "verdict", "estimate", "interval", "margin", "pairs"], rows);
    let endings = comparison.endings.iter();
    let endings = endings.map(|it| vec![it.primary.clone(), it.candidate.clone(), it.count.to_string()]);
    let (first, second) = (format!("{} ended", sides.first), format!("{} ended", sides.second));
    section.table(&[&first, &second, "requests"], endings.collect())
}

/// One output's figures.
pub(crate) fn output(of: &str, sides: &Sides, output: &OutputReport) -> Section {
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
    let mut section = Section::new(format!("Output {} of {of}", output.name)).table(&["", ""], rows).table(
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
        let (rows, columns) = (sides.first.to_owned(), sides.second.to_owned());
        section = section.figure("Classes of both", Figure::Matrix { rows, columns, labels, counts });
    }
    section
}

/// A verdict for people.
pub(crate) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equal => "equal",
        Verdict::Different => "different",
        Verdict::NotEnoughEvidence => "not enough evidence",
    }
}
