//! Every kernel with every set of instructions of this machine, against plain loops in f64.

use sconce_kernels::{
    Activation, After, Isa, PackedMatrix, Precision, Scratch, Table, add_norm, attention, dense, embed,
    l2_normalize, mean_pool, rms_norm, softmax,
};

/// Values in [-1, 1) that depend on `seed` alone.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The error function by its Taylor series, or beyond 3 by its continued fraction.
fn erf(x: f64) -> f64 {
    let square = x * x;
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -square / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..60).rev().fold(x.abs(), |below, n| x.abs() + f64::from(n) / 2.0 / below);
    let rest = (-square).exp() / fraction * std::f64::consts::FRAC_2_SQRT_PI / 2.0;
    (1.0 - rest).copysign(x)
}

fn exact(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

const ACTIVATIONS: [Activation; 7] = [
    Activation::None,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::Silu,
];

/// Rows, inner dimension and columns, with every height of tile and every kind of rest.
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![(0, 4, 3), (40, 1600, 65), (1, 900, 1), (200, 33, 40), (3, 0, 5)];
    // Without optimisation the plain loops are slow: one in five.
    for rows in (1..=70).step_by(if cfg!(debug_assertions) { 5 } else { 1 }) {
        shapes.push((rows, 1 + rows * 7 % 45, 1 + rows * 13 % 83));
    }
    shapes
}

fn all_dense(x: &[f32], weights: &PackedMatrix, after: After<'_>, scratch: &mut Scratch) -> Vec<f32> {
    let rows = if weights.inner() > 0 { x.len() / weights.inner() } else { 3 };
    let mut out = vec![f32::NAN; rows * weights.columns()];
    dense(x, weights, after, &mut out, scratch);
    out
}

/// Compares with `value(row, column)`, and every row alone and behind others with itself among all.
fn check_dense(isa: Isa, precision: Precision, tolerance: f64) {
    let mut scratch = Scratch::new();
    for (rows, inner, columns) in shapes() {
        let (x, w) = (noise(rows * inner, 1), noise(columns * inner, 2));
        let (bias, residual) = (noise(columns, 3), noise(rows * columns, 4));
        let weights = PackedMatrix::new(isa, precision, &w, columns, inner);
        let activation = ACTIVATIONS[rows % ACTIVATIONS.len()];
        let bias = if rows % 3 == 0 { &[][..] } else { &bias };
        let residual = if rows % 2 == 0 { &[][..] } else { &residual };
        let after = After { bias, activation, residual };
        let got = all_dense(&x, &weights, after, &mut scratch);
        for row in 0..rows {
            let own = &x[row * inner..][..inner];
            for column in 0..columns {
                let products =
                    own.iter().zip(&w[column * inner..][..inner]).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let sum = products.sum::<f64>() + f64::from(*bias.get(column).unwrap_or(&0.0));
                let want =
                    exact(activation, sum) + f64::from(*residual.get(row * columns + column).unwrap_or(&0.0));
                let got = f64::from(got[row * columns + column]);
                let limit = tolerance * (inner as f64).sqrt().max(1.0);
                assert!(
                    (got - want).abs() <= limit,
                    "{isa:?} {precision:?} {rows}x{inner}x{columns} [{row}, {column}]: {got} {want}"
                );
            }
        }
        if inner > 0 {
            for row in 0..rows {
                let own = After {
                    residual: residual.get(row * columns..).map_or(&[], |r| &r[..columns.min(r.len())]),
                    ..after
                };
                let alone = all_dense(&x[row * inner..][..inner], &weights, own, &mut scratch);
                assert_eq!(
                    alone,
                    got[row * columns..][..columns],
                    "{isa:?} {rows}x{inner}x{columns} [{row}]"
                );
            }
            let split = rows / 3 * inner;
            let own = After { residual: residual.get(rows / 3 * columns..).unwrap_or_default(), ..after };
            let rest = all_dense(&x[split..], &weights, own, &mut scratch);
            assert_eq!(rest, got[rows / 3 * columns..]);
        }
    }
}

#[test]
fn products_match_plain_loops_and_ignore_the_batch() {
    for isa in Isa::available() {
        check_dense(isa, Precision::F32, 2e-6);
        check_dense(isa, Precision::Bf16, 8e-3);
        check_dense(isa, Precision::Int8, 1e-2);
    }
}

#[test]
fn activations_match_the_exact_functions() {
    let values: Vec<f32> = (-13_000..=13_000).map(|i| i as f32 / 1000.0).collect();
    let mut scratch = Scratch::new();
    for isa in Isa::available() {
        let weights = PackedMatrix::new(isa, Precision::F32, &[1.0], 1, 1);
        for activation in ACTIVATIONS {
            let after = After { activation, ..After::NOTHING };
            let mut of = |values: &[f32]| all_dense(values, &weights, after, &mut scratch);
            for (x, got) in values.iter().zip(of(&values)) {
                let want = exact(activation, f64::from(*x));
                let error = (f64::from(got) - want).abs() / want.abs().max(1.0);
                assert!(error <= 1e-6, "{isa:?} {activation:?}({x}): {got} {want}");
            }
            assert!(of(&[f32::NAN])[0].is_nan(), "{isa:?} {activation:?}");
            let large = [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 200.0, -200.0];
            for (x, got) in large.iter().zip(of(&large)) {
                let want = match activation {
                    Activation::None => f64::from(*x),
                    Activation::Tanh => f64::from(x.signum()),
                    Activation::Sigmoid => f64::from(u8::from(*x > 0.0)),
                    _ => f64::from(x.max(0.0)),
                };
                let close = (f64::from(got) - want).abs() <= 1e-6 * want.abs().max(1.0);
                assert!(f64::from(got) == want || close, "{isa:?} {activation:?}({x}): {got} {want}");
            }
        }
    }
}

#[test]
fn attention_matches_plain_loops() {
    let mut scratch = Scratch::new();
    let shapes = [(1, 24, 2), (5, 32, 1), (16, 64, 2), (18, 96, 3), (20, 384, 12), (33, 40, 1), (90, 24, 2)];
    for isa in Isa::available() {
        for (tokens, hidden, heads) in shapes.into_iter().chain([(0, 8, 2), (65, 128, 2), (300, 64, 1)]) {
            let dim = hidden / heads;
            let qkv = noise(tokens * 3 * hidden, 5);
            let mut got = vec![f32::NAN; tokens * hidden];
            attention(isa, &qkv, hidden, heads, &mut got, &mut scratch);
            let at = |token: usize, part: usize, head: usize, i: usize| {
                f64::from(qkv[token * 3 * hidden + part * hidden + head * dim + i])
            };
            for (token, head) in (0..tokens).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                let score = |key: usize| {
                    let dot: f64 = (0..dim).map(|i| at(token, 0, head, i) * at(key, 1, head, i)).sum();
                    (dot / (dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..tokens).map(score).collect();
                let total: f64 = scores.iter().sum();
                for i in 0..dim {
                    let want: f64 =
                        scores.iter().enumerate().map(|(key, s)| s / total * at(key, 2, head, i)).sum();
                    let got = f64::from(got[token * hidden + head * dim + i]);
                    assert!((got - want).abs() < 2e-6, "{isa:?} {tokens} {hidden} {heads}: {got} {want}");
                }
            }
        }
    }
}

/// What a query is given does not depend on the other queries, nor on where its scores are cut.
#[test]
fn attention_of_many_tokens_is_that_of_each() {
    let (hidden, heads, tokens) = (64, 2, 600);
    let mut scratch = Scratch::new();
    for isa in Isa::available() {
        let mut qkv = noise(tokens * 3 * hidden, 6);
        let mut first = vec![0.0; tokens * hidden];
        attention(isa, &qkv, hidden, heads, &mut first, &mut scratch);
        for token in (0..tokens).filter(|token| token % 7 != 3) {
            qkv[token * 3 * hidden..][..hidden].fill(0.5);
        }
        let mut second = vec![0.0; tokens * hidden];
        attention(isa, &qkv, hidden, heads, &mut second, &mut scratch);
        for token in (3..tokens).step_by(7) {
            assert_eq!(
                first[token * hidden..][..hidden],
                second[token * hidden..][..hidden],
                "{isa:?} {token}"
            );
        }
    }
}

#[test]
fn attention_of_large_scores_is_that_of_the_largest() {
    for isa in Isa::available() {
        for (query, key, one, equal) in
            [(1e12, 1.0, 1.0, 0.25), (1e10, 1.1, 1.0, 0.25), (1e30, 1.0, 1.0, 0.25)]
        {
            for (others, want) in [(0.0, one), (key, equal)] {
                let mut qkv = vec![0.0_f32; 4 * 72];
                for (token, row) in qkv.chunks_exact_mut(72).enumerate() {
                    row[0] = query;
                    row[24] = if token == 0 { key } else { others };
                    row[48] = if token == 0 { 1.0 } else { 0.0 };
                }
                let mut out = vec![0.0; 4 * 24];
                attention(isa, &qkv, 24, 1, &mut out, &mut Scratch::new());
                assert!((out[0] - want).abs() < 1e-6, "{isa:?}: {} instead of {want}", out[0]);
            }
        }
    }
}

#[test]
fn large_numbers_stay_numbers_in_int8() {
    for isa in Isa::available() {
        let dense_of = |x: &[f32], weights: &[f32], columns: usize| {
            let weights = PackedMatrix::new(isa, Precision::Int8, weights, columns, x.len());
            let mut out = vec![0.0; columns];
            dense(x, &weights, After::NOTHING, &mut out, &mut Scratch::new());
            out
        };
        let got = dense_of(&[2e38, -2e38], &[1.0, 0.0, 0.0, 0.0], 2);
        assert!((got[0] - 2e38).abs() < 4e36 && got[1] == 0.0, "{isa:?}: {got:?}");
        assert_eq!(dense_of(&[3e38, 0.0], &[0.0, 4e4], 1), [0.0], "{isa:?}");
    }
}

#[test]
fn attention_keeps_nan_to_its_head_and_query() {
    let (hidden, heads, tokens) = (64, 2, 20);
    for isa in Isa::available() {
        let mut qkv = noise(tokens * 3 * hidden, 6);
        qkv[7 * 3 * hidden + 3] = f32::NAN;
        let mut out = vec![0.0; tokens * hidden];
        attention(isa, &qkv, hidden, heads, &mut out, &mut Scratch::new());
        for (at, value) in out.iter().enumerate() {
            assert_eq!(value.is_nan(), at / hidden == 7 && at % hidden < 32, "{isa:?} {at}");
        }
    }
}

#[test]
fn norms_match_plain_loops_and_ignore_the_batch() {
    for isa in Isa::available() {
        for width in [1, 3, 8, 15, 16, 31, 37, 64, 100, 384] {
            let rows = 5;
            let (x, residual) = (noise(rows * width, 7), noise(rows * width, 8));
            let (gamma, beta) = (noise(width, 9), noise(width, 10));
            for (centred, residual, beta) in [
                (true, &residual[..], &beta[..]),
                (true, &[], &[]),
                (false, &residual, &[]),
                (false, &[], &[]),
            ] {
                let run = |x: &mut [f32], residual: &[f32]| match centred {
                    true => add_norm(isa, x, residual, &gamma, beta, 1e-6),
                    false => rms_norm(isa, x, residual, &gamma, 1e-6),
                };
                let mut got = x.clone();
                run(&mut got, residual);
                for row in 0..rows {
                    let of = |i: usize| {
                        let at = row * width + i;
                        f64::from(x[at] + residual.get(at).unwrap_or(&0.0))
                    };
                    let total: f64 = (0..width).map(of).sum();
                    let mean = if centred { total / width as f64 } else { 0.0 };
                    let squares: f64 = (0..width).map(|i| (of(i) - mean).powi(2)).sum();
                    let scale = 1.0 / (squares / width as f64 + 1e-6).sqrt();
                    for i in 0..width {
                        let want = (of(i) - mean) * scale * f64::from(gamma[i])
                            + f64::from(*beta.get(i).unwrap_or(&0.0));
                        let got = f64::from(got[row * width + i]);
                        assert!((got - want).abs() < 1e-5, "{isa:?} {width} {centred}: {got} {want}");
                    }
                    let mut own = x[row * width..][..width].to_vec();
                    run(&mut own, residual.get(row * width..).map_or(&[], |r| &r[..width.min(r.len())]));
                    assert_eq!(own, got[row * width..][..width]);
                }
            }
        }
    }
}

/// The integers of a row or column, with what they stand for.
fn quantised_row(row: &[f32]) -> (Vec<i64>, f32, i64) {
    let least = row.iter().fold(0.0_f32, |a, b| a.min(*b));
    let most = row.iter().fold(0.0_f32, |a, b| a.max(*b));
    let scale = most / 255.0 - least / 255.0;
    if scale < 4e-33 {
        return (vec![0; row.len()], 0.0, 0);
    }
    let zero = (-128.0 - least / scale).round_ties_even();
    let integer = |x: &f32| (x * (1.0 / scale)).clamp(-128.0 - zero, 127.0 - zero).round_ties_even() + zero;
    (row.iter().map(|x| integer(x) as i64).collect(), scale, zero as i64)
}

#[test]
fn products_of_bytes_are_exact_in_integers() {
    let mut scratch = Scratch::new();
    for (rows, inner, columns) in shapes() {
        let (mut x, mut w) = (noise(rows * inner, 11), noise(columns * inner, 12));
        // Rows of every range: small, large, one-sided and nothing; and a column of zeros.
        for (row, values) in x.chunks_exact_mut(inner.max(1)).enumerate() {
            let change: fn(f32) -> f32 = match row % 5 {
                0 => |v| v,
                1 => |v| v * 1e-6,
                2 => |v| v.abs() * 1e4,
                3 => |v| -v.abs(),
                _ => |_| 0.0,
            };
            values.iter_mut().for_each(|v| *v = change(*v));
        }
        w[..inner].fill(0.0);
        let mut want = Vec::new();
        for row in 0..rows {
            let (own, scale, zero) = quantised_row(&x[row * inner..][..inner]);
            for column in w.chunks_exact(inner.max(1)) {
                let unit = column.iter().fold(0.0_f32, |a, b| a.max(b.abs())) / 127.0;
                let integer = |w: &f32| if unit > 0.0 { (w / unit).round_ties_even() as i64 } else { 0 };
                let sum: i64 = own.iter().zip(column).map(|(q, w)| (q - zero) * integer(w)).sum();
                want.push(sum as f32 * unit * scale);
            }
        }
        for isa in Isa::available() {
            let weights = PackedMatrix::new(isa, Precision::Int8, &w, columns, inner);
            let got = all_dense(&x, &weights, After::NOTHING, &mut scratch);
            if inner > 0 {
                assert_eq!(got, want, "{isa:?} {rows}x{inner}x{columns}");
            }
        }
    }
}

#[test]
fn products_in_bf16_are_those_of_rounded_values() {
    let rounded = |x: &f32| {
        f64::from(f32::from_bits(x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1)) & 0xffff_0000))
    };
    let mut scratch = Scratch::new();
    for (rows, inner, columns) in shapes() {
        let (x, w) = (noise(rows * inner, 13), noise(columns * inner, 14));
        for isa in Isa::available() {
            let weights = PackedMatrix::new(isa, Precision::Bf16, &w, columns, inner);
            let got = all_dense(&x, &weights, After::NOTHING, &mut scratch);
            for (at, got) in got.iter().enumerate() {
                let (row, column) =
                    (&x[at / columns * inner..][..inner], &w[at % columns * inner..][..inner]);
                let want: f64 = row.iter().zip(column).map(|(a, b)| rounded(a) * rounded(b)).sum();
                let error = (f64::from(*got) - want).abs();
                assert!(error <= 2e-6 * (inner as f64).sqrt().max(1.0), "{isa:?}: {got} {want}");
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    let (rows, inner, columns) = (33, 50, 40);
    let w = noise(columns * inner, 15);
    for (isa, bad) in Isa::available().into_iter().flat_map(|isa| [(isa, f32::NAN), (isa, f32::INFINITY)]) {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let weights = PackedMatrix::new(isa, precision, &w, columns, inner);
            let mut x = noise(rows * inner, 16);
            let clean = all_dense(&x, &weights, After::NOTHING, &mut Scratch::new());
            x[17 * inner + 3] = bad;
            let got = all_dense(&x, &weights, After::NOTHING, &mut Scratch::new());
            for (row, (got, clean)) in got.chunks(columns).zip(clean.chunks(columns)).enumerate() {
                if row == 17 {
                    assert!(got.iter().all(|v| !v.is_finite()), "{isa:?} {precision:?}: {got:?}");
                } else {
                    assert_eq!(got, clean);
                }
            }
        }
        let mut bad_weights = w.clone();
        bad_weights[5 * inner] = f32::NAN;
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let weights = PackedMatrix::new(isa, precision, &bad_weights, columns, inner);
            let got = all_dense(&noise(inner, 17), &weights, After::NOTHING, &mut Scratch::new());
            assert!(got.iter().enumerate().all(|(column, v)| v.is_nan() == (column == 5)));
        }
    }
}

#[test]
fn rows_are_gathered_pooled_and_scaled() {
    for isa in Isa::available() {
        for width in [1, 5, 16, 33, 64] {
            let (words, places) = (noise(7 * width, 18), noise(4 * width, 19));
            let tables =
                [Table { values: &words, ids: &[6, 0, 3] }, Table { values: &places, ids: &[0, 3, 1] }];
            let mut x = vec![f32::NAN; 3 * width];
            embed(isa, &tables, width, &mut x);
            for (at, value) in x.iter().enumerate() {
                let part =
                    |table: &Table<'_>| table.values[table.ids[at / width] as usize * width + at % width];
                assert_eq!(*value, part(&tables[0]) + part(&tables[1]), "{isa:?}");
            }
            let mut mean = vec![f32::NAN; width];
            mean_pool(isa, &x, &mut mean);
            for (at, mean) in mean.iter().enumerate() {
                assert!((mean - (x[at] + x[width + at] + x[2 * width + at]) / 3.0).abs() < 1e-6);
            }
            mean_pool(isa, &[], &mut mean);
            assert!(mean.iter().all(|v| *v == 0.0));
            let mut unit = x.clone();
            unit[..width].fill(0.0);
            l2_normalize(isa, &mut unit, width);
            assert!(unit[..width].iter().all(|v| *v == 0.0));
            for (row, from) in unit.chunks(width).zip(x.chunks(width)).skip(1) {
                let length = from.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                for (got, from) in row.iter().zip(from) {
                    assert!((f64::from(*got) - f64::from(*from) / length).abs() < 1e-6, "{isa:?}");
                }
            }
            let mut shares: Vec<f32> = x.iter().map(|v| v * 90.0).collect();
            let logits = shares.clone();
            softmax(isa, &mut shares, width);
            for (row, from) in shares.chunks(width).zip(logits.chunks(width)) {
                let most = f64::from(from.iter().fold(f32::MIN, |a, b| a.max(*b)));
                let total: f64 = from.iter().map(|v| (f64::from(*v) - most).exp()).sum();
                for (got, from) in row.iter().zip(from) {
                    let want = (f64::from(*from) - most).exp() / total;
                    assert!((f64::from(*got) - want).abs() < 1e-6, "{isa:?} {got} {want}");
                }
            }
            shares[0] = f32::NAN;
            softmax(isa, &mut shares, width);
            assert!(
                shares[..width].iter().all(|v| v.is_nan()) && !shares[width..].iter().any(|v| v.is_nan())
            );
        }
    }
}

#[test]
#[should_panic(expected = "an id is not below 2")]
fn an_id_beyond_its_table_is_refused() {
    embed(Isa::current(), &[Table { values: &[0.0; 8], ids: &[2] }], 4, &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "out is not [rows, columns]")]
fn a_short_output_is_refused() {
    let weights = PackedMatrix::new(Isa::current(), Precision::F32, &[0.0; 12], 3, 4);
    dense(&[0.0; 8], &weights, After::NOTHING, &mut [0.0; 5], &mut Scratch::new());
}
