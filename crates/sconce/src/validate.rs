use crate::{Failure, Outcome, table};
use sconce_candle::Package;
use sconce_core::{DeviceId, display_shape};
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
    for (name, dir) in packages {
        problems += check(&name, &dir, args.device)?;
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

/// Prints what a package is, or what is wrong with it; gives the number of problems.
fn check(name: &str, dir: &Path, device: DeviceId) -> std::io::Result<usize> {
    let package = match Package::open(dir, device) {
        Ok(package) => package,
        Err(error) => {
            say!("✗ {name}: {} problem(s)", error.problems().len())?;
            error.problems().iter().try_for_each(|problem| say!("    {problem}"))?;
            return Ok(error.problems().len());
        }
    };
    let settings = &package.settings;
    say!("✓ {name}: {}, {} on {}", settings.family, settings.precision.name(), settings.device)?;
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
    Ok(0)
}

fn summarize(labels: &[String]) -> String {
    let shown = labels.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
    if labels.len() > 4 { format!("{shown}, … ({})", labels.len()) } else { shown }
}
