//! From encoded images to a vision model's pixel values.

mod decode;
mod header;
mod preprocessor;
mod resize;

use crate::Problems;
use crate::files::Folder;
use decode::{Rgb, decode};
use header::{Header, MAX_PLACES};
use preprocessor::{Resize, Steps};
use resize::resize;
use sconce_core::{DataType, Error, Inputs, ModelInput, Preparation, Result, Tensor, TensorSpec};

/// The colours of a pixel: red, green, blue.
pub(crate) const COLOURS: usize = 3;

/// Turns images, or pixel values, into the pixel values a model computes with: [rows, 3, height, width].
#[derive(Debug)]
pub(crate) struct Images {
    steps: Steps,
}

impl Images {
    /// Reads `preprocessor_config.json`. `default_processor` is whose it is if it does not say.
    pub(crate) fn open(folder: &Folder, default_processor: &str, problems: &mut Problems) -> Option<Self> {
        Steps::read(folder, default_processor, problems).map(|steps| Self { steps })
    }

    /// Height and width of what a model is given.
    pub(crate) fn sides(&self) -> (usize, usize) {
        (self.steps.height, self.steps.width)
    }

    /// The inputs a request may give: encoded images, or pixel values.
    pub(crate) fn inputs(&self) -> Vec<TensorSpec> {
        let shape = [None, Some(COLOURS), Some(self.steps.height), Some(self.steps.width)];
        vec![
            TensorSpec::new("image", DataType::Bytes, &[None, Some(1)]),
            TensorSpec { form: 1, ..TensorSpec::new("pixel_values", DataType::Fp32, &shape) },
        ]
    }

    /// What [`prepare`](Self::prepare) takes: the pixel values, and the largest image decoded and resized.
    pub(crate) fn preparation(&self, inputs: &Inputs) -> Preparation {
        let Some(images) = inputs.get(0) else { return Preparation::default() };
        let working = images.bytes_elements().filter_map(|image| {
            let header = Header::read(image).ok()?;
            let (height, width) = self.resized(header.height, header.width).ok()?;
            let decoded = header.height * header.width * decode::BYTES_PER_PLACE;
            let between = (header.height * width).min(height * header.width);
            Some(decoded + (between + height * width) * COLOURS)
        });
        let working = working.max().unwrap_or(0);
        let row = COLOURS * self.steps.height * self.steps.width * size_of::<f32>();
        Preparation { bytes: inputs.rows().saturating_mul(row).saturating_add(working), is_heavy: true }
    }

    /// One FP32 tensor: the pixel values of all rows.
    pub(crate) fn prepare(&self, mut inputs: Inputs) -> Result<ModelInput> {
        let rows = inputs.rows();
        let pixels = match inputs.take(1) {
            Some(pixels) => pixels,
            None => {
                let images = inputs.take(0).ok_or_else(|| Error::invalid("input `image` is missing"))?;
                let Steps { height, width, .. } = self.steps;
                let mut data = Vec::with_capacity(rows * COLOURS * height * width * size_of::<f32>());
                for (row, image) in images.bytes_elements().enumerate() {
                    self.push(image, &mut data)
                        .map_err(|e| Error::invalid(format!("input `image`: row {row}: {e}")))?;
                }
                Tensor::new(DataType::Fp32, vec![rows, COLOURS, height, width], data.into())?
            }
        };
        Ok(ModelInput { tensors: vec![pixels], rows, row_tokens: Vec::new() })
    }

    fn push(&self, bytes: &[u8], data: &mut Vec<u8>) -> Result<(), String> {
        let header = Header::read(bytes)?;
        let (height, width) = self.resized(header.height, header.width)?;
        let mut image = decode(bytes, header)?;
        if let Some((_, filter)) = self.steps.resize {
            image = resize(image, height, width, filter);
        }
        self.push_values(&image, data);
        Ok(())
    }

    /// Height and width that an image of these is resized to.
    fn resized(&self, height: usize, width: usize) -> Result<(usize, usize), String> {
        let sides = match self.steps.resize {
            None => (height, width),
            Some((Resize::To(height, width), _)) => (height, width),
            Some((Resize::Shortest(side), _)) => {
                let (short, long) = (height.min(width), height.max(width));
                let longer = (side * long) / short.max(1);
                if width <= height { (longer, side) } else { (side, longer) }
            }
        };
        // The longer side may have grown as much as the shorter.
        if sides.0.saturating_mul(sides.1) > MAX_PLACES {
            return Err(format!(
                "expected at most {MAX_PLACES} pixels once resized, got {} by {} from {width} by {height}",
                sides.1, sides.0
            ));
        }
        Ok(sides)
    }

    /// The image's middle, or the image in the middle of zeros, colour by colour.
    fn push_values(&self, image: &Rgb, data: &mut Vec<u8>) {
        let Steps { height, width, tables, .. } = &self.steps;
        let offset = |have: usize, want: usize| (have as isize - want as isize).div_euclid(2);
        let (top, left) = (offset(image.height, *height), offset(image.width, *width));
        let inside =
            |at: usize, offset: isize, end: usize| at.checked_add_signed(offset).filter(|at| *at < end);
        for (colour, table) in tables.iter().enumerate() {
            for y in 0..*height {
                let line = inside(y, top, image.height).map(|y| &image.bytes[y * image.width * COLOURS..]);
                for x in 0..*width {
                    let at = inside(x, left, image.width).map(|x| x * COLOURS + colour);
                    let byte = line.zip(at).map_or(0, |(line, at)| line[at]);
                    data.extend_from_slice(&table[usize::from(byte)].to_le_bytes());
                }
            }
        }
    }
}
