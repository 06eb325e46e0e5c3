use crate::{DataType, Error, Result};
use bytes::Bytes;

/// A dense tensor in the protocol's byte layout: little-endian, row-major, no padding; BOOL one byte an element; BYTES
/// elements each a `u32` length and then the bytes.
///
/// The bytes of a request's tensor are a slice of the received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    datatype: DataType,
    shape: Vec<usize>,
    data: Bytes,
}

impl Tensor {
    /// A tensor of `shape` over `data`, checked against each other.
    ///
    /// # Errors
    /// `InvalidArgument` when the number of elements overflows or `data` does not hold exactly that many.
    pub fn new(datatype: DataType, shape: Vec<usize>, data: Bytes) -> Result<Self> {
        let elements = element_count(&shape)?;
        match datatype.element_bytes() {
            Some(size) => {
                let expected = elements.checked_mul(size).ok_or_else(|| too_large(&shape))?;
                if data.len() != expected {
                    return Err(Error::invalid(format!(
                        "expected {expected} bytes for {datatype} {shape:?}, got {}",
                        data.len()
                    )));
                }
            }
            None => check_bytes_elements(&data, elements)?,
        }
        Ok(Self { datatype, shape, data })
    }

    /// The element type.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// Sizes of the dimensions; the first one counts rows.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes, in the layout described above.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The same tensor over a copy of its bytes, which keeps nothing else in memory as a slice does.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { datatype: self.datatype, shape: self.shape.clone(), data: Bytes::copy_from_slice(&self.data) }
    }

    /// The bytes without the tensor around them.
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// The first dimension, 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The elements of a BYTES tensor, in order. Empty for any other datatype.
    pub fn bytes_elements(&self) -> BytesElements<'_> {
        BytesElements { rest: if self.datatype == DataType::Bytes { &self.data } else { &[] } }
    }

    /// The values of an FP32 tensor. Empty for any other datatype.
    pub fn f32_values(&self) -> impl ExactSizeIterator<Item = f32> + '_ {
        self.chunks(DataType::Fp32).map(f32::from_le_bytes)
    }

    /// The values of an INT64 tensor. Empty for any other datatype.
    pub fn i64_values(&self) -> impl ExactSizeIterator<Item = i64> + '_ {
        self.chunks(DataType::Int64).map(i64::from_le_bytes)
    }

    /// The same numbers in another floating-point type, each the nearest there is in it; `None` where either type is not one.
    pub fn to_float(&self, datatype: DataType) -> Option<Self> {
        let numbers: Vec<f64> = match self.datatype {
            DataType::Fp64 => self.chunks(DataType::Fp64).map(f64::from_le_bytes).collect(),
            DataType::Fp32 => self.f32_values().map(f64::from).collect(),
            DataType::Fp16 => {
                self.chunks(DataType::Fp16).map(|it| half::f16::from_le_bytes(it).to_f64()).collect()
            }
            DataType::Bf16 => {
                self.chunks(DataType::Bf16).map(|it| half::bf16::from_le_bytes(it).to_f64()).collect()
            }
            _ => return None,
        };
        let numbers = numbers.into_iter();
        let data: Vec<u8> = match datatype {
            DataType::Fp64 => numbers.flat_map(f64::to_le_bytes).collect(),
            DataType::Fp32 => numbers.flat_map(|it| (it as f32).to_le_bytes()).collect(),
            DataType::Fp16 => numbers.flat_map(|it| half::f16::from_f64(it).to_le_bytes()).collect(),
            DataType::Bf16 => numbers.flat_map(|it| half::bf16::from_f64(it).to_le_bytes()).collect(),
            _ => return None,
        };
        Some(Self { datatype, shape: self.shape.clone(), data: data.into() })
    }

    fn chunks<const N: usize>(&self, wanted: DataType) -> impl ExactSizeIterator<Item = [u8; N]> + '_ {
        let data: &[u8] = if self.datatype == wanted { &self.data } else { &[] };
        data.as_chunks::<N>().0.iter().copied()
    }
}

/// Iterator over the elements of a BYTES tensor.
#[derive(Debug, Clone)]
pub struct BytesElements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for BytesElements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.rest = rest;
        Some(element)
    }
}

/// Checks that `data` is exactly `elements` length-prefixed BYTES elements.
///
/// # Errors
/// `InvalidArgument` naming the first element whose length prefix lies, or the number that came.
pub fn check_bytes_elements(data: &[u8], elements: usize) -> Result<()> {
    let mut iter = BytesElements { rest: data };
    let count = iter.by_ref().count();
    if !iter.rest.is_empty() {
        return Err(Error::invalid(format!(
            "BYTES element {count}: its length prefix does not fit the {} bytes that are left",
            iter.rest.len()
        )));
    }
    if count != elements {
        return Err(Error::invalid(format!("expected {elements} BYTES elements, got {count}")));
    }
    Ok(())
}

fn element_count(shape: &[usize]) -> Result<usize> {
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).ok_or_else(|| too_large(shape))
}

fn too_large(shape: &[usize]) -> Error {
    Error::invalid(format!("shape {shape:?} has more elements than can be addressed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_data(elements: &[&[u8]]) -> Bytes {
        let mut data = Vec::new();
        for element in elements {
            data.extend_from_slice(&u32::try_from(element.len()).unwrap().to_le_bytes());
            data.extend_from_slice(element);
        }
        data.into()
    }

    #[test]
    fn sizes_must_agree() {
        assert!(Tensor::new(DataType::Fp32, vec![2, 3], vec![0; 24].into()).is_ok());
        for len in [0, 23, 25] {
            assert!(Tensor::new(DataType::Fp32, vec![2, 3], vec![0; len].into()).is_err());
        }
        assert!(Tensor::new(DataType::Int8, vec![usize::MAX, 2], Bytes::new()).is_err());
        assert!(Tensor::new(DataType::Fp64, vec![usize::MAX / 4], Bytes::new()).is_err());
    }

    #[test]
    fn bytes_elements_are_checked_and_read_back() {
        let data = bytes_data(&[b"one", b"", b"three"]);
        let tensor = Tensor::new(DataType::Bytes, vec![3], data.clone()).unwrap();
        assert_eq!(tensor.bytes_elements().collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
        assert!(Tensor::new(DataType::Bytes, vec![2], data.clone()).is_err());
        assert!(Tensor::new(DataType::Bytes, vec![3], data.slice(..data.len() - 1)).is_err());
        let lying = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert!(Tensor::new(DataType::Bytes, vec![1], lying).is_err());
    }

    #[test]
    fn numbers_become_the_nearest_of_another_precision() {
        let data: Vec<u8> =
            [1.5, -0.1, f64::NAN, 1e300].iter().flat_map(|it: &f64| it.to_le_bytes()).collect();
        let wide = Tensor::new(DataType::Fp64, vec![2, 2], data.into()).unwrap();
        let single = wide.to_float(DataType::Fp32).unwrap();
        let values: Vec<f32> = single.f32_values().collect();
        assert_eq!((single.shape(), &values[..2], values[3]), (&[2, 2][..], &[1.5, -0.1][..], f32::INFINITY));
        assert!(values[2].is_nan());
        for datatype in [DataType::Fp16, DataType::Bf16] {
            let half = single.to_float(datatype).unwrap();
            assert_eq!((half.datatype(), half.data().len()), (datatype, 8));
            let back = half.to_float(DataType::Fp64).unwrap();
            assert_eq!(back.data()[..8], 1.5_f64.to_le_bytes());
        }
        assert_eq!(wide.to_float(DataType::Fp64).unwrap().data()[..24], wide.data()[..24]);
        assert!(wide.to_float(DataType::Int64).is_none());
        let whole = Tensor::new(DataType::Int64, vec![1], vec![0; 8].into()).unwrap();
        assert!(whole.to_float(DataType::Fp32).is_none());
    }
}
