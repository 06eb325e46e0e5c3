//! Numbers and labels out of tensors of any datatype.

use sconce_core::{DataType, Tensor, abbreviate};

/// A tensor as rows of equal width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    tensor: &'a Tensor,
    pub(super) rows: usize,
    /// Elements of a row.
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(tensor: &'a Tensor) -> Self {
        let rows = tensor.rows();
        let width = tensor.shape().iter().skip(1).product();
        Self { tensor, rows, width }
    }

    /// The elements of `row` as numbers, `step` apart, into `values`. None for BYTES.
    pub(super) fn read(self, row: usize, step: usize, values: &mut Vec<f64>) {
        values.clear();
        let elements = (row * self.width..(row + 1) * self.width).step_by(step.max(1));
        let data = self.tensor.data();
        macro_rules! numbers {
            ($number:ty, $bytes:literal, $to_f64:expr) => {{
                let (all, _) = data.as_chunks::<$bytes>();
                let number = |at: usize| all.get(at).map(|bytes| $to_f64(<$number>::from_le_bytes(*bytes)));
                values.extend(elements.filter_map(number));
            }};
        }
        match self.tensor.datatype() {
            DataType::Bool | DataType::Uint8 => numbers!(u8, 1, f64::from),
            DataType::Int8 => numbers!(i8, 1, f64::from),
            DataType::Uint16 => numbers!(u16, 2, f64::from),
            DataType::Int16 => numbers!(i16, 2, f64::from),
            DataType::Uint32 => numbers!(u32, 4, f64::from),
            DataType::Int32 => numbers!(i32, 4, f64::from),
            // Beyond 2^53 a difference of less than a part in 10^15 is not seen.
            DataType::Uint64 => numbers!(u64, 8, |number| number as f64),
            DataType::Int64 => numbers!(i64, 8, |number| number as f64),
            DataType::Fp16 => numbers!(half::f16, 2, f64::from),
            DataType::Bf16 => numbers!(half::bf16, 2, f64::from),
            DataType::Fp32 => numbers!(f32, 4, f64::from),
            DataType::Fp64 => numbers!(f64, 8, std::convert::identity),
            DataType::Bytes => {}
        }
    }
}

/// A label for people: text as it is, bytes that are none in hexadecimal, abbreviated.
pub(super) fn label(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => abbreviate(text).into_owned(),
        Err(_) => bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// The place of the largest value; the first of equal ones; `None` where there is none or one is NaN.
pub(super) fn top(values: &[f64]) -> Option<usize> {
    let mut best = (0, *values.first()?);
    for (at, &value) in values.iter().enumerate() {
        if value.is_nan() {
            return None;
        }
        if value > best.1 {
            best = (at, value);
        }
    }
    Some(best.0)
}

/// How many of the `k` largest of both are the same, as a share of `k`.
pub(super) fn top_overlap(first: &[f64], second: &[f64], k: usize) -> f64 {
    let largest = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        let by_value = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
        if k < order.len() {
            order.select_nth_unstable_by(k, by_value);
            order.truncate(k);
        }
        order.sort_unstable();
        order
    };
    let (first, second) = (largest(first), largest(second));
    let shared = first.iter().filter(|at| second.binary_search(at).is_ok()).count();
    shared as f64 / k.min(first.len()).max(1) as f64
}

/// Whether `values` are a distribution: at least two, none negative, and a sum of 1 within `tolerance`.
pub(super) fn is_distribution(values: &[f64], tolerance: f64) -> bool {
    values.len() >= 2
        && values.iter().all(|value| *value >= 0.0 && value.is_finite())
        && (values.iter().sum::<f64>() - 1.0).abs() <= tolerance
}

/// The cosine of the angle between both; `None` where one has no direction.
pub(super) fn cosine(first: &[f64], second: &[f64]) -> Option<f64> {
    // Scaled, so that squares neither overflow nor vanish.
    let largest = |values: &[f64]| values.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let (a, b) = (largest(first), largest(second));
    let (mut product, mut left, mut right) = (0.0, 0.0, 0.0);
    for (x, y) in first.iter().zip(second) {
        let (x, y) = (x / a, y / b);
        product += x * y;
        left += x * x;
        right += y * y;
    }
    let cosine = product / (left * right).sqrt();
    cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0))
}
