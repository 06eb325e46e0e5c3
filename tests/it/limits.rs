//! Bounds: over each of them a call gets RESOURCE_EXHAUSTED, and everybody else is served as before.

use crate::support::{
    Folder, Running, framed, framed_with_payload, identity_request, matrix, patiently, process_memory_bytes,
    read_all_but, until,
};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use sconce_client::{Client, Code, DataType, InferRequest, InferStream, Tensor, tensor};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;
const HELD: &str = "sconce_inflight_bytes";

/// A request to `identity` whose one input has these bytes.
fn identity_of(payload: &Bytes) -> InferRequest {
    let tensor = Tensor::new(DataType::Fp32, vec![1, payload.len() / 4], payload.clone()).unwrap();
    InferRequest::new("identity").input("INPUT0", tensor)
}

async fn code_of(client: &Client, request: InferRequest) -> Code {
    patiently("an answer", client.infer(request)).await.err().map_or(Code::Ok, |error| error.code())
}

async fn assert_serves(client: &Client) {
    let zero = matrix(&[[0.0; 16]]);
    let request = InferRequest::new("add_sub").input("INPUT0", zero.clone()).input("INPUT1", zero);
    assert_eq!(code_of(client, request).await, Code::Ok);
}

/// 17 of the 200 fit into the 1 GiB that may be in flight. They are held just short of their last byte until all others
/// have their refusal, so which is which does not depend on who is fast.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_of_60_mib_each_get_an_answer_or_a_refusal_within_bounded_memory() {
    const CONNECTIONS: usize = 200;
    const BUDGET: usize = 1 << 30;
    let server = Running::start(&Folder::new()).await;
    let bystander = server.client().await;
    let payload = Bytes::from(vec![0; 60 * MIB]);
    let head = framed_with_payload(identity_of(&payload), payload.len());
    let message = head.len() - 5 + payload.len();
    let fitting = BUDGET / message;
    let before = process_memory_bytes("VmRSS");

    let (finish, finishing) = watch::channel(false);
    let (refusals, mut refused) = mpsc::channel(CONNECTIONS);
    let mut calls = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let wire = server.wire().await;
        let (head, payload) = (head.clone(), payload.clone());
        let (refusals, mut finishing) = (refusals.clone(), finishing.clone());
        calls.spawn(async move {
            let (mut upload, answer) = wire.open(&[]).await;
            let sent = async {
                upload.send(head, false).await?;
                upload.send(payload.slice(1..), false).await?;
                finishing.wait_for(|finish| *finish).await.unwrap();
                upload.send(payload.slice(..1), true).await
            };
            let answered = async {
                let outcome = answer.outcome().await;
                if outcome.code != Code::Ok {
                    refusals.send(()).await.unwrap();
                }
                outcome
            };
            // A refused call cannot be sent to its end.
            let (_, outcome) = tokio::join!(sent, answered);
            outcome
        });
    }
    for _ in fitting..CONNECTIONS {
        patiently("a refusal", refused.recv()).await.unwrap();
    }
    assert_eq!(server.metric(HELD).await, u64::try_from(fitting * message).unwrap());
    assert_serves(&bystander).await;

    finish.send(true).unwrap();
    let outcomes = patiently("the answers", calls.join_all()).await;
    let (answered, others): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|o| o.code == Code::Ok);
    assert_eq!((answered.len(), others.len()), (fitting, CONNECTIONS - fitting));
    assert!(others.iter().all(|outcome| outcome.code == Code::ResourceExhausted), "{others:?}");
    assert!(answered.iter().all(|outcome| outcome.bytes > payload.len()), "{answered:?}");

    // The messages, the answers that are as large, and as much again for what the connections buffer.
    let grown = process_memory_bytes("VmHWM").saturating_sub(before);
    assert!(grown < 3 * BUDGET, "{} MiB", grown / MIB);
    server.until_idle().await;
    assert_serves(&bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_within_the_bound_on_bytes_in_flight() {
    answers_are_within_the_bound_while_unread(usize::MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_to_their_end_are_within_the_bound_on_bytes_in_flight() {
    // The last bytes keep the memory of all.
    answers_are_within_the_bound_while_unread(10).await;
}

/// Many calls of 8 MiB, of whose answers all is read but the last `unread` bytes, against a bound of 32 MiB.
async fn answers_are_within_the_bound_while_unread(unread: usize) {
    const CALLS: usize = 12;
    let server = Running::limited(&Folder::new(), |limits| {
        limits.max_message_bytes = 9 * MIB;
        limits.max_inflight_bytes = 32 * MIB;
    })
    .await;
    let payload = Bytes::from(vec![0; 8 * MIB]);
    let head = framed_with_payload(identity_of(&payload), payload.len());
    let wire = server.wire().await;
    let answer_bytes = wire.infer(&[], identity_of(&payload)).await.bytes;
    assert!(answer_bytes > payload.len());
    server.until_idle().await;

    let mut held = Vec::new();
    for _ in 0..CALLS {
        let (mut upload, answer) = wire.open(&[]).await;
        let sent = async {
            upload.send(head.clone(), false).await?;
            upload.send(payload.clone(), true).await
        };
        let (_, (code, mut body)) = tokio::join!(sent, answer.head());
        match code {
            None => {
                read_all_but(&mut body, answer_bytes, unread.min(answer_bytes)).await;
                held.push(body);
            }
            Some(code) => assert_eq!(code, Code::ResourceExhausted),
        }
    }
    assert!((1..=3).contains(&held.len()), "{} answers of 8 MiB are held for 32 MiB", held.len());
    drop(held);
    server.until_idle().await;
    assert_serves(&server.client().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_executed_is_not_refused_for_its_bytes() {
    let server = Running::limited(&Folder::new(), |limits| {
        limits.max_message_bytes = 2 * MIB;
        limits.max_inflight_bytes = 7 * MIB;
    })
    .await;
    let payload = Bytes::from(vec![0; MIB]);
    let head = framed_with_payload(identity_of(&payload), payload.len());
    let callers = (0..16).map(|_| async {
        let wire = server.wire().await;
        let mut answered = 0;
        for _ in 0..25 {
            let (mut upload, answer) = wire.open(&[]).await;
            let sent = async {
                upload.send(head.clone(), false).await?;
                upload.send(payload.clone(), true).await
            };
            // A refused call cannot be sent to its end.
            let (_, outcome) = tokio::join!(sent, answer.outcome());
            match outcome.code {
                Code::Ok => answered += 1,
                code => assert_eq!(code, Code::ResourceExhausted),
            }
        }
        answered
    });
    let answered: u64 = join_all(callers).await.into_iter().sum();
    assert!(answered > 0);
    let statistics = server.client().await.model_statistics("identity", "1").await.unwrap();
    assert_eq!(statistics[0].inference_count, answered);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_stream_that_finds_no_room_is_refused_alone() {
    let server = Running::limited(&Folder::new(), |limits| {
        limits.max_message_bytes = 2 * MIB;
        limits.max_inflight_bytes = 2 * MIB;
    })
    .await;
    let payload = |bytes| identity_of(&Bytes::from(vec![0; bytes]));
    // Another call holds most of the room.
    let wire = server.wire().await;
    let (mut upload, _answer) = wire.open(&[]).await;
    let held = framed(payload(3 * MIB / 2));
    upload.send(held.slice(..1000), false).await.unwrap();
    server.until_metric(HELD, u64::try_from(held.len() - 5).unwrap()).await;

    let requests = [4, MIB, 8].map(payload);
    let mut replies = server.client().await.stream(stream::iter(requests)).await.unwrap();
    for fits in [true, false, true] {
        let reply = patiently("a reply", replies.next()).await.unwrap().unwrap();
        match reply.result {
            Ok(_) => assert!(fits),
            Err(error) => assert!(!fits && error.message().contains("bytes in flight"), "{error}"),
        }
    }
    assert!(patiently("the end of the stream", replies.next()).await.unwrap().is_none());
    drop((upload, wire));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_becomes_and_what_it_is_answered_count_before_they_are_made() {
    let folder = Folder::new();
    // A word of one byte becomes 4,000 numbers.
    let words: Vec<String> = (0..4000).map(|word| format!("'{word}'")).collect();
    let feature =
        format!("[[features]]\nname = 'word'\ntype = 'categorical'\nvocabulary = [{}]", words.join(","));
    folder.linear("wide/1", words.len(), &vec![1.0; words.len()]);
    folder.file("wide/1", "model.toml", &feature);
    // One number becomes 40,000.
    folder.linear("tall/1", 1, &[1.0; 40_000]);
    let server = Running::limited(&folder, |limits| {
        limits.max_message_bytes = MIB;
        limits.max_inflight_bytes = MIB;
    })
    .await;
    let client = server.client().await;
    let wide =
        |rows| InferRequest::new("wide").input("word", tensor::bytes(&[rows, 1], &vec!["7"; rows]).unwrap());
    let tall = |rows| {
        let column = tensor::fp32(&[rows, 1], &vec![1.0; rows]).unwrap();
        InferRequest::new("tall").input("features", column)
    };
    assert_eq!(code_of(&client, wide(2)).await, Code::Ok);
    assert_eq!(code_of(&client, wide(64)).await, Code::ResourceExhausted);
    assert_eq!(code_of(&client, tall(2)).await, Code::Ok);
    assert_eq!(code_of(&client, tall(64)).await, Code::ResourceExhausted);
    server.until_idle().await;
}

/// Takes more than a minute: with `tests/run --full` alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_peer_does_not_take_its_answers_is_closed() {
    if std::env::var_os("SCONCE_FULL").is_none() {
        return;
    }
    let server = Running::start(&Folder::new()).await;
    let payload = Bytes::from(vec![0; MIB]);
    let wire = server.wire().await;
    let (mut upload, answer) = wire.open(&[]).await;
    upload.send(framed(identity_of(&payload)), true).await.unwrap();
    let (code, mut body) = answer.head().await;
    assert_eq!(code, None);
    assert!(server.metric(HELD).await > 0);
    let closed = async {
        // The first window full is there; what follows does not come before the connection ends.
        while let Some(Ok(_)) = body.data().await {}
    };
    tokio::time::timeout(Duration::from_secs(100), closed).await.unwrap();
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_a_message_that_never_comes_are_given_back_when_its_sender_goes() {
    let server = Running::start(&Folder::new()).await;
    let payload = Bytes::from(vec![0; 60 * MIB]);
    let head = framed_with_payload(identity_of(&payload), payload.len());
    let message = head.len() - 5 + payload.len();
    for sent_bytes in [0, MIB] {
        let wire = server.wire().await;
        let (mut upload, _answer) = wire.open(&[]).await;
        upload.send(head.clone(), false).await.unwrap();
        upload.send(payload.slice(..sent_bytes), false).await.unwrap();
        server.until_metric(HELD, u64::try_from(message).unwrap()).await;
        drop(wire);
        server.until_idle().await;
    }
    assert_serves(&server.client().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_bound_is_refused_and_its_connection_lives_on() {
    let server = Running::limited(&Folder::new(), |limits| limits.max_message_bytes = MIB).await;
    let client = server.client().await;
    let error = client.infer(identity_of(&Bytes::from(vec![0; MIB]))).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("the limit is 1048576"), "{error}");
    assert_serves(&client).await;

    // The largest that fits: what is not payload takes the same few bytes.
    let overhead = framed(identity_of(&Bytes::from(vec![0; MIB]))).len() - 5 - MIB;
    let fits = Bytes::from(vec![0; (MIB - overhead) / 4 * 4]);
    assert_eq!(code_of(&client, identity_of(&fits)).await, Code::Ok);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_bound_is_refused_from_its_prefix_alone() {
    let server = Running::start(&Folder::new()).await;
    let wire = server.wire().await;
    let (mut upload, answer) = wire.open(&[]).await;
    upload.send(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]), false).await.unwrap();
    assert_eq!(answer.outcome().await.code, Code::ResourceExhausted);
    assert_eq!(wire.infer(&[], identity_request("identity", 1)).await.code, Code::Ok);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_bound_are_refused_until_one_closes() {
    let server = Running::limited(&Folder::new(), |limits| limits.max_connections = 2).await;
    let (first, second) = (server.client().await, server.client().await);
    assert!(first.server_live().await.unwrap() && second.server_live().await.unwrap());

    let third = server.client().await;
    let error = third.infer(identity_request("identity", 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("2 connections"), "{error}");
    assert_eq!(third.server_live().await.unwrap_err().code(), Code::ResourceExhausted);
    assert!(server.metric("sconce_refused_requests_total").await > 0);
    assert_serves(&second).await;

    drop(first);
    server.until_metric("sconce_connections", 1).await;
    assert_serves(&server.client().await).await;
    assert_serves(&second).await;
}

/// A stream that was answered once and stays open until it is dropped.
async fn open_stream(client: &Client) -> sconce_client::Result<(InferStream, oneshot::Sender<()>)> {
    let (end, ended) = oneshot::channel();
    let one = stream::iter([identity_request("identity", 1)]);
    let none_more = stream::once(ended).filter_map(|_| async { None });
    let mut replies = client.stream(one.chain(none_more)).await?;
    assert!(patiently("a reply", replies.next()).await?.unwrap().result.is_ok());
    Ok((replies, end))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_the_bound_are_refused_until_one_ends() {
    let server = Running::limited(&Folder::new(), |limits| limits.max_streams = 4).await;
    let (one, other) = (server.client().await, server.client().await);
    let mut held = Vec::new();
    for client in [&one, &one, &other, &other] {
        held.push(open_stream(client).await.unwrap());
    }
    for client in [&one, &other, &server.client().await] {
        assert_eq!(code_of(client, identity_request("identity", 1)).await, Code::ResourceExhausted);
        assert_eq!(open_stream(client).await.unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(client.server_metadata().await.unwrap_err().code(), Code::ResourceExhausted);
    }
    held.pop();
    server.until_metric("sconce_streams", 3).await;
    assert_eq!(code_of(&one, identity_request("identity", 1)).await, Code::Ok);
    let again = open_stream(&one).await.unwrap();
    assert_eq!(code_of(&other, identity_request("identity", 1)).await, Code::ResourceExhausted);
    drop((held, again));
    server.until_idle().await;
    assert_serves(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_a_full_queue_is_refused_and_other_models_do_not_notice() {
    let folder = Folder::new();
    // One request waits for company that never comes: the queue is full as long as the test wants.
    folder.identity(
        "waiting/1",
        "instances = 1\nqueue_depth = 1\nmax_batch_size = 2\nmax_queue_delay_ms = 60000",
    );
    // One request runs, one waits, the others are refused.
    folder.identity("slow/1", "instances = 1\nqueue_depth = 1\nmax_batch_size = 1\ndelay_ms = 500");
    let server = Running::start(&folder).await;
    let client = server.client().await;

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { code_of(&client, identity_request("waiting", 1)).await }
    });
    server.until_metric("sconce_queue_depth{model=\"waiting\",version=\"1\"}", 1).await;
    let error = client.infer(identity_request("waiting", 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("queue is full"), "{error}");
    assert_serves(&client).await;
    waiting.abort();

    let codes = join_all((0..8).map(|_| code_of(&client, identity_request("slow", 1)))).await;
    let count = |wanted| codes.iter().filter(|code| **code == wanted).count();
    assert!(count(Code::Ok) >= 1 && count(Code::ResourceExhausted) >= 1, "{codes:?}");
    assert_eq!(count(Code::Ok) + count(Code::ResourceExhausted), codes.len(), "{codes:?}");

    // A caller that went away does not keep its place.
    until("the place of an abandoned request", async || {
        let asked = client.infer(identity_request("waiting", 2)).await;
        asked.is_ok()
    })
    .await;
}
