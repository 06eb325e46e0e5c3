use crate::serve::{Signals, runtime};
use crate::{Failure, Outcome, table};
use sconce_client::{Client, InferRequest, InferResponse, Options, tensor};
use sconce_server::{Addresses, Server, ServerConfig};
use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of the inference listener
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDRESS")]
    grpc: SocketAddr,
    /// Address of the control listener
    #[arg(long, default_value = "127.0.0.1:8002", value_name = "ADDRESS")]
    admin: SocketAddr,
    /// Address of health and metrics over HTTP
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDRESS")]
    http: SocketAddr,
    /// Exit after the table instead of staying up
    #[arg(long)]
    once: bool,
}

const MODEL: &str = "breast_cancer";

/// The embedded model folder: two versions, trained by `demo/train.py` on data they are not asked about below.
const FILES: [(&str, &[u8]); 4] = [
    ("1/model.toml", include_bytes!("../demo/breast_cancer/1/model.toml")),
    ("1/model.safetensors", include_bytes!("../demo/breast_cancer/1/model.safetensors")),
    ("2/model.toml", include_bytes!("../demo/breast_cancer/2/model.toml")),
    ("2/model.safetensors", include_bytes!("../demo/breast_cancer/2/model.safetensors")),
];
const HOLDOUT: &str = include_str!("../demo/holdout.csv");

/// Rows of held-out data shown one by one.
const SHOWN_ROWS: usize = 8;
/// Requests in flight at once.
const IN_FLIGHT: usize = 32;

/// One held-out row: its features, and what the diagnosis was.
struct Case {
    features: Vec<f32>,
    truth: String,
}

pub(crate) fn run(args: Args) -> Outcome {
    sconce_server::logs::init(sconce_server::logs::Format::Auto, LevelFilter::WARN);
    let folder = tempfile::Builder::new().prefix("sconce-demo-").tempdir()?;
    for (file, bytes) in FILES {
        let path = folder.path().join(MODEL).join(file);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, bytes)?;
    }
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let started = Instant::now();
        let server = start(&args, folder.path()).await?;
        say!(
            "Serving {MODEL} (versions 1 and 2), identity and add_sub: ready after {:.0?}.\n",
            started.elapsed()
        )?;
        show(server.addresses()).await?;
        if !args.once {
            print_next_steps(server.addresses())?;
            signals.next().await;
            say!("stopping")?;
        }
        server.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}

async fn start(args: &Args, models: &Path) -> Result<Server, Failure> {
    let config = ServerConfig {
        grpc: args.grpc,
        admin: args.admin,
        http: args.http,
        models: Some(models.to_owned()),
        builtin: vec!["identity".to_owned(), "add_sub".to_owned()],
        ..ServerConfig::default()
    };
    // Boxed, for it is large, and happens once.
    let server = Box::pin(Server::start(config)).await.map_err(|error| {
        let hint = "another server may have the port: move it with --grpc, --admin or --http 127.0.0.1:0";
        let cause = error.source().map(|cause| format!(" ({cause})")).unwrap_or_default();
        format!("{error}{cause}; {hint}")
    })?;
    server.readiness()?;
    Ok(server)
}

/// Asks both versions about every held-out row, and prints what came back.
async fn show(addresses: Addresses) -> Result<(), Failure> {
    let client = Arc::new(Client::connect(&addresses.grpc.to_string(), Options::default()).await?);
    let cases = Arc::new(holdout()?);
    say!(
        "Asking both about {} held-out biopsies over gRPC, {IN_FLIGHT} requests in flight (the first {SHOWN_ROWS} shown):\n",
        cases.len()
    )?;
    let mut runs = Vec::new();
    for version in ["1", "2"] {
        runs.push((version, ask_all(&client, &cases, version).await?));
    }
    let rows: Vec<_> = cases
        .iter()
        .enumerate()
        .take(SHOWN_ROWS)
        .map(|(i, case)| {
            let mut row = vec![i.to_string(), case.truth.clone()];
            for (_, run) in &runs {
                let (label, score) = &run.answers[i];
                let mark = if *label == case.truth { "✓" } else { "✗" };
                row.push(format!("{mark} {label} {score:.3}"));
            }
            row
        })
        .collect();
    say!("{}", table::render(&["row", "truth", "version 1", "version 2"], &rows))?;

    let mut rows = Vec::new();
    for (version, run) in &runs {
        let right =
            run.answers.iter().zip(cases.iter()).filter(|((label, _), case)| *label == case.truth).count();
        let mut latencies = run.latencies.clone();
        latencies.sort_unstable();
        let percentile = |p: usize| {
            let latency = latencies[(latencies.len() - 1) * p / 100];
            format!("{:.2} ms", latency.as_secs_f64() * 1e3)
        };
        rows.push(vec![
            (*version).to_owned(),
            format!("{right}/{}", cases.len()),
            format!("{:.2} %", 100.0 * right as f64 / cases.len() as f64),
            percentile(50),
            percentile(90),
            percentile(99),
            batch_sizes(&client, version).await?,
        ]);
    }
    say!(
        "{}",
        table::render(&["version", "right", "accuracy", "p50", "p90", "p99", "batches (rows×count)"], &rows)
    )?;
    Ok(())
}

struct Run {
    /// Label and score of each case, in order.
    answers: Vec<(String, f32)>,
    latencies: Vec<Duration>,
}

async fn ask_all(
    client: &Arc<Client>,
    cases: &Arc<Vec<Case>>,
    version: &'static str,
) -> Result<Run, Failure> {
    let mut tasks = JoinSet::new();
    for lane in 0..IN_FLIGHT {
        let (client, cases) = (Arc::clone(client), Arc::clone(cases));
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for (i, case) in cases.iter().enumerate().skip(lane).step_by(IN_FLIGHT) {
                let features = tensor::fp32(&[1, case.features.len()], &case.features)?;
                let request = InferRequest::new(MODEL).version(version).input("features", features);
                let request = request.classification("probabilities", 1);
                let sent = Instant::now();
                let answer = client.infer(request).await?;
                answers.push((i, sent.elapsed(), best_class(&answer).ok_or("an answer without a class")?));
            }
            Ok::<_, Failure>(answers)
        });
    }
    let mut answers = BTreeMap::new();
    let mut latencies = Vec::new();
    while let Some(lane) = tasks.join_next().await {
        for (i, latency, answer) in lane?? {
            latencies.push(latency);
            answers.insert(i, answer);
        }
    }
    Ok(Run { answers: answers.into_values().collect(), latencies })
}

/// The class in `value:index:label`, and its score.
fn best_class(answer: &InferResponse) -> Option<(String, f32)> {
    let best = answer.output("probabilities")?.bytes_elements().next()?;
    let mut parts = std::str::from_utf8(best).ok()?.splitn(3, ':');
    let score = parts.next()?.parse().ok()?;
    Some((parts.nth(1)?.to_owned(), score))
}

async fn batch_sizes(client: &Client, version: &str) -> Result<String, Failure> {
    let statistics = client.model_statistics(MODEL, version).await?;
    let sizes = statistics.into_iter().flat_map(|model| model.batch_stats);
    let sizes = sizes.map(|size| {
        let count = size.compute_infer.map_or(0, |total| total.count);
        format!("{}×{count}", size.batch_size)
    });
    Ok(sizes.collect::<Vec<_>>().join(" "))
}

fn holdout() -> Result<Vec<Case>, Failure> {
    HOLDOUT
        .lines()
        .skip(1)
        .map(|line| {
            let (features, truth) = line.rsplit_once(',').ok_or("a held-out row without a diagnosis")?;
            let features = features.split(',').map(str::parse).collect::<Result<_, _>>()?;
            Ok(Case { features, truth: truth.to_owned() })
        })
        .collect()
}

fn print_next_steps(Addresses { grpc, admin, http }: Addresses) -> std::io::Result<()> {
    say!("Still serving. Try, in another terminal:

  sconce models --server {grpc}
  sconce models {MODEL} --server {grpc}
  sconce infer add_sub --server {grpc} -i 'INPUT0=[[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]]' -i 'INPUT1=[[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]]'
  curl http://{http}/metrics

  grpcurl -plaintext -d '{{\"name\": \"{MODEL}\"}}' {grpc} inference.GRPCInferenceService/ModelMetadata
  grpcurl -plaintext -d '{{\"model_name\": \"identity\", \"inputs\": [{{\"name\": \"INPUT0\", \"datatype\": \"FP32\", \"shape\": [1, 3], \"contents\": {{\"fp32_contents\": [1, 2, 3]}}}}]}}' {grpc} inference.GRPCInferenceService/ModelInfer

  # pip install 'tritonclient[grpc]'
  import numpy as np, tritonclient.grpc as triton
  client = triton.InferenceServerClient(\"{grpc}\")
  x = triton.InferInput(\"features\", [1, 30], \"FP32\")
  x.set_data_from_numpy(np.ones((1, 30), np.float32))
  print(client.infer(\"{MODEL}\", [x]).as_numpy(\"probabilities\"))

Control calls (load, unload, log settings) are on {admin}. Stop with Ctrl-C.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_data_is_whole() {
        let cases = holdout().unwrap();
        assert_eq!(cases.len(), 171);
        assert!(
            cases
                .iter()
                .all(|case| case.features.len() == 30 && ["malignant", "benign"].contains(&&*case.truth))
        );
    }
}
