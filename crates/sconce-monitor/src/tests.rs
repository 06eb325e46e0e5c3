use super::*;
use crate::reference::{ColumnKind, ColumnSpec};
use fastrand::Rng;

/// About normal.
fn normal(random: &mut Rng) -> f64 {
    (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
}

fn columns(count: usize) -> Vec<ColumnSpec> {
    let column = |at| ColumnSpec { name: format!("x{at}"), kind: ColumnKind::Numeric };
    (0..count).map(column).collect()
}

/// A reference of `rows` normal rows.
fn reference(random: &mut Rng, count: usize, rows: usize) -> Reference {
    let mut reference = Reference::new(&columns(count)).unwrap();
    for _ in 0..rows {
        let row: Vec<Value<'_>> = (0..count).map(|_| Value::Number(normal(random))).collect();
        reference.update(&row).unwrap();
    }
    reference
}

fn tumbling(rows: u64) -> MonitorSpec {
    MonitorSpec { pane: PaneSize::Rows(rows), panes: 1, ..MonitorSpec::default() }
}

/// Rows whose first column is moved by `shift`.
fn feed(monitor: &mut Monitor, random: &mut Rng, rows: usize, shift: f64, now_ms: u64) {
    let count = monitor.reference().columns().len();
    for _ in 0..rows {
        let value = |at| Value::Number(normal(random) + if at == 0 { shift } else { 0.0 });
        let row: Vec<Value<'_>> = (0..count).map(value).collect();
        monitor.update(&row, now_ms).unwrap();
    }
}

fn full() -> bool {
    std::env::var_os("SCONCE_FULL").is_some()
}

#[test]
fn of_three_hundred_small_windows_without_a_change_none_is_a_drift() {
    let mut random = Rng::with_seed(50);
    let mut monitor = Monitor::new(reference(&mut random, 20, 5_000), tumbling(50)).unwrap();
    for draw in 0..300 {
        feed(&mut monitor, &mut random, 50, 0.0, draw);
        let verdict = monitor.judge(0.01, draw).unwrap();
        assert_eq!(verdict.rows, 50);
        assert_ne!(verdict.state, State::Drifted, "{draw}: {:?} {:?}", verdict.drifted(), verdict.failed());
    }
}

#[test]
fn false_alarms_are_as_seldom_as_configured_however_often_one_looks() {
    let mut random = Rng::with_seed(51);
    let rows = if full() { 1_000_000 } else { 200_000 };
    let spec = MonitorSpec { pane: PaneSize::Rows(1_000), panes: 8, ..MonitorSpec::default() };
    let mut monitor = Monitor::new(reference(&mut random, 4, 5_000), spec).unwrap();
    monitor.set_stream_level(Some(1e-4));
    let (level, mut wrong, mut alarms) = (0.01, 0, 0);
    for pane in 0..rows / 1_000 {
        let mut is_wrong = false;
        for look in 0..5 {
            feed(&mut monitor, &mut random, 200, 0.0, pane * 5 + look);
            is_wrong |= monitor.judge(level, 0).unwrap().state == State::Drifted;
        }
        wrong += u64::from(is_wrong);
        alarms += monitor.alarms.len() as u64;
        monitor.alarms.clear();
    }
    assert!(wrong as f64 <= level * rows as f64 / 1_000.0, "{wrong} windows");
    assert!(alarms as f64 <= 1e-4 * rows as f64, "{alarms} alarms");
}

#[test]
fn a_change_is_found_named_and_dated_and_the_rest_is_stable() {
    let mut random = Rng::with_seed(52);
    let spec = MonitorSpec { pane: PaneSize::Rows(500), panes: 8, ..MonitorSpec::default() };
    let mut monitor = Monitor::new(reference(&mut random, 5, 5_000), spec).unwrap();
    for pane in 0..6 {
        feed(&mut monitor, &mut random, 500, 0.0, pane * 10);
    }
    let verdict = monitor.judge(0.001, 60).unwrap();
    assert_eq!(verdict.state, State::Stable, "{verdict:#?}");
    feed(&mut monitor, &mut random, 500, 0.7, 60);
    feed(&mut monitor, &mut random, 500, 0.7, 70);
    let verdict = monitor.judge(0.001, 80).unwrap();
    assert_eq!(verdict.state, State::Drifted);
    let [drifted] = &verdict.drifted()[..] else { panic!("{verdict:#?}") };
    assert_eq!((drifted.feature.as_str(), drifted.since_ms, drifted.rows), ("x0", Some(60), 1_000));
    assert!(drifted.interval.contains(drifted.psi) && drifted.interval.low > 0.1, "{drifted:?}");
    let numbers = drifted.numeric.as_ref().unwrap();
    assert!((numbers.current.0 - numbers.reference.0 - 0.7).abs() < 0.1, "{numbers:?}");
    assert!((numbers.current_quantiles[2] - 0.7).abs() < 0.15 && numbers.reference_quantiles[2].abs() < 0.1);
    assert_eq!(monitor.alarms[0].feature, "x0");
    assert!((3_001..3_200).contains(&monitor.alarms[0].row), "{:?}", monitor.alarms);
    // Changes too small to matter are none, however much evidence there is.
    let mut monitor = Monitor::new(reference(&mut random, 1, 50_000), tumbling(100_000)).unwrap();
    feed(&mut monitor, &mut random, 50_000, 0.1, 0);
    let verdict = monitor.judge(0.01, 0).unwrap();
    assert!(verdict.features[0].log_evidence > 10.0, "{verdict:?}");
    assert_eq!(verdict.state, State::Stable);
}

#[test]
fn a_rate_that_changes_is_found_in_either_direction_about_as_soon_as_by_bets_on_one() {
    // Those take 600, 223 and 69 (`EDetector::above`, at the same run length of 50,000).
    let mut random = Rng::with_seed(53);
    let spec = ColumnSpec { name: "error".to_owned(), kind: ColumnKind::Categorical };
    let mut known = Reference::new(&[spec]).unwrap();
    let value = |is: bool| [Value::Text(if is { "yes" } else { "no" })];
    (0..400_000).for_each(|at| known.update(&value(at % 5 == 0)).unwrap());
    for (rate, most) in [(0.25, 900), (0.3, 300), (0.4, 100)] {
        let mut delays: Vec<u64> = (0..300)
            .map(|_| {
                let mut monitor = Monitor::new(known.clone(), tumbling(1_000)).unwrap();
                monitor.set_stream_level(Some(1.0 / 50_000.0));
                let mut at = 0;
                while at < 2_500 || monitor.alarms.back().is_none_or(|alarm| alarm.row <= 2_500) {
                    let rate = if at < 2_500 { 0.2 } else { rate };
                    monitor.update(&value(random.f64() < rate), at).unwrap();
                    at += 1;
                }
                at - 2_500
            })
            .collect();
        delays.sort_unstable();
        let median = delays[delays.len() / 2];
        println!("0.2 to {rate}: median delay {median}");
        assert!(median <= most, "{rate}: {median}");
    }
}

#[test]
fn quality_fails_where_data_breaks() {
    let mut random = Rng::with_seed(54);
    let mut specs = columns(3);
    specs.push(ColumnSpec { name: "plan".to_owned(), kind: ColumnKind::Categorical });
    let mut known = Reference::new(&specs).unwrap();
    let row = |random: &mut Rng| {
        let plan = Value::Text(if random.bool() { "basic" } else { "full" });
        [Value::Number(normal(random)), Value::Number(normal(random)), Value::Number(normal(random)), plan]
    };
    (0..3_000).for_each(|_| known.update(&row(&mut random)).unwrap());
    let spec = MonitorSpec { max_silence_ms: Some(1_000), ..tumbling(1_000) };
    let mut monitor = Monitor::new(known, spec).unwrap();
    for at in 0..400 {
        let mut row = row(&mut random);
        match at % 4 {
            0 => row[0] = Value::Missing,
            1 => row[0] = Value::Text("n/a"),
            2 => row[1] = Value::Number(99.0),
            _ => row[3] = Value::Text("trial"),
        }
        row[2] = Value::Number(5.0);
        monitor.update(&row, at).unwrap();
        if at % 10 == 0 {
            monitor.update(&row, at).unwrap();
        }
    }
    let verdict = monitor.judge(0.01, 5_000).unwrap();
    let failed: Vec<(CheckKind, Option<&str>)> =
        verdict.failed().iter().map(|check| (check.kind, check.feature.as_deref())).collect();
    let expected = [
        (CheckKind::Missing, Some("x0")),
        (CheckKind::OutOfRange, Some("x1")),
        (CheckKind::OutOfRange, Some("x2")),
        (CheckKind::Unseen, Some("plan")),
        (CheckKind::WrongType, Some("x0")),
        (CheckKind::Constant, Some("x2")),
        (CheckKind::Duplicates, None),
        (CheckKind::Stale, None),
    ];
    assert_eq!(failed, expected, "{:#?}", verdict.checks);
}

#[test]
fn windows_slide_by_count_and_by_time_and_keep_their_size() {
    let mut random = Rng::with_seed(55);
    let known = reference(&mut random, 2, 100);
    let spec = MonitorSpec { pane: PaneSize::Ms(100), panes: 3, ..MonitorSpec::default() };
    let mut monitor = Monitor::new(known.clone(), spec).unwrap();
    for now in (0..1_000).step_by(50) {
        feed(&mut monitor, &mut random, 4, 0.0, now);
    }
    let verdict = monitor.judge(0.01, 1_000).unwrap();
    assert_eq!((verdict.rows, verdict.since_ms, verdict.until_ms), (24, Some(700), Some(950)));
    assert_eq!(monitor.panes.len(), 3);
    let spec = MonitorSpec { pane: PaneSize::Rows(7), panes: 2, ..MonitorSpec::default() };
    let mut monitor = Monitor::new(known, spec).unwrap();
    feed(&mut monitor, &mut random, 17, 0.0, 0);
    assert_eq!(monitor.judge(0.01, 0).unwrap().rows, 10);
    assert!(monitor.bytes() < 2_000, "{}", monitor.bytes());
}

#[test]
fn hostile_rows_neither_panic_nor_grow() {
    let mut random = Rng::with_seed(56);
    let kinds = [ColumnKind::Numeric, ColumnKind::Categorical, ColumnKind::Text];
    let specs = kinds.map(|kind| ColumnSpec { name: format!("{kind:?}"), kind });
    for known in [0, 1, 2, 500] {
        let mut reference = Reference::new(&specs).unwrap();
        let mut texts: Vec<String> = (0..known).map(|at| format!("t{at}")).collect();
        for text in &texts {
            let number = Value::Number(f64::from_bits(random.u64(..)));
            reference.update(&[number, Value::Text(text), Value::Text(text)]).unwrap();
        }
        let Ok(mut monitor) = Monitor::new(reference, tumbling(10_000)) else {
            assert_eq!(known, 0);
            continue;
        };
        assert!(monitor.judge(0.01, 0).unwrap().features.is_empty() && monitor.judge(0.0, 0).is_err());
        texts.push(String::new());
        for at in 0..3_000_u64 {
            let name = at.to_string();
            let value = |random: &mut Rng| match random.u8(0..5) {
                0 => Value::Missing,
                1 => Value::Number(f64::from_bits(random.u64(..))),
                2 => Value::Number(f64::NEG_INFINITY),
                3 => Value::Text(&name),
                _ => Value::Text("é\0"),
            };
            let row = [value(&mut random), value(&mut random), value(&mut random)];
            monitor.update(&row, random.u64(..)).unwrap();
        }
        let verdict = monitor.judge(0.01, 0).unwrap();
        assert_eq!((verdict.rows, verdict.features.len()), (3_000, 7));
        serde_json::to_string(&verdict).unwrap();
        assert!(monitor.update(&[], 0).is_err() && monitor.alarms.len() <= 32);
    }
}

#[test]
fn the_same_rows_give_the_same_verdict() {
    let verdict = || {
        let mut random = Rng::with_seed(57);
        let mut monitor = Monitor::new(reference(&mut random, 3, 1_000), tumbling(400)).unwrap();
        feed(&mut monitor, &mut random, 300, 0.4, 7);
        monitor.judge(0.01, 9).unwrap()
    };
    assert_eq!(verdict(), verdict());
}

#[test]
fn a_specification_out_of_its_range_is_refused() {
    let known = || reference(&mut Rng::with_seed(58), 1, 10);
    for spec in [
        tumbling(0),
        MonitorSpec { panes: 65, ..tumbling(1) },
        MonitorSpec { minimum_psi: f64::NAN, ..tumbling(1) },
        MonitorSpec { minimum_share: 1.0, ..tumbling(1) },
    ] {
        assert!(Monitor::new(known(), spec).is_err());
    }
    assert!(Monitor::new(Reference::new(&columns(1)).unwrap(), tumbling(1)).is_err());
}
