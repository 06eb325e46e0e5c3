//! `sconce review`: predictions that a model leaves to people.

use crate::control::Control;
use crate::table::plain;
use crate::{Outcome, block_on, table, text};
use sconce_client::control_proto as pb;
use sconce_client::control_proto::outcome::Value;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// Characters of a tensor's elements that are shown.
const SHOWN: usize = 160;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List what waits, the oldest first
    List {
        /// The model's name; all models when not given
        model: Option<String>,
    },
    /// Take the oldest that nobody else has, with what the model's data_policy keeps of them
    Claim {
        /// The model's name
        model: String,
        /// Most to take
        #[arg(long, value_name = "N", default_value_t = 1)]
        count: u32,
        /// How long nobody else gets them: such as 90s, 10m or 2h
        #[arg(long, value_name = "TIME", value_parser = text::duration, default_value = "10m")]
        lease: Duration,
    },
    /// Say what would have been right: it is recorded as feedback, and leaves the queue
    Answer(Answered),
    /// Give one back, for somebody else
    Skip {
        /// The model's name
        model: String,
        /// The answer's prediction_id
        prediction_id: String,
    },
    /// Print what happens to the queue, until interrupted
    Watch {
        /// The model's name; all models when not given
        model: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("value").required(true)))]
struct Answered {
    /// The model's name
    model: String,
    /// The answer's prediction_id
    prediction_id: String,
    /// What would have been right
    #[arg(long, value_name = "TEXT", group = "value")]
    label: Option<String>,
    /// The right number; needs --metric
    #[arg(long, value_name = "NUMBER", group = "value", requires = "metric", allow_negative_numbers = true)]
    number: Option<f64>,
    /// What the number is
    #[arg(long, value_name = "NAME", requires = "number")]
    metric: Option<String>,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = block_on(async {
        match command {
            Command::List { model } => list(&control, model.unwrap_or_default()).await,
            Command::Claim { model, count, lease } => claim(&control, model, count, lease).await,
            Command::Answer(answered) => answer(&control, answered).await,
            Command::Skip { model, prediction_id } => skip(&control, model, prediction_id).await,
            Command::Watch { model } => watch(&control, model.unwrap_or_default()).await,
        }
    })?;
    control.end(done)
}

async fn list(control: &Control, model: String) -> Outcome {
    let client = control.reviews().await?;
    let mut request = pb::ListReviewsRequest { model, page_size: 0, page_token: String::new() };
    loop {
        let page = client.list(request.clone()).await?;
        if control.json {
            page.items.iter().map(document).try_for_each(|document| say!("{document}"))?;
        } else if !page.items.is_empty() {
            let header = ["model", "prediction", "time (UTC)", "version", "why", "with"];
            let rows: Vec<_> = page.items.iter().map(row).collect();
            say!("{}", table::render(&header, &rows).trim_end())?;
        }
        if page.next_page_token.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        request.page_token = page.next_page_token;
    }
}

async fn claim(control: &Control, model: String, count: u32, lease: Duration) -> Outcome {
    let lease_seconds = u32::try_from(lease.as_secs().max(1)).unwrap_or(u32::MAX);
    let request = pb::ClaimReviewsRequest { model: model.clone(), count, lease_seconds };
    let claimed = control.reviews().await?.claim(request).await?;
    if control.json {
        claimed.items.iter().map(document).try_for_each(|document| say!("{document}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if claimed.items.is_empty() {
        say!("{model}: nothing waits that nobody has")?;
    }
    for item in &claimed.items {
        let until = text::time(item.claimed_until_ms);
        say!(
            "{} of {} version {}: {}; yours until {until}",
            item.prediction_id,
            item.model,
            item.version,
            why(item)
        )?;
        let kept = |what: &'static str, all: &[pb::ReviewTensor]| -> Vec<Vec<String>> {
            let row = |it: &pb::ReviewTensor| {
                vec![
                    what.to_owned(),
                    plain(&it.name).to_string(),
                    it.datatype.clone(),
                    format!("{:?}", it.shape),
                    elements(it),
                ]
            };
            all.iter().map(row).collect()
        };
        let rows = [kept("input", &item.inputs), kept("output", &item.outputs)].concat();
        if !rows.is_empty() {
            say!("{}", table::render(&["", "name", "datatype", "shape", "elements"], &rows).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn answer(control: &Control, answered: Answered) -> Outcome {
    let Answered { model, prediction_id, label, number, metric } = answered;
    let value = label.map(Value::Label).or(number.map(Value::Number));
    let outcome = pb::Outcome {
        prediction_id: prediction_id.clone(),
        metric: metric.unwrap_or_default(),
        value,
        second: None,
        at_ms: 0,
    };
    let request = pb::AnswerReviewsRequest { model: model.clone(), outcomes: vec![outcome] };
    let done = control.reviews().await?.answer(request).await?;
    if !control.print_json(|| json!({ "answered": done.answered }))? {
        say!("{model}: {prediction_id} is answered, and the answer recorded as feedback")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn skip(control: &Control, model: String, prediction_id: String) -> Outcome {
    let request = pb::SkipReviewRequest { model: model.clone(), prediction_id: prediction_id.clone() };
    control.reviews().await?.skip(request).await?;
    if !control.print_json(|| json!({ "skipped": prediction_id }))? {
        say!("{model}: {prediction_id} is for somebody else now")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn watch(control: &Control, model: String) -> Outcome {
    let mut events = control.reviews().await?.watch(pb::WatchReviewsRequest { model }).await?;
    while let Some(event) = events.next().await? {
        let pb::ReviewEvent { what, model, prediction_id, by, waiting } = event;
        if control.json {
            let given = |text: String| (!text.is_empty()).then_some(text);
            say!(
                "{}",
                json!({
                    "what": what,
                    "model": given(model),
                    "prediction_id": given(prediction_id),
                    "by": given(by),
                    "waiting": waiting,
                })
            )?;
        } else if what == "missed" {
            say!("more happened than could be told")?;
        } else {
            let by = if by.is_empty() { by } else { format!(" by {}", plain(&by)) };
            say!("{model}: {prediction_id} {what}{by}; {waiting} wait")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(item: &pb::ReviewItem) -> Vec<String> {
    let holder = match item.claimed_by.as_str() {
        "" => String::new(),
        by => format!("{} until {}", plain(by), text::time(item.claimed_until_ms)),
    };
    vec![
        item.model.clone(),
        item.prediction_id.clone(),
        text::time(item.at_ms),
        item.version.to_string(),
        why(item),
        holder,
    ]
}

fn why(item: &pb::ReviewItem) -> String {
    let numbers = match (item.got, item.bound) {
        (Some(got), Some(bound)) => format!(" {got:.4}, asked for {bound}"),
        _ => String::new(),
    };
    format!("{} ({}{numbers})", item.disposition, item.cause)
}

fn elements(tensor: &pb::ReviewTensor) -> String {
    if tensor.data_json.is_empty() {
        return "not kept: too large".to_owned();
    }
    let text = plain(&tensor.data_json).to_string();
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn document(item: &pb::ReviewItem) -> serde_json::Value {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let tensors = |all: &[pb::ReviewTensor]| {
        let one = |tensor: &pb::ReviewTensor| {
            let data = serde_json::from_str::<serde_json::Value>(&tensor.data_json).ok();
            json!({ "name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": data })
        };
        all.iter().map(one).collect::<Vec<_>>()
    };
    json!({
        "model": item.model,
        "prediction_id": item.prediction_id,
        "version": item.version,
        "variant": given(&item.variant),
        "at_ms": item.at_ms,
        "expires_ms": item.expires_ms,
        "disposition": item.disposition,
        "cause": item.cause,
        "got": item.got,
        "bound": item.bound,
        "claimed_by": given(&item.claimed_by),
        "claimed_until_ms": (item.claimed_until_ms > 0).then_some(item.claimed_until_ms),
        "inputs": tensors(&item.inputs),
        "outputs": tensors(&item.outputs),
    })
}
