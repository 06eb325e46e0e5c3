//! Recordings: files of the prediction log, whole ones and the one that a server is still writing, as requests in the order in which
//! they came.

use crate::Failure;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, Row};
use sconce_client::contents::bytes_data;
use sconce_core::{DataType, ErrorCode, Tensor};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a line of JSON.
const MOST_LINE_BYTES: u64 = 256 << 20;
/// Requests are written as they end: so many, and bytes of them, are looked through for the one that came first.
const REORDERED: usize = 4096;
const REORDERED_BYTES: usize = 64 << 20;
/// How the log's files are called.
const PREFIX: &str = "predictions-";
const OPEN: &str = ".open";
const FOOTER: &str = ".footer";
const CODES: [ErrorCode; 12] = [
    ErrorCode::InvalidArgument,
    ErrorCode::NotFound,
    ErrorCode::Unavailable,
    ErrorCode::ResourceExhausted,
    ErrorCode::DeadlineExceeded,
    ErrorCode::Cancelled,
    ErrorCode::PermissionDenied,
    ErrorCode::FailedPrecondition,
    ErrorCode::AlreadyExists,
    ErrorCode::Aborted,
    ErrorCode::Unimplemented,
    ErrorCode::Internal,
];

/// The files of a recording, in the order in which they were written.
pub(super) struct Recording {
    files: Vec<PathBuf>,
}

/// One request, and how it was answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recorded {
    /// When it came, in microseconds since 1970.
    pub(super) at_us: i64,
    pub(super) id: String,
    pub(super) model: String,
    /// How it ended.
    pub(super) ending: Result<(), ErrorCode>,
    /// Its time on the server.
    pub(super) latency: Duration,
    inputs: Vec<Kept>,
    outputs: Vec<Kept>,
    /// Whether people decided in its model's place, so that its caller saw no answer.
    pub(super) deferred: bool,
    /// The version as it was asked for.
    pub(super) version: String,
    pub(super) priority: Option<u8>,
    pub(super) timeout: Option<Duration>,
    /// How many inputs it had; not known of logs of before it was noted.
    inputs_given: Option<u64>,
    /// What it said where its route looks.
    pub(super) keys: Vec<Key>,
}

/// What is there of a tensor: its values where the policy kept them.
type Kept = (String, Option<Tensor>);

/// What a request said at a place that its route looks at.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Key {
    pub(super) from: String,
    pub(super) name: String,
    pub(super) value: String,
}

/// Why a request cannot be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lacking {
    /// The policy of its model keeps none of its inputs.
    Inputs,
    /// It keeps some of them.
    SomeInputs,
    /// An input is larger than the policy keeps.
    Values,
}

/// What is wrong with a file, and where.
#[derive(Debug)]
pub(super) struct BadRecording {
    file: PathBuf,
    place: Option<Place>,
    problem: String,
}

/// A place in a file, from 1.
#[derive(Debug, Clone, Copy)]
enum Place {
    Line(u64),
    Row(u64),
}

impl Lacking {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Inputs => "inputs not kept",
            Self::SomeInputs => "not all inputs kept",
            Self::Values => "input larger than is kept",
        }
    }
}

impl fmt::Display for BadRecording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        match self.place {
            Some(Place::Line(line)) => write!(f, "line {line}: ")?,
            Some(Place::Row(row)) => write!(f, "row {row}: ")?,
            None => {}
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for BadRecording {}

impl Recorded {
    /// Its inputs, if all are there.
    ///
    /// # Errors
    /// What is lacking.
    pub(super) fn inputs(&self) -> Result<Vec<(&str, &Tensor)>, Lacking> {
        let given = self.inputs_given.unwrap_or(self.inputs.len() as u64);
        match self.inputs.len() as u64 {
            0 if self.inputs_given != Some(0) => Err(Lacking::Inputs),
            kept if kept < given => Err(Lacking::SomeInputs),
            _ => {
                let tensors = self.inputs.iter();
                let tensors = tensors.map(|(name, tensor)| Some((name.as_str(), tensor.as_ref()?)));
                tensors.collect::<Option<_>>().ok_or(Lacking::Values)
            }
        }
    }

    /// Its outputs, as far as they were kept.
    pub(super) fn outputs(&self) -> Vec<(&str, &Tensor)> {
        let kept = self.outputs.iter();
        kept.filter_map(|(name, tensor)| Some((name.as_str(), tensor.as_ref()?))).collect()
    }

    fn bytes(&self) -> usize {
        let tensors = self.inputs.iter().chain(&self.outputs);
        512 + tensors.filter_map(|(_, tensor)| Some(tensor.as_ref()?.data().len())).sum::<usize>()
    }
}

impl Recording {
    /// The files at `paths`; of a folder all that a prediction log wrote there.
    ///
    /// # Errors
    /// A path that is not there, is no file of a log, or is a folder without any.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut files = Vec::new();
        for path in paths {
            let bad = |problem: String| BadRecording { file: path.clone(), place: None, problem };
            let about = fs::metadata(path).map_err(|error| bad(error.to_string()))?;
            if !about.is_dir() {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if Form::of(name).is_none() {
                    return Err(
                        bad("expected a .parquet or .jsonl file of a prediction log".to_owned()).into()
                    );
                }
                files.push(path.clone());
                continue;
            }
            let mut names = Vec::new();
            for entry in fs::read_dir(path).map_err(|error| bad(error.to_string()))? {
                let entry = entry.map_err(|error| bad(error.to_string()))?;
                let name = entry.file_name().into_string().ok();
                names.extend(name.filter(|name| name.starts_with(PREFIX) && Form::of(name).is_some()));
            }
            if names.is_empty() {
                return Err(bad("expected files of a prediction log in it".to_owned()).into());
            }
            names.sort();
            files.extend(names.into_iter().map(|name| path.join(name)));
        }
        Ok(Self { files })
    }

    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    /// Gives each request as they came, with the share of the files that was read; ends early where `take` says false.
    ///
    /// # Errors
    /// [`BadRecording`], after the requests before it may have been given; what `take` fails with.
    pub(super) fn each(
        &self,
        mut take: impl FnMut(Recorded, f64) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let mut waiting = BTreeMap::new();
        let (mut number, mut bytes) = (0_u64, 0);
        for (at, file) in self.files.iter().enumerate() {
            let mut go_on = true;
            let share = |of_file: f64| (at as f64 + of_file) / self.files.len() as f64;
            read(file, &mut |recorded, of_file| {
                bytes += recorded.bytes();
                waiting.insert((recorded.at_us, number), recorded);
                number += 1;
                while go_on && (waiting.len() > REORDERED || bytes > REORDERED_BYTES) {
                    let Some((_, first)) = waiting.pop_first() else { break };
                    bytes -= first.bytes();
                    go_on = take(first, share(of_file))?;
                }
                Ok(go_on)
            })?;
            if !go_on {
                return Ok(());
            }
        }
        while let Some((_, first)) = waiting.pop_first() {
            if !take(first, 1.0)? {
                break;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Lines,
    Parquet,
}

impl Form {
    fn of(name: &str) -> Option<Self> {
        match name.strip_suffix(OPEN).unwrap_or(name).rsplit_once('.')?.1 {
            "jsonl" => Some(Self::Lines),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

type Take<'a> = dyn FnMut(Recorded, f64) -> Result<bool, Failure> + 'a;

fn read(path: &Path, take: &mut Take<'_>) -> Result<(), Failure> {
    let bad = |place: Option<Place>, problem: String| -> Failure {
        BadRecording { file: path.to_owned(), place, problem }.into()
    };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_open = name.ends_with(OPEN);
    let file = match File::open(path) {
        // It was ended meanwhile.
        Err(error) if is_open && error.kind() == io::ErrorKind::NotFound => {
            return read(&path.with_extension(""), take);
        }
        opened => opened.map_err(|error| bad(None, error.to_string()))?,
    };
    match Form::of(name) {
        Some(Form::Parquet) => {
            let whole = if is_open {
                ended(path, file).map_err(|error| bad(None, error.to_string()))?
            } else {
                Some(file)
            };
            whole.map_or(Ok(()), |file| read_parquet(file, &bad, take))
        }
        _ => read_lines(file, is_open, &bad, take),
    }
}

/// What is known to be good of a Parquet file that is still written, with its end; `None` where that is nothing.
fn ended(path: &Path, mut file: File) -> io::Result<Option<File>> {
    let mut footer = path.as_os_str().to_owned();
    footer.push(FOOTER);
    let end = match fs::read(&footer) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let (bytes, end) =
        end.split_first_chunk::<8>().ok_or_else(|| io::Error::other("its end is cut short"))?;
    let mut whole = tempfile::tempfile()?;
    io::copy(&mut Read::by_ref(&mut file).take(u64::from_le_bytes(*bytes)), &mut whole)?;
    whole.write_all(end)?;
    whole.rewind()?;
    Ok(Some(whole))
}

type Bad<'a> = dyn Fn(Option<Place>, String) -> Failure + 'a;

fn read_lines(file: File, is_open: bool, bad: &Bad<'_>, take: &mut Take<'_>) -> Result<(), Failure> {
    let all = file.metadata().map_err(|error| bad(None, error.to_string()))?.len().max(1) as f64;
    let mut reader = BufReader::new(file);
    let (mut line, mut number, mut read) = (Vec::new(), 0_u64, 0_u64);
    loop {
        line.clear();
        number += 1;
        let bad = |problem: String| bad(Some(Place::Line(number)), problem);
        let mut limited = Read::by_ref(&mut reader).take(MOST_LINE_BYTES);
        let length = limited.read_until(b'\n', &mut line).map_err(|error| bad(error.to_string()))? as u64;
        read += length;
        let is_whole = line.last() == Some(&b'\n');
        // What a server is still writing has no end yet.
        if length == 0 || (is_open && !is_whole) {
            return Ok(());
        }
        if length == MOST_LINE_BYTES && !is_whole {
            return Err(bad(format!("expected at most {MOST_LINE_BYTES} bytes")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed: Line = serde_json::from_slice(&line).map_err(|error| bad(error.to_string()))?;
        let recorded = parsed.recorded().map_err(bad)?;
        if !take(recorded, read as f64 / all)? {
            return Ok(());
        }
    }
}

fn read_parquet(file: File, bad: &Bad<'_>, take: &mut Take<'_>) -> Result<(), Failure> {
    let reader = SerializedFileReader::new(file).map_err(|error| bad(None, error.to_string()))?;
    let rows = reader.metadata().file_metadata().num_rows().max(1) as f64;
    let all = reader.get_row_iter(None).map_err(|error| bad(None, error.to_string()))?;
    for (number, row) in (1_u64..).zip(all) {
        let bad = |problem: String| bad(Some(Place::Row(number)), problem);
        let row = row.map_err(|error| bad(error.to_string()))?;
        let recorded = of_row(&row).map_err(bad)?;
        if !take(recorded, number as f64 / rows)? {
            return Ok(());
        }
    }
    Ok(())
}

/// A line of JSON, as the prediction log writes it. What a log of before has not is what was not known.
#[derive(Deserialize)]
struct Line {
    prediction_id: String,
    time: String,
    model: String,
    status: String,
    latency_us: u64,
    inputs: Vec<LineTensor>,
    outputs: Vec<LineTensor>,
    review: Option<String>,
    request: Option<LineRequest>,
}

#[derive(Deserialize)]
struct LineTensor {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    values: Option<Vec<Value>>,
    encoding: Option<String>,
}

#[derive(Default, Deserialize)]
struct LineRequest {
    version: String,
    priority: Option<u8>,
    timeout_us: Option<u64>,
    inputs: u64,
    keys: Vec<Key>,
}

impl Line {
    fn recorded(self) -> Result<Recorded, String> {
        let at_us = micros(&self.time)
            .ok_or_else(|| format!("time: expected RFC 3339 in UTC, got {:?}", self.time))?;
        let tensors = |tensors: Vec<LineTensor>| {
            tensors.into_iter().map(LineTensor::kept).collect::<Result<Vec<_>, _>>()
        };
        let inputs_given = self.request.as_ref().map(|request| request.inputs);
        let request = self.request.unwrap_or_default();
        Ok(Recorded {
            at_us,
            id: self.prediction_id,
            model: self.model,
            ending: ending(&self.status)?,
            latency: Duration::from_micros(self.latency_us),
            inputs: tensors(self.inputs)?,
            outputs: tensors(self.outputs)?,
            deferred: self.review.is_some_and(|review| review == DEFERRED),
            version: request.version,
            priority: request.priority,
            timeout: request.timeout_us.map(Duration::from_micros),
            inputs_given,
            keys: request.keys,
        })
    }
}

/// How the log calls an answer that its caller did not see.
const DEFERRED: &str = "deferred";

impl LineTensor {
    fn kept(self) -> Result<Kept, String> {
        let Self { name, datatype, shape, values, encoding } = self;
        let wrong = |problem: String| format!("tensor {name:?}: {problem}");
        let datatype = self::datatype(&datatype).map_err(wrong)?;
        let Some(values) = values else { return Ok((name, None)) };
        let number = |value: &Value| match value.as_str() {
            Some("NaN") => Some(f64::NAN),
            Some("Infinity") => Some(f64::INFINITY),
            Some("-Infinity") => Some(f64::NEG_INFINITY),
            _ => value.as_f64(),
        };
        let is_hex = encoding.is_some();
        let text = |value: &Value| {
            let text = value.as_str()?;
            if is_hex { unhex(text) } else { Some(text.as_bytes().to_vec()) }
        };
        let read = match Kind::of(datatype) {
            Kind::Floats => each(&values, number).map(Values::Floats),
            Kind::Ints => each(&values, Value::as_i64).map(Values::Ints),
            Kind::Uints => each(&values, |it| it.as_u64().or(it.as_bool().map(u64::from))).map(Values::Uints),
            Kind::Bytes => each(&values, text).map(Values::Bytes),
        };
        let read = read.map_err(|value| {
            wrong(format!(
                "expected values of {datatype}, got {}",
                sconce_core::abbreviate(&value.to_string())
            ))
        })?;
        let tensor = tensor(datatype, shape, read).map_err(wrong)?;
        Ok((name, Some(tensor)))
    }
}

/// Every value as `read` has it, or the first that is none.
fn each<T>(values: &[Value], read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>, Value> {
    values.iter().map(|value| read(value).ok_or_else(|| value.clone())).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

fn of_row(row: &Row) -> Result<Recorded, String> {
    let field = |name: &str| row.get_column_iter().find(|(of, _)| *of == name).map(|(_, field)| field);
    let request = match field("request") {
        Some(Field::Group(request)) => Some(request),
        _ => None,
    };
    let optional = |name: &str| request.and_then(|request| find(request, name)).and_then(long);
    let number = |name: &str| {
        let number = field(name).and_then(long);
        number.ok_or_else(|| format!("expected a column {name} of whole numbers"))
    };
    let keys = match request.and_then(|request| find(request, "keys")) {
        Some(Field::ListInternal(keys)) => keys.elements().iter().map(key).collect::<Result<_, _>>()?,
        _ => Vec::new(),
    };
    let micros = |micros: i64| Duration::from_micros(micros.unsigned_abs());
    let status = text(field("status"), "status")?;
    Ok(Recorded {
        at_us: number("time")?,
        id: text(field("prediction_id"), "prediction_id")?,
        model: text(field("model"), "model")?,
        ending: ending(&status)?,
        latency: micros(number("latency_us")?),
        inputs: tensors(field("inputs"), "inputs")?,
        outputs: tensors(field("outputs"), "outputs")?,
        deferred: matches!(field("review"), Some(Field::Str(review)) if review == DEFERRED),
        version: request
            .map_or(Ok(String::new()), |request| text(find(request, "version"), "request.version"))?,
        priority: optional("priority").and_then(|priority| u8::try_from(priority).ok()),
        timeout: optional("timeout_us").map(micros),
        inputs_given: optional("inputs").map(i64::unsigned_abs),
        keys,
    })
}

fn find<'a>(row: &'a Row, name: &str) -> Option<&'a Field> {
    row.get_column_iter().find(|(of, _)| *of == name).map(|(_, field)| field)
}

fn long(field: &Field) -> Option<i64> {
    match field {
        Field::Long(number) | Field::TimestampMicros(number) => Some(*number),
        _ => None,
    }
}

fn text(field: Option<&Field>, name: &str) -> Result<String, String> {
    match field {
        Some(Field::Str(text)) => Ok(text.clone()),
        _ => Err(format!("expected a column {name} of texts")),
    }
}

fn key(field: &Field) -> Result<Key, String> {
    let Field::Group(row) = field else { return Err("expected keys with names".to_owned()) };
    let text = |name: &str| text(find(row, name), name);
    Ok(Key { from: text("from")?, name: text("name")?, value: text("value")? })
}

fn tensors(field: Option<&Field>, name: &str) -> Result<Vec<Kept>, String> {
    let Some(Field::ListInternal(list)) = field else {
        return Err(format!("expected a column {name} of tensors"));
    };
    list.elements().iter().map(kept).collect()
}

fn kept(field: &Field) -> Result<Kept, String> {
    let Field::Group(row) = field else { return Err("expected tensors with names".to_owned()) };
    let name = text(find(row, "name"), "name")?;
    let wrong = |problem: String| format!("tensor {name:?}: {problem}");
    let datatype = datatype(&text(find(row, "datatype"), "datatype")?).map_err(wrong)?;
    let list = |name: &str| match find(row, name) {
        Some(Field::ListInternal(list)) => Some(list.elements()),
        _ => None,
    };
    let sizes = list("shape").ok_or_else(|| wrong("expected a shape".to_owned()))?;
    let size = |field: &Field| long(field).and_then(|size| usize::try_from(size).ok());
    let shape: Option<Vec<usize>> = sizes.iter().map(size).collect();
    let shape = shape.ok_or_else(|| wrong("expected a shape of whole numbers".to_owned()))?;
    let values = match Kind::of(datatype) {
        Kind::Floats => list("floats").map(|list| {
            all(list, |it| if let Field::Double(it) = it { Some(*it) } else { None }).map(Values::Floats)
        }),
        Kind::Ints => list("ints").map(|list| all(list, long).map(Values::Ints)),
        Kind::Uints => list("uints").map(|list| {
            all(list, |it| if let Field::ULong(it) = it { Some(*it) } else { None }).map(Values::Uints)
        }),
        Kind::Bytes => list("bytes").map(|list| {
            all(list, |it| if let Field::Bytes(it) = it { Some(it.data().to_vec()) } else { None })
                .map(Values::Bytes)
        }),
    };
    let Some(values) = values else { return Ok((name, None)) };
    let values = values.ok_or_else(|| wrong(format!("expected values of {datatype}")))?;
    let tensor = tensor(datatype, shape, values).map_err(wrong)?;
    Ok((name, Some(tensor)))
}

fn all<T>(fields: &[Field], read: impl Fn(&Field) -> Option<T>) -> Option<Vec<T>> {
    fields.iter().map(read).collect()
}

/// What values of a datatype are written as.
enum Kind {
    Floats,
    Ints,
    Uints,
    Bytes,
}

/// Values as they are written: in the widest type of their kind.
enum Values {
    Floats(Vec<f64>),
    Ints(Vec<i64>),
    Uints(Vec<u64>),
    Bytes(Vec<Vec<u8>>),
}

impl Kind {
    fn of(datatype: DataType) -> Self {
        match datatype {
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => Self::Floats,
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Self::Ints,
            DataType::Bool | DataType::Uint8 | DataType::Uint16 | DataType::Uint32 | DataType::Uint64 => {
                Self::Uints
            }
            DataType::Bytes => Self::Bytes,
        }
    }
}

/// A tensor of what was written of it.
fn tensor(datatype: DataType, shape: Vec<usize>, values: Values) -> Result<Tensor, String> {
    let narrow_int = |value: i64| -> Option<Vec<u8>> {
        Some(match datatype {
            DataType::Int8 => i8::try_from(value).ok()?.to_le_bytes().to_vec(),
            DataType::Int16 => i16::try_from(value).ok()?.to_le_bytes().to_vec(),
            DataType::Int32 => i32::try_from(value).ok()?.to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        })
    };
    let narrow_uint = |value: u64| -> Option<Vec<u8>> {
        Some(match datatype {
            DataType::Bool if value > 1 => return None,
            DataType::Bool | DataType::Uint8 => u8::try_from(value).ok()?.to_le_bytes().to_vec(),
            DataType::Uint16 => u16::try_from(value).ok()?.to_le_bytes().to_vec(),
            DataType::Uint32 => u32::try_from(value).ok()?.to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        })
    };
    let out_of_range = || format!("a value is out of range for {datatype}");
    let data: Vec<u8> = match values {
        Values::Floats(values) => {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let wide = Tensor::new(DataType::Fp64, shape, data.into()).map_err(|error| error.to_string())?;
            return wide.to_float(datatype).ok_or_else(out_of_range);
        }
        Values::Ints(values) => {
            let data: Option<Vec<_>> = values.into_iter().map(narrow_int).collect();
            data.ok_or_else(out_of_range)?.concat()
        }
        Values::Uints(values) => {
            let data: Option<Vec<_>> = values.into_iter().map(narrow_uint).collect();
            data.ok_or_else(out_of_range)?.concat()
        }
        Values::Bytes(values) => bytes_data(values.iter().map(Vec::as_slice)).to_vec(),
    };
    Tensor::new(datatype, shape, data.into()).map_err(|error| error.to_string())
}

fn datatype(name: &str) -> Result<DataType, String> {
    DataType::from_name(name).ok_or_else(|| format!("unknown datatype {:?}", sconce_core::abbreviate(name)))
}

fn ending(status: &str) -> Result<Result<(), ErrorCode>, String> {
    if status == "OK" {
        return Ok(Ok(()));
    }
    let code = CODES.iter().find(|code| code.name() == status);
    code.map(|code| Err(*code)).ok_or_else(|| format!("status: got {:?}", sconce_core::abbreviate(status)))
}

/// Microseconds since 1970 of a time as the log writes it. A date's days as in Howard Hinnant's `days_from_civil`.
fn micros(time: &str) -> Option<i64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
        if is_number { text.parse::<i64>().ok() } else { None }
    };
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let fits =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !fits {
        return None;
    }
    let fraction = number(&format!("{fraction:0<6}"))?;
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(time: &str, model: &str) -> Value {
        json!({
            "prediction_id": "p", "time": time, "model": model, "version": 1, "variant": null, "tenant": null, "status": "OK",
            "latency_us": 1500, "review": null,
            "inputs": [
                { "name": "x", "datatype": "FP32", "shape": [1, 3], "values": ["NaN", 0.5, "-Infinity"] },
                { "name": "t", "datatype": "BYTES", "shape": [1], "values": ["ff00"], "encoding": "hex" },
            ],
            "outputs": [{ "name": "y", "datatype": "UINT64", "shape": [1], "values": [u64::MAX] }],
            "request": {
                "version": "champion", "priority": 2, "timeout_us": 250_000, "inputs": 2,
                "keys": [{ "from": "metadata", "name": "user", "value": "ada" }],
            },
        })
    }

    fn file(name: &str, lines: &[String]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        (folder, path)
    }

    fn all(path: &Path) -> Result<Vec<Recorded>, Failure> {
        let mut all = Vec::new();
        Recording::open(&[path.to_owned()])?.each(|recorded, share| {
            assert!((0.0..=1.0).contains(&share));
            all.push(recorded);
            Ok(true)
        })?;
        Ok(all)
    }

    #[test]
    fn a_line_is_the_request_as_it_was() {
        let (_folder, path) = file("a.jsonl", &[line("2026-12-01T00:00:00.000007Z", "m").to_string()]);
        let [recorded] = &all(&path).unwrap()[..] else { panic!() };
        assert_eq!((recorded.at_us, recorded.latency), (1_796_083_200_000_007, Duration::from_micros(1500)));
        assert_eq!((recorded.version.as_str(), recorded.priority), ("champion", Some(2)));
        assert_eq!(recorded.timeout, Some(Duration::from_millis(250)));
        assert_eq!(recorded.keys[0].value, "ada");
        let inputs = recorded.inputs().unwrap();
        let floats: Vec<f32> = inputs[0].1.f32_values().collect();
        assert!(floats[0].is_nan() && floats[1..] == [0.5, f32::NEG_INFINITY], "{floats:?}");
        assert_eq!(inputs[1].1.bytes_elements().collect::<Vec<_>>(), [[0xff, 0]]);
        assert_eq!(recorded.outputs()[0].1.data()[..], u64::MAX.to_le_bytes());
    }

    #[test]
    fn requests_come_in_the_order_in_which_they_came_and_folders_file_by_file() {
        let at = |micros: u32| line(&format!("2026-12-01T00:00:00.{micros:06}Z"), "m").to_string();
        let (folder, _) = file("predictions-1.jsonl", &[at(3), at(1)]);
        // The file that is being written ends in half a line.
        let half = format!("{}\n{}", at(2), &at(9)[..40]);
        fs::write(folder.path().join("predictions-2.jsonl.open"), half).unwrap();
        fs::write(folder.path().join("LOCK"), "").unwrap();
        let times: Vec<i64> = all(folder.path()).unwrap().iter().map(|it| it.at_us % 10).collect();
        assert_eq!(times, [1, 2, 3]);
    }

    #[test]
    fn what_was_not_kept_is_told() {
        let lacking = |change: &dyn Fn(&mut Value)| {
            let mut line = line("2026-12-01T00:00:00Z", "m");
            change(&mut line);
            let (_folder, path) = file("a.jsonl", &[line.to_string()]);
            all(&path).unwrap()[0].inputs().err()
        };
        assert_eq!(lacking(&|_| {}), None);
        assert_eq!(lacking(&|line| line["inputs"] = json!([])), Some(Lacking::Inputs));
        assert_eq!(lacking(&|line| line["request"]["inputs"] = json!(3)), Some(Lacking::SomeInputs));
        assert_eq!(lacking(&|line| line["inputs"][0]["values"] = Value::Null), Some(Lacking::Values));
        // A log of before says less.
        assert_eq!(lacking(&|line| line["request"] = Value::Null), None);
    }

    #[test]
    fn what_is_no_recording_is_refused_with_its_place() {
        let good = || line("2026-12-01T00:00:00Z", "m");
        let with = |change: &dyn Fn(&mut Value)| {
            let mut line = good();
            change(&mut line);
            line.to_string()
        };
        for (bad, says) in [
            ("no".to_owned(), "line 2: expected"),
            ("{}".to_owned(), "line 2: missing field"),
            (with(&|line| line["time"] = json!("yesterday")), "line 2: time: expected RFC 3339"),
            (with(&|line| line["time"] = json!("2026-13-01T00:00:00Z")), "line 2: time: expected RFC 3339"),
            (with(&|line| line["status"] = json!("FINE")), "line 2: status: got \"FINE\""),
            (with(&|line| line["inputs"][0]["datatype"] = json!("FP31")), "tensor \"x\": unknown datatype"),
            (with(&|line| line["inputs"][0]["shape"] = json!([9, 9])), "expected 648 bytes"),
            (with(&|line| line["inputs"][0]["shape"] = json!([1_u64 << 60, 16])), "more elements"),
            (with(&|line| line["inputs"][0]["values"][1] = json!("many")), "expected values of FP32"),
            (with(&|line| line["inputs"][1]["values"][0] = json!("f")), "expected values of BYTES"),
            (with(&|line| line["outputs"][0]["datatype"] = json!("UINT8")), "out of range for UINT8"),
        ] {
            let (_folder, path) = file("a.jsonl", &[good().to_string(), bad]);
            let told = all(&path).unwrap_err();
            assert!(told.is::<BadRecording>() && told.to_string().contains(says), "{says}: {told}");
        }
        for (name, text, says) in [
            ("a.csv", "x", "expected a .parquet or .jsonl file"),
            ("a.parquet", "PAR1 and nothing", "a.parquet: "),
            ("a.parquet.open", "PAR1 and nothing", ""),
        ] {
            let (_folder, path) = file(name, &[text.to_owned()]);
            let told = all(&path).err().map_or(String::new(), |error| error.to_string());
            assert!(told.contains(says) && told.is_empty() == says.is_empty(), "{name}: {told}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(all(folder.path()).unwrap_err().to_string().contains("expected files of a prediction log"));
        assert!(all(&folder.path().join("gone.jsonl")).is_err());
    }

    #[test]
    fn a_parquet_file_of_other_columns_is_refused() {
        use parquet::data_type::Int64Type;
        use parquet::file::writer::SerializedFileWriter;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema = parquet::schema::parser::parse_message_type("message m { required int64 x; }").unwrap();
        let file = File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema.into(), Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let told = all(&path).unwrap_err().to_string();
        assert!(told.contains("row 1: expected a column status of texts"), "{told}");
    }
}
