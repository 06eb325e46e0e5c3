use crate::{Failure, Outcome, table};
use sconce_candle::Package;
use sconce_core::{DeviceId, ModelVersion, Step, display_shape};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder of models (NAME/VERSION/ each), or one version's folder
    path: PathBuf,
    /// Where models run that do not say it themselves
    #[arg(long, default_value = "cpu")]
    device: DeviceId,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let is_package = is_package(&args.path)?;
    let (packages, mut problems) = if is_package {
        (vec![(args.path.display().to_string(), args.path.clone())], 0)
    } else {
        let discovery = sconce_candle::discover(&args.path)?;
        discovery.problems.iter().try_for_each(|problem| say!("✗ {problem}"))?;
        let named =
            |found: sconce_candle::Found| (format!("{} version {}", found.name, found.version), found.dir);
        (discovery.found.into_iter().map(named).collect(), discovery.problems.len())
    };
    if packages.is_empty() && problems == 0 {
        return Err(format!(
            "{}: no model here: expected NAME/VERSION/ or a model's files",
            args.path.display()
        )
        .into());
    }
    let mut opened = Vec::new();
    for (name, dir) in packages {
        match check(&name, &dir, args.device)? {
            Ok(package) => opened.push((name, package)),
            Err(found) => problems += found,
        }
    }
    for (name, package) in &opened {
        problems += check_steps(name, package, &opened)?;
    }
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a folder has the files of a model in it.
///
/// # Errors
/// It cannot be listed.
pub(crate) fn is_package(path: &Path) -> Result<bool, Failure> {
    let entries = std::fs::read_dir(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(entries.filter_map(Result::ok).any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name == "model.toml" || name == "config.json" || name.ends_with(".safetensors")
    }))
}

/// Prints what a package is, or what is wrong with it; gives it, or the number of problems.
fn check(name: &str, dir: &Path, device: DeviceId) -> std::io::Result<Result<Package, usize>> {
    let package = match Package::open(dir, device) {
        Ok(package) => package,
        Err(error) => {
            say!("✗ {name}: {} problem(s)", error.problems().len())?;
            error.problems().iter().try_for_each(|problem| say!("    {problem}"))?;
            return Ok(Err(error.problems().len()));
        }
    };
    let settings = &package.settings;
    match (package.ensemble(), package.remote()) {
        (None, None) => {
            say!("✓ {name}: {}, {} on {}", settings.family, settings.precision.name(), settings.device)?
        }
        (None, Some(remote)) => {
            say!("✓ {name}: {} at {}, model `{}`", settings.family, remote.url(), remote.model)?;
        }
        (Some(ensemble), _) => {
            let steps: Vec<&str> = ensemble.steps().iter().map(|step| step.spec.model.as_str()).collect();
            say!("✓ {name}: {} of {}", settings.family, steps.join(", "))?;
        }
    }
    if !settings.description.is_empty() {
        say!("    {}", settings.description)?;
    }
    let tokens = settings.max_batch_tokens.map_or(String::new(), |tokens| format!(", {tokens} tokens"));
    say!("    batches of at most {} rows{tokens}", settings.max_batch_size)?;
    let inputs = package.signature.inputs.iter().map(|spec| {
        let form = if spec.form > 0 { format!("input, form {}", spec.form + 1) } else { "input".to_owned() };
        (if spec.optional { form + " (optional)" } else { form }, spec)
    });
    let outputs = package.signature.outputs.iter().map(|spec| ("output".to_owned(), spec));
    let rows: Vec<_> = inputs
        .chain(outputs)
        .map(|(kind, spec)| {
            let labels = spec.labels.as_ref().map_or(String::new(), |labels| summarize(labels));
            vec![kind, spec.name.clone(), spec.datatype.to_string(), display_shape(&spec.shape), labels]
        })
        .collect();
    say!("{}", table::render(&["", "name", "datatype", "shape", "labels"], &rows).trim_end())?;
    Ok(Ok(package))
}

/// Checks the steps of an ensemble against the models that are here; gives the number of problems.
fn check_steps(name: &str, package: &Package, all: &[(String, Package)]) -> std::io::Result<usize> {
    let Some(ensemble) = package.ensemble() else { return Ok(0) };
    // An alias, or no version, may mean any of them: the one that is the highest stands for it.
    let here = |step: &Step| {
        let (model, version) = (&step.spec.model, &step.spec.version);
        let is_it = |(of, _): &&(String, Package)| match ModelVersion::parse(version) {
            Some(version) => *of == format!("{model} version {version}"),
            None => of.strip_prefix(model.as_str()).is_some_and(|rest| rest.starts_with(" version ")),
        };
        all.iter().rfind(is_it).map(|(_, package)| &package.signature)
    };
    let signatures: Vec<_> = ensemble.steps().iter().map(here).collect();
    for (step, _) in ensemble.steps().iter().zip(&signatures).filter(|(_, found)| found.is_none()) {
        say!("  {name}: step `{}` is not here, and was not checked", step.spec.model)?;
    }
    let Err(problems) = ensemble.check(&signatures) else { return Ok(0) };
    say!("✗ {name}: {} problem(s) with its steps", problems.len())?;
    problems.iter().try_for_each(|problem| say!("    {problem}"))?;
    Ok(problems.len())
}

fn summarize(labels: &[String]) -> String {
    let shown = labels.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
    if labels.len() > 4 { format!("{shown}, … ({})", labels.len()) } else { shown }
}
