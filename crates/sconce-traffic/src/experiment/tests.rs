use super::*;
use crate::route::{RouteSpec, SplitSpec};
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
    let even = thompson_shares(&[rate(0, 0), rate(0, 0)], true, 0.0, 1).unwrap();
    assert!((45.0..55.0).contains(&even[0]), "{even:?}");
    let arms = [rate(10, 1_000), rate(100, 1_000), rate(12, 1_000)];
    let shares = thompson_shares(&arms, true, 5.0, 1).unwrap();
    assert_eq!(shares, [5.0, 90.0, 5.0]);
    assert_eq!(shares, thompson_shares(&arms, true, 5.0, 1).unwrap());
    // Of what is to be rare the least is best.
    let shares = thompson_shares(&[rate(100, 1_000), rate(10, 1_000)], false, 5.0, 1).unwrap();
    assert_eq!(shares, [5.0, 95.0]);
    let close = thompson_shares(&[rate(100, 1_000), rate(110, 1_000)], true, 1.0, 3).unwrap();
    assert!(close[1] > 65.0 && close[1] < 90.0, "{close:?}");
    for shares in [&close, &thompson_shares(&[rate(1, 2); 7], true, 3.33, 3).unwrap()] {
        let hundredths: f64 = shares.iter().map(|share| (share * 100.0).round()).sum();
        assert_eq!(hundredths, 10_000.0);
        assert!(shares.iter().all(|share| *share >= 1.0));
    }
    let mean = |values: &[f64]| {
        let mut moments = sconce_stats::experiment::Moments::default();
        values.iter().for_each(|value| moments.update(*value).unwrap());
        Known::Mean(moments)
    };
    let shares = thompson_shares(&[mean(&[1.0, 1.1, 0.9]), mean(&[5.0, 5.1, 4.9])], true, 10.0, 1).unwrap();
    assert_eq!(shares, [10.0, 90.0]);
    assert!(thompson_shares(&[rate(1, 2)], true, 0.0, 1).is_err());
    assert!(thompson_shares(&[rate(3, 2), rate(1, 2)], true, 60.0, 1).unwrap_err().0.len() == 2);
}

/// The share of experiments that a guardrail ever stops, looked at after every 50 units.
fn ever_stopped(kind: &str, harm: f64, runs: usize, seed: u64) -> f64 {
    let mut random = Rng::with_seed(seed);
    let mut stopped = 0;
    for _ in 0..runs {
        let metrics = format!(
            "metrics = [{BUYS_ALONE}, {{ name = \"m\", kind = \"{kind}\", higher_is_better = false, max_harm = 0.02 }}]"
        );
        let mut experiment = experiment(&metrics);
        for at in 0..2_000_u32 {
            let (variant, shift) = if at % 2 == 0 { ("old", 0.0) } else { ("new", harm) };
            experiment.expose(variant);
            if kind == "mean" {
                let value = (0..4).map(|_| random.f64()).sum::<f64>() + shift;
                experiment.observe(variant, "m", value, None).unwrap();
            } else if random.f64() < 0.2 + shift {
                experiment.observe(variant, "m", 1.0, None).unwrap();
            }
            if at % 50 == 49 {
                let report = experiment.report();
                if experiment.stopped_by(&report).is_some() {
                    stopped += 1;
                    break;
                }
            }
        }
    }
    f64::from(stopped) / runs as f64
}

const BUYS_ALONE: &str = r#"{ name = "buys", kind = "conversion" }"#;

#[test]
fn a_guardrail_stops_by_itself_who_does_harm_and_seldom_others_however_often_one_looks() {
    for (kind, runs) in [("conversion", 100), ("mean", 200)] {
        // As much harm as there may be: three standard deviations above 5 percent of so many runs.
        let most = 0.05 + 3.0 * (0.05 * 0.95 / runs as f64).sqrt();
        let wrong = ever_stopped(kind, 0.02, runs, 5);
        assert!(wrong <= most, "{kind}: {wrong}");
        let found = ever_stopped(kind, 0.3, 20, 9);
        assert!(found >= 0.9, "{kind}: {found}");
    }
}

#[test]
fn a_guardrail_that_stops_nothing_is_only_told() {
    let text = r#"metrics = [{ name = "complains", kind = "conversion", higher_is_better = false, max_harm = 0.01, stops = false }]"#;
    let mut experiment = experiment(text);
    convert(&mut experiment, "old", 2_000, 0);
    convert(&mut experiment, "new", 2_000, 0);
    for _ in 0..300 {
        experiment.observe("new", "complains", 1.0, None).unwrap();
    }
    let report = experiment.report();
    assert_eq!(report.advice, Advice::Stop);
    assert_eq!(experiment.stopped_by(&report), None);
    // What is said of it is kept, and what is usual is not written.
    let stored = serde_json::to_value(experiment.spec()).unwrap();
    assert_eq!((&stored["metrics"][0]["stops"], stored.get("bandit")), (&false.into(), None));
}

const BANDIT: &str = r#"
    metrics = [{ name = "buys", kind = "conversion" }]
    bandit = { metric = "buys", floor_percent = 10.0, every_seconds = 60 }
"#;

/// Units come by the shares of the moment, which move after each 500.
#[test]
fn a_bandit_gives_most_to_the_better_arm_keeps_the_floor_and_splits_as_planned() {
    let (mut gained, mut mismatches) = (0.0, 0);
    for seed in 0..10 {
        let mut random = Rng::with_seed(seed);
        let mut experiment = experiment(BANDIT);
        let mut shares = vec![50.0, 50.0];
        let mut better = 0;
        experiment.expose("old");
        assert!(experiment.bandit_shares(1).is_none(), "nothing is known");
        for at in 1..=5_000_u32 {
            let variant = if random.f64() * 100.0 < shares[0] { "old" } else { "new" };
            better += u32::from(variant == "new");
            experiment.expose_by(variant, Some(&shares));
            if random.f64() < if variant == "new" { 0.15 } else { 0.1 } {
                experiment.observe(variant, "buys", 1.0, None).unwrap();
            }
            if at % 500 == 0 {
                shares = experiment.bandit_shares(u64::from(at)).unwrap().unwrap();
                let hundredths: f64 = shares.iter().map(|share| (share * 100.0).round()).sum();
                assert!(hundredths == 10_000.0 && shares.iter().all(|share| *share >= 10.0), "{shares:?}");
            }
        }
        mismatches += u32::from(experiment.report().sample_ratio.mismatch);
        assert!(shares[1] > 50.0, "{shares:?}");
        gained += f64::from(better) / 5_000.0 / 10.0;
    }
    // Split evenly all the time it would be a half; a sample ratio held against the shares of the start would be off.
    assert!(gained > 0.75, "{gained}");
    assert_eq!(mismatches, 0);
}

#[test]
fn a_bandit_is_wrong_about_which_arm_is_better_no_more_often_than_declared() {
    let (runs, mut decided) = (40, 0);
    for seed in 0..runs {
        let mut random = Rng::with_seed(seed);
        let mut experiment = experiment(BANDIT);
        let mut shares = vec![50.0, 50.0];
        for at in 1..=2_000_u32 {
            let variant = if random.f64() * 100.0 < shares[0] { "old" } else { "new" };
            experiment.expose_by(variant, Some(&shares));
            if random.f64() < 0.2 {
                experiment.observe(variant, "buys", 1.0, None).unwrap();
            }
            if at % 250 == 0 {
                shares = experiment.bandit_shares(u64::from(at)).unwrap().unwrap();
                if matches!(experiment.report().goals[0].outcome, Outcome::Better | Outcome::Worse) {
                    decided += 1;
                    break;
                }
            }
        }
    }
    // Three standard deviations above 5 percent.
    assert!(decided <= 6, "{decided} of {runs}");
}

#[test]
fn shares_move_among_the_arms_alone_and_sum_as_before() {
    let split = |variant: &str, percent| SplitSpec {
        variant: variant.to_owned(),
        id: None,
        target: "champion".to_owned(),
        percent,
    };
    let route = RouteSpec {
        splits: vec![split("a", 30.0), split("other", 40.0), split("b", 20.0), split("c", 10.0)],
        ..RouteSpec::default()
    };
    let arms = ["a", "b", "c"].map(|variant| ArmSpec { variant: variant.to_owned(), weight: 1.0 });
    let shares = |percents: &[f64]| {
        let route = reshare(&route, &arms, percents).unwrap();
        route.splits.iter().map(|split| split.percent).collect::<Vec<_>>()
    };
    assert_eq!(shares(&[50.0, 33.33, 16.67]), [30.01, 40.0, 19.99, 10.0]);
    assert_eq!(shares(&[100.0, 0.0, 0.0]), [60.0, 40.0, 0.0, 0.0]);
    for percents in [[33.34, 33.33, 33.33], [5.0, 90.0, 5.0], [0.01, 0.01, 99.98]] {
        let moved = reshare(&route, &arms, &percents).unwrap();
        assert!(moved.check().is_ok(), "{moved:?}");
    }
    assert_eq!(reshare(&route, &arms, &[100.0]), None);
    let strangers = ["a", "nobody"].map(|variant| ArmSpec { variant: variant.to_owned(), weight: 1.0 });
    assert_eq!(reshare(&route, &strangers, &[50.0, 50.0]), None);
}

#[test]
fn a_bandit_that_does_not_fit_is_refused() {
    for (text, says) in [
        (r#"bandit = { metric = "sells" }"#, "bandit.metric: expected a goal"),
        (r#"bandit = { metric = "buys", floor_percent = 51.0 }"#, "bandit.floor_percent: expected 0 to 50"),
        (r#"bandit = { metric = "buys", every_seconds = 0 }"#, "bandit.every_seconds: expected 1 to"),
        ("bandit = { metric = \"buys\" }\ndesign = { fixed = { units = 100 } }", "bandit: expected a design"),
    ] {
        let problems = Experiment::new(spec(&format!("{ARMS}\n{BUYS}\n{text}"))).unwrap_err().to_string();
        assert!(problems.contains(says), "{says}: {problems}");
    }
    let text = r#"metrics = [{ name = "buys", kind = "conversion", stops = false }]"#;
    let problems = Experiment::new(spec(&format!("{ARMS}\n{text}"))).unwrap_err().to_string();
    assert!(problems.contains("metrics[0].stops"), "{problems}");
}
