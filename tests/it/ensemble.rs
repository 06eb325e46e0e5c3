//! Models made of other models: what they answer, and what becomes of a request when a step does not.

use crate::registry::{Registry, promote, push, send, upload_of};
use crate::support::{Folder, Running, framed, identity_request, matrix, patiently, until};
use futures_util::future::join_all;
use sconce_client::proto::ModelStatistics;
use sconce_client::proto::model_config::SchedulingChoice;
use sconce_client::{Client, Code, Error, InferRequest, InferResponse, Tensor};
use std::fmt::Write as _;
use std::time::Duration;

/// A step as it is written in `model.toml`: a model with its version, what it takes, and what it gives.
type Step<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)]);

/// A package that runs `steps` on FP32 matrices.
fn ensemble(folder: &Folder, package: &str, inputs: &[&str], outputs: &[&str], steps: &[Step<'_>]) {
    let mut text = "family = 'ensemble'\nmax_batch_size = 8\n".to_owned();
    for (kind, names) in [("inputs", inputs), ("outputs", outputs)] {
        for name in names {
            write!(text, "[[{kind}]]\nname = '{name}'\ndatatype = 'FP32'\nshape = [-1, -1]\n").unwrap();
        }
    }
    let map = |pairs: &[(&str, &str)]| {
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key} = '{value}'")).collect();
        pairs.join(", ")
    };
    for (model, inputs, outputs) in steps {
        let (model, version) = model.split_once('@').unwrap_or((model, ""));
        let (inputs, outputs) = (map(inputs), map(outputs));
        write!(text, "[[steps]]\nmodel = '{model}'\nversion = '{version}'\ninputs = {{ {inputs} }}\noutputs = {{ {outputs} }}\n")
            .unwrap();
    }
    folder.file(package, "model.toml", text);
}

/// An ensemble that gives its input to each of `models` in turn, all of which are identities.
pub(crate) fn chain(folder: &Folder, package: &str, models: &[&str]) {
    let names: Vec<String> = (0..=models.len()).map(|at| format!("t{at}")).collect();
    let ends: Vec<_> =
        (0..models.len()).map(|at| ([("INPUT0", &*names[at])], [("OUTPUT0", &*names[at + 1])])).collect();
    let steps: Vec<Step<'_>> =
        models.iter().zip(&ends).map(|(model, (i, o))| (*model, &i[..], &o[..])).collect();
    ensemble(folder, package, &["t0"], &[&names[models.len()]], &steps);
}

pub(crate) fn chain_request(model: &str) -> InferRequest {
    InferRequest::new(model).input("t0", matrix(&[[1.5]]))
}

async fn statistics(client: &Client, model: &str) -> ModelStatistics {
    let mut all = client.model_statistics(model, "1").await.unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Successes and failures.
async fn counts(client: &Client, model: &str) -> (u64, u64) {
    let counts = statistics(client, model).await.inference_stats.unwrap();
    (counts.success.unwrap().count, counts.fail.unwrap().count)
}

async fn refusal(client: &Client, request: InferRequest) -> (Code, String) {
    let error = patiently("an answer", client.infer(request)).await.unwrap_err();
    (error.code(), error.message().to_owned())
}

fn reason(readiness: Result<(), String>) -> String {
    readiness.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensemble_gives_what_its_steps_give_one_by_one() {
    let folder = Folder::new();
    folder.linear("widen/1", 1, &[1.0; 16]);
    folder.linear("steep/1", 1, &(0..16).map(|n| n as f32).collect::<Vec<_>>());
    // A diamond, written down backwards.
    ensemble(
        &folder,
        "diamond/1",
        &["x"],
        &["sum", "difference"],
        &[
            (
                "add_sub",
                &[("INPUT0", "left"), ("INPUT1", "right")],
                &[("OUTPUT0", "sum"), ("OUTPUT1", "difference")],
            ),
            ("widen", &[("features", "again")], &[("prediction", "left")]),
            ("steep@1", &[("features", "again")], &[("prediction", "right")]),
            ("identity", &[("INPUT0", "x")], &[("OUTPUT0", "again")]),
        ],
    );
    let server = Running::start(&folder).await;
    assert_eq!(server.readiness(), Ok(()));
    let client = server.client().await;
    let x = matrix(&[[1.0], [2.0], [3.0]]);
    let ask = async |model: &str, inputs: &[(&str, &Tensor)]| -> InferResponse {
        let request =
            inputs.iter().fold(InferRequest::new(model), |r, (name, t)| r.input(*name, (*t).clone()));
        client.infer(request).await.unwrap()
    };
    let left = ask("widen", &[("features", &x)]).await.output("prediction").unwrap().clone();
    let right = ask("steep", &[("features", &x)]).await.output("prediction").unwrap().clone();
    let expected = ask("add_sub", &[("INPUT0", &left), ("INPUT1", &right)]).await;
    let answer = ask("diamond", &[("x", &x)]).await;
    assert_eq!(answer.output("sum"), expected.output("OUTPUT0"));
    assert_eq!(answer.output("difference"), expected.output("OUTPUT1"));
    assert_eq!(answer.outputs.len(), 2);
    assert_eq!(answer.output("sum").unwrap().f32_values().nth(16 + 5), Some(2.0 + 10.0));
    assert_eq!((answer.model_name.as_str(), answer.model_version.as_str()), ("diamond", "1"));

    // It and its steps are counted each; it runs no batch of its own.
    let own = statistics(&client, "diamond").await;
    assert_eq!((own.inference_count, own.execution_count), (3, 0));
    assert_eq!(counts(&client, "diamond").await, (1, 0));
    assert_eq!(counts(&client, "identity").await, (1, 0));
    assert_eq!(counts(&client, "widen").await, (2, 0));
    let metadata = client.model_metadata("diamond", "").await.unwrap();
    assert_eq!((metadata.platform.as_str(), metadata.inputs[0].shape.clone()), ("ensemble", vec![-1, -1]));
    let config = client.model_config("diamond", "").await.unwrap();
    let Some(SchedulingChoice::EnsembleScheduling(scheduling)) = config.scheduling_choice else {
        panic!("no steps")
    };
    let steps: Vec<_> = scheduling.step.iter().map(|s| (s.model_name.as_str(), s.model_version)).collect();
    assert_eq!(steps, [("identity", -1), ("widen", -1), ("steep", 1), ("add_sub", -1)]);
    assert_eq!(scheduling.step[3].input_map["INPUT1"], "right");
    assert_eq!(config.max_batch_size, 8);

    // What is asked of it is checked as of any model.
    for (request, part) in [
        (InferRequest::new("diamond"), "no inputs given"),
        (InferRequest::new("diamond").input("y", x.clone()), "unknown input `y`"),
        (InferRequest::new("diamond").input("x", matrix(&[[1.0]; 9])), "at most 8"),
        (InferRequest::new("diamond").input("x", x.clone()).output("left"), "unknown output `left`"),
        (InferRequest::new("diamond").input("x", matrix(&[[1.0, 2.0]])), "step `widen`: input `features`"),
    ] {
        let (code, message) = refusal(&client, request).await;
        assert!(code == Code::InvalidArgument && message.contains(part), "{code:?} {message}");
    }
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_whose_inputs_are_there_run_side_by_side() {
    let folder = Folder::new();
    // Either waits for a second row much longer than any test takes.
    for name in ["one/1", "two/1"] {
        folder.identity(name, "instances = 1\nmax_batch_size = 8\nmax_queue_delay_ms = 60000");
    }
    ensemble(
        &folder,
        "both/1",
        &["x"],
        &["y", "z"],
        &[("one", &[("INPUT0", "x")], &[("OUTPUT0", "y")]), ("two", &[("INPUT0", "x")], &[("OUTPUT0", "z")])],
    );
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let asked = {
        let client = client.clone();
        tokio::spawn(
            async move { client.infer(InferRequest::new("both").input("x", matrix(&[[1.5]]))).await },
        )
    };
    for name in ["one", "two"] {
        server.until_metric(&format!("sconce_queue_depth{{model=\"{name}\",version=\"1\"}}"), 1).await;
    }
    for name in ["one", "two"] {
        client.infer(identity_request(name, 7)).await.unwrap();
    }
    let answer = patiently("an answer", asked).await.unwrap().unwrap();
    assert_eq!((answer.output("y"), answer.output("z")), (Some(&matrix(&[[1.5]])), Some(&matrix(&[[1.5]]))));
    server.until_idle().await;
}

/// A server with the chain `slow`: an identity, then one that waits for a second row much longer than any test takes.
async fn slow() -> Running {
    let folder = Folder::new();
    folder.identity("waiting/1", "instances = 1\nmax_batch_size = 8\nmax_queue_delay_ms = 60000");
    chain(&folder, "slow/1", &["identity", "waiting"]);
    Running::start(&folder).await
}

const WAITING: &str = "sconce_queue_depth{model=\"waiting\",version=\"1\"}";

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_holds_for_the_steps_as_well() {
    let server = slow().await;
    let client = server.client().await;
    let outcome = server.wire().await.infer(&[("grpc-timeout", "200m")], chain_request("slow")).await;
    assert_eq!(outcome.code, Code::DeadlineExceeded);
    let (code, _) = refusal(&client, chain_request("slow").timeout(Duration::from_millis(50))).await;
    assert_eq!(code, Code::DeadlineExceeded);
    assert_eq!(counts(&client, "slow").await, (0, 2));
    // Neither ran: eight rows are a batch.
    client.infer(identity_request("waiting", 8)).await.unwrap();
    let waiting = statistics(&client, "waiting").await;
    assert_eq!((waiting.inference_count, waiting.execution_count), (8, 1));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_holds_for_the_steps_as_well() {
    let server = slow().await;
    let client = server.client().await;
    let ask = |priority| {
        let request = InferRequest::new("slow").input("t0", matrix(&[[1.5]; 5])).priority(priority);
        let client = client.clone();
        tokio::spawn(async move { client.infer(request).await.unwrap() })
    };
    let last = ask(8);
    server.until_metric(WAITING, 1).await;
    // Only one of them fits into a batch of eight rows.
    patiently("the first", ask(1)).await.unwrap();
    assert!(!last.is_finished());
    client.infer(identity_request("waiting", 3)).await.unwrap();
    patiently("the last", last).await.unwrap();
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_takes_its_steps_along() {
    let server = slow().await;
    let wire = server.wire().await;
    let (mut upload, _answer) = wire.open(&[]).await;
    upload.send(framed(chain_request("slow")), true).await.unwrap();
    server.until_metric(WAITING, 1).await;
    drop(wire);
    server.until_metric("sconce_streams", 0).await;
    let client = server.client().await;
    client.infer(identity_request("waiting", 8)).await.unwrap();
    assert_eq!(statistics(&client, "waiting").await.inference_count, 8);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_is_named_and_ends_the_others() {
    let folder = Folder::new();
    folder.identity("waiting/1", "instances = 1\nmax_batch_size = 8\nmax_queue_delay_ms = 60000");
    folder.linear("steep/1", 2, &[3e38, 3e38]);
    ensemble(
        &folder,
        "pair/1",
        &["x"],
        &["y", "z"],
        &[
            ("waiting", &[("INPUT0", "x")], &[("OUTPUT0", "y")]),
            ("steep", &[("features", "x")], &[("prediction", "z")]),
        ],
    );
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let (code, message) =
        refusal(&client, InferRequest::new("pair").input("x", matrix(&[[10.0, -10.0]]))).await;
    assert_eq!(code, Code::Internal);
    assert!(message.starts_with("step `steep`: "), "{message}");
    assert_eq!((counts(&client, "pair").await, counts(&client, "steep").await), ((0, 1), (0, 1)));
    client.infer(identity_request("waiting", 8)).await.unwrap();
    assert_eq!(statistics(&client, "waiting").await.inference_count, 8);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ensembles_of_ensembles_run_and_a_ring_of_them_is_refused() {
    let folder = Folder::new();
    // By name the outer ones come before their steps.
    for depth in 1..=9 {
        let inner = if depth == 1 { "identity".to_owned() } else { format!("n{}", 10 - (depth - 1)) };
        let (input, output) = if depth == 1 { ("INPUT0", "OUTPUT0") } else { ("x", "y") };
        ensemble(
            &folder,
            &format!("n{}/1", 10 - depth),
            &["x"],
            &["y"],
            &[(&inner, &[(input, "x")], &[(output, "y")])],
        );
    }
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let ask = |model: &str| client.infer(InferRequest::new(model).input("x", matrix(&[[1.5]])));
    assert_eq!(ask("n2").await.unwrap().output("y"), Some(&matrix(&[[1.5]])));
    assert_eq!(counts(&client, "n9").await, (1, 0));
    assert!(reason(server.readiness()).contains("n1 version 1: ensembles are steps of one another 9 deep"));
    server.until_idle().await;
    server.shutdown().await;

    let folder = Folder::new();
    for (name, step) in [("a/1", "b"), ("b/1", "c"), ("c/1", "a"), ("own/1", "own")] {
        ensemble(&folder, name, &["x"], &["y"], &[(step, &[("x", "x")], &[("y", "y")])]);
    }
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let index = client.repository_index(false).await.unwrap();
    for name in ["a", "b", "c"] {
        let entry = index.iter().find(|entry| entry.name == name).unwrap();
        assert!(entry.state == "UNAVAILABLE" && entry.reason.contains("step `"), "{entry:?}");
    }
    let own = index.iter().find(|entry| entry.name == "own").unwrap();
    assert!(own.reason.contains("ensemble `own` is a step of itself"), "{own:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_that_closes_behind_their_backs_is_stopped_when_it_runs() {
    let folder = Folder::new();
    // Like an identity, by another model.
    let through = |package: &str, model: &str| {
        let ends = ([("INPUT0", "INPUT0")], [("OUTPUT0", "OUTPUT0")]);
        ensemble(&folder, package, &["INPUT0"], &["OUTPUT0"], &[(model, &ends.0, &ends.1)]);
    };
    folder.identity("y/1", "");
    folder.identity("z/1", "");
    through("x/1", "y");
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    assert!(client.infer(identity_request("x", 1)).await.is_ok());
    through("y/2", "z");
    admin.repository_load("y").await.unwrap();
    assert!(client.infer(identity_request("x", 1)).await.is_ok());
    // When `x` was loaded, `y` was no ensemble: that `z` is a step of it now is not known.
    through("z/2", "x");
    admin.repository_load("z").await.unwrap();
    let (code, message) = refusal(&client, identity_request("x", 1)).await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.starts_with("step `y`: step `z`: step `x`: ") && message.contains("8 deep"), "{message}");
    // With its version named there is no ring.
    assert!(client.infer(identity_request("y", 1).version("1")).await.is_ok());
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_not_there_is_named_until_it_is() {
    let folder = Folder::new();
    chain(&folder, "pair/1", &["identity", "later"]);
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    assert!(reason(server.readiness()).contains("step `later`: unknown model `later`"));
    let (code, message) = refusal(&client, chain_request("pair")).await;
    assert!(code == Code::Unavailable && message.contains("step `later`"), "{message}");
    folder.identity("later/1", "");
    let error = admin.repository_load("pair").await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.message().contains("step `later`"), "{error}");
    admin.repository_load("later").await.unwrap();
    admin.repository_load("pair").await.unwrap();
    assert_eq!(server.readiness(), Ok(()));
    assert!(client.infer(chain_request("pair")).await.is_ok());

    // A step that is unloaded fails the ensemble's requests, by name, until it is loaded again.
    admin.repository_unload("later").await.unwrap();
    let (code, message) = refusal(&client, chain_request("pair")).await;
    assert_eq!(code, Code::Unavailable);
    assert!(message.starts_with("step `later`: model `later` is not ready"), "{message}");
    admin.repository_load("later").await.unwrap();
    assert!(client.infer(chain_request("pair")).await.is_ok());
    // Itself it is unloaded like any other.
    patiently("the unload", admin.repository_unload("pair")).await.unwrap();
    assert_eq!(refusal(&client, chain_request("pair")).await.0, Code::Unavailable);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_do_not_fit_are_refused_by_name() {
    let folder = Folder::new();
    folder.identity("ints/1", "datatype = 'INT64'");
    folder.identity("small/1", "max_batch_size = 4");
    chain(&folder, "bad/1", &["identity", "ints", "small"]);
    let server = Running::start(&folder).await;
    let text = reason(server.readiness());
    for part in [
        "step `ints`: input `INPUT0` INT64 [-1, -1], but it is given `OUTPUT0` FP32 [-1, -1]",
        "step `small`: input `INPUT0` FP32 [-1, -1], but it is given `OUTPUT0` INT64 [-1, -1]",
        "step `small` takes at most 4 rows, the ensemble 8",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    // A key that means nothing to an ensemble is none of its keys.
    folder.file(
        "bad/1",
        "model.toml",
        "family = 'ensemble'\ninstances = 2\n[response_cache]\nmax_bytes = 5000",
    );
    let error = server.admin().await.repository_load("bad").await.unwrap_err();
    for part in ["unknown key `instances`", "unknown key `response_cache`", "expected 1 to 64 steps"] {
        assert!(error.message().contains(part), "{part} not in {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_given_back_whatever_becomes_of_the_steps() {
    let folder = Folder::new();
    folder.identity("slow/1", "instances = 1\nmax_batch_size = 1\ndelay_ms = 5\nqueue_depth = 6");
    let fan: Vec<String> = (0..4).map(|at| format!("y{at}")).collect();
    let ends: Vec<_> = fan.iter().map(|name| ([("INPUT0", "x")], [("OUTPUT0", &**name)])).collect();
    let steps: Vec<Step<'_>> = ends.iter().map(|(i, o)| ("slow", &i[..], &o[..])).collect();
    let outputs: Vec<&str> = fan.iter().map(String::as_str).collect();
    // Its steps share one short queue, so some are refused.
    ensemble(&folder, "fan/1", &["x"], &outputs, &steps);
    let own = folder.package("fan/1").join("model.toml");
    let text = std::fs::read_to_string(&own).unwrap().replace("max_batch_size = 8", "max_batch_size = 1");
    std::fs::write(own, text).unwrap();
    let server = Running::start(&folder).await;
    assert_eq!(server.readiness(), Ok(()));
    let client = server.client().await;
    let ask = |number: usize| {
        let deadline = Duration::from_millis(if number.is_multiple_of(3) { 10 } else { 60_000 });
        client.infer(InferRequest::new("fan").input("x", matrix(&[[1.5; 64]])).timeout(deadline))
    };
    let outcomes: Vec<Result<InferResponse, Error>> = join_all((0..30).map(ask)).await;
    for outcome in outcomes {
        match outcome {
            Ok(answer) => assert!(answer.outputs.iter().all(|(_, tensor)| *tensor == matrix(&[[1.5; 64]]))),
            Err(error) => {
                assert!(matches!(error.code(), Code::ResourceExhausted | Code::DeadlineExceeded), "{error}")
            }
        }
    }
    // With nobody beside it there is room for all its steps.
    assert!(ask(1).await.is_ok());
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensemble_of_the_registry_follows_its_steps_aliases() {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |_| {}).await;
    let (client, mut registry) = (server.client().await, server.registry().await);
    let folder = Folder::new();
    let twice: [Step<'_>; 2] = [
        ("scale", &[("features", "x")], &[("prediction", "once")]),
        ("scale", &[("features", "once")], &[("prediction", "y")]),
    ];
    ensemble(&folder, "twice/1", &["x"], &["y"], &twice);
    let register = async |registry: &mut Registry, name: &str| {
        send(registry, upload_of(name, &folder.package(&format!("{name}/1")))).await.unwrap()
    };
    let ask = async |model: &str| {
        let asked = client.infer(InferRequest::new(model).input("x", matrix(&[[1.0]]))).await;
        asked
            .map(|answer| answer.output("y").unwrap().f32_values().next().unwrap())
            .map_err(|error| error.code())
    };
    // It may be registered before its steps are, and is served once they are there.
    let version = register(&mut registry, "twice").await;
    assert_eq!(version.signature.unwrap().outputs[0].name, "y");
    assert_eq!(ask("twice").await, Err(Code::Unavailable));
    push(&mut registry, "scale", 3.0).await;
    push(&mut registry, "scale", 5.0).await;
    promote(&mut registry, "scale", "1", "champion").await;
    until("it to be tried again", async || ask("twice").await == Ok(9.0)).await;
    promote(&mut registry, "twice", "1", "champion").await;
    promote(&mut registry, "scale", "2", "champion").await;
    assert_eq!(ask("twice").await, Ok(25.0));

    // Two that wait for each other are told so instead.
    for (name, step) in [("left/1", "right"), ("right/1", "left")] {
        ensemble(&folder, name, &["x"], &["y"], &[(step, &[("x", "x")], &[("y", "y")])]);
        register(&mut registry, name.trim_end_matches("/1")).await;
    }
    for model in ["left", "right"] {
        let (code, message) = refusal(&client, InferRequest::new(model).input("x", matrix(&[[1.0]]))).await;
        assert!(code == Code::Unavailable && message.contains(" a step of "), "{message}");
    }
    // A version that would lead back to itself once an alias moved is stopped when it runs.
    ensemble(
        &folder,
        "scale/1",
        &["features"],
        &["prediction"],
        &[("twice", &[("x", "features")], &[("y", "prediction")])],
    );
    let ring = register(&mut registry, "scale").await;
    let error = registry
        .promote(sconce_proto::sconce::PromoteRequest {
            model: "scale".into(),
            version: ring.version.to_string(),
            alias: "champion".into(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert!(error.message().contains("`scale`"), "{error}");
    assert_eq!(ask("twice").await, Ok(25.0));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_models_allow_themselves_holds_in_an_ensemble_and_for_it_where_a_request_brings_nothing() {
    let folder = Folder::new();
    folder.identity("slow/1", "delay_ms = 400\ndefault_timeout_ms = 20");
    folder.identity("free/1", "delay_ms = 400");
    chain(&folder, "of_slow/1", &["slow"]);
    chain(&folder, "of_free/1", &["free"]);
    let own = std::fs::read_to_string(folder.package("of_free/1").join("model.toml")).unwrap();
    folder.file("of_free/1", "model.toml", format!("default_timeout_ms = 20\n{own}"));
    let server = Running::start(&folder).await;
    let client = server.client().await;
    for model in ["of_slow", "of_free"] {
        let error = client.infer(chain_request(model)).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{model}: {error}");
        // Who says how long it has, has that long.
        client.infer(chain_request(model).timeout(Duration::from_secs(20))).await.unwrap();
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_successor_would_be_late_is_not_begun() {
    let folder = Folder::new();
    folder.identity("slow/1", "delay_ms = 300");
    chain(&folder, "both/1", &["identity", "slow"]);
    let server = Running::start(&folder).await;
    let client = server.client().await;
    client.infer(chain_request("both")).await.unwrap();
    assert_eq!(counts(&client, "identity").await, (1, 0));
    // Not what a loaded machine takes to come here: what is known lasts for a second from the answer, which is asked for again.
    let mut refused = None;
    for _ in 0..20 {
        client.infer(chain_request("both")).await.unwrap();
        let before = counts(&client, "identity").await.0;
        let error =
            client.infer(chain_request("both").timeout(Duration::from_millis(150))).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        if counts(&client, "identity").await.0 == before {
            refused = Some(error.message().to_owned());
            break;
        }
    }
    let refused = refused.unwrap();
    assert!(refused.contains("step `identity`") && refused.contains("cannot be met"), "{refused}");
    server.shutdown().await;
}
