//! What comes back: batched or not, raw, over a stream, as classes, and when a number is none.

use crate::support::{Folder, Running, identity_request, matrix, patiently};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use sconce_client::{Client, Code, DataType, InferRequest, InferResponse, Tensor, tensor};

const COLUMNS: usize = 30;
const HOLDOUT: &str = include_str!("../../crates/sconce/demo/holdout.csv");
const EXPECTED: &str = include_str!("../../crates/sconce/demo/expected.csv");
/// Most rows of a request in [`rows_get_the_same_answer_alone_and_in_any_batch`].
const MAX_GROUP: usize = 8;

/// The held-out rows of the demo.
fn holdout() -> Vec<[f32; COLUMNS]> {
    let numbers = |line: &str| {
        let columns: Vec<f32> = line.split(',').take(COLUMNS).map(|number| number.parse().unwrap()).collect();
        columns.try_into().unwrap()
    };
    HOLDOUT.lines().skip(1).map(numbers).collect()
}

/// What the training made of them: the probability of class 1, by version.
fn expected(version: usize) -> Vec<f32> {
    EXPECTED.lines().skip(1).map(|line| line.split(',').nth(version - 1).unwrap().parse().unwrap()).collect()
}

async fn probabilities(
    client: &Client,
    model: &str,
    version: usize,
    rows: &[[f32; COLUMNS]],
) -> Vec<[f32; 2]> {
    let request = InferRequest::new(model).version(version.to_string()).input("features", matrix(rows));
    let answer = patiently("an answer", client.infer(request)).await.unwrap();
    assert_eq!(answer.model_version, version.to_string());
    let output = answer.output("probabilities").unwrap();
    assert_eq!(output.shape(), [rows.len(), 2]);
    output.f32_values().collect::<Vec<_>>().as_chunks().0.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_get_the_same_answer_alone_and_in_any_batch() {
    let folder = Folder::new();
    folder.demo("alone", "");
    folder.demo("together", "instances = 1\nmax_queue_delay_ms = 20");
    let server = Running::start(&folder).await;
    let clients = join_all((0..4).map(|_| server.client())).await;
    let rows = holdout();
    assert_eq!(rows.len(), 171);
    let mut random = fastrand::Rng::with_seed(7);
    for version in [1, 2] {
        let mut alone = Vec::new();
        for row in &rows {
            alone.extend(probabilities(&clients[0], "alone", version, std::slice::from_ref(row)).await);
        }
        for (index, (got, expected)) in alone.iter().zip(expected(version)).enumerate() {
            assert!(
                (got[1] - expected).abs() < 1e-5,
                "version {version}, row {index}: {got:?}, not {expected}"
            );
            assert!((got[0] + got[1] - 1.0).abs() < 1e-6, "version {version}, row {index}: {got:?}");
        }

        for _ in 0..5 {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            random.shuffle(&mut order);
            let mut groups = Vec::new();
            while !order.is_empty() {
                groups.push(order.split_off(order.len().saturating_sub(random.usize(1..=MAX_GROUP))));
            }
            let answers = groups.iter().enumerate().map(|(number, group)| {
                let client = &clients[number % clients.len()];
                let rows: Vec<_> = group.iter().map(|row| rows[*row]).collect();
                async move { probabilities(client, "together", version, &rows).await }
            });
            let answers = join_all(answers).await;
            for (row, got) in groups.iter().flatten().zip(answers.iter().flatten()) {
                // To the last bit: what else is in the batch does not matter at all.
                assert_eq!(*got, alone[*row], "version {version}, row {row}");
            }
        }
        let statistics = clients[0].model_statistics("together", &version.to_string()).await.unwrap();
        let largest = statistics[0].batch_stats.iter().map(|size| size.batch_size).max();
        assert!(largest > Some(MAX_GROUP as u64), "requests were never batched: {statistics:?}");
    }
}

/// Two rows of two elements whose every bit matters.
fn two_by_two(datatype: DataType) -> Vec<u8> {
    match datatype {
        DataType::Bool => vec![0, 1, 1, 0],
        DataType::Bytes => {
            [&[3, 0, 0, 0], &b"one"[..], &[0; 4], &[2, 0, 0, 0, 0xff, 0], &[1, 0, 0, 0, 7]].concat()
        }
        _ => {
            let bytes = 4 * datatype.element_bytes().unwrap();
            // Among them an infinity and a NaN of each floating-point type.
            let patterns = [0xff, 0x7f, 0x00, 0x80, 0x01, 0xfc, 0x7c, 0xf8];
            patterns.into_iter().cycle().take(bytes).collect()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_comes_back_byte_for_byte() {
    let folder = Folder::new();
    for datatype in DataType::ALL {
        folder.identity(&format!("echo_{datatype}/1"), &format!("datatype = '{datatype}'"));
    }
    let server = Running::start(&folder).await;
    let client = server.client().await;
    for datatype in DataType::ALL {
        let given = Tensor::new(datatype, vec![2, 2], two_by_two(datatype).into()).unwrap();
        let request = InferRequest::new(format!("echo_{datatype}")).id("7").input("INPUT0", given.clone());
        let answer = client.infer(request).await.unwrap();
        assert_eq!(answer.outputs, [("OUTPUT0".to_owned(), given)]);
        assert_eq!(answer.id, "7");
        assert!(answer.prediction_id().is_some_and(|id| !id.is_empty()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_good_and_bad_messages_in_their_order() {
    let folder = Folder::new();
    folder.identity("slow/1", "instances = 1\nmax_batch_size = 1\ndelay_ms = 5");
    folder.linear("linear/1", 2, &[1.0, 1.0]);
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let linear = |features| InferRequest::new("linear").input("features", features);
    let kinds = [
        (identity_request("slow", 1), ""),
        (identity_request("identity", 3), ""),
        (identity_request("no_such_model", 1), "no_such_model"),
        (linear(matrix(&[[1.0, 2.0]])), ""),
        (linear(matrix(&[[1.0, 2.0, 3.0]])), "[1, 3]"),
        (linear(matrix(&[[f32::NAN, 2.0]])), "NaN"),
    ];
    let mut random = fastrand::Rng::with_seed(11);
    let sent: Vec<_> = (0..200).map(|_| &kinds[random.usize(..kinds.len())]).collect();
    let numbered =
        sent.iter().enumerate().map(|(number, (request, _))| request.clone().id(number.to_string()));
    let requests: Vec<_> = numbered.collect();
    let mut replies = client.stream(stream::iter(requests)).await.unwrap();
    for (number, (_, problem)) in sent.iter().enumerate() {
        let reply = patiently("a reply", replies.next()).await.unwrap().unwrap();
        assert_eq!(reply.id, number.to_string());
        match reply.result {
            Ok(answer) => assert!(problem.is_empty(), "{number}: {answer:?}"),
            Err(error) => {
                assert!(!problem.is_empty() && error.message().contains(problem), "{number}: {error}");
            }
        }
    }
    assert!(patiently("the end of the stream", replies.next()).await.unwrap().is_none());
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nan_is_refused_at_the_door_where_the_signature_forbids_it() {
    let folder = Folder::new();
    folder.demo("demo", "");
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let mut rows = holdout();
    rows.truncate(3);
    rows[1][29] = f32::NAN;
    let error = client.infer(InferRequest::new("demo").input("features", matrix(&rows))).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("input `features`: NaN"), "{error}");
    // Identity's signature allows it.
    let nan = InferRequest::new("identity").input("INPUT0", matrix(&[[f32::NAN]]));
    assert!(client.infer(nan).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_no_number_fails_its_own_request_and_not_its_batch() {
    let folder = Folder::new();
    folder.linear("steep/1", 2, &[3e38, 3e38]);
    folder.file("steep/1", "model.toml", "instances = 1\nmax_batch_size = 2\nmax_queue_delay_ms = 60000");
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let ask = |row: [f32; 2]| client.infer(InferRequest::new("steep").input("features", matrix(&[row])));
    for (bad, what) in [([10.0, -10.0], "NaN"), ([10.0, 0.0], "infinity")] {
        // Neither runs before the other is there: they share a batch.
        let (good, failed) = patiently(what, async { tokio::join!(ask([1.0, 0.0]), ask(bad)) }).await;
        let output: Vec<f32> = good.unwrap().output("prediction").unwrap().f32_values().collect();
        assert_eq!(output, [3e38]);
        assert_eq!(failed.unwrap_err().code(), Code::Internal, "{what}");
    }
    let statistics = client.model_statistics("steep", "").await.unwrap().remove(0);
    assert_eq!((statistics.execution_count, statistics.inference_count), (2, 2));
    assert_eq!(statistics.batch_stats[0].batch_size, 2);
}

/// `value:index:label` of each element.
fn classes(answer: &InferResponse) -> Vec<(f32, usize, String)> {
    let elements = answer.output("probabilities").unwrap().bytes_elements();
    let parse = |element: &[u8]| {
        let text = str::from_utf8(element).unwrap();
        let [value, index, label] = text.split(':').collect::<Vec<_>>().try_into().unwrap();
        (value.parse().unwrap(), index.parse().unwrap(), label.to_owned())
    };
    elements.map(parse).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_are_the_best_scores_with_their_labels() {
    let folder = Folder::new();
    folder.demo("demo", "");
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let rows = &holdout()[..20];
    let scores = probabilities(&client, "demo", 2, rows).await;
    assert!(scores.iter().any(|s| s[0] > s[1]) && scores.iter().any(|s| s[0] < s[1]));
    let ask = |count| {
        let request = InferRequest::new("demo").input("features", matrix(rows));
        client.infer(request.classification("probabilities", count))
    };
    // Asked for more classes than there are, a model gives those there are.
    for (asked, given) in [(1, 1), (2, 2), (99, 2)] {
        let answer = ask(asked).await.unwrap();
        assert_eq!(answer.output("probabilities").unwrap().shape(), [rows.len(), given]);
        let classes = classes(&answer);
        for (scores, best) in scores.iter().zip(classes.chunks(given)) {
            let first = usize::from(scores[1] > scores[0]);
            for ((value, index, label), class) in best.iter().zip([first, 1 - first]) {
                assert_eq!((*value, *index), (scores[class], class));
                assert_eq!(label, ["malignant", "benign"][class]);
            }
        }
    }
    assert_eq!(ask(0).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_any_length_are_answered_and_other_bytes_refused() {
    let folder = Folder::new();
    folder.bert("text/1");
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let ask = async |texts: &[&[u8]]| {
        let texts = tensor::bytes(&[texts.len(), 1], texts).unwrap();
        let answer = client.infer(InferRequest::new("text").input("text", texts));
        patiently("an answer", answer).await
    };
    let longest = Bytes::from(b"yes no ".repeat(262_144 / 7));
    let good: [&[&[u8]]; 4] = [&[b"yes"], &[b""], &[&longest], &[b"no", b"", &longest[..700]]];
    for texts in good {
        let answer = ask(texts).await.unwrap();
        assert_eq!(answer.output("probabilities").unwrap().shape(), [texts.len(), 3]);
    }
    let megabyte = b"yes no ".repeat((1 << 20) / 7);
    let bad: [(&[&[u8]], &str); 3] = [
        (&[&megabyte], "at most 262144 bytes"),
        (&[b"\xff\xfe"], "UTF-8"),
        (&[b"fine", b"cut off \xe2\x82"], "UTF-8"),
    ];
    for (texts, problem) in bad {
        let error = ask(texts).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("input `text`") && error.message().contains(problem), "{error}");
        assert!(ask(&[b"yes"]).await.is_ok());
    }
}
