//! `sconce traffic`: which versions of a model answer which requests.

pub(crate) mod spec;

use crate::control::Control;
use crate::table::{self, plain};
use crate::{Failure, Outcome, block_on};
use sconce_client::control_proto as pb;
use sconce_client::{Code, TrafficClient};
use sconce_traffic::route::{Key, OverrideSpec, RouteSpec, SplitSpec, Sticky};
use serde_json::json;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The most bytes of a file that declares something: more than any may have.
const FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show a model's route, and how its variants do
    Get {
        /// The model's name
        model: String,
    },
    /// Set a model's route: from a file, or what the flags say, the rest staying as it is
    Set(Box<Set>),
    /// Take a model's route away: `champion` answers again, or else the highest version that is ready
    Clear {
        /// The model's name
        model: String,
        /// Why, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
struct Set {
    /// The model's name
    model: String,
    /// Replace the whole route by that in this file, TOML or JSON, as `get --json` prints it; - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["splits", "sticky", "salt", "overrides", "no_sticky"])]
    file: Option<PathBuf>,
    /// A variant and its share, such as champion=90 or new@2=10; all of them, which are 100 percent together
    #[arg(long = "split", value_name = "LABEL[@TARGET]=PERCENT", value_parser = split)]
    splits: Vec<SplitSpec>,
    /// Keep requests with the same value there with the same variant
    #[arg(long, value_name = "metadata:NAME|parameter:NAME", value_parser = key, conflicts_with = "no_sticky")]
    sticky: Option<Key>,
    /// With the same salt, models treat a value alike
    #[arg(long, value_name = "TEXT", conflicts_with = "no_sticky")]
    salt: Option<String>,
    /// Draw each request anew
    #[arg(long)]
    no_sticky: bool,
    /// Send requests with this value there to a variant, such as metadata:x-beta=yes:new; all overrides
    #[arg(long = "override", value_name = "metadata:NAME=VALUE:LABEL", value_parser = one_override)]
    overrides: Vec<OverrideSpec>,
    /// Only if the route has this revision now; 0: only if there is none
    #[arg(long, value_name = "N")]
    expected: Option<u64>,
    /// Why, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = block_on(async {
        match command {
            Command::Get { model } => get(&control, model).await,
            Command::Set(set) => change(&control, *set).await,
            Command::Clear { model, reason } => clear(&control, model, reason).await,
        }
    })?;
    done.map_err(|error| control.explain(error))
}

async fn get(control: &Control, model: String) -> Outcome {
    let route = control.traffic().await?.get_route(pb::GetRouteRequest { model }).await?;
    tell(control, &route)
}

async fn change(control: &Control, set: Set) -> Outcome {
    // Read before the server is asked: a bad file changes nothing.
    let whole = set.file.as_deref().map(read).transpose()?;
    let client = control.traffic().await?;
    let (spec, seen) = match whole {
        Some(spec) => (spec, None),
        None => {
            let present = find(&client, &set.model).await?;
            let seen = present.as_ref().map_or(0, |route| route.revision);
            (amended(spec::of(present.and_then(|route| route.spec).unwrap_or_default())?, &set)?, Some(seen))
        }
    };
    let request = pb::SetRouteRequest {
        model: set.model,
        spec: Some(spec::message(&spec)),
        reason: set.reason,
        expected_revision: set.expected.or(seen),
    };
    tell(control, &client.set_route(request).await?)
}

async fn clear(control: &Control, model: String, reason: String) -> Outcome {
    let request = pb::ClearRouteRequest { model: model.clone(), reason, expected_revision: None };
    let done = control.traffic().await?.clear_route(request).await?;
    if !control.print_json(|| json!({ "model": model, "generation": done.generation }))? {
        say!("{model}: has no route any more")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The route of `model`, if it has one.
pub(crate) async fn find(client: &TrafficClient, model: &str) -> Result<Option<pb::Route>, Failure> {
    match client.get_route(pb::GetRouteRequest { model: model.to_owned() }).await {
        Ok(route) => Ok(Some(route)),
        // So it says of a model that is not there as well: what is set then is refused.
        Err(error) if error.code() == Code::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What there is, with what the flags say in its place.
fn amended(mut spec: RouteSpec, set: &Set) -> Result<RouteSpec, Failure> {
    if set.splits.is_empty() && spec.splits.is_empty() {
        return Err("there is no route: say who answers with --split, or --file".into());
    }
    if !set.splits.is_empty() {
        spec.splits.clone_from(&set.splits);
    }
    if !set.overrides.is_empty() {
        spec.overrides.clone_from(&set.overrides);
    }
    if let Some(key) = set.sticky.clone() {
        let salt = spec.sticky.map(|sticky| sticky.salt).unwrap_or_default();
        spec.sticky = Some(Sticky { salt, key });
    }
    if let Some(salt) = set.salt.clone() {
        let sticky = spec.sticky.as_mut().ok_or("--salt: nothing is sticky: say what is with --sticky")?;
        sticky.salt = salt;
    }
    if set.no_sticky {
        spec.sticky = None;
    }
    Ok(spec)
}

fn tell(control: &Control, route: &pb::Route) -> Outcome {
    let spec = spec::of(route.spec.clone().unwrap_or_default())?;
    let document = || {
        json!({
            "model": route.model,
            "revision": route.revision,
            "generation": route.generation,
            "route": spec,
            "variants": route.variants.iter().map(variant).collect::<Vec<_>>(),
        })
    };
    if control.print_json(document)? {
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}: revision {}", route.model, route.revision)?;
    let rows: Vec<_> = spec.splits.iter().zip(&route.variants).map(|(split, it)| row(split, it)).collect();
    let header = ["variant", "target", "version", "share", "answered", "failed", "p50", "p95", "p99"];
    say!("{}", table::render(&header, &rows).trim_end())?;
    if let Some(sticky) = &spec.sticky {
        say!("  sticky by {}", plain(&place(&sticky.key)))?;
    }
    for one in &spec.overrides {
        say!("  {} = {} → {}", place(&one.key), plain(&one.value), one.variant)?;
    }
    for shadow in &spec.shadows {
        let share = shadow.sample * 100.0;
        say!("  shadow {} ({}) sees {share} %", shadow.variant, target(&shadow.target))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(split: &SplitSpec, variant: &pb::Variant) -> Vec<String> {
    let version = if variant.version == 0 { "highest".to_owned() } else { variant.version.to_string() };
    let ms = |ms: f64| if ms == 0.0 { "–".to_owned() } else { format!("{ms:.1} ms") };
    vec![
        variant.variant.clone(),
        target(&variant.target).to_owned(),
        version,
        format!("{} %", split.percent),
        variant.answered.to_string(),
        variant.failed.to_string(),
        ms(variant.p50_ms),
        ms(variant.p95_ms),
        ms(variant.p99_ms),
    ]
}

fn variant(variant: &pb::Variant) -> serde_json::Value {
    let ms = |ms: f64| (ms > 0.0).then_some(ms);
    json!({
        "id": variant.id,
        "variant": variant.variant,
        "target": variant.target,
        "version": (variant.version != 0).then_some(variant.version),
        "answered": variant.answered,
        "failed": variant.failed,
        "failed_by_code": variant.failed_by_code,
        "p50_ms": ms(variant.p50_ms),
        "p95_ms": ms(variant.p95_ms),
        "p99_ms": ms(variant.p99_ms),
    })
}

fn target(target: &str) -> &str {
    if target.is_empty() { "default" } else { target }
}

fn place(key: &Key) -> String {
    match key {
        Key::Metadata(name) => format!("metadata:{name}"),
        Key::Parameter(name) => format!("parameter:{name}"),
    }
}

fn read(path: &Path) -> Result<RouteSpec, Failure> {
    parse(&read_text(path)?).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// What a file that declares something says; `-` is the standard input.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().lock().take(FILE_BYTES + 1).read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES + 1).read_to_string(&mut text)),
    };
    read.map_err(cannot)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(format!("{}: expected at most {FILE_BYTES} bytes", path.display()).into());
    }
    Ok(text)
}

/// A route as a file declares it: JSON if it begins so, else TOML. What `get --json` prints may be given whole.
fn parse(text: &str) -> Result<RouteSpec, Failure> {
    if !text.trim_start().starts_with('{') {
        return Ok(toml::from_str(text)?);
    }
    let mut value: serde_json::Value = serde_json::from_str(text)?;
    let value = value.get_mut("route").map(serde_json::Value::take).unwrap_or(value);
    Ok(serde_json::from_value(value)?)
}

/// `champion=90`, `new@2=10`.
fn split(text: &str) -> Result<SplitSpec, String> {
    let expected = || "expected LABEL=PERCENT or LABEL@TARGET=PERCENT".to_owned();
    let (name, percent) = text.rsplit_once('=').ok_or_else(expected)?;
    let percent = percent.trim_end_matches('%').parse().map_err(|_| expected())?;
    let (variant, target) = name.split_once('@').unwrap_or((name, name));
    Ok(SplitSpec { variant: variant.to_owned(), id: None, target: target.to_owned(), percent })
}

/// `metadata:x-user-id`, `parameter:user`.
fn key(text: &str) -> Result<Key, String> {
    match text.split_once(':') {
        Some(("metadata", name)) if !name.is_empty() => Ok(Key::Metadata(name.to_owned())),
        Some(("parameter", name)) if !name.is_empty() => Ok(Key::Parameter(name.to_owned())),
        _ => Err("expected metadata:NAME or parameter:NAME".to_owned()),
    }
}

/// `metadata:x-beta=yes:new`.
fn one_override(text: &str) -> Result<OverrideSpec, String> {
    let expected = || "expected metadata:NAME=VALUE:LABEL or parameter:NAME=VALUE:LABEL".to_owned();
    let (place, rest) = text.split_once('=').ok_or_else(expected)?;
    let (value, variant) = rest.rsplit_once(':').ok_or_else(expected)?;
    Ok(OverrideSpec { key: key(place)?, value: value.to_owned(), variant: variant.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_what_a_file_says() {
        let file = parse(
            "splits = [{ variant = 'champion', target = 'champion', percent = 90 }, { variant = 'new', target = '2', percent = 10 }]
             sticky = { salt = 's', key = { metadata = 'x-user-id' } }
             overrides = [{ key = { parameter = 'beta' }, value = 'a=b:c', variant = 'new' }]",
        )
        .unwrap();
        let flags = RouteSpec {
            splits: vec![split("champion=90").unwrap(), split("new@2=10%").unwrap()],
            sticky: Some(Sticky { salt: "s".to_owned(), key: key("metadata:x-user-id").unwrap() }),
            overrides: vec![one_override("parameter:beta=a=b:c:new").unwrap()],
            shadows: Vec::new(),
        };
        assert_eq!(file, flags);
        let printed = json!({ "revision": 3, "route": file });
        assert_eq!(parse(&printed.to_string()).unwrap(), flags);
        assert_eq!(parse(&serde_json::to_string(&file).unwrap()).unwrap(), flags);
        for bad in ["champion", "champion=many", "=", ""] {
            assert!(split(bad).is_err(), "{bad}");
        }
        for bad in ["x-user-id", "metadata:", "header:x"] {
            assert!(key(bad).is_err(), "{bad}");
        }
        assert!(one_override("metadata:x=y").is_err());
    }
}
