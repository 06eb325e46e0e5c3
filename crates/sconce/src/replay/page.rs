//! What a replay came to, for people and for machines.

use super::Survey;
use super::recording::Lacking;
use super::run::{Judged, Pace, Plan, Ran, Verdict};
use crate::report::{self, Figure, Report, Section, Sides};
use crate::{table, text};
use sconce_traffic::compare::{self, Summary};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const SIDES: Sides = Sides { first: "then", second: "now" };
/// Where the two kinds of time are taken.
const TIMES: &str = "Times of requests that were answered both times: then on the server, from the front door to the answer; now \
                     from when the request was due until its answer was here";

/// `3 inputs not kept, 1 input larger than is kept`.
pub(super) fn reasons(lacking: &BTreeMap<Lacking, u64>) -> String {
    lacking.iter().map(|(why, count)| format!("{count} {}", why.as_str())).collect::<Vec<_>>().join(", ")
}

/// It in a few lines.
pub(super) fn text(plan: &Plan, survey: &Survey, ran: &Ran) -> String {
    let mut text = format!("{}\n", summary(plan, survey, ran));
    if !survey.lacking.is_empty() {
        text += &format!("not replayed: {}\n", reasons(&survey.lacking));
    }
    let millis = |it: Option<f64>| it.map_or_else(|| "-".to_owned(), |it| format!("{:.2} ms", 1e3 * it));
    let row = |(name, judged): (&String, &Judged)| {
        let report = judged.report();
        let (then, now) = (report.latency.primary, report.latency.candidate);
        let of = |summary: Option<Summary>, at: fn(&Summary) -> f64| millis(summary.as_ref().map(at));
        vec![
            name.clone(),
            judged.requests.to_string(),
            judged.compared.to_string(),
            judged.different.to_string(),
            of(then, |it| it.p50),
            of(now, |it| it.p50),
            of(then, |it| it.p99),
            of(now, |it| it.p99),
        ]
    };
    let header = ["model", "sent", "compared", "different", "p50 then", "p50 now", "p99 then", "p99 now"];
    text += &table::render(&header, &ran.models.iter().map(row).collect::<Vec<_>>());
    for (name, judged) in &ran.models {
        for ending in judged.report().endings.iter().filter(|it| it.primary != it.candidate) {
            text += &format!(
                "  {name}: {} ended {} then and {} now\n",
                ending.count, ending.primary, ending.candidate
            );
        }
        let notes = notes(judged);
        if !notes.is_empty() {
            text += &format!("  {name}: {}\n", notes.join("; "));
        }
    }
    text + &verdict(plan, ran)
}

fn summary(plan: &Plan, survey: &Survey, ran: &Ran) -> String {
    let span = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let rate = match plan.pace {
        Pace::Max => "as fast as they were answered".to_owned(),
        Pace::Recorded(speed) => {
            format!("at {speed}x, up to {:.1} ms after they were due", 1e3 * ran.late.as_secs_f64())
        }
    };
    let not_sent = match ran.not_sent {
        0 => String::new(),
        count => format!("; {count} not sent, for too many were unanswered"),
    };
    format!(
        "{} of {} sent to {} in {}, recorded in {}, {rate}{not_sent}",
        ran.sent,
        text::count(survey.requests, "request"),
        plan.server,
        span(ran.took),
        span(survey.span())
    )
}

/// What was not compared, or not whole.
fn notes(judged: &Judged) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    };
    note(judged.deferred, "left to people now, not compared");
    note(judged.unanswered_then, "not answered then for want of room or time, not compared");
    note(judged.without_outputs, "without outputs of then, compared by their status alone");
    notes
}

fn verdict(plan: &Plan, ran: &Ran) -> String {
    let (compared, different) = (ran.sum(|it| it.compared), ran.sum(|it| it.different));
    let allowed = report::number(100.0 * plan.max_different);
    let why = match ran.verdict(plan) {
        Verdict::Incomplete if ran.not_sent > 0 => "; not all were sent",
        Verdict::Incomplete => "; there was no answer of then to compare with",
        Verdict::Equal | Verdict::Different => "",
    };
    format!("{}: {different} of {compared} differ ({allowed} % may){why}", ran.verdict(plan).as_str())
}

/// All of it.
pub(super) fn page(plan: &Plan, survey: &Survey, ran: &Ran) -> Report {
    let at = |us: i64| text::time(us.unsigned_abs() / 1000);
    let mut page = Report {
        title: format!("Replay against {}", plan.server),
        about: format!("recorded {} UTC to {} UTC", at(survey.first_us), at(survey.last_us)),
        sections: Vec::new(),
    };
    let mut section =
        Section::new("Replay").text(format!("{}.", verdict(plan, ran))).text(summary(plan, survey, ran));
    if !survey.lacking.is_empty() {
        section = section.text(format!("Not replayed: {}.", reasons(&survey.lacking)));
    }
    page.sections.push(section);
    for (name, judged) in &ran.models {
        let comparison = judged.report();
        page.sections.push(model(name, judged, &comparison));
        page.sections.push(report::evidence(name, &SIDES, &comparison));
        page.sections.extend(comparison.outputs.iter().map(|output| report::output(name, &SIDES, output)));
    }
    page
}

fn model(name: &str, judged: &Judged, comparison: &compare::Report) -> Section {
    let row = |what: &str, count: u64| vec![what.to_owned(), count.to_string()];
    let rows = vec![
        row("sent", judged.requests),
        row("compared", judged.compared),
        row("different", judged.different),
    ];
    let mut section = Section::new(format!("Model {name}")).table(&["", "requests"], rows);
    for note in notes(judged) {
        section = section.text(note);
    }
    if let (Some(then), Some(now)) = (comparison.latency.primary, comparison.latency.candidate) {
        let line = |it: Summary| [it.p50, it.p90, it.p99, it.max].map(|seconds| 1e3 * seconds).to_vec();
        let places = ["p50", "p90", "p99", "max"].map(str::to_owned).to_vec();
        let lines = vec![("then".to_owned(), line(then)), ("now".to_owned(), line(now))];
        section = section.figure(format!("Milliseconds. {TIMES}"), Figure::Lines { places, lines });
    }
    let example = |it: &compare::Example| vec![it.id.clone(), report::number(it.score), it.reason.clone()];
    section.table(
        &["the most different, by the id of then", "score", "why"],
        comparison.divergent.iter().map(example).collect(),
    )
}

/// All of it for machines.
pub(super) fn document(plan: &Plan, survey: &Survey, files: usize, ran: &Ran) -> Value {
    let model = |(name, judged): (&String, &Judged)| {
        let comparison = judged.report();
        json!({
            "model": name,
            "sent": judged.requests,
            "compared": judged.compared,
            "different": judged.different,
            "deferred": judged.deferred,
            "unanswered_then": judged.unanswered_then,
            "without_outputs": judged.without_outputs,
            "comparison": comparison,
        })
    };
    let lacking: BTreeMap<&str, u64> =
        survey.lacking.iter().map(|(why, count)| (why.as_str(), *count)).collect();
    json!({
        "verdict": ran.verdict(plan).as_str(),
        "server": plan.server,
        "files": files,
        "requests": survey.requests,
        "not_replayed": lacking,
        "recorded_seconds": survey.span().as_secs_f64(),
        "speed": match plan.pace { Pace::Max => Value::Null, Pace::Recorded(speed) => speed.into() },
        "seconds": ran.took.as_secs_f64(),
        "sent": ran.sent,
        "not_sent": ran.not_sent,
        "late_ms": 1e3 * ran.late.as_secs_f64(),
        "compared": ran.sum(|it| it.compared),
        "different": ran.sum(|it| it.different),
        "max_different": plan.max_different,
        "models": ran.models.iter().map(model).collect::<Vec<_>>(),
    })
}
