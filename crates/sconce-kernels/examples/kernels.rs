//! Times the kernels on the shapes of MiniLM (hidden 384, 12 heads, 6 layers), in turns with a loop of
//! independent fused multiply-adds: the speed of both changes from minute to minute, their ratio hardly.
//!
//! `taskset -c 1 cargo run --release --example kernels [f32|bf16|int8]... [model] [rows]...`

#![allow(clippy::print_stdout)]

use rustix::time::{ClockId, clock_gettime};
use sconce_kernels::{Activation, After, Isa, PackedMatrix, Precision, Scratch, add_norm, attention, dense};
use std::hint::black_box;
use std::time::Duration;

const HIDDEN: usize = 384;
const HEADS: usize = 12;
const LAYERS: usize = 6;
/// Name, inner dimension, columns and activation of a layer's products.
const PRODUCTS: [(&str, usize, usize, Activation); 4] = [
    ("qkv", 384, 1152, Activation::None),
    ("attention out", 384, 384, Activation::None),
    ("up + GELU", 384, 1536, Activation::Gelu),
    ("down", 1536, 384, Activation::None),
];
const NAMES: [&str; 3] = ["f32", "bf16", "int8"];
const ROWS: [usize; 8] = [1, 8, 16, 20, 64, 128, 512, 920];

fn main() {
    let isa = Isa::current();
    println!("{isa:?}, peak {:.0} GFLOP/s", peak(isa));
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let rows: Vec<usize> = asked.iter().filter_map(|word| word.parse().ok()).collect();
    let rows = if rows.is_empty() { ROWS.to_vec() } else { rows };
    for (name, precision) in NAMES.into_iter().zip([Precision::F32, Precision::Bf16, Precision::Int8]) {
        if asked.iter().any(|word| word == name) || !asked.iter().any(|word| NAMES.contains(&&word[..])) {
            if !asked.iter().any(|word| word == "model") {
                products(isa, name, precision, &rows);
            }
            if rows.len() == ROWS.len() {
                for (sequences, tokens, group) in
                    [(1, 1, 1), (1, 8, 1), (1, 20, 1), (46, 20, 46), (46, 20, 8), (2, 512, 1)]
                {
                    model(isa, name, precision, (sequences, tokens), group);
                }
            }
        }
    }
}

fn products(isa: Isa, name: &str, precision: Precision, rows: &[usize]) {
    for (product, inner, columns, activation) in PRODUCTS {
        let weights = matrix(isa, precision, columns, inner);
        let bias = noise(columns);
        let after = After { bias: &bias, activation, residual: &[] };
        print!("{name:5} {product:14}");
        for &rows in rows {
            let x = noise(rows * inner);
            let mut out = vec![0.0; rows * columns];
            let mut scratch = Scratch::new();
            let flops = 2.0 * (rows * inner * columns) as f64;
            let calls = (2e8 / flops).ceil() as usize;
            let mut ratios = Vec::new();
            let mut speeds = Vec::new();
            for _ in 0..15 {
                let peak = peak(isa);
                let taken = time(|| {
                    for _ in 0..calls {
                        dense(black_box(&x), &weights, after, black_box(&mut out), &mut scratch);
                    }
                });
                let speed = flops * calls as f64 / taken.as_secs_f64() / 1e9;
                speeds.push(speed);
                ratios.push(speed / peak);
            }
            print!("  {rows}: {:.0} ({:.0} %)", median(&mut speeds), 100.0 * median(&mut ratios));
        }
        println!();
    }
}

/// The kernels of a whole encoder for sequences of so many tokens, `group` of them at a time: few enough rows,
/// and what one kernel writes is still in the second-level cache when the next reads it.
fn model(isa: Isa, name: &str, precision: Precision, batch: (usize, usize), group: usize) {
    let (sequences, tokens) = batch;
    let layers: Vec<[PackedMatrix; 4]> = (0..LAYERS)
        .map(|_| PRODUCTS.map(|(_, inner, columns, _)| matrix(isa, precision, columns, inner)))
        .collect();
    let (gamma, bias) = (vec![1.0; HIDDEN], noise(4 * HIDDEN));
    let mut batch = noise(sequences * tokens * HIDDEN);
    let rows = group * tokens;
    let (mut qkv, mut wide) = (vec![0.0; rows * 3 * HIDDEN], vec![0.0; rows * 4 * HIDDEN]);
    let (mut mixed, mut out) = (vec![0.0; rows * HIDDEN], vec![0.0; rows * HIDDEN]);
    let mut scratch = Scratch::new();
    let mut parts = [const { Vec::new() }; 6];
    let mut totals = Vec::new();
    for _ in 0..(4000 / (sequences * tokens)).clamp(9, 60) {
        let mut spent = [Duration::ZERO; 6];
        for x in batch.chunks_mut(rows * HIDDEN) {
            let rows = x.len() / HIDDEN;
            let (qkv, wide) = (&mut qkv[..rows * 3 * HIDDEN], &mut wide[..rows * 4 * HIDDEN]);
            let (mixed, out) = (&mut mixed[..rows * HIDDEN], &mut out[..rows * HIDDEN]);
            for layer in &layers {
                let mut product = |index: usize, x: &[f32], out: &mut [f32]| {
                    let (_, _, columns, activation) = PRODUCTS[index];
                    let after = After { bias: &bias[..columns], activation, residual: &[] };
                    time(|| dense(x, &layer[index], after, out, &mut scratch))
                };
                spent[0] += product(0, x, qkv);
                spent[2] += product(1, mixed, out);
                spent[3] += time(|| add_norm(isa, x, out, &gamma, &bias[..HIDDEN], 1e-12));
                spent[4] += product(2, x, wide);
                spent[5] += product(3, wide, out);
                spent[3] += time(|| add_norm(isa, x, out, &gamma, &bias[..HIDDEN], 1e-12));
                spent[1] += time(|| {
                    let outs = mixed.chunks_mut(tokens * HIDDEN);
                    for (qkv, out) in qkv.chunks(tokens * 3 * HIDDEN).zip(outs) {
                        attention(isa, qkv, HIDDEN, HEADS, out, &mut scratch);
                    }
                });
            }
        }
        for (part, spent) in parts.iter_mut().zip(spent) {
            part.push(spent.as_secs_f64() * 1e3);
        }
        totals.push(spent.iter().sum::<Duration>().as_secs_f64() * 1e3);
    }
    print!("{name:5} {sequences} x {tokens} by {group}: {:.2} ms:", median(&mut totals));
    let names = ["qkv", "attention", "attention out", "norms", "up + GELU", "down"];
    for (part, spent) in names.iter().zip(&mut parts) {
        print!(" {part} {:.3}", median(spent));
    }
    println!();
}

fn matrix(isa: Isa, precision: Precision, columns: usize, inner: usize) -> PackedMatrix {
    let weights: Vec<f32> = noise(columns * inner).iter().map(|w| w * 0.05).collect();
    PackedMatrix::new(isa, precision, &weights, columns, inner)
}

/// The processor time of `work`: other programs that run here at the same time do not count.
fn time(work: impl FnOnce()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let start = now();
    work();
    now() - start
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// GFLOP/s of independent fused multiply-adds in registers.
fn peak(isa: Isa) -> f64 {
    let mut operations = 0.0;
    let taken = time(|| operations = sconce_kernels::peak(isa, 100_000));
    operations / taken.as_secs_f64() / 1e9
}
