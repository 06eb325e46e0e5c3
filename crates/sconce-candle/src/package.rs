use crate::arch::{self, Plan, Remote};
use crate::files::Folder;
use crate::keys::Keys;
use crate::{Family, ModelSettings};
use sconce_core::{DeviceId, Ensemble, ErrorCode, LoadedModel, ModelName, Signature, Tensor, json};
use serde_json::{Map, Value};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More problems than this are counted, not kept.
const MAX_PROBLEMS: usize = 50;
/// The most requests of a warm-up.
const MAX_WARMUP: usize = 64;

/// Problems of a package, collected so that all are reported at once.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<String>,
    count: usize,
}

impl Problems {
    pub(crate) fn push(&mut self, problem: impl Into<String>) {
        self.count += 1;
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem.into());
        }
    }

    /// The value of `result`; its error becomes a problem.
    pub(crate) fn keep<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.push(problem)).ok()
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn into_error(mut self) -> PackageError {
        let more = self.count - self.list.len();
        if more > 0 {
            self.list.push(format!("and {more} more problems"));
        }
        PackageError { problems: self.list }
    }
}

/// Why a package cannot be served: every problem found, one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PackageError {
    problems: Vec<String>,
}

impl PackageError {
    /// The problems, each naming the file it is in.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Always [`ErrorCode::FailedPrecondition`]: the package must change before it can be served.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::FailedPrecondition
    }

    pub(crate) fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for PackageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

/// A package that was checked whole: everything short of reading its weights.
#[derive(Debug)]
pub struct Package {
    /// Its folder.
    pub dir: PathBuf,
    /// How it is served.
    pub settings: ModelSettings,
    /// What it takes and gives.
    pub signature: Signature,
    /// Requests that `model.toml` has it answer before it is served (`[[warmup]]`).
    pub warmup: Vec<Vec<(String, Tensor)>>,
    /// Bytes of its weights' files.
    pub weights_bytes: u64,
    plan: Plan,
}

impl Package {
    /// Opens and checks the package in `dir`: `model.toml`, `config.json`, the tokenizer, and the names,
    /// shapes and datatypes of its weights. It runs on `default_device` unless its `model.toml` names
    /// another.
    ///
    /// # Errors
    /// Every problem found.
    pub fn open(dir: &Path, default_device: DeviceId) -> Result<Self, PackageError> {
        let folder = Folder::open(dir).map_err(PackageError::one)?;
        let mut problems = Problems::default();
        folder.check(&mut problems);
        let opened = open_plan(&folder, default_device, &mut problems);
        match opened {
            Some(opened) if problems.count() == 0 => {
                let Opened { settings, signature, warmup, plan } = opened;
                let weights_bytes = folder.weights_bytes();
                Ok(Self { dir: dir.to_owned(), settings, signature, warmup, weights_bytes, plan })
            }
            _ => Err(problems.into_error()),
        }
    }

    /// The steps, if it is an ensemble.
    pub fn ensemble(&self) -> Option<&Ensemble> {
        match &self.plan {
            Plan::Ensemble(ensemble) => Some(ensemble),
            _ => None,
        }
    }

    /// Where it is, if another server answers it.
    pub fn remote(&self) -> Option<&Remote> {
        match &self.plan {
            Plan::Remote(remote) => Some(remote),
            _ => None,
        }
    }

    /// Reads the weights and makes the model. Takes as long as the weights are large: never on a serving
    /// thread.
    ///
    /// # Errors
    /// The device cannot be opened, or a weights file cannot be read as it was when the package was opened. An ensemble and a
    /// remote are no models by themselves.
    pub fn load(self) -> Result<Arc<dyn LoadedModel>, PackageError> {
        arch::load(self.plan, &self.settings, self.signature).map_err(PackageError::one)
    }
}

struct Opened {
    settings: ModelSettings,
    signature: Signature,
    warmup: Vec<Vec<(String, Tensor)>>,
    plan: Plan,
}

fn open_plan(folder: &Folder, default_device: DeviceId, problems: &mut Problems) -> Option<Opened> {
    let mut keys = read_toml(folder, problems)?;
    let family = match keys.take_word("family", &Family::WORDS, problems) {
        Some(family) => family,
        None => infer_family(folder, problems)?,
    };
    let settings = ModelSettings::read(family, default_device, &mut keys, problems);
    // The steps of an ensemble warm up themselves, and a remote is warm or not.
    let warmup = match family {
        Family::Ensemble | Family::Remote => Vec::new(),
        _ => keys.take::<Vec<Map<String, Value>>>("warmup", problems).unwrap_or_default(),
    };
    let opened = arch::open(folder, &settings, &mut keys, problems);
    keys.finish(problems);
    let (signature, plan) = opened?;
    for problem in settings.data_policy.problems(&signature) {
        problems.push(format!("model.toml: data_policy: {problem}"));
    }
    if warmup.len() > MAX_WARMUP {
        problems.push(format!(
            "model.toml: `warmup`: expected at most {MAX_WARMUP} requests, got {}",
            warmup.len()
        ));
    }
    let request = |(index, inputs): (usize, &Map<String, Value>)| {
        let request = json::to_request(&signature, inputs);
        problems.keep(request.map_err(|error| format!("model.toml: `warmup[{index}]`: {error}")))
    };
    let warmup = warmup.iter().take(MAX_WARMUP).enumerate().filter_map(request).collect();
    Some(Opened { settings, signature, warmup, plan })
}

/// The models of the steps of the package in `dir`, if it is an ensemble: for whoever loads them first. It is not checked; what
/// is wrong with it is found when it is opened.
pub fn steps_of(dir: &Path) -> Vec<ModelName> {
    let read = || {
        let content = Folder::open(dir).ok()?.read("model.toml").ok()??;
        let table: toml::Table = toml::from_str(str::from_utf8(&content).ok()?).ok()?;
        let is_ensemble = table.get("family")?.as_str()? == Family::Ensemble.name();
        is_ensemble.then_some(table)
    };
    let table = read().unwrap_or_default();
    let steps = table.get("steps").and_then(toml::Value::as_array);
    let model = |step: &toml::Value| ModelName::new(step.get("model")?.as_str()?).ok();
    steps.into_iter().flatten().take(Ensemble::MAX_STEPS).filter_map(model).collect()
}

fn read_toml(folder: &Folder, problems: &mut Problems) -> Option<Keys> {
    let content = problems.keep(folder.read("model.toml"))?.unwrap_or_default();
    let parsed = String::from_utf8(content)
        .map_err(|_| "model.toml: not UTF-8".to_owned())
        .and_then(|text| toml::from_str(&text).map_err(|e| format!("model.toml: not valid TOML: {e}")));
    problems.keep(parsed).map(|table| Keys::new(table, "model.toml"))
}

fn infer_family(folder: &Folder, problems: &mut Problems) -> Option<Family> {
    let before = problems.count();
    if let Some(config) = folder.json("config.json", problems) {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let is_vision = arch::VISION_MODEL_TYPES.contains(&model_type);
        return Some(if is_vision { Family::Vision } else { Family::Bert });
    }
    if problems.count() > before {
        return None;
    }
    if folder.safetensors().is_empty() {
        problems.push(
            "no model found: expected a model.toml with a `family`, a config.json (BERT or vision \
             family), or a model.safetensors with dense layers; ONNX models are not served",
        );
        return None;
    }
    Some(Family::Tabular)
}
