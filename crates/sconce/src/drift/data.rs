//! Rows of a file, one after the other: CSV, JSON lines or Parquet, told by its name.

use crate::Failure;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;
use sconce_monitor::{ColumnKind, Value};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

/// Rows that are looked at to find out what columns hold.
const LOOKED_AT: usize = 10_000;
/// Bytes of a line of JSON.
const MOST_LINE_BYTES: usize = 16 << 20;
/// Texts that stand for no value.
const NONE: [&str; 8] = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"];

/// A file with rows.
pub(crate) struct Data {
    path: PathBuf,
    format: Format,
    /// Its columns.
    pub(crate) names: Vec<String>,
}

#[derive(Clone, Copy)]
enum Format {
    Csv,
    JsonLines,
    Parquet,
}

/// A value that owns its text, if it is one.
#[derive(Clone, PartialEq)]
pub(crate) enum Owned<'a> {
    Missing,
    Number(f64),
    Text(Cow<'a, str>),
}

/// What a column holds, or that it only counts rows: an id, a time.
pub(crate) enum Found {
    Kind(ColumnKind),
    Counts,
}

impl Owned<'_> {
    /// As a value of a column of this kind.
    pub(crate) fn as_kind(&self, kind: ColumnKind) -> Value<'_> {
        match self {
            Self::Missing => Value::Missing,
            Self::Number(number) => Value::Number(*number),
            Self::Text(text) if NONE.contains(&text.trim()) => Value::Missing,
            Self::Text(text) if kind == ColumnKind::Numeric => {
                text.trim().parse().map_or(Value::Text(text), Value::Number)
            }
            Self::Text(text) => Value::Text(text),
        }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        match self.as_kind(ColumnKind::Numeric) {
            Value::Number(number) if number.is_finite() => Some(number),
            _ => None,
        }
    }
}

impl Data {
    /// Opens it and reads its columns' names.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let ending = path.extension().and_then(|it| it.to_str()).unwrap_or_default().to_ascii_lowercase();
        let format = match ending.as_str() {
            "csv" => Format::Csv,
            "jsonl" | "ndjson" => Format::JsonLines,
            "parquet" | "pq" => Format::Parquet,
            _ => return Err(format!("{}: expected a .csv, .jsonl or .parquet file", path.display()).into()),
        };
        let mut data = Self { path: path.to_owned(), format, names: Vec::new() };
        data.names = data.read_names().map_err(|error| data.cannot(error))?;
        let unique: BTreeSet<&String> = data.names.iter().collect();
        if data.names.is_empty() || unique.len() < data.names.len() {
            return Err(data.cannot("expected columns, each with a name of its own".into()));
        }
        Ok(data)
    }

    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.path.metadata().map_or(0, |it| it.len())
    }

    /// Gives each row, a value for each of [`names`](Self::names), with the share of the file that was read; ends early where `take` says
    /// false.
    pub(crate) fn each(
        &self,
        mut take: impl FnMut(&[Owned<'_>], f64) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let done = match self.format {
            Format::Csv => self.each_csv(&mut take),
            Format::JsonLines => self.each_json(&mut take),
            Format::Parquet => self.each_parquet(&mut take),
        };
        done.map_err(|error| self.cannot(error))
    }

    /// What each column seems to hold, by the first rows.
    pub(crate) fn kinds(&self) -> Result<Vec<Found>, Failure> {
        let mut seen: Vec<Seen> = self.names.iter().map(|_| Seen::default()).collect();
        let mut rows = 0;
        self.each(|row, _| {
            rows += 1;
            seen.iter_mut().zip(row).for_each(|(seen, value)| seen.take(value));
            Ok(rows < LOOKED_AT)
        })?;
        Ok(seen.iter().map(Seen::found).collect())
    }

    fn cannot(&self, error: Failure) -> Failure {
        format!("{}: {error}", self.path.display()).into()
    }

    fn read_names(&self) -> Result<Vec<String>, Failure> {
        match self.format {
            Format::Csv => {
                let mut reader = csv::Reader::from_path(&self.path)?;
                Ok(reader.headers()?.iter().map(str::to_owned).collect())
            }
            Format::Parquet => {
                let reader = SerializedFileReader::new(File::open(&self.path)?)?;
                let fields = reader.metadata().file_metadata().schema().get_fields();
                Ok(fields.iter().map(|field| field.name().to_owned()).collect())
            }
            Format::JsonLines => {
                let mut names = Vec::new();
                let mut rows = 0;
                self.lines(&mut |object, _| {
                    let new =
                        object.keys().filter(|name| !names.contains(*name)).cloned().collect::<Vec<_>>();
                    names.extend(new);
                    rows += 1;
                    Ok(rows < LOOKED_AT)
                })?;
                Ok(names)
            }
        }
    }

    fn each_csv(&self, take: &mut Take<'_>) -> Result<(), Failure> {
        let bytes = self.bytes().max(1) as f64;
        let mut reader = csv::Reader::from_path(&self.path)?;
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record)? {
            let row: Vec<Owned<'_>> = record.iter().map(|it| Owned::Text(it.into())).collect();
            if !take(&row, reader.position().byte() as f64 / bytes)? {
                break;
            }
        }
        Ok(())
    }

    fn each_json(&self, take: &mut Take<'_>) -> Result<(), Failure> {
        self.lines(&mut |object, share| {
            let value = |name: &String| match object.get(name) {
                None | Some(serde_json::Value::Null) => Owned::Missing,
                Some(serde_json::Value::Number(number)) => {
                    number.as_f64().map_or(Owned::Missing, Owned::Number)
                }
                Some(serde_json::Value::String(text)) => Owned::Text(text.as_str().into()),
                Some(other) => Owned::Text(other.to_string().into()),
            };
            take(&self.names.iter().map(value).collect::<Vec<_>>(), share)
        })
    }

    fn lines(&self, take: &mut dyn FnMut(&Object, f64) -> Result<bool, Failure>) -> Result<(), Failure> {
        let all = self.bytes().max(1) as f64;
        let mut reader = BufReader::new(File::open(&self.path)?);
        let (mut line, mut number, mut read) = (Vec::new(), 0_u64, 0_u64);
        loop {
            line.clear();
            let mut limited = std::io::Read::take(&mut reader, MOST_LINE_BYTES as u64);
            let length = limited.read_until(b'\n', &mut line)?;
            if length == 0 {
                return Ok(());
            }
            (number, read) = (number + 1, read + length as u64);
            if length == MOST_LINE_BYTES && line.last() != Some(&b'\n') {
                return Err(format!("line {number}: expected at most {MOST_LINE_BYTES} bytes").into());
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let object = serde_json::from_slice(&line).map_err(|error| format!("line {number}: {error}"))?;
            if !take(&object, read as f64 / all)? {
                return Ok(());
            }
        }
    }

    fn each_parquet(&self, take: &mut Take<'_>) -> Result<(), Failure> {
        let reader = SerializedFileReader::new(File::open(&self.path)?)?;
        let rows = reader.metadata().file_metadata().num_rows().max(1) as f64;
        for (at, row) in reader.get_row_iter(None)?.enumerate() {
            let row = row?;
            let row: Vec<Owned<'_>> = row.get_column_iter().map(|(_, field)| of_field(field)).collect();
            if !take(&row, (at + 1) as f64 / rows)? {
                break;
            }
        }
        Ok(())
    }
}

type Object = serde_json::Map<String, serde_json::Value>;

type Take<'a> = dyn FnMut(&[Owned<'_>], f64) -> Result<bool, Failure> + 'a;

fn of_field(field: &Field) -> Owned<'_> {
    match field {
        Field::Null => Owned::Missing,
        Field::Byte(number) => Owned::Number(f64::from(*number)),
        Field::Short(number) => Owned::Number(f64::from(*number)),
        Field::Int(number) | Field::Date(number) => Owned::Number(f64::from(*number)),
        Field::UByte(number) => Owned::Number(f64::from(*number)),
        Field::UShort(number) => Owned::Number(f64::from(*number)),
        Field::UInt(number) => Owned::Number(f64::from(*number)),
        Field::Long(number) | Field::TimestampMillis(number) | Field::TimestampMicros(number) => {
            Owned::Number(*number as f64)
        }
        Field::ULong(number) => Owned::Number(*number as f64),
        Field::Float16(number) => Owned::Number(f64::from(f32::from(*number))),
        Field::Float(number) => Owned::Number(f64::from(*number)),
        Field::Double(number) => Owned::Number(*number),
        Field::Str(text) => Owned::Text(text.as_str().into()),
        other => Owned::Text(other.to_string().into()),
    }
}

/// What was seen of a column.
#[derive(Default)]
struct Seen {
    values: u64,
    numbers: u64,
    characters: u64,
    distinct: BTreeSet<String>,
    before: Option<f64>,
    text_before: String,
    /// Whether some value is no larger than the one before.
    is_disordered: bool,
}

impl Seen {
    fn take(&mut self, value: &Owned<'_>) {
        let value = value.as_kind(ColumnKind::Numeric);
        match value {
            Value::Missing => return,
            Value::Number(number) => {
                self.numbers += 1;
                self.is_disordered |= self.before.is_some_and(|before| number <= before);
                self.before = Some(number);
            }
            Value::Text(text) => {
                self.characters += text.chars().count() as u64;
                // Times are often written so that they sort.
                self.is_disordered |= self.values > 0 && *text <= *self.text_before;
                text.clone_into(&mut self.text_before);
                if self.distinct.len() < LOOKED_AT {
                    self.distinct.insert(text.chars().take(256).collect());
                }
            }
        }
        self.values += 1;
    }

    fn found(&self) -> Found {
        // Fewer rows could be in order by chance.
        if !self.is_disordered && self.values >= 20 && (self.numbers == self.values || self.numbers == 0) {
            return Found::Counts;
        }
        if self.numbers as f64 >= 0.95 * self.values as f64 {
            return Found::Kind(ColumnKind::Numeric);
        }
        let texts = (self.values - self.numbers).max(1);
        let mostly_new = self.distinct.len() as f64 > 0.5 * texts as f64;
        let long = self.characters > 12 * texts;
        Found::Kind(if mostly_new && long { ColumnKind::Text } else { ColumnKind::Categorical })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn rows(data: &Data) -> Vec<Vec<Option<f64>>> {
        let mut rows = Vec::new();
        data.each(|row, share| {
            assert!(share > 0.0 && share <= 1.0);
            rows.push(row.iter().map(Owned::number).collect());
            Ok(true)
        })
        .unwrap();
        rows
    }

    #[test]
    fn csv_and_json_lines_give_the_same_rows() {
        let (_a, csv) = file("a.csv", "x,y\n1,2.5\n,NA\n3,text\n");
        let (_b, json) = file("b.jsonl", "{\"x\":1,\"y\":2.5}\n\n{\"x\":null}\n{\"y\":\"text\",\"x\":3}\n");
        let (csv, json) = (Data::open(&csv).unwrap(), Data::open(&json).unwrap());
        assert_eq!((csv.names.clone(), rows(&csv)), (json.names.clone(), rows(&json)));
        assert_eq!(rows(&csv), [[Some(1.0), Some(2.5)], [None, None], [Some(3.0), None]]);
    }

    #[test]
    fn columns_are_told_by_what_they_hold() {
        let line = |at: u32| {
            format!(
                "{at},2026-01-01 {at:04},{},{},a long text that is new {}\n",
                at * 37 % 101,
                ["a", "b"][at as usize % 2],
                at * 7 % 100
            )
        };
        let text = format!("id,at,x,plan,note\n{}", (0..100).map(line).collect::<String>());
        let (_folder, path) = file("a.csv", &text);
        let kinds = Data::open(&path).unwrap().kinds().unwrap();
        let name = |found: &Found| match found {
            Found::Counts => None,
            Found::Kind(kind) => Some(*kind),
        };
        let expected =
            [None, None, Some(ColumnKind::Numeric), Some(ColumnKind::Categorical), Some(ColumnKind::Text)];
        assert_eq!(kinds.iter().map(name).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_place() {
        for (name, text, says) in [
            ("a.txt", "", "expected a .csv"),
            ("a.csv", "", "expected columns"),
            ("a.csv", "x,x\n1,2\n", "expected columns"),
            ("a.jsonl", "{\"x\":1}\nno\n", "line 2"),
            ("a.parquet", "PAR1 and nothing", "a.parquet"),
        ] {
            let (_folder, path) = file(name, text);
            let told = match Data::open(&path) {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            };
            assert!(told.contains(says), "{name} {text}: {told}");
        }
        let (_folder, path) = file("a.csv", "x,y\n1,2\n3\n");
        assert!(Data::open(&path).unwrap().each(|_, _| Ok(true)).is_err());
    }
}
