//! What the `config.json` files of all architectures have in common.

use crate::{ModelSettings, Problems};
use sconce_kernels::Activation;
use serde_json::Value;
use std::sync::Arc;

/// A bound far beyond any published model: it keeps arithmetic and lists small, the weights' shapes do the rest.
pub(crate) const MAX_SIZE: u64 = 1 << 24;
/// Likewise for what a model has one after another.
pub(crate) const MAX_LAYERS: u64 = 1024;

/// The fields of a JSON file, read one by one so that every problem is reported. What is wrong comes as some valid value.
pub(crate) struct Fields<'a> {
    /// The file's name, for messages.
    pub(crate) file: &'static str,
    pub(crate) json: &'a Value,
    pub(crate) problems: &'a mut Problems,
}

impl Fields<'_> {
    /// The value of `key`, unless that is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// Reports what is wrong with `key`.
    pub(crate) fn wrong(&mut self, key: &str, expected: &str) {
        let got = self.json.get(key).map_or("nothing".to_owned(), short);
        self.problems.push(format!("{}: `{key}`: expected {expected}, got {got}", self.file));
    }

    /// An integer from `least` to `most`; required if there is no default.
    pub(crate) fn size(&mut self, key: &str, least: u64, most: u64, default: Option<u64>) -> usize {
        let value = match (self.get(key), default) {
            (None, Some(default)) => return default as usize,
            (value, _) => value,
        };
        match value.and_then(Value::as_u64).filter(|size| (least..=most).contains(size)) {
            Some(size) => size as usize,
            None => {
                self.wrong(key, &format!("an integer {least} to {most}"));
                1
            }
        }
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.get(key).map(Value::as_bool) {
            None => default,
            Some(Some(flag)) => flag,
            Some(None) => {
                self.wrong(key, "true or false");
                default
            }
        }
    }

    /// The activation between a transformer's two dense layers.
    pub(crate) fn activation(&mut self, key: &str) -> Activation {
        match self.json.get(key).map_or(Some("gelu"), Value::as_str) {
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            _ => {
                self.wrong(key, "gelu, gelu_new, gelu_pytorch_tanh or relu");
                Activation::Gelu
            }
        }
    }

    /// What keeps a layer norm from dividing by zero.
    pub(crate) fn epsilon(&mut self) -> f32 {
        let epsilon = self.json.get("layer_norm_eps").map_or(Some(1e-12), Value::as_f64);
        match epsilon.filter(|epsilon| (0.0..1.0).contains(epsilon)) {
            Some(epsilon) => epsilon as f32,
            None => {
                self.wrong("layer_norm_eps", "0 to 1");
                0.0
            }
        }
    }

    /// Reports a hidden size that `heads` do not divide.
    pub(crate) fn check_heads(&mut self, hidden: usize, heads: usize) {
        if heads == 0 || !hidden.is_multiple_of(heads) {
            self.problems.push(format!(
                "{}: expected a hidden size that {heads} heads divide, got {hidden}",
                self.file
            ));
        }
    }

    /// Whether classes do not exclude each other.
    pub(crate) fn multi_label(&mut self) -> bool {
        match self.get("problem_type").map(Value::as_str) {
            None | Some(Some("single_label_classification")) => false,
            Some(Some("multi_label_classification")) => true,
            Some(_) => {
                self.wrong("problem_type", "single_label_classification or multi_label_classification");
                false
            }
        }
    }

    /// The classes' names, in order, if `id2label` gives them.
    pub(crate) fn labels(&mut self) -> Option<Vec<String>> {
        let map = self.json.get("id2label")?.as_object()?;
        let mut labels: Vec<(usize, String)> = Vec::with_capacity(map.len());
        for (id, label) in map {
            match (id.parse(), label.as_str()) {
                (Ok(id), Some(label)) => labels.push((id, label.to_owned())),
                _ => {
                    let got = sconce_core::abbreviate(id);
                    self.problems
                        .push(format!("{}: `id2label`: expected numbers and words, got {got:?}", self.file));
                    return None;
                }
            }
        }
        labels.sort();
        if labels.iter().enumerate().any(|(place, (id, _))| place != *id) {
            let expected = "expected the classes 0, 1, 2 and so on, each once";
            self.problems.push(format!("{}: `id2label`: {expected}", self.file));
            return None;
        }
        Some(labels.into_iter().map(|(_, label)| label).collect())
    }
}

/// The names of `classes` classes: as `model.toml` gives them, or else `config.json`, or else `LABEL_0` and so on.
pub(crate) fn class_names(
    settings: &ModelSettings,
    configured: Option<&Vec<String>>,
    classes: usize,
    problems: &mut Problems,
) -> Arc<[String]> {
    let (labels, place) = match (&settings.labels, configured) {
        (Some(labels), _) => (labels.clone(), "model.toml: `labels`"),
        (None, Some(labels)) => (labels.clone(), "config.json: `id2label`"),
        (None, None) => ((0..classes).map(|class| format!("LABEL_{class}")).collect(), ""),
    };
    if labels.len() != classes {
        problems.push(format!("{place}: expected {classes} labels, got {}", labels.len()));
    }
    labels.into()
}

/// A JSON value fit for a message.
fn short(value: &Value) -> String {
    sconce_core::abbreviate(&value.to_string()).into_owned()
}
