//! A model whose steps are other models. It has no weights; the server runs its steps.

use crate::keys::Keys;
use crate::{ModelSettings, Problems};
use sconce_core::{DataType, Ensemble, ModelName, Signature, StepSpec, TensorSpec, abbreviate};
use std::collections::BTreeMap;

/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 16;

/// Takes `[[inputs]]`, `[[outputs]]` and `[[steps]]`.
pub(crate) fn open(settings: &ModelSettings, keys: &mut Keys, problems: &mut Problems) -> Option<Ensemble> {
    let before = problems.count();
    let inputs = read_tensors("inputs", Ensemble::MAX_TENSORS, keys, problems);
    let outputs = read_tensors("outputs", Ensemble::MAX_TENSORS, keys, problems);
    let steps = tables("steps", Ensemble::MAX_STEPS, keys, problems);
    let steps = steps.into_iter().filter_map(|keys| read_step(keys, problems)).collect();
    if problems.count() > before {
        return None;
    }
    let signature = Signature { inputs, outputs, max_batch_size: settings.max_batch_size };
    let wrong =
        |found: Vec<String>| found.into_iter().for_each(|one| problems.push(format!("model.toml: {one}")));
    Ensemble::new(signature, steps).map_err(wrong).ok()
}

fn tables(name: &'static str, most: usize, keys: &mut Keys, problems: &mut Problems) -> Vec<Keys> {
    let tables = keys.take::<Vec<toml::Table>>(name, problems).unwrap_or_default();
    if tables.len() > most {
        problems.push(keys.message(name, &format!("expected at most {most}, got {}", tables.len())));
    }
    let keys = |(index, table)| Keys::new(table, format!("model.toml: {name}[{index}]"));
    tables.into_iter().take(most).enumerate().map(keys).collect()
}

/// Takes the tables of tensors under `name`.
pub(super) fn read_tensors(
    name: &'static str,
    most: usize,
    keys: &mut Keys,
    problems: &mut Problems,
) -> Vec<TensorSpec> {
    let tables = tables(name, most, keys, problems);
    tables.into_iter().filter_map(|keys| read_tensor(keys, problems)).collect()
}

fn read_tensor(mut keys: Keys, problems: &mut Problems) -> Option<TensorSpec> {
    let words = DataType::ALL.map(|datatype| (datatype.name(), datatype));
    let name = required::<String>("name", &mut keys, problems);
    let before = problems.count();
    let datatype = keys.take_word("datatype", &words, problems);
    if datatype.is_none() && problems.count() == before {
        problems.push(keys.message("datatype", "expected one of the protocol's, such as FP32, got nothing"));
    }
    let shape = required::<Vec<i64>>("shape", &mut keys, problems).and_then(|shape| {
        let dims: Option<Vec<_>> = shape.iter().map(|dim| dimension(*dim)).collect();
        let dims = dims.filter(|dims| dims.first() == Some(&None) && dims.len() <= MAX_DIMENSIONS);
        if dims.is_none() {
            let expected = format!("expected -1 for the rows, then up to {} sizes or -1", MAX_DIMENSIONS - 1);
            problems.push(keys.message("shape", &expected));
        }
        dims
    });
    keys.finish(problems);
    // Whoever computes it says whether NaN may stand in it.
    Some(TensorSpec { allow_nan: true, ..TensorSpec::new(name?, datatype?, &shape?) })
}

fn dimension(dim: i64) -> Option<Option<usize>> {
    match dim {
        -1 => Some(None),
        _ => usize::try_from(dim).ok().filter(|dim| *dim > 0).map(Some),
    }
}

fn read_step(mut keys: Keys, problems: &mut Problems) -> Option<StepSpec> {
    let model = required::<String>("model", &mut keys, problems).and_then(|name| {
        problems.keep(ModelName::new(&name).map_err(|e| keys.message("model", &e.to_string())))
    });
    let version = keys.take::<String>("version", problems).unwrap_or_default();
    // Numbers and aliases are no less harmless than names.
    if !version.is_empty() && ModelName::new(&version).is_err() {
        let got = abbreviate(&version);
        problems
            .push(keys.message("version", &format!("expected a number or an alias, as text, got {got:?}")));
    }
    let inputs = required::<BTreeMap<String, String>>("inputs", &mut keys, problems);
    let outputs = required::<BTreeMap<String, String>>("outputs", &mut keys, problems);
    keys.finish(problems);
    Some(StepSpec { model: model?, version, inputs: inputs?, outputs: outputs? })
}

fn required<T: serde::de::DeserializeOwned>(
    key: &'static str,
    keys: &mut Keys,
    problems: &mut Problems,
) -> Option<T> {
    let before = problems.count();
    let value = keys.take(key, problems);
    if value.is_none() && problems.count() == before {
        problems.push(keys.message(key, "expected a value, got nothing"));
    }
    value
}

#[cfg(test)]
mod tests {
    use crate::{Family, Package, steps_of};
    use sconce_core::{DataType, DeviceId};
    use std::fs;
    use tempfile::TempDir;

    fn package(toml: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.toml"), toml).unwrap();
        dir
    }

    #[test]
    fn reads_signature_and_steps() {
        let dir = package(
            r#"
            family = "ensemble"
            description = "Labels of texts"
            max_batch_size = 32
            [metrics]
            accuracy = 0.5
            [[inputs]]
            name = "text"
            datatype = "BYTES"
            shape = [-1, 1]
            [[outputs]]
            name = "label"
            datatype = "FP32"
            shape = [-1, 2]
            [[steps]]
            model = "classifier"
            version = "champion"
            inputs = { features = "features" }
            outputs = { probabilities = "label" }
            [[steps]]
            model = "embedder"
            inputs = { text = "text" }
            outputs = { embedding = "features" }
            "#,
        );
        let package = Package::open(dir.path(), DeviceId::Cpu).unwrap();
        let (settings, signature) = (&package.settings, &package.signature);
        assert_eq!((settings.family, settings.max_batch_size), (Family::Ensemble, 32));
        assert_eq!((signature.max_batch_size, package.weights_bytes), (32, 0));
        assert_eq!(
            (signature.inputs[0].datatype, &signature.inputs[0].shape[..]),
            (DataType::Bytes, &[None, Some(1)][..])
        );
        let steps = package.ensemble().unwrap().steps();
        let steps: Vec<_> =
            steps.iter().map(|step| (step.spec.model.as_str(), step.spec.version.as_str())).collect();
        assert_eq!(steps, [("embedder", ""), ("classifier", "champion")]);
        // As they are written down.
        let names: Vec<String> = steps_of(dir.path()).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["classifier", "embedder"]);
        assert!(package.load().is_err());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let dir = package(
            r#"
            family = "ensemble"
            threads = 4
            [[inputs]]
            name = "a"
            datatype = "FP31"
            shape = [-1, 0]
            [[outputs]]
            name = "b"
            [[steps]]
            model = "no/name"
            version = "../x"
            inputs = { x = 5 }
            output = { y = "b" }
            [[warmup]]
            a = [[1.0]]
            "#,
        );
        let error = Package::open(dir.path(), DeviceId::Cpu).unwrap_err();
        let text = error.to_string();
        for part in [
            "unknown key `threads`",
            "unknown key `warmup`",
            "inputs[0]: `datatype`: expected one of",
            "inputs[0]: `shape`: expected -1 for the rows",
            "outputs[0]: `datatype`: expected one of",
            "outputs[0]: `shape`: expected a value, got nothing",
            "steps[0]: `model`: model name",
            "steps[0]: `version`: expected a number or an alias",
            "steps[0]: `inputs`:",
            "steps[0]: `outputs`: expected a value, got nothing",
            "steps[0]: unknown key `output`",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
        assert_eq!(error.problems().len(), 11, "{text}");
        assert!(steps_of(dir.path()).is_empty() && steps_of(&dir.path().join("none")).is_empty());
        let error = Package::open(package("family = 'ensemble'").path(), DeviceId::Cpu).unwrap_err();
        assert!(error.to_string().contains("expected 1 to 64 steps, got 0"), "{error}");
    }
}
