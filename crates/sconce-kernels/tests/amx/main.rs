//! Products in the tiles of AMX, against those without: emulated, and where there is AMX by the processor too.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod emulator;

use sconce_kernels::{
    Activation, After, Convolution, Images, Isa, Level, PackedMatrix, Precision, Scratch, Window, convolve,
    dense,
};
use std::process::Command;

/// Set in the process whose instructions are not emulated.
const REAL: &str = "SCONCE_TEST_REAL_AMX";

/// Instructions with AMX, each with what they are without: with every width of vectors where it is emulated, or
/// what this machine has, if it has AMX.
fn isas() -> Vec<(Isa, Isa)> {
    if std::env::var_os(REAL).is_some() {
        let best = Isa::best();
        return if best.amx() { vec![(best, Isa::at_most(best.level()))] } else { vec![] };
    }
    // Linux is never asked for AMX here: it refuses the instructions even if the processor has them.
    emulator::install();
    let mut isas: Vec<Isa> = [Level::Scalar, Level::Avx2, Level::Avx512].map(Isa::at_most).into();
    isas.dedup();
    // SAFETY: The emulator does what no processor does.
    isas.into_iter().map(|isa| (unsafe { isa.assume_amx() }, isa)).collect()
}

/// Runs `check` with the instructions above, and expects that they were used.
fn each_isa(mut check: impl FnMut(Isa, Isa)) {
    for (isa, without) in isas() {
        assert!(isa.amx() && !without.amx());
        let before = emulator::emulated();
        check(isa, without);
        assert_eq!(emulator::emulated() > before, std::env::var_os(REAL).is_none(), "{isa:?}");
    }
}

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

const ACTIVATIONS: [Activation; 7] = [
    Activation::None,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::Silu,
];

/// Rows, inner dimension and columns: every number of tiles' rows, every kind of rest, several blocks of each.
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes =
        vec![(3, 0, 5), (1, 1, 1), (200, 33, 40), (169, 600, 33), (33, 384, 1536), (20, 1536, 384)];
    for (rows, values) in (1..=70).zip(noise(140, 1).as_chunks::<2>().0) {
        let up_to = |most: f32, value: f32| 1 + ((value + 1.0) / 2.0 * most) as usize;
        shapes.push((rows, up_to(200.0, values[0]), up_to(100.0, values[1])));
    }
    shapes
}

fn product(x: &[f32], weights: &PackedMatrix, after: After<'_>, scratch: &mut Scratch) -> Vec<f32> {
    let rows = x.len().checked_div(weights.inner()).unwrap_or(3);
    let mut out = vec![f32::NAN; rows * weights.columns()];
    dense(x, weights, after, &mut out, scratch);
    out
}

/// What is in memory from earlier products must not show: as much of it as can be is NaN.
fn dirty() -> Scratch {
    let mut scratch = Scratch::new();
    for precision in [Precision::F32, Precision::Int8] {
        let weights = PackedMatrix::new(Isa::SCALAR, precision, &noise(64 * 600, 2), 64, 600);
        product(&[f32::NAN; 200 * 600], &weights, After::NOTHING, &mut scratch);
    }
    scratch
}

/// Compares products of `precision` with those without AMX: they are within `tolerance`, which is 0 for the same.
fn check_products(precision: Precision, tolerance: f32) {
    each_isa(|isa, without| {
        let mut scratch = dirty();
        for (rows, inner, columns) in shapes() {
            let (x, w) = (noise(rows * inner, 3), noise(columns * inner, 4));
            let (bias, residual) = (noise(columns, 5), noise(rows * columns, 6));
            let bias = if rows % 3 == 0 { &[][..] } else { &bias };
            let residual = if rows % 2 == 0 { &[][..] } else { &residual };
            let after = After { bias, activation: ACTIVATIONS[rows % ACTIVATIONS.len()], residual };
            let weights = PackedMatrix::new(isa, precision, &w, columns, inner);
            let got = product(&x, &weights, after, &mut scratch);
            let plain = PackedMatrix::new(without, precision, &w, columns, inner);
            let want = product(&x, &plain, after, &mut Scratch::new());
            let limit = tolerance * (inner as f32).sqrt().max(1.0);
            for (at, (got, want)) in got.iter().zip(want).enumerate() {
                let close = got.to_bits() == want.to_bits() || (got - want).abs() <= limit;
                assert!(close, "{isa:?} {precision:?} {rows}x{inner}x{columns} [{at}]: {got} {want}");
            }
        }
    });
}

#[test]
fn instructions_that_are_right_are_found_so() {
    each_isa(|isa, _| assert!(isa.amx_is_right(), "{isa:?}"));
}

#[test]
fn products_of_bytes_are_the_same_as_without() {
    check_products(Precision::Int8, 0.0);
}

#[test]
fn products_in_bf16_are_close_to_those_without() {
    check_products(Precision::Bf16, 2e-6);
}

#[test]
fn products_in_bf16_are_those_of_rounded_values() {
    let rounded = |x: &f32| {
        f64::from(f32::from_bits(x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1)) & 0xffff_0000))
    };
    each_isa(|isa, _| {
        let mut scratch = dirty();
        for (rows, inner, columns) in shapes() {
            let (x, w) = (noise(rows * inner, 13), noise(columns * inner, 14));
            let weights = PackedMatrix::new(isa, Precision::Bf16, &w, columns, inner);
            let got = product(&x, &weights, After::NOTHING, &mut scratch);
            for (at, got) in got.iter().enumerate() {
                let (row, column) =
                    (&x[at / columns * inner..][..inner], &w[at % columns * inner..][..inner]);
                let want: f64 = row.iter().zip(column).map(|(a, b)| rounded(a) * rounded(b)).sum();
                let error = (f64::from(*got) - want).abs();
                let shape = (rows, inner, columns);
                assert!(error <= 2e-6 * (inner as f64).sqrt().max(1.0), "{isa:?} {shape:?}: {got} {want}");
            }
        }
    });
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    each_isa(|isa, _| {
        let mut scratch = dirty();
        for (rows, inner, columns) in [(70, 90, 33), (33, 300, 20), (161, 40, 70), (17, 700, 64)] {
            let (x, w) = (noise(rows * inner, 7), noise(columns * inner, 8));
            for precision in [Precision::Bf16, Precision::Int8] {
                let weights = PackedMatrix::new(isa, precision, &w, columns, inner);
                let after = After { activation: Activation::Gelu, ..After::NOTHING };
                let all = product(&x, &weights, after, &mut scratch);
                for from in 0..rows {
                    // Alone, with one behind it, and with all that follow.
                    for count in [1, 2, rows].map(|count| count.min(rows - from)) {
                        if count > 2 && from % 7 != 0 {
                            continue;
                        }
                        let some = &x[from * inner..][..count * inner];
                        let got = product(some, &weights, after, &mut scratch);
                        let want = &all[from * columns..][..count * columns];
                        assert_eq!(got, want, "{isa:?} {precision:?} {rows}x{inner}x{columns} [{from}]");
                    }
                }
            }
        }
    });
}

#[test]
fn what_is_no_number_stays_in_its_row_or_column() {
    let (rows, inner, columns) = (49, 50, 40);
    let w = noise(columns * inner, 15);
    each_isa(|isa, _| {
        let mut scratch = dirty();
        for precision in [Precision::Bf16, Precision::Int8] {
            let weights = PackedMatrix::new(isa, precision, &w, columns, inner);
            let x = noise(rows * inner, 16);
            let clean = product(&x, &weights, After::NOTHING, &mut scratch);
            for (bad, at) in [(f32::NAN, 17), (f32::INFINITY, 0), (f32::NEG_INFINITY, 48)] {
                let mut x = x.clone();
                x[at * inner + 3] = bad;
                let got = product(&x, &weights, After::NOTHING, &mut scratch);
                for (row, (got, clean)) in got.chunks(columns).zip(clean.chunks(columns)).enumerate() {
                    if row == at {
                        assert!(got.iter().all(|v| !v.is_finite()), "{isa:?} {precision:?}: {got:?}");
                    } else {
                        assert_eq!(got, clean, "{isa:?} {precision:?} {row}");
                    }
                }
            }
            let mut bad_weights = w.clone();
            bad_weights[5 * inner] = f32::NAN;
            let weights = PackedMatrix::new(isa, precision, &bad_weights, columns, inner);
            let got = product(&x, &weights, After::NOTHING, &mut scratch);
            let bad = |at: usize| at % columns == 5;
            assert!(got.iter().enumerate().all(|(at, v)| v.is_nan() == bad(at)), "{isa:?} {precision:?}");
        }
    });
}

#[test]
fn denormals_are_zero_in_bf16() {
    each_isa(|isa, _| {
        let of = |x: f32, weight: f32| {
            let weights = PackedMatrix::new(isa, Precision::Bf16, &[weight], 1, 1);
            product(&[x], &weights, After::NOTHING, &mut Scratch::new())[0]
        };
        assert_eq!([of(1e-39, 1.0), of(1.0, 1e-39), of(1e-20, 1e-20)], [0.0; 3], "{isa:?}");
        assert_eq!(of(1.5, 2.0_f32.powi(-126)), 1.5 * 2.0_f32.powi(-126), "{isa:?}");
    });
}

#[test]
fn convolutions_are_as_without() {
    let windows = [(1, 1, 0), (1, 2, 0), (3, 1, 1), (7, 2, 3), (2, 2, 0)];
    each_isa(|isa, without| {
        let mut scratch = dirty();
        for (index, (size, stride, padding)) in windows.into_iter().enumerate() {
            let window = Window { size, stride, padding };
            let (height, width, channels, columns) =
                (9 + index, 12, [3, 17, 8, 3, 40][index], 20 + 11 * index);
            let (down, across) = (window.places(height), window.places(width));
            let inner = size * size * channels;
            let (x, w) = (noise(2 * height * width * channels, 9), noise(columns * inner, 10));
            let (bias, residual) = (noise(columns, 11), noise(down * across * columns, 12).repeat(2));
            for (precision, tolerance) in [(Precision::Bf16, 2e-6), (Precision::Int8, 0.0)] {
                let mut of = |isa: Isa, x: &[f32]| {
                    let images = x.len() / (height * width * channels);
                    let weights = &PackedMatrix::new(isa, precision, &w, columns, inner);
                    let mut out = vec![f32::NAN; images * down * across * columns];
                    let residual = &residual[..out.len()];
                    let after = After { bias: &bias, activation: Activation::None, residual };
                    let images = Images { values: x, height, width, channels };
                    let with = Convolution { window, weights, after, relu_last: true };
                    convolve(images, with, &mut out, &mut scratch);
                    out
                };
                let (got, want) = (of(isa, &x), of(without, &x));
                for (got, want) in got.iter().zip(want) {
                    let limit = tolerance * (inner as f32).sqrt();
                    assert!((got - want).abs() <= limit, "{isa:?} {precision:?} {window:?}: {got} {want}");
                }
                let alone: Vec<f32> = x.chunks(x.len() / 2).flat_map(|image| of(isa, image)).collect();
                assert_eq!(alone, got, "{isa:?} {precision:?} {window:?}");
            }
        }
    });
}

/// Threads have tiles of their own.
#[test]
fn threads_do_not_see_each_other() {
    each_isa(|isa, _| {
        let (rows, inner, columns) = (40, 100, 70);
        let of = |seed: u64| {
            let (x, w) = (noise(rows * inner, seed), noise(columns * inner, seed + 1));
            let weights = PackedMatrix::new(isa, Precision::Int8, &w, columns, inner);
            product(&x, &weights, After::NOTHING, &mut Scratch::new())
        };
        let want: Vec<_> = (20..24).map(of).collect();
        std::thread::scope(|scope| {
            for (seed, want) in (20..24).zip(&want) {
                scope.spawn(move || (0..4).for_each(|_| assert_eq!(of(seed), *want, "{isa:?}")));
            }
        });
    });
}

/// All of the above in a process that emulates nothing: there it is done by the processor, if that has AMX.
#[test]
fn the_processor_does_the_same() {
    if std::env::var_os(REAL).is_none() {
        let program = std::env::current_exe().expect("the path of this program");
        let output = Command::new(program).env(REAL, "1").output().expect("this program again");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("test result: ok"), "{text}");
    }
}
