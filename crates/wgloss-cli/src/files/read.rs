//! Reading arrays.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use anyhow::{Result, anyhow, ensure};
use bytemuck::{Pod, cast_slice_mut};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError};
use wgloss::half::{bf16, f16};
use wgloss::{Array, DType, Element, Layout};

use super::Place;
use super::place::Format;
use crate::npy;

/// As many as numpy has.
const MAX_DIMENSIONS: usize = 64;

/// What an argument's elements mean, and so what types they may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Numbers: float32 (float16 and bfloat16 where the op takes them).
    Numbers,
    /// Class indices: int32 or int64.
    Classes,
    /// Either: the type tells which.
    ClassesOrNumbers,
}

impl Kind {
    fn expect(self, dtype: Result<Dtype, &str>) -> Result<Dtype> {
        let (integers, floats) =
            (&[Dtype::I32, Dtype::I64], &[Dtype::F32, Dtype::F16, Dtype::BF16]);
        let (allowed, words, numpy) = match self {
            Kind::Numbers => (floats.to_vec(), "float32, float16 or bfloat16", "float32"),
            Kind::Classes => (integers.to_vec(), "int32 or int64", "int64"),
            Kind::ClassesOrNumbers => (
                [&integers[..], floats].concat(),
                "int32 or int64 for classes, a float type for probabilities",
                "int64) or .astype(np.float32",
            ),
        };
        match dtype {
            Ok(dtype) if allowed.contains(&dtype) => return Ok(dtype),
            Ok(dtype) => Err(anyhow!("expected {words}, got {}", name(dtype))),
            Err(other) => Err(anyhow!("expected {words}, got numpy type {other}")),
        }
        .map_err(|error| anyhow!("{error}: convert with .astype(np.{numpy})"))
    }
}

/// The name in numpy's words, where it has one.
pub(super) fn name(dtype: Dtype) -> String {
    let name = match dtype {
        Dtype::BOOL => "bool",
        Dtype::U8 => "uint8",
        Dtype::U16 => "uint16",
        Dtype::U32 => "uint32",
        Dtype::U64 => "uint64",
        Dtype::I8 => "int8",
        Dtype::I16 => "int16",
        Dtype::I32 => "int32",
        Dtype::I64 => "int64",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        Dtype::C64 => "complex64",
        other => return other.to_string(),
    };
    name.into()
}

/// An array in a file, its header read and its elements not yet.
///
/// Elements are read where they are asked for, by seeking: files larger than memory serve as well as
/// with a memory map, which would take unsafe code, and die of a signal where a file is cut short.
#[derive(Debug)]
pub struct Source {
    file: fs::File,
    /// Where the elements start.
    start: u64,
    dtype: DType,
    shape: Vec<usize>,
    fortran_order: bool,
}

impl Source {
    /// Opens a file. `default_key` is the key where the place has none.
    pub fn open(place: &Place, default_key: &str, kind: Kind) -> Result<Self> {
        let format = place.format()?;
        let mut file = fs::File::open(&place.path)?;
        let length = file.metadata()?.len();
        let (start, end, dtype, shape, fortran_order) = match format {
            Format::Npy => {
                let mut header = Vec::new();
                (&file).take(npy::PREFIX as u64).read_to_end(&mut header)?;
                let start = npy::data_start(&header)? as u64;
                (&file).take(start.saturating_sub(header.len() as u64)).read_to_end(&mut header)?;
                // the elements of a tiny file may be among its first bytes
                header.truncate(start as usize);
                let npy = npy::parse(&header)?;
                (start, length, kind.expect(npy.dtype)?, npy.shape, npy.fortran_order)
            }
            Format::Safetensors => {
                let (start, header) = safetensors_header(&mut file, length)
                    .map_err(|error| anyhow!("not a good .safetensors file: {error}"))?;
                let key = place.key.as_deref().unwrap_or(default_key);
                let info =
                    header.info(key).ok_or_else(|| missing_key(key, header.offset_keys()))?;
                let (from, to) = info.data_offsets;
                let dtype = kind.expect(Ok(info.dtype))?;
                (start + from as u64, start + to as u64, dtype, info.shape.clone(), false)
            }
        };
        let dimensions = shape.len();
        ensure!(
            dimensions <= MAX_DIMENSIONS,
            "expected at most {MAX_DIMENSIONS} dimensions, got {dimensions}"
        );
        let countable = shape.iter().try_fold(1_usize, |all, &size| all.checked_mul(size.max(1)));
        ensure!(
            countable.is_some_and(|count| count <= isize::MAX as usize / 8),
            "expected a shape whose elements can be counted, got {shape:?}"
        );
        let empty = shape.contains(&0);
        let elements: u128 = shape.iter().map(|&size| size as u128).product();
        let expected = elements * dtype.bitsize() as u128 / 8;
        let found = end.saturating_sub(start);
        ensure!(
            u128::from(found) == expected,
            "expected {expected} bytes of {} for shape {shape:?}, got {found}",
            name(dtype),
        );
        let dtype = match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            Dtype::I32 => DType::I32,
            _ => DType::I64,
        };
        Ok(Source { file, start, dtype, shape, fortran_order: fortran_order && !empty })
    }

    /// Shape and element type.
    pub fn layout(&self) -> Layout {
        Layout::new(&self.shape, self.dtype)
    }

    /// All of the array.
    pub fn read(&self) -> Result<Array<'static>> {
        self.elements(0, &self.shape)
    }

    /// Some entries of the first dimension, which it must have.
    pub fn rows(&self, rows: Range<usize>) -> Result<Array<'static>> {
        ensure!(
            !self.fortran_order,
            "expected C order for --batch-rows, got Fortran order: convert with \
             np.ascontiguousarray"
        );
        let each = &self.shape[1..];
        let start = rows.start * each.iter().product::<usize>();
        self.elements(start, &[&[rows.len()], each].concat())
    }

    fn elements(&self, start: usize, shape: &[usize]) -> Result<Array<'static>> {
        match self.dtype {
            DType::F32 => self.typed::<f32>(start, shape),
            DType::F16 => self.typed::<f16>(start, shape),
            DType::Bf16 => self.typed::<bf16>(start, shape),
            DType::I32 => self.typed::<i32>(start, shape),
            DType::I64 => self.typed::<i64>(start, shape),
        }
    }

    fn typed<T: Element + Pod>(&self, start: usize, shape: &[usize]) -> Result<Array<'static>> {
        let mut values = vec![T::zeroed(); shape.iter().product()];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start + (start * size_of::<T>()) as u64))?;
        file.read_exact(cast_slice_mut(&mut values))?;
        if self.fortran_order {
            values = row_major(&values, shape);
        }
        Ok(Array::from_vec(values, shape)?)
    }
}

/// A file's header, and where the elements start.
fn safetensors_header(
    file: &mut fs::File,
    length: u64,
) -> Result<(u64, Metadata), SafeTensorError> {
    /// As for the crate's own reader, which takes whole files only.
    const MAX_HEADER: u64 = 100_000_000;

    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| SafeTensorError::HeaderTooSmall)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(SafeTensorError::HeaderTooLarge);
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header)?;
    if (header.len() as u64) < size {
        return Err(SafeTensorError::InvalidHeaderLength);
    }
    let header = str::from_utf8(&header).map_err(SafeTensorError::InvalidHeader)?;
    let header: Metadata =
        serde_json::from_str(header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    let start = 8 + size;
    match start.checked_add(header.data_len() as u64) {
        Some(end) if end == length => Ok((start, header)),
        _ => Err(SafeTensorError::MetadataIncompleteBuffer),
    }
}

fn missing_key(key: &str, mut found: Vec<String>) -> anyhow::Error {
    const SHOWN: usize = 8;
    found.sort_unstable();
    let shown: Vec<_> = found.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let more = if found.len() > SHOWN { ", ..." } else { "" };
    let found = if found.is_empty() { "none".into() } else { shown.join(", ") };
    anyhow!("expected a tensor {key:?}, found {found}{more} (FILE#KEY names one)")
}

/// Elements, reordered from first dimension fastest to last dimension fastest.
fn row_major<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &length in shape {
        strides.push(stride);
        stride *= length;
    }
    let mut index = vec![0; shape.len()];
    let (mut offset, mut reordered) = (0, Vec::with_capacity(values.len()));
    while reordered.len() < values.len() {
        reordered.push(values[offset]);
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            offset += strides[d];
            if index[d] < shape[d] {
                break;
            }
            offset -= index[d] * strides[d];
            index[d] = 0;
        }
    }
    reordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_major_against_the_plain_rule() {
        let shape = [2, 3, 4];
        let values: Vec<usize> = (100..124).collect();
        for (i, value) in row_major(&values, &shape).into_iter().enumerate() {
            let (a, b, c) = (i / 12, i / 4 % 3, i % 4);
            assert_eq!(value, 100 + a + 2 * b + 6 * c, "{i}");
        }
        assert_eq!(row_major(&[7], &[]), [7]);
    }
}
