//! Where the columns of a reference come from in requests and answers.

use crate::predictions::Values;
use sconce_core::{DataType, Error, Result, Signature, Tensor, TensorSpec, abbreviate};
use sconce_monitor::{ColumnKind, ColumnSpec, MAX_COLUMNS, Reference, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values of a row beyond which a tensor is described rather than watched one by one.
const MAX_WIDTH: usize = 64;
/// Names that an error lists.
const LISTED: usize = 12;

/// For each column of a reference, where its values are.
#[derive(Debug)]
pub(super) struct Columns(Vec<Column>);

#[derive(Debug)]
struct Column {
    kind: ColumnKind,
    /// A request has one of its forms: the first that is there.
    sources: Vec<Source>,
}

/// Something of a tensor.
#[derive(Debug, Clone)]
struct Source {
    tensor: Named,
    of_row: OfRow,
}

/// A tensor of a signature.
#[derive(Debug, Clone, PartialEq)]
enum Named {
    Input(String),
    /// By its place.
    Output(usize),
}

/// What of a row's values in a tensor.
#[derive(Debug, Clone)]
enum OfRow {
    Value(usize),
    Mean,
    Deviation,
    Low,
    High,
    /// Of a BYTES element, its length.
    Length,
    /// The likeliest class, by name if there are names.
    Label(Option<Arc<[String]>>),
    /// How much likelier it is than the next.
    Margin,
}

/// A column that a signature could have.
struct Known {
    name: String,
    kind: ColumnKind,
    sources: Vec<Source>,
    /// Whether it is watched if nobody says what is to be.
    is_default: bool,
}

/// The tensors of one request and its answer, as numbers and texts.
pub(super) struct Tensors<'a> {
    inputs: Vec<(&'a str, Elements<'a>)>,
    outputs: Vec<Elements<'a>>,
    pub(super) rows: usize,
}

enum Elements<'a> {
    Numbers(Vec<f64>),
    Bytes(Vec<&'a [u8]>),
}

impl Columns {
    /// For the columns of `reference`, by their names or by what `named` says.
    ///
    /// # Errors
    /// `InvalidArgument` naming a column that is nowhere in the signature, and what is there.
    pub(super) fn new(
        signature: &Signature,
        reference: &Reference,
        named: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let known = known(signature);
        let column = |column: &sconce_monitor::Column| {
            let spec = column.spec();
            let name = named.get(&spec.name).unwrap_or(&spec.name);
            let found = known.iter().find(|known| known.name == *name).ok_or_else(|| {
                let there: Vec<&str> = known.iter().take(LISTED).map(|known| known.name.as_str()).collect();
                let more = if known.len() > LISTED { ", …" } else { "" };
                Error::invalid(format!(
                    "column `{}` of the reference: the model has no `{}`; it has {}{more}",
                    abbreviate(&spec.name),
                    abbreviate(name),
                    there.join(", ")
                ))
            })?;
            Ok(Column { kind: spec.kind, sources: found.sources.clone() })
        };
        let columns = reference.columns().iter().map(column).collect::<Result<Vec<_>>>()?;
        if let Some(unused) =
            named.keys().find(|name| !reference.columns().iter().any(|it| it.name == **name))
        {
            let message = format!("columns: the reference has no column `{}`", abbreviate(unused));
            return Err(Error::invalid(message));
        }
        Ok(Self(columns))
    }

    /// What is watched of a model where nobody says what.
    ///
    /// # Errors
    /// `InvalidArgument` for a model of too many columns, or none.
    pub(super) fn default_of(signature: &Signature) -> Result<Vec<ColumnSpec>> {
        let known = known(signature).into_iter().filter(|known| known.is_default);
        let specs: Vec<ColumnSpec> =
            known.map(|known| ColumnSpec { name: known.name, kind: known.kind }).collect();
        if !(1..=MAX_COLUMNS).contains(&specs.len()) {
            let message =
                format!("expected a model of 1 to {MAX_COLUMNS} columns, got one of {}", specs.len());
            return Err(Error::invalid(message));
        }
        Ok(specs)
    }

    /// Whether any column comes from this input.
    pub(super) fn wants_input(&self, name: &str) -> bool {
        self.sources().any(|source| matches!(&source.tensor, Named::Input(it) if it == name))
    }

    /// Whether any column comes from the output at this place.
    pub(super) fn wants_output(&self, place: usize) -> bool {
        self.sources().any(|source| source.tensor == Named::Output(place))
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.0.iter().flat_map(|column| &column.sources)
    }

    /// Fills `row` with the values of row `at`, one for each column.
    pub(super) fn fill<'a>(&'a self, tensors: &'a Tensors<'a>, at: usize, row: &mut Vec<Value<'a>>) {
        row.clear();
        row.extend(self.0.iter().map(|column| {
            let found = column.sources.iter().find_map(|source| {
                let elements = match &source.tensor {
                    Named::Input(name) => {
                        tensors.inputs.iter().find(|(it, _)| it == name).map(|(_, elements)| elements)
                    }
                    Named::Output(place) => tensors.outputs.get(*place),
                }?;
                Some((source, elements))
            });
            found.map_or(Value::Missing, |(source, elements)| {
                elements.value(&source.of_row, at, tensors.rows, column.kind)
            })
        }));
    }
}

impl<'a> Tensors<'a> {
    /// `outputs` are in the signature's order; those that nobody wants may be empty ones.
    pub(super) fn new(inputs: &'a [(String, Tensor)], outputs: &'a [Option<Tensor>]) -> Self {
        let all = inputs.iter().map(|(_, tensor)| tensor).chain(outputs.iter().flatten());
        let rows = all.map(Tensor::rows).next().unwrap_or(0);
        let elements =
            |tensor: &'a Option<Tensor>| tensor.as_ref().map_or(Elements::Numbers(Vec::new()), Elements::new);
        Self {
            inputs: inputs.iter().map(|(name, tensor)| (name.as_str(), Elements::new(tensor))).collect(),
            outputs: outputs.iter().map(elements).collect(),
            rows,
        }
    }
}

impl<'a> Elements<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        match Values::of(tensor) {
            Values::Floats(values) => Self::Numbers(values),
            Values::Ints(values) => Self::Numbers(values.into_iter().map(|value| value as f64).collect()),
            Values::Uints(values) => Self::Numbers(values.into_iter().map(|value| value as f64).collect()),
            Values::Bytes(values) => Self::Bytes(values),
        }
    }

    fn value<'b>(&'b self, of_row: &'b OfRow, at: usize, rows: usize, kind: ColumnKind) -> Value<'b> {
        let number = |value: Option<f64>| value.map_or(Value::Missing, Value::Number);
        match self {
            Self::Bytes(elements) => {
                let width = elements.len() / rows.max(1);
                let element = |place: usize| elements.get(at * width + place);
                match of_row {
                    OfRow::Value(place) if *place < width => {
                        let text = element(*place).and_then(|bytes| std::str::from_utf8(bytes).ok());
                        text.map_or(Value::Missing, Value::Text)
                    }
                    OfRow::Length => number(element(0).map(|bytes| bytes.len() as f64)),
                    _ => Value::Missing,
                }
            }
            Self::Numbers(values) => {
                let width = values.len() / rows.max(1);
                let row = values.get(at * width..(at + 1) * width).unwrap_or_default();
                match of_row {
                    // Text is a matter of BYTES: a number there has the wrong type, which is said.
                    OfRow::Value(place) => number(row.get(*place).copied()),
                    OfRow::Mean => number(mean(row)),
                    OfRow::Deviation => number(mean(row).map(|mean| {
                        let squares: f64 = row.iter().map(|value| (value - mean).powi(2)).sum();
                        (squares / row.len() as f64).sqrt()
                    })),
                    OfRow::Low => number(row.iter().copied().reduce(f64::min)),
                    OfRow::High => number(row.iter().copied().reduce(f64::max)),
                    OfRow::Label(labels) => {
                        let Some((class, _)) = likeliest(row) else { return Value::Missing };
                        match labels.as_ref().and_then(|labels| labels.get(class)) {
                            Some(label) if kind == ColumnKind::Categorical => Value::Text(label),
                            _ => Value::Number(class as f64),
                        }
                    }
                    OfRow::Margin => number(likeliest(row).map(|(class, most)| {
                        let others = row.iter().enumerate().filter(|(at, _)| *at != class);
                        most - others.map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max)
                    })),
                    OfRow::Length => Value::Missing,
                }
            }
        }
    }
}

fn mean(row: &[f64]) -> Option<f64> {
    (!row.is_empty()).then(|| row.iter().sum::<f64>() / row.len() as f64)
}

fn likeliest(row: &[f64]) -> Option<(usize, f64)> {
    row.iter().copied().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best })
}

/// Every column that there could be.
fn known(signature: &Signature) -> Vec<Known> {
    let mut known: Vec<Known> = Vec::new();
    let by_column = by_column(signature);
    for spec in &signature.inputs {
        let is_default = spec.form == by_column.unwrap_or(0) && !spec.optional;
        describe(spec, &Named::Input(spec.name.clone()), by_column.is_some(), is_default, &mut known);
    }
    for (place, spec) in signature.outputs.iter().enumerate() {
        describe(spec, &Named::Output(place), false, spec.datatype != DataType::Bytes, &mut known);
    }
    if let Some(form) = by_column {
        // The same columns as one matrix.
        let names: Vec<&str> =
            signature.inputs.iter().filter(|spec| spec.form == form).map(|spec| spec.name.as_str()).collect();
        let matrix = signature.inputs.iter().find(|spec| {
            spec.form != form && spec.datatype != DataType::Bytes && width(spec) == Some(names.len())
        });
        for (at, name) in names.iter().enumerate().filter(|_| matrix.is_some()) {
            let source = matrix
                .map(|spec| Source { tensor: Named::Input(spec.name.clone()), of_row: OfRow::Value(at) });
            let column = known.iter_mut().find(|known| known.name == **name);
            column.into_iter().for_each(|known| known.sources.extend(source.clone()));
        }
    }
    known
}

/// The form that has a tensor for each of several columns.
fn by_column(signature: &Signature) -> Option<usize> {
    let forms = signature.inputs.iter().map(|spec| spec.form);
    forms.clone().find(|form| {
        let mut of_form = signature.inputs.iter().filter(|spec| spec.form == *form);
        forms.clone().filter(|it| it == form).count() > 1 && of_form.all(|spec| width(spec) == Some(1))
    })
}

/// Values of a row, if that is always as many.
fn width(spec: &TensorSpec) -> Option<usize> {
    spec.shape.iter().skip(1).try_fold(1_usize, |all, size| all.checked_mul((*size)?))
}

fn describe(spec: &TensorSpec, tensor: &Named, is_column: bool, is_default: bool, known: &mut Vec<Known>) {
    let is_taken = known.iter().any(|known| known.name == spec.name);
    let name = if is_taken { format!("output.{}", spec.name) } else { spec.name.clone() };
    let mut add = |name: String, kind: ColumnKind, of_row: OfRow, is_default: bool| {
        known.push(Known {
            name,
            kind,
            sources: vec![Source { tensor: tensor.clone(), of_row }],
            is_default,
        });
    };
    let width = width(spec);
    if spec.datatype == DataType::Bytes {
        let kind = if is_column { ColumnKind::Categorical } else { ColumnKind::Text };
        match width {
            Some(1) => add(name.clone(), kind, OfRow::Value(0), is_default),
            Some(width @ 2..=MAX_WIDTH) => {
                for at in 0..width {
                    add(format!("{name}[{at}]"), kind, OfRow::Value(at), is_default);
                }
            }
            _ => {}
        }
        add(format!("{name}.bytes"), ColumnKind::Numeric, OfRow::Length, is_default && !is_column);
        return;
    }
    let numeric = ColumnKind::Numeric;
    let is_one_by_one = width.is_some_and(|width| (1..=MAX_WIDTH).contains(&width));
    match width {
        Some(1) => add(name.clone(), numeric, OfRow::Value(0), is_default),
        Some(width) if is_one_by_one => {
            for at in 0..width {
                let label = spec.labels.as_ref().and_then(|labels| labels.get(at));
                let place = label.cloned().unwrap_or_else(|| at.to_string());
                add(format!("{name}[{place}]"), numeric, OfRow::Value(at), is_default);
            }
        }
        _ => {}
    }
    if width == Some(1) {
        return;
    }
    let of_rows =
        [("mean", OfRow::Mean), ("deviation", OfRow::Deviation), ("low", OfRow::Low), ("high", OfRow::High)];
    for (what, of_row) in of_rows {
        add(format!("{name}.{what}"), numeric, of_row, is_default && !is_one_by_one);
    }
    if matches!(tensor, Named::Output(_)) && (spec.labels.is_some() || spec.name == "probabilities") {
        let label = OfRow::Label(spec.labels.clone());
        add(format!("{name}.label"), ColumnKind::Categorical, label, is_default);
        add(format!("{name}.margin"), numeric, OfRow::Margin, is_default);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, datatype: DataType, width: Option<usize>) -> TensorSpec {
        TensorSpec::new(name, datatype, &[None, width])
    }

    fn floats(rows: usize, values: &[f32]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(DataType::Fp32, vec![rows, values.len() / rows], bytes.into()).unwrap()
    }

    fn texts(texts: &[&[u8]]) -> Tensor {
        let element = |text: &&[u8]| [&u32::try_from(text.len()).unwrap().to_le_bytes(), *text].concat();
        let data: Vec<u8> = texts.iter().flat_map(element).collect();
        Tensor::new(DataType::Bytes, vec![texts.len(), 1], data.into()).unwrap()
    }

    /// A model of a matrix or a tensor for each of two columns, which gives two scores.
    fn tabular() -> Signature {
        let column = |name| TensorSpec { form: 1, ..spec(name, DataType::Fp32, Some(1)) };
        let labels: Arc<[String]> = ["no".to_owned(), "yes".to_owned()].into();
        Signature {
            inputs: vec![spec("features", DataType::Fp32, Some(2)), column("age"), column("size")],
            outputs: vec![TensorSpec {
                labels: Some(labels),
                ..spec("probabilities", DataType::Fp32, Some(2))
            }],
            max_batch_size: 8,
        }
    }

    fn filled(
        signature: &Signature,
        inputs: &[(String, Tensor)],
        outputs: &[Option<Tensor>],
    ) -> Vec<Vec<String>> {
        let specs = Columns::default_of(signature).unwrap();
        let reference = Reference::new(&specs).unwrap();
        let columns = Columns::new(signature, &reference, &BTreeMap::new()).unwrap();
        let tensors = Tensors::new(inputs, outputs);
        let of = |at| {
            let mut row = Vec::new();
            columns.fill(&tensors, at, &mut row);
            let named = specs.iter().zip(row);
            named.map(|(spec, value)| format!("{} {value:?}", spec.name)).collect()
        };
        (0..tensors.rows).map(of).collect()
    }

    #[test]
    fn a_matrix_and_a_tensor_for_each_column_give_the_same_rows() {
        let signature = tabular();
        let outputs = [Some(floats(2, &[0.25, 0.75, 0.5, 0.5]))];
        let matrix = [("features".to_owned(), floats(2, &[1.0, 2.0, 3.0, 4.0]))];
        let columns = [("age", [1.0, 3.0]), ("size", [2.0, 4.0])]
            .map(|(name, values)| (name.to_owned(), floats(2, &values)));
        let rows = filled(&signature, &matrix, &outputs);
        assert_eq!(rows, filled(&signature, &columns, &outputs));
        assert_eq!(
            rows[0],
            [
                "age Number(1.0)",
                "size Number(2.0)",
                "probabilities[no] Number(0.25)",
                "probabilities[yes] Number(0.75)",
                "probabilities.label Text(\"yes\")",
                "probabilities.margin Number(0.5)",
            ]
        );
        // Whatever is not there is missing.
        assert_eq!(filled(&signature, &matrix, &[])[1][2], "probabilities[no] Missing");
    }

    #[test]
    fn texts_and_wide_tensors_are_described() {
        let signature = Signature {
            inputs: vec![spec("text", DataType::Bytes, Some(1))],
            outputs: vec![spec("embedding", DataType::Fp32, Some(100))],
            max_batch_size: 8,
        };
        let values: Vec<f32> = (0..200).map(|at| if at % 2 == 0 { 1.0 } else { 3.0 }).collect();
        let rows = filled(
            &signature,
            &[("text".to_owned(), texts(&["größer".as_bytes(), &[0xff, 0xfe]]))],
            &[Some(floats(2, &values))],
        );
        let numbers = [
            "embedding.mean Number(2.0)",
            "embedding.deviation Number(1.0)",
            "embedding.low Number(1.0)",
            "embedding.high Number(3.0)",
        ];
        assert_eq!(rows[0][..2], ["text Text(\"größer\")", "text.bytes Number(8.0)"]);
        assert_eq!(rows[1][..2], ["text Missing", "text.bytes Number(2.0)"]);
        assert_eq!(rows[1][2..], numbers);
    }

    #[test]
    fn what_is_nowhere_is_refused_with_what_is_there() {
        let signature = tabular();
        let numeric = |name: &str| ColumnSpec { name: name.to_owned(), kind: ColumnKind::Numeric };
        let reference = Reference::new(&[numeric("age"), numeric("score")]).unwrap();
        let error = Columns::new(&signature, &reference, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("`score`") && error.contains("age, size"), "{error}");
        let named = |from: &str, to: &str| BTreeMap::from([(from.to_owned(), to.to_owned())]);
        let columns = Columns::new(&signature, &reference, &named("score", "probabilities[yes]")).unwrap();
        assert!(columns.wants_input("features") && columns.wants_output(0) && !columns.wants_output(1));
        let reference = Reference::new(&[numeric("age")]).unwrap();
        assert!(Columns::new(&signature, &reference, &named("other", "age")).is_err());
    }
}
