//! Resizing with the arithmetic of PIL: along one side, then along the other what came out, which is rounded to bytes in
//! between. Where an image gets smaller, the filter is as wide as what becomes one pixel.

use super::decode::Rgb;
use crate::process::image::COLOURS;
use std::f64::consts::PI;

/// Bits of a share behind its point: with eight bits of a colour and two for what filters overshoot by, 32.
const SHARE_BITS: u32 = 22;

/// How the pixels around a place add to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// How far it reaches, in pixels.
    fn reach(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The share of a pixel at the distance `x`.
    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        let distance = x.abs();
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            _ if distance >= self.reach() => 0.0,
            Self::Bilinear => 1.0 - distance,
            Self::Hamming => sinc(x) * (0.54 + 0.46 * (PI * x).cos()),
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5,
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }
}

/// What one place is made of: from which pixel on, and of how much of each.
struct Shares {
    first: usize,
    shares: Vec<i32>,
}

/// The shares of each of `to` places in a line of `from`.
fn shares(from: usize, to: usize, filter: Filter) -> impl Iterator<Item = Shares> {
    let scale = from as f64 / to as f64;
    let width = scale.max(1.0);
    let reach = filter.reach() * width;
    (0..to).map(move |place| {
        let centre = (place as f64 + 0.5) * scale;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from);
        let weight = |pixel: usize| filter.at((pixel as f64 - centre + 0.5) * (1.0 / width));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << SHARE_BITS)).round() as i32;
        Shares { first, shares: weights.into_iter().map(fixed).collect() }
    })
}

/// Rounds a sum of bytes times shares.
fn byte(sum: i32) -> u8 {
    (sum >> SHARE_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (SHARE_BITS - 1);

/// Brings an image to `height` and `width`. Columns come first where they shrink by so much more than lines do, and so
/// save work: about where PIL has it so. In the other order a byte in five is off by one.
pub(super) fn resize(image: Rgb, height: usize, width: usize, filter: Filter) -> Rgb {
    let shrinks = |from: usize, to: usize| from as f64 / to as f64;
    let (down, across) = (shrinks(image.height, height), shrinks(image.width, width));
    if down > 1.0 && down > across * across {
        resize_lines(resize_columns(image, height, filter), width, filter)
    } else {
        resize_columns(resize_lines(image, width, filter), height, filter)
    }
}

fn resize_lines(image: Rgb, width: usize, filter: Filter) -> Rgb {
    if image.width == width {
        return image;
    }
    let shares: Vec<Shares> = shares(image.width, width, filter).collect();
    let mut out = Vec::with_capacity(image.height * width * COLOURS);
    for line in image.bytes.chunks_exact(image.width * COLOURS) {
        for Shares { first, shares } in &shares {
            let mut sums = [HALF; COLOURS];
            let (pixels, _) = line[first * COLOURS..].as_chunks::<COLOURS>();
            for (pixel, share) in pixels.iter().zip(shares) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * share;
                }
            }
            out.extend_from_slice(&sums.map(byte));
        }
    }
    Rgb { bytes: out, width, ..image }
}

fn resize_columns(image: Rgb, height: usize, filter: Filter) -> Rgb {
    if image.height == height {
        return image;
    }
    let line = image.width * COLOURS;
    let mut out = Vec::with_capacity(height * line);
    let mut sums = vec![0; line];
    for Shares { first, shares } in shares(image.height, height, filter) {
        sums.fill(HALF);
        for (values, share) in image.bytes[first * line..].chunks_exact(line).zip(shares) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += i32::from(*value) * share;
            }
        }
        out.extend(sums.iter().copied().map(byte));
    }
    Rgb { bytes: out, height, ..image }
}
