//! Weights in the order in which products read them.

use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::{amx, bf16, int8};

/// How a matrix's weights are held, and with it how its products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision throughout.
    F32,
    /// Weights and activations rounded to bf16 (to nearest, ties to even), summed in single precision. The
    /// instructions for it (AVX-512 BF16, AMX) take denormals for zero, and make zero of them.
    Bf16,
    /// Weights as bytes with one scale for each output column, activations as bytes with a scale and a zero
    /// point for each row, taken from that row alone; sums are exact.
    Int8,
}

/// The kernel that a matrix is packed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Single,
    Bf16,
    Bf16Native,
    /// As native, for AMX: whole tiles of steps, and panels two tiles wide.
    Bf16Tiles,
    /// Pairs of bytes, widened when used.
    Int8Pairs,
    /// Fours of bytes, plus 128.
    Int8Vnni,
    /// Fours of bytes, for AMX.
    Int8Tiles,
}

impl Form {
    fn new(isa: Isa, precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::Single,
            Precision::Bf16 if isa.amx() => Self::Bf16Tiles,
            Precision::Bf16 if isa.bf16() => Self::Bf16Native,
            Precision::Bf16 => Self::Bf16,
            Precision::Int8 if isa.amx() => Self::Int8Tiles,
            Precision::Int8 if isa.vnni() => Self::Int8Vnni,
            Precision::Int8 => Self::Int8Pairs,
        }
    }

    /// Weights of a column in one step.
    fn values(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Bf16 | Self::Bf16Native | Self::Bf16Tiles | Self::Int8Pairs => 2,
            Self::Int8Vnni | Self::Int8Tiles => 4,
        }
    }

    fn bytes_per_value(self) -> usize {
        match self {
            Self::Single => 4,
            Self::Bf16 | Self::Bf16Native | Self::Bf16Tiles => 2,
            Self::Int8Pairs | Self::Int8Vnni | Self::Int8Tiles => 1,
        }
    }
}

/// A dense layer's weights, cut into panels of one or two vectors (or two tiles) of output columns; a panel
/// holds its columns step after step along the inner dimension. Packed once, when a model is loaded.
#[derive(Debug)]
pub struct PackedMatrix {
    pub(crate) data: Buffer,
    pub(crate) isa: Isa,
    pub(crate) form: Form,
    precision: Precision,
    /// Vectors side by side in a panel: 1 or 2, or as many as make two tiles.
    pub(crate) vectors: usize,
    /// Steps along the inner dimension.
    pub(crate) steps: usize,
    inner: usize,
    columns: usize,
    /// What an integer of each column stands for, for all columns of the panels; empty unless int8.
    pub(crate) scales: Vec<f32>,
    /// The sum of each column's integers, likewise.
    pub(crate) column_sums: Vec<i32>,
}

/// The most values along the inner dimension of an int8 product: more could overflow a sum.
pub const MAX_INT8_INNER: usize = 1 << 15;

impl PackedMatrix {
    /// Packs `weights` [columns, inner], a dense layer's weights as they are stored: one row for each output
    /// column. Its products use the instructions of `isa`.
    ///
    /// # Panics
    /// If `weights` has not `columns · inner` values, or if `inner` is more than [`MAX_INT8_INNER`] in int8.
    pub fn new(isa: Isa, precision: Precision, weights: &[f32], columns: usize, inner: usize) -> Self {
        assert_eq!(Some(weights.len()), columns.checked_mul(inner), "weights are not [columns, inner]");
        assert!(precision != Precision::Int8 || inner <= MAX_INT8_INNER, "{inner} values overflow int8 sums");
        let form = Form::new(isa, precision);
        let lanes = isa.lanes();
        let (values, size) = (form.values(), form.bytes_per_value());
        let steps = inner.div_ceil(values);
        let (vectors, steps) = match form {
            Form::Bf16Tiles | Form::Int8Tiles => (amx::COLUMNS / lanes, steps.next_multiple_of(amx::STEPS)),
            // Two vectors, unless the second would be mostly padding.
            _ if columns.div_ceil(lanes).is_multiple_of(2) || columns > 8 * lanes => (2, steps),
            _ => (1, steps),
        };
        let width = vectors * lanes;
        let panels = columns.div_ceil(width);
        let panel = steps * width * values * size;
        let mut packed = vec![0_u8; panels * panel];
        let (mut scales, mut column_sums) = (Vec::new(), Vec::new());
        if precision == Precision::Int8 {
            scales = vec![0.0; panels * width];
            column_sums = vec![0; panels * width];
        }
        for (column, row) in weights.chunks_exact(inner.max(1)).enumerate() {
            let to = &mut packed[column / width * panel + column % width * values * size..];
            let mut put = |at: usize, bytes: &[u8]| {
                to[at / values * width * values * size + at % values * size..][..size].copy_from_slice(bytes);
            };
            match form {
                Form::Single => row.iter().enumerate().for_each(|(at, w)| put(at, &w.to_ne_bytes())),
                Form::Bf16 | Form::Bf16Native | Form::Bf16Tiles => {
                    row.iter().enumerate().for_each(|(at, w)| put(at, &bf16::round(*w).to_ne_bytes()));
                }
                Form::Int8Pairs | Form::Int8Vnni | Form::Int8Tiles => {
                    let scale = int8::weight_scale(row);
                    scales[column] = scale;
                    let offset = if form == Form::Int8Vnni { 0x80 } else { 0 };
                    for (at, weight) in row.iter().enumerate() {
                        let value = int8::weight(*weight, scale);
                        column_sums[column] += i32::from(value);
                        put(at, &[value.cast_unsigned() ^ offset]);
                    }
                }
            }
        }
        let mut data = Buffer::zeroed(packed.len());
        data.copy_from(&packed);
        Self { data, isa, form, precision, vectors, steps, inner, columns, scales, column_sums }
    }

    /// Values in a row that is multiplied.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Values in a row of the product.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the weights are held.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The instructions its products use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.data.bytes() + 4 * (self.scales.len() + self.column_sums.len())
    }

    /// Bytes of a panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.steps * self.vectors * self.isa.lanes() * self.form.values() * self.form.bytes_per_value()
    }
}
