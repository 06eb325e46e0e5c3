use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// What the tests say of a request.
#[derive(Default)]
struct Request<'a> {
    version: &'a str,
    metadata: BTreeMap<&'a str, &'a [u8]>,
    parameters: BTreeMap<&'a str, Value<'a>>,
    random: u64,
}

impl Facts for Request<'_> {
    fn model_version(&self) -> &str {
        self.version
    }

    fn metadata(&self, name: &str) -> Option<&[u8]> {
        self.metadata.get(name).copied()
    }

    fn parameter(&self, name: &str) -> Option<Value<'_>> {
        self.parameters.get(name).copied()
    }

    fn random(&self) -> u64 {
        self.random
    }
}

fn with_user(user: &str) -> Request<'_> {
    Request { metadata: [("user", user.as_bytes())].into(), ..Request::default() }
}

fn split(variant: &str, target: &str, percent: f64) -> SplitSpec {
    SplitSpec { variant: variant.to_owned(), id: None, target: target.to_owned(), percent }
}

fn shadow(variant: &str, target: &str, sample: f64) -> ShadowSpec {
    let text = format!(r#"{{"variant": "{variant}", "target": "{target}", "sample": {sample}}}"#);
    serde_json::from_str(&text).unwrap()
}

fn sticky(splits: Vec<SplitSpec>) -> RouteSpec {
    let sticky = Sticky { salt: "checkout".to_owned(), key: Key::Metadata("user".to_owned()) };
    RouteSpec { splits, sticky: Some(sticky), ..RouteSpec::default() }
}

fn table(spec: RouteSpec) -> RoutingTable {
    RoutingTable::new(&Route::new(spec, None).unwrap())
}

fn label<'a>(table: &'a RoutingTable, request: &Request<'_>) -> (&'a str, Reason) {
    let decision = table.route(request);
    (decision.variant.map_or("", |variant| &variant.label), decision.reason)
}

fn problems(spec: RouteSpec) -> Vec<String> {
    Route::new(spec, None).unwrap_err().0
}

#[test]
fn every_problem_is_reported_at_once() {
    let text = r#"{
        "splits": [
            {"variant": "a b", "target": "1", "percent": 33.333},
            {"variant": "b", "target": "01", "percent": 20},
            {"variant": "b", "target": "9champion", "percent": 101}
        ],
        "sticky": {"key": {"metadata": "User-Id"}},
        "overrides": [
            {"key": {"parameter": ""}, "value": "x", "variant": "c"},
            {"key": {"metadata": "token-bin"}, "value": "", "variant": "b"},
            {"key": {"metadata": "token-bin"}, "value": "", "variant": "b"}
        ],
        "shadows": [{"variant": "b", "target": "2", "sample": 1.5, "max_batch_ms": 0, "share": 0, "max_concurrency": 0}]
    }"#;
    let found = problems(serde_json::from_str(text).unwrap());
    for part in [
        "splits[0].variant: expected 1 to 64 characters of A-Z a-z 0-9 . _ -, got \"a b\"",
        "splits[0].percent: expected 0 to 100 in steps of 0.01, got 33.333",
        "splits[1].target: expected a version number, an alias or nothing, got `01`",
        "splits[2].percent: expected 0 to 100 in steps of 0.01, got 101",
        "splits[2].target",
        "splits[2].variant: `b` is named twice",
        "sticky.key.metadata",
        "overrides[0].key.parameter: expected 1 to 128 bytes, got 0",
        "overrides[0].variant: expected a variant of `splits`, got `c`",
        "overrides[1].key.metadata",
        "overrides[1].value",
        "overrides[2]: never matches, overrides[1] does before it",
        "shadows[0].target: expected `01` as in `splits`, got `2`",
        "shadows[0].sample: expected 0 to 1, got 1.5",
        "shadows[0].max_concurrency: expected 1 to 1024, got 0",
        "shadows[0].max_batch_ms: expected 1 to 10000, got 0",
        "shadows[0].share: expected above 0 to 1, got 0",
    ] {
        assert!(found.iter().any(|problem| problem.starts_with(part)), "{part}: {found:#?}");
    }
}

#[test]
fn shares_that_do_not_sum_to_100_and_too_many_of_anything_are_refused() {
    for (percents, sum) in [(vec![50.0, 49.99], "99.99"), (vec![60.0, 60.0], "120"), (vec![0.0], "0")] {
        let splits = percents.iter().enumerate().map(|(at, percent)| split(&format!("v{at}"), "1", *percent));
        let spec = RouteSpec { splits: splits.collect(), ..RouteSpec::default() };
        assert_eq!(problems(spec), [format!("splits: expected percents that sum to 100, got {sum}")]);
    }
    assert_eq!(problems(RouteSpec::default()), ["splits: expected 1 to 16, got 0"]);
    let mut spec = RouteSpec::all_to("a", "");
    spec.shadows = (0..9).map(|at| shadow(&format!("s{at}"), "1", 1.0)).collect();
    let forced = |at: usize| OverrideSpec {
        key: Key::Parameter("x".to_owned()),
        value: at.to_string(),
        variant: "a".to_owned(),
    };
    spec.overrides = (0..65).map(forced).collect();
    assert_eq!(problems(spec), ["overrides: expected 0 to 64, got 65", "shadows: expected 0 to 8, got 9"]);
    for percent in [f64::NAN, f64::INFINITY, -0.01] {
        assert!(
            Route::new(RouteSpec { splits: vec![split("a", "1", percent)], ..RouteSpec::default() }, None)
                .is_err()
        );
    }
}

#[test]
fn unknown_keys_are_refused() {
    let text = r#"{"splits": [{"variant": "a", "target": "1", "percent": 100, "weight": 1}]}"#;
    assert!(serde_json::from_str::<RouteSpec>(text).unwrap_err().to_string().contains("weight"));
}

#[test]
fn a_route_is_declared_in_toml_too() {
    let spec: RouteSpec = toml::from_str(
        r#"
        splits = [{ variant = "old", target = "champion", percent = 90 }, { variant = "new", target = "7", percent = 10 }]
        sticky = { salt = "s", key = { metadata = "user" } }
        overrides = [{ key = { parameter = "canary" }, value = "true", variant = "new" }]
        shadows = [{ variant = "next", target = "8", sample = 0.5 }]
        "#,
    )
    .unwrap();
    let table = table(spec);
    assert_eq!(table.variants()[0].target, Target::Alias("champion".into()));
    assert_eq!(table.variants()[1].target, Target::Version(ModelVersion::new(7).unwrap()));
    assert_eq!(table.shadows()[0].max_concurrency, 4);
    let asked = Request { parameters: [("canary", Value::Boolean(true))].into(), ..Request::default() };
    assert_eq!(label(&table, &asked), ("new", Reason::Override));
}

#[test]
fn the_bucket_of_a_key_is_the_same_in_every_release() {
    for (salt, key, bucket) in GOLDEN {
        assert_eq!(sticky_bucket(salt.as_bytes(), key.as_bytes()).0, bucket, "{salt:?} {key:?}");
    }
    // Long keys go another way to the same hash.
    let long = "k".repeat(2_000);
    let mut whole = 4_u64.to_le_bytes().to_vec();
    whole.extend_from_slice(b"salt");
    whole.extend_from_slice(long.as_bytes());
    let first = u64::from_le_bytes(*blake3::hash(&whole).as_bytes().first_chunk().unwrap());
    assert_eq!(u64::from(sticky_bucket(b"salt", long.as_bytes()).0), first % 10_000);
}

/// Computed once with another implementation of BLAKE3.
const GOLDEN: [(&str, &str, u16); 5] = [
    ("", "", 3889),
    ("", "user-1", 7736),
    ("checkout", "user-1", 6055),
    ("checkout", "user-2", 894),
    ("checkoutuser", "-1", 9668),
];

/// Labels by key of 1,000,000 keys.
fn assignments(table: &RoutingTable) -> Vec<u32> {
    let assign = |user: u32| {
        let user = user.to_string();
        table.route(&with_user(&user)).variant.unwrap().id.0
    };
    (0..1_000_000).map(assign).collect()
}

fn moved(before: &[u32], after: &[u32]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

/// Whether `count` of 1,000,000 is what a share of `share` gives, within 5 standard deviations.
fn is_share(count: usize, share: f64) -> bool {
    (count as f64 - 1e6 * share).abs() <= 5.0 * (1e6 * share * (1.0 - share)).sqrt()
}

#[test]
fn a_million_keys_get_their_shares_and_move_only_as_weights_do() {
    let splits = |a, b, c| sticky(vec![split("a", "1", a), split("b", "2", b), split("c", "3", c)]);
    let first = Route::new(splits(70.0, 25.0, 5.0), None).unwrap();
    let before = assignments(&RoutingTable::new(&first));
    for (id, share) in [(1, 0.7), (2, 0.25), (3, 0.05)] {
        let count = before.iter().filter(|variant| **variant == id).count();
        assert!(is_share(count, share), "{count} of variant {id}");
    }
    let stored = serde_json::to_string(&first).unwrap();
    let restored: Route = serde_json::from_str(&stored).unwrap();
    assert_eq!(moved(&before, &assignments(&RoutingTable::new(&restored))), 0);

    let mut renamed = first.spec().clone();
    renamed.splits[1].variant = "bee".to_owned();
    renamed.splits.reverse();
    let renamed = Route::new(renamed, Some(&restored)).unwrap();
    assert_eq!(moved(&before, &assignments(&RoutingTable::new(&renamed))), 0);

    // `a` gives 20, `b` takes 5 and `c` takes 15 of them: 20 percent move, and all of them from `a`.
    let second = Route::new(splits(50.0, 30.0, 20.0), Some(&first)).unwrap();
    let after = assignments(&RoutingTable::new(&second));
    assert!(is_share(moved(&before, &after), 0.2));
    assert!(before.iter().zip(&after).all(|(before, after)| before == after || *before == 1));
    // And back: the same 20 percent.
    let third = Route::new(splits(70.0, 25.0, 5.0), Some(&second)).unwrap();
    assert!(is_share(moved(&after, &assignments(&RoutingTable::new(&third))), 0.2));
}

#[test]
fn without_a_key_chance_decides_by_the_shares() {
    let table = table(sticky(vec![split("a", "1", 99.5), split("b", "2", 0.5)]));
    let step = u64::MAX / 1_000_000;
    let requests = (0..1_000_000).map(|at| Request { random: at * step, ..Request::default() });
    let of_b = requests.filter(|request| label(&table, request) == ("b", Reason::Random)).count();
    assert!((4_990..=5_010).contains(&of_b), "{of_b}");
}

#[test]
fn an_explicit_version_wins_over_everything_and_is_no_variants_request() {
    let mut spec = sticky(vec![split("a", "1", 50.0), split("b", "2", 50.0)]);
    spec.overrides = vec![OverrideSpec {
        key: Key::Metadata("user".to_owned()),
        value: "me".to_owned(),
        variant: "b".to_owned(),
    }];
    spec.shadows = vec![shadow("s", "3", 1.0)];
    let table = table(spec);
    for version in ["1", "champion", "999"] {
        let decision = table.route(&Request { version, ..with_user("me") });
        assert_eq!((decision.variant, decision.reason), (None, Reason::Version));
        assert_eq!(decision.shadows().count(), 0);
    }
    assert_eq!(label(&table, &with_user("me")), ("b", Reason::Override));
}

#[test]
fn the_first_override_that_matches_wins_and_reaches_a_variant_without_a_share() {
    let forced = |key: Key, value: &str, variant: &str| OverrideSpec {
        key,
        value: value.to_owned(),
        variant: variant.to_owned(),
    };
    let (header, parameter) = (Key::Metadata("lane".to_owned()), Key::Parameter("cohort".to_owned()));
    let mut spec = sticky(vec![split("a", "1", 100.0), split("b", "2", 0.0), split("c", "3", 0.0)]);
    spec.overrides = vec![
        forced(header.clone(), "x", "b"),
        forced(parameter.clone(), "-9223372036854775808", "c"),
        forced(header.clone(), "y", "c"),
        forced(parameter, "text", "b"),
    ];
    let table = table(spec);
    let lane =
        |value: &'static str| Request { metadata: [("lane", value.as_bytes())].into(), ..Request::default() };
    let with = |value, request| Request { parameters: [("cohort", value)].into(), ..request };
    assert_eq!(label(&table, &with(Value::Integer(i64::MIN), lane("x"))), ("b", Reason::Override));
    assert_eq!(label(&table, &with(Value::Integer(i64::MIN), lane("y"))), ("c", Reason::Override));
    assert_eq!(label(&table, &lane("y")), ("c", Reason::Override));
    assert_eq!(label(&table, &with(Value::Text("text"), lane("z"))), ("b", Reason::Override));
    assert_eq!(label(&table, &with(Value::Text("texts"), lane(""))), ("a", Reason::Primary));
}

#[test]
fn shadows_see_their_sample_of_what_others_answered() {
    let mut spec = sticky(vec![split("a", "1", 50.0), split("b", "2", 50.0)]);
    spec.shadows =
        vec![shadow("b", "2", 1.0), shadow("s", "3", 0.1), shadow("t", "4", 0.1), shadow("none", "5", 0.0)];
    let table = table(spec);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut both = 0;
    let mut random = 1_u64;
    for _ in 0..100_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let decision = table.route(&Request { random, ..Request::default() });
        let answering = decision.variant.unwrap().id;
        let labels: Vec<&str> = decision.shadows().map(|shadow| &*shadow.variant.label).collect();
        assert!(decision.shadows().all(|shadow| shadow.variant.id != answering));
        both += usize::from(labels.contains(&"s") && labels.contains(&"t"));
        labels.iter().for_each(|label| *seen.entry((*label).to_owned()).or_default() += 1);
    }
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["b", "s", "t"]);
    assert!((49_000..51_000).contains(&seen["b"]), "{seen:?}");
    assert!((9_500..10_500).contains(&seen["s"]) && (9_500..10_500).contains(&seen["t"]), "{seen:?}");
    assert!((800..1_200).contains(&both), "{both}");
}

#[test]
fn numbers_are_given_once_and_labels_may_change_hands() {
    let ids = |route: &Route| route.spec().names().map(|(_, id)| id.unwrap().0).collect::<Vec<_>>();
    let mut spec = sticky(vec![split("a", "1", 50.0), split("b", "2", 50.0)]);
    spec.shadows = vec![shadow("b", "2", 1.0), shadow("c", "3", 1.0)];
    let first = Route::new(spec, None).unwrap();
    assert_eq!(ids(&first), [1, 2, 2, 3]);

    let mut swapped = first.spec().clone();
    swapped.splits[0].variant = "b".to_owned();
    swapped.splits[0].target = "2".to_owned();
    swapped.splits[1].variant = "a".to_owned();
    swapped.shadows = vec![shadow("c", "3", 1.0)];
    let swapped = Route::new(swapped, Some(&first)).unwrap();
    assert_eq!(ids(&swapped), [1, 2, 3]);
    assert_eq!(swapped.buckets, first.buckets);

    let alone = Route::new(RouteSpec::all_to("d", "4"), Some(&swapped)).unwrap();
    assert_eq!(ids(&alone), [4]);
    let again = Route::new(RouteSpec::all_to("c", "3"), Some(&alone)).unwrap();
    assert_eq!(ids(&again), [3], "a label that comes back is the same variant");

    let mut unknown = RouteSpec::all_to("e", "1");
    unknown.splits[0].id = Some(VariantId(77));
    let refused = Route::new(unknown, Some(&again)).unwrap_err().to_string();
    assert!(
        refused.starts_with("splits[0].id: expected the number of a variant of this model, got 77"),
        "{refused}"
    );
}

#[test]
fn what_is_remembered_is_bounded_and_numbers_still_are_not_used_again() {
    let mut route = Route::new(RouteSpec::all_to("v0", "1"), None).unwrap();
    for at in 1..=400_u32 {
        route = Route::new(RouteSpec::all_to(format!("v{at}"), "1"), Some(&route)).unwrap();
        assert_eq!(route.spec().splits[0].id, Some(VariantId(at + 1)));
    }
    assert_eq!(route.labels.len(), MAX_REMEMBERED + 1);
    let again = Route::new(RouteSpec::all_to("v0", "1"), Some(&route)).unwrap();
    assert_eq!(again.spec().splits[0].id, Some(VariantId(402)));
}

#[test]
fn a_stored_route_that_does_not_fit_itself_is_refused() {
    let route = Route::new(sticky(vec![split("a", "1", 50.0), split("b", "2", 50.0)]), None).unwrap();
    let text = serde_json::to_string(&route).unwrap();
    assert!(text.contains("[[1,5000],[2,5000]]"), "{text}");
    for (good, bad) in [
        ("[[1,5000],[2,5000]]", "[[1,5001],[2,4999]]"),
        ("[[1,5000],[2,5000]]", "[[1,5000],[3,5000]]"),
        ("[[1,5000],[2,5000]]", "[]"),
        ("\"next_id\":3", "\"next_id\":2"),
        ("[1,\"a\"]", "[9,\"a\"]"),
        ("\"percent\":50.0", "\"percent\":51.0"),
    ] {
        let bad = text.replacen(good, bad, 1);
        assert_ne!(bad, text);
        assert!(serde_json::from_str::<Route>(&bad).is_err(), "{bad}");
    }
}

/// Shares of up to 6 variants that sum to 10,000.
fn any_shares() -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::btree_set(1_u16..10_000, 0..6).prop_map(|cuts: BTreeSet<u16>| {
        let ends = cuts.iter().copied().chain([10_000]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        starts.zip(ends).map(|(start, end)| end - start).collect()
    })
}

proptest! {
    #[test]
    fn any_change_of_weights_moves_exactly_the_sum_of_decreases(changes in proptest::collection::vec((any_shares(), 0_usize..4), 2..8)) {
        let mut before: Option<Route> = None;
        for (shares, first) in changes {
            // Variants come and go: the window of names moves.
            let splits = shares.iter().enumerate().map(|(at, share)| split(&format!("v{}", at + first), "1", f64::from(*share) / 100.0));
            let route = Route::new(sticky(splits.collect()), before.as_ref()).unwrap();
            let wanted: BTreeMap<VariantId, u16> = super::shares(route.spec()).into_iter().collect();
            let owners: Vec<VariantId> = route.buckets.owners().collect();
            prop_assert_eq!(owners.len(), 10_000);
            for (id, share) in &wanted {
                prop_assert_eq!(owners.iter().filter(|owner| *owner == id).count(), usize::from(*share));
            }
            if let Some(before) = before {
                let lost = |(id, old): (VariantId, u16)| usize::from(old.saturating_sub(wanted.get(&id).copied().unwrap_or(0)));
                let decreases: usize = super::shares(before.spec()).into_iter().map(lost).sum();
                let moved = before.buckets.owners().zip(&owners).filter(|(old, new)| old != *new).count();
                prop_assert_eq!(moved, decreases);
            }
            let text = serde_json::to_string(&route).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Route>(&text).unwrap(), &route);
            before = Some(route);
        }
    }

    #[test]
    fn overrides_take_the_first_of_those_that_match(rules in proptest::collection::vec((0_u8..3, 0_u8..3, 0_usize..3), 0..12), given in [0_u8..4, 0_u8..4, 0_u8..4]) {
        let names = ["k0", "k1", "k2"];
        let mut spec = RouteSpec { splits: vec![split("a", "1", 100.0), split("b", "2", 0.0), split("c", "3", 0.0)], ..RouteSpec::default() };
        let mut expected = None;
        for (key, value, variant) in rules {
            let rule = OverrideSpec { key: Key::Parameter(names[usize::from(key)].to_owned()), value: value.to_string(), variant: ["a", "b", "c"][variant].to_owned() };
            if spec.overrides.iter().any(|other| other.key == rule.key && other.value == rule.value) {
                continue;
            }
            if expected.is_none() && given[usize::from(key)] == value {
                expected = Some(["a", "b", "c"][variant]);
            }
            spec.overrides.push(rule);
        }
        let parameters = names.iter().zip(given).map(|(name, value)| (*name, Value::Integer(value.into()))).collect();
        let table = table(spec);
        let found = label(&table, &Request { parameters, ..Request::default() });
        prop_assert_eq!(found, expected.map_or(("a", Reason::Primary), |label| (label, Reason::Override)));
    }
}
