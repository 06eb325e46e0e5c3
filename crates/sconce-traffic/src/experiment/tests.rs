use super::*;
use fastrand::Rng;

fn spec(text: &str) -> ExperimentSpec {
    toml::from_str(text).unwrap()
}

const ARMS: &str = r#"arms = [{ variant = "old", weight = 1 }, { variant = "new", weight = 1 }]"#;

fn experiment(rest: &str) -> Experiment {
    Experiment::new(spec(&format!("{ARMS}\n{rest}"))).unwrap()
}

/// Exposes `units` of `variant` of which the first `conversions` convert.
fn convert(experiment: &mut Experiment, variant: &str, units: u64, conversions: u64) {
    for at in 0..units {
        experiment.expose(variant);
        if at < conversions {
            experiment.observe(variant, "buys", 1.0, None).unwrap();
        }
    }
}

const BUYS: &str = r#"metrics = [{ name = "buys", kind = "conversion" }]"#;

#[test]
fn a_split_that_is_off_silences_everything_else() {
    let mut experiment = experiment(BUYS);
    convert(&mut experiment, "old", 10_000, 100);
    convert(&mut experiment, "new", 9_000, 900);
    let report = experiment.report();
    assert_eq!((report.advice, report.goals.len()), (Advice::SampleRatioMismatch, 0));
    assert!(report.sample_ratio.mismatch && report.sentence.contains("[10000, 9000]"), "{}", report.sentence);
    // The same counts are as planned where ten to nine was the plan.
    let text = format!("{ARMS}\n{BUYS}").replacen("weight = 1", "weight = 10", 1).replacen(
        "weight = 1 }]",
        "weight = 9 }]",
        1,
    );
    let mut planned = Experiment::new(spec(&text)).unwrap();
    convert(&mut planned, "old", 10_000, 100);
    convert(&mut planned, "new", 9_000, 900);
    assert_eq!(planned.report().advice, Advice::Decide);
}

#[test]
fn a_fixed_design_decides_when_it_is_time_and_not_before() {
    let mut experiment = experiment(&format!("{BUYS}\ndesign = {{ fixed = {{ units = 4000 }} }}"));
    convert(&mut experiment, "old", 1_000, 100);
    convert(&mut experiment, "new", 1_000, 160);
    let report = experiment.report();
    assert_eq!((report.advice, report.goals[0].outcome), (Advice::GoOn, Outcome::TooEarly));
    assert!(report.goals[0].p_value.unwrap() < 0.01);
    convert(&mut experiment, "old", 1_000, 100);
    convert(&mut experiment, "new", 1_000, 160);
    let report = experiment.report();
    let goal = &report.goals[0];
    assert_eq!((report.advice, goal.outcome), (Advice::Decide, Outcome::Better));
    assert!((goal.difference.unwrap() - 0.06).abs() < 1e-12 && (goal.relative.unwrap() - 0.6).abs() < 1e-12);
    let interval = goal.interval.unwrap();
    assert!(interval.low > 0.0 && interval.contains(0.06), "{interval:?}");
    assert_eq!(report.sentence, "new is better by buys");
}

#[test]
fn means_are_adjusted_and_ratios_are_of_sums() {
    let text = r#"
        design = { fixed = { units = 2000 } }
        metrics = [
            { name = "plain", kind = "mean" },
            { name = "spend", kind = "adjusted" },
            { name = "clicks per view", kind = "ratio" },
        ]
    "#;
    let mut experiment = experiment(text);
    let mut random = Rng::with_seed(1);
    for at in 0..2_000_u32 {
        let (variant, effect) = if at % 2 == 0 { ("old", 0.0) } else { ("new", 0.5) };
        experiment.expose(variant);
        // What it spent before explains most of what it spends.
        let before = 100.0 * random.f64();
        let spend = before + 4.0 * random.f64() + effect;
        experiment.observe(variant, "plain", spend, None).unwrap();
        experiment.observe(variant, "spend", spend, Some(before)).unwrap();
        let views = 1.0 + f64::from(random.u32(0..5));
        let clicks = (0..views as u32).filter(|_| random.f64() < 0.2).count() as f64;
        experiment.observe(variant, "clicks per view", clicks, Some(views)).unwrap();
    }
    let goals = experiment.report().goals;
    let outcomes: Vec<Outcome> = goals.iter().map(|goal| goal.outcome).collect();
    assert_eq!(outcomes, [Outcome::Undecided, Outcome::Better, Outcome::Undecided]);
    assert!(goals[1].variance_reduction.unwrap() > 0.9 && goals[1].interval.unwrap().contains(0.5));
    assert!(goals[2].difference.unwrap().abs() < 0.05 && goals[2].interval.unwrap().contains(0.0));
}

#[test]
fn many_metrics_are_corrected() {
    let metrics: Vec<String> =
        (0..20).map(|at| format!("{{ name = \"m{at}\", kind = \"conversion\" }}")).collect();
    let mut experiment =
        experiment(&format!("design = {{ fixed = {{ units = 2000 }} }}\nmetrics = [{}]", metrics.join(",")));
    for variant in ["old", "new"] {
        for at in 0..1_000 {
            experiment.expose(variant);
            // A difference that alone would have a p-value of about 0.02.
            for metric in 0..if at < if variant == "new" { 130 } else { 97 } { 1 } else { 0 } {
                experiment.observe(variant, &format!("m{metric}"), 1.0, None).unwrap();
            }
        }
    }
    let goal = experiment.report().goals.swap_remove(0);
    assert!(goal.p_value.unwrap() > 0.2 && goal.outcome == Outcome::Undecided, "{goal:?}");
}

#[test]
fn a_group_sequential_design_looks_only_when_a_look_is_due_and_keeps_what_it_decided() {
    let text =
        format!("{BUYS}\ndesign = {{ group_sequential = {{ units = 8000, looks = [0.25, 0.5, 1] }} }}");
    let mut experiment = experiment(&text);
    convert(&mut experiment, "old", 900, 90);
    convert(&mut experiment, "new", 900, 270);
    assert_eq!(
        experiment.report().goals[0].outcome,
        Outcome::TooEarly,
        "before the first look nothing is said"
    );
    convert(&mut experiment, "old", 100, 10);
    convert(&mut experiment, "new", 100, 30);
    let report = experiment.report();
    assert_eq!((report.goals[0].outcome, report.advice), (Outcome::Better, Advice::Decide));
    // Whatever comes afterwards does not undo it, and it survives being stored.
    convert(&mut experiment, "old", 1_000, 900);
    convert(&mut experiment, "new", 1_000, 0);
    let mut stored: Experiment = serde_json::from_str(&serde_json::to_string(&experiment).unwrap()).unwrap();
    assert_eq!(stored.report().goals[0].outcome, Outcome::Better);
}

#[test]
fn guardrails_stop_an_experiment_at_any_time() {
    let text = r#"
        design = { fixed = { units = 1000000 } }
        metrics = [
            { name = "buys", kind = "conversion" },
            { name = "complains", kind = "conversion", higher_is_better = false, max_harm = 0.01 },
        ]
    "#;
    let mut experiment = experiment(text);
    convert(&mut experiment, "old", 2_000, 100);
    convert(&mut experiment, "new", 2_000, 100);
    assert_eq!(experiment.report().advice, Advice::GoOn);
    for _ in 0..300 {
        experiment.observe("new", "complains", 1.0, None).unwrap();
    }
    let report = experiment.report();
    assert_eq!((report.advice, report.guardrails[0].outcome), (Advice::Stop, Outcome::Worse));
    assert_eq!(report.sentence, "new breaks the guardrail complains");
}

/// The share of experiments that ever call arms different, looked at every 100 units.
fn ever_decided(design: &str, kind: &str, effect: f64, runs: usize, seed: u64) -> f64 {
    let mut random = Rng::with_seed(seed);
    let mut decided = 0;
    for _ in 0..runs {
        let mut experiment =
            experiment(&format!("{design}\nmetrics = [{{ name = \"m\", kind = \"{kind}\" }}]"));
        for at in 0..2_000_u32 {
            let (variant, shift) = if at % 2 == 0 { ("old", 0.0) } else { ("new", effect) };
            experiment.expose(variant);
            match kind {
                "conversion" if random.f64() < 0.2 + shift => {
                    experiment.observe(variant, "m", 1.0, None).unwrap()
                }
                "mean" => {
                    let value = (0..4).map(|_| random.f64()).sum::<f64>() + shift;
                    experiment.observe(variant, "m", value, None).unwrap();
                }
                _ => {}
            }
            if at % 50 == 49
                && matches!(experiment.report().goals[0].outcome, Outcome::Better | Outcome::Worse)
            {
                decided += 1;
                break;
            }
        }
    }
    f64::from(decided) / runs as f64
}

#[test]
fn looking_often_is_wrong_no_more_often_than_declared() {
    let group = "design = { group_sequential = { units = 2000, looks = [0.25, 0.5, 0.75, 1] } }";
    for (design, kind, runs) in
        [("", "conversion", 60), ("", "mean", 200), (group, "conversion", 200), (group, "mean", 200)]
    {
        let wrong = ever_decided(design, kind, 0.0, runs, 5);
        // Three standard deviations above 5 percent of so many runs.
        let most = 0.05 + 3.0 * (0.05 * 0.95 / runs as f64).sqrt();
        assert!(wrong <= most, "{design} {kind}: {wrong}");
    }
}

#[test]
fn an_effect_is_found_by_every_design() {
    let group = "design = { group_sequential = { units = 2000, looks = [0.25, 0.5, 0.75, 1] } }";
    let fixed = "design = { fixed = { units = 2000 } }";
    for design in ["", group, fixed] {
        for (kind, effect) in [("conversion", 0.15), ("mean", 0.2)] {
            let found = ever_decided(design, kind, effect, 20, 9);
            assert!(found >= 0.9, "{design} {kind}: {found}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut experiment = experiment(
        r#"
        design = { fixed = { units = 10 } }
        metrics = [{ name = "buys", kind = "conversion" }, { name = "ratio", kind = "ratio" }]
        "#,
    );
    experiment.expose("somebody else");
    for (variant, metric, value, second) in [
        ("somebody else", "buys", 1.0, None),
        ("old", "sells", 1.0, None),
        ("old", "buys", 1.0, None),
        ("old", "ratio", 1.0, None),
        ("old", "ratio", f64::NAN, Some(1.0)),
    ] {
        assert!(experiment.observe(variant, metric, value, second).is_err(), "{variant} {metric} {value}");
    }
    assert_eq!(experiment.report().units, [0, 0]);
    let problems = Experiment::new(spec(
        r#"
        arms = [{ variant = "a", weight = 0 }]
        metrics = [{ name = "x", kind = "ratio" }, { name = "x", kind = "adjusted", max_harm = -1 }]
        alpha = 0
        "#,
    ))
    .unwrap_err()
    .0;
    for part in [
        "arms: expected 2",
        "arms[0].weight",
        "metrics[0].kind",
        "metrics[1].name: `x` is named twice",
        "metrics[1].max_harm",
        "metrics[1].kind",
        "alpha",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(part)), "{part}: {problems:#?}");
    }
    let looks =
        format!("{ARMS}\n{BUYS}\ndesign = {{ group_sequential = {{ units = 1, looks = [0.5, 0.4] }} }}");
    assert_eq!(Experiment::new(spec(&looks)).unwrap_err().0.len(), 3);
}

#[test]
fn units_needed_are_those_of_the_textbook() {
    // 80 percent power to tell 10 from 12 percent at 5 percent: 3,839 in each arm, unpooled.
    let goal = Goal::Conversion { control: 0.10, treatment: 0.12 };
    assert_eq!(units_needed(goal, 0.05, 0.8, 1.0).unwrap(), (3_839, 3_839));
    // Half a standard deviation: 64 in each arm.
    let goal = Goal::Mean { difference: 5.0, deviation: 10.0 };
    assert_eq!(units_needed(goal, 0.05, 0.8, 1.0).unwrap(), (64, 64));
    assert!(units_needed(Goal::Mean { difference: 0.0, deviation: 1.0 }, 0.05, 0.8, 1.0).is_err());
}

#[test]
fn thompson_shares_follow_the_better_arm_and_keep_the_floor() {
    let rate = |events, trials| Known::Rate(Trials { events, trials });
    let even = thompson_shares(&[rate(0, 0), rate(0, 0)], 0.0, 1).unwrap();
    assert!((45.0..55.0).contains(&even[0]), "{even:?}");
    let arms = [rate(10, 1_000), rate(100, 1_000), rate(12, 1_000)];
    let shares = thompson_shares(&arms, 5.0, 1).unwrap();
    assert_eq!(shares, [5.0, 90.0, 5.0]);
    assert_eq!(shares, thompson_shares(&arms, 5.0, 1).unwrap());
    let close = thompson_shares(&[rate(100, 1_000), rate(110, 1_000)], 1.0, 3).unwrap();
    assert!(close[1] > 65.0 && close[1] < 90.0, "{close:?}");
    for shares in [&close, &thompson_shares(&[rate(1, 2); 7], 3.33, 3).unwrap()] {
        let hundredths: f64 = shares.iter().map(|share| (share * 100.0).round()).sum();
        assert_eq!(hundredths, 10_000.0);
        assert!(shares.iter().all(|share| *share >= 1.0));
    }
    let mean = |values: &[f64]| {
        let mut moments = sconce_stats::experiment::Moments::default();
        values.iter().for_each(|value| moments.update(*value).unwrap());
        Known::Mean(moments)
    };
    let shares = thompson_shares(&[mean(&[1.0, 1.1, 0.9]), mean(&[5.0, 5.1, 4.9])], 10.0, 1).unwrap();
    assert_eq!(shares, [10.0, 90.0]);
    assert!(thompson_shares(&[rate(1, 2)], 0.0, 1).is_err());
    assert!(thompson_shares(&[rate(3, 2), rate(1, 2)], 60.0, 1).unwrap_err().0.len() == 2);
}
