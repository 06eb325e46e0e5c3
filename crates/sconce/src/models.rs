use crate::{Failure, Outcome, block_on, table};
use sconce_client::{Client, Options};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show this model's signature, settings and counters
    name: Option<String>,
    /// The version to show; the one that answers by default when not given
    #[arg(long, default_value = "")]
    version: String,
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDRESS")]
    server: String,
}

pub(crate) fn run(args: Args) -> Outcome {
    block_on(async {
        let client = Client::connect(&args.server, Options::default()).await?;
        match &args.name {
            None => list(&client).await?,
            Some(name) => show(&client, name, &args.version).await?,
        }
        Ok(ExitCode::SUCCESS)
    })?
}

async fn list(client: &Client) -> Result<(), Failure> {
    let index = client.repository_index(false).await?;
    if index.is_empty() {
        say!("the server knows no model")?;
        return Ok(());
    }
    let rows: Vec<_> =
        index.into_iter().map(|model| vec![model.name, model.version, model.state, model.reason]).collect();
    say!("{}", table::render(&["model", "version", "state", "reason"], &rows).trim_end())?;
    Ok(())
}

async fn show(client: &Client, name: &str, version: &str) -> Result<(), Failure> {
    let metadata = client.model_metadata(name, version).await?;
    let config = client.model_config(name, version).await?;
    let statistics = client.model_statistics(name, version).await?;
    say!("{name}: {}, versions {}", metadata.platform, metadata.versions.join(", "))?;
    for (key, value) in &config.parameters {
        say!("  {key}: {}", value.string_value)?;
    }
    say!("  max_batch_size: {}", config.max_batch_size)?;
    let inputs = config.input.iter().map(|input| {
        let kind = if input.optional { "input (optional)" } else { "input" };
        (kind, &input.name, input.data_type(), &input.dims)
    });
    let outputs =
        config.output.iter().map(|output| ("output", &output.name, output.data_type(), &output.dims));
    let rows: Vec<_> = inputs
        .chain(outputs)
        .map(|(kind, name, datatype, dims)| {
            let datatype = datatype.as_str_name().trim_start_matches("TYPE_").replace("STRING", "BYTES");
            let shape: Vec<String> = [-1].iter().chain(dims).map(ToString::to_string).collect();
            vec![kind.to_owned(), name.clone(), datatype, format!("[{}]", shape.join(", "))]
        })
        .collect();
    say!("{}", table::render(&["", "name", "datatype", "shape"], &rows).trim_end())?;
    for stats in statistics {
        let answered = stats.inference_stats.unwrap_or_default();
        let (success, fail) = (answered.success.unwrap_or_default(), answered.fail.unwrap_or_default());
        say!(
            "  version {}: {} requests answered, {} failed, {} rows in {} batches",
            stats.version,
            success.count,
            fail.count,
            stats.inference_count,
            stats.execution_count
        )?;
    }
    Ok(())
}
