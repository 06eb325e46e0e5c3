//! Convolutions and pooling with every set of instructions of this machine, against plain loops in f64.

use sconce_kernels::{
    Activation, After, Convolution, Images, Isa, PackedMatrix, Precision, Scratch, Window, convolve, dense,
    max_pool,
};

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

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

#[derive(Debug, Clone, Copy)]
struct Case {
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
    columns: usize,
    window: Window,
}

/// Windows of every kind over images of every kind of rest.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (size, stride, padding) in
        [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 3), (2, 2, 0), (5, 3, 2), (1, 1, 1), (3, 1, 4)]
    {
        let window = Window { size, stride, padding };
        for (index, channels) in [1, 3, 8, 17, 40].into_iter().enumerate() {
            let (height, width) = (7 + 3 * index, 8 + 5 * (index * 7 % 5));
            cases.push(Case {
                images: 1 + index % 3,
                height,
                width,
                channels,
                columns: 1 + index * 11,
                window,
            });
        }
    }
    // Shorter than the window without its border, and with it.
    cases.push(Case {
        images: 2,
        height: 1,
        width: 2,
        channels: 3,
        columns: 4,
        window: Window { size: 3, stride: 2, padding: 1 },
    });
    cases.push(Case {
        images: 1,
        height: 2,
        width: 2,
        channels: 3,
        columns: 4,
        window: Window { size: 5, stride: 1, padding: 1 },
    });
    cases
}

impl Case {
    fn places(&self) -> (usize, usize) {
        (self.window.places(self.height), self.window.places(self.width))
    }

    fn x(&self) -> Vec<f32> {
        noise(self.images * self.height * self.width * self.channels, 3)
    }

    fn images<'a>(&self, values: &'a [f32]) -> Images<'a> {
        Images { values, height: self.height, width: self.width, channels: self.channels }
    }

    /// The place of the images that place (`y`, `x`) of a window sees, if that is not its border.
    fn seen(&self, at: (usize, usize, usize), (y, x): (usize, usize)) -> Option<usize> {
        let (image, down, across) = at;
        let y =
            (down * self.window.stride + y).checked_sub(self.window.padding).filter(|y| *y < self.height)?;
        let x =
            (across * self.window.stride + x).checked_sub(self.window.padding).filter(|x| *x < self.width)?;
        Some(((image * self.height + y) * self.width + x) * self.channels)
    }

    /// Calls `with` for every image and place, in the order of the output.
    fn each_place(&self, mut with: impl FnMut((usize, usize, usize))) {
        let (down, across) = self.places();
        (0..self.images).for_each(|i| (0..down).for_each(|y| (0..across).for_each(|x| with((i, y, x)))));
    }
}

fn run(isa: Isa, case: &Case, x: &[f32], relu_last: bool, scratch: &mut Scratch) -> Vec<f32> {
    let size = case.window.size;
    let inner = size * size * case.channels;
    let weights = noise(case.columns * inner, 4);
    let weights = PackedMatrix::new(isa, Precision::F32, &weights, case.columns, inner);
    let bias = noise(case.columns, 5);
    let (down, across) = case.places();
    let one = case.height * case.width * case.channels;
    let mut out = vec![f32::NAN; x.len() / one * down * across * case.columns];
    // The same for all images: a batch of them compares with each alone.
    let residual = noise(down * across * case.columns, 6).repeat(x.len() / one);
    let after = After { bias: &bias, activation: Activation::None, residual: &residual };
    convolve(
        case.images(x),
        Convolution { window: case.window, weights: &weights, after, relu_last },
        &mut out,
        scratch,
    );
    out
}

#[test]
fn convolutions_match_plain_loops_and_ignore_the_batch() {
    let mut scratch = Scratch::new();
    for isa in Isa::available() {
        for case in cases() {
            let (x, size) = (case.x(), case.window.size);
            let (weights, bias) =
                (noise(case.columns * size * size * case.channels, 4), noise(case.columns, 5));
            let (down, across) = case.places();
            let residual = noise(down * across * case.columns, 6).repeat(case.images);
            for relu_last in [false, true] {
                let got = run(isa, &case, &x, relu_last, &mut scratch);
                let mut at = 0;
                case.each_place(|place| {
                    for column in 0..case.columns {
                        let mut want = f64::from(bias[column]) + f64::from(residual[at]);
                        for window in 0..size * size {
                            let Some(from) = case.seen(place, (window / size, window % size)) else {
                                continue;
                            };
                            for channel in 0..case.channels {
                                let weight =
                                    weights[(column * size * size + window) * case.channels + channel];
                                want += f64::from(weight) * f64::from(x[from + channel]);
                            }
                        }
                        let want = if relu_last { want.max(0.0) } else { want };
                        assert!(
                            (f64::from(got[at]) - want).abs() < 1e-4,
                            "{isa:?} {case:?}: {} {want}",
                            got[at]
                        );
                        at += 1;
                    }
                });
                assert_eq!(at, got.len());
                let one = case.height * case.width * case.channels;
                let alone: Vec<f32> =
                    x.chunks(one).flat_map(|image| run(isa, &case, image, relu_last, &mut scratch)).collect();
                assert_eq!(alone, got, "{isa:?} {case:?}");
            }
        }
    }
}

/// Convolutions are dense layers whose rows nobody writes out, in every precision: to the last bit.
#[test]
fn convolutions_are_dense_layers_of_what_windows_see() {
    let mut scratch = Scratch::new();
    // An inner dimension of several blocks, and weights too large for the second-level cache.
    let window = Window { size: 3, stride: 1, padding: 1 };
    let large = Case { images: 2, height: 9, width: 13, channels: 131, columns: 130, window };
    for (isa, precision) in Isa::available().into_iter().flat_map(|isa| PRECISIONS.map(|p| (isa, p))) {
        for case in cases().into_iter().chain([large]) {
            let (x, size, channels) = (case.x(), case.window.size, case.channels);
            let inner = size * size * channels;
            let mut rows = Vec::new();
            case.each_place(|place| {
                for window in 0..size * size {
                    match case.seen(place, (window / size, window % size)) {
                        Some(from) => rows.extend(&x[from..from + channels]),
                        None => rows.resize(rows.len() + channels, 0.0),
                    }
                }
            });
            let count = rows.len() / inner;
            let weights = noise(case.columns * inner, 4);
            let weights = PackedMatrix::new(isa, precision, &weights, case.columns, inner);
            let (bias, residual) = (noise(case.columns, 5), noise(count * case.columns, 6));
            let after = After { bias: &bias, activation: Activation::None, residual: &residual };
            let (mut want, mut got) = (vec![f32::NAN; residual.len()], vec![f32::NAN; residual.len()]);
            dense(&rows, &weights, after, &mut want, &mut scratch);
            let with = Convolution { window: case.window, weights: &weights, after, relu_last: false };
            convolve(case.images(&x), with, &mut got, &mut scratch);
            assert_eq!(got, want, "{isa:?} {precision:?} {case:?}");
        }
    }
}

#[test]
fn pooling_matches_plain_loops_and_keeps_nan() {
    for isa in Isa::available() {
        for case in cases() {
            let size = case.window.size;
            if size < 2 * case.window.padding {
                continue;
            }
            let mut x = case.x();
            x[0] = f32::NAN;
            let (down, across) = case.places();
            let mut got = vec![0.0; case.images * down * across * case.channels];
            max_pool(isa, case.images(&x), case.window, &mut got);
            let mut at = 0;
            case.each_place(|place| {
                for channel in 0..case.channels {
                    let seen = (0..size * size)
                        .filter_map(|window| case.seen(place, (window / size, window % size)));
                    let values: Vec<f32> = seen.map(|from| x[from + channel]).collect();
                    let want = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    assert_eq!(
                        got[at].is_nan(),
                        values.iter().any(|value| value.is_nan()),
                        "{isa:?} {case:?}"
                    );
                    assert!(got[at].is_nan() || got[at] == want, "{isa:?} {case:?}");
                    at += 1;
                }
            });
            assert_eq!(at, got.len());
        }
    }
}

#[test]
#[should_panic(expected = "weights are not of the window")]
fn weights_of_another_window_are_refused() {
    let weights = PackedMatrix::new(Isa::SCALAR, Precision::F32, &[0.0; 8], 2, 4);
    let window = Window { size: 1, stride: 1, padding: 0 };
    let with = Convolution { window, weights: &weights, after: After::NOTHING, relu_last: false };
    let images = Images { values: &[0.0; 12], height: 2, width: 2, channels: 3 };
    convolve(images, with, &mut [0.0; 8], &mut Scratch::new());
}
