use super::*;
use fastrand::Rng;
use proptest::prelude::*;
use proptest::strategy::Strategy;
use sconce_stats::sketch::LogSketch;

fn known(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn plan(text: &str) -> Plan {
    toml::from_str(text).unwrap()
}

const CANARY: &str = r#"
candidate = "7"
[strategy.canary]
stages = [
    { percent = 1, min_seconds = 10, max_seconds = 100, min_samples = 50 },
    { percent = 25, min_seconds = 10, max_seconds = 100, min_samples = 50 },
    { percent = 100, min_seconds = 10, max_seconds = 100, min_samples = 50 },
]
[[gates]]
metric = "error_rate"
vs_control = 0
"#;

/// What each look of a test adds.
#[derive(Clone, Copy)]
struct Traffic {
    control: u64,
    control_errors: u64,
    candidate: u64,
    candidate_errors: u64,
}

const GOOD: Traffic = Traffic { control: 200, control_errors: 1, candidate: 100, candidate_errors: 0 };
const BAD: Traffic = Traffic { control: 200, control_errors: 1, candidate: 100, candidate_errors: 40 };

/// Evidence that grows.
#[derive(Default)]
struct World {
    now_ms: u64,
    evidence: Evidence,
}

impl World {
    fn look(&mut self, rollout: &mut Rollout, seconds: u64, traffic: Traffic) -> Vec<Action> {
        self.now_ms += seconds * 1_000;
        let add = |counts: &mut Counts, requests: u64, errors: u64| {
            counts.requests += requests;
            counts.errors += errors;
            counts.successes += requests - errors;
        };
        add(&mut self.evidence.control, traffic.control, traffic.control_errors);
        add(&mut self.evidence.candidate, traffic.candidate, traffic.candidate_errors);
        rollout.step(self.now_ms, &self.evidence)
    }
}

fn start(text: &str) -> (Rollout, World) {
    let (rollout, actions) = Rollout::start(plan(text), &BTreeSet::new(), 0).unwrap();
    assert!(!actions.is_empty());
    (rollout, World::default())
}

fn share(rollout: &Rollout) -> f64 {
    match rollout.wanted() {
        Wanted::Share { percent, .. } => percent,
        Wanted::Promoted => 100.0,
        Wanted::RolledBack => 0.0,
    }
}

fn stored(rollout: &Rollout) -> Rollout {
    serde_json::from_str(&serde_json::to_string(rollout).unwrap()).unwrap()
}

#[test]
fn a_good_candidate_goes_through_all_stages_and_is_promoted() {
    let (mut rollout, mut world) = start(CANARY);
    assert_eq!((share(&rollout), rollout.phase()), (1.0, Phase::Running));
    let mut shares = Vec::new();
    for _ in 0..20 {
        world.look(&mut rollout, 5, GOOD);
        shares.push(share(&rollout));
    }
    shares.dedup();
    assert_eq!(shares, [1.0, 25.0, 100.0]);
    assert_eq!((rollout.phase(), rollout.wanted()), (Phase::Ended(End::Promoted), Wanted::Promoted));
    let kinds: Vec<EventKind> = rollout.events().iter().map(|event| event.kind).collect();
    assert_eq!(
        kinds,
        [EventKind::StageBegan, EventKind::StageBegan, EventKind::StageBegan, EventKind::Promoted]
    );
    assert!(world.look(&mut rollout, 5, BAD).is_empty(), "an ended rollout does nothing");
}

#[test]
fn a_bad_candidate_is_rolled_back_at_the_next_looks_with_its_evidence() {
    let (mut rollout, mut world) = start(CANARY);
    world.look(&mut rollout, 1, GOOD);
    let mut actions = Vec::new();
    for _ in 0..3 {
        actions.extend(world.look(&mut rollout, 1, BAD));
    }
    assert_eq!(rollout.wanted(), Wanted::RolledBack);
    let [Action::Make(Wanted::RolledBack), Action::Announce(event)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(event.kind, EventKind::RolledBack);
    let judged = &event.gates[0];
    assert_eq!(judged.verdict, GateVerdict::Failed);
    let control = judged.control.unwrap();
    assert!(judged.candidate.low > control.estimate && judged.log_e.is_some(), "{judged:?}");
    assert!(
        event.sentence.starts_with("7 is rolled back: error_rate is 20.000 % of 200 requests"),
        "{}",
        event.sentence
    );
}

#[test]
fn a_stage_needs_its_time_and_its_samples() {
    let (mut rollout, mut world) = start(CANARY);
    world.look(&mut rollout, 9, GOOD);
    assert_eq!(share(&rollout), 1.0);
    world.look(&mut rollout, 1, GOOD);
    assert_eq!(share(&rollout), 25.0);
    world.look(&mut rollout, 90, Traffic { candidate: 49, ..GOOD });
    assert_eq!(share(&rollout), 25.0);
    world.look(&mut rollout, 1, Traffic { candidate: 1, ..GOOD });
    assert_eq!(share(&rollout), 100.0);
}

#[test]
fn what_stays_undecided_is_handled_as_declared() {
    let nothing = Traffic { control: 0, control_errors: 0, candidate: 0, candidate_errors: 0 };
    for (policy, expected, percent) in [
        ("pause", Phase::Paused(Why::Inconclusive), 1.0),
        ("roll_back", Phase::Ended(End::RolledBack), 0.0),
        ("promote", Phase::Running, 25.0),
    ] {
        let (mut rollout, mut world) = start(&format!("on_inconclusive = \"{policy}\"\n{CANARY}"));
        world.look(&mut rollout, 99, nothing);
        assert_eq!(share(&rollout), 1.0);
        world.look(&mut rollout, 1, nothing);
        assert_eq!((rollout.phase(), share(&rollout)), (expected, percent), "{policy}");
        assert!(
            rollout.events().last().unwrap().sentence.contains("undecided after 100 s, with 0 of 50 samples")
        );
    }
}

#[test]
fn a_broken_gate_pauses_if_so_declared_and_a_resumed_rollout_starts_its_evidence_anew() {
    let (mut rollout, mut world) = start(&format!("on_failure = \"pause\"\n{CANARY}"));
    world.look(&mut rollout, 1, GOOD);
    for _ in 0..3 {
        world.look(&mut rollout, 1, BAD);
    }
    assert_eq!((rollout.phase(), share(&rollout)), (Phase::Paused(Why::BrokenGate), 1.0));
    assert!(world.look(&mut rollout, 100, BAD).is_empty(), "said once");
    rollout.resume(world.now_ms, "me", "it was the network").unwrap();
    world.look(&mut rollout, 5, GOOD);
    assert_eq!((rollout.phase(), share(&rollout)), (Phase::Running, 1.0));
    world.look(&mut rollout, 5, GOOD);
    assert_eq!(share(&rollout), 25.0);
}

#[test]
fn a_paused_rollout_keeps_its_share_and_is_still_rolled_back() {
    let (mut rollout, mut world) = start(CANARY);
    world.look(&mut rollout, 5, GOOD);
    rollout.pause(world.now_ms, "me", "lunch").unwrap();
    assert!(rollout.pause(world.now_ms, "me", "again").is_err());
    world.look(&mut rollout, 1_000, GOOD);
    assert_eq!((rollout.phase(), share(&rollout)), (Phase::Paused(Why::Operator), 1.0));
    rollout.resume(world.now_ms, "me", "back").unwrap();
    world.look(&mut rollout, 4, GOOD);
    assert_eq!(share(&rollout), 1.0, "the time of the pause does not count");
    world.look(&mut rollout, 1, GOOD);
    assert_eq!(share(&rollout), 25.0);
    rollout.pause(world.now_ms, "me", "coffee").unwrap();
    for _ in 0..4 {
        world.look(&mut rollout, 1, BAD);
    }
    assert_eq!(rollout.phase(), Phase::Ended(End::RolledBack));
    let refused = rollout.resume(world.now_ms, "me", "no").unwrap_err();
    assert_eq!(refused.to_string(), "the rollout is rolled back: expected one that is paused");
    assert!(rollout.abort(world.now_ms, "me", "no").is_err());
}

#[test]
fn a_stage_may_wait_for_approval_and_be_aborted() {
    let text = CANARY.replace("{ percent = 25,", "{ approval = true, percent = 25,");
    let (mut rollout, mut world) = start(&text);
    assert!(rollout.approve(0, "me", "early").is_err());
    world.look(&mut rollout, 10, GOOD);
    assert_eq!((rollout.phase(), share(&rollout)), (Phase::AwaitingApproval, 1.0));
    world.look(&mut rollout, 10_000, GOOD);
    assert_eq!((rollout.phase(), share(&rollout)), (Phase::AwaitingApproval, 1.0));
    let mut broken = stored(&rollout);
    rollout.approve(world.now_ms, "me", "looks good").unwrap();
    assert_eq!((rollout.phase(), share(&rollout)), (Phase::Running, 25.0));
    world.look(&mut rollout, 9, GOOD);
    assert_eq!(share(&rollout), 25.0, "its time begins with the approval");
    let actions = rollout.abort(world.now_ms, "me", "enough").unwrap();
    assert_eq!(actions[0], Action::Make(Wanted::RolledBack));
    assert_eq!(rollout.events().last().unwrap().by.as_deref(), Some("me"));
    for _ in 0..4 {
        world.look(&mut broken, 1, BAD);
    }
    assert_eq!(broken.phase(), Phase::Ended(End::RolledBack), "gates hold while it waits");
}

#[test]
fn blue_green_mirrors_then_switches_at_once_and_back_while_blue_is_warm() {
    let text = r#"
        candidate = "green"
        strategy = { blue_green = { mirror_seconds = 60, mirror_samples = 100, keep_blue_seconds = 30 } }
        gates = [{ metric = "shadow_disagreement", max = 0.05 }, { metric = "error_rate", vs_control = 0 }]
    "#;
    let (mut rollout, mut world) = start(text);
    assert_eq!(rollout.wanted(), Wanted::Share { percent: 0.0, mirror: true });
    let blue = Traffic { candidate: 0, candidate_errors: 0, ..GOOD };
    world.evidence.candidate.mirrored = 99;
    world.look(&mut rollout, 60, blue);
    assert_eq!(share(&rollout), 0.0);
    world.evidence.candidate.mirrored = 200;
    world.evidence.candidate.disagreeing = 2;
    world.look(&mut rollout, 1, blue);
    assert_eq!(rollout.wanted(), Wanted::Share { percent: 100.0, mirror: false });
    let mut back = stored(&rollout);
    assert_eq!(back.abort(world.now_ms, "me", "switch back").unwrap()[0], Action::Make(Wanted::RolledBack));
    let green = Traffic { control: 0, control_errors: 0, ..GOOD };
    world.look(&mut rollout, 29, green);
    assert_eq!(rollout.phase(), Phase::Running);
    world.look(&mut rollout, 1, green);
    assert_eq!(rollout.phase(), Phase::Ended(End::Promoted));

    let (mut garbage, mut world) = start(text);
    world.evidence.candidate.mirrored = 200;
    world.evidence.candidate.disagreeing = 60;
    world.look(&mut garbage, 1, blue);
    assert_eq!(garbage.phase(), Phase::Ended(End::RolledBack));
}

#[test]
fn blue_green_may_switch_by_steps_after_an_approval() {
    let text = r#"
        candidate = "green"
        strategy = { blue_green = { mirror_seconds = 0, approval = true, steps = [10, 50, 100], step_seconds = 5 } }
    "#;
    let (mut rollout, mut world) = start(text);
    assert_eq!((rollout.phase(), share(&rollout)), (Phase::AwaitingApproval, 0.0));
    rollout.approve(0, "me", "go").unwrap();
    let mut shares = vec![share(&rollout)];
    while rollout.phase() == Phase::Running {
        world.look(&mut rollout, 5, GOOD);
        shares.push(share(&rollout));
    }
    shares.dedup();
    assert_eq!((shares, world.now_ms), (vec![10.0, 50.0, 100.0], 910_000));
}

fn sketch(values: impl IntoIterator<Item = f64>) -> LogSketch {
    let mut sketch = LogSketch::new(0.01, 1e-6, 1e4).unwrap();
    values.into_iter().for_each(|value| sketch.update(value).unwrap());
    sketch
}

/// What one gate says of one look.
fn judge_once(gate: &str, known: &[&str], change: impl FnOnce(&mut Evidence)) -> Judged {
    let text = format!(
        "candidate = \"7\"\nstrategy = {{ canary = {{ stages = [{{ percent = 50, min_seconds = 0, min_samples = 0 }}, {{ percent = 100 }}] }} }}\ngates = [{gate}]"
    );
    let names: BTreeSet<String> = self::known(known);
    let (mut rollout, _) = Rollout::start(plan(&text), &names, 0).unwrap();
    let mut evidence = Evidence::default();
    change(&mut evidence);
    rollout.step(1_000, &evidence);
    // A gate that passed moved the rollout on; what it said is what it was then.
    rollout.judged()[0].clone()
}

#[test]
fn each_gate_passes_fails_and_waits() {
    use GateVerdict::{Failed, Passed, Pending};
    let counts = |requests, errors, right| Counts {
        requests,
        errors,
        successes: requests - errors,
        labelled: requests,
        right,
        ..Counts::default()
    };
    let rate = |gate: &str, ours: Counts, theirs: Counts| {
        judge_once(gate, &[ACCURACY], |evidence| {
            evidence.candidate = ours;
            evidence.control = theirs;
        })
    };
    let error_rate = r#"{ metric = "error_rate", max = 0.05 }"#;
    let proven = r#"{ metric = "error_rate", max = 0.05, proof = true }"#;
    let none = Counts::default();
    assert_eq!(rate(error_rate, none, none).verdict, Pending);
    assert_eq!(rate(error_rate, counts(100, 2, 0), none).verdict, Passed);
    assert_eq!(rate(proven, counts(100, 2, 0), none).verdict, Pending);
    assert_eq!(rate(proven, counts(1_000, 10, 0), none).verdict, Passed);
    assert_eq!(rate(error_rate, counts(100, 8, 0), none).verdict, Pending);
    assert_eq!(rate(error_rate, counts(100, 40, 0), none).verdict, Failed);
    let margin = r#"{ metric = "error_rate", vs_control = 0.02 }"#;
    assert_eq!(rate(margin, counts(5_000, 100, 0), counts(5_000, 50, 0)).verdict, Passed);
    assert_eq!(rate(margin, counts(200, 8, 0), counts(200, 2, 0)).verdict, Pending);
    assert_eq!(rate(margin, counts(5_000, 500, 0), counts(5_000, 50, 0)).verdict, Failed);
    let success = r#"{ metric = "success_rate", min = 0.9 }"#;
    assert_eq!(rate(success, counts(100, 2, 0), none).verdict, Passed);
    assert_eq!(rate(success, counts(100, 60, 0), none).verdict, Failed);
    let accuracy = r#"{ metric = "accuracy", vs_control = 0.05 }"#;
    assert_eq!(rate(accuracy, counts(1_000, 0, 900), counts(1_000, 0, 920)).verdict, Passed);
    assert_eq!(rate(accuracy, counts(1_000, 0, 600), counts(1_000, 0, 920)).verdict, Failed);
    let leaving = |deferred: u64| Counts { deferred, ..counts(1_000, 0, 0) };
    let deferred = r#"{ metric = "deferred", vs_control = 0.1, max = 0.5 }"#;
    assert_eq!(rate(deferred, leaving(120), leaving(100)).verdict, Passed);
    assert_eq!(rate(deferred, leaving(400), leaving(100)).verdict, Failed);
    assert_eq!(rate(deferred, leaving(700), leaving(690)).verdict, Failed);

    let latency = |gate: &str, factor: f64| {
        judge_once(gate, &[], |evidence| {
            let values = |factor: f64| (1..=20_000).map(move |at| factor * f64::from(at) / 1e6);
            evidence.candidate.requests = 20_000;
            evidence.control_latency = Some(sketch(values(1.0)));
            evidence.candidate_latency = Some(sketch(values(factor)));
        })
        .verdict
    };
    for (gate, factor, expected) in [
        (r#"{ metric = "latency", quantile = 0.95, vs_control = 1.05 }"#, 1.0, Passed),
        (r#"{ metric = "latency", quantile = 0.95, vs_control = 1.05 }"#, 1.5, Failed),
        (r#"{ metric = "latency", quantile = 0.95, vs_control = 1.1, proof = true }"#, 1.0, Passed),
        (r#"{ metric = "latency", quantile = 0.95, vs_control = 1.01, proof = true }"#, 1.0, Pending),
        (r#"{ metric = "latency", quantile = 0.95, max_ms = 20 }"#, 1.0, Passed),
        (r#"{ metric = "latency", quantile = 0.95, max_ms = 10 }"#, 1.0, Failed),
    ] {
        assert_eq!(latency(gate, factor), expected, "{gate} {factor}");
    }

    let fact = |gate: &str, fact: Option<Fact>| {
        judge_once(gate, &["it"], |evidence| evidence.facts.extend(fact.map(|fact| ("it".to_owned(), fact))))
            .verdict
    };
    let monitor = r#"{ metric = "monitor", name = "it" }"#;
    for (state, expected) in [("ok", Passed), ("drift", Failed)] {
        assert_eq!(fact(monitor, Some(Fact::State(state.to_owned()))), expected);
    }
    assert_eq!(fact(monitor, None), Pending);
    let query = r#"{ metric = "prometheus", name = "it", query = "up", min = 1, max = 2 }"#;
    for (value, expected) in [(1.5, Passed), (2.5, Failed), (0.5, Failed), (f64::NAN, Pending)] {
        assert_eq!(fact(query, Some(Fact::Value(value))), expected);
    }
}

#[test]
fn every_problem_of_a_plan_is_reported_at_once_and_unknown_metrics_are_refused() {
    let text = r#"
        candidate = ""
        alias = "7"
        false_rollback_rate = 0
        gates = [
            { metric = "error_rate" },
            { metric = "error_rate", max = 2, vs_control = 0, proof = true },
            { metric = "latency", quantile = 1, vs_control = 0.9 },
            { metric = "shadow_disagreement", max = 0.1 },
            { metric = "accuracy", min = 0.5 },
            { metric = "monitor", name = "nobody" },
            { metric = "prometheus", name = "none", query = "" },
        ]
        [strategy.canary]
        stages = [
            { percent = 0 },
            { percent = 50, min_seconds = 10, max_seconds = 5 },
            { percent = 50 },
            { percent = 99.999 },
            { percent = 90 },
        ]
    "#;
    let problems = plan(text).check(&known(&["it"])).unwrap_err().0;
    for part in [
        "candidate: expected a version number or an alias, got ``",
        "alias: expected an alias, got `7`",
        "false_rollback_rate: expected",
        "strategy.canary.stages[0].percent: expected more than 0 where nothing is mirrored",
        "strategy.canary.stages[1]: expected min_seconds <= max_seconds",
        "strategy.canary.stages[2].percent: expected more than the 50 before it, got 50",
        "strategy.canary.stages[3].percent: expected 0 to 100 in steps of 0.01, got 99.999",
        "strategy.canary.stages: expected the last to have 100 percent, got 90",
        "gates[0]: expected a bound or vs_control, got neither",
        "gates[1].max: expected a number between 0 and 1, neither included, got 2",
        "gates[1].vs_control: expected more than 0 to be proven, got 0",
        "gates[2].quantile",
        "gates[2].vs_control: expected a ratio of at least 1, got 0.9",
        "gates[3]: no stage mirrors",
        "gates[4]: no labels come for this model",
        "gates[5].name: there is no monitor `nobody`; there are error_rate, success_rate, latency, deferred, it",
        "gates[6].name: there is no query that gives a number `none`",
        "gates[6].query: expected 1 to 4096 bytes, got 0",
        "gates[6]: expected min or max, got neither",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(part)), "{part}: {problems:#?}");
    }
    for bad in [r#"{ metric = "colour", max = 1 }"#, r#"{ metric = "error_rate", maximum = 1 }"#] {
        let text = format!("candidate = \"7\"\nstrategy = {{ canary = {{ stages = [] }} }}\ngates = [{bad}]");
        assert!(toml::from_str::<Plan>(&text).is_err(), "{bad}");
    }
    let empty = plan("candidate = \"7\"\nstrategy = { canary = { stages = [] } }");
    assert_eq!(empty.check(&known(&[])).unwrap_err().0, ["strategy.canary.stages: expected 1 to 32, got 0"]);
}

#[test]
fn counts_that_start_again_with_a_new_epoch_are_added_to_what_was_seen() {
    let (mut rollout, mut world) = start(CANARY);
    world.look(&mut rollout, 1, Traffic { candidate: 30, ..GOOD });
    world.evidence = Evidence { epoch: 1, ..Evidence::default() };
    let mut rollout = stored(&rollout);
    world.look(&mut rollout, 1, Traffic { candidate: 10, ..GOOD });
    assert_eq!(rollout.progress(), (0, 3, 40));
    assert_eq!(rollout.judged()[0].candidate.samples, 40);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (mut rollout, mut world) = start(CANARY);
    world.look(&mut rollout, 1, GOOD);
    for _ in 0..200 {
        rollout.pause(world.now_ms, &"x".repeat(10_000), &"ä".repeat(10_000)).unwrap();
        rollout.resume(world.now_ms, "me", "go on").unwrap();
    }
    assert_eq!(rollout.events().len(), MAX_EVENTS);
    assert_eq!(rollout.events().iter().filter(|event| !event.gates.is_empty()).count(), 8);
    assert!(serde_json::to_string(&rollout).unwrap().len() < 300_000);
}

/// One canary with `candidate_rate` of errors beside a control with 2 percent; whether it was rolled back.
fn is_rolled_back(random: &mut Rng, plan: &Plan, candidate_rate: f64, slower: f64) -> bool {
    let (mut rollout, _) = Rollout::start(plan.clone(), &BTreeSet::new(), 0).unwrap();
    let mut world = World::default();
    let mut stage = usize::MAX;
    let mut sketches = (sketch([]), sketch([]));
    while matches!(rollout.phase(), Phase::Running) {
        if rollout.progress().0 != stage {
            stage = rollout.progress().0;
            sketches = (sketch([]), sketch([]));
        }
        let candidate = (2.0 * share(&rollout)) as u64;
        let control = 200 - candidate;
        let errors = |random: &mut Rng, trials: u64, rate: f64| {
            (0..trials).filter(|_| random.f64() < rate).count() as u64
        };
        let exponential = |random: &mut Rng| -0.01 * (1.0 - random.f64()).ln();
        (0..control).for_each(|_| sketches.0.update(exponential(random)).unwrap());
        (0..candidate).for_each(|_| sketches.1.update(slower * exponential(random)).unwrap());
        world.evidence.control_latency = Some(sketches.0.clone());
        world.evidence.candidate_latency = Some(sketches.1.clone());
        let traffic = Traffic {
            control,
            control_errors: errors(random, control, 0.02),
            candidate,
            candidate_errors: errors(random, candidate, candidate_rate),
        };
        world.look(&mut rollout, 1, traffic);
    }
    rollout.phase() == Phase::Ended(End::RolledBack)
}

const SIMULATED: &str = r#"
candidate = "7"
false_rollback_rate = 0.05
on_inconclusive = "promote"
strategy = { canary = { stages = [
    { percent = 10, min_seconds = 8, max_seconds = 12, min_samples = 50 },
    { percent = 50, min_seconds = 8, max_seconds = 12, min_samples = 50 },
    { percent = 100, min_seconds = 1, max_seconds = 1, min_samples = 0 },
] } }
gates = [
    { metric = "error_rate", vs_control = 0 },
    { metric = "latency", quantile = 0.95, vs_control = 1 },
]
"#;

#[test]
fn of_two_thousand_candidates_that_are_no_worse_few_are_rolled_back_however_often_one_looks() {
    let mut random = Rng::with_seed(2_026);
    let plan = plan(SIMULATED);
    let rolled_back = (0..2_000).filter(|_| is_rolled_back(&mut random, &plan, 0.02, 1.0)).count();
    assert!(rolled_back <= 100, "{rolled_back} of 2,000");
}

#[test]
fn worse_candidates_are_rolled_back() {
    let mut random = Rng::with_seed(2_027);
    let plan = plan(SIMULATED);
    for (rate, slower) in [(0.12, 1.0), (0.02, 2.0)] {
        let rolled_back = (0..100).filter(|_| is_rolled_back(&mut random, &plan, rate, slower)).count();
        assert!(rolled_back >= 95, "{rolled_back} of 100 at {rate} and {slower}");
    }
}

/// What may happen to a rollout between two looks.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Look {
        seconds: u64,
        is_bad: bool,
        candidate: u64,
    },
    /// The process dies: before it stored what it decided, or after that and before it acted.
    Killed {
        stored: bool,
    },
    Pause,
    Resume,
    Approve,
    Abort,
    ClockJumpsBack,
}

fn happens() -> impl Strategy<Value = Happens> {
    let look = (0_u64..120, prop::bool::weighted(0.1), 0_u64..200)
        .prop_map(|(seconds, is_bad, candidate)| Happens::Look { seconds, is_bad, candidate });
    prop_oneof![
        12 => look,
        4 => any::<bool>().prop_map(|stored| Happens::Killed { stored }),
        1 => Just(Happens::Pause),
        2 => Just(Happens::Resume),
        2 => Just(Happens::Approve),
        1 => prop::bool::weighted(0.2).prop_map(|abort| if abort { Happens::Abort } else { Happens::Resume }),
        1 => Just(Happens::ClockJumpsBack),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_share_never_jumps_and_acting_again_changes_nothing(story in prop::collection::vec(happens(), 1..60)) {
        let text = CANARY.replace("{ percent = 25,", "{ approval = true, percent = 25,");
        let (mut rollout, mut world) = start(&text);
        let stages = [0.0, 1.0, 25.0, 100.0];
        let place = |percent: f64| stages.iter().position(|stage| *stage == percent).unwrap();
        // What the world was last made to be.
        let mut made = rollout.wanted();
        let mut ended = None;
        for happens in story {
            let before = rollout.clone();
            let was = share(&rollout);
            let actions = match happens {
                Happens::Look { seconds, is_bad, candidate } => {
                    let errors = if is_bad { candidate } else { 0 };
                    world.look(&mut rollout, seconds, Traffic { candidate, candidate_errors: errors, ..GOOD })
                }
                Happens::Killed { stored: is_stored } => {
                    let seen = world.evidence.clone();
                    let _ = rollout.step(world.now_ms + 10_000, &seen);
                    if !is_stored {
                        rollout = before;
                    }
                    rollout = stored(&rollout);
                    world.evidence = Evidence { epoch: seen.epoch + 1, ..Evidence::default() };
                    vec![Action::Make(rollout.wanted())]
                }
                Happens::Pause => rollout.pause(world.now_ms, "me", "").unwrap_or_default(),
                Happens::Resume => rollout.resume(world.now_ms, "me", "").unwrap_or_default(),
                Happens::Approve => rollout.approve(world.now_ms, "me", "").unwrap_or_default(),
                Happens::Abort => rollout.abort(world.now_ms, "me", "").unwrap_or_default(),
                Happens::ClockJumpsBack => {
                    world.now_ms = world.now_ms.saturating_sub(50_000);
                    Vec::new()
                }
            };
            for action in actions {
                if let Action::Make(wanted) = action {
                    made = wanted;
                }
            }
            // Whoever does all it is told has made what is wanted.
            prop_assert_eq!(made, rollout.wanted());
            let now = share(&rollout);
            prop_assert!(place(now) == 0 || place(now) == place(was) || place(now) == place(was) + 1, "{was} to {now}");
            if let Some(ended) = ended {
                prop_assert_eq!(rollout.phase(), ended, "an end is an end");
            }
            if matches!(rollout.phase(), Phase::Ended(_)) {
                ended = Some(rollout.phase());
            }
        }
    }
}
