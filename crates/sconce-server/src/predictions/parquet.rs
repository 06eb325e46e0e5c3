//! Records as Parquet: a column a field, tensors as lists of structures. A tensor's values are in the list of their kind (`floats`,
//! `ints`, `uints`, `bytes`), the other lists are null; all are where the policy keeps no values of it.

use super::record::{Record, Values};
use crate::content::Kept;
use crate::traffic::RouteKey;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{FileMetaData, ParquetMetaData, ParquetMetaDataWriter};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::fs::File;
use std::sync::Arc;

/// A file that is being written.
pub(super) struct Writer {
    writer: SerializedFileWriter<File>,
    rows: i64,
}

type Group<'a> = SerializedRowGroupWriter<'a, File>;

impl Writer {
    pub(super) fn new(file: File) -> Result<Self> {
        let schema = Arc::new(parse_message_type(&schema())?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_created_by(concat!("sconce version ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        Ok(Self { writer: SerializedFileWriter::new(file, schema, Arc::new(properties))?, rows: 0 })
    }

    /// Writes records as one row group, and returns what would end the file here: how long it is, and a footer for that.
    pub(super) fn write(&mut self, records: &[&Record]) -> Result<(u64, Vec<u8>)> {
        let mut group = self.writer.next_row_group()?;
        let texts = |of: fn(&Record) -> String| {
            records.iter().map(|record| text(&of(record))).collect::<Vec<ByteArray>>()
        };
        let numbers = |of: fn(&Record) -> i64| records.iter().map(|record| of(record)).collect::<Vec<i64>>();
        column::<ByteArrayType>(&mut group, &texts(|record| record.id.to_string()), None, None)?;
        column::<Int64Type>(&mut group, &numbers(Record::at_us), None, None)?;
        column::<ByteArrayType>(&mut group, &texts(|record| record.model.to_string()), None, None)?;
        column::<Int64Type>(&mut group, &numbers(|r| r.version.parse().unwrap_or(0)), None, None)?;
        optional(&mut group, records.iter().map(|record| record.variant.as_deref()))?;
        optional(&mut group, records.iter().map(|record| record.tenant.as_deref()))?;
        column::<ByteArrayType>(&mut group, &texts(|record| record.status.to_owned()), None, None)?;
        column::<Int64Type>(&mut group, &numbers(Record::latency_us), None, None)?;
        tensors(&mut group, &records.iter().map(|record| &record.inputs[..]).collect::<Vec<_>>())?;
        tensors(&mut group, &records.iter().map(|record| &record.outputs[..]).collect::<Vec<_>>())?;
        optional(&mut group, records.iter().map(|record| record.review))?;
        column::<ByteArrayType>(&mut group, &texts(|record| record.request.version.clone()), None, None)?;
        optional_numbers(&mut group, records.iter().map(|record| record.request.priority.map(i64::from)))?;
        optional_numbers(&mut group, records.iter().map(|record| record.request.timeout_us()))?;
        column::<Int64Type>(&mut group, &numbers(|record| count(record.request.inputs)), None, None)?;
        let keys: Vec<&[RouteKey]> = records.iter().map(|record| &record.request.keys[..]).collect();
        leaves::<ByteArrayType, _>(&mut group, &keys, |key| text(key.from))?;
        leaves::<ByteArrayType, _>(&mut group, &keys, |key| text(&key.name))?;
        leaves::<ByteArrayType, _>(&mut group, &keys, |key| text(&key.value))?;
        group.close()?;
        self.writer.flush()?;
        self.rows += i64::try_from(records.len()).unwrap_or(i64::MAX);
        Ok((self.writer.bytes_written() as u64, self.footer()?))
    }

    /// The file, to be brought to disk.
    pub(super) fn file(&self) -> &File {
        self.writer.inner()
    }

    /// Row groups so far.
    pub(super) fn groups(&self) -> usize {
        self.writer.flushed_row_groups().len()
    }

    /// Ends the file.
    pub(super) fn finish(mut self) -> Result<File> {
        self.writer.finish()?;
        Ok(self.writer.inner().try_clone()?)
    }

    fn footer(&self) -> Result<Vec<u8>> {
        let schema = Arc::new(self.writer.schema_descr().clone());
        let created_by = self.writer.properties().created_by().to_owned();
        let version = self.writer.properties().writer_version().as_num();
        let about = FileMetaData::new(version, self.rows, Some(created_by), None, schema, None);
        let metadata = ParquetMetaData::new(about, self.writer.flushed_row_groups().to_vec());
        let mut footer = Vec::new();
        ParquetMetaDataWriter::new(&mut footer, &metadata).finish()?;
        Ok(footer)
    }
}

fn schema() -> String {
    let list = |name: &str, repetition: &str, kind: &str| {
        format!("{repetition} group {name} (LIST) {{ repeated group list {{ required {kind}; }} }}")
    };
    let tensors = |name: &str| {
        format!(
            "required group {name} (LIST) {{ repeated group list {{ required group element {{
                required binary name (STRING);
                required binary datatype (STRING);
                {} {} {} {} {}
            }} }} }}",
            list("shape", "required", "int64 element"),
            list("floats", "optional", "double element"),
            list("ints", "optional", "int64 element"),
            list("uints", "optional", "int64 element (INTEGER(64,false))"),
            list("bytes", "optional", "binary element"),
        )
    };
    format!(
        "message prediction {{
            required binary prediction_id (STRING);
            required int64 time (TIMESTAMP(MICROS,true));
            required binary model (STRING);
            required int64 version;
            optional binary variant (STRING);
            optional binary tenant (STRING);
            required binary status (STRING);
            required int64 latency_us;
            {} {}
            optional binary review (STRING);
            required group request {{
                required binary version (STRING);
                optional int64 priority;
                optional int64 timeout_us;
                required int64 inputs;
                required group keys (LIST) {{ repeated group list {{ required group element {{
                    required binary from (STRING);
                    required binary name (STRING);
                    required binary value (STRING);
                }} }} }}
            }}
        }}",
        tensors("inputs"),
        tensors("outputs"),
    )
}

fn column<T: DataType>(
    group: &mut Group<'_>,
    values: &[T::T],
    definitions: Option<&[i16]>,
    repetitions: Option<&[i16]>,
) -> Result<()> {
    let missing = || ParquetError::General("a record has more columns than the schema".to_owned());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, definitions, repetitions)?;
    column.close()
}

fn optional<'a>(group: &mut Group<'_>, texts: impl Iterator<Item = Option<&'a str>> + Clone) -> Result<()> {
    let definitions: Vec<i16> = texts.clone().map(|text| text.is_some().into()).collect();
    let values: Vec<ByteArray> = texts.flatten().map(text).collect();
    column::<ByteArrayType>(group, &values, Some(&definitions), None)
}

fn optional_numbers(group: &mut Group<'_>, numbers: impl Iterator<Item = Option<i64>> + Clone) -> Result<()> {
    let definitions: Vec<i16> = numbers.clone().map(|number| number.is_some().into()).collect();
    column::<Int64Type>(group, &numbers.flatten().collect::<Vec<_>>(), Some(&definitions), None)
}

/// The columns of one list of tensors.
fn tensors(group: &mut Group<'_>, records: &[&[Kept]]) -> Result<()> {
    leaves::<ByteArrayType, _>(group, records, |kept| text(kept.name()))?;
    leaves::<ByteArrayType, _>(group, records, |kept| text(kept.datatype().name()))?;
    let sizes = |kept: &Kept| kept.shape().iter().map(|size| count(*size)).collect();
    lists::<Int64Type>(group, records, 1, |kept| Some(sizes(kept)))?;
    lists::<DoubleType>(group, records, 2, |kept| match Values::of(kept.tensor()?) {
        Values::Floats(values) => Some(values),
        _ => None,
    })?;
    lists::<Int64Type>(group, records, 2, |kept| match Values::of(kept.tensor()?) {
        Values::Ints(values) => Some(values),
        _ => None,
    })?;
    lists::<Int64Type>(group, records, 2, |kept| match Values::of(kept.tensor()?) {
        // The column's type says that they are unsigned.
        Values::Uints(values) => Some(values.into_iter().map(u64::cast_signed).collect()),
        _ => None,
    })?;
    lists::<ByteArrayType>(group, records, 2, |kept| match Values::of(kept.tensor()?) {
        Values::Bytes(values) => Some(values.into_iter().map(|bytes| bytes.to_vec().into()).collect()),
        _ => None,
    })
}

/// A field of each item of a list. Definition 0: the record has none; repetition 1: not its first.
fn leaves<T: DataType, I>(group: &mut Group<'_>, records: &[&[I]], value: impl Fn(&I) -> T::T) -> Result<()> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for items in records {
        if items.is_empty() {
            definitions.push(0);
            repetitions.push(0);
        }
        for (index, item) in items.iter().enumerate() {
            values.push(value(item));
            definitions.push(1);
            repetitions.push((index > 0).into());
        }
    }
    column::<T>(group, &values, Some(&definitions), Some(&repetitions))
}

/// A list of each tensor. Definition 0: the record has no tensor; 1: the list is null, where it may be; `empty`: it has nothing in it;
/// one more: an element. Repetition 1: of another tensor of the record; 2: of the same list.
fn lists<T: DataType>(
    group: &mut Group<'_>,
    records: &[&[Kept]],
    empty: i16,
    list: impl Fn(&Kept) -> Option<Vec<T::T>>,
) -> Result<()> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for kept in records {
        if kept.is_empty() {
            definitions.push(0);
            repetitions.push(0);
        }
        for (index, kept) in kept.iter().enumerate() {
            repetitions.push((index > 0).into());
            match list(kept) {
                None => definitions.push(1),
                Some(elements) if elements.is_empty() => definitions.push(empty),
                Some(elements) => {
                    definitions.extend(std::iter::repeat_n(empty + 1, elements.len()));
                    repetitions.extend(std::iter::repeat_n(2, elements.len() - 1));
                    values.extend(elements);
                }
            }
        }
    }
    column::<T>(group, &values, Some(&definitions), Some(&repetitions))
}

fn count(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn text(text: &str) -> ByteArray {
    text.as_bytes().to_vec().into()
}
