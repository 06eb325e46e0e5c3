use super::*;
use fastrand::Rng;
use sconce_core::DataType;

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(DataType::Fp32, shape.to_vec(), data.into()).unwrap()
}

fn text(values: &[&str]) -> Tensor {
    let mut data = Vec::new();
    for value in values {
        data.extend_from_slice(&(value.len() as u32).to_le_bytes());
        data.extend_from_slice(value.as_bytes());
    }
    Tensor::new(DataType::Bytes, vec![values.len()], data.into()).unwrap()
}

fn comparison(spec: CompareSpec) -> Comparison {
    Comparison::new(spec, 7).unwrap()
}

/// Adds one pair of answers with one output.
fn add(comparison: &mut Comparison, primary: &Tensor, candidate: &Tensor) {
    add_as(comparison, "id", primary, candidate, || None);
}

fn add_as(
    comparison: &mut Comparison,
    id: &str,
    primary: &Tensor,
    candidate: &Tensor,
    inputs: impl FnMut() -> Option<String>,
) {
    let pair = Pair {
        id,
        primary: Ok(&[("y", primary)]),
        candidate: Ok(&[("y", candidate)]),
        primary_latency: Duration::from_millis(10),
        candidate_latency: Duration::from_millis(12),
    };
    comparison.add(&pair, inputs);
}

fn failed(comparison: &mut Comparison, primary: Option<ErrorCode>, candidate: Option<ErrorCode>) {
    let tensor = floats(&[1], &[1.0]);
    let outputs = [("y", &tensor)];
    let answer = |code: Option<ErrorCode>| code.map_or(Ok(&outputs[..]), Err);
    let pair = Pair {
        id: "id",
        primary: answer(primary),
        candidate: answer(candidate),
        primary_latency: Duration::from_millis(1),
        candidate_latency: Duration::from_millis(1),
    };
    comparison.add(&pair, || None);
}

fn verdict(report: &Report, name: &str) -> Verdict {
    report.findings.iter().find(|finding| finding.name == name).unwrap().verdict
}

#[test]
fn values_are_compared_element_by_element() {
    let mut comparison = comparison(CompareSpec::default());
    add(&mut comparison, &floats(&[2, 2], &[1.0, 2.0, 0.0, -4.0]), &floats(&[2, 2], &[1.0, 2.5, 0.0, -4.0]));
    let report = comparison.report();
    let output = &report.outputs[0];
    assert_eq!(
        (output.kind, output.rows, output.disagreeing),
        (Kind::Values, Share { count: 2, of: 2 }, Share { count: 1, of: 2 })
    );
    assert_eq!(output.breaches, Share { count: 1, of: 4 });
    let absolute = output.absolute.unwrap();
    assert!((absolute.max - 0.5).abs() < 1e-9 && (absolute.mean - 0.125).abs() < 1e-9, "{absolute:?}");
    let relative = output.relative.unwrap();
    assert!(relative.count == 3 && (relative.max - 0.25).abs() < 1e-9, "{relative:?}");
    assert!((output.bias.unwrap().mean - 0.125).abs() < 1e-9);
    let cosine = (1.0 + 2.0 * 2.5) / (5.0_f64.sqrt() * (1.0_f64 + 6.25).sqrt());
    assert!((output.cosine.unwrap().mean - f64::midpoint(cosine, 1.0)).abs() < 1e-9);
    assert_eq!(report.divergent[0].reason, "a value beyond the tolerance");
}

#[test]
fn distributions_are_told_from_values_and_compared_as_such() {
    let spec = OutputSpec {
        classes: vec!["cat".into(), "dog".into(), "fox".into()],
        top_k: 2,
        ..OutputSpec::default()
    };
    let mut comparison =
        comparison(CompareSpec { outputs: [("y".to_owned(), spec)].into(), ..CompareSpec::default() });
    let (ours, theirs) = ([0.5, 0.25, 0.25, 0.1, 0.9, 0.0], [0.25, 0.5, 0.25, 0.0, 1.0, 0.0]);
    add(&mut comparison, &floats(&[2, 3], &ours), &floats(&[2, 3], &theirs));
    let report = comparison.report();
    let output = &report.outputs[0];
    assert_eq!((output.kind, output.top1), (Kind::Distribution, Share { count: 1, of: 2 }));
    // The second row rules out what the primary gives a tenth.
    assert_eq!((output.kl.unwrap().count, output.kl_infinite), (1, 1));
    assert!((output.kl.unwrap().mean - 0.25 * 2.0_f64.ln()).abs() < 1e-7, "{:?}", output.kl);
    assert_eq!(output.js.unwrap().count, 2);
    // Top 2 of the first row: cat and dog in both; of the second: dog and cat, both times by order of place.
    assert_eq!(output.top_k.unwrap().mean, 1.0);
    let classes = output.classes.as_ref().unwrap();
    let flip = ClassFlip { primary: "cat".into(), candidate: "dog".into(), count: 1 };
    assert!(classes.cells.contains(&flip), "{classes:?}");
    let dog = classes.classes.iter().find(|class| class.class == "dog").unwrap();
    assert_eq!((dog.primary, dog.candidate), (1, 2));
}

#[test]
fn labels_flip_by_class_and_the_matrix_is_bounded() {
    let mut comparison = comparison(CompareSpec::default());
    add(&mut comparison, &text(&["yes", "no", "no"]), &text(&["yes", "yes", "no"]));
    let report = comparison.report();
    assert_eq!(report.outputs[0].disagreeing, Share { count: 1, of: 3 });
    for at in 0..200 {
        let (ours, theirs) = (format!("class {at}"), format!("class {}", at + 1));
        add(&mut comparison, &text(&[&ours]), &text(&[&theirs]));
    }
    let classes = comparison.report().outputs[0].classes.clone().unwrap();
    assert_eq!(classes.classes.len(), MAX_CLASSES + 1);
    assert!(classes.cells.len() <= (MAX_CLASSES + 1) * (MAX_CLASSES + 1));
    assert_eq!(classes.cells.iter().map(|cell| cell.count).sum::<u64>(), 203);
    assert!(classes.classes.iter().any(|class| class.class == "other"));
    assert!(classes.cells.contains(&ClassFlip { primary: "no".into(), candidate: "yes".into(), count: 1 }));
}

#[test]
fn every_datatype_is_read() {
    let numbers: [(DataType, Vec<u8>, f64); 13] = [
        (DataType::Bool, vec![1], 1.0),
        (DataType::Uint8, vec![200], 200.0),
        (DataType::Int8, vec![0xFF], -1.0),
        (DataType::Uint16, 40_000_u16.to_le_bytes().into(), 40_000.0),
        (DataType::Int16, (-3_i16).to_le_bytes().into(), -3.0),
        (DataType::Uint32, 4_000_000_000_u32.to_le_bytes().into(), 4e9),
        (DataType::Int32, (-3_i32).to_le_bytes().into(), -3.0),
        (DataType::Uint64, (1_u64 << 63).to_le_bytes().into(), 2.0_f64.powi(63)),
        (DataType::Int64, (-3_i64).to_le_bytes().into(), -3.0),
        (DataType::Fp16, half::f16::from_f32(1.5).to_le_bytes().into(), 1.5),
        (DataType::Bf16, half::bf16::from_f32(1.5).to_le_bytes().into(), 1.5),
        (DataType::Fp32, 1.5_f32.to_le_bytes().into(), 1.5),
        (DataType::Fp64, 1.5_f64.to_le_bytes().into(), 1.5),
    ];
    for (datatype, bytes, expected) in numbers {
        let tensor = Tensor::new(datatype, vec![1], bytes.into()).unwrap();
        let mut values = Vec::new();
        values::Rows::new(&tensor).read(0, 1, &mut values);
        assert_eq!(values, [expected], "{datatype}");
    }
}

#[test]
fn hostile_numbers_are_counted_and_nothing_in_a_report_is_nan() {
    let mut comparison = comparison(CompareSpec::default());
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    add(
        &mut comparison,
        &floats(&[1, 6], &[nan, nan, inf, inf, f32::MAX, 1.0]),
        &floats(&[1, 6], &[nan, 0.0, inf, -inf, f32::MIN, nan]),
    );
    let report = comparison.report();
    let output = &report.outputs[0];
    assert_eq!((output.not_finite, output.breaches), (3, Share { count: 4, of: 6 }));
    let doubles =
        |value: f64| Tensor::new(DataType::Fp64, vec![1, 1], value.to_le_bytes().to_vec().into()).unwrap();
    for value in [1e308, -1e308, 1e149, 5e-324] {
        add(&mut comparison, &doubles(-value), &doubles(value));
    }
    for shape in [&[0, 3][..], &[3, 0], &[0]] {
        add(&mut comparison, &floats(shape, &[]), &floats(shape, &[]));
    }
    add(&mut comparison, &floats(&[], &[0.0]), &floats(&[], &[-0.0]));
    let scores = OutputSpec { kind: Some(Kind::Scores), ..OutputSpec::default() };
    let spec = CompareSpec { outputs: [("y".to_owned(), scores)].into(), ..CompareSpec::default() };
    let mut of_scores = Comparison::new(spec, 7).unwrap();
    add(&mut of_scores, &floats(&[2, 2], &[nan, 1.0, 0.0, 1.0]), &floats(&[2, 2], &[nan, 1.0, nan, 1.0]));
    assert_eq!(of_scores.report().outputs[0].top1, Share { count: 1, of: 2 });
    for report in [comparison.report(), of_scores.report()] {
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}

#[test]
fn answers_that_cannot_be_compared_disagree() {
    let mut comparison = comparison(CompareSpec::default());
    let one = floats(&[1, 2], &[1.0, 2.0]);
    add(&mut comparison, &one, &floats(&[2, 1], &[1.0, 2.0]));
    add(&mut comparison, &one, &text(&["a"]));
    let (ours, theirs) = ([("y", &one)], [("z", &one)]);
    let pair = Pair {
        id: "id",
        primary: Ok(&ours),
        candidate: Ok(&theirs),
        primary_latency: Duration::ZERO,
        candidate_latency: Duration::ZERO,
    };
    comparison.add(&pair, || None);
    let half = Tensor::new(DataType::Fp64, vec![1, 2], [1.0_f64, 2.0].map(f64::to_le_bytes).concat().into());
    add(&mut comparison, &one, &half.unwrap());
    let report = comparison.report();
    let y = &report.outputs[0];
    // The last has another datatype only: it is noted, and its numbers agree.
    assert_eq!((y.mismatched, y.disagreeing), (Share { count: 4, of: 4 }, Share { count: 0, of: 1 }));
    assert_eq!(report.outputs[1].mismatched, Share { count: 1, of: 1 });
    assert!(report.divergent.iter().all(|example| example.score == 1.0));
}

#[test]
fn errors_are_counted_by_how_both_ended() {
    let mut comparison = comparison(CompareSpec::default());
    failed(&mut comparison, None, None);
    for _ in 0..3 {
        failed(&mut comparison, None, Some(ErrorCode::Internal));
    }
    failed(&mut comparison, Some(ErrorCode::InvalidArgument), Some(ErrorCode::InvalidArgument));
    failed(&mut comparison, Some(ErrorCode::DeadlineExceeded), None);
    let report = comparison.report();
    let ending = |primary: &str, candidate: &str| {
        let same = |ending: &&Ending| ending.primary == primary && ending.candidate == candidate;
        report.endings.iter().find(same).map_or(0, |ending| ending.count)
    };
    assert_eq!(ending("OK", "INTERNAL"), 3);
    assert_eq!(ending("INVALID_ARGUMENT", "INVALID_ARGUMENT"), 1);
    assert_eq!(ending("DEADLINE_EXCEEDED", "OK"), 1);
    assert_eq!((report.pairs, report.findings[0].pairs), (6, 4));
    assert_eq!(verdict(&report, "failures of the candidate alone"), Verdict::Different);
}

#[test]
fn work_for_a_pair_is_bounded_by_sampling_and_a_difference_everywhere_is_still_seen() {
    let many = vec![0.5_f32; 3_000_000];
    let other = vec![0.75_f32; 3_000_000];
    for shape in [[3_000, 1_000], [3, 1_000_000], [3_000_000, 1]] {
        let mut comparison = comparison(CompareSpec::default());
        add(&mut comparison, &floats(&shape, &many), &floats(&shape, &other));
        let output = comparison.report().outputs[0].clone();
        assert!(output.breaches.of <= 4 * MAX_ELEMENTS as u64, "{shape:?}: {:?}", output.breaches);
        assert_eq!(output.breaches.count, output.breaches.of);
        assert_eq!(output.rows.of, shape[0] as u64);
        assert_eq!(output.disagreeing.count, output.rows.count);
    }
    let mut comparison = comparison(CompareSpec::default());
    let long = vec!["label"; 100_000];
    add(&mut comparison, &text(&long), &text(&long));
    assert_eq!(comparison.report().outputs[0].rows, Share { count: MAX_ELEMENTS as u64, of: 100_000 });
}

/// A pair whose labels differ with chance `rate`.
fn add_label_pair(comparison: &mut Comparison, random: &mut Rng, rate: f64) {
    let other = if random.f64() < rate { "b" } else { "a" };
    add(comparison, &text(&["a"]), &text(&[other]));
}

#[test]
fn the_verdict_waits_for_evidence_and_then_is_right() {
    let mut random = Rng::with_seed(3);
    for (rate, expected) in
        [(0.0, Verdict::Equal), (0.05, Verdict::Different), (0.01, Verdict::NotEnoughEvidence)]
    {
        let mut comparison = comparison(CompareSpec::default());
        assert_eq!(comparison.report().verdict, Verdict::NotEnoughEvidence);
        for _ in 0..10 {
            add_label_pair(&mut comparison, &mut random, rate);
        }
        if rate < 0.05 {
            assert_eq!(comparison.report().verdict, Verdict::NotEnoughEvidence);
        }
        for _ in 0..2_000 {
            add_label_pair(&mut comparison, &mut random, rate);
        }
        assert_eq!(comparison.report().verdict, expected, "{rate}");
    }
}

#[test]
fn looking_after_every_pair_is_wrong_no_more_often_than_declared() {
    let mut random = Rng::with_seed(11);
    let margin = 0.05;
    let mut wrong = 0;
    for _ in 0..200 {
        let spec = CompareSpec { max_disagreement: margin, max_failures: 0.5, ..CompareSpec::default() };
        let mut comparison = comparison(spec);
        // At the margin both other verdicts would be errors: `equal` here too, as the rate is a hair above.
        let mut ever = false;
        for _ in 0..250 {
            add_label_pair(&mut comparison, &mut random, margin + 1e-6);
            let found = verdict(&comparison.report(), "disagreement of output y");
            ever |= found != Verdict::NotEnoughEvidence;
        }
        wrong += u32::from(ever);
    }
    assert!(wrong <= 10, "{wrong} of 200");
}

#[test]
fn rows_of_one_request_are_no_independent_evidence() {
    let spec = || CompareSpec { max_disagreement: 0.1, ..CompareSpec::default() };
    let mut comparison = comparison(spec());
    // One request of 1,000 rows that all differ says no more than one pair can.
    add(&mut comparison, &text(&["a"; 1_000]), &text(&["b"; 1_000]));
    let report = comparison.report();
    assert_eq!(report.findings[1].pairs, 1);
    assert_eq!(report.outputs[0].disagreeing, Share { count: 1_000, of: 1_000 });
    assert_eq!(report.verdict, Verdict::NotEnoughEvidence);
    // And rows that differ a half of the time count for a half.
    let mut halves = Comparison::new(spec(), 1).unwrap();
    for _ in 0..1_000 {
        add(&mut halves, &text(&["a", "a"]), &text(&["a", "b"]));
    }
    let estimate = halves.report().findings[1].estimate.unwrap();
    assert!((0.45..0.55).contains(&estimate), "{estimate}");
}

#[test]
fn bias_is_judged_against_its_margin() {
    let mut random = Rng::with_seed(5);
    for (shift, expected) in [(0.0, Verdict::Equal), (0.5, Verdict::Different)] {
        let output = OutputSpec { absolute: 100.0, max_bias: Some(0.2), ..OutputSpec::default() };
        let mut comparison =
            comparison(CompareSpec { outputs: [("y".to_owned(), output)].into(), ..CompareSpec::default() });
        for at in 0..3_000 {
            let noise = (random.f64() + random.f64() + random.f64() - 1.5) as f32;
            add(&mut comparison, &floats(&[1, 1], &[10.0]), &floats(&[1, 1], &[10.0 + shift + noise]));
            if at == 50 {
                assert_eq!(verdict(&comparison.report(), "bias of output y"), Verdict::NotEnoughEvidence);
            }
        }
        assert_eq!(verdict(&comparison.report(), "bias of output y"), expected);
    }
}

#[test]
fn labels_say_which_is_right_more_often() {
    let mut comparison = comparison(CompareSpec::default());
    assert_eq!(comparison.report().labelled, None);
    for at in 0..1_000 {
        comparison.add_label(at % 10 != 0, at % 20 != 1);
    }
    let labelled = comparison.report().labelled.unwrap();
    assert_eq!(
        (labelled.both, labelled.only_primary, labelled.only_candidate, labelled.neither),
        (850, 50, 100, 0)
    );
    assert!(labelled.differs && labelled.difference.contains(0.05), "{labelled:?}");
}

#[test]
fn examples_are_bounded_worst_first_and_inputs_are_asked_for_only_if_kept() {
    let spec = CompareSpec { keep_divergent: 3, keep_random: 5, ..CompareSpec::default() };
    let mut comparison = comparison(spec);
    let mut asked = 0;
    for at in 0..10_000_u32 {
        let off = ((at * 7_919) % 10_000) as f32;
        let inputs = || {
            asked += 1;
            Some(if at % 2 == 0 { "x".repeat(MAX_INPUT_BYTES + 1) } else { format!("input {at}") })
        };
        add_as(&mut comparison, &format!("id {at}"), &floats(&[1], &[0.0]), &floats(&[1], &[off]), inputs);
    }
    assert!(asked < 200, "{asked}");
    let report = comparison.report();
    assert_eq!((report.divergent.len(), report.random.len()), (3, 5));
    let number = |example: &Example| example.id[3..].parse::<u32>().unwrap();
    let offs: Vec<u32> = report.divergent.iter().map(|example| number(example) * 7_919 % 10_000).collect();
    assert_eq!(offs, [9_999, 9_998, 9_997]);
    for example in report.divergent.iter().chain(&report.random) {
        assert_eq!(example.inputs.is_some(), number(example) % 2 == 1);
    }
}

#[test]
fn merged_is_what_one_would_have_seen() {
    let mut random = Rng::with_seed(17);
    let mut parts = [
        Comparison::new(CompareSpec::default(), 1).unwrap(),
        Comparison::new(CompareSpec::default(), 2).unwrap(),
    ];
    let mut whole = comparison(CompareSpec::default());
    for at in 0..500_usize {
        let (a, b) = (random.f32() * 10.0, random.f32() * 10.0);
        let (ours, theirs) = (floats(&[1, 2], &[a, b]), floats(&[1, 2], &[b, a]));
        for comparison in [&mut parts[at % 2], &mut whole] {
            add(comparison, &ours, &theirs);
            failed(comparison, None, (at % 50 == 0).then_some(ErrorCode::Internal));
            comparison.add_label(at % 3 == 0, at % 4 == 0);
        }
    }
    let [mut merged, second] = parts;
    merged.merge(&second).unwrap();
    let (merged, whole) = (merged.report(), whole.report());
    assert_eq!(
        (merged.pairs, &merged.endings, merged.labelled),
        (whole.pairs, &whole.endings, whole.labelled)
    );
    for (ours, theirs) in merged.findings.iter().zip(&whole.findings) {
        assert_eq!(
            (ours.pairs, ours.estimate, ours.verdict),
            (theirs.pairs, theirs.estimate, theirs.verdict)
        );
    }
    let (ours, theirs) = (&merged.outputs[0], &whole.outputs[0]);
    assert_eq!((ours.disagreeing, ours.breaches), (theirs.disagreeing, theirs.breaches));
    assert_eq!(ours.absolute.unwrap().p99, theirs.absolute.unwrap().p99);
    assert!((ours.bias.unwrap().mean - theirs.bias.unwrap().mean).abs() < 1e-9);
    assert!((ours.bias.unwrap().deviation - theirs.bias.unwrap().deviation).abs() < 1e-9);
    let mut other = Comparison::new(CompareSpec { alpha: 0.1, ..CompareSpec::default() }, 1).unwrap();
    assert!(other.merge(&comparison(CompareSpec::default())).is_err());
}

#[test]
fn every_problem_of_a_declaration_is_reported_at_once() {
    let text = r#"{"max_disagreement": 0, "alpha": 1, "keep_random": 65,
        "outputs": {"y": {"absolute": -1, "max_bias": 0, "top_k": 0}}}"#;
    let spec: CompareSpec = serde_json::from_str(text).unwrap();
    let problems = spec.check().unwrap_err().0;
    for key in [
        "max_disagreement",
        "alpha",
        "keep_random",
        "outputs.y.absolute",
        "outputs.y.max_bias",
        "outputs.y.top_k",
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(&format!("{key}: expected"))),
            "{key}: {problems:#?}"
        );
    }
    assert_eq!(problems.len(), 6, "{problems:#?}");
}

#[test]
fn a_pair_disagrees_once_however_many_outputs_do() {
    let mut comparison = comparison(CompareSpec::default());
    let (one, two) = (floats(&[1], &[1.0]), floats(&[1], &[2.0]));
    let both = |a, b| [("y", a), ("z", b)];
    for (primary, candidate) in [
        (both(&one, &one), both(&one, &one)),
        (both(&one, &one), both(&two, &two)),
        (both(&one, &one), both(&one, &two)),
    ] {
        let pair = Pair {
            id: "id",
            primary: Ok(&primary),
            candidate: Ok(&candidate),
            primary_latency: Duration::ZERO,
            candidate_latency: Duration::ZERO,
        };
        comparison.add(&pair, || None);
    }
    assert_eq!(comparison.disagreement(), Share { count: 2, of: 3 });
    failed(&mut comparison, None, Some(ErrorCode::Internal));
    failed(&mut comparison, Some(ErrorCode::Internal), Some(ErrorCode::Internal));
    assert_eq!(comparison.disagreement(), Share { count: 3, of: 4 });
    let mut merged = comparison.clone();
    merged.merge(&comparison).unwrap();
    assert_eq!(merged.disagreement(), Share { count: 6, of: 8 });
}
