use crate::Problems;
use crate::keys::Keys;
use sconce_core::{DataType, Error, Inputs, Preparation, Result, Tensor, TensorSpec, abbreviate};
use std::collections::{HashMap, HashSet};

/// The most columns a row may have once encoded.
const MAX_WIDTH: usize = 1 << 20;
/// The most that is encoded on the thread that serves the connection.
const INLINE_BYTES: usize = 256 << 10;
/// Words of a vocabulary that a message shows.
const SHOWN_WORDS: usize = 5;

/// The columns a model was trained on and how each becomes numbers. Empty when the package declares none.
#[derive(Debug, Default)]
pub(crate) struct Features(Vec<Feature>);

#[derive(Debug)]
struct Feature {
    name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// `(x - mean) / std`; NaN becomes `missing` first.
    Numeric { mean: f32, std: f32, missing: Option<f32> },
    /// One of the vocabulary's slots is 1; an unknown value has the last slot, or is refused.
    Categorical { slots: HashMap<String, usize>, shown: String, unknown: bool },
}

impl Features {
    /// Takes `features` out of `model.toml`.
    pub(crate) fn read(keys: &mut Keys, problems: &mut Problems) -> Self {
        let tables: Vec<toml::Table> = keys.take("features", problems).unwrap_or_default();
        let mut names = HashSet::new();
        let mut features = Vec::with_capacity(tables.len());
        for (index, table) in tables.into_iter().enumerate() {
            let Some(feature) = Feature::read(table, index, problems) else { continue };
            if !names.insert(feature.name.clone()) {
                problems.push(format!("model.toml: feature `{}`: declared twice", abbreviate(&feature.name)));
            }
            features.push(feature);
        }
        let features = Self(features);
        if features.width() > MAX_WIDTH {
            let got = features.width();
            problems.push(format!(
                "model.toml: features: expected at most {MAX_WIDTH} encoded columns, got {got}"
            ));
        }
        if features.has_matrix() && features.0.iter().any(|feature| feature.name == "features") {
            problems.push("model.toml: feature `features`: the name of the whole matrix; choose another");
        }
        features
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Columns of an encoded row.
    pub(crate) fn width(&self) -> usize {
        self.0.iter().map(Feature::width).sum()
    }

    /// Whether a request may give all columns as one matrix: when all are numeric.
    fn has_matrix(&self) -> bool {
        self.0.iter().all(|feature| matches!(feature.kind, Kind::Numeric { .. }))
    }

    /// The inputs of a model whose first layer takes `width` columns.
    pub(crate) fn inputs(&self, width: usize) -> Vec<TensorSpec> {
        let mut inputs = Vec::with_capacity(self.0.len() + 1);
        if self.has_matrix() {
            let spec = TensorSpec::new("features", DataType::Fp32, &[None, Some(width)]);
            inputs.push(TensorSpec { allow_nan: self.0.iter().any(Feature::takes_nan), ..spec });
        }
        let form = inputs.len();
        inputs.extend(self.0.iter().map(|feature| TensorSpec { form, ..feature.spec() }));
        inputs
    }

    /// What encoding takes: the encoded rows, while they are laid out once more.
    pub(crate) fn preparation(&self, inputs: &Inputs) -> Preparation {
        let bytes = inputs.rows().saturating_mul(self.width() * 2 * size_of::<f32>());
        Preparation { bytes, is_heavy: bytes > INLINE_BYTES }
    }

    /// Encodes a request as one FP32 tensor [rows, width]. Without declared features it is the caller's own
    /// bytes.
    pub(crate) fn encode(&self, mut inputs: Inputs) -> Result<Tensor> {
        let (rows, width) = (inputs.rows(), self.width());
        let matrix = if self.has_matrix() { inputs.take(0) } else { None };
        if self.is_empty() {
            return matrix.ok_or_else(|| Error::invalid("input `features` is missing"));
        }
        let mut encoded = vec![0.0; rows * width];
        match matrix {
            Some(matrix) => self.encode_matrix(&matrix, &mut encoded)?,
            None => self.encode_columns(&mut inputs, width, &mut encoded)?,
        }
        Tensor::new(DataType::Fp32, vec![rows, width], crate::backend::f32_bytes(&encoded))
    }

    fn encode_matrix(&self, matrix: &Tensor, encoded: &mut [f32]) -> Result<()> {
        let pairs = encoded.iter_mut().zip(matrix.f32_values());
        for ((slot, value), feature) in pairs.zip(self.0.iter().cycle()) {
            *slot = feature.number(value)?;
        }
        Ok(())
    }

    fn encode_columns(&self, inputs: &mut Inputs, width: usize, encoded: &mut [f32]) -> Result<()> {
        let first_input = usize::from(self.has_matrix());
        let mut column = 0;
        for (index, feature) in self.0.iter().enumerate() {
            let missing = || Error::invalid(format!("input `{}` is missing", feature.name));
            let tensor = inputs.take(first_input + index).ok_or_else(missing)?;
            let rows = encoded.chunks_exact_mut(width).map(|row| &mut row[column..]);
            match &feature.kind {
                Kind::Numeric { .. } => {
                    for (row, value) in rows.zip(tensor.f32_values()) {
                        row[0] = feature.number(value)?;
                    }
                }
                Kind::Categorical { slots, shown, unknown } => {
                    for (row, value) in rows.zip(tensor.bytes_elements()) {
                        let known = std::str::from_utf8(value).ok().and_then(|word| slots.get(word).copied());
                        let slot = known.or(unknown.then_some(slots.len()));
                        row[slot.ok_or_else(|| feature.unknown_word(value, shown))?] = 1.0;
                    }
                }
            }
            column += feature.width();
        }
        Ok(())
    }
}

impl Feature {
    fn read(table: toml::Table, index: usize, problems: &mut Problems) -> Option<Self> {
        let mut keys = Keys::new(table, format!("model.toml: features[{index}]"));
        let before = problems.count();
        let name: String = keys.take("name", problems).unwrap_or_default();
        if name.is_empty() || name.len() > 256 {
            problems.push(keys.message("name", &format!("expected 1 to 256 bytes, got {}", name.len())));
        }
        let kind = match keys.take_word("type", &[("numeric", true), ("categorical", false)], problems) {
            Some(true) => Some(read_numeric(&mut keys, problems)),
            Some(false) => Some(read_categorical(&mut keys, problems)),
            None => {
                if problems.count() == before {
                    problems.push(keys.message("type", "expected numeric or categorical, got nothing"));
                }
                // What the other keys should be is unknown: a list of them would only mislead.
                return None;
            }
        };
        keys.finish(problems);
        kind.map(|kind| Self { name, kind })
    }

    fn width(&self) -> usize {
        match &self.kind {
            Kind::Numeric { .. } => 1,
            Kind::Categorical { slots, unknown, .. } => slots.len() + usize::from(*unknown),
        }
    }

    fn takes_nan(&self) -> bool {
        matches!(self.kind, Kind::Numeric { missing: Some(_), .. })
    }

    fn spec(&self) -> TensorSpec {
        let datatype = match self.kind {
            Kind::Numeric { .. } => DataType::Fp32,
            Kind::Categorical { .. } => DataType::Bytes,
        };
        TensorSpec { allow_nan: self.takes_nan(), ..TensorSpec::new(&self.name, datatype, &[None, Some(1)]) }
    }

    fn number(&self, value: f32) -> Result<f32> {
        let Kind::Numeric { mean, std, missing } = &self.kind else { return Ok(value) };
        let value = if value.is_nan() { missing.unwrap_or(value) } else { value };
        let encoded = (value - mean) / std;
        if encoded.is_finite() {
            return Ok(encoded);
        }
        Err(Error::invalid(format!("column `{}`: expected a finite number, got {value}", self.name)))
    }

    fn unknown_word(&self, value: &[u8], shown: &str) -> Error {
        let value = String::from_utf8_lossy(&value[..value.len().min(512)]);
        let (name, value) = (&self.name, abbreviate(&value));
        Error::invalid(format!("input `{name}`: expected one of {shown}, got {value:?}"))
    }
}

fn read_numeric(keys: &mut Keys, problems: &mut Problems) -> Kind {
    let mean = take_number(keys, "mean", problems);
    let std = take_number(keys, "std", problems);
    if let Some(std) = std.filter(|std| *std <= 0.0) {
        problems.push(keys.message("std", &format!("expected more than 0, got {std}")));
    }
    let missing = match keys.take::<f32>("missing", problems) {
        Some(value) if !value.is_finite() => {
            problems.push(keys.message("missing", &format!("expected a finite number, got {value}")));
            None
        }
        other => other,
    };
    Kind::Numeric { mean: mean.unwrap_or(0.0), std: std.unwrap_or(1.0), missing }
}

fn take_number(keys: &mut Keys, key: &'static str, problems: &mut Problems) -> Option<f32> {
    let before = problems.count();
    match keys.take::<f32>(key, problems) {
        Some(value) if value.is_finite() => return Some(value),
        Some(value) => problems.push(keys.message(key, &format!("expected a finite number, got {value}"))),
        None if problems.count() == before => {
            problems.push(keys.message(key, "expected a number, got nothing"))
        }
        None => {}
    }
    None
}

fn read_categorical(keys: &mut Keys, problems: &mut Problems) -> Kind {
    let vocabulary: Vec<String> = keys.take("vocabulary", problems).unwrap_or_default();
    let unknown = keys.take("unknown", problems).unwrap_or(false);
    if vocabulary.is_empty() {
        problems.push(keys.message("vocabulary", "expected at least one word, got none"));
    }
    let mut shown: Vec<String> =
        vocabulary.iter().take(SHOWN_WORDS).map(|word| format!("{:?}", abbreviate(word))).collect();
    if vocabulary.len() > SHOWN_WORDS {
        shown.push(format!("… ({} in all)", vocabulary.len()));
    }
    let mut slots = HashMap::with_capacity(vocabulary.len());
    for (slot, word) in vocabulary.into_iter().enumerate() {
        if let Some(twice) = slots.insert(word.clone(), slot) {
            let problem = format!("word {:?} is there twice, as {twice} and {slot}", abbreviate(&word));
            problems.push(keys.message("vocabulary", &problem));
        }
    }
    Kind::Categorical { slots, shown: shown.join(", "), unknown }
}
