//! Reading arrays.

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, IsTerminal, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytemuck::{Pod, cast_slice_mut};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError};
use wgloss::half::{bf16, f16};
use wgloss::options::Value;
use wgloss::{Array, DType, Data, Element, Layout};
use wgloss_testing::json::expect_unique_keys;

use super::Place;
use super::element::{Float, Number};
use super::place::{Format, word};
use crate::npy;

/// As many as numpy has.
const MAX_DIMENSIONS: usize = 64;

/// What an argument's elements mean, and so what types they may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Numbers of any type; integers and bool are converted.
    Numbers,
    /// Class indices: integers or bool.
    Classes,
    /// Either: the type tells which.
    ClassesOrNumbers,
}

/// What is asked of a file.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// What its elements mean.
    pub kind: Kind,
    /// What numbers become that are no float32, float16 or bfloat16.
    pub float: DType,
    /// Whether those become float64 instead, for the reference.
    pub is_exact: bool,
}

impl Wanted {
    /// The type that elements have as arguments, before `is_exact`.
    fn converted(self, dtype: Dtype) -> Result<DType> {
        let is_class = self.kind != Kind::Numbers;
        Ok(match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64 if self.kind == Kind::Classes => {
                bail!(
                    "expected {}, got {}: convert with .astype(np.int64)",
                    self.words(),
                    name(dtype)
                )
            }
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            Dtype::F64 => self.float,
            Dtype::BOOL | Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::I32
                if is_class =>
            {
                DType::I32
            }
            Dtype::U32 | Dtype::I64 | Dtype::U64 if is_class => DType::I64,
            Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::U16
            | Dtype::I16
            | Dtype::U32
            | Dtype::I32
            | Dtype::U64
            | Dtype::I64 => self.float,
            other => bail!("expected {}, got {}", self.words(), name(other)),
        })
    }

    fn words(self) -> &'static str {
        match self.kind {
            Kind::Numbers => "floats, integers or bool",
            Kind::Classes => "integers or bool",
            Kind::ClassesOrNumbers => "integers or bool for classes, floats for probabilities",
        }
    }
}

/// The name in numpy's words, where it has one.
pub fn name(dtype: Dtype) -> String {
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

/// Files that are open. A pipe can be read once only, and may have the tensors of several arguments.
#[derive(Debug, Default)]
pub struct Opened(Vec<(PathBuf, Rc<fs::File>)>);

impl Opened {
    /// Opens a file. A pipe is read to its end, into a file without a name: where the program looks for a
    /// tensor it seeks, and so does not hold all of them in memory.
    fn open(&mut self, place: &Place) -> Result<Rc<fs::File>> {
        let known = self.0.iter().find(|(path, _)| *path == place.path);
        if let Some((_, file)) = known {
            return Ok(file.clone());
        }
        let file = match place.is_standard() {
            true => standard_input()?,
            false => fs::File::open(&place.path)?,
        };
        let metadata = file.metadata()?;
        let file = match (metadata.is_file(), word(&metadata.file_type())) {
            (true, _) => file,
            (false, "pipe") => spooled(file)?,
            (false, other) => bail!("expected a file or pipe, found a {other}"),
        };
        let file = Rc::new(file);
        self.0.push((place.path.clone(), file.clone()));
        Ok(file)
    }
}

/// Standard input as a file.
#[cfg(unix)]
fn standard_input() -> Result<fs::File> {
    use std::os::fd::AsFd;
    let stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "expected a file or pipe, found a terminal");
    Ok(stdin.as_fd().try_clone_to_owned()?.into())
}

/// Standard input as a file.
#[cfg(not(unix))]
fn standard_input() -> Result<fs::File> {
    let stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "expected a file or pipe, found a terminal");
    spooled(stdin.lock())
}

/// What comes out of a pipe, as a file.
fn spooled(mut pipe: impl Read) -> Result<fs::File> {
    // what cannot be an array is refused before it fills the disk
    let mut first = Vec::new();
    (&mut pipe).take(8).read_to_end(&mut first)?;
    sniffed(&first)?;
    let folder = std::env::temp_dir();
    let copy = || {
        let mut file = tempfile::tempfile_in(&folder)?;
        std::io::copy(&mut first.as_slice().chain(pipe), &mut file)?;
        anyhow::Ok(file)
    };
    copy().with_context(|| format!("cannot be copied to {}", folder.display()))
}

/// The format that the first eight bytes of a file tell.
fn sniffed(first: &[u8]) -> Result<Format> {
    if first.starts_with(npy::MAGIC) {
        return Ok(Format::Npy);
    }
    let header = first.first_chunk().map(|&size| u64::from_le_bytes(size));
    match header {
        Some(2..=MAX_HEADER) => Ok(Format::Safetensors),
        _ => bail!("expected a .npy or .safetensors file, found neither's first bytes"),
    }
}

/// The longest header of a `.safetensors` file, as for the crate's own reader, which takes whole files
/// only.
const MAX_HEADER: u64 = 100_000_000;

/// An array in a file, its header read and its elements not yet.
///
/// Elements are read where they are asked for, by seeking: files larger than memory serve as well as
/// with a memory map, which would take unsafe code, and die of a signal where a file is cut short.
#[derive(Debug)]
pub struct Source {
    file: Rc<fs::File>,
    /// Where the elements start.
    start: u64,
    /// As they are in the file.
    stored: Dtype,
    big_endian: bool,
    /// As they are to be, but for what becomes float64.
    dtype: DType,
    is_exact: bool,
    shape: Vec<usize>,
    fortran_order: bool,
    /// How many numbers a conversion has changed so far, of how many.
    changed: Cell<[usize; 2]>,
}

impl Source {
    /// Opens a file. `default_key` is the key where the place has none.
    pub fn open(
        opened: &mut Opened,
        place: &Place,
        default_key: &str,
        wanted: Wanted,
    ) -> Result<Self> {
        let by_name = place.format();
        let is_regular = fs::metadata(&place.path).is_ok_and(|metadata| metadata.is_file());
        let (shared, format) = match (place.is_standard(), is_regular, by_name) {
            // what a pipe has is found out by looking, unless its name tells
            (true, ..) | (_, false, Err(_)) if place.is_standard() || place.path.exists() => {
                let shared = opened.open(place)?;
                let mut first = Vec::new();
                (&*shared).seek(SeekFrom::Start(0))?;
                (&*shared).take(8).read_to_end(&mut first)?;
                (shared, sniffed(&first)?)
            }
            (.., by_name) => {
                let format = by_name?;
                (opened.open(place)?, format)
            }
        };
        place.expect_key_of(format)?;
        let mut file = &*shared;
        file.seek(SeekFrom::Start(0))?;
        let length = file.metadata()?.len();
        let (start, end, stored, big_endian, shape, fortran_order) = match format {
            Format::Npy => {
                let mut header = Vec::new();
                file.take(npy::PREFIX as u64).read_to_end(&mut header)?;
                let start = npy::data_start(&header)? as u64;
                file.take(start.saturating_sub(header.len() as u64)).read_to_end(&mut header)?;
                // the elements of a tiny file may be among its first bytes
                header.truncate(start as usize);
                let npy = npy::parse(&header)?;
                let stored = npy.dtype.map_err(|other| {
                    anyhow!("expected {}, got numpy type {other}", wanted.words())
                })?;
                (start, length, stored, npy.big_endian, npy.shape, npy.fortran_order)
            }
            Format::Safetensors => {
                let (start, header) = safetensors_header(file, length)
                    .map_err(|error| anyhow!("not a good .safetensors file: {error}"))?;
                let key = place.key.as_deref().unwrap_or(default_key);
                let info =
                    header.info(key).ok_or_else(|| missing_key(key, header.offset_keys()))?;
                let (from, to) = info.data_offsets;
                let ends = (start + from as u64, start + to as u64);
                (ends.0, ends.1, info.dtype, false, info.shape.clone(), false)
            }
        };
        let dtype = wanted.converted(stored)?;
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
        let elements: u128 = shape.iter().map(|&size| size as u128).product();
        let expected = elements * stored.bitsize() as u128 / 8;
        let found = end.saturating_sub(start);
        ensure!(
            u128::from(found) == expected,
            "expected {expected} bytes of {} for shape {shape:?}, got {found}",
            name(stored),
        );
        // the order of a single dimension, or of no elements, is one and the same
        let is_matrix = elements > 0 && shape.iter().filter(|&&size| size > 1).count() > 1;
        let is_float = matches!(stored, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let is_class = matches!(dtype, DType::I32 | DType::I64);
        Ok(Source {
            file: shared,
            start,
            stored,
            big_endian,
            dtype,
            is_exact: wanted.is_exact && !is_float && !is_class,
            shape,
            fortran_order: fortran_order && is_matrix,
            changed: Cell::default(),
        })
    }

    /// Shape and element type, as a device would have them.
    pub fn layout(&self) -> Layout {
        Layout::new(&self.shape, self.dtype)
    }

    /// The bytes of an element in memory.
    pub fn element_bytes(&self) -> usize {
        if self.is_exact { size_of::<f64>() } else { self.dtype.size() }
    }

    /// Whether rows lie apart, so that some of them cannot be read alone.
    pub fn is_fortran(&self) -> bool {
        self.fortran_order
    }

    /// What was lost by conversion, in words, of what has been read so far.
    pub fn note(&self) -> Option<String> {
        let [changed, all] = self.changed.get();
        let to = match self.is_exact {
            true => "float64",
            false => numpy_name(self.dtype),
        };
        let better = match (self.is_exact, self.stored) {
            (false, Dtype::F64) => "; --device reference computes in float64",
            _ => "",
        };
        let from = name(self.stored);
        (changed > 0).then(|| {
            format!("{from} was rounded to {to}: {changed} of {all} numbers lost digits{better}")
        })
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
        match (self.stored, self.dtype) {
            (Dtype::F32, _) => self.as_stored::<f32>(start, shape),
            (Dtype::F16, _) => self.as_stored::<f16>(start, shape),
            (Dtype::BF16, _) => self.as_stored::<bf16>(start, shape),
            (Dtype::I32, DType::I32) => self.as_stored::<i32>(start, shape),
            (Dtype::I64, DType::I64) => self.as_stored::<i64>(start, shape),
            (Dtype::BOOL | Dtype::U8, _) => self.converted::<u8>(start, shape),
            (Dtype::I8, _) => self.converted::<i8>(start, shape),
            (Dtype::U16, _) => self.converted::<u16>(start, shape),
            (Dtype::I16, _) => self.converted::<i16>(start, shape),
            (Dtype::U32, _) => self.converted::<u32>(start, shape),
            (Dtype::I32, _) => self.converted::<i32>(start, shape),
            (Dtype::U64, _) => self.converted::<u64>(start, shape),
            (Dtype::I64, _) => self.converted::<i64>(start, shape),
            _ => self.converted::<f64>(start, shape),
        }
    }

    fn as_stored<T: Element + Pod>(&self, start: usize, shape: &[usize]) -> Result<Array<'static>> {
        let mut values = zeros::<T>(shape.iter().product())?;
        self.read_at(start, &mut values)?;
        Ok(Array::from_vec(self.row_major(values, shape)?, shape)?)
    }

    fn converted<T: Number>(&self, start: usize, shape: &[usize]) -> Result<Array<'static>> {
        Ok(match self.dtype {
            _ if self.is_exact => {
                let values = self.floats::<T, f64>(start, shape)?;
                Array::from_data(Data::F64(values.into()), shape)?
            }
            DType::F16 => Array::from_vec(self.floats::<T, f16>(start, shape)?, shape)?,
            DType::Bf16 => Array::from_vec(self.floats::<T, bf16>(start, shape)?, shape)?,
            DType::F32 | DType::F64 => {
                Array::from_vec(self.floats::<T, f32>(start, shape)?, shape)?
            }
            DType::I32 => Array::from_vec(self.classes::<T, i32>(start, shape)?, shape)?,
            DType::I64 => Array::from_vec(self.classes::<T, i64>(start, shape)?, shape)?,
        })
    }

    /// Numbers, each converted to the nearest of another type.
    fn floats<T: Number, F: Float>(&self, start: usize, shape: &[usize]) -> Result<Vec<F>> {
        let mut changed = 0;
        let values = self.each::<T, F>(start, shape, |number| {
            let (wide, is_exact) = number.wide();
            let nearest = F::nearest(wide);
            let value = nearest.value();
            if wide.is_finite() && value.is_infinite() {
                return None;
            }
            changed += usize::from(!(is_exact && (value == wide || wide.is_nan())));
            Some(nearest)
        })?;
        let [before, all] = self.changed.get();
        self.changed.set([before + changed, all + values.len()]);
        Ok(values)
    }

    /// Integers, as class indices.
    fn classes<T: Number, C: TryFrom<i64> + Pod>(
        &self,
        start: usize,
        shape: &[usize],
    ) -> Result<Vec<C>> {
        self.each::<T, C>(start, shape, |number| number.class()?.try_into().ok())
    }

    /// All elements, each turned into another, in row-major order: a block of them at a time, so that they
    /// do not take memory twice.
    fn each<T: Number, U: Pod>(
        &self,
        start: usize,
        shape: &[usize],
        mut convert: impl FnMut(T) -> Option<U>,
    ) -> Result<Vec<U>> {
        const BLOCK: usize = 1 << 16;
        let count = shape.iter().product();
        let mut values = zeros::<U>(count)?;
        let mut block = vec![T::zeroed(); BLOCK.min(count)];
        for (index, values) in values.chunks_mut(BLOCK).enumerate() {
            let block = &mut block[..values.len()];
            let first = start + index * BLOCK;
            self.read_at(first, block)?;
            for (i, (value, &number)) in values.iter_mut().zip(&*block).enumerate() {
                let refuse = |what: &str| {
                    // 1e39 rather than forty digits
                    let number = Value::Number(number.wide().0);
                    anyhow!("expected {what}, got {number} at element {}", first + i)
                };
                if self.stored == Dtype::BOOL && number.wide().0 > 1.0 {
                    return Err(refuse("bool of 0 or 1"));
                }
                let range = || match self.dtype {
                    DType::I32 | DType::I64 => "integers that fit int64".into(),
                    dtype => format!("numbers in the range of {}", numpy_name(dtype)),
                };
                *value = convert(number).ok_or_else(|| refuse(&range()))?;
            }
        }
        self.row_major(values, shape)
    }

    /// Reads elements into memory, in this machine's order of bytes.
    fn read_at<T: Pod>(&self, start: usize, values: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = cast_slice_mut(values);
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(self.start + (start * size_of::<T>()) as u64))?;
        file.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                anyhow!("expected a file that stays as it is, found it cut")
            }
            _ => error.into(),
        })?;
        if self.big_endian {
            bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
        }
        Ok(())
    }

    fn row_major<T: Pod>(&self, values: Vec<T>, shape: &[usize]) -> Result<Vec<T>> {
        match self.fortran_order {
            true => row_major(&values, shape),
            false => Ok(values),
        }
    }
}

/// numpy's name of a type.
pub fn numpy_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
        DType::I32 => "int32",
        DType::I64 => "int64",
        DType::F64 => "float64",
    }
}

/// Memory for so many elements, where there is as much.
fn zeros<T: Pod>(count: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    ensure!(
        values.try_reserve_exact(count).is_ok(),
        "expected memory for {bytes} bytes, found less"
    );
    values.resize(count, T::zeroed());
    Ok(values)
}

/// A file's header, and where the elements start.
fn safetensors_header(mut file: &fs::File, length: u64) -> Result<(u64, Metadata)> {
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| SafeTensorError::HeaderTooSmall)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(SafeTensorError::HeaderTooLarge.into());
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header)?;
    if (header.len() as u64) < size {
        return Err(SafeTensorError::InvalidHeaderLength.into());
    }
    let header = str::from_utf8(&header).map_err(SafeTensorError::InvalidHeader)?;
    // the format's own reader takes the last of several
    expect_unique_keys(header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    let header: Metadata =
        serde_json::from_str(header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    let start = 8 + size;
    match start.checked_add(header.data_len() as u64) {
        Some(end) if end == length => Ok((start, header)),
        _ => Err(SafeTensorError::MetadataIncompleteBuffer.into()),
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
fn row_major<T: Pod>(values: &[T], shape: &[usize]) -> Result<Vec<T>> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &length in shape {
        strides.push(stride);
        stride *= length;
    }
    let mut index = vec![0; shape.len()];
    let (mut offset, mut reordered) = (0, zeros(values.len())?);
    for to in &mut reordered {
        *to = values[offset];
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
    Ok(reordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_major_against_the_plain_rule() {
        let shape = [2, 3, 4];
        let values: Vec<usize> = (100..124).collect();
        for (i, value) in row_major(&values, &shape).unwrap().into_iter().enumerate() {
            let (a, b, c) = (i / 12, i / 4 % 3, i % 4);
            assert_eq!(value, 100 + a + 2 * b + 6 * c, "{i}");
        }
        assert_eq!(row_major(&[7], &[]).unwrap(), [7]);
    }
}
