use crate::{Failure, Outcome, block_on};
use sconce_client::proto::ModelConfig;
use sconce_client::{Client, DataType, InferRequest, Options, Parameter, tensor};
use sconce_core::json::{from_tensor, to_tensor};
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model's name
    model: String,
    /// An input as NAME=JSON, nested arrays giving the shape: `x=[[1,2],[3,4]]`; NAME=@FILE reads the JSON from a file
    #[arg(long, short, value_name = "NAME=JSON", required_unless_present = "text")]
    input: Vec<String>,
    /// Text for a model that takes `text`; may be given several times
    #[arg(long, short, value_name = "TEXT")]
    text: Vec<String>,
    /// A number or an alias [default: as the model's traffic is routed: `champion`, else the highest version that is ready]
    #[arg(long, default_value = "", hide_default_value = true)]
    version: String,
    /// Give the N best classes of each output instead of its scores
    #[arg(long, value_name = "N")]
    classes: Option<u32>,
    /// Give up after this many milliseconds, connecting and a load of the model included
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// 1 is served first, 8 last, 0 is the default
    #[arg(long, default_value_t = 0)]
    priority: u64,
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDRESS")]
    server: String,
}

pub(crate) fn run(args: Args) -> Outcome {
    let limit = args.deadline_ms.map(Duration::from_millis);
    block_on(async {
        match limit {
            None => ask(args, None).await,
            Some(limit) => {
                let late = |_| format!("no answer within the deadline of {} ms", limit.as_millis());
                tokio::time::timeout(limit, ask(args, Some(Instant::now() + limit))).await.map_err(late)?
            }
        }
    })?
}

/// Asks, and says until when the answer is worth something, so that the server gives up as well.
async fn ask(args: Args, deadline: Option<Instant>) -> Outcome {
    let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let client = Client::connect(&args.server, Options { timeout: left(), ..Options::default() }).await?;
    let mut request = InferRequest::new(&args.model).version(&args.version).priority(args.priority);
    if !args.text.is_empty() {
        request = request.input("text", tensor::bytes(&[args.text.len(), 1], &args.text)?);
    }
    // Only these need to know what the model takes and gives: to say so it may have to be loaded.
    if !args.input.is_empty() || args.classes.is_some() {
        let config = client.model_config(&args.model, &args.version).await?;
        for input in &args.input {
            request = with_input(request, &config, input)?;
        }
        if let Some(classes) = args.classes {
            request = config.output.iter().fold(request, |r, output| r.classification(&output.name, classes));
        }
    }
    if let Some(left) = left() {
        request = request.deadline(left);
    }
    let answer = client.infer(request).await?;
    let outputs: serde_json::Map<_, _> = answer
        .outputs
        .iter()
        .map(|(name, tensor)| {
            let value = json!({ "datatype": tensor.datatype().name(), "shape": tensor.shape(), "data": from_tensor(tensor) });
            (name.clone(), value)
        })
        .collect();
    let mut shown = json!({
        "model": args.model, "version": answer.model_version, "prediction_id": answer.prediction_id(), "outputs": outputs,
    });
    // What is left to people is told as such.
    for name in ["review", "review_cause"] {
        if let Some(Parameter::StringParam(text)) = answer.parameters.get(name) {
            shown[name] = json!(text);
        }
    }
    say!("{}", serde_json::to_string_pretty(&shown)?)?;
    Ok(ExitCode::SUCCESS)
}

/// `request` with an input that is given as `NAME=JSON` or `NAME=@FILE`.
fn with_input(request: InferRequest, config: &ModelConfig, input: &str) -> Result<InferRequest, Failure> {
    let (name, text) = input.split_once('=').ok_or_else(|| format!("expected NAME=JSON, got {input:?}"))?;
    let datatype = input_datatype(config, name)?;
    let text = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(file) => std::fs::read_to_string(file).map_err(|e| format!("cannot read {file}: {e}"))?,
    };
    let value = serde_json::from_str(&text).map_err(|e| format!("input {name}: not JSON: {e}"))?;
    let tensor = to_tensor(datatype, &value).map_err(|e| format!("input {name}: {e}"))?;
    Ok(request.input(name, tensor))
}

/// The datatype of an input, of whatever form.
fn input_datatype(config: &ModelConfig, name: &str) -> Result<DataType, Failure> {
    let first = config.input.iter().find(|input| input.name == name);
    let first = first
        .map(|input| input.data_type().as_str_name().trim_start_matches("TYPE_").replace("STRING", "BYTES"));
    let other = config.parameters.get(&format!("input.{name}"));
    let other = other.and_then(|text| text.string_value.split(' ').next()).map(str::to_owned);
    first.or(other).and_then(|datatype| DataType::from_name(&datatype)).ok_or_else(|| {
        let others = config.parameters.keys().filter_map(|key| key.strip_prefix("input."));
        let known: Vec<_> = config.input.iter().map(|input| input.name.as_str()).chain(others).collect();
        format!("the model has no input {name:?}: expected one of {known:?}").into()
    })
}
