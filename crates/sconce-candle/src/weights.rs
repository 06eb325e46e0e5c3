use crate::Problems;
use crate::files::{Folder, MAX_WEIGHTS_FILE_BYTES};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// The names of a dense layer's weights [out, in] and of its bias [out], if it has one.
pub(crate) type LayerNames<'a> = (&'a str, Option<&'a str>);

/// How much of a file is read at once while its numbers are converted.
const CHUNK_BYTES: usize = 256 << 10;
/// The longest header the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a package: headers parsed and checked, tensors read one at a time when the model is loaded.
#[derive(Debug)]
pub(crate) struct Weights {
    files: Vec<(String, File)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

impl Weights {
    /// Opens `model.safetensors`, the shards its index names, or else every `.safetensors` file of the
    /// package.
    pub(crate) fn open(folder: &Folder, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let names = weight_files(folder, problems)?;
        let mut weights = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            problems.keep(weights.add(folder, &name));
        }
        (problems.count() == before).then_some(weights)
    }

    fn add(&mut self, folder: &Folder, name: &str) -> Result<(), String> {
        let (mut file, file_bytes) =
            folder.file(name, MAX_WEIGHTS_FILE_BYTES)?.ok_or_else(|| format!("{name}: no such file"))?;
        let (metadata, data_start) =
            read_header(&mut file, file_bytes).map_err(|e| format!("{name}: {e}"))?;
        for (tensor, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data_start + start as u64,
                bytes: end - start,
            };
            if self.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(format!("{name}: tensor `{tensor}` is in another file too"));
            }
        }
        self.files.push((name.to_owned(), file));
        Ok(())
    }

    /// The names of all tensors, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of tensor `name`.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// Reports a tensor that has another shape than `shape`, or a datatype that is not floating point.
    pub(crate) fn check(&self, name: &str, shape: &[usize], problems: &mut Problems) {
        let Some(entry) = self.tensors.get(name) else {
            return problems.push(format!("weights: tensor `{name}` {shape:?} is missing"));
        };
        if entry.shape != shape {
            problems
                .push(format!("weights: tensor `{name}`: expected shape {shape:?}, got {:?}", entry.shape));
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let got = entry.dtype;
            problems.push(format!("weights: tensor `{name}`: expected F32, F16 or BF16, got {got:?}"));
        }
    }

    /// Reads tensor `name` as `dtype` onto `device`.
    pub(crate) fn read(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor, String> {
        let shape = &self.entry(name)?.shape[..];
        Tensor::from_vec(self.values(name)?, shape, &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(dtype)?.to_device(device))
            .map_err(|e| format!("cannot make tensor `{name}`: {e}"))
    }

    /// Reads the values of tensor `name`, in one piece and no more memory than they take.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, String> {
        let entry = self.entry(name)?;
        let (file_name, file) = &self.files[entry.file];
        let fail = |e: &dyn std::fmt::Display| format!("{file_name}: cannot read tensor `{name}`: {e}");
        let mut file: &File = file;
        let mut values = Vec::new();
        values.try_reserve_exact(entry.shape.iter().product()).map_err(|e| fail(&e))?;
        file.seek(SeekFrom::Start(entry.start)).map_err(|e| fail(&e))?;
        let mut chunk = vec![0; CHUNK_BYTES.min(entry.bytes)];
        let mut left = entry.bytes;
        while left > 0 {
            let bytes = &mut chunk[..left.min(CHUNK_BYTES)];
            file.read_exact(bytes).map_err(|e| fail(&e))?;
            let halves = bytes.as_chunks().0.iter();
            match entry.dtype {
                Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
                Dtype::F16 => values.extend(halves.map(|b| f16::from_le_bytes(*b).to_f32())),
                Dtype::BF16 => values.extend(halves.map(|b| bf16::from_le_bytes(*b).to_f32())),
                other => return Err(fail(&format!("datatype {other:?}"))),
            }
            left -= bytes.len();
        }
        Ok(values)
    }

    fn entry(&self, name: &str) -> Result<&Entry, String> {
        self.tensors.get(name).ok_or_else(|| format!("weights: tensor `{name}` is missing"))
    }
}

fn weight_files(folder: &Folder, problems: &mut Problems) -> Option<Vec<String>> {
    let present = folder.safetensors();
    if present.iter().any(|name| name == "model.safetensors") {
        return Some(vec!["model.safetensors".to_owned()]);
    }
    let before = problems.count();
    if let Some(index) = folder.json(INDEX, problems) {
        let shards = index.get("weight_map").and_then(|map| map.as_object()).map(|map| {
            map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect::<BTreeSet<_>>()
        });
        match shards {
            Some(shards) if !shards.is_empty() => return Some(shards.into_iter().collect()),
            _ => problems.push(format!("{INDEX}: expected a `weight_map` of tensor names to files")),
        }
    }
    if problems.count() > before {
        return None;
    }
    if present.is_empty() {
        problems.push("model.safetensors: no such file (the weights)");
        return None;
    }
    Some(present)
}

/// Reads the header of a safetensors file of `file_bytes`: eight bytes of length and that much JSON. Returns
/// it with the offset at which the tensors start. The safetensors crate checks that tensors fill the data
/// without overlap.
fn read_header(file: &mut File, file_bytes: u64) -> Result<(Metadata, u64), String> {
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| format!("truncated: {file_bytes} bytes hold no header length"))?;
    let header_bytes = u64::from_le_bytes(length);
    let most = MAX_HEADER_BYTES.min(file_bytes.saturating_sub(8));
    if header_bytes > most {
        return Err(format!("its header claims {header_bytes} bytes, expected at most {most}"));
    }
    let mut header = vec![0; usize::try_from(header_bytes).map_err(|e| e.to_string())?];
    file.read_exact(&mut header).map_err(|e| format!("cannot read its header: {e}"))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| format!("its header is not valid: {e}"))?;
    let (claimed, left) = (metadata.data_len() as u64, file_bytes.saturating_sub(8 + header_bytes));
    if claimed != left {
        return Err(format!(
            "truncated or padded: its header describes {claimed} bytes of tensors, got {left}"
        ));
    }
    Ok((metadata, 8 + header_bytes))
}
