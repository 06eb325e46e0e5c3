//! What people decide: confident answers go out, the rest wait for somebody, and nothing that a caller was told waits is lost.

use crate::registry::{promote, send, upload_of};
use crate::support::{Folder, Running, connect, matrix, patiently, raw_safetensors, until};
use futures_util::future::join_all;
use sconce_client::control_proto as pb;
use sconce_client::control_proto::outcome::Value;
use sconce_client::{
    Client, Code, FeedbackClient, InferRequest, InferResponse, Options, Parameter, ReviewClient,
};
use std::env;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use tempfile::TempDir;

const MODEL: &str = "loan";
const PARTIAL: &str = "data_policy = 'all'\n[review]\nautomation = 'partial'\nmin_confidence = 0.9";
/// What this model is sure of, and what it is not.
const SURE: f32 = 8.0;
const UNSURE: f32 = 0.25;

/// A model that says yes with the probability `sigmoid(x)`, with more lines of `model.toml`.
fn logistic(folder: &Folder, package: &str, more: &str) {
    let header = r#"{"layers.0.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;
    folder.file(package, "model.safetensors", raw_safetensors(header, &1_f32.to_le_bytes()));
    let text = format!("family = 'tabular'\ntask = 'classification'\nlabels = ['no', 'yes']\n{more}");
    folder.file(package, "model.toml", text);
}

async fn start(more: &str, max_items: usize) -> (TempDir, Running, Client) {
    let (data, server) = registered(more, max_items).await;
    promote(&mut server.registry().await, MODEL, "1", "champion").await;
    let client = server.client().await;
    (data, server, client)
}

async fn registered(more: &str, max_items: usize) -> (TempDir, Running) {
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path(), max_items).await;
    let folder = Folder::new();
    logistic(&folder, "m/1", more);
    send(&mut server.registry().await, upload_of(MODEL, &folder.package("m/1"))).await.unwrap();
    (data, server)
}

async fn serve(data: &Path, max_items: usize) -> Running {
    Running::stored(data, |config| {
        config.allow_plaintext = true;
        config.review.max_items = max_items;
    })
    .await
}

async fn reviewer(control: SocketAddr, name: &str) -> ReviewClient {
    let client = ReviewClient::connect(&control.to_string(), Options::default()).await.unwrap();
    client.actor(name).unwrap()
}

async fn ask(client: &Client, value: f32) -> sconce_client::Result<InferResponse> {
    client.infer(InferRequest::new(MODEL).input("features", matrix(&[[value]]))).await
}

/// What the answer says of people, and why they are asked.
fn review(answer: &InferResponse) -> Option<(&str, &str)> {
    let text = |name: &str| match answer.parameters.get(name) {
        Some(Parameter::StringParam(text)) => Some(text.as_str()),
        None => None,
        other => panic!("{other:?}"),
    };
    Some((text("review")?, text("review_cause")?))
}

fn id(answer: &InferResponse) -> String {
    answer.prediction_id().unwrap().to_owned()
}

async fn claim(reviewer: &ReviewClient, count: u32) -> Vec<pb::ReviewItem> {
    let request = pb::ClaimReviewsRequest { model: MODEL.to_owned(), count, lease_seconds: 0 };
    reviewer.claim(request).await.unwrap().items
}

async fn say(reviewer: &ReviewClient, id: &str, label: &str) -> sconce_client::Result<u64> {
    let outcome = pb::Outcome {
        prediction_id: id.to_owned(),
        value: Some(Value::Label(label.to_owned())),
        ..Default::default()
    };
    let request = pb::AnswerReviewsRequest { model: MODEL.to_owned(), outcomes: vec![outcome] };
    reviewer.answer(request).await.map(|done| done.answered)
}

async fn listed(reviewer: &ReviewClient, page_size: u32) -> Vec<pb::ReviewItem> {
    let mut request = pb::ListReviewsRequest { page_size, ..Default::default() };
    let mut all = Vec::new();
    loop {
        let page = reviewer.list(request.clone()).await.unwrap();
        all.extend(page.items);
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

fn ids(items: &[pb::ReviewItem]) -> Vec<&str> {
    items.iter().map(|item| item.prediction_id.as_str()).collect()
}

fn code<T>(outcome: sconce_client::Result<T>) -> Code {
    outcome.err().map_or(Code::Ok, |error| error.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn confident_answers_go_out_and_people_decide_the_rest() {
    let (_data, server, client) = start(PARTIAL, 100).await;
    let (anna, bert) = (reviewer(server.control(), "anna").await, reviewer(server.control(), "bert").await);
    let mut events = anna.watch(pb::WatchReviewsRequest { model: MODEL.to_owned() }).await.unwrap();
    let sure = ask(&client, SURE).await.unwrap();
    assert!(review(&sure).is_none() && sure.output("probabilities").is_some());
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let unsure = ask(&client, UNSURE).await.unwrap();
        assert_eq!((review(&unsure), unsure.outputs.len()), (Some(("deferred", "confidence")), 0));
        waiting.push(id(&unsure));
    }
    assert_eq!(ids(&listed(&anna, 2).await), waiting);
    let decisions = |decision: &str| {
        format!("sconce_review_decisions_total{{model=\"{MODEL}\",version=\"1\",decision=\"{decision}\"}}")
    };
    assert_eq!(server.metric(&decisions("answered")).await, 1);
    assert_eq!(server.metric(&decisions("deferred")).await, 3);
    let depth = format!("sconce_review_queue_depth{{model=\"{MODEL}\"}}");
    assert_eq!(server.metric(&depth).await, 3);

    // Nobody gets what another has; with it comes what the policy keeps.
    let (of_anna, of_bert) = (claim(&anna, 2).await, claim(&bert, 9).await);
    assert_eq!((ids(&of_anna), ids(&of_bert)), (vec![&*waiting[0], &*waiting[1]], vec![&*waiting[2]]));
    let item = &of_anna[0];
    let sigmoid = 1.0 / (1.0 + (-f64::from(UNSURE)).exp());
    assert!((item.got.unwrap() - sigmoid).abs() < 1e-6 && item.bound == Some(0.9), "{item:?}");
    assert_eq!((item.claimed_by.as_str(), item.version, item.disposition.as_str()), ("anna", 1, "deferred"));
    let content = |tensors: &[pb::ReviewTensor]| -> Vec<(String, Vec<f32>)> {
        let one = |it: &pb::ReviewTensor| (it.name.clone(), serde_json::from_str(&it.data_json).unwrap());
        tensors.iter().map(one).collect()
    };
    assert_eq!(content(&item.inputs), [("features".to_owned(), vec![UNSURE])]);
    assert_eq!(content(&item.outputs)[0].1.len(), 2);
    assert!(listed(&anna, 0).await.iter().all(|item| item.inputs.is_empty() && !item.claimed_by.is_empty()));
    assert_eq!(code(say(&bert, &waiting[0], "yes").await), Code::FailedPrecondition);

    // An answer is feedback, and who gave it is noted.
    assert_eq!(say(&anna, &waiting[0], "no").await.unwrap(), 1);
    assert_eq!(code(say(&anna, &waiting[0], "no").await), Code::NotFound);
    server.until_metric("sconce_exposures_total{status=\"written\"}", 4).await;
    let feedback = FeedbackClient::connect(&server.control().to_string(), Options::default()).await.unwrap();
    let request = pb::ListFeedbackRequest { model: MODEL.to_owned(), ..Default::default() };
    let known = feedback.list(request).await.unwrap().predictions;
    let told: Vec<_> =
        known.iter().flat_map(|it| &it.outcomes).map(|it| (&*it.metric, it.value.clone())).collect();
    let label = |text: &str| Some(Value::Label(text.to_owned()));
    assert_eq!(
        (known[1].prediction_id.as_str(), told),
        (&*waiting[0], vec![("label", label("no")), ("reviewer", label("anna"))])
    );

    // What people decide in the model's place is no decision of its own: it is not judged by it.
    let scores: Vec<_> = known.iter().map(|it| it.exposure.as_ref().unwrap().score.is_some()).collect();
    assert_eq!(scores, [true, false, false, false]);

    // What somebody gives back is for others.
    let skip = |id: &str| pb::SkipReviewRequest { model: MODEL.to_owned(), prediction_id: id.to_owned() };
    assert_eq!(code(anna.skip(skip(&waiting[2])).await), Code::FailedPrecondition);
    bert.skip(skip(&waiting[2])).await.unwrap();
    assert!(claim(&bert, 9).await.is_empty());
    assert_eq!(ids(&claim(&anna, 9).await), [&*waiting[2]]);
    assert_eq!(server.metric(&depth).await, 2);
    assert_eq!(server.metric("sconce_reviews_total{result=\"answered\"}").await, 1);
    let mut seen = Vec::new();
    while seen.len() < 9 {
        let event = patiently("an event", events.next()).await.unwrap().unwrap();
        seen.push((event.what, event.by, event.waiting));
    }
    let of = |what: &str, by: &str, waiting| (what.to_owned(), by.to_owned(), waiting);
    assert_eq!(
        seen[..4],
        [of("added", "", 1), of("added", "", 2), of("added", "", 3), of("claimed", "anna", 3)]
    );
    assert_eq!(seen[6..], [of("answered", "anna", 2), of("skipped", "bert", 2), of("claimed", "anna", 2)]);
    drop(events);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_degree_of_automation_is_kept_and_content_only_as_the_policy_says() {
    for (more, told, outputs, kept) in [
        ("data_policy = 'all'\n[review]\nautomation = 'assist'", ("suggested", "assist"), 1, (1, 1)),
        ("[review]\nautomation = 'assist'", ("suggested", "assist"), 1, (0, 0)),
        // People decide without seeing what it says.
        ("data_policy = 'all'\n[review]\nautomation = 'shadow'", ("deferred", "shadow"), 0, (1, 0)),
        (
            "data_policy = 'outputs'\n[review]\nautomation = 'partial'\nmin_margin = 1",
            ("deferred", "margin"),
            0,
            (0, 1),
        ),
        // Nobody watches it: what is asked for and not known is for people.
        ("[review]\nautomation = 'partial'\ndrift_states = ['drifted']", ("deferred", "unknown"), 0, (0, 0)),
    ] {
        let (_data, server, client) = start(more, 100).await;
        let answer = ask(&client, UNSURE).await.unwrap();
        assert_eq!((review(&answer), answer.outputs.len()), (Some(told), outputs), "{more}");
        let claimed = claim(&reviewer(server.control(), "anna").await, 1).await;
        assert_eq!((claimed[0].inputs.len(), claimed[0].outputs.len()), kept, "{more}");
        assert_eq!((claimed[0].disposition.as_str(), claimed[0].cause.as_str()), told, "{more}");
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_what_is_for_people_and_nothing_else() {
    let (_data, server, client) = start(PARTIAL, 2).await;
    for _ in 0..2 {
        ask(&client, UNSURE).await.unwrap();
    }
    let refused = ask(&client, UNSURE).await.unwrap_err();
    assert!(
        refused.code() == Code::ResourceExhausted && refused.message().contains("2 predictions"),
        "{refused}"
    );
    ask(&client, SURE).await.unwrap();
    let anna = reviewer(server.control(), "anna").await;
    let claimed = claim(&anna, 1).await;
    say(&anna, &claimed[0].prediction_id, "yes").await.unwrap();
    ask(&client, UNSURE).await.unwrap();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_left_to_people_is_not_served() {
    // Without a registry there is no queue.
    let folder = Folder::new();
    logistic(&folder, "loan/1", PARTIAL);
    let server = Running::start(&folder).await;
    let problem = server.readiness().unwrap_err();
    assert!(problem.contains("review") && problem.contains("data folder"), "{problem}");
    server.shutdown().await;
    // A rule about an output that is not there would leave everything to people.
    let (_data, server) = registered("[review]\nautomation = 'partial'\nmax_outlier_score = 3", 9).await;
    let refused = ask(&server.client().await, SURE).await.unwrap_err();
    assert!(refused.message().contains("outlier_score"), "{refused}");
    server.shutdown().await;
}

/// In front of what a child says, among what the test harness says.
const MARK: &str = "review: ";

/// Not a test but the server that `a_kill_loses_...` kills.
#[test]
fn child() {
    let Ok(data) = env::var("SCONCE_REVIEW_DATA") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(serve(Path::new(&data), 100_000));
    println!("\n{MARK}{} {}", server.grpc(), server.control());
    loop {
        thread::park();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_nothing_that_a_caller_was_told_waits() {
    let (data, server, client) = start(PARTIAL, 100_000).await;
    let mut told: Vec<String> = vec![id(&ask(&client, UNSURE).await.unwrap())];
    drop(client);
    server.shutdown().await;
    let mut answered = Vec::new();
    for round in 1..=3 {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["review::child", "--exact", "--nocapture"])
            .env("SCONCE_REVIEW_DATA", data.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let addresses = said.lines().find_map(|line| line.unwrap().strip_prefix(MARK).map(str::to_owned));
        let addresses = addresses.expect("the child serves");
        let (grpc, control) = addresses.split_once(' ').unwrap();
        let client = connect(grpc.parse::<SocketAddr>().unwrap()).await.unwrap();
        let anna = reviewer(control.parse().unwrap(), "anna").await;
        until("the model", async || ask(&client, SURE).await.is_ok()).await;
        // All that was told before is there, but what was answered; nobody has it any more.
        let waiting = listed(&anna, 7).await;
        let known: std::collections::BTreeSet<&str> = ids(&waiting).into_iter().collect();
        assert!(
            told.iter().all(|id| known.contains(&**id)),
            "round {round}: of {} told, {known:?}",
            told.len()
        );
        assert!(answered.iter().all(|id: &String| !known.contains(&**id)));
        assert!(waiting.iter().all(|item| item.claimed_by.is_empty()));
        // One is answered; one is claimed, which a kill forgets.
        let claimed = claim(&anna, 2).await;
        let answer = claimed[0].prediction_id.clone();
        say(&anna, &answer, "yes").await.unwrap();
        told.retain(|id| *id != answer);
        answered.push(answer);
        // Callers ask as the server is killed.
        let callers = (0..8).map(|_| async {
            let mut told = Vec::new();
            while let Ok(answer) = ask(&client, UNSURE).await {
                told.push(id(&answer));
            }
            told
        });
        let killed = async {
            until("some that wait", async || listed(&anna, 0).await.len() >= 30 * round).await;
            process.kill().unwrap();
            process.wait().unwrap();
        };
        let (all, ()) = patiently("the kill", futures_util::future::join(join_all(callers), killed)).await;
        told.extend(all.into_iter().flatten());
    }
    let server = serve(data.path(), 100_000).await;
    let anna = reviewer(server.control(), "anna").await;
    let waiting = listed(&anna, 0).await;
    let known: std::collections::BTreeSet<&str> = ids(&waiting).into_iter().collect();
    assert!(
        told.len() >= 60 && told.iter().all(|id| known.contains(&**id)),
        "{} of {}",
        known.len(),
        told.len()
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_leaves_too_much_to_people_is_rolled_back_by_its_gate() {
    let (_data, server, client) = start("", 10_000).await;
    let folder = Folder::new();
    logistic(&folder, "m/1", PARTIAL);
    send(&mut server.registry().await, upload_of(MODEL, &folder.package("m/1"))).await.unwrap();
    let traffic = server.traffic().await;
    let plan = serde_json::json!({
        "candidate": "2",
        "strategy": { "canary": { "stages": [{ "percent": 50.0, "min_samples": 1000 }, { "percent": 100.0 }] } },
        "gates": [{ "metric": "deferred", "max": 0.2, "vs_control": 0.1 }],
    });
    let request = pb::StartRolloutRequest {
        model: MODEL.to_owned(),
        plan_json: plan.to_string(),
        reason: String::new(),
        dry_run: false,
    };
    traffic.start_rollout(request).await.unwrap();
    let of = || pb::GetRolloutRequest { model: MODEL.to_owned() };
    until("the candidate to be rolled back", async || {
        for _ in 0..20 {
            ask(&client, UNSURE).await.unwrap();
        }
        traffic.get_rollout(of()).await.unwrap().state() == pb::RolloutState::RolledBack
    })
    .await;
    let rollout = traffic.get_rollout(of()).await.unwrap();
    let gate = rollout.gates.iter().find(|gate| gate.gate == "deferred").unwrap();
    assert_eq!(gate.verdict, "failed", "{gate:?}");
    // All that is unsure is answered again.
    assert_eq!(review(&ask(&client, UNSURE).await.unwrap()), None);
    let waited = server.scrape("text/plain").await.1;
    assert!(waited.contains(&format!("sconce_review_oldest_seconds{{model=\"{MODEL}\"}}")), "{waited}");
    server.shutdown().await;
}
