//! What watching costs: a value into a window, into a detector, and a verdict.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start must say why")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use sconce_monitor::{ColumnKind, ColumnSpec, Monitor, MonitorSpec, PaneSize, Reference, Value};
use sconce_stats::sequential::EDetector;
use sconce_stats::stream::{Adwin, AdwinConfig};
use std::hint::black_box;

const COLUMNS: usize = 20;

fn row(random: &mut Rng) -> [Value<'static>; COLUMNS] {
    std::array::from_fn(|_| Value::Number((0..4).map(|_| random.f64()).sum()))
}

fn rows(random: &mut Rng, count: usize) -> Vec<[Value<'static>; COLUMNS]> {
    (0..count).map(|_| row(random)).collect()
}

fn monitor(random: &mut Rng, panes: usize) -> Monitor {
    let column = |at| ColumnSpec { name: format!("x{at}"), kind: ColumnKind::Numeric };
    let columns: Vec<ColumnSpec> = (0..COLUMNS).map(column).collect();
    let mut reference = Reference::new(&columns).expect("twenty columns");
    rows(random, 5_000).iter().for_each(|row| reference.update(row).expect("a value a column"));
    let spec = MonitorSpec { pane: PaneSize::Rows(1_000), panes, ..MonitorSpec::default() };
    Monitor::new(reference, spec).expect("a specification in its range")
}

/// A value of a row, with and without the stream's detector beside histogram and moments.
fn values(criterion: &mut Criterion) {
    let mut random = Rng::with_seed(1);
    let rows = rows(&mut random, 1_024);
    let mut group = criterion.benchmark_group("monitor/value");
    group.throughput(Throughput::Elements(COLUMNS as u64));
    for (name, streams) in [("histogram_and_moments", false), ("with_detectors", true)] {
        let mut monitor = monitor(&mut random, 24);
        monitor.set_stream_level(streams.then_some(1e-6));
        let mut at = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                at = (at + 1) % rows.len();
                monitor.update(black_box(&rows[at]), 0).expect("a value a column");
            });
        });
    }
    group.finish();
}

/// The detectors of `sconce-stats`, a value at a time, without a change.
fn detectors(criterion: &mut Criterion) {
    let mut random = Rng::with_seed(2);
    let values: Vec<f64> = (0..4_096).map(|_| f64::from(u8::from(random.f64() < 0.2))).collect();
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % values.len();
        black_box(values[at])
    };
    let mut adwin = Adwin::new(AdwinConfig::default()).expect("defaults");
    criterion
        .bench_function("monitor/adwin", |bencher| bencher.iter(|| adwin.update(next()).expect("a bit")));
    let mut detector = EDetector::mixture(0.2).expect("a rate");
    criterion.bench_function("monitor/e_detector", |bencher| {
        bencher.iter(|| {
            detector.update(next()).expect("a bit");
            black_box(detector.alarms(1e-6))
        });
    });
}

/// A verdict over twenty features, of a tumbling window and of one that slides by a 24th.
fn verdict(criterion: &mut Criterion) {
    for (name, panes) in [("tumbling", 1), ("sliding", 24)] {
        let mut random = Rng::with_seed(3);
        let mut monitor = monitor(&mut random, panes);
        rows(&mut random, 1_000 * panes)
            .iter()
            .for_each(|row| monitor.update(row, 0).expect("a value a column"));
        criterion.bench_function(&format!("monitor/verdict_over_20_features/{name}"), |bencher| {
            bencher.iter(|| black_box(monitor.judge(1e-4, 0).expect("a level")));
        });
    }
}

criterion_group!(benches, values, detectors, verdict);
criterion_main!(benches);
