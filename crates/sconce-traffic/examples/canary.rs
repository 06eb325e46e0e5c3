//! Simulates canaries, and prints how often gates are wrong and how many samples they take, beside what theory predicts.
//!
//! `cargo run --release -p sconce-traffic --example canary [RUNS]`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and its numbers are right")]

use fastrand::Rng;
use sconce_stats::experiment::proportions_sample_size;
use sconce_stats::sequential::{BetaBinomial, quantile_ranks};
use sconce_stats::sketch::LogSketch;
use sconce_traffic::rollout::{End, Evidence, Gate, Phase, Plan, Rollout, Stage, Strategy};
use std::collections::BTreeSet;

/// Requests between two looks.
const LOOK: u64 = 100;
const ALPHA: f64 = 0.01;
/// Of the logarithm of a latency.
const SIGMA: f64 = 0.5;
const CONTROL_ERRORS: f64 = 0.01;

fn main() {
    let runs: usize = std::env::args().nth(1).map_or(200, |runs| runs.parse().unwrap());
    println!("seed 7; {runs} canaries a line; a look every {LOOK} requests; false_rollback_rate {ALPHA}\n");
    println!("candidates that are no worse, 40,000 requests each:\n");
    println!("| gate | candidate's share | rolled back | of | allowed |\n|---|---|---|---|---|");
    for (name, gate) in
        [("error_rate, vs_control = 0", errors()), ("latency p99, vs_control = 1", latency(0.99, 1.0))]
    {
        for percent in [10.0, 50.0] {
            let mut random = Rng::with_seed(7);
            let wrong = (0..runs)
                .filter(|_| simulate(&mut random, &gate, percent, (CONTROL_ERRORS, 1.0), 40_000).is_some())
                .count();
            println!("| {name} | {percent} % | {wrong} | {runs} | {:.0} |", ALPHA * runs as f64);
        }
    }
    println!("\ncandidates that are worse; samples of the candidate until it is rolled back:\n");
    println!(
        "| gate | worse by | candidate's share | median | 90 % | theory | found |\n|---|---|---|---|---|---|---|"
    );
    for percent in [10.0, 50.0] {
        line(
            runs,
            "error_rate, vs_control = 0",
            "+2 % errors (1 % to 3 %)",
            &errors(),
            percent,
            (0.03, 1.0),
            errors_theory(percent),
        );
        for (quantile, ratio) in [(0.99, 1.0), (0.99, 1.05), (0.95, 1.0)] {
            let name = format!("latency p{}, vs_control = {ratio}", quantile * 100.0);
            let theory = latency_theory(quantile, ratio, 1.2, percent);
            line(runs, &name, "+20 %", &latency(quantile, ratio), percent, (CONTROL_ERRORS, 1.2), theory);
        }
    }
    let fixed = proportions_sample_size(CONTROL_ERRORS, 0.03, 2.0 * ALPHA, 0.8, 1.0).unwrap();
    println!(
        "\nFor comparison: a fixed test of the errors that looks once (power 0.8, equal shares) takes {fixed:.0} samples."
    );
    println!("Theory: where the tests of a gate fail if everything is what is expected.");
}

fn line(runs: usize, gate: &str, worse: &str, spec: &Gate, percent: f64, truth: (f64, f64), theory: f64) {
    let mut random = Rng::with_seed(7);
    let mut found: Vec<u64> =
        (0..runs).filter_map(|_| simulate(&mut random, spec, percent, truth, 1_000_000)).collect();
    found.sort_unstable();
    let at =
        |share: f64| found.get((share * found.len() as f64) as usize).map_or("-".to_owned(), u64::to_string);
    println!(
        "| {gate} | {worse} | {percent} % | {} | {} | {theory:.0} | {} of {runs} |",
        at(0.5),
        at(0.9),
        found.len()
    );
}

fn errors() -> Gate {
    Gate::ErrorRate { max: None, vs_control: Some(0.0), proof: false }
}

fn latency(quantile: f64, ratio: f64) -> Gate {
    Gate::Latency { quantile, max_ms: None, vs_control: Some(ratio), proof: false }
}

/// The candidate's samples until it is rolled back; `None` if it is not within `most` requests in all.
fn simulate(
    random: &mut Rng,
    gate: &Gate,
    percent: f64,
    (errors, slower): (f64, f64),
    most: u64,
) -> Option<u64> {
    let stage = |percent, max_seconds| Stage {
        percent,
        mirror: false,
        min_seconds: max_seconds,
        max_seconds,
        min_samples: 0,
        approval: false,
    };
    let plan = Plan {
        candidate: "2".to_owned(),
        alias: "champion".to_owned(),
        strategy: Strategy::Canary { stages: vec![stage(percent, most / LOOK), stage(100.0, 0)] },
        gates: vec![gate.clone()],
        on_failure: Default::default(),
        on_inconclusive: Default::default(),
        false_rollback_rate: ALPHA,
    };
    let (mut rollout, _) = Rollout::start(plan, &BTreeSet::new(), 0).unwrap();
    let mut evidence = Evidence::default();
    let sketch = || LogSketch::new(0.01, 1e-6, 1e4).unwrap();
    let (mut control, mut candidate) = (sketch(), sketch());
    let mut next_look = 1;
    for look in 1..=most / LOOK {
        let of_candidate = (LOOK as f64 * percent / 100.0) as u64;
        for at in 0..LOOK {
            let is_candidate = at < of_candidate;
            let (counts, latency, rate, factor) = if is_candidate {
                (&mut evidence.candidate, &mut candidate, errors, slower)
            } else {
                (&mut evidence.control, &mut control, CONTROL_ERRORS, 1.0)
            };
            counts.requests += 1;
            counts.errors += u64::from(random.f64() < rate);
            if matches!(gate, Gate::Latency { .. }) {
                latency.update(factor * 0.01 * (SIGMA * normal(random)).exp()).unwrap();
            }
        }
        if matches!(gate, Gate::Latency { .. }) {
            // Sketches are slow to judge: looks that grow rarer cost at most one in twenty samples.
            if look < next_look {
                continue;
            }
            next_look = look + 1 + look / 20;
            evidence.control_latency = Some(control.clone());
            evidence.candidate_latency = Some(candidate.clone());
        }
        rollout.step(look * 1_000, &evidence);
        match rollout.phase() {
            Phase::Ended(End::RolledBack) => return Some(evidence.candidate.requests),
            Phase::Running if rollout.progress().0 == 0 => {}
            _ => return None,
        }
    }
    None
}

/// By Box and Muller.
fn normal(random: &mut Rng) -> f64 {
    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos()
}

/// The candidate's samples at which either test of the gate fails if counts are what is expected: the e-process, whose logarithm
/// grows by the information of a request less what it costs to learn two rates (half a logarithm of the errors each), or the
/// confidence sequences of both rates, which come apart.
fn errors_theory(percent: f64) -> f64 {
    let (p, q, share) = (CONTROL_ERRORS, 0.03, percent / 100.0);
    let common = (1.0 - share) * p + share * q;
    let information =
        |rate: f64| rate * (rate / common).ln() + (1.0 - rate) * ((1.0 - rate) / (1.0 - common)).ln();
    let by_request = share * information(q) + (1.0 - share) * information(p);
    let interval = |rate: f64, n: f64| {
        let mut state = BetaBinomial::new(0.5, 0.5).unwrap();
        state.update((rate * n) as u64, (n - (rate * n).floor()) as u64);
        state.interval(ALPHA / 4.0).unwrap()
    };
    let fails = |n: &f64| {
        let (ours, theirs) = (share * n, (1.0 - share) * n);
        let learning = |errors: f64| 0.5 * errors.max(1.0).ln();
        let needed = (2.0 / ALPHA).ln() + learning(q * ours) + learning(p * theirs);
        n * by_request >= needed || interval(q, ours).low > interval(p, theirs).high
    };
    let requests = (1..100_000_u32).map(|step| f64::from(step) * 100.0).find(fails).unwrap();
    requests * share
}

/// The candidate's samples at which the confidence sequences of both quantiles come apart, if values lie where they are expected, and
/// in the middle of the sketches' buckets, which are 1 percent to either side.
fn latency_theory(quantile: f64, ratio: f64, slower: f64, percent: f64) -> f64 {
    use sconce_stats::special::normal_quantile;
    let value = |share: f64| (SIGMA * normal_quantile(share)).exp();
    // Half of the level each, and of two stages.
    let alpha = ALPHA / 4.0;
    let is_apart = |candidate: u64| {
        let control = (candidate as f64 * (100.0 - percent) / percent) as u64;
        let ours = quantile_ranks(candidate, quantile, alpha, 5_000).unwrap();
        let theirs = quantile_ranks(control, quantile, alpha, 5_000).unwrap();
        const BUCKET: f64 = 1.01 / 0.99;
        ours.low > 0
            && theirs.high < control
            && slower * value(ours.low as f64 / (candidate + 1) as f64)
                > BUCKET * ratio * value(theirs.high as f64 / (control + 1) as f64)
    };
    let mut candidate = 100;
    while !is_apart(candidate) {
        candidate += candidate / 50 + 1;
    }
    candidate as f64
}
