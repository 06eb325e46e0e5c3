//! Plain Candle as a contestant of `benches/compute/run`: BERT of candle-transformers, or dense layers.
//! `candle-compute FOLDER`; the protocol is described in `compute.py`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder};
use candle_transformers::models::bert::{BertModel, Config};
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

enum Model {
    Bert(BertModel),
    Dense(Vec<Linear>),
}

/// Rows of one length, the short ones padded.
enum Input {
    Tokens { ids: Tensor, types: Tensor, mask: Tensor },
    Features(Tensor),
}

impl Model {
    fn load(folder: &Path) -> Result<Self> {
        let weights = std::fs::read(folder.join("model.safetensors"))?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
        if let Ok(config) = std::fs::read(folder.join("config.json")) {
            let config: Config = serde_json::from_slice(&config).map_err(candle_core::Error::wrap)?;
            return Ok(Self::Bert(BertModel::load(weights, &config)?));
        }
        let mut layers = Vec::new();
        while weights.contains_tensor(&format!("layers.{}.weight", layers.len())) {
            let layer = weights.pp(format!("layers.{}", layers.len()));
            layers.push(Linear::new(layer.get_unchecked("weight")?, Some(layer.get_unchecked("bias")?)));
        }
        Ok(Self::Dense(layers))
    }

    fn input(&self, lengths: &[usize]) -> Result<Input> {
        let (rows, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        let place = |index: usize| (index / longest, index % longest);
        let fill = |value: &dyn Fn(usize, usize) -> u32| {
            let values = (0..rows * longest).map(place);
            let values =
                values.map(|(row, column)| if column < lengths[row] { value(row, column) } else { 0 });
            Tensor::from_iter(values, &Device::Cpu)?.reshape((rows, longest))
        };
        let ids = fill(&id)?;
        Ok(match self {
            Self::Bert(_) => Input::Tokens { types: ids.zeros_like()?, mask: fill(&|_, _| 1)?, ids },
            Self::Dense(_) => Input::Features(((ids.to_dtype(DType::F32)? - 15_000.0)? / 15_000.0)?),
        })
    }

    /// One row of output for each of `input`, on the host.
    fn run(&self, input: &Input) -> Result<Vec<f32>> {
        let output = match (self, input) {
            (Self::Bert(model), Input::Tokens { ids, types, mask }) => {
                let hidden = model.forward(ids, types, Some(mask))?;
                let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
                let mean = hidden.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&mask.sum(1)?)?;
                mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)?
            }
            (Self::Dense(layers), Input::Features(features)) => {
                let mut x = features.clone();
                for (index, layer) in layers.iter().enumerate() {
                    x = layer.forward(&if index > 0 { x.relu()? } else { x })?;
                }
                x
            }
            _ => candle_core::bail!("the input is another model's"),
        };
        output.flatten_all()?.to_vec1()
    }
}

/// The token that every contestant sees at `column` of `row`.
fn id(row: usize, column: usize) -> u32 {
    (1000 + (row * 7919 + column * 104_729) % 28_000) as u32
}

/// Milliseconds: the median of the runs that `seconds` have time for, without the first unless it alone takes them.
fn measure(model: &Model, input: &Input, seconds: f64) -> Result<f64> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 2 || start.elapsed().as_secs_f64() < seconds {
        let run = Instant::now();
        model.run(input)?;
        times.push(run.elapsed().as_secs_f64() * 1000.0);
        if times[0] > seconds * 1000.0 {
            return Ok(times[0]);
        }
    }
    let rest = &mut times[1..];
    rest.sort_by(f64::total_cmp);
    Ok(rest[rest.len() / 2])
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: candle-compute FOLDER")?;
    let model = Model::load(Path::new(&folder))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let seconds: f64 = words.next().ok_or("an empty request")?.parse()?;
        let lengths = words.map(str::parse).collect::<std::result::Result<Vec<usize>, _>>()?;
        let input = model.input(&lengths)?;
        let reply = if seconds > 0.0 {
            serde_json::json!({"ms": measure(&model, &input, seconds)?})
        } else {
            serde_json::json!({"values": model.run(&input)?})
        };
        println!("{reply}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
