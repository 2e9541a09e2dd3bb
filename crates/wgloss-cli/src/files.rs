//! Arrays from and to `.npy` and `.safetensors` files.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytemuck::{Pod, cast_slice_mut};
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensorError};
use wgloss::half::{bf16, f16};
use wgloss::reference::Values;
use wgloss::{Array, DType, Data, Element, Layout};

use crate::npy;

#[cfg(target_endian = "big")]
compile_error!("both file formats are little-endian, and so must be the machine");

/// As many as numpy has.
const MAX_DIMENSIONS: usize = 64;

/// The key that is none of a tensor in a `.safetensors` header.
const METADATA: &str = "__metadata__";

/// Where an array is: `FILE.npy`, `FILE.safetensors` or `FILE.safetensors#KEY`.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    path: PathBuf,
    key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Npy,
    Safetensors,
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let mut marks = text.match_indices('#').map(|(at, _)| (&text[..at], &text[at + 1..]));
        Ok(match marks.find(|(path, _)| format(Path::new(path)).is_some()) {
            Some((path, key)) => Place { path: path.into(), key: Some(key.into()) },
            None => Place { path: text.into(), key: None },
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.key.iter().try_for_each(|key| write!(f, "#{key}"))
    }
}

fn format(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_lowercase().as_str() {
        "npy" => Some(Format::Npy),
        "safetensors" => Some(Format::Safetensors),
        _ => None,
    }
}

impl Place {
    /// The same place with a key, which it must not have yet.
    pub fn with_key(mut self, key: &str) -> Result<Self> {
        ensure!(self.key.is_none(), "--key: expected one key for --input {self}, got also {key:?}");
        self.key = Some(key.into());
        Ok(self)
    }

    fn format(&self) -> Result<Format> {
        let format = format(&self.path)
            .context("expected a name that ends in .npy, .safetensors or .safetensors#KEY")?;
        if let (Format::Npy, Some(key)) = (format, &self.key) {
            bail!("expected no key for a .npy file, got {key:?}");
        }
        Ok(format)
    }

    /// Refuses a place that several tensors cannot be written to.
    pub fn expect_tensors(&self) -> Result<()> {
        let is_whole_file = self.key.is_none() && self.format()? == Format::Safetensors;
        ensure!(is_whole_file, "expected a name that ends in .safetensors");
        expect_writable(&self.path)
    }

    /// Writes tensors by their keys, in place of what was there.
    pub fn write_tensors(&self, tensors: &[(String, Tensor)]) -> Result<()> {
        replace(&self.path, &safetensors_bytes(tensors.iter().map(|(key, value)| (key, value)))?)
    }

    /// The file that is meant, links resolved, if it exists; otherwise where it would be.
    fn resolved(&self) -> Option<PathBuf> {
        self.path
            .canonicalize()
            .ok()
            .or_else(|| Some(folder(&self.path).canonicalize().ok()?.join(self.path.file_name()?)))
    }
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a path that no file can be written to.
pub fn expect_writable(path: &Path) -> Result<()> {
    let parent = folder(path);
    ensure!(parent.is_dir(), "expected an existing folder {}", parent.display());
    ensure!(path.file_name().is_some(), "expected a file's name");
    ensure!(!path.exists() || path.is_file(), "expected a file, found a folder or device");
    Ok(())
}

/// Writes a file, whole or not at all.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    // where a link leads, not the link
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut file = temporary(folder(&path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

/// A file that is removed unless it is put in place.
fn temporary(folder: &Path) -> Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // as for any new file, less the umask; temporary files are private otherwise
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    Ok(builder.prefix(".wgloss-").tempfile_in(folder)?)
}

fn safetensors_bytes<'a>(
    tensors: impl Iterator<Item = (&'a String, &'a Tensor)>,
) -> Result<Vec<u8>> {
    let mut views = Vec::new();
    for (key, tensor) in tensors {
        let view = TensorView::new(tensor.dtype(), tensor.shape().to_vec(), tensor.bytes());
        views.push((key, view.map_err(|error| anyhow!("{error}"))?));
    }
    safetensors::serialize(views, None).map_err(|error| anyhow!("{error}"))
}

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
fn name(dtype: Dtype) -> String {
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

/// A result as it is written.
#[derive(Debug)]
pub enum Tensor {
    /// In its storage type.
    Stored(Array<'static>),
    /// In float64.
    Exact(Values),
}

impl From<Array<'static>> for Tensor {
    fn from(array: Array<'static>) -> Self {
        Tensor::Stored(array)
    }
}

impl Tensor {
    /// The same, rounded to float32 where it is float64.
    pub fn into_array(self) -> wgloss::Result<Array<'static>> {
        match self {
            Tensor::Stored(array) => Ok(array),
            Tensor::Exact(values) => values.to_array(),
        }
    }

    /// The shape; `[]` for a mean or a sum.
    pub fn shape(&self) -> &[usize] {
        match self {
            Tensor::Stored(array) => array.shape(),
            Tensor::Exact(values) => &values.shape,
        }
    }

    /// The elements in float64.
    pub fn to_f64(&self) -> Cow<'_, [f64]> {
        match self {
            Tensor::Stored(array) => array.to_f64().into(),
            Tensor::Exact(values) => (&values.values).into(),
        }
    }

    /// The type in which it is written.
    pub fn dtype(&self) -> Dtype {
        match self {
            Tensor::Exact(_) => Dtype::F64,
            Tensor::Stored(array) => match array.dtype() {
                wgloss::DType::F32 => Dtype::F32,
                wgloss::DType::F16 => Dtype::F16,
                wgloss::DType::Bf16 => Dtype::BF16,
                wgloss::DType::I32 => Dtype::I32,
                wgloss::DType::I64 => Dtype::I64,
            },
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Tensor::Stored(array) => Data::bytes(array.data()),
            Tensor::Exact(values) => bytemuck::cast_slice(&values.values),
        }
    }
}

/// The files to write: checked before any work, put in place when all of them are complete.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    /// Links resolved.
    path: PathBuf,
    format: Format,
    parts: Vec<Part>,
}

/// A result in a file.
#[derive(Debug)]
struct Part {
    /// Also the flag.
    name: &'static str,
    place: Place,
    key: String,
}

impl Outputs {
    /// Refuses places that cannot be written, those that are also `inputs`, and those that would
    /// overwrite each other.
    pub fn check<'a>(
        places: impl IntoIterator<Item = (&'static str, &'a Place)>,
        inputs: &[(&'static str, &Place)],
    ) -> Result<Self> {
        let mut files: Vec<Output> = Vec::new();
        for (name, place) in places {
            let add = |files: &mut Vec<Output>| {
                let format = place.format()?;
                let parent = folder(&place.path);
                ensure!(parent.is_dir(), "expected an existing folder {}", parent.display());
                let path = place.resolved().context("expected a file's name")?;
                ensure!(
                    !path.exists() || path.is_file(),
                    "expected a file, found a folder or device"
                );
                let same = |input: &&(_, &Place)| input.1.resolved().as_ref() == Some(&path);
                if let Some((input, _)) = inputs.iter().find(same) {
                    bail!("expected another file than --{}", input.replace('_', "-"));
                }
                let key = place.key.clone().unwrap_or_else(|| name.into());
                // where the format has no tensor, but text: no reader would take the file
                ensure!(
                    key != METADATA,
                    "expected another key than {METADATA:?}, which .safetensors reserves"
                );
                let part = Part { name, place: place.clone(), key };
                match files.iter_mut().find(|file| file.path == path) {
                    None => files.push(Output { path, format, parts: vec![part] }),
                    Some(file) => {
                        let clash = file
                            .parts
                            .iter()
                            .find(|other| format == Format::Npy || other.key == part.key);
                        if let Some(other) = clash {
                            bail!("expected another place than --{}", other.name);
                        }
                        file.parts.push(part);
                    }
                }
                Ok(())
            };
            add(&mut files).with_context(|| format!("--{name} {place}"))?;
        }
        Ok(Outputs { files })
    }

    /// Makes room for results of these types and shapes: each in a temporary file beside where it
    /// belongs.
    pub fn create(&self, results: &[(&'static str, Dtype, Vec<usize>)]) -> Result<Writer<'_>> {
        let files = self.files.iter();
        let files = files.map(|file| file.create(results).with_context(|| file.flags()));
        Ok(Writer { files: files.collect::<Result<_>>()? })
    }
}

/// Results on their way to files, which are put in place when all of them are complete.
pub struct Writer<'a> {
    files: Vec<Growing<'a>>,
}

/// A file that is being written.
struct Growing<'a> {
    output: &'a Output,
    file: tempfile::NamedTempFile,
    regions: Vec<Region<'a>>,
}

/// Where a result goes in its file.
struct Region<'a> {
    part: &'a Part,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where the next elements go, and where the last ones end.
    next: u64,
    end: u64,
}

impl Writer<'_> {
    /// Writes the next elements of a result, if it is one of those to be written.
    pub fn append(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        for Growing { output, file, regions } in &mut self.files {
            for region in regions.iter_mut().filter(|region| region.part.name == name) {
                file.seek(SeekFrom::Start(region.next))
                    .and_then(|_| file.write_all(tensor.bytes()))
                    .with_context(|| output.flags())?;
                region.next += tensor.bytes().len() as u64;
            }
        }
        Ok(())
    }

    /// Puts the files in place: all of them, or none where one is not complete and on disk. Tells
    /// what was written where.
    pub fn finish(self) -> Result<Vec<String>> {
        for Growing { output, file, regions } in &self.files {
            let complete = regions.iter().all(|region| region.next == region.end);
            ensure!(complete, "{}: incomplete", output.flags());
            file.as_file().sync_all().with_context(|| output.flags())?;
        }
        let mut written: Vec<String> = Vec::new();
        for Growing { output, file, regions } in self.files {
            file.persist(&output.path).map_err(|error| {
                let before = match &written[..] {
                    [] => "nothing was written".into(),
                    lines => format!("written before: {}", lines.join("; ")),
                };
                anyhow!("{}: cannot be put in place: {}; {before}", output.flags(), error.error)
            })?;
            written.extend(regions.iter().map(|Region { part, dtype, shape, .. }| {
                format!("{} {} {shape:?}", part.place, name(*dtype))
            }));
        }
        Ok(written)
    }
}

impl Output {
    /// `--loss out.safetensors, --grad out.safetensors`
    fn flags(&self) -> String {
        let flags = self.parts.iter().map(|part| format!("--{} {}", part.name, part.place));
        flags.collect::<Vec<_>>().join(", ")
    }

    /// A temporary file with a header for these results, beside where it belongs.
    fn create(&self, results: &[(&'static str, Dtype, Vec<usize>)]) -> Result<Growing<'_>> {
        let mut regions = Vec::new();
        for part in &self.parts {
            let result = results.iter().find(|(name, ..)| *name == part.name);
            let (_, dtype, shape) = result.context("expected a result, got none")?;
            regions.push(Region { part, dtype: *dtype, shape: shape.clone(), next: 0, end: 0 });
        }
        let header = match (self.format, &mut regions[..]) {
            (Format::Npy, [region]) => npy::header(region.dtype, &region.shape)?,
            (Format::Npy, _) => bail!("expected one result for a .npy file"),
            (Format::Safetensors, regions) => safetensors_start(regions)?,
        };
        let mut next = header.len() as u64;
        for region in &mut regions {
            region.next = next;
            next += bytes(region.dtype, &region.shape);
            region.end = next;
        }
        let mut file = temporary(folder(&self.path))?;
        file.write_all(&header)?;
        Ok(Growing { output: self, file, regions })
    }
}

/// The bytes of an array's elements.
fn bytes(dtype: Dtype, shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8
}

/// A `.safetensors` file up to its elements; sorts the regions into the order in which they follow.
fn safetensors_start(regions: &mut [Region<'_>]) -> Result<Vec<u8>> {
    // the widest elements first, as the format's own writer has it: all are aligned then
    regions.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.part.key.cmp(&b.part.key)));
    let mut at = 0;
    let tensors = regions.iter().map(|Region { part, dtype, shape, .. }| {
        let start = at;
        at += bytes(*dtype, shape) as usize;
        let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, at) };
        (part.key.clone(), info)
    });
    let header = Metadata::new(None, tensors.collect()).map_err(|error| anyhow!("{error}"))?;
    let mut text = serde_json::to_string(&header)?;
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    Ok([&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: PathBuf) -> Place {
        Place { path, key: None }
    }

    #[test]
    fn keys_follow_safetensors_files() {
        for (text, path, key) in [
            ("a.npy", "a.npy", None),
            ("a.safetensors", "a.safetensors", None),
            ("a.safetensors#b#c", "a.safetensors", Some("b#c")),
            ("a.SafeTensors#layer.0/x", "a.SafeTensors", Some("layer.0/x")),
            ("a#1.npy", "a#1.npy", None),
            ("a#1/b.safetensors#k", "a#1/b.safetensors", Some("k")),
            ("", "", None),
        ] {
            let Ok(got) = text.parse::<Place>();
            assert_eq!(got, Place { path: path.into(), key: key.map(Into::into) }, "{text}");
            assert_eq!(got.to_string(), text);
        }
    }

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

    /// Two results, and a folder that changes between the check and the writing.
    fn write(change: impl FnOnce(&Path)) -> (tempfile::TempDir, Result<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        let [loss, grad] = ["loss.npy", "sub/grad.npy"].map(|f| place(folder.path().join(f)));
        let outputs = Outputs::check([("loss", &loss), ("grad", &grad)], &[]).unwrap();
        change(&folder.path().join("sub"));
        let write = || {
            let scalar = |name| (name, Dtype::F32, vec![]);
            let mut writer = outputs.create(&[scalar("loss"), scalar("grad")])?;
            for (name, value) in [("loss", 1.0_f32), ("grad", 2.0)] {
                writer.append(name, &Array::scalar(value).into())?;
            }
            writer.finish()
        };
        (folder, write())
    }

    #[test]
    fn writes_all() {
        let (folder, written) = write(|_| {});
        assert_eq!(written.unwrap().len(), 2);
        let loss = place(folder.path().join("loss.npy"));
        let read = Source::open(&loss, "loss", Kind::Numbers).unwrap().read().unwrap();
        assert_eq!(read, Array::scalar(1.0_f32));
    }

    #[test]
    fn writes_nothing_when_a_result_cannot_be_completed() {
        let (folder, written) = write(|sub| fs::remove_dir(sub).unwrap());
        let error = format!("{:#}", written.unwrap_err());
        assert!(error.starts_with("--grad "), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn tells_what_is_in_place_when_a_rename_fails() {
        let (folder, written) = write(|sub| fs::create_dir_all(sub.join("grad.npy/x")).unwrap());
        let error = format!("{:#}", written.unwrap_err());
        let [loss, grad] = ["loss.npy", "sub/grad.npy"].map(|f| folder.path().join(f));
        let start = format!("--grad {}: cannot be put in place: ", grad.display());
        let end = format!("; written before: {} float32 []", loss.display());
        assert!(error.starts_with(&start) && error.ends_with(&end), "{error}");
        // the temporary file is gone
        assert_eq!(fs::read_dir(folder.path().join("sub")).unwrap().count(), 1);
    }
}
