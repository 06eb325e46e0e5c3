//! What a comparison found, for people.

use super::Comparison;
use crate::report::{Figure, Report, Section, number};
use crate::{Failure, table, text};
use sconce_monitor::{BinaryMetrics, Check, Estimate, Estimated, FeatureVerdict, State, Trust, Verdict};

/// Features with a picture: those that changed most.
const PICTURED: usize = 20;
/// Features whose course is drawn.
const FOLLOWED: usize = 4;
/// Bins or categories of a picture.
const SHOWN_CELLS: usize = 33;

/// In a few lines, for a terminal.
pub(super) fn lines(found: &Comparison) -> Result<(), Failure> {
    let verdict = &found.verdict;
    say!("{}: {}", table::plain(&found.current), summary(verdict))?;
    let rows: Vec<Vec<String>> = ordered(verdict).into_iter().map(row).collect();
    say!("{}", table::render(&HEADER, &rows).trim_end())?;
    for check in verdict.failed() {
        say!("{}", failure(check))?;
    }
    if let Some(estimate) = &found.estimate {
        say!("{}", believed(estimate))?;
    }
    if let Some(realised) = &found.realised {
        let (accuracy, auc) = (realised.accuracy, realised.roc_auc);
        say!("realised: accuracy {accuracy:.4}, ROC AUC {auc:.4}, by {} labels", realised.count)?;
    }
    if !found.chunks.is_empty() {
        let rows: Vec<Vec<String>> = chunks(found);
        say!("{}", table::render(&CHUNK_HEADER, &rows).trim_end())?;
    }
    found.notes.iter().try_for_each(|note| say!("{}", table::plain(note)))?;
    Ok(())
}

/// As a page.
pub(super) fn page(found: &Comparison) -> Report {
    let verdict = &found.verdict;
    let about = format!(
        "{} ({} rows) against {} ({} rows): {}",
        found.current,
        verdict.rows,
        found.reference,
        found.reference_rows,
        summary(verdict)
    );
    let mut sections = vec![features(found), quality(verdict)];
    if found.estimate.is_some() || found.realised.is_some() {
        sections.push(performance(found));
    }
    if found.chunks.len() > 1 {
        sections.push(course(found));
    }
    sections.extend(ordered(verdict).into_iter().take(PICTURED).map(feature));
    Report { title: format!("Drift of {}", found.current), about, sections }
}

fn summary(verdict: &Verdict) -> String {
    let names: Vec<&str> = verdict.drifted().into_iter().map(|it| it.feature.as_str()).collect();
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > 5 { format!(" and {} more", names.len() - 5) } else { String::new() };
    let failed = match verdict.failed().len() as u64 {
        0 => String::new(),
        failed => format!("; {} of quality failed", text::count(failed, "check")),
    };
    let of = verdict.features.len();
    match verdict.state {
        State::Drifted if names.is_empty() => format!("drifted{failed}"),
        State::Drifted => {
            format!("drifted: {} of {of} features ({}{more}){failed}", names.len(), table::plain(&shown))
        }
        State::Stable => format!("stable, all {of} features"),
        State::NotEnoughEvidence => {
            let stable = verdict.features.iter().filter(|it| it.state == State::Stable).count();
            format!("not enough evidence: {stable} of {of} features are stable, none has drifted")
        }
    }
}

/// The largest change first; what has drifted before what has not.
fn ordered(verdict: &Verdict) -> Vec<&FeatureVerdict> {
    let mut features: Vec<&FeatureVerdict> = verdict.features.iter().collect();
    let rank = |it: &FeatureVerdict| u8::from(it.state != State::Drifted);
    features.sort_by(|a, b| rank(a).cmp(&rank(b)).then(b.psi.total_cmp(&a.psi)));
    features
}

const HEADER: [&str; 6] = ["feature", "verdict", "PSI", "interval", "evidence", "what changed"];

fn row(feature: &FeatureVerdict) -> Vec<String> {
    vec![
        feature.feature.clone(),
        feature.state.as_str().to_owned(),
        number(feature.psi),
        format!("{} to {}", number(feature.interval.low), number(feature.interval.high)),
        evidence(feature.log_evidence),
        change(feature),
    ]
}

/// How many times as likely the data is with a change as without.
fn evidence(log: f64) -> String {
    match log / std::f64::consts::LN_10 {
        digits if digits < 0.0 => "none".to_owned(),
        digits if digits < 4.0 => format!("{:.0} : 1", 10_f64.powf(digits)),
        digits => format!("10^{digits:.0} : 1"),
    }
}

fn change(feature: &FeatureVerdict) -> String {
    let largest = || {
        feature.cells.first().map_or_else(String::new, |cell| {
            format!("{}: {:.1} % → {:.1} %", cell.label, 100.0 * cell.reference, 100.0 * cell.current)
        })
    };
    match &feature.numeric {
        Some(it) if it.current.0.is_finite() && it.reference.0.is_finite() => {
            format!("median {} → {}", number(it.reference_quantiles[2]), number(it.current_quantiles[2]))
        }
        _ => largest(),
    }
}

fn features(found: &Comparison) -> Section {
    let rows = ordered(&found.verdict).into_iter().map(row).collect();
    let mut section = Section::new("Features").text(format!(
        "Drifted is what shows a change of at least {} as a stability index (PSI), and evidence of it at level {}. Stable is what \
         shows that its change is smaller. Evidence says how many times as likely the data is with a change as without, and \
         holds however often one looks.",
        number(found.verdict.minimum_psi),
        number(found.verdict.level)
    ));
    section = section.table(&HEADER, rows);
    if !found.notes.is_empty() {
        section = section.table(&["left out"], found.notes.iter().map(|note| vec![note.clone()]).collect());
    }
    section
}

fn quality(verdict: &Verdict) -> Section {
    let row = |check: &Check| {
        let what = check.feature.clone().unwrap_or_else(|| "rows".to_owned());
        let share = |share: f64| format!("{:.2} %", 100.0 * share);
        let state = match check.state {
            State::Drifted => "fails",
            State::Stable => "passes",
            State::NotEnoughEvidence => "not enough evidence",
        };
        vec![
            what,
            check.kind.as_str().to_owned(),
            state.to_owned(),
            share(check.reference),
            share(check.current),
        ]
    };
    // Of what passes only the number is of interest.
    let passes = verdict.checks.iter().filter(|check| check.state == State::Stable).count();
    let rows = verdict.checks.iter().filter(|check| check.state != State::Stable).map(row).collect();
    Section::new("Quality")
        .text(format!("{passes} of {} pass.", text::count(verdict.checks.len() as u64, "check")))
        .table(&["feature", "check", "state", "reference", "current"], rows)
}

fn failure(check: &Check) -> String {
    let what = check.feature.as_deref().map_or_else(|| "rows".to_owned(), table::plain);
    format!(
        "✗ {what}: {} {:.2} % → {:.2} %",
        check.kind.as_str(),
        100.0 * check.reference,
        100.0 * check.current
    )
}

fn believed(estimate: &Estimate) -> String {
    let figure = |it: &Estimated| {
        format!("{} ({} to {})", number(it.value), number(it.band.low), number(it.band.high))
    };
    let trust = match estimate.trust {
        Trust::Holds => String::new(),
        Trust::Widened => format!(
            "; {:.1} % of the rows have no counterpart in the reference (`{}`), the bands are wider by that",
            100.0 * estimate.unknown,
            table::plain(&estimate.most_unknown)
        ),
        Trust::Broken => format!(
            "; NOT TO BE BELIEVED: {:.1} % of the rows have no counterpart in the reference (`{}`)",
            100.0 * estimate.unknown,
            table::plain(&estimate.most_unknown)
        ),
    };
    format!(
        "estimated: accuracy {}, ROC AUC {}{trust}",
        figure(&estimate.accuracy),
        figure(&estimate.roc_auc)
    )
}

fn performance(found: &Comparison) -> Section {
    let mut rows = Vec::new();
    let of = |name: &str, it: &BinaryMetrics| {
        vec![
            name.to_owned(),
            it.count.to_string(),
            number(it.accuracy),
            number(it.roc_auc),
            number(it.f1),
            number(it.log_loss),
            number(it.brier),
            number(it.calibration_error),
        ]
    };
    rows.extend(found.baseline.as_ref().map(|it| of("reference, with labels", it)));
    rows.extend(found.realised.as_ref().map(|it| of("now, with labels", it)));
    if let Some(it) = &found.estimate {
        let figure = |it: &Estimated| {
            format!("{} ({} to {})", number(it.value), number(it.band.low), number(it.band.high))
        };
        let figures = [figure(&it.accuracy), figure(&it.roc_auc), figure(&it.f1)];
        let none = std::iter::repeat_n(String::new(), 3);
        let named = ["now, without labels".to_owned(), it.count.to_string()];
        rows.push(named.into_iter().chain(figures).chain(none).collect());
    }
    let mut section = Section::new("Performance");
    if let Some(estimate) = &found.estimate {
        section = section.text(believed(estimate));
    }
    let header = ["", "rows", "accuracy", "ROC AUC", "F1", "log loss", "Brier", "calibration error"];
    section.table(&header, rows)
}

const CHUNK_HEADER: [&str; 7] =
    ["from row", "rows", "verdict", "drifted most", "estimated accuracy", "realised", "estimate"];

fn chunks(found: &Comparison) -> Vec<Vec<String>> {
    let row = |chunk: &super::Chunk| {
        let most = chunk
            .verdict
            .drifted()
            .first()
            .map_or_else(String::new, |it| format!("{} ({})", it.feature, number(it.psi)));
        let trust = chunk.estimate.as_ref().map_or("", |it| match it.trust {
            Trust::Holds => "holds",
            Trust::Widened => "widened",
            Trust::Broken => "broken",
        });
        vec![
            chunk.from.to_string(),
            chunk.rows.to_string(),
            chunk.verdict.state.as_str().to_owned(),
            most,
            chunk.estimate.as_ref().map_or_else(String::new, |it| format!("{:.4}", it.accuracy.value)),
            chunk.realised.as_ref().map_or_else(String::new, |it| format!("{:.4}", it.accuracy)),
            trust.to_owned(),
        ]
    };
    found.chunks.iter().map(row).collect()
}

fn course(found: &Comparison) -> Section {
    let places: Vec<String> = found.chunks.iter().map(|chunk| chunk.from.to_string()).collect();
    let mut section = Section::new("Course").table(&CHUNK_HEADER, chunks(found));
    let followed = ordered(&found.verdict).into_iter().take(FOLLOWED);
    let psi = |feature: &FeatureVerdict| {
        let of = |chunk: &super::Chunk| {
            chunk
                .verdict
                .features
                .iter()
                .find(|it| it.feature == feature.feature)
                .map_or(f64::NAN, |it| it.psi)
        };
        (feature.feature.clone(), found.chunks.iter().map(of).collect())
    };
    let lines = followed.map(psi).collect();
    section = section.figure(
        "Stability index by the first row of the chunk",
        Figure::Lines { places: places.clone(), lines },
    );
    let estimates: Vec<f64> = found
        .chunks
        .iter()
        .map(|chunk| chunk.estimate.as_ref().map_or(f64::NAN, |it| it.accuracy.value))
        .collect();
    let realised: Vec<f64> =
        found.chunks.iter().map(|chunk| chunk.realised.as_ref().map_or(f64::NAN, |it| it.accuracy)).collect();
    if estimates.iter().any(|value| value.is_finite()) {
        let lines =
            vec![("estimated accuracy".to_owned(), estimates), ("realised accuracy".to_owned(), realised)];
        section = section.figure("Accuracy by the first row of the chunk", Figure::Lines { places, lines });
    }
    section
}

fn feature(feature: &FeatureVerdict) -> Section {
    let mut section =
        Section::new(&feature.feature).text(format!("{}: {}", feature.state.as_str(), change(feature)));
    if let Some(it) = &feature.numeric {
        let row = |name: &str, (mean, deviation): (f64, f64), quantiles: [f64; 5]| {
            let figures = [mean, deviation].into_iter().chain(quantiles).map(number);
            std::iter::once(name.to_owned()).chain(figures).collect()
        };
        let rows = vec![
            row("reference", it.reference, it.reference_quantiles),
            row("current", it.current, it.current_quantiles),
        ];
        section = section.table(&["", "mean", "deviation", "5 %", "25 %", "50 %", "75 %", "95 %"], rows);
    }
    let mut cells: Vec<_> = feature.cells.iter().take(SHOWN_CELLS).collect();
    cells.sort_by_key(|cell| cell.place);
    let pairs = cells.iter().map(|cell| (cell.label.clone(), cell.reference, cell.current)).collect();
    let names = ("reference".to_owned(), "current".to_owned());
    section.figure("Share of rows", Figure::Pairs { names, pairs })
}
