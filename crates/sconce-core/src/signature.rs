use crate::{DataType, Error, Result, Tensor, abbreviate};
use std::fmt::Write as _;
use std::sync::Arc;

/// The most bytes of an input of [`Signature::examples`].
const MAX_EXAMPLE_BYTES: usize = 64 << 20;

/// One input or output of a model, as shown to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name.
    pub name: String,
    /// The element type.
    pub datatype: DataType,
    /// Sizes of the dimensions, `None` where any size goes. The first counts rows and is `None`.
    pub shape: Vec<Option<usize>>,
    /// Which form of input it belongs to (see [`Signature`]); 0 is the form clients are shown first.
    pub form: usize,
    /// Whether a request of its form may leave it out.
    pub optional: bool,
    /// Whether NaN may stand in it. Inputs: refused at the door. Outputs: the batch's request fails.
    pub allow_nan: bool,
    /// For an output with one score a class: the classes' names, for the `classification` extension.
    pub labels: Option<Arc<[String]>>,
}

impl TensorSpec {
    /// A required tensor of form 0 that forbids NaN; change the other fields as needed.
    pub fn new(name: impl Into<String>, datatype: DataType, shape: &[Option<usize>]) -> Self {
        Self {
            name: name.into(),
            datatype,
            shape: shape.to_vec(),
            form: 0,
            optional: false,
            allow_nan: false,
            labels: None,
        }
    }

    /// Whether `shape` fits. A last dimension of 1 may be left out: `[n]` fits `[-1, 1]`.
    pub fn accepts(&self, shape: &[usize]) -> bool {
        let expected = match self.shape.split_last() {
            Some((Some(1), front)) if front.len() == shape.len() => front,
            _ => &self.shape[..],
        };
        expected.len() == shape.len()
            && expected.iter().zip(shape).all(|(want, got)| want.is_none_or(|w| w == *got))
    }
}

/// What a model takes and gives.
///
/// A model may offer several *forms* of input (text or token ids; one matrix or one tensor a column). A request uses
/// exactly one form, with every required tensor of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Inputs of every form.
    pub inputs: Vec<TensorSpec>,
    /// Outputs, in the order a backend gives them.
    pub outputs: Vec<TensorSpec>,
    /// The most rows a request, and a batch, may have; at least 1.
    pub max_batch_size: usize,
}

/// A request's tensors, checked against a [`Signature`]: place `i` holds the input `i` of the signature, if given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    tensors: Vec<Option<Tensor>>,
    rows: usize,
}

impl Inputs {
    /// Rows of the request, at least 1.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether input `index` of the signature was given.
    pub fn has(&self, index: usize) -> bool {
        matches!(self.tensors.get(index), Some(Some(_)))
    }

    /// Input `index` of the signature, if it was given.
    pub fn get(&self, index: usize) -> Option<&Tensor> {
        self.tensors.get(index).and_then(Option::as_ref)
    }

    /// Bytes of all tensors that were given.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().flatten().map(|tensor| tensor.data().len()).sum()
    }

    /// Takes out input `index` of the signature.
    pub fn take(&mut self, index: usize) -> Option<Tensor> {
        self.tensors.get_mut(index).and_then(Option::take)
    }

    /// The tensors that were given, in the signature's order.
    pub fn into_given(self) -> impl Iterator<Item = Tensor> {
        self.tensors.into_iter().flatten()
    }
}

impl Signature {
    /// A request of one row for each form of input: zeros and short texts, every open dimension 1. Not every model answers
    /// every one of them.
    pub fn examples(&self) -> Vec<Vec<(String, Tensor)>> {
        let forms = self.inputs.iter().map(|spec| spec.form + 1).max().unwrap_or(0);
        let example = |spec: &TensorSpec| {
            let shape: Vec<usize> = spec.shape.iter().map(|dim| dim.unwrap_or(1)).collect();
            let elements = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))?;
            let element: &[u8] = match spec.datatype.element_bytes() {
                Some(bytes) => &[0; 8][..bytes],
                None => b"\x05\0\0\0hello",
            };
            let bytes = elements.checked_mul(element.len()).filter(|bytes| *bytes <= MAX_EXAMPLE_BYTES)?;
            let data: Vec<u8> = element.iter().copied().cycle().take(bytes).collect();
            Some((spec.name.clone(), Tensor::new(spec.datatype, shape, data.into()).ok()?))
        };
        let form = |form: usize| {
            let inputs = self.inputs.iter().filter(|spec| spec.form == form && !spec.optional);
            inputs.map(example).collect::<Option<Vec<_>>>()
        };
        (0..forms).filter_map(form).collect()
    }

    /// Bytes of an answer of `rows` rows, as far as the shapes of the outputs tell: an output with another open dimension, or
    /// of strings, counts nothing.
    pub fn answer_bytes(&self, rows: usize) -> usize {
        let output_bytes = |spec: &TensorSpec| {
            let row = |bytes: usize, dim: &Option<usize>| dim.map(|dim| bytes.saturating_mul(dim));
            let element = spec.datatype.element_bytes();
            element.and_then(|bytes| spec.shape.iter().skip(1).try_fold(bytes, row)).unwrap_or(0)
        };
        rows.saturating_mul(self.outputs.iter().map(output_bytes).sum())
    }

    /// Checks named tensors against this signature.
    ///
    /// # Errors
    /// `InvalidArgument` naming the input, what was expected and what came.
    pub fn check(&self, given: impl IntoIterator<Item = (impl AsRef<str>, Tensor)>) -> Result<Inputs> {
        let mut tensors: Vec<Option<Tensor>> = vec![None; self.inputs.len()];
        let mut rows = None;
        let mut form: Option<(usize, usize)> = None;
        for (name, tensor) in given {
            let name = name.as_ref();
            let index = self
                .inputs
                .iter()
                .position(|spec| spec.name == name)
                .ok_or_else(|| self.unknown_input(name))?;
            let spec = &self.inputs[index];
            if tensors[index].is_some() {
                return Err(Error::invalid(format!("input `{name}`: given twice")));
            }
            check_tensor(spec, &tensor)?;
            match form {
                None => form = Some((spec.form, index)),
                Some((form, _)) if form == spec.form => {}
                Some((_, other)) => {
                    return Err(Error::invalid(format!(
                        "inputs `{}` and `{name}` belong to different forms of input: give one or the other",
                        self.inputs[other].name
                    )));
                }
            }
            match rows {
                None => rows = Some(tensor.rows()),
                Some(rows) if rows == tensor.rows() => {}
                Some(rows) => {
                    return Err(Error::invalid(format!(
                        "input `{name}`: expected {rows} rows like the inputs before it, got {}",
                        tensor.rows()
                    )));
                }
            }
            tensors[index] = Some(tensor);
        }
        let (Some((form, _)), Some(rows)) = (form, rows) else {
            return Err(Error::invalid(format!("no inputs given: expected {}", self.describe_inputs())));
        };
        let missing = |(spec, tensor): &(&TensorSpec, &Option<Tensor>)| {
            spec.form == form && !spec.optional && tensor.is_none()
        };
        if let Some((spec, _)) = self.inputs.iter().zip(&tensors).find(missing) {
            return Err(Error::invalid(format!(
                "input `{}` is missing: expected {}",
                spec.name,
                self.describe_inputs()
            )));
        }
        if rows > self.max_batch_size {
            return Err(Error::invalid(format!(
                "the request has {rows} rows, the model takes at most {}",
                self.max_batch_size
            )));
        }
        Ok(Inputs { tensors, rows })
    }

    pub(crate) fn unknown_input(&self, name: &str) -> Error {
        Error::invalid(format!("unknown input `{}`: expected {}", abbreviate(name), self.describe_inputs()))
    }

    fn describe_inputs(&self) -> String {
        let mut text = String::new();
        // A model may have hundreds of column inputs: a message names the first few.
        for (i, spec) in self.inputs.iter().enumerate().take(6) {
            let separator = match i {
                0 => "",
                _ if spec.form != self.inputs[i - 1].form => " or ",
                _ => ", ",
            };
            let optional = if spec.optional { " (optional)" } else { "" };
            let _ = write!(
                text,
                "{separator}`{}` {} {}{optional}",
                spec.name,
                spec.datatype,
                display_shape(&spec.shape)
            );
        }
        if self.inputs.len() > 6 {
            let _ = write!(text, ", … ({} inputs in all)", self.inputs.len());
        }
        text
    }
}

/// A shape as clients see it: `[-1, 4]`.
pub fn display_shape(shape: &[Option<usize>]) -> String {
    let dims: Vec<String> = shape.iter().map(|dim| dim.map_or("-1".to_owned(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

fn check_tensor(spec: &TensorSpec, tensor: &Tensor) -> Result<()> {
    let name = &spec.name;
    if tensor.datatype() != spec.datatype {
        return Err(Error::invalid(format!(
            "input `{name}`: expected datatype {}, got {}",
            spec.datatype,
            tensor.datatype()
        )));
    }
    if !spec.accepts(tensor.shape()) {
        return Err(Error::invalid(format!(
            "input `{name}`: expected shape {}, got {:?}",
            display_shape(&spec.shape),
            tensor.shape()
        )));
    }
    if tensor.rows() == 0 {
        return Err(Error::invalid(format!(
            "input `{name}`: expected at least one row, got shape {:?}",
            tensor.shape()
        )));
    }
    if !spec.allow_nan && tensor.f32_values().any(f32::is_nan) {
        return Err(Error::invalid(format!("input `{name}`: NaN is not allowed here")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize]) -> Tensor {
        let elements: usize = shape.iter().product();
        Tensor::new(DataType::Fp32, shape.to_vec(), vec![0; elements * 4].into()).unwrap()
    }

    fn signature() -> Signature {
        let column =
            |name: &str| TensorSpec { form: 1, ..TensorSpec::new(name, DataType::Fp32, &[None, Some(1)]) };
        Signature {
            inputs: vec![
                TensorSpec::new("x", DataType::Fp32, &[None, Some(4)]),
                column("a"),
                TensorSpec { optional: true, ..column("b") },
            ],
            outputs: vec![],
            max_batch_size: 8,
        }
    }

    #[test]
    fn an_answer_weighs_what_its_shapes_tell() {
        let output = |datatype, shape: &[Option<usize>]| TensorSpec::new("y", datatype, shape);
        let outputs = vec![
            output(DataType::Fp32, &[None, Some(4), Some(3)]),
            output(DataType::Fp64, &[None]),
            output(DataType::Fp32, &[None, None, Some(3)]),
            output(DataType::Bytes, &[None, Some(1)]),
        ];
        assert_eq!(Signature { outputs, ..signature() }.answer_bytes(5), 5 * (48 + 8));
    }

    fn refusal(given: &[(&'static str, &[usize])]) -> String {
        let given = given.iter().map(|(name, shape)| (*name, tensor(shape)));
        let error = signature().check(given).unwrap_err();
        assert_eq!(error.code(), crate::ErrorCode::InvalidArgument);
        error.to_string()
    }

    #[test]
    fn takes_one_form_whole() {
        let inputs = signature().check([("x", tensor(&[2, 4]))]).unwrap();
        assert_eq!((inputs.rows(), inputs.into_given().count()), (2, 1));
        assert!(signature().check([("a", tensor(&[3])), ("b", tensor(&[3, 1]))]).is_ok());
        assert!(signature().check([("a", tensor(&[1, 1]))]).is_ok());
    }

    #[test]
    fn refusals_say_what_was_expected_and_what_came() {
        assert_eq!(refusal(&[("x", &[2, 3])]), "input `x`: expected shape [-1, 4], got [2, 3]");
        assert!(refusal(&[("x", &[0, 4])]).contains("at least one row"));
        assert!(refusal(&[("x", &[9, 4])]).contains("at most 8"));
        assert!(refusal(&[("y", &[1, 4])]).contains("unknown input `y`"));
        assert!(refusal(&[("x", &[1, 4]), ("x", &[1, 4])]).contains("twice"));
        assert!(refusal(&[("x", &[1, 4]), ("a", &[1, 1])]).contains("different forms"));
        assert!(refusal(&[("b", &[1, 1])]).contains("`a` is missing"));
        assert!(refusal(&[("a", &[2, 1]), ("b", &[3, 1])]).contains("expected 2 rows"));
        assert!(refusal(&[]).contains("no inputs given"));
    }

    #[test]
    fn nan_is_refused_unless_allowed() {
        let nan =
            Tensor::new(DataType::Fp32, vec![1, 4], [f32::NAN; 4].map(f32::to_le_bytes).concat().into())
                .unwrap();
        assert!(signature().check([("x", nan.clone())]).is_err());
        let mut lenient = signature();
        lenient.inputs[0].allow_nan = true;
        assert!(lenient.check([("x", nan)]).is_ok());
    }
}
