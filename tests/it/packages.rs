//! Packages that cannot be served: refused with a reason that names the file, and nobody else notices.

use crate::support::{Folder, Running, matrix, patiently, raw_safetensors};
use sconce_client::{Client, Code, InferRequest};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

const WEIGHTS: &str = "model.safetensors";

async fn assert_good_is_served(client: &Client) {
    let request = InferRequest::new("good").input("features", matrix(&[[3.0]]));
    let answer = patiently("an answer", client.infer(request)).await.unwrap();
    assert_eq!(answer.output("prediction").unwrap().f32_values().collect::<Vec<_>>(), [6.0]);
}

/// A safetensors header of one tensor.
fn header(shape: &str, end: u64) -> String {
    format!(r#"{{"layers.0.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
}

/// Writes something that looks like a model, and breaks it.
type Breaker = fn(&Folder, &str);

/// What is wrong, how it comes about, and what the message must say.
const BROKEN: [(&str, Breaker, &[&str]); 15] = [
    ("an empty folder", |folder, package| drop(folder.package(package)), &["no model found", "model.toml"]),
    (
        "weights cut off in their data",
        |folder, package| {
            folder.linear(package, 1, &[1.0, 2.0]);
            shorten(folder, package, 3);
        },
        &[WEIGHTS, "truncated"],
    ),
    (
        "weights cut off in their header",
        |folder, package| {
            folder.linear(package, 1, &[1.0, 2.0]);
            shorten(folder, package, 20);
        },
        &[WEIGHTS, "header claims"],
    ),
    (
        "weights cut off before their header",
        |folder, package| folder.file(package, WEIGHTS, [0; 7]),
        &[WEIGHTS, "truncated"],
    ),
    (
        "a header that claims 2^60 bytes",
        |folder, package| folder.file(package, WEIGHTS, (1u64 << 60).to_le_bytes()),
        &[WEIGHTS, "header claims 1152921504606846976 bytes"],
    ),
    (
        "a tensor that claims 2^60 bytes",
        |folder, package| {
            let header = header("[1,288230376151711744]", 1 << 60);
            folder.file(package, WEIGHTS, raw_safetensors(&header, &[0; 4]));
        },
        &[WEIGHTS, "1152921504606846976 bytes of tensors"],
    ),
    (
        "a tensor with more elements than can be counted",
        |folder, package| {
            let header = header("[4294967296,4294967296,4294967296]", 4);
            folder.file(package, WEIGHTS, raw_safetensors(&header, &[0; 4]));
        },
        &[WEIGHTS, "header"],
    ),
    (
        "a header that is no JSON",
        |folder, package| folder.file(package, WEIGHTS, raw_safetensors("{", &[])),
        &[WEIGHTS, "header is not valid"],
    ),
    (
        "a configuration that disagrees with the weights",
        |folder, package| {
            folder.bert(package);
            edit(folder, package, "config.json", "\"intermediate_size\": 28", "\"intermediate_size\": 32");
        },
        &["weights: tensor", "intermediate.dense.weight", "expected shape [32, 16], got [28, 16]"],
    ),
    (
        "a configuration with more layers than there are weights",
        |folder, package| {
            folder.bert(package);
            edit(folder, package, "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
        },
        &["weights: tensor", "encoder.layer.2", "is missing"],
    ),
    (
        "a configuration that is no JSON",
        |folder, package| {
            folder.bert(package);
            folder.file(package, "config.json", "{");
        },
        &["config.json", "not valid JSON"],
    ),
    (
        "a setting that does not exist",
        |folder, package| folder.identity(package, "colour = 'red'"),
        &["model.toml", "colour"],
    ),
    (
        "a link that leads out of the package",
        |folder, package| {
            symlink("/etc/passwd", folder.package(package).join(WEIGHTS)).unwrap();
        },
        &[WEIGHTS, "link"],
    ),
    (
        "a link to another package's weights",
        |folder, package| {
            symlink("../../good/1/model.safetensors", folder.package(package).join(WEIGHTS)).unwrap();
        },
        &[WEIGHTS, "link"],
    ),
    (
        "a socket in place of the weights",
        |folder, package| drop(UnixListener::bind(folder.package(package).join(WEIGHTS)).unwrap()),
        &[WEIGHTS, "not a regular file"],
    ),
];

/// Takes `bytes` off the end of a package's weights.
fn shorten(folder: &Folder, package: &str, bytes: usize) {
    let path = folder.package(package).join(WEIGHTS);
    let content = fs::read(&path).unwrap();
    fs::write(path, &content[..content.len() - bytes]).unwrap();
}

fn edit(folder: &Folder, package: &str, file: &str, from: &str, to: &str) {
    let path = folder.package(package).join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_cannot_be_served_is_refused_by_name_and_nothing_else_is_disturbed() {
    let folder = Folder::new();
    folder.linear("good/1", 1, &[2.0]);
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    let mut problems = Vec::new();
    for (number, (what, breaks, message)) in BROKEN.iter().enumerate() {
        let name = format!("broken{number}");
        breaks(&folder, &format!("{name}/1"));
        let error = patiently(what, admin.repository_load(&name)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{what}: {error}");
        if !message.iter().all(|part| error.message().contains(part)) {
            problems.push(format!("{what}: {error}: expected {message:?}"));
        }
        assert!(
            !error.message().contains(folder.path().to_str().unwrap()),
            "{what}: tells of our paths: {error}"
        );

        let index = client.repository_index(false).await.unwrap();
        let entry = index.iter().find(|entry| entry.name == name).unwrap();
        assert_eq!((&*entry.state, &*entry.reason), ("UNAVAILABLE", error.message()), "{what}");
        let request = InferRequest::new(&name).input("features", matrix(&[[1.0]]));
        assert_eq!(client.infer(request).await.unwrap_err().code(), Code::Unavailable, "{what}");
        assert_good_is_served(&client).await;
    }
    assert!(problems.is_empty(), "{problems:#?}");

    // Reloading the good one among them works, and so does mending one of them.
    admin.repository_load("good").await.unwrap();
    assert_good_is_served(&client).await;
    folder.linear("broken0/1", 1, &[1.0]);
    admin.repository_load("broken0").await.unwrap();
    assert!(client.model_ready("broken0", "1").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_lead_out_of_the_folder_of_models_are_no_models() {
    let (folder, outside) = (Folder::new(), Folder::new());
    folder.linear("good/1", 1, &[2.0]);
    outside.linear("secret/1", 1, &[7.0]);
    symlink(outside.path().join("secret"), folder.path().join("linked")).unwrap();
    symlink(outside.path().join("secret/1"), folder.path().join("good/9")).unwrap();
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    let error = admin.repository_load("linked").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    admin.repository_load("good").await.unwrap();
    let versions = client.model_metadata("good", "").await.unwrap().versions;
    assert_eq!(versions, ["1"]);
    assert_good_is_served(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_are_refused() {
    let folder = Folder::new();
    folder.linear("good/1", 1, &[2.0]);
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    for name in ["../good", "good/1", "/etc", ".", "..", "good\0", &"g".repeat(10_000)] {
        let error = admin.repository_load(name).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name:?}: {error}");
        let error = admin.repository_unload(name).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name:?}: {error}");
    }
    assert_good_is_served(&client).await;
}
