//! How often a change of one of twenty features is found in one window, and how often windows without one are called drifted:
//! `cargo run --release -p sconce-monitor --example power`.
#![expect(clippy::expect_used, clippy::print_stdout, reason = "an experiment tells what it finds")]

use fastrand::Rng;
use sconce_monitor::{ColumnKind, ColumnSpec, Monitor, MonitorSpec, PaneSize, Reference, State, Value};
use sconce_stats::distance::population_stability;
use sconce_stats::two_sample::{Alternative, Method, kolmogorov_smirnov};

const FEATURES: usize = 20;
const REFERENCE: usize = 5_000;
const DRAWS: u32 = 200;
const LEVEL: f64 = 0.01;

/// About normal.
fn normal(random: &mut Rng) -> f64 {
    (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
}

/// In how many of so many windows the first feature is found, and some other is: ours, KS with Bonferroni, PSI above 0.1.
fn found(random: &mut Rng, rows: usize, shift: f64) -> [(u32, u32); 3] {
    let column = |at| ColumnSpec { name: format!("x{at}"), kind: ColumnKind::Numeric };
    let columns: Vec<ColumnSpec> = (0..FEATURES).map(column).collect();
    let mut counts = [(0, 0); 3];
    for _ in 0..DRAWS {
        let known: Vec<Vec<f64>> =
            (0..FEATURES).map(|_| (0..REFERENCE).map(|_| normal(random)).collect()).collect();
        let mut now: Vec<Vec<f64>> =
            (0..FEATURES).map(|_| (0..rows).map(|_| normal(random)).collect()).collect();
        now[0].iter_mut().for_each(|value| *value += shift);
        let row = |data: &[Vec<f64>], at: usize| -> Vec<Value<'static>> {
            data.iter().map(|column| Value::Number(column[at])).collect()
        };
        let mut reference = Reference::new(&columns).expect("twenty columns");
        (0..REFERENCE).for_each(|at| reference.update(&row(&known, at)).expect("a value a column"));
        let spec = MonitorSpec { pane: PaneSize::Rows(rows as u64), panes: 1, ..MonitorSpec::default() };
        let mut monitor = Monitor::new(reference, spec).expect("a specification in its range");
        (0..rows).for_each(|at| monitor.update(&row(&now, at), 0).expect("a value a column"));
        let verdict = monitor.judge(LEVEL, 0).expect("a level");
        let ks = |at: usize| {
            let test = kolmogorov_smirnov(&known[at], &now[at], Alternative::TwoSided, Method::Asymptotic);
            test.is_ok_and(|test| test.p_value <= LEVEL / FEATURES as f64)
        };
        let psi =
            |at: usize| population_stability(&known[at], &now[at], 10, 0.5).is_ok_and(|it| it.psi >= 0.1);
        let ours = |at: usize| verdict.features[at].state == State::Drifted;
        let methods: [&dyn Fn(usize) -> bool; 3] = [&ours, &ks, &psi];
        for (count, is_found) in counts.iter_mut().zip(methods) {
            count.0 += u32::from(is_found(0));
            count.1 += u32::from((1..FEATURES).any(is_found));
        }
    }
    counts
}

fn main() {
    let mut random = Rng::with_seed(1);
    println!(
        "Share of {DRAWS} windows in which the changed feature is found / one that has not changed is.\n"
    );
    println!("| rows | shift | Sconce | KS, Bonferroni | PSI above 0.1 |");
    println!("|--:|--:|--:|--:|--:|");
    for rows in [50, 200, 1_000, 5_000] {
        for shift in [0.0, 0.1, 0.3, 0.5, 1.0] {
            let share = |count: u32| f64::from(count) / f64::from(DRAWS);
            let cells = found(&mut random, rows, shift)
                .map(|(hit, wrong)| format!("{:.2} / {:.2}", share(hit), share(wrong)));
            println!("| {rows} | {shift} | {} |", cells.join(" | "));
        }
    }
}
