//! Routes: who answers, that it stays so, and that a change of it fails nobody.

use crate::registry::{Registry, promote, push};
use crate::support::{Folder, Running, Traffic, matrix, until};
use futures_util::future::join_all;
use sconce_client::{Client, Code, Error, InferRequest, Parameter, TrafficClient};
use sconce_proto::sconce as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tempfile::TempDir;

const MODEL: &str = "scale";

async fn start() -> (TempDir, Running, Client, Registry, TrafficClient) {
    let data = tempfile::tempdir().unwrap();
    let (server, client, mut registry, traffic) = open(data.path()).await;
    for factor in [1.0, 2.0, 3.0] {
        push(&mut registry, MODEL, factor).await;
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    (data, server, client, registry, traffic)
}

async fn open(data: &Path) -> (Running, Client, Registry, TrafficClient) {
    let server = Running::stored(data, |_| {}).await;
    let (client, registry, traffic) =
        (server.client().await, server.registry().await, server.traffic().await);
    (server, client, registry, traffic)
}

fn split(variant: &str, target: &str, percent: f64) -> pb::Split {
    pb::Split { variant: variant.to_owned(), target: target.to_owned(), percent, id: None }
}

fn metadata(name: &str) -> Option<pb::Key> {
    Some(pb::Key { from: Some(pb::key::From::Metadata(name.to_owned())) })
}

fn parameter(name: &str) -> Option<pb::Key> {
    Some(pb::Key { from: Some(pb::key::From::Parameter(name.to_owned())) })
}

fn spec(splits: &[(&str, &str, f64)]) -> pb::RouteSpec {
    let splits = splits.iter().map(|(variant, target, percent)| split(variant, target, *percent)).collect();
    pb::RouteSpec { splits, ..Default::default() }
}

fn sticky(splits: &[(&str, &str, f64)]) -> pb::RouteSpec {
    let sticky = Some(pb::Sticky { salt: "s".to_owned(), key: metadata("x-user-id") });
    pb::RouteSpec { sticky, ..spec(splits) }
}

async fn set(traffic: &TrafficClient, spec: pb::RouteSpec) -> Result<pb::Route, Error> {
    let request = pb::SetRouteRequest {
        model: MODEL.to_owned(),
        spec: Some(spec),
        reason: "a test".to_owned(),
        expected_revision: None,
    };
    traffic.set_route(request).await
}

async fn get(traffic: &TrafficClient) -> Result<pb::Route, Error> {
    traffic.get_route(pb::GetRouteRequest { model: MODEL.to_owned() }).await
}

fn request() -> InferRequest {
    InferRequest::new(MODEL).input("features", matrix(&[[1.0]]))
}

/// Which version and variant answered. That the answer is that version's is checked here.
async fn ask(client: &Client, request: InferRequest) -> Result<(String, Option<String>), Error> {
    let answer = client.infer(request).await?;
    let value = answer.output("prediction").unwrap().f32_values().next().unwrap();
    assert_eq!(value.to_string(), answer.model_version);
    let variant = answer.parameters.get("variant").map(|variant| match variant {
        Parameter::StringParam(variant) => variant.clone(),
        other => panic!("{other:?}"),
    });
    Ok((answer.model_version, variant))
}

async fn user(client: &Client, user: &str) -> String {
    ask(client, request().metadata("x-user-id", user)).await.unwrap().1.unwrap()
}

/// Who answers each of 200 users.
async fn users(client: &Client) -> BTreeMap<String, String> {
    let mut answered = BTreeMap::new();
    for number in 0..200 {
        let name = format!("user-{number}");
        let variant = user(client, &name).await;
        answered.insert(name, variant);
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_split_overridden_and_counted_and_a_version_that_is_named_answers() {
    let (_data, server, client, mut registry, traffic) = start().await;
    assert_eq!(ask(&client, request()).await.unwrap(), ("1".to_owned(), None));
    assert_eq!(get(&traffic).await.unwrap_err().code(), Code::NotFound);
    let over = |key, value: &str, variant: &str| pb::Override {
        key,
        value: value.to_owned(),
        variant: variant.to_owned(),
    };
    let route = pb::RouteSpec {
        overrides: vec![over(metadata("x-beta"), "yes", "new"), over(parameter("try"), "7", "old")],
        ..spec(&[("old", "champion", 70.0), ("new", "2", 30.0)])
    };
    let route = set(&traffic, route).await.unwrap();
    assert_eq!(route.variants.iter().map(|it| (it.id, it.version)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    let mut counts = BTreeMap::<_, u64>::new();
    for _ in 0..600 {
        let (version, variant) = ask(&client, request()).await.unwrap();
        assert_eq!(version, if variant.as_deref() == Some("old") { "1" } else { "2" });
        *counts.entry(variant.unwrap()).or_default() += 1;
    }
    // Binomial with p = 0.3: 180 ± 5.3 standard deviations.
    assert!((120..=240).contains(&counts["new"]), "{counts:?}");

    for _ in 0..30 {
        let beta = request().metadata("x-beta", "yes");
        assert_eq!(ask(&client, beta).await.unwrap().1.unwrap(), "new");
        for value in [Parameter::Int64Param(7), Parameter::StringParam("7".to_owned())] {
            assert_eq!(ask(&client, request().parameter("try", value)).await.unwrap().1.unwrap(), "old");
        }
    }
    // Who names a version or an alias gets it, and is no part of a split.
    for (text, version) in [("3", "3"), ("2", "2"), ("champion", "1")] {
        let named = ask(&client, request().version(text).metadata("x-beta", "yes")).await.unwrap();
        assert_eq!(named, (version.to_owned(), None));
    }
    // A target that is an alias follows it.
    promote(&mut registry, MODEL, "3", "champion").await;
    let moved = ask(&client, request().parameter("try", Parameter::Int64Param(7))).await.unwrap();
    assert_eq!(moved, ("3".to_owned(), Some("old".to_owned())));

    let bad = InferRequest::new(MODEL).input("features", matrix(&[[1.0, 2.0]]));
    assert_eq!(client.infer(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let route = get(&traffic).await.unwrap();
    let all: u64 = route.variants.iter().map(|it| it.answered).sum();
    let failed: u64 = route.variants.iter().map(|it| it.failed_by_code.values().sum::<u64>()).sum();
    assert_eq!((all, failed), (600 + 90 + 1, 1));
    assert!(route.variants.iter().all(|it| it.p50_ms > 0.0 && it.p50_ms <= it.p99_ms), "{route:?}");
    let metric = async |version: &str, variant: &str| {
        let labels = format!("model=\"{MODEL}\",version=\"{version}\",variant=\"{variant}\",status=\"OK\"");
        server.metric(&format!("sconce_variant_requests_total{{{labels}}}")).await
    };
    assert_eq!(metric("2", "new").await, route.variants[1].answered);
    // What was asked before the alias moved, and after.
    assert_eq!((metric("1", "old").await + 1, metric("3", "old").await), (route.variants[0].answered, 1));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_stays_with_a_variant_over_restarts_labels_and_only_those_move_that_must() {
    let (data, server, client, _registry, traffic) = start().await;
    set(&traffic, sticky(&[("old", "1", 80.0), ("new", "2", 20.0)])).await.unwrap();
    let before = users(&client).await;
    assert_eq!(before, users(&client).await);
    let of = |answered: &BTreeMap<String, String>, variant: &str| -> BTreeSet<String> {
        let fits = answered.iter().filter(|(_, it)| *it == variant);
        fits.map(|(name, _)| name.clone()).collect()
    };
    assert!((15..=75).contains(&of(&before, "new").len()), "{before:?}");
    server.shutdown().await;

    let (server, client, _registry, traffic) = open(data.path()).await;
    assert_eq!(users(&client).await, before);
    let route = get(&traffic).await.unwrap();
    let mut renamed = route.spec.unwrap();
    renamed.splits[1].variant = "newer".to_owned();
    set(&traffic, renamed).await.unwrap();
    let after = users(&client).await;
    assert_eq!((of(&after, "newer"), of(&after, "old")), (of(&before, "new"), of(&before, "old")));
    // More for one: whoever had it keeps it.
    set(&traffic, sticky(&[("old", "1", 60.0), ("newer", "2", 40.0)])).await.unwrap();
    let grown = users(&client).await;
    assert!(
        of(&grown, "newer").is_superset(&of(&after, "newer")) && of(&grown, "newer") != of(&after, "newer")
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_changes_of_a_route_under_traffic_fail_nothing() {
    const LANES: usize = 4;
    let (_data, server, _, _registry, traffic) = start().await;
    let lanes = join_all((0..LANES).map(|_| server.client())).await;
    let flowing = Traffic::start(lanes, |client, _| async move { ask(&client, request()).await.map(drop) });
    for round in 0..25 {
        let (old, new) = if round % 2 == 0 { ("1", "2") } else { ("3", "champion") };
        let route = set(&traffic, spec(&[("old", old, 50.0), ("new", new, 50.0)])).await.unwrap();
        flowing.flow(LANES).await;
        if round % 5 == 4 {
            let request = pb::ClearRouteRequest {
                model: MODEL.to_owned(),
                reason: String::new(),
                expected_revision: Some(route.revision),
            };
            traffic.clear_route(request).await.unwrap();
            flowing.flow(LANES).await;
        }
    }
    let failures = flowing.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    server.until_idle().await;
    // What no route names is released.
    let request = pb::GetVersionRequest { model: MODEL.to_owned(), version: "3".to_owned() };
    let mut registry = server.registry().await;
    until("its release", async || {
        let version = registry.get_version(request.clone()).await.unwrap().into_inner();
        version.state() == pb::VersionState::Registered
    })
    .await;
    server.shutdown().await;
}

/// Each is refused with its code and its words, and nothing has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_route_is_refused_whole() {
    let (_data, server, client, mut registry, traffic) = start().await;
    let good = spec(&[("old", "champion", 50.0), ("new", "2", 50.0)]);
    let before = set(&traffic, good.clone()).await.unwrap();
    let override_of =
        |variant: &str, key| pb::Override { key, value: "v".to_owned(), variant: variant.to_owned() };
    let with = |change: &dyn Fn(&mut pb::RouteSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    for (what, bad, code, says) in [
        ("nothing", spec(&[]), Code::InvalidArgument, "splits: expected 1 to"),
        ("a sum of 90", spec(&[("old", "1", 90.0)]), Code::InvalidArgument, "sum to 100, got 90"),
        ("an alias that is not there", spec(&[("old", "stable", 100.0)]), Code::NotFound, "alias `stable`"),
        ("a version that is not there", spec(&[("old", "9", 100.0)]), Code::NotFound, "version 9"),
        ("a target that is none", spec(&[("old", "a b", 100.0)]), Code::InvalidArgument, "splits[0].target"),
        (
            "an override of nobody",
            with(&|spec| spec.overrides.push(override_of("other", metadata("x")))),
            Code::InvalidArgument,
            "overrides[0].variant",
        ),
        (
            "an override by nothing",
            with(&|spec| spec.overrides.push(override_of("new", None))),
            Code::InvalidArgument,
            "override.key",
        ),
        (
            "a key that no header has",
            with(&|spec| spec.sticky = Some(pb::Sticky { salt: String::new(), key: metadata("X-User") })),
            Code::InvalidArgument,
            "sticky.key",
        ),
        (
            "a number that no variant has",
            with(&|spec| spec.splits[0].id = Some(77)),
            Code::InvalidArgument,
            "77",
        ),
    ] {
        let error = set(&traffic, bad).await.expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(error.message().contains(says), "{what}: {error}");
    }
    // All at once.
    let two = with(&|spec| {
        spec.splits[0].percent = 51.0;
        spec.overrides.push(override_of("other", metadata("x")));
    });
    let error = set(&traffic, two).await.unwrap_err();
    assert!(error.message().contains("got 101") && error.message().contains("overrides[0]"), "{error}");
    let raced = pb::SetRouteRequest {
        model: MODEL.to_owned(),
        spec: Some(good.clone()),
        reason: String::new(),
        expected_revision: Some(before.revision + 1),
    };
    assert_eq!(traffic.set_route(raced).await.unwrap_err().code(), Code::Aborted);
    let nobody = pb::GetRouteRequest { model: "nobody".to_owned() };
    assert_eq!(traffic.get_route(nobody).await.unwrap_err().code(), Code::NotFound);
    // What a route names stays.
    let delete =
        pb::DeleteRequest { model: MODEL.to_owned(), version: "2".to_owned(), reason: String::new() };
    assert_eq!(registry.delete(delete).await.unwrap_err().code(), Code::FailedPrecondition);
    let unload = pb::SetWantedRequest {
        model: MODEL.to_owned(),
        version: "2".to_owned(),
        wanted: pb::Wanted::Unloaded.into(),
        reason: String::new(),
    };
    assert_eq!(registry.set_wanted(unload).await.unwrap_err().code(), Code::FailedPrecondition);
    let after = get(&traffic).await.unwrap();
    assert_eq!((after.revision, after.spec), (before.revision, before.spec));
    ask(&client, request()).await.unwrap();
    // Who and why are in the trail.
    let request = pb::ListAuditRequest { model: MODEL.to_owned(), ..Default::default() };
    let entry = registry.list_audit(request).await.unwrap().into_inner().entries.pop().unwrap();
    assert_eq!(
        (entry.seq, entry.document.as_str(), entry.reason.as_str()),
        (before.revision, "traffic", "a test")
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_registry_has_no_routes() {
    let folder = Folder::new();
    folder.linear("scale/1", 1, &[1.0]);
    let server = Running::start(&folder).await;
    let traffic = server.traffic().await;
    let refused = set(&traffic, spec(&[("old", "1", 100.0)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(get(&traffic).await.unwrap_err().code(), Code::FailedPrecondition);
    server.shutdown().await;
}
