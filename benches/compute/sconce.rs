//! Sconce's models as a contestant of `benches/compute/run`: `sconce-compute FOLDER`, where FOLDER is a model package. The
//! protocol is described in `compute.py`. `sconce-compute --peak` prints the most GFLOP/s that this core can do in f32.

#![expect(clippy::print_stdout, reason = "the answer goes to standard output")]

use sconce_candle::Package;
use sconce_core::{Backend, Batch, DataType, DeviceId, LoadedModel, ModelInput, Tensor};
use sconce_kernels::Isa;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).ok_or("usage: sconce-compute FOLDER | --peak")?;
    if folder == "--peak" {
        println!("{:.1}", peak_gigaflops());
        return Ok(());
    }
    let model = Package::open(Path::new(&folder), DeviceId::Cpu)?.load()?;
    let mut backend = model.instance()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let seconds: f64 = words.next().ok_or("an empty request")?.parse()?;
        let lengths = words.map(str::parse).collect::<std::result::Result<Vec<usize>, _>>()?;
        let inputs = requests(&*model, &lengths)?;
        let reply = if seconds > 0.0 {
            serde_json::json!({"ms": measure(&mut *backend, &inputs, seconds)?})
        } else {
            serde_json::json!({"values": run(&mut *backend, inputs)?})
        };
        println!("{reply}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Token ids: a request for each row, as they come to a server. Features and pixels: one request, as the peers get them.
fn requests(model: &dyn LoadedModel, lengths: &[usize]) -> Result<Vec<ModelInput>> {
    let ids = |row: usize| (0..lengths[row]).map(move |column| id(row, column));
    let prepare = |name, tensor| Ok(model.prepare(model.signature().check([(name, tensor)])?)?);
    let inputs = &model.signature().inputs;
    let Some(input) = inputs.iter().find(|input| ["features", "pixel_values"].contains(&&input.name[..]))
    else {
        let request = |row: usize| {
            let data: Vec<u8> = ids(row).flat_map(i64::to_le_bytes).collect();
            prepare("input_ids", Tensor::new(DataType::Int64, vec![1, lengths[row]], data.into())?)
        };
        return (0..lengths.len()).map(request).collect();
    };
    // A row of free size has as many features as the request says.
    let columns = lengths.first().copied().ok_or("a request without rows")?;
    let row = input.shape.iter().skip(1).map(|side| side.unwrap_or(columns));
    let shape = std::iter::once(lengths.len()).chain(row).collect();
    let values = (0..lengths.len()).flat_map(ids).map(|id| (id as f32 - 15_000.0) / 15_000.0);
    let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    Ok(vec![prepare(&input.name, Tensor::new(DataType::Fp32, shape, data.into())?)?])
}

/// The token that every contestant sees at `column` of `row`.
fn id(row: usize, column: usize) -> i64 {
    (1000 + (row * 7919 + column * 104_729) % 28_000) as i64
}

/// The first output of each request, one after the other.
fn run(backend: &mut dyn Backend, inputs: Vec<ModelInput>) -> Result<Vec<f32>> {
    backend.submit(Batch { inputs }, &|| {})?;
    let mut values = Vec::new();
    for output in backend.collect()?.outputs {
        values.extend(output?.tensors[0].f32_values());
    }
    Ok(values)
}

/// The fastest of many short runs of multiply-adds in registers, after the core had the time to find its clock rate.
fn peak_gigaflops() -> f64 {
    let start = Instant::now();
    let mut best = 0f64;
    while start.elapsed().as_secs_f64() < 1.0 {
        let begin = Instant::now();
        let operations = sconce_kernels::peak(Isa::current(), 1_000_000);
        best = best.max(operations / begin.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// Milliseconds: the median of the runs that `seconds` have time for, without the first unless it alone takes them.
fn measure(backend: &mut dyn Backend, inputs: &[ModelInput], seconds: f64) -> Result<f64> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 2 || start.elapsed().as_secs_f64() < seconds {
        let inputs = inputs.to_vec();
        let begin = Instant::now();
        backend.submit(Batch { inputs }, &|| {})?;
        let outputs = backend.collect()?.outputs;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
        drop(outputs);
        if times[0] > seconds * 1000.0 {
            return Ok(times[0]);
        }
    }
    let rest = &mut times[1..];
    rest.sort_by(f64::total_cmp);
    Ok(rest[rest.len() / 2])
}
