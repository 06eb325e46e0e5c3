//! Convolutions as dense layers over what a window sees of images, and pooling.
//!
//! The rows of the product are gathered one at a time into memory that stays in the first-level cache, where the
//! product takes them from: no matrix of all windows is ever made.

use crate::buffer::Scratch;
use crate::dense::{After, Dense, Rows};
use crate::isa::{Isa, Kernel};
use crate::pack::PackedMatrix;
use crate::simd::Simd;

/// Images of one size: `values` [images, height, width, channels].
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// The values, one image after another.
    pub values: &'a [f32],
    /// Places from top to bottom.
    pub height: usize,
    /// Places from left to right.
    pub width: usize,
    /// Values of a place.
    pub channels: usize,
}

impl Images<'_> {
    /// How many there are.
    fn count(&self) -> usize {
        let one = self.height.checked_mul(self.width).and_then(|places| places.checked_mul(self.channels));
        let one = one.unwrap_or(0);
        assert!(one > 0 && self.values.len().is_multiple_of(one), "values are not whole images");
        self.values.len() / one
    }
}

/// A square that moves over an image and the border around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Places along a side, at least 1.
    pub size: usize,
    /// Places it moves by, at least 1.
    pub stride: usize,
    /// Places of border on every side.
    pub padding: usize,
}

impl Window {
    /// How many times it fits along a side of `length` places: none if that is shorter than itself.
    pub fn places(self, length: usize) -> usize {
        (length + 2 * self.padding).checked_sub(self.size).map_or(0, |room| room / self.stride + 1)
    }
}

/// A convolution whose border is zeros.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// What is seen at once.
    pub window: Window,
    /// The weights, packed from [out channels, size · size · channels]: a window's rows from top to bottom, in each
    /// its places from left to right, in each the channels.
    pub weights: &'a PackedMatrix,
    /// What follows, as for a dense layer.
    pub after: After<'a>,
    /// Whether negative values become zero last, once the residual was added.
    pub relu_last: bool,
}

/// `out` [images, places down, places across, out channels], each place as [`dense`](crate::dense()) computes a row:
/// from what the window sees there alone, to the last bit.
///
/// # Panics
/// If a slice has not the length that the shapes give, or the window's size or stride is 0.
pub fn convolve(images: Images<'_>, with: Convolution<'_>, out: &mut [f32], scratch: &mut Scratch) {
    let Convolution { window, weights, after, relu_last } = with;
    let (count, columns) = (images.count(), weights.columns());
    assert!(window.size > 0 && window.stride > 0, "a window without size or stride");
    assert_eq!(weights.inner(), window.size * window.size * images.channels, "weights are not of the window");
    let (down, across) = (window.places(images.height), window.places(images.width));
    let rows = count * down * across;
    assert_eq!(Some(out.len()), rows.checked_mul(columns), "out is not [images, down, across, channels]");
    assert!(after.bias.is_empty() || after.bias.len() == columns, "bias is not [channels]");
    assert!(after.residual.is_empty() || after.residual.len() == out.len(), "residual is not as out");
    if out.is_empty() {
        return;
    }
    let x = if window == (Window { size: 1, stride: 1, padding: 0 }) {
        Rows::Slice(images.values)
    } else {
        scratch.window.resize(weights.inner().max(scratch.window.len()), 0.0);
        Rows::Windows(Windows { images, window, down, across })
    };
    Dense { x, rows, weights, after, relu_last, out, scratch }.dispatch();
}

/// What a window sees of images, place after place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows<'a> {
    images: Images<'a>,
    window: Window,
    down: usize,
    across: usize,
}

impl Windows<'_> {
    /// Row `index`: from the images if it lies there in one piece, or gathered in `space`.
    #[inline]
    pub(crate) fn row<'b>(&'b self, index: usize, space: &'b mut [f32]) -> &'b [f32] {
        let Self { images: Images { values, height, width, channels }, window, down, across } = *self;
        let (line, column) = (index / across, index % across);
        let image = &values[line / down * height * width * channels..][..height * width * channels];
        let (top, left) = (line % down * window.stride, column * window.stride);
        if window.size == 1 && window.padding == 0 {
            return &image[(top * width + left) * channels..][..channels];
        }
        // Of each line of the window: what is left of the image, in it, and right of it.
        let before = window.padding.saturating_sub(left).min(window.size);
        let first = (left + before).saturating_sub(window.padding).min(width);
        let inside = (width - first).min(window.size - before);
        let space = &mut space[..window.size * window.size * channels];
        for (line, to) in space.chunks_exact_mut(window.size * channels).enumerate() {
            let Some(y) = (top + line).checked_sub(window.padding).filter(|y| *y < height) else {
                to.fill(0.0);
                continue;
            };
            let (border, rest) = to.split_at_mut(before * channels);
            let (seen, rest) = rest.split_at_mut(inside * channels);
            border.fill(0.0);
            seen.copy_from_slice(&image[(y * width + first) * channels..][..inside * channels]);
            rest.fill(0.0);
        }
        space
    }
}

/// The largest value a window sees of each channel: `out` [images, places down, places across, channels]. The border
/// is never the largest; NaN is.
///
/// # Panics
/// If a slice has not the length that the shapes give, or the window is smaller than twice its border.
pub fn max_pool(isa: Isa, images: Images<'_>, window: Window, out: &mut [f32]) {
    let (count, down, across) = (images.count(), window.places(images.height), window.places(images.width));
    assert!(window.size >= 2 * window.padding && window.size > 0 && window.stride > 0, "a window of border");
    assert_eq!(
        out.len(),
        count * down * across * images.channels,
        "out is not [images, down, across, channels]"
    );
    isa.run(MaxPool { windows: Windows { images, window, down, across }, out });
}

struct MaxPool<'a> {
    windows: Windows<'a>,
    out: &'a mut [f32],
}

impl Kernel for MaxPool<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Windows { images: Images { values, height, width, channels }, window, down, across } =
            self.windows;
        for (index, out) in self.out.chunks_exact_mut(channels).enumerate() {
            let (line, column) = (index / across, index % across);
            let image = &values[line / down * height * width * channels..][..height * width * channels];
            let seen = |at: usize, length: usize| {
                let first = at * window.stride;
                first.saturating_sub(window.padding)..(first + window.size - window.padding).min(length)
            };
            out.fill(f32::NEG_INFINITY);
            for y in seen(line % down, height) {
                for x in seen(column, width) {
                    let place = &image[(y * width + x) * channels..][..channels];
                    for (largest, value) in out.iter_mut().zip(place) {
                        *largest = if *value > *largest || value.is_nan() { *value } else { *largest };
                    }
                }
            }
        }
    }
}
